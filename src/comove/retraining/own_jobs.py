"""Training a bank with a function of the user's own: its jobs, and writing what comes back.

Jobs are done by an executor of :mod:`comove.jobs`, or by any scheduler of the user's, as plain JSON values.

Shape legend: C subsets, N train, M training examples of one subset, Q queries.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.data import ExampleSet, Ids
from comove.errors import InputError, InputTypeError, LockedError
from comove.jobs import Executor, run_jobs
from comove.retraining.contents import Arrays, NamedOutputs
from comove.retraining.files import RESULTS, Key, ResultFiles, set_aside
from comove.retraining.model_index import Rows
from comove.retraining.own import OwnTraining, checked_outputs, differing, trained_outputs
from comove.store import digest
from comove.store.lock import driver_lock

__all__ = ["OwnMaterial", "job_key", "job_of", "record_outputs", "recording", "train_own"]

WAIT_SECONDS = 120.0
"""How long recording waits for another process that writes to the bank."""


class OwnMaterial(NamedTuple):
    """What the models of a bank are made of: the function, and the queries where they are more than ids."""

    own: OwnTraining
    queries: ExampleSet | None


# --- jobs as JSON ---------------------------------------------------------------------------------------------------


def job_of(rows: Rows, model: tuple[int, int], key: Key, bank: str) -> dict[str, Any]:
    """A model to train as a JSON object; ``bank`` is the bank's fingerprint."""
    row, seed = model
    ids = rows.train_ids[rows.masks[row]].tolist()
    return {"id": f"{bank}-{key.subset}-{key.number}", "subset": row, "seed": seed, "train_ids": ids}


def job_key(job: object, rows: Rows, bank: str) -> Key:
    """The model that a job, or its id, stands for.

    Raises:
        InputTypeError: neither a job nor an id.
        InputError: a job of another bank, one that this bank does not ask for, or whose ids or seed were changed.
    """
    name = job.get("id") if isinstance(job, Mapping) else job
    if not isinstance(name, str):
        raise InputTypeError(f"A job is one of bank.pending_jobs(), or its id; got {type(job).__name__}.")
    parts = name.split("-")
    if len(parts) != 3 or not parts[2].isdecimal():
        raise InputError(
            f"{name[:120]!r} is no job of a bank: record(job, outputs) takes those of bank.pending_jobs()."
        )
    if parts[0] != bank:
        raise InputError(
            f"The job is of another bank (fingerprint {parts[0]}, this one has {bank}): other data, queries or another "
            "training function. Record it in the bank that gave it."
        )
    key = Key(parts[1], int(parts[2]))
    asked = max(
        (seeds for subset, seeds in zip(rows.subsets, rows.seeds, strict=True) if subset == key.subset), default=0
    )
    if key.number >= asked:
        raise InputError(f"This bank asks for no such model: subset {key.subset}, seed {key.number}.")
    if isinstance(job, Mapping):
        ids = np.asarray(job.get("train_ids", ()), np.int64)
        if job.get("seed") != key.number or digest(np.sort(ids)) != key.subset:
            raise InputError("The job's seed or train_ids have changed since bank.pending_jobs() gave it.")
    return key


# --- recording ------------------------------------------------------------------------------------------------------


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Hold the bank's lock, waiting for other processes that record.

    Raises:
        LockedError: another process has held it for two minutes, such as one that runs the bank.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(driver_lock(folder))
                break
            except LockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield


def record_outputs(files: ResultFiles, rows: Rows, key: Key, outputs: object, notes: Mapping[str, Any]) -> None:
    """Check and write one model's outputs; for a process that holds the bank's lock.

    Raises:
        InputError: other lengths or names; other numbers than those recorded before.
        InputTypeError: no mapping, no numbers.
        NonFiniteError: NaN or infinity.
    """
    assert isinstance(files.contents, NamedOutputs)
    who = f"The model of {rows.name_of(key)}"
    found = checked_outputs(outputs, files.contents.size, who, files.names())
    there = files.arrays(key)
    if there is None:
        if files.file(key).exists():
            set_aside(files.file(key))
        files.write(key, found, {**notes, "finished": round(time.time(), 3), "seed": key.number})
    elif other := differing(there, found):
        raise InputError(
            f"{who} is recorded already, with other numbers of {', '.join(other)}: the training function is not "
            f"deterministic in (train_ids, seed), or has changed. What was recorded stays; delete "
            f"{files.folder / RESULTS / key.file} to record it anew."
        )


# --- our executors --------------------------------------------------------------------------------------------------


class _Payload(NamedTuple):
    material: OwnMaterial
    packed: npt.NDArray[np.uint8]
    train_ids: Ids
    size: int


def train_own(
    files: ResultFiles,
    material: OwnMaterial,
    rows: Rows,
    models: Sequence[tuple[int, int]],
    *,
    executor: Executor | str,
    progress: bool,
) -> None:
    """Train these (subset, seed) pairs, each model once, and write results as they arrive; for the bank's driver.

    Raises:
        InputError: what the function returned cannot be recorded.
        StorageError: a result cannot be written.
    """
    keys = rows.keys()
    once = {keys[model]: model for model in reversed(models)}
    wanted = [model for model in models if once[keys[model]] == model]
    places = sorted({row for row, _ in wanted})
    at = {row: place for place, row in enumerate(places)}
    notes = {"started": round(time.time(), 3), "host": socket.gethostname()}
    assert isinstance(files.contents, NamedOutputs)
    payload = _Payload(material, np.packbits(rows.masks[places], axis=1), rows.train_ids, files.contents.size)

    def deliver(job: tuple[int, int], outputs: Arrays) -> None:
        record_outputs(files, rows, keys[places[job[0]], job[1]], outputs, notes)

    run_jobs(
        [(at[row], seed) for row, seed in wanted],
        _setup,
        payload,
        deliver,
        executor=executor,
        description="retraining (models)",
        progress=progress,
    )


def _setup(payload: _Payload) -> Callable[[tuple[int, int]], Arrays]:
    """In a worker: what it returns trains one model."""
    material, ids = payload.material, payload.train_ids

    def work(job: tuple[int, int]) -> Arrays:
        place, seed = job
        held_N = np.unpackbits(payload.packed[place], count=ids.size).view(np.bool_)
        return trained_outputs(material.own, ids[held_N], seed, material.queries, payload.size)

    return work
