"""Record a trace while transformers' Trainer trains.

::

    args = TrainingArguments(..., remove_unused_columns=False)     # every example has an integer "sample_idx"
    callback = CLDCallback("trace", query_dataset=query_dataset)
    Trainer(model, args, train_dataset=train_dataset, callbacks=[callback]).train()
    comove.Trace.load("trace")

Knows sequence classification (all statistics) and causal language models (the mean loss per token). The recorder's
state lies in the Trainer's own checkpoint folders, so ``train(resume_from_checkpoint=...)`` goes on without losing or
doubling a row.

A callback sees neither inputs nor outputs, so ``mode="in_pass"`` reads them with hooks on the model. With label
smoothing or ``compute_loss_func`` the Trainer takes the labels away before the model: mix :class:`CLDTrainerMixin` into
the Trainer then.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from comove.errors import InputError
from comove.store import entries, read_arrays, read_header, write_arrays
from comove.trace.distributed import process_count, process_rank
from comove.trace.epochs import SAME_EPOCH, EpochRows, Mode, open_recorder
from comove.trace.recorder import Missing
from comove.trace.token_loss import token_loss
from comove.trace.trace import Side, Trace

__all__ = ["CLDCallback", "CLDTrainerMixin"]

STATE_FILE = "comove.safetensors"
"""The recorder's state in a checkpoint folder."""

LossOf = Callable[[Any, Mapping[str, Any]], torch.Tensor]


