"""What a method's scores come to, in little: all that the study asks of them, a few hundred KB instead of N x Q.

The LDS needs the sum of the scores over each subset, for every query; brittleness needs the highest-scored examples of
each query, in order. Both are exact.

Shape suffixes: N training examples, Q queries, C subsets, k examples kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.attribution import Scores
from comove.errors import InputError
from comove.lds.truth import group_scores
from comove.retraining.subsets import SubsetPlan
from comove.store import digest, new_folder, read_checked, write_checked
from comove.ties import highest

__all__ = ["Digest", "as_scores", "digest_scores", "file_of", "joined"]


@dataclass(frozen=True, eq=False)
class Digest:
    """The digest of one method's scores.

    Attributes:
        method: its label.
        query_ids: (Q,).
        top: (Q, k) ids of the highest-scored training examples, ties to the lower id.
        sums: by the name of a plan, (C, Q) float64 sums of scores over its subsets.
        info: options of the method and what it counted, without paths.
    """

    method: str
    query_ids: npt.NDArray[np.int64]
    top: npt.NDArray[np.int32]
    sums: Mapping[str, npt.NDArray[np.float64]]
    info: Mapping[str, Any]

    def save(self, folder: Path, name: str | None = None) -> Path:
        """Write it into a folder, atomically, under the method's name or another."""
        arrays: dict[str, npt.NDArray[Any]] = {"query_ids": self.query_ids, "top": self.top}
        arrays |= {f"sums.{plan}": sums for plan, sums in self.sums.items()}
        file = file_of(new_folder(folder), name or self.method)
        write_checked(file, arrays, {"method": self.method, "info": dict(self.info)})
        return file

    @classmethod
    def load(cls, file: Path) -> Digest:
        """Read what :meth:`save` wrote."""
        arrays, header = read_checked(file)
        sums = {name.removeprefix("sums."): array for name, array in arrays.items() if name.startswith("sums.")}
        return cls(header["method"], arrays["query_ids"], arrays["top"], sums, header["info"])


def file_of(folder: Path, label: str) -> Path:
    """Where a method's digest or scores lie."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in label).strip("-")
    return folder / f"{safe}.safetensors"


def digest_scores(scores: Scores, plans: Sequence[SubsetPlan], kept: int) -> Digest:
    """Reduce scores to a digest.

    Args:
        scores: of all training examples.
        plans: the subsets of the ground truth.
        kept: k.

    Raises:
        InputError: the method was fitted on subsets that it would be measured on.
    """
    by_id = scores.subset(train_ids=np.sort(scores.train_ids))
    fitted_on = set(scores.info.get("fitted_on", ()))
    sums = {}
    for plan in plans:
        masks_CN = plan.masks_for(by_id.train_ids)
        if fitted_on and fitted_on & {digest(by_id.train_ids[row]) for row in masks_CN}:
            raise InputError(f"{scores.method} was fitted on subsets of {plan.name}, which it would be measured on.")
        sums[plan.name] = group_scores(masks_CN, by_id.values)
    places_kQ = np.stack([highest(values_N, by_id.train_ids, kept) for values_N in by_id.values.T], axis=1)
    info = {key: value for key, value in scores.info.items() if key not in ("fitted_on", "cache")}
    return Digest(scores.method, by_id.query_ids, by_id.train_ids[places_kQ].T.astype(np.int32), sums, info)


def joined(parts: Sequence[Digest]) -> Digest:
    """The digest of all queries from those of some at a time; what differs between their notes becomes a list."""
    first = parts[0]
    noted = {key: [part.info.get(key) for part in parts] for key in first.info}
    return Digest(
        first.method,
        np.concatenate([part.query_ids for part in parts]),
        np.concatenate([part.top for part in parts]),
        {plan: np.concatenate([part.sums[plan] for part in parts], axis=1) for plan in first.sums},
        {key: values[0] if all(value == values[0] for value in values) else values for key, values in noted.items()},
    )


def as_scores(found: Digest, train_ids: npt.NDArray[np.int64]) -> Scores:
    """Scores that rank the highest-scored examples as the method did; all others are 0."""
    ids = np.sort(train_ids)
    values_NQ = np.zeros((ids.size, found.query_ids.size), np.float32)
    k = found.top.shape[1]
    for column, top in enumerate(found.top):
        values_NQ[np.searchsorted(ids, top), column] = np.arange(k, 0, -1)
    return Scores(values_NQ, ids, found.query_ids, found.method)
