"""Record a trace while Lightning trains.

::

    def evaluate(module, batch):                       # of a clean batch, on the module's device
        inputs, labels, ids = batch
        return {"ids": ids, "logits": module(inputs), "labels": labels}

    callback = CLDCallback("trace", train_ids=train_ids, query_ids=query_ids,
                           train_loader=train_loader, query_loader=query_loader, evaluate=evaluate)
    Trainer(callbacks=[callback], ...).fit(module, loader)
    comove.Trace.load("trace")

With ``mode="in_pass"`` the training losses are those of the training pass: ``training_step`` returns the same dict with
``"loss"`` in it, and only the queries are evaluated. The recorder's state is part of Lightning's own checkpoints, so
``fit(ckpt_path=...)`` goes on without losing or doubling a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from comove.errors import InputError
from comove.trace.distributed import process_count, process_rank
from comove.trace.epochs import EpochRows, Mode, observe_outputs, open_recorder
from comove.trace.recorder import Missing
from comove.trace.trace import Side, Trace

__all__ = ["CLDCallback"]

Evaluate = Callable[[LightningModule, Any], Mapping[str, Any]]


class CLDCallback(Callback):
    """Writes a :class:`comove.Trace`: a row before training and one after each epoch.

    Works on one device and under DDP, with gradient accumulation and mixed precision (losses are computed in float32).
    Every process iterates the loaders given here and evaluates its share of their batches: give them no distributed
    sampler and no shuffling.

    Args:
        path: a new folder for the trace.
        train_ids: (N,) unique int64 ids.
        query_ids: (Q,) unique int64 ids of held-out examples.
        query_loader: batches of all query examples.
        evaluate: given the module and a batch on its device, returns a dict with ``ids`` (B,), and ``logits`` (B, C)
            with ``labels`` (B,) or ``per_sample_loss`` (B,).
        train_loader: batches of all training examples, without ``drop_last``; ``in_pass`` needs it only for the row
            before training, and leaves that row out without it.
        mode: ``"sweep"``: clean passes; ``"in_pass"``: the losses that the training pass computes anyway.
        fields: what to keep of :data:`comove.trace.FIELDS`; by default all that the outputs allow.
        missing: ``"error"`` or ``"previous"`` for training examples that a pass left out (``drop_last``); see
            :class:`comove.Recorder`.
        validation_ids: the query ids that coreset methods may aim at; by default all.
        overwrite: begin anew when training starts from scratch and ``path`` already holds a trace.

    Attributes:
        trace: the finished trace after ``fit`` (in the first process, when Lightning starts the others itself).

    Raises:
        InputError: a missing loader, a ``training_step`` that returns something else, a strategy that shards the model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        train_ids: object,
        query_ids: object,
        query_loader: Iterable[Any],
        evaluate: Evaluate,
        train_loader: Iterable[Any] | None = None,
        mode: Mode = "sweep",
        fields: Iterable[str] | None = None,
        missing: Missing = "error",
        validation_ids: object = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        if mode == "sweep" and train_loader is None:
            raise InputError("mode='sweep' evaluates the training examples after each epoch: pass train_loader=.")
        self.path, self.mode, self.overwrite = Path(path), mode, overwrite
        self.trace: Trace | None = None
        self._loaders: dict[Side, Iterable[Any] | None] = {"train": train_loader, "query": query_loader}
        self._evaluate = evaluate
        self._options: dict[str, Any] = {
            "train_ids": train_ids,
            "query_ids": query_ids,
            "mode": mode,
            "fields": fields,
            "missing": missing,
            "validation_ids": validation_ids,
        }
        self._saved: dict[str, Any] | None = None
        self._rows: EpochRows | None = None
        self._part = 1.0  # how much of the epoch's batches was trained on

    # --- hooks ---

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the trace, and record the row before training."""
        self._check(trainer)
        recorder = open_recorder(self.path, self._options, self._saved, self.overwrite)
        self._saved = None
        self._rows = EpochRows(recorder, self.mode, row_zero=self._loaders["train"] is not None)
        self._close(trainer, pl_module, float(_epochs_done(trainer)))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch before, if a resumed run did not end it again."""
        self._part = 1.0
        self._close(trainer, pl_module, float(_epochs_done(trainer)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch in (``in_pass``)."""
        self._part = 1.0 if trainer.is_last_batch else (batch_idx + 1) / trainer.num_training_batches
        if self.mode == "in_pass":
            observe_outputs(self._opened.recorder, outputs, "train", "training_step (mode='in_pass')")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch."""
        self._close(trainer, pl_module, _epochs_done(trainer) - 1 + self._part)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the trace."""
        self.trace = self._opened.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the recorder's state, for Lightning's checkpoint."""
        return {} if self._rows is None else self._rows.recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._saved = state_dict

    # --- recording ---

    @property
    def _opened(self) -> EpochRows:
        if self._rows is None:
            raise InputError("CLDCallback records from on_train_start on; it was used outside of Trainer.fit.")
        return self._rows

    def _check(self, trainer: Trainer) -> None:
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise InputError(
                f"Recording needs the whole model in every process: one device or DDP, not "
                f"{type(trainer.strategy).__name__}."
            )
        shuffled = [
            side
            for side, loader in self._loaders.items()
            if isinstance(getattr(loader, "sampler", None), torch.utils.data.RandomSampler)
        ]
        if shuffled and process_count() > 1:
            raise InputError(
                f"The {' and '.join(shuffled)} loader of the callback shuffles: several processes share its batches, "
                "so it must give the same order to each. Give the callback a loader with shuffle=False."
            )

    def _close(self, trainer: Trainer, module: LightningModule, epoch: float) -> None:
        def sweep(side: Side) -> None:
            loader = self._loaders[side]
            assert loader is not None
            for batch in islice(loader, process_rank(), None, process_count()):
                moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                with trainer.precision_plugin.forward_context():
                    outputs = self._evaluate(module, moved)
                observe_outputs(self._opened.recorder, outputs, side, "evaluate")

        self._opened.close(epoch, trainer.global_step, module, sweep)


def _epochs_done(trainer: Trainer) -> int:
    """Return the passes finished; ``current_epoch`` lags behind while an epoch is being ended."""
    done: int = trainer.fit_loop.epoch_progress.current.processed
    return done
