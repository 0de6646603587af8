"""Runs of models that comove did not train: their checkpoints, and a trace of losses replayed from these."""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from comove.data import ExampleSet, MapDataset, Splits
from comove.data.batches import Batch, batch_size, tensors_of
from comove.data.preparation import Preprocessing
from comove.errors import (
    ComoveError,
    FingerprintError,
    InputError,
    InputTypeError,
    NonFiniteError,
    first_line,
    some,
)
from comove.jobs.progress import progress_bar
from comove.models import penultimate
from comove.models.last_layer import last_linear
from comove.store import claim_folder, digest, new_folder, readable, write_manifest
from comove.store.lock import driver_lock
from comove.tasks import Classification, Task, call_arguments, check_task, check_values, classifies
from comove.trace.evaluation_pass import clean_pass
from comove.trace.statistics import statistics
from comove.trace.trace import FORMAT_VERSION, Row, Trace, row_file, write_anchor, write_examples, write_row
from comove.training.loop import Resident, resolve_device
from comove.training.optimizer_state import state_digest, step_factors
from comove.training.run import RUN_FORMAT, Checkpoint, Run
from comove.training.weights import StateDict, Weights, build, digest_of, load_into, read_state_dict

__all__ = ["adopt"]

BATCH = 128
"""Examples per forward pass of a replay."""
ONE_GROUP = ("all examples",)
"""The class of every example where the task has none."""

Arrays = dict[str, npt.NDArray[Any]]


