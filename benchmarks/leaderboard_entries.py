"""Entries of the leaderboard: what a method's scores predict of a bank's subsets, and what the method cost.

    NAME.json   the method, its runs, who made it and when, its cost, the bank it was measured on, and the checksum of
    NAME.npz    ranks (C, Q): twice the rank of each subset's summed scores, ties at their mean: all that the LDS asks

Shape suffixes: C subsets, N training examples, Q queries.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from comove.attribution import Scores
from comove.errors import CorruptFileError, InputError, some
from comove.evaluation import RetrainingBank
from comove.lds.truth import group_scores
from comove.retraining.array_files import read_named_arrays, write_npz
from comove.store import digest, entries, new_folder, read_json, slug, write_bytes

__all__ = [
    "Entry",
    "checksum",
    "doubled",
    "file_name",
    "fingerprint",
    "of_cost",
    "ranks_of",
    "read_entries",
    "save_entry",
    "write_plain",
]

Ranks = npt.NDArray[np.unsignedinteger[Any]]
RANKS = "ranks"
LONGEST = {"method": 120, "by": 120, "note": 400}
"""Letters: they stand in a table, or below it."""
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("method", "by", "date", "note", "bank", "sha256"), str),
    "runs": int | None,
    **dict.fromkeys(("epochs", "seconds", "memory"), float | None),
}


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of the leaderboard.

    Attributes:
        method: its name, with the options that are not its defaults.
        ranks: (C, Q) twice the rank of each subset's summed scores.
        by: who or what made the scores, with its version.
        runs: trained models that it was fitted on; ``None`` where that is not known or makes no sense.
        epochs: forward and backward passes over the training set, training included.
        seconds: of one CPU thread, likewise.
        memory: peak of the process, bytes.
        date: ISO, of the scores; empty where it is not known.
        note: what else has to be said, such as on what data options were chosen.
    """

    method: str
    ranks: Ranks
    by: str
    runs: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    memory: float | None = None
    date: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("method", "by", "note"):
            _check_text(name, getattr(self, name), empty=name == "note")
        for name in ("epochs", "seconds", "memory", "runs"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be 0 or more, got {value}.")
        try:
            datetime.date.fromisoformat(self.date or "2000-01-01")
        except ValueError as error:
            raise InputError(f"date must be YYYY-MM-DD, got {self.date!r}.") from error

    @property
    def key(self) -> tuple[str, int | None]:
        """What no two entries of a bank share."""
        return self.method, self.runs

    @property
    def title(self) -> str:
        """The method and its number of runs, for messages."""
        return self.method if self.runs is None else f"{self.method} ({self.runs} runs)"


def _check_text(name: str, text: str, empty: bool) -> None:
    if len(text) > LONGEST[name] or re.search(r"[|\n\r<>]", text) or not (empty or re.search(r"[^\W_]", text)):
        wanted = "" if empty else "at least one letter, "
        raise InputError(
            f"{name} must be a line of {wanted}{LONGEST[name]} letters at most, without | < >; got {text[:60]!r}."
        )


def fingerprint(bank: RetrainingBank) -> str:
    """What ranks belong to: how the models are trained, and on which subsets of what. More seeds are the same bank."""
    return digest(str(bank.manifest["fingerprint"]), bank.masks, bank.train_ids, bank.query_ids)


def ranks_of(bank: RetrainingBank, scores: Scores) -> Ranks:
    """(C, Q) twice the ranks of summed scores, in the order of the bank's subsets and queries.

    Raises:
        InputError: scores without some of the bank's ids, with others, or fitted on some of its subsets.
    """
    bank.lds(scores, bootstrap=0)  # refuses what cannot be measured on it
    found = scores.subset(train_ids=bank.train_ids, query_ids=bank.query_ids)
    return doubled(rankdata(group_scores(bank.masks, found.values), axis=0))


def doubled(ranks_CQ: npt.NDArray[Any]) -> Ranks:
    """Ranks from 1 on, halves where they tie, as whole numbers of the smallest type that holds them."""
    twice = np.rint(2 * np.asarray(ranks_CQ, np.float64))
    return twice.astype(np.min_scalar_type(2 * len(ranks_CQ)))


# --- files ----------------------------------------------------------------------------------------------------------


def file_name(method: str, runs: int | None) -> str:
    """What the files of an entry are called, without an ending."""
    name = re.sub("-+", "-", slug(method, "._")).strip("-.").lower()
    return name if runs is None else f"{name}-{runs}"


def checksum(file: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def save_entry(folder: Path, entry: Entry, bank: str, *, replace: bool = False) -> Path:
    """Write an entry, the JSON last: without it there is none.

    Args:
        folder: of the bank's entries.
        entry: the entry.
        bank: fingerprint of the bank that it was measured on.
        replace: write over one of the same name.

    Raises:
        InputError: there is one of that name, and it is not to be replaced.
    """
    file = new_folder(folder) / f"{file_name(*entry.key)}.json"
    if file.exists() and not replace:
        raise InputError(
            f"There is an entry {entry.title!r} ({file}): choose another name, or say how the two differ in it."
        )
    arrays = file.with_suffix(".npz")
    write_npz(arrays, {RANKS: entry.ranks})
    content = {field.name: getattr(entry, field.name) for field in fields(entry) if field.name != RANKS}
    write_plain(file, {**content, "bank": bank, "sha256": checksum(arrays)})
    return file


def write_plain(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that may be edited by hand: atomically, without a checksum of its own."""
    write_bytes(file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_entries(folder: Path, bank: str, shape: tuple[int, int]) -> tuple[list[Entry], list[str]]:
    """The entries in a folder, in the order of their files; and the titles of those measured on another bank.

    Args:
        folder: of the bank's entries.
        bank: its fingerprint.
        shape: (C, Q).

    Raises:
        CorruptFileError: a file is damaged, foreign or missing.
    """
    found: list[Entry] = []
    stale: list[str] = []
    for file in sorted(folder.glob("*.json")):
        content = entries(read_json(file), file, _FIELDS)
        measured_on, sha256 = content.pop("bank"), content.pop("sha256")
        ranks = _read_ranks(file.with_suffix(".npz"), sha256)
        entry = Entry(ranks=ranks, **content)
        if measured_on != bank:
            stale.append(entry.title)
            continue
        _check_ranks(ranks, shape, file)
        found.append(entry)
    return found, stale


def _read_ranks(file: Path, sha256: str) -> Ranks:
    arrays = read_named_arrays(file)
    if checksum(file) != sha256:
        raise CorruptFileError(f"{file} has changed since its entry was written: restore both from a copy.")
    if RANKS not in arrays:
        raise CorruptFileError(f"{file} must hold {RANKS}, it holds {some(arrays)}.")
    return arrays[RANKS]


def _check_ranks(ranks_CQ: Ranks, shape: tuple[int, int], file: Path) -> None:
    total = shape[0] * (shape[0] + 1)
    if ranks_CQ.dtype.kind != "u" or ranks_CQ.shape != shape or (ranks_CQ.sum(0, dtype=np.int64) != total).any():
        raise CorruptFileError(f"The ranks of {file} must be of {shape[0]} subsets for {shape[1]} queries.")


def of_cost(cost: Mapping[str, Any], names: Sequence[str] = ("epochs", "seconds", "memory")) -> dict[str, Any]:
    """What an entry says of cost, where it is known, to four digits."""
    return {name: None if cost.get(name) is None else float(f"{cost[name]:.4g}") for name in names}
