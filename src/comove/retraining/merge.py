"""Joining banks made apart: what another folder has trained is copied, file by file, after it has been checked."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from comove.errors import InputError, some
from comove.retraining.files import Key, ResultFiles, plan_files, read_plan, store_plan
from comove.store import new_folder, write_bytes

__all__ = ["merge_folders"]


def merge_folders(ours: ResultFiles, theirs: ResultFiles, n_train: int, data: str) -> int:
    """Copy plans, results and weights that ``ours`` lacks; for the driver of ``ours``.

    ``data`` is the fingerprint of the data set of both.

    A model that both have stays as it is here, also where theirs differs (another machine's arithmetic).

    Returns:
        The number of results copied.

    Raises:
        InputError: results of a training function of the user's own that have other names.
    """
    _check_names(ours, theirs)
    for plan in plan_files(theirs.folder):
        store_plan(ours.folder, read_plan(plan, n_train, data), data)
    done, different = ours.done(), []
    copied = 0
    for key in sorted(theirs.done()):
        if key in done:
            different += [key.file] if not _same(ours, theirs, key) else []
        else:
            _copy_weights(ours, theirs, key)
            write_bytes(ours.file(key), theirs.file(key).read_bytes())
            copied += 1
    _warn(ours.folder, theirs, different)
    return copied


def _check_names(ours: ResultFiles, theirs: ResultFiles) -> None:
    here, there = (sorted(found) if (found := files.first()) is not None else None for files in (ours, theirs))
    if here is not None and there is not None and here != there:
        raise InputError(
            f"The results in {theirs.folder} hold {', '.join(there)}, those in {ours.folder} hold {', '.join(here)}: "
            "a training function that returns other names needs another name of its own, and another bank."
        )


def _same(ours: ResultFiles, theirs: ResultFiles, key: Key) -> bool:
    here, there = ours.arrays(key) or {}, theirs.arrays(key) or {}
    return here.keys() == there.keys() and all(np.array_equal(here[name], there[name]) for name in here)


def _copy_weights(ours: ResultFiles, theirs: ResultFiles, key: Key) -> None:
    if theirs.weights_are_whole(key):
        new_folder(ours.weights_file(key).parent)
        write_bytes(ours.weights_file(key), theirs.weights_file(key).read_bytes())


def _warn(folder: Path, theirs: ResultFiles, different: list[str]) -> None:
    if damaged := [*theirs.damaged(), *(f"weights/{key.file}" for key in theirs.damaged_weights())]:
        warnings.warn(
            f"{len(damaged)} results in {theirs.folder} are damaged and were not copied: {some(damaged, 3)}.",
            stacklevel=4,
        )
    if different:
        warnings.warn(
            f"{len(different)} models are in both {folder} and {theirs.folder} with different results "
            f"({some(different, 3)}); those that were here stay. The banks were trained on different machines.",
            stacklevel=4,
        )