def adopt(
    model: nn.Module | Callable[[], nn.Module],
    weights: Sequence[Weights | str | Path | StateDict],
    train: ExampleSet | MapDataset,
    queries: ExampleSet | MapDataset,
    task: Task | None = None,
    *,
    validation: ExampleSet | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Run:
    """Make a :class:`Run` of a model trained elsewhere: every method, selector and report takes it.

    >>> run = comove.adopt(model, [Weights("e5.pt", epoch=5, lr=.01), ...], train, queries)  # doctest: +SKIP
    >>> TracIn().fit(run).attribute().top(5, query=7)  # doctest: +SKIP

    Weights are read where they lie, without unpickling; their digests and paths are kept. Where no trace is given, the
    losses of all examples are computed at every checkpoint, one row per checkpoint; a replay that was interrupted goes
    on with the rows that are missing when the same call is made again.

    Args:
        model: the module, or a function that returns it; a copy is used, in evaluation mode.
        weights: of the model in the order of training: :class:`Weights`, or what these are made of.
        train: N training examples.
        queries: Q held-out examples, to be explained.
        task: per-example loss and measured output; by default :class:`comove.tasks.Classification`.
        validation: other held-out examples, which coreset methods aim at; by default the queries.
        trace: losses recorded in training, of these very examples; instead of a replay.
        out: the run's folder; ``None`` keeps it in a temporary folder for as long as the :class:`Run` lives.
        device: where to compute.
        progress: show a bar.

    Raises:
        InputError: weights out of order or with other names or shapes than the model's, batch norm without running
            statistics, a task that does not fit (:func:`comove.tasks.check_task`), a trace of other examples.
        CorruptFileError: weights that are missing, damaged, or readable only by unpickling.
        FingerprintError: ``out`` holds another run.
        NonFiniteError: a loss is NaN or infinite; checkpoint and id are named.
    """
    task = task or Classification()
    network, where = _copied(build(model)), resolve_device(device)
    kept = _ordered(weights)
    splits = _splits(train, validation, queries)
    _check(network, kept, task, splits)
    given = _given(trace, splits)
    folder = new_folder(tempfile.mkdtemp(prefix="comove-adopted-") if out is None else out)
    adopted = Adopted(network, task, tuple(kept), given)
    if out is None:  # it goes with the run, also when the replay fails
        weakref.finalize(adopted, shutil.rmtree, folder, ignore_errors=True)
    manifest = _claim(folder, _identity(network, kept, task, splits, trace, folder))
    run = Run(folder, manifest, splits, adopted=adopted)
    if given is None and not run.finished:
        with driver_lock(folder):
            labelled = _replay(run, splits, where, progress)
    else:
        labelled = _with_labels(splits, given if given is not None else Trace.load(folder / "trace"))
    return Run(folder, manifest, labelled, adopted=adopted)


@dataclass(eq=False)
class Adopted:
    """What a run needs of a model trained elsewhere, beside its folder."""

    network: nn.Module
    task: Task
    weights: tuple[Weights, ...]
    trace: Trace | None = None
    _verified: set[int] = field(default_factory=set)

    def checkpoints(self, run: Run) -> tuple[Checkpoint, ...]:
        """The checkpoints; their rows are those of the replay, or those of a given trace at the same epochs."""
        rows: Mapping[float, int] = {float(place): place for place in range(len(self.weights))}
        if self.trace is not None:
            rows = {row.epoch: row.index for row in self.trace.rows}
        made = []
        for place, one in enumerate(self.weights):
            key = _epoch(one, place) if self.trace is not None else float(place)
            path = (
                Path(str(one.source)) if not isinstance(one.source, Mapping) else run.path / "weights" / f"{place:06d}"
            )
            lr = math.nan if one.lr is None else one.lr
            step = place if one.step is None else one.step
            made.append(Checkpoint(_epoch(one, place), step, rows.get(key, -1), lr, lr, path))
        return tuple(made)

    def load(self, run: Run, checkpoint: Checkpoint | None, device: torch.device | str) -> nn.Module:
        """A copy of the network with a checkpoint's weights, in evaluation mode.

        Raises:
            CorruptFileError: the weights are gone.
            FingerprintError: they are others than when the run was adopted.
        """
        known = self.checkpoints(run)
        place = len(known) - 1 if checkpoint is None else known.index(checkpoint)
        source = self.weights[place].source
        model = _copied(self.network)
        if isinstance(source, Mapping):
            state = source
        else:
            if place not in self._verified:
                noted = run.manifest["adopted"]["weights"][place]["digest"]
                if digest_of(Path(source)) != noted:
                    raise FingerprintError(
                        f"{source} holds other weights than when this run was adopted ({noted[:12]})."
                    )
                self._verified.add(place)
            state = read_state_dict(Path(source))
        load_into(model, state, f"Checkpoint {place + 1} of {len(known)}" if isinstance(source, Mapping) else source)
        return model.to(device).eval()

    def step_factors(self, run: Run, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """What the optimizer multiplied each entry of a gradient with (:func:`step_factors`), by parameter.

        Raises:
            InputError: the state of the optimizer was not given, or is none of Adam's.
        """
        one = self.weights[self.checkpoints(run).index(checkpoint)]
        if one.optimizer_state is None:
            raise InputError(
                f"{run.path}: the optimizer's state at epoch {checkpoint.epoch} is not known; give it for every "
                "checkpoint, Weights(..., optimizer_state=optimizer.state_dict() or its file)."
            )
        return step_factors(self.network, one.optimizer_state, one.lr)


# --- what is given -----------------------------------------------------------------------------------------------


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # whatever a user's module may hold that cannot be copied
        kind = type(error).__name__
        raise InputError(f"The model cannot be copied ({kind}); pass a function that builds it.") from error


def _epoch(weights: Weights, place: int) -> Any:
    """A whole number where it is one; checkpoints saved within an epoch have fractions."""
    epoch = place + 1 if weights.epoch is None else weights.epoch
    return int(epoch) if epoch == int(epoch) else epoch


def _ordered(weights: Sequence[Weights | str | Path | StateDict]) -> list[Weights]:
    if isinstance(weights, Mapping | str | Path | Weights) or not isinstance(weights, Sequence):
        raise InputTypeError("weights must be a sequence of checkpoints in the order of training, one at least.")
    kept = [one if isinstance(one, Weights) else Weights(one) for one in weights]
    if not kept:
        raise InputError("weights must name at least one checkpoint; CLD needs three moments of training or more.")
    for what, places in (
        ("epoch", [_epoch(one, place) for place, one in enumerate(kept)]),
        ("step", [one.step for one in kept if one.step is not None]),
    ):
        if any(later <= earlier for earlier, later in pairwise(places)):
            raise InputError(f"weights must come in the order of training; their {what}s are {some(places, 8)}.")
    return kept


def _splits(train: ExampleSet | MapDataset, validation: ExampleSet | None, queries: ExampleSet | MapDataset) -> Splits:
    """The three sets; query ids may be those of training examples, as where both are numbered from 0."""
    sets = [one if isinstance(one, ExampleSet) else ExampleSet(one) for one in (train, queries)]
    return Splits(sets[0], validation, sets[1], name=sets[0].name, ids_apart=False)


def _check(network: nn.Module, weights: Sequence[Weights], task: Task, splits: Splits) -> None:
    """Refuse what could not work, before anything is written."""
    if not isinstance(task, Task):
        raise InputTypeError(f"task must be a Task of comove.tasks, got {type(task).__name__}.")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{name or 'The model'} keeps no running statistics: it mixes the examples of a batch in "
                "evaluation mode too. Build it with track_running_stats=True."
            )
    last = weights[-1].source
    state = last if isinstance(last, Mapping) else read_state_dict(Path(last))
    trial = _copied(network)
    load_into(trial, state, "The last of the weights" if isinstance(last, Mapping) else last)
    for part in (splits.train, splits.query):
        batch = part.collated(np.arange(min(2, len(part))))
        try:
            check_task(task, trial, batch)
        except ComoveError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            _check_types(trial, batch, error)
            raise


def _check_types(network: nn.Module, batch: Batch, error: Exception) -> None:
    """Refuse numbers of another type than the weights', where the model failed on them."""
    given = {str(each.dtype) for each in tensors_of(batch) if each.is_floating_point()}
    own = {str(each.dtype) for each in network.parameters() if each.is_floating_point()}
    if given and not given & own:
        raise InputError(
            f"The model computes in {some(own)} and the examples are {some(given)}, and it failed on them: convert the "
            f"weights (.float()), or have collate= give the model's type. ({first_line(error)})"
        ) from error


def _identity(
    network: nn.Module, weights: Sequence[Weights], task: Task, splits: Splits, trace: object, folder: Path
) -> dict[str, Any]:
    named = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    described = []
    for place, one in enumerate(weights):
        found = (
            digest({name: str(tensor.dtype) for name, tensor in one.source.items()}, *_arrays(one.source))
            if isinstance(one.source, Mapping)
            else digest_of(Path(one.source))
        )
        state = one.optimizer_state
        of_state = {} if state is None else {"optimizer_state": state_digest(state)}
        described.append({"digest": found, "epoch": _epoch(one, place), "step": one.step, "lr": one.lr, **of_state})
    parts = (splits.train, splits.validation, splits.query)
    return {
        "dataset": {
            "name": splits.name,
            "source": {},
            "fingerprint": digest(*("none" if part is None else part.fingerprint for part in parts)),
        },
        "adopted": {
            "model": {"name": type(network).__name__, "parameters": digest(named)},
            "task": task.name,
            "weights": described,
            "trace": None if trace is None else "given",
            "source": _where(weights, trace, folder),
        },
    }


def _claim(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Claim the folder; where the weights have moved since, their new paths are noted."""
    manifest = claim_folder(folder, "run", RUN_FORMAT, identity)
    paths = identity["adopted"]["source"]
    if manifest["adopted"].get("source") == paths or None in paths["weights"]:
        return manifest
    manifest = {**manifest, "adopted": {**manifest["adopted"], "source": paths}}
    write_manifest(folder, "run", RUN_FORMAT, {name: manifest[name] for name in (*identity, "fingerprint")})
    return manifest


def _where(weights: Sequence[Weights], trace: object, folder: Path) -> dict[str, Any]:
    """Where weights and trace lie, for the folder to be opened again; no part of what the run is: files may move.

    Paths are relative to the run's folder where they lie beside it or within; ``None`` stands for what was in memory.
    """
    where = trace.path if isinstance(trace, Trace) else trace
    return {
        "weights": [_noted(one.source, folder) for one in weights],
        "optimizer_states": [_noted(one.optimizer_state, folder) for one in weights],
        "trace": _noted(where, folder),
    }


def _noted(source: object, folder: Path) -> str | None:
    if not isinstance(source, str | os.PathLike):
        return None
    path, home = Path(source).resolve(), folder.resolve().parent
    told = Path(os.path.relpath(path, folder.resolve())) if path.is_relative_to(home) else path
    return readable(told.as_posix())


def _arrays(state: StateDict) -> Iterator[npt.NDArray[Any]]:
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        yield tensor.reshape(-1).view(torch.uint8).numpy()


def _given(trace: Trace | str | os.PathLike[str] | None, splits: Splits) -> Trace | None:
    """The trace that was passed, of these very examples.

    Raises:
        InputError: it is of others.
    """
    if trace is None:
        return None
    found = trace if isinstance(trace, Trace) else Trace.load(trace)
    held_out = (
        splits.query.ids if splits.validation is None else np.concatenate([splits.validation.ids, splits.query.ids])
    )
    for ours, theirs, what in (
        (splits.train.ids, found.train_ids, "training"),
        (held_out, found.query_ids, "held-out"),
    ):
        if not np.array_equal(np.sort(ours), np.sort(theirs)):
            absent = np.setxor1d(ours, theirs)
            raise InputError(
                f"The trace is of other {what} examples: the ids in it are {some(np.sort(theirs), 3)}; those passed "
                f"here are {some(np.sort(ours), 3)}, and {absent.size:,} are in one of the two only. Pass the examples "
                "with the ids that were recorded: ExampleSet(examples, ids=...)."
            )
    return found


def _held_out(splits: Splits) -> list[ExampleSet]:
    """The sets whose losses are the trace's queries, in order."""
    return [part for part in (splits.validation, splits.query) if part is not None]


def _with_labels(splits: Splits, trace: Trace) -> Splits:
    """The splits with the labels that the trace has, where the examples have none of their own."""
    labels, held_out, classes = trace.train_labels, trace.query_labels, trace.manifest.get("classes")

    def of(
        part: ExampleSet | None, ids: npt.NDArray[np.int64], found: npt.NDArray[np.int64] | None
    ) -> ExampleSet | None:
        if part is None or part.labelled or found is None:
            return part
        place = {int(id_): at for at, id_ in enumerate(ids)}
        return part.with_labels(found[[place[int(id_)] for id_ in part.ids]], classes)

    train = of(splits.train, trace.train_ids, labels)
    query = of(splits.query, trace.query_ids, held_out)
    assert train is not None
    assert query is not None
    validation = of(splits.validation, trace.query_ids, held_out)
    return Splits(train, validation, query, splits.name, splits.source, ids_apart=False)


# --- the replay --------------------------------------------------------------------------------------------------


def _replay(run: Run, splits: Splits, device: torch.device, progress: bool) -> Splits:
    """Compute and write the rows that are missing; returns the splits, labelled."""
    held_out = _held_out(splits)
    sides = {"train": [splits.train], "query": held_out}
    residents = {side: [Resident(part, device) for part in parts] for side, parts in sides.items()}
    folder = new_folder(run.path / "trace")
    new_folder(folder / "rows")
    checkpoints = run.checkpoints
    manifest: dict[str, Any] | None = None
    assert run.adopted is not None
    with progress_bar("replaying", len(checkpoints), shown=progress) as advance:
        for place, checkpoint in enumerate(checkpoints):
            last = place == len(checkpoints) - 1
            if manifest is not None and row_file(folder, place).exists() and not last:
                advance(1)
                continue
            model = run.adopted.load(run, checkpoint, device)
            found = {side: _losses(model, run.adopted.task, parts, last) for side, parts in residents.items()}
            if manifest is None:
                labels = {side: _labels(run.adopted.task, parts) for side, parts in residents.items()}
                manifest = _begin(run, splits, labels)
            for side, (arrays, _) in found.items():
                _check_row(arrays["loss"], sides[side], place)
            if not row_file(folder, place).exists():
                anchors = {f"{side}.{name}": value for side, (_, kept) in found.items() for name, value in kept.items()}
                if anchors:
                    write_anchor(folder, place, anchors, manifest)
                row = Row(place, checkpoint.step, float(checkpoint.epoch), anchor=bool(anchors))
                values = {
                    f"{side}.{name}": value for side, (arrays, _) in found.items() for name, value in arrays.items()
                }
                write_row(folder, row, values, manifest)
            advance(1)
    assert manifest is not None
    write_manifest(folder, "trace", FORMAT_VERSION, {**manifest, "rows": len(checkpoints)})
    return _with_labels(splits, Trace.load(folder))


def _begin(run: Run, splits: Splits, labels: Mapping[str, npt.NDArray[np.int64] | None]) -> dict[str, Any]:
    """Write ids, labels and the manifest of the trace, without which no row can be read."""
    train = splits.train
    held_out = _held_out(splits)
    ids = np.concatenate([part.ids for part in held_out])
    grouped = labels["train"] is None or labels["query"] is None
    sizes = {"train": len(train), "query": ids.size}
    of = {side: np.zeros(sizes[side], np.int64) if grouped else labels[side] for side in sizes}
    highest = 0 if grouped else int(max(values.max() for values in of.values() if values is not None)) + 1
    classes = ONE_GROUP if grouped else train.classes or tuple(map(str, range(highest)))
    arrays = {
        "train_ids": train.ids,
        "query_ids": ids,
        "validation_ids": ids if splits.validation is None else splits.validation.ids,
        "train_labels": of["train"],
        "query_labels": of["query"],
    }
    manifest: dict[str, Any] = {
        "mode": "sweep",
        "id": run.manifest["fingerprint"],
        "data_fingerprint": run.manifest["dataset"]["fingerprint"],
        "classes": list(classes),
        "task": run.manifest["adopted"]["task"],
    }
    if not train.structured:
        manifest["preprocessing"] = Preprocessing.of(train).to_json()
    folder = run.path / "trace"
    write_examples(folder, arrays, manifest)  # type: ignore[arg-type]
    write_manifest(folder, "trace", FORMAT_VERSION, manifest)
    return manifest


def _labels(task: Task, parts: Sequence[Resident]) -> npt.NDArray[np.int64] | None:
    """The classes of all examples: those given with the set, else those that the task reads from the batches."""
    found: list[npt.NDArray[np.int64]] = []
    for part in parts:
        if part.examples.labelled and part.examples.structured:
            found.append(part.examples.labels)
            continue
        for where in _slices(len(part)):
            classes = task.labels(part.batch(where))
            if classes is None:
                return None
            found.append(classes.cpu().numpy().astype(np.int64))
    return np.concatenate(found)


def _slices(size: int) -> Iterator[slice]:
    yield from (slice(start, min(start + BATCH, size)) for start in range(0, size, BATCH))


def _losses(model: nn.Module, task: Task, parts: Sequence[Resident], features: bool) -> tuple[Arrays, Arrays]:
    """The statistics of all examples (M,), and, with ``features``, penultimate features and probabilities (M, ...)."""
    rows: dict[str, list[Tensor]] = {}
    kept: dict[str, list[Tensor]] = {}
    one_class = classifies(task)
    head = _head(model, parts[0]) if features and one_class else None
    with clean_pass(model):
        for part in parts:
            for where in _slices(len(part)):
                batch = part.batch(where)
                outputs, probabilities, last = _outputs(model, task, batch, head)
                loss = check_values_finite(task, outputs, batch)
                found = {"loss": loss.float()}
                if one_class:
                    values, probabilities = statistics(outputs, task.labels(batch))  # type: ignore[arg-type]
                    found = {**values, **found}
                for name, value in found.items():
                    rows.setdefault(name, []).append(value.cpu())
                if last is not None and probabilities is not None:
                    kept.setdefault("features", []).append(last.float().cpu())
                    kept.setdefault("probabilities", []).append(probabilities.cpu())
    return _joined(rows), _joined(kept)


def _outputs(model: nn.Module, task: Task, batch: Any, head: str | None) -> tuple[Any, Tensor | None, Tensor | None]:
    if head is None:
        return task.outputs(model, batch), None, None
    with penultimate(model, head) as last:
        return task.outputs(model, batch), None, last.features


def check_values_finite(task: Task, outputs: Any, batch: Any) -> Tensor:
    """The loss of each example (B,), of the right shape; NaN is left to be named by id."""
    try:
        return check_values(task.loss(outputs, batch), batch_size(batch), "loss", task)
    except NonFiniteError:
        return task.loss(outputs, batch)


def _head(model: nn.Module, part: Resident) -> str | None:
    """The name of the last linear layer, whose inputs coreset methods read; ``None`` where there is none."""
    args, named = call_arguments(model, part.batch(slice(0, min(2, len(part)))))
    try:
        return last_linear(model, *args, **named)[0]
    except InputError:
        return None


def _joined(parts: Mapping[str, Sequence[Tensor]]) -> Arrays:
    return {name: torch.cat(list(values)).numpy() for name, values in parts.items()}


def _check_row(losses: npt.NDArray[np.float32], parts: Sequence[ExampleSet], place: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        ids = np.concatenate([part.ids for part in parts])[bad]
        raise NonFiniteError(
            f"The losses of {bad.size} examples are NaN or infinite at checkpoint {place + 1}, of ids {some(ids)}: "
            "look at these inputs, or leave out checkpoints from a run that diverged."
        )
