"""Which training examples each retraining uses: plans that give the masks of a bank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from comove.data import Ids, positions_of
from comove.discovery import check_seed
from comove.errors import InputError
from comove.store import as_ids

__all__ = ["LeaveOneOutSubsets", "RandomSubsets", "SubsetPlan", "leave_one_out", "random"]


@dataclass(frozen=True)
class RandomSubsets:
    """``count`` random subsets of ceil(alpha N) examples each; see :func:`random`."""

    alpha: float
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha must be in (0, 1), got {self.alpha}.")
        if self.count < 1:
            raise InputError(f"A bank needs at least 1 subset, got {self.count}.")
        check_seed(self.seed, "subsets")

    def masks(self, n: int) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool: row j marks subset j; it depends on the seed and j only, not on how many there are."""
        size = math.ceil(round(self.alpha * n, 6))  # 0.55 * 100 is a little above 55
        if not 2 <= size < n:
            raise InputError(f"alpha {self.alpha} of {n} examples gives subsets of {size}; choose from 2 to {n - 1}.")
        masks_CN = np.zeros((self.count, n), np.bool_)
        for j, row_N in enumerate(masks_CN):
            row_N[np.random.default_rng([self.seed, 0x5B5E7, j]).choice(n, size, replace=False)] = True
        return masks_CN

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool for these training ids."""
        return self.masks(train_ids.size)

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""
        return {"kind": "random", **asdict(self)}


@dataclass(frozen=True)
class LeaveOneOutSubsets:
    """One subset for each of some ids, lacking it; see :func:`leave_one_out`."""

    ids: tuple[int, ...] | None = None

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool for these training ids."""
        chosen = train_ids if self.ids is None else as_ids(list(self.ids), "ids to leave out")
        columns = positions_of(chosen, train_ids, "training ids")
        masks_CN = np.ones((columns.size, train_ids.size), np.bool_)
        masks_CN[np.arange(columns.size), columns] = False
        return masks_CN

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""
        return {"kind": "leave-one-out", "ids": None if self.ids is None else list(self.ids)}


class SubsetPlan(Protocol):
    """What a bank asks of a plan."""

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool: which of the training ids each subset holds."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""


def leave_one_out(ids: Iterable[int] | None = None) -> LeaveOneOutSubsets:
    """Plan one subset for each of ``ids`` (by default every training id): all the training examples but that one."""
    return LeaveOneOutSubsets(None if ids is None else tuple(int(id_) for id_ in ids))


def random(alpha: float, count: int, seed: int = 0) -> RandomSubsets:
    """Plan ``count`` (C) uniform random subsets of ceil(alpha N) of the N training examples.

    Raises:
        InputError: alpha outside (0, 1), no subset.
    """
    return RandomSubsets(float(alpha), int(count), int(seed))
