"""Joining banks made apart: what another folder, or a compact file, has trained is copied after it has been checked."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from comove.errors import InputError, some
from comove.retraining.compact import StackedResults
from comove.retraining.contents import Arrays
from comove.retraining.files import Key, ResultFiles, plan_files, read_plan, store_plan
from comove.store import new_folder, write_bytes

__all__ = ["merge_compact", "merge_folders"]


def merge_folders(ours: ResultFiles, theirs: ResultFiles, n_train: int, data: str) -> int:
    """Copy plans, results and weights that ``ours`` lacks; for the driver of ``ours``.

    ``data`` is the fingerprint of the data set of both.

    A model that both have stays as it is here, also where theirs differs (another machine's arithmetic).

    Returns:
        The number of results copied.

    Raises:
        InputError: results of a training function of the user's own that have other names.
    """
    _check_names(ours, theirs.first(), theirs.folder)
    for plan in plan_files(theirs.folder):
        store_plan(ours.folder, read_plan(plan, n_train, data), data)
    done, different = ours.done(), []
    copied = 0
    for key in sorted(theirs.done()):
        if key in done:
            different += [key.file] if not _same(ours.arrays(key), theirs.arrays(key)) else []
        else:
            _copy_weights(ours, theirs, key)
            write_bytes(ours.file(key), theirs.file(key).read_bytes())
            copied += 1
    if damaged := [*theirs.damaged(), *(f"weights/{key.file}" for key in theirs.damaged_weights())]:
        warnings.warn(
            f"{len(damaged)} results in {theirs.folder} are damaged and were not copied: {some(damaged, 3)}.",
            stacklevel=3,
        )
    _warn_of_different(ours.folder, theirs.folder, different)
    return copied


def merge_compact(ours: ResultFiles, theirs: StackedResults, file: Path) -> int:
    """As :func:`merge_folders`, from a compact file; results that it holds as float16 stay rounded to that.

    Its plans are not taken over, since they may be parts of plans.
    """
    done, different = ours.done(), []
    keys = sorted(theirs.done())
    _check_names(ours, theirs.arrays(keys[0]) if keys else None, file)
    copied = 0
    for key in keys:
        if key in done:
            different += [key.file] if not _same(ours.arrays(key), theirs.stored(key)) else []
        elif (arrays := theirs.arrays(key)) is not None:
            ours.write(key, arrays, {"merged_from": file.name})
            copied += 1
    _warn_of_different(ours.folder, file, different)
    return copied


def _check_names(ours: ResultFiles, found: Arrays | None, where: Path) -> None:
    first = ours.first()
    if first is not None and found is not None and sorted(first) != sorted(found):
        here, there = sorted(first), sorted(found)
        raise InputError(
            f"The results in {where} hold {', '.join(there)}, those in {ours.folder} hold {', '.join(here)}: "
            "a training function that returns other names needs another name of its own, and another bank."
        )


def _same(ours: Arrays | None, theirs: Arrays | None) -> bool:
    """Whether two results agree, as far as the dtypes of ``theirs`` tell."""
    here, there = ours or {}, theirs or {}
    return here.keys() == there.keys() and all(
        np.array_equal(here[name].astype(there[name].dtype), there[name]) for name in here
    )


def _copy_weights(ours: ResultFiles, theirs: ResultFiles, key: Key) -> None:
    if theirs.weights_are_whole(key):
        new_folder(ours.weights_file(key).parent)
        write_bytes(ours.weights_file(key), theirs.weights_file(key).read_bytes())


def _warn_of_different(ours: Path, theirs: Path, different: list[str]) -> None:
    if different:
        warnings.warn(
            f"{len(different)} models are in both {ours} and {theirs} with different results "
            f"({some(different, 3)}); those that were here stay. The banks were trained on different machines.",
            stacklevel=4,
        )
