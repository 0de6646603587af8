"""The folder of a run trained elsewhere, opened again: its manifest names the weights, the user names what is code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from comove.data import ExampleSet, Splits
from comove.errors import FingerprintError, InputError, InputTypeError
from comove.store import MANIFEST, entries, open_manifest, read_json
from comove.tasks import Classification, Task
from comove.trace import Trace
from comove.training.adopt import adopt
from comove.training.run import RUN_FORMAT, Run
from comove.training.weights import Weights

__all__ = ["as_sets", "is_adopted", "open_adopted", "recorded_losses"]

Sets = tuple[ExampleSet, ExampleSet | None, ExampleSet]


def is_adopted(folder: Path) -> bool:
    """Whether a folder holds a run of a model trained elsewhere."""
    file = folder / MANIFEST
    return file.exists() and "adopted" in read_json(file)


def recorded_losses(folder: Path) -> Trace | None:
    """The losses of a run of a model trained elsewhere, without its model: its own, or the trace that was passed.

    ``None`` where there is neither: the trace was in memory, or has moved.
    """
    noted = (read_json(folder / MANIFEST)["adopted"].get("source") or {}).get("trace")
    places = [folder / "trace", *([_found(folder, noted)] if noted is not None else [])]
    return next((Trace.load(place) for place in places if place.is_dir()), None)


def as_sets(data: object) -> Sets:
    """Return training, validation (``None`` where there are none) and query examples of what a user calls the data.

    Raises:
        InputTypeError: neither :class:`Splits` nor (train, queries) nor (train, validation, queries).
    """
    if isinstance(data, Splits):
        return data.train, data.validation, data.query
    if isinstance(data, tuple | list) and len(data) in (2, 3):
        parts = [part if isinstance(part, ExampleSet) or part is None else ExampleSet(part) for part in data]
        validation = parts[1] if len(parts) == 3 else None
        if parts[0] is not None and parts[-1] is not None:
            return parts[0], validation, parts[-1]
    raise InputTypeError(
        f"The data of a run are Splits, (train, queries) or (train, validation, queries), got {type(data).__name__}."
    )


def open_adopted(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module],
    data: Splits | tuple[Any, ...],
    task: Task | None = None,
    *,
    device: str | torch.device = "auto",
) -> Run:
    """Open the folder that :func:`comove.adopt` wrote, with the weights at the paths that it noted.

    Args:
        path: what was given to :func:`comove.adopt` as ``out``.
        model: as it was given there; no file is believed.
        data: the same examples: :class:`Splits`, (train, queries) or (train, validation, queries).
        task: as it was given there.
        device: where to compute, should the replay be unfinished.

    Raises:
        InputError: the weights or the trace were handed over in memory, so that no path leads to them.
        CorruptFileError: weights that are gone.
        FingerprintError: other weights, other data, another task or model than the run's.
    """
    folder = Path(path)
    manifest = open_manifest(folder, "run", RUN_FORMAT)
    noted = entries(manifest, folder / MANIFEST, {"adopted": dict})["adopted"]
    if (asked := (task or Classification()).name) != noted["task"]:
        raise FingerprintError(f"{folder} was made with the task {noted['task']}, not {asked}: give that one again.")
    paths, given = noted.get("source") or {}, noted["trace"]
    trace, files = paths.get("trace"), paths.get("weights") or [None]
    states = paths.get("optimizer_states") or [None] * len(files)
    lost = "a trace" if given and trace is None else "weights" if None in files else ""
    if lost:
        raise InputError(
            f"{folder} was made from {lost} in memory, which no path leads to: open it by the call of comove.adopt "
            "that made it; on the command line name a function that makes that call, module:function."
        )
    weights = [
        Weights(
            _found(folder, file), one["epoch"], one["lr"], one["step"], None if state is None else _found(folder, state)
        )
        for one, file, state in zip(noted["weights"], files, states, strict=True)
    ]
    train, validation, queries = as_sets(data)
    return adopt(
        model,
        weights,
        train,
        queries,
        task,
        validation=validation,
        trace=None if trace is None else _found(folder, trace),
        out=folder,
        device=device,
    )


def _found(folder: Path, noted: str) -> Path:
    """A noted path: relative ones start from the run's folder."""
    return Path(os.path.normpath(folder / noted))
