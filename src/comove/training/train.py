"""``comove.train``: train one model, record its trace, keep its checkpoints; resumable to the same bits."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from comove.data import ExampleSet, MapDataset, Splits
from comove.data.builtin import as_splits
from comove.data.preparation import Preprocessing
from comove.errors import CorruptFileError, InputError, some
from comove.jobs.progress import Advance, log_line, progress_bar
from comove.models import Factory, ModelSpec, penultimate
from comove.store import DAMAGED, claim_folder, continue_folder, digest, new_folder, read_arrays, set_aside, write_json
from comove.store.lock import driver_lock
from comove.trace import FIELDS, Recorder
from comove.trace.trace import Row, row_file
from comove.training.configuration import Training, check_early_stop
from comove.training.dry_run import check_inputs, dry_run, features_layer
from comove.training.loop import (
    OptimizerState,
    Resident,
    batch_bounds,
    epochs_without_gain,
    evaluate,
    fit,
    resolve_device,
)
from comove.training.recipe import Recipe
from comove.training.run import RUN_FORMAT, Run, read_weights, write_weights

__all__ = ["Recording", "extend", "train"]


@dataclass(frozen=True)
class Recording:
    """What a run records.

    Args:
        mode: ``"sweep"``, a clean evaluation pass after each epoch; or ``"in_pass"``, training examples as the
            training pass meets them (augmented, weights still moving, not their average) at no extra compute but row 0.
        every: also record a row every so many steps within an epoch (sweep mode); rows at the ends of epochs stay.
        fields: of :data:`comove.trace.FIELDS`.
        anchors: epochs after which penultimate features and class probabilities are kept; ``-1`` is the last one
            (with early stopping, every epoch that may turn out to be the last). With the default, a model whose linear
            layers do not run last keeps none; other anchors require one.
        row_zero: whether the row before training is recorded (``in_pass`` may leave it out and save its pass).

    Raises:
        InputError: a value out of range.
    """

    mode: Literal["sweep", "in_pass"] = "sweep"
    every: int | None = None
    fields: tuple[str, ...] = FIELDS
    anchors: tuple[int, ...] = (-1,)
    row_zero: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        object.__setattr__(self, "anchors", tuple(self.anchors))
        if self.mode not in ("sweep", "in_pass"):
            raise InputError(f"Recording: mode must be 'sweep' or 'in_pass', got {self.mode!r}.")
        if self.every is not None and (not 1 <= self.every < 2**63 or self.mode == "in_pass"):
            raise InputError(
                f"Recording: every must be a number of steps from 1 on, in sweep mode; got {self.every} in "
                f"{self.mode!r} mode (a training pass meets each example once an epoch)."
            )

    def anchor_epochs(self, epochs: int) -> set[int]:
        """The anchors as epochs from 0 (before training) to ``epochs``."""
        resolved = {anchor if anchor >= 0 else epochs + 1 + anchor for anchor in self.anchors}
        if any(not 0 <= anchor <= epochs for anchor in resolved):
            raise InputError(f"Recording: anchors must be epochs from 0 to {epochs}, got {self.anchors}.")
        return resolved


def train(
    dataset: str | Splits | ExampleSet | MapDataset,
    model: str | Factory | None = None,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    *,
    recording: Recording | None = None,
    checkpoints: Literal["all", "last"] | int = "all",
    device: str | torch.device = "auto",
    model_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Run:
    """Train one model, record its trace and keep its checkpoints.

    A run killed at any moment goes on from its last finished epoch when the same call is made again, and ends with the
    same bits (on the same machine, with as many threads). A finished run is opened, not trained again. Where the recipe
    asks for an average of the weights (``ema``), checkpoints and losses are those of the average. A run that ends early
    (``early_stop_patience``) says in its result after how many epochs: ``epochs_trained``.

    Args:
        dataset: splits, a built-in data set's name, an example set or a map-style dataset (split here, the same way
            for every ``seed``, so that runs of several seeds can be averaged).
        model: a name (:func:`comove.models.model_names`), ``"package.module:factory"`` or a factory.
        recipe: a :class:`Recipe`, its name, a mapping of its entries, or ``None`` for the model's default.
        seed: of weights, order, augmentation and dropout.
        out: the run's folder; ``None`` keeps it in a temporary folder for as long as the :class:`Run` lives.
        recording: what to record; by default every statistic, in clean passes before training and after each epoch.
        checkpoints: ``"all"`` epochs (replaying new queries needs them), ``"last"``, or every so many epochs.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        model_options: options of the model, such as ``{"width": 0.125}``.
        progress: show a bar with the time left.

    Returns:
        The finished run.

    Raises:
        InputError: bad arguments; a folder that holds something else.
        FingerprintError: ``out`` holds a run with other data, model, recipe, seed or recording; both are shown.
        LockedError: another process is training this run.
        NonFiniteError: a loss became NaN or infinite; the rows before are kept.
        StorageError: the folder cannot be written.
    """
    splits = as_splits(dataset)
    spec, recipe, _ = Training(model, recipe, model_options or {}, seed).resolve(splits)
    recording = recording or Recording()
    recording.anchor_epochs(recipe.epochs)
    if checkpoints not in ("all", "last") and not (isinstance(checkpoints, int) and checkpoints >= 1):
        raise InputError(f"checkpoints must be 'all', 'last' or a number of epochs from 1 on, got {checkpoints!r}.")
    where = resolve_device(device)
    # All of it before the folder is claimed: a model that is refused leaves nothing behind.
    network = _network(spec, recipe, seed)
    check_early_stop(recipe, splits)
    dry_run(network, splits.train, where)
    for held_out in (splits.validation, splits.query):
        if held_out is not None:
            check_inputs(held_out)
    head = _features_layer(network, splits.train, recording, where)
    folder = new_folder(tempfile.mkdtemp(prefix="comove-run-") if out is None else out)
    manifest = _manifest(splits, spec, recipe, seed, recording, checkpoints)
    manifest["parameters"] = digest({name: list(tensor.shape) for name, tensor in network.state_dict().items()})
    named = model if not isinstance(model, str) or ":" in model else None
    run = Run(folder, claim_folder(folder, "run", RUN_FORMAT, manifest), splits, named)
    if out is None:
        weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    if not run.finished or run.damaged():
        with driver_lock(folder):
            if not run.finished or run.damaged():  # another process may have ended it just now
                _set_aside_damaged(run)
                if not run.finished:
                    _Session(run, network, recipe, recording, checkpoints, where, progress, head).go()
    return run


def extend(run: Run, epochs: int, *, device: str | torch.device = "auto", progress: bool = False) -> Run:
    """Train a finished run further, in its own folder: to the bits of one trained with so many epochs from the start.

    >>> longer = extend(Run.load("runs/0"), 40)  # doctest: +SKIP

    What is there stays as it is: the rows, and the checkpoints that the longer run keeps too. Features kept after what
    was the last epoch stay beside those kept after the new one. Interrupted, it goes on when the same call is made
    again.

    Args:
        run: with its data and, where it has one, its own model (see :meth:`Run.load`).
        epochs: in all.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        progress: show progress.

    Returns:
        The finished run.

    Raises:
        InputError: a schedule that goes by the number of epochs, or not more of them; a run that is not finished, ended
            early, or kept nothing to go on from.
        LockedError: another process trains this run.
    """
    recipe, kept = run.recipe, run.manifest["checkpoints"]
    if epochs != recipe.epochs:
        recipe = recipe.extended(epochs)
        with driver_lock(run.path):
            _check_extendable(run)
            run = _continued(run, recipe)
    return train(
        run.data(),
        run.factory or run.model_spec.name,
        recipe,
        run.seed,
        run.path,
        recording=Recording(**run.manifest["recording"]),
        checkpoints=kept,
        device=device,
        model_options=dict(run.model_spec.options),
        progress=progress,
    )


def _check_extendable(run: Run) -> None:
    if not run.finished:
        raise InputError(f"{run.path} has not been trained to its end: run the command that made it first.")
    trained = run.result.get("epochs_trained", run.recipe.epochs)
    if trained < run.recipe.epochs:
        raise InputError(f"{run.path} ended early, after {trained} epochs: more of them would end there too.")
    if not run.resume_file.exists():
        raise InputError(
            f"{run.path} kept no optimizer state to go on from, as runs of earlier versions: train all epochs anew, in "
            "another folder."
        )


def _continued(run: Run, recipe: Recipe) -> Run:
    """Make the folder that of an unfinished run with more epochs."""
    names = ("dataset", "model", "seed", "recording", "checkpoints", "parameters")
    content = {**{name: run.manifest[name] for name in names if name in run.manifest}, "recipe": recipe.to_json()}
    (run.path / "result.json").unlink()  # first: whatever comes between, the run is unfinished and goes on
    continue_folder(run.path, "run", RUN_FORMAT, content)
    longer = Run.load(run.path, dataset=run.dataset, model=run.factory)
    for file in longer._foreign_checkpoints():
        file.unlink()
    return longer


def _set_aside_damaged(run: Run) -> None:
    """Rename what is damaged, and remove the rest of the run, so that it starts from the beginning."""
    damaged = run.damaged()
    if not damaged:
        return
    if run.finished and damaged == (run.resume_file,):
        warnings.warn(
            f"{set_aside(run.resume_file)} is damaged: the run is whole, and can no longer be trained further.",
            stacklevel=3,
        )
        return
    names = [file.relative_to(run.path).as_posix() for file in damaged]
    warnings.warn(
        f"{len(damaged)} files of the run in {run.path} are damaged or missing ({some(names, 3)}): what is there of "
        f"them is set aside as *{DAMAGED}, and the run is trained again from the beginning, to the same bits on the "
        "same machine.",
        stacklevel=3,
    )
    for file in damaged:
        if file.exists():
            set_aside(file)
    # The result goes first: without it the run is unfinished, wherever this is interrupted.
    parts = (
        "result.json",
        "resume.safetensors",
        "trace/manifest.json",
        "trace/**/*.safetensors",
        "checkpoints/*.safetensors",
    )
    for file in [file for part in parts for file in run.path.glob(part)]:
        file.unlink()


def _network(spec: ModelSpec, recipe: Recipe, seed: int) -> nn.Module:
    """Build the network, and check that the recipe can be carried out on it."""
    if recipe.augment == "flip_crop" and len(spec.input_shape) != 3:
        raise InputError(
            f"augment='flip_crop' needs images (C, H, W), got inputs of shape {spec.input_shape}; use augment='none'."
        )
    return spec.build(seed)


def _features_layer(network: nn.Module, train: ExampleSet, recording: Recording, device: torch.device) -> str | None:
    """The name of the layer whose inputs are kept at anchors; ``None`` for none.

    Raises:
        InputError: anchors were asked for by number, and the model has no such layer.
    """
    if not recording.anchors:
        return None
    try:
        return features_layer(network, train, device)
    except InputError as error:
        linear = any(isinstance(module, nn.Linear) for module in network.modules())
        if linear and recording.anchors == Recording().anchors:  # not asked for: what needs them says there are none
            return None
        raise InputError(f"{error} Train it with recording=Recording(anchors=()), which keeps none.") from error


def _manifest(
    splits: Splits,
    spec: ModelSpec,
    recipe: Recipe,
    seed: int,
    recording: Recording,
    checkpoints: str | int,
) -> dict[str, Any]:
    return {
        "dataset": splits.describe(),
        "model": spec.to_json(),
        "recipe": recipe.to_json(),
        "seed": int(seed),
        "recording": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(recording).items()},
        "checkpoints": checkpoints,
    }


class _Session:
    """One call that trains a run, from its last finished epoch to the end; the hooks of the training loop."""

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        recipe: Recipe,
        recording: Recording,
        checkpoints: str | int,
        device: torch.device,
        progress: bool,
        head: str | None,
    ) -> None:
        assert run.dataset is not None
        self.run, self.recipe, self.recording, self.device = run, recipe, recording, device
        self.checkpoints, self.progress = checkpoints, progress
        self.splits = run.dataset
        self.model = network.to(device)
        self.train = Resident(self.splits.train, device)
        held_out = [part for part in (self.splits.query, self.splits.validation) if part is not None]
        self.held_out = [Resident(part, device) for part in held_out]
        self.anchors = recording.anchor_epochs(recipe.epochs) if head else set()
        self.patience = recipe.early_stop_patience
        self.validation_losses: list[float] = []
        """Mean of each finished epoch, for early stopping."""
        self.started = time.monotonic()
        self.lrs: list[float] = []
        self.epoch = 0
        self._stack = ExitStack()
        self._features = self._stack.enter_context(penultimate(self.model, head)) if self.anchors else None
        self.advance: Advance = lambda done: None
        new_folder(run.path / "checkpoints")
        self.recorder = self._recorder()

    def _recorder(self) -> Recorder:
        splits, recording = self.splits, self.recording
        validation = splits.validation
        query_ids = np.concatenate([part.examples.ids for part in self.held_out])
        return Recorder(
            self.run.path / "trace",
            train_ids=splits.train.ids,
            query_ids=query_ids,
            train_labels=splits.train.labels,
            query_labels=np.concatenate([part.examples.labels for part in self.held_out]),
            validation_ids=query_ids if validation is None else validation.ids,
            mode=recording.mode,
            fields=recording.fields,
            classes=splits.classes,
            data_fingerprint=splits.fingerprint,
            notes={
                "run_fingerprint": self.run.manifest["fingerprint"],
                "every": recording.every,
                "preprocessing": Preprocessing.of(splits.train).to_json(),
            },
            resume=(self.run.path / "trace").exists(),
        )

    def go(self) -> None:
        """Train to the end."""
        with self._stack:
            state = self._resume()
            sweeps = len(self.train) if self.recording.mode == "sweep" else 0
            total = (self.recipe.epochs - state.epoch) * (len(self.train) + sweeps)
            text = f"training {self.run.manifest['model']['name']}"
            if not self._ends_here():  # or it was killed between the epoch that ended it and its result
                with progress_bar(text, total, shown=self.progress, lines=False) as self.advance:
                    fit(
                        self.model,
                        self.train,
                        self.recipe,
                        seed=self.run.seed,
                        device=self.device,
                        hooks=self,
                        state=state,
                        ended=self._ends_here,
                    )
        self._finish()

    # --- resuming ---

    def _resume(self) -> OptimizerState:
        if not self.run.resume_file.exists():
            self.recorder.load_state_dict(Recorder.EMPTY_STATE)
            return OptimizerState()
        file, header = self.run.resume_file, self.run.resume_header()
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "momentum": {}, "weights": {}, "recorder": {}}
        try:
            for name, tensor in read_weights(file).items():
                group, key = name.split(".", 1)
                groups[group][key] = tensor
            place = header["epoch"], header["step"]
            state = OptimizerState(*place, groups["momentum"], header["scaler"], groups["weights"])
            self.model.load_state_dict(groups["model"])
            self.recorder.load_state_dict({**groups["recorder"], "rows": header["rows"]})
        except (KeyError, ValueError, RuntimeError) as error:
            raise CorruptFileError(
                f"{file} is not this run's ({error}), so the run cannot go on from its last epoch. Delete that file "
                "and run again: training starts from the beginning."
            ) from error
        for row in self.recorder.rows:
            self._note_validation_loss(row)
        return state

    def _save_resume(self, state: OptimizerState) -> None:
        recorded = self.recorder.state_dict()
        rows = recorded.pop("rows")
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in state.momentum.items()}
        tensors |= {f"weights.{name}": tensor for name, tensor in state.weights.items()}
        tensors |= {f"recorder.{name}": tensor for name, tensor in recorded.items()}
        place = {"run": self.run.manifest["fingerprint"], "epoch": state.epoch, "step": state.step, "rows": rows}
        header = {**place, "scaler": dict(state.scaler)}
        write_weights(self.run.resume_file, tensors, header)

    # --- hooks ---

    def on_start(self) -> None:
        """Record row 0, the weights before training."""
        if self.recording.row_zero:
            self._observe_train(anchor=0 in self.anchors)
            self._close_row(0.0, 0, anchor=0 in self.anchors)
        steps = len(batch_bounds(len(self.train), self.recipe))
        self._save_checkpoint(0, 0, self.recipe.lr_at(0.5 / steps))

    def on_epoch_start(self, epoch: int) -> None:
        """Remember which epoch it is, and whether its row keeps features."""
        self.epoch, self.lrs = epoch, []
        losses, patience = self.validation_losses, self.patience
        may_be_last = bool(losses) and patience is not None and epochs_without_gain(losses) + 1 >= patience
        self.anchored = epoch + 1 in self.anchors or (may_be_last and self.recipe.epochs in self.anchors)

    def on_batch(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take the batch in (``in_pass`` mode)."""
        if self.recording.mode == "in_pass":
            features = self._features.features if self._features and self.anchored else None
            ids = self.splits.train.ids[positions.numpy()]
            self.recorder.observe(ids, logits=logits, labels=labels, features=features, side="train")
        self.advance(len(positions))

    def on_step(self, step: int, epoch: float, lr: float, last_of_epoch: bool) -> None:
        """Close a row within an epoch, where rows denser than epochs were asked for."""
        self.lrs.append(lr)
        every = self.recording.every
        if every is not None and not last_of_epoch and len(self.lrs) % every == 0:
            self._observe_train(anchor=False)
            self._close_row(epoch, step, anchor=False)

    def on_epoch_end(self, state: OptimizerState) -> None:
        """Close the epoch's row, keep its weights, and save what a resumed run needs."""
        if self.recording.mode == "sweep":
            self._observe_train(self.anchored)
            self.advance(len(self.train))
        self._close_row(float(state.epoch), state.step, self.anchored)
        self._note_validation_loss(self.recorder.rows[-1])
        self._save_checkpoint(state.epoch, state.step, self.lrs[-1])
        self._save_resume(state)
        if self.progress:
            self._log(state.epoch)

    def _log(self, epoch: int) -> None:
        """Say in a log how far training is, with the mean losses of the epoch's row."""
        file = row_file(self.run.path / "trace", self.recorder.rows[-1].index)
        losses = read_arrays(file, ["train.loss", "query.loss"])
        train, held_out = (float(losses[f"{side}.loss"].mean(dtype=np.float64)) for side in ("train", "query"))
        text = f"training {self.run.manifest['model']['name']}: epoch {epoch} of {self.recipe.epochs}"
        seconds = f"{time.monotonic() - self.started:,.1f} s"
        log_line(f"{text}, mean loss {train:.4f}, of held-out examples {held_out:.4f}, {seconds}", shown=True)

    def _note_validation_loss(self, row: Row) -> None:
        """Take in the mean validation loss of a row that ends an epoch, as it was recorded."""
        if self.patience is None or row.epoch < 1 or row.epoch != int(row.epoch):
            return
        assert self.splits.validation is not None
        losses = read_arrays(row_file(self.run.path / "trace", row.index), ["query.loss"])["query.loss"]
        here = np.isin(np.concatenate([part.examples.ids for part in self.held_out]), self.splits.validation.ids)
        self.validation_losses.append(float(losses[here].mean(dtype=np.float64)))

    def _ends_here(self) -> bool:
        """Whether early stopping ends training after the epochs so far."""
        return self.patience is not None and epochs_without_gain(self.validation_losses) >= self.patience

    def _observe_train(self, anchor: bool) -> None:
        self._observe("train", self.train, anchor)

    def _observe(self, side: Literal["train", "query"], data: Resident, anchor: bool) -> None:
        for positions, logits, labels in evaluate(self.model, data):
            features = self._features.features if anchor and self._features else None
            ids = data.examples.ids[positions]
            self.recorder.observe(ids, logits=logits, labels=labels, features=features, side=side)

    def _close_row(self, epoch: float, step: int, anchor: bool) -> None:
        for part in self.held_out:
            self._observe("query", part, anchor)
        self.recorder.end_row(epoch=epoch, step=step)

    def _save_checkpoint(self, epoch: int, step: int, lr: float) -> None:
        last = epoch == self.recipe.epochs or self._ends_here()
        due = self.checkpoints == "all" or last or (isinstance(self.checkpoints, int) and epoch % self.checkpoints == 0)
        if not due:
            return
        row = len(self.recorder.rows) - 1
        mean_lr = float(np.mean(self.lrs)) if self.lrs else lr
        place = {"run": self.run.manifest["fingerprint"], "epoch": epoch, "step": step, "row": row}
        header = {**place, "lr": lr, "mean_lr": mean_lr}
        path = self.run.path / "checkpoints" / f"{epoch:06d}.safetensors"
        write_weights(path, self.model.state_dict(), header)

    # --- the end ---

    def _finish(self) -> None:
        trace = self.recorder.finish()
        last = [trace.rows[-1].index]
        result: dict[str, Any] = {
            "run": self.run.manifest["fingerprint"],
            "seconds_of_last_sitting": round(time.monotonic() - self.started, 3),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": _peak_memory(self.device),
            "machine": platform.processor() or platform.machine(),
            "train_loss": float(trace.read("train", rows=last).mean()),
        }
        if self.patience is not None:
            result["epochs_trained"] = int(trace.rows[-1].epoch)
        if "correct" in trace.fields:
            is_validation = np.isin(trace.query_ids, trace.validation_ids) if self.splits.validation else None
            correct = trace.read("query", "correct", rows=last)[0]
            result["train_accuracy"] = float(trace.read("train", "correct", rows=last).mean())
            result["query_accuracy"] = float((correct if is_validation is None else correct[~is_validation]).mean())
        write_json(self.run.path / "result.json", result)
        if not self.recipe.extendable:
            self.run.resume_file.unlink(missing_ok=True)


def _peak_memory(device: torch.device) -> int | None:
    """The most memory used so far: of the GPU, or of this process (where the system tells)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)
