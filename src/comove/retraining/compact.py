"""A bank in one file, to publish and to read.

Shape legend: C subsets, R seeds, N train, Q queries, K classes, M trained models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.errors import InputError
from comove.retraining.files import Key, Logits, Results, checked_identity
from comove.retraining.model_index import PlanNotes, Rows
from comove.store import check_kind, entries, new_folder, read_checked, read_header, understanding, write_checked

__all__ = ["Compact", "CompactResults", "read_compact", "write_compact"]

COMPACT_FORMAT = 1
EXAMPLES = ("train_ids", "train_labels", "query_ids", "query_labels")


class CompactResults:
    """The logits in a compact file; read whole when first asked for.

    Args:
        file: the file.
        place: where each model's logits stand in the file's array.
    """

    def __init__(self, file: Path, place: Mapping[Key, int]) -> None:
        self.file, self._place = file, place
        self._logits_MQK: npt.NDArray[Any] | None = None

    def done(self) -> set[Key]:
        """The models in the file."""
        return set(self._place)

    def damaged(self) -> list[str]:
        """None: a damaged compact file is an error."""
        return []

    def logits(self, key: Key) -> Logits | None:
        """(Q, K) float32 of one model; ``None`` where it had not been trained.

        Raises:
            CorruptFileError: the file has changed since it was written.
        """
        if key not in self._place:
            return None
        if self._logits_MQK is None:
            self._logits_MQK = read_checked(self.file, ["logits"])[0]["logits"]
        found: Logits = self._logits_MQK[self._place[key]].astype(np.float32)
        return found

    def has_weights(self, key: Key) -> bool:
        """False: weights are not taken along."""
        return False


class Compact(NamedTuple):
    """What a compact file holds."""

    identity: dict[str, Any]
    examples: dict[str, npt.NDArray[Any]]
    rows: Rows
    results: CompactResults


def write_compact(
    file: Path,
    identity: Mapping[str, Any],
    examples: Mapping[str, npt.NDArray[Any]],
    rows: Rows,
    results: Results,
    dtype: str,
) -> None:
    """Write a bank's subsets and all finished models' logits to one file.

    Raises:
        InputError: another dtype than float32 and float16, or logits too large for float16.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"Logits can be kept as 'float32' or 'float16', not as {dtype!r}.")
    keys = rows.keys()
    found = {key: one for key in dict.fromkeys(keys.values()) if (one := results.logits(key)) is not None}
    shape = (examples["query_ids"].size, int(identity["model"]["num_classes"]))
    largest = max((float(np.abs(one).max()) for one in found.values()), default=0.0)
    if largest > float(np.finfo(dtype).max):
        raise InputError(f"The largest logit is {largest:.3g}, too large for float16; use dtype='float32'.")
    logits_MQK = np.empty((len(found), *shape), dtype)
    for place, one in enumerate(found.values()):
        logits_MQK[place] = one
    place_of = {key: place for place, key in enumerate(found)}
    place_CR = np.full((len(rows), rows.n_seeds), -1, np.int64)
    for (row, seed), key in keys.items():
        place_CR[row, seed] = place_of.get(key, -1)
    arrays = {
        **examples,
        "masks": np.packbits(rows.masks, axis=1),
        "seeds": rows.seeds,
        "plan_of": rows.plan_of,
        "logits": logits_MQK,
        "place": place_CR,
    }
    plans = [[notes.name, dict(notes.plan)] for notes in rows.plans]
    header = {"kind": "comove/compact-bank", "format_version": COMPACT_FORMAT}
    new_folder(file.parent)
    write_checked(file, arrays, {**header, "identity": dict(identity), "plans": plans})


def read_compact(file: Path) -> Compact:
    """Open a file of :func:`write_compact`.

    Raises:
        CorruptFileError: truncated, foreign or changed.
    """
    check_kind(read_header(file)[1], "compact-bank", COMPACT_FORMAT, file)
    arrays, header = read_checked(file, [*EXAMPLES, "masks", "seeds", "plan_of", "place"])
    entries(header, file, {"identity": dict, "plans": list})
    identity = checked_identity(header["identity"], file)
    with understanding(file):
        return _compact(file, arrays, identity, header["plans"])


def _compact(file: Path, arrays: Mapping[str, npt.NDArray[Any]], identity: dict[str, Any], plans: list[Any]) -> Compact:
    examples = {name: arrays[name] for name in EXAMPLES}
    masks_CN = np.unpackbits(arrays["masks"], axis=1, count=examples["train_ids"].size).view(np.bool_)
    summary = tuple(PlanNotes(name, plan, False) for name, plan in plans)
    rows = Rows(masks_CN, arrays["seeds"], arrays["plan_of"], summary, examples["train_ids"])
    place_CR = arrays["place"]
    place = {key: int(place_CR[model]) for model, key in rows.keys().items() if place_CR[model] >= 0}
    return Compact(identity, examples, rows, CompactResults(file, place))
