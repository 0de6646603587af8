"""A bank in one file, to publish and to read.

Shape legend: C subsets, R seeds, N train, Q queries, K classes, M trained models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.errors import InputError
from comove.models.measured_outputs import OUTPUTS
from comove.retraining.contents import Arrays, Contents, LogitsOf, contents_of, is_own
from comove.retraining.files import EXAMPLE_ARRAYS, Key, Results, checked_identity
from comove.retraining.model_index import PlanNotes, Rows
from comove.store import (
    MANIFEST,
    check_kind,
    entries,
    new_folder,
    read_checked,
    read_header,
    understanding,
    write_checked,
)

__all__ = ["PUBLISHED", "Compact", "StackedResults", "narrowed", "published_file", "read_compact", "write_compact"]

COMPACT_FORMAT = 1
PUBLISHED = "bank.safetensors"
"""The compact bank in a folder that is published with a card and scores beside it."""
OUTPUT = "output."
"""Begins the names of the arrays of outputs that the user's own training function gave."""


class StackedResults:
    """The results of all models in a few arrays: of a compact file, read whole when first asked for, or in memory.

    Args:
        place: where each model's result stands in the arrays.
        names: of the arrays in a result.
        load: reads them, (M, ...) each, by these names.
    """

    def __init__(self, place: Mapping[Key, int], names: Collection[str], load: Callable[[], Arrays]) -> None:
        self._place, self._names, self._load = place, names, load
        self._held: Arrays | None = None

    def done(self) -> set[Key]:
        """The models whose results are here."""
        return set(self._place)

    def damaged(self) -> list[str]:
        """None: a damaged compact file is an error."""
        return []

    def arrays(self, key: Key) -> Arrays | None:
        """What one model's result holds, at least float32; ``None`` where it had not been trained.

        Raises:
            CorruptFileError: the file has changed since it was written.
        """
        one = self.stored(key)
        if one is None:
            return None
        return {name: array.astype(np.promote_types(array.dtype, np.float32)) for name, array in one.items()}

    def stored(self, key: Key) -> Arrays | None:
        """As :meth:`arrays`, in the file's own dtypes: float16 where it was written so."""
        if key not in self._place:
            return None
        if self._held is None:
            self._held = self._load()
        return {name: array[self._place[key]] for name, array in self._held.items()}

    def names(self) -> tuple[str, ...] | None:
        """The names of the outputs that every result has; ``None`` where none is there."""
        return tuple(OUTPUTS) if "logits" in self._names else tuple(sorted(self._names)) or None

    def has_weights(self, key: Key) -> bool:
        """False: weights are not taken along."""
        return False


class Compact(NamedTuple):
    """What a compact file holds, or a bank in memory."""

    identity: dict[str, Any]
    examples: dict[str, npt.NDArray[Any]]
    rows: Rows
    results: StackedResults


def write_compact(
    file: Path,
    identity: Mapping[str, Any],
    examples: Mapping[str, npt.NDArray[Any]],
    rows: Rows,
    results: Results,
    dtype: str,
) -> None:
    """Write a bank's subsets and all finished models' results to one file.

    Raises:
        InputError: another dtype than float32 and float16, or numbers too large for float16.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"Results can be kept as 'float32' or 'float16', not as {dtype!r}.")
    keys = rows.keys()
    found = {key: one for key in dict.fromkeys(keys.values()) if (one := results.arrays(key)) is not None}
    stacked = _stacked(list(found.values()), contents_of(identity), dtype)
    place_of = {key: place for place, key in enumerate(found)}
    place_CR = np.full((len(rows), rows.n_seeds), -1, np.int64)
    for (row, seed), key in keys.items():
        place_CR[row, seed] = place_of.get(key, -1)
    arrays = {
        **examples,
        "masks": np.packbits(rows.masks, axis=1),
        "seeds": rows.seeds,
        "plan_of": rows.plan_of,
        **stacked,
        "place": place_CR,
    }
    plans = [[notes.name, dict(notes.plan)] for notes in rows.plans]
    header = {"kind": "comove/compact-bank", "format_version": COMPACT_FORMAT}
    new_folder(file.parent)
    write_checked(file, arrays, {**header, "identity": dict(identity), "plans": plans})


def _stacked(found: Sequence[Arrays], contents: Contents, dtype: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of all models (M, ...), by their names in the file; own outputs keep their type but for float16."""
    if isinstance(contents, LogitsOf):
        logits_MQK = np.empty((len(found), *contents.shape), dtype)
        for place, one in enumerate(found):
            logits_MQK[place] = narrowed(one["logits"], dtype, "logit")
        return {"logits": logits_MQK}
    stacked = {name: np.stack([one[name] for one in found]) for name in sorted(found[0])} if found else {}
    if dtype == "float16":
        stacked = {name: narrowed(array, dtype, f"number of {name!r}") for name, array in stacked.items()}
    return {OUTPUT + name: array for name, array in stacked.items()}


def narrowed(array: npt.NDArray[Any], dtype: str, what: str) -> npt.NDArray[Any]:
    """The array as float16 or float32; ``what`` one of its numbers is called.

    Raises:
        InputError: numbers too large for it.
    """
    largest = float(np.abs(array).max(initial=0.0))
    if largest > float(np.finfo(dtype).max):
        remedy = "; use dtype='float32'" if dtype == "float16" else f": divide all of them by {largest:.0e}"
        raise InputError(f"The largest {what} is {largest:.3g}, too large for {dtype}{remedy}.")
    return array.astype(dtype)


def published_file(path: Path) -> Path:
    """The compact file of a folder that holds a published bank; any other path as it is."""
    inside = path / PUBLISHED
    return inside if inside.is_file() and not (path / MANIFEST).exists() else path


def read_compact(file: Path) -> Compact:
    """Open a file of :func:`write_compact`.

    Raises:
        CorruptFileError: truncated, foreign or changed.
    """
    check_kind(read_header(file)[1], "compact-bank", COMPACT_FORMAT, file)
    shapes, _ = read_header(file)
    own = {name.removeprefix(OUTPUT): name for name in shapes if name.startswith(OUTPUT)}
    large = (*own.values(), "logits")
    arrays, header = read_checked(file, [name for name in shapes if name not in large])
    entries(header, file, {"identity": dict, "plans": list})
    identity = checked_identity(header["identity"], file)
    names = own if is_own(identity) else {"logits": "logits"}
    with understanding(file):
        return _compact(file, arrays, identity, header["plans"], names)


def _compact(
    file: Path, arrays: Arrays, identity: dict[str, Any], plans: list[Any], names: Mapping[str, str]
) -> Compact:
    needed = EXAMPLE_ARRAYS if not is_own(identity) else ("train_ids", "query_ids")
    examples = {name: arrays[name] for name in EXAMPLE_ARRAYS if name in arrays or name in needed}
    masks_CN = np.unpackbits(arrays["masks"], axis=1, count=examples["train_ids"].size).view(np.bool_)
    summary = tuple(PlanNotes(name, plan, False) for name, plan in plans)
    rows = Rows(masks_CN, arrays["seeds"], arrays["plan_of"], summary, examples["train_ids"])
    place_CR = arrays["place"]
    place = {key: int(place_CR[model]) for model, key in rows.keys().items() if place_CR[model] >= 0}

    def load() -> Arrays:
        held = read_checked(file, names.values())[0]
        return {name: held[stored] for name, stored in names.items()}

    return Compact(identity, examples, rows, StackedResults(place, names, load))
