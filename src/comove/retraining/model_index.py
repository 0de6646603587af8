"""Which models a bank, or a part of one, is about: its subsets in order, and how many seeds each was asked for.

Shape legend: C subsets, N train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.data import Ids
from comove.retraining.files import Key, StoredPlan
from comove.store import digest

__all__ = ["PlanNotes", "Rows"]


class PlanNotes(NamedTuple):
    """A plan without its masks."""

    name: str
    plan: Mapping[str, Any]
    keep_weights: bool


@dataclass(frozen=True, eq=False)
class Rows:
    """The subsets of a bank, plan by plan, or some of them.

    Attributes:
        masks: (C, N) bool.
        seeds: (C,) how many models each subset was asked for.
        plan_of: (C,) which of ``plans`` a subset belongs to.
        plans: without their masks.
        train_ids: (N,).
    """

    masks: npt.NDArray[np.bool_]
    seeds: npt.NDArray[np.int64]
    plan_of: npt.NDArray[np.int64]
    plans: tuple[PlanNotes, ...]
    train_ids: Ids

    @classmethod
    def of(cls, plans: Sequence[StoredPlan], train_ids: Ids) -> Rows:
        """All subsets of these plans."""
        return cls(
            np.concatenate([plan.masks for plan in plans]),
            np.concatenate([plan.seeds for plan in plans]),
            np.repeat(np.arange(len(plans)), [len(plan.masks) for plan in plans]),
            tuple(PlanNotes(plan.name, plan.plan, plan.keep_weights) for plan in plans),
            train_ids,
        )

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, places: npt.NDArray[np.int64]) -> Rows:
        """Some of the subsets, in this order."""
        made = Rows(self.masks[places], self.seeds[places], self.plan_of[places], self.plans, self.train_ids)
        if "subsets" in self.__dict__:
            made.__dict__["subsets"] = [self.subsets[place] for place in places]
        return made

    @cached_property
    def subsets(self) -> list[str]:
        """(C,) fingerprints of the ids that each subset holds."""
        return [digest(np.sort(self.train_ids[row_N])) for row_N in self.masks]

    @property
    def n_seeds(self) -> int:
        """The most models any subset was asked for."""
        return int(self.seeds.max())

    @property
    def named(self) -> dict[str, PlanNotes]:
        """The plans that have subsets here, in order."""
        return {self.plans[p].name: self.plans[p] for p in dict.fromkeys(self.plan_of.tolist())}

    def places(self, name: str) -> npt.NDArray[np.int64]:
        """Where the subsets of a plan stand."""
        return np.flatnonzero([self.plans[p].name == name for p in self.plan_of])

    def models(self) -> list[tuple[int, int]]:
        """All (subset, seed) pairs, seed by seed, so that an interrupted bank has whole seeds first."""
        return [(int(row), seed) for seed in range(self.n_seeds) for row in np.flatnonzero(self.seeds > seed)]

    def keys(self) -> dict[tuple[int, int], Key]:
        """What each (subset, seed) pair is called on disk; subsets of the same ids share their models."""
        return {(row, seed): Key(self.subsets[row], seed) for row, seed in self.models()}

    def name_of(self, key: Key) -> str:
        """A model's name for messages."""
        row = self.subsets.index(key.subset)
        return f"subset {row} ({self.plans[self.plan_of[row]].name}), seed {key.number}"