class CLDCallback(TrainerCallback):
    """Writes a :class:`comove.Trace`: a row before training and one after each epoch.

    Works on one device and under DDP, with gradient accumulation, mixed precision (losses are computed in float32),
    batches of variable length, and label smoothing (recorded losses are never smoothed).

    Args:
        path: a new folder for the trace.
        query_dataset: held-out examples like those of the Trainer's ``train_dataset``; its collator is used for both.
        id_column: the integer id of an example. Its name must be no argument of the model.
        train_ids: (N,) ids of the training examples; by default read from the data set, item by item.
        query_ids: (Q,) likewise.
        mode: ``"sweep"``: clean passes; ``"in_pass"``: the losses that the training pass computes anyway (the row
            before training is a clean pass).
        fields: what to keep of :data:`comove.trace.FIELDS`; by default all that the model allows.
        missing: ``"error"`` or ``"previous"`` for training examples that a pass left out
            (``dataloader_drop_last``); see :class:`comove.Recorder`.
        validation_ids: the query ids that coreset methods may aim at; by default all.
        per_sample_loss: for other models: given the model's outputs and inputs, returns (B,) losses.
        overwrite: begin anew when training starts from scratch and ``path`` already holds a trace.
        resume_from: the checkpoint folder to go on from, when it is not in ``output_dir``.

    Attributes:
        trace: the finished trace after training (in the first process).

    Raises:
        InputError: ``remove_unused_columns=True``, examples without ids, a model whose loss is not known, labels that
            do not reach the model, sharded models.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        query_dataset: Any,
        *,
        id_column: str = "sample_idx",
        train_ids: object = None,
        query_ids: object = None,
        mode: Mode = "sweep",
        fields: Iterable[str] | None = None,
        missing: Missing = "error",
        validation_ids: object = None,
        per_sample_loss: LossOf | None = None,
        overwrite: bool = False,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path, self.query_dataset, self.id_column, self.mode = Path(path), query_dataset, id_column, mode
        self.per_sample_loss, self.overwrite, self.resume_from = per_sample_loss, overwrite, resume_from
        self.trace: Trace | None = None
        self.reads_model = mode == "in_pass"  # CLDTrainerMixin reads the batches itself
        self._ids = {"train": train_ids, "query": query_ids}
        self._options: dict[str, Any] = {
            "mode": mode,
            "fields": fields,
            "missing": missing,
            "validation_ids": validation_ids,
        }
        self._rows: EpochRows | None = None
        self._hooked: nn.Module | None = None
        self._batch: dict[str, Any] = {}
        self._loaders: dict[Side, DataLoader[Any]] = {}

    # --- events ---

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let the model be called with ids from now on, and refuse what would drop them."""
        self._check(args)
        self._hook(kwargs.get("model"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the trace, and record the row before training."""
        self._check(args)
        self._hook(kwargs["model"])
        train = kwargs["train_dataloader"]
        for side, data in (("train", train.dataset), ("query", self.query_dataset)):
            self._options[f"{side}_ids"] = self._read_ids(data, self._ids[side], f"{side} data set")
        self._loaders = {
            "train": _in_order(train.dataset, args, train.collate_fn),
            "query": _in_order(self.query_dataset, args, train.collate_fn),
        }
        saved = self._saved_state(args, state)
        begun_here = self._rows is not None and self.trace is None  # a smaller batch size is tried after running out
        recorder = open_recorder(self.path, self._options, saved, self.overwrite or begun_here)
        self.trace = None
        self._rows = EpochRows(recorder, self.mode, row_zero=True)
        # A checkpoint saved at an epoch's last step was written before its row, and the epoch is not ended again.
        self._close(math.floor((state.epoch or 0.0) + SAME_EPOCH), args, state, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the epoch."""
        self._close(state.epoch or 0.0, args, state, kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the recorder's state into the checkpoint."""
        content = self._opened.recorder.state_dict()
        if process_rank() == 0:
            rows = content.pop("rows")
            arrays = {name: tensor.numpy() for name, tensor in content.items()}
            write_arrays(_checkpoint(args, state) / STATE_FILE, arrays, {"rows": rows})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze the trace."""
        self.trace = self._opened.finish()

    # --- batches ---

    def observe(self, model: nn.Module, outputs: Any, inputs: Mapping[str, Any], ids: torch.Tensor, side: Side) -> None:
        """Take in one batch: the model's outputs, and its inputs with labels.

        Raises:
            InputError: no labels, or a model whose loss is not known.
        """
        if self.per_sample_loss is not None:
            self._opened.recorder.observe(ids, loss=self.per_sample_loss(outputs, inputs), side=side)
            return
        logits, labels = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0], inputs["labels"]
        kind = _loss_kind(model)
        if kind == "ForSequenceClassification" and logits.ndim == 2 and labels.ndim == 1 and logits.shape[1] > 1:
            self._opened.recorder.observe(ids, logits=logits, labels=labels, side=side)
        elif kind == "ForCausalLM":
            loss = token_loss(logits, labels, shift=True, attention_BS=inputs.get("attention_mask"))
            self._opened.recorder.observe(ids, loss=loss, side=side)
        else:
            raise InputError(
                f"The per-example loss of {type(model).__name__} (logits {tuple(logits.shape)}, labels "
                f"{tuple(labels.shape)}) is not known: sequence classification with two classes or more and causal "
                "language models are. Pass per_sample_loss=, a function of the model's outputs and inputs."
            )

    def take_ids(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
        """Return a batch without its ids, and the ids."""
        rest = dict(inputs)
        return rest, rest.pop(self.id_column, None)

    def _hook(self, model: nn.Module | None) -> None:
        if model is not None and model is not self._hooked:
            # Registered for good: Trainer.evaluate after training passes the ids to the model just the same.
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            model.register_forward_hook(self._after_forward, with_kwargs=True)
            self._hooked = model

    def _before_forward(self, model: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rest, ids = self.take_ids(inputs)
        self._batch = {"ids": ids}
        return args, rest

    def _after_forward(self, model: nn.Module, args: Any, inputs: dict[str, Any], outputs: Any) -> None:
        ids = self._batch.pop("ids", None)
        if not (self.reads_model and self._rows is not None and model.training and torch.is_grad_enabled()):
            return
        if self.trace is not None:
            return
        if ids is None:
            raise InputError(self._without_ids("a training batch"))
        if "labels" not in inputs and self.per_sample_loss is None:
            raise InputError(
                "The labels do not reach the model: with label_smoothing_factor or compute_loss_func the Trainer takes "
                "them away first. Use class MyTrainer(CLDTrainerMixin, Trainer) with cld=callback, or mode='sweep'."
            )
        self.observe(model, outputs, inputs, ids, "train")

    # --- rows ---

    @property
    def _opened(self) -> EpochRows:
        if self._rows is None:
            raise InputError("CLDCallback records from on_train_begin on; it was used outside of Trainer.train.")
        return self._rows

    def _close(self, epoch: float, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        def sweep(side: Side) -> None:
            for batch in islice(self._loaders[side], process_rank(), None, process_count()):
                inputs, ids = self.take_ids({name: _moved(value, args.device) for name, value in batch.items()})
                if ids is None or "labels" not in inputs:
                    what = f"a {side} batch"
                    raise InputError(self._without_ids(what) if ids is None else f"{what} has no 'labels'.")
                # The model's own mean loss would cost another copy of the logits.
                hidden = {} if self.per_sample_loss else {"labels"}
                outputs = model(**{name: value for name, value in inputs.items() if name not in hidden})
                self.observe(model, outputs, inputs, ids, side)

        self._opened.close(float(epoch), state.global_step, model, sweep)

    def _saved_state(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
        if state.global_step == 0:
            return None
        given = [self.resume_from, args.resume_from_checkpoint, _checkpoint(args, state)]
        files = [Path(folder) / STATE_FILE for folder in given if isinstance(folder, str | os.PathLike)]
        found = next((file for file in files if file.exists()), None)
        if found is None:
            raise InputError(
                f"Training goes on from step {state.global_step}, but no state of the recorder was found: looked for "
                f"{', '.join(map(str, files))}. Pass resume_from= the checkpoint's folder, or resume from a checkpoint "
                "that was saved while this callback recorded."
            )
        arrays = {name: torch.from_numpy(array) for name, array in read_arrays(found).items()}
        return {**arrays, **entries(read_header(found)[1], found, {"rows": int})}

    # --- checks ---

    def _check(self, args: TrainingArguments) -> None:
        if args.remove_unused_columns:
            raise InputError(
                f"remove_unused_columns=True (the default) silently drops the column {self.id_column!r} that says "
                "which example is which. Pass TrainingArguments(remove_unused_columns=False), and leave in the data "
                "sets only what the model takes, the labels and the ids."
            )
        if args.n_gpu > 1:
            raise InputError(
                "nn.DataParallel (several GPUs in one process) is not supported: start with torchrun or accelerate "
                "launch, or show one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        if args.fsdp or args.deepspeed:
            raise InputError(
                "Recording needs the whole model in every process: one device or DDP, not FSDP or DeepSpeed."
            )

    def _read_ids(self, dataset: Any, given: object, what: str) -> object:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(f"The {what} must have a length and examples by index; a stream cannot be recorded.")
        if given is not None:
            return given
        try:
            if hasattr(dataset, "column_names"):  # a datasets.Dataset reads one column at once
                return torch.as_tensor(list(dataset[self.id_column])).numpy()
            return torch.as_tensor([int(dataset[place][self.id_column]) for place in range(len(dataset))]).numpy()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(self._without_ids(f"the {what}")) from error

    def _without_ids(self, what: str) -> str:
        return (
            f"Every example needs an integer {self.id_column!r}, and {what} has none. Add it to the data set (or name "
            "its column with id_column=), and let the collator keep it."
        )


class CLDTrainerMixin:
    """Mix in before Trainer, when the labels do not reach the model (label smoothing, ``compute_loss_func``)::

        class MyTrainer(CLDTrainerMixin, Trainer): ...

        MyTrainer(model, args, train_dataset=..., cld=CLDCallback("trace", query_dataset, mode="in_pass")).train()

    Args:
        cld: the callback; it is added to the Trainer's.
    """

    def __init__(self, *args: Any, cld: CLDCallback, callbacks: list[Any] | None = None, **kwargs: Any) -> None:
        self.cld = cld
        cld.reads_model = False
        super().__init__(*args, callbacks=[*(callbacks or []), cld], **kwargs)  # type: ignore[call-arg]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss as the Trainer does, and record the batch of a training pass."""
        rest, ids = self.cld.take_ids(inputs)
        given = dict(rest)  # the Trainer takes labels out of what it is handed
        loss, outputs = super().compute_loss(  # type: ignore[misc]
            model, rest, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if self.cld.mode == "in_pass" and model.training and torch.is_grad_enabled():
            if ids is None:
                raise InputError(self.cld._without_ids("a training batch"))
            whole = self.accelerator.unwrap_model(model)  # type: ignore[attr-defined]
            self.cld.observe(whole, outputs, given, ids, "train")
        return (loss, outputs) if return_outputs else loss


def _loss_kind(model: nn.Module) -> str | None:
    """Return which of transformers' losses the model trains on, as far as its class says."""
    base: Any = model
    if hasattr(model, "get_base_model"):  # an adapter of peft around it
        base = base.get_base_model()
    if type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "ForCausalLM"  # GPT2LMHeadModel and its like do not have it in their names
    kind: str | None = getattr(base, "loss_type", None)
    return kind


def _in_order(dataset: Any, args: TrainingArguments, collate: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=args.per_device_eval_batch_size, collate_fn=collate, num_workers=args.dataloader_num_workers
    )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
