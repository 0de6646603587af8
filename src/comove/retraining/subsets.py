"""Which training examples each retraining uses: plans that give the masks of a bank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from comove.attribution import Scores
from comove.checks import as_ids, check_seed, many_whole, real_number, whole_number
from comove.data import Ids, positions_of
from comove.errors import InputError, InputTypeError
from comove.store import digest
from comove.ties import highest

__all__ = [
    "Everything",
    "LeaveOneOutSubsets",
    "OnlySubsets",
    "RandomSubsets",
    "RemovedSubsets",
    "SubsetPlan",
    "everything",
    "leave_one_out",
    "only",
    "random",
    "removals",
    "without",
]


@runtime_checkable
class SubsetPlan(Protocol):
    """What a bank asks of a plan."""

    @property
    def name(self) -> str:
        """What the plan is called in a bank; plans of one name agree on the subsets that both have."""

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool: which of the training ids each subset holds."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""


@dataclass(frozen=True)
class RandomSubsets:
    """``count`` random subsets of ceil(alpha N) examples each; see :func:`random`."""

    alpha: float
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < real_number(self.alpha, "alpha") < 1:
            raise InputError(f"alpha must be in (0, 1), got {self.alpha}.")
        if whole_number(self.count, "count", None) < 1:
            raise InputError(f"A bank needs at least 1 subset, got {self.count}.")
        check_seed(self.seed, "subsets")

    @property
    def name(self) -> str:
        """``random-<alpha>-<seed>``: more subsets are the same plan, extended."""
        return f"random-{self.alpha!r}-{self.seed}"

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

    @property
    def name(self) -> str:
        """``leave-one-out``, and a fingerprint of the ids where they were given."""
        return "leave-one-out" if self.ids is None else f"leave-one-out-{digest({'ids': self.ids})[:12]}"

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool for these training ids."""
        chosen = train_ids if self.ids is None else as_ids(list(self.ids), "ids to leave out")
        return _masks_without([chosen[i : i + 1] for i in range(chosen.size)], train_ids)

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""
        return {"kind": "leave-one-out", "ids": None if self.ids is None else list(self.ids)}


@dataclass(frozen=True, eq=False)
class RemovedSubsets:
    """One subset for each of some removed sets: everything but it; see :func:`without` and :func:`removals`.

    Attributes:
        removed: ids, one array a subset.
        kind: ``"without"`` or ``"removals"``.
        notes: where the sets come from (JSON values); for :func:`removals` ``method``, ``ks`` and ``queries``.
    """

    removed: tuple[Ids, ...]
    kind: str = "without"
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The kind and a fingerprint of the removed sets and their order."""
        return f"{self.kind}-{digest(*(np.sort(ids) for ids in self.removed))[:12]}"

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool for these training ids.

        Raises:
            InputError: an id that is none of them, a subset that would keep fewer than two examples.
        """
        return _masks_without(self.removed, train_ids)

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""
        return {"kind": self.kind, "count": len(self.removed), **self.notes}


@dataclass(frozen=True, eq=False)
class OnlySubsets:
    """One subset for each of some kept sets, such as coresets; see :func:`only`.

    Attributes:
        kept: ids, one array a subset.
    """

    kept: tuple[Ids, ...]

    @property
    def name(self) -> str:
        """``only`` and a fingerprint of the kept sets and their order."""
        return f"only-{digest(*(np.sort(ids) for ids in self.kept))[:12]}"

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (C, N) bool for these training ids.

        Raises:
            InputError: an id that is none of them, a subset of fewer than two examples.
        """
        sizes = [ids.size for ids in self.kept]
        if min(sizes) < 2:
            raise InputError(f"Training needs at least 2 examples, got a subset of {min(sizes)}.")
        masks_CN = np.zeros((len(self.kept), train_ids.size), np.bool_)
        columns = positions_of(np.concatenate(self.kept), train_ids, "training ids")
        masks_CN[np.repeat(np.arange(len(self.kept)), sizes), columns] = True
        return masks_CN

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""
        return {"kind": "only", "count": len(self.kept)}


@dataclass(frozen=True)
class Everything:
    """One subset: all training examples; see :func:`everything`."""

    @property
    def name(self) -> str:
        """``everything``."""
        return "everything"

    def masks_for(self, train_ids: Ids) -> npt.NDArray[np.bool_]:
        """Return (1, N) bool, all true."""
        return np.ones((1, train_ids.size), np.bool_)

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests."""
        return {"kind": "everything"}


def _masks_without(removed: Sequence[Ids], train_ids: Ids) -> npt.NDArray[np.bool_]:
    if not removed:
        raise InputError("A bank needs at least 1 subset; no id to leave out was given.")
    masks_CN = np.ones((len(removed), train_ids.size), np.bool_)
    sizes = [ids.size for ids in removed]
    if max(sizes) > train_ids.size - 2:
        raise InputError(
            f"Training needs at least 2 examples: of {train_ids.size} at most {train_ids.size - 2} can be removed, "
            f"got {max(sizes)}."
        )
    columns = positions_of(np.concatenate(removed), train_ids, "training ids")
    masks_CN[np.repeat(np.arange(len(removed)), sizes), columns] = False
    return masks_CN


def random(alpha: float, count: int, seed: int = 0) -> RandomSubsets:
    """Plan ``count`` (C) uniform random subsets of ceil(alpha N) of the N training examples.

    Raises:
        InputError: alpha outside (0, 1), no subset.
        InputTypeError: a count or a seed that is no whole number.
    """
    return RandomSubsets(real_number(alpha, "alpha"), whole_number(count, "count", None), whole_number(seed, "seed"))


def leave_one_out(ids: Iterable[int] | None = None) -> LeaveOneOutSubsets:
    """Plan one subset for each of ``ids`` (by default every training id): all the training examples but that one."""
    if ids is None:
        return LeaveOneOutSubsets()
    given = ids if hasattr(ids, "__len__") else list(_iterable(ids))
    return LeaveOneOutSubsets(tuple(as_ids(given, "ids to leave out").tolist()))


def everything() -> Everything:
    """Plan one subset, the whole training set: what the others are compared with when examples are removed (k = 0)."""
    return Everything()


def _iterable(given: Any) -> Iterable[Any]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise InputTypeError(f"Subsets are given as lists of ids, got {type(given).__name__}.")
    return given


def _id_sets(given: Any, what: str, function: str) -> tuple[Ids, ...]:
    """Return the sets of ids that ``without`` or ``only`` was called with, checked."""
    sets = tuple(as_ids(ids, what) for ids in _iterable(given))
    if not sets:
        raise InputError(f"subsets.{function} needs at least one set of ids.")
    return sets


def without(removed: Iterable[Sequence[int] | Ids]) -> RemovedSubsets:
    """Plan one subset for each of ``removed``, in this order: all the training examples but those ids.

    Raises:
        InputError: no set at all, ids that are no integers or are repeated within a set.
    """
    return RemovedSubsets(_id_sets(removed, "ids to remove", "without"))


def only(kept: Iterable[Sequence[int] | Ids]) -> OnlySubsets:
    """Plan one subset for each of ``kept``, in this order: those training examples alone (a coreset's ids).

    Raises:
        InputError: no set at all, ids that are no integers or are repeated within a set.
    """
    return OnlySubsets(_id_sets(kept, "ids to keep", "only"))


def removals(scores: Scores, ks: int | Iterable[int], queries: Sequence[int] | Ids | None = None) -> RemovedSubsets:
    """Plan one subset for each query and k: all the training examples but the k that help the query most.

    The subsets come query by query, and within a query in the order of ``ks``: row ``i * len(ks) + j`` of the masks is
    query i with ``ks[j]``. Ties go as in :meth:`comove.Scores.top`.

    Args:
        scores: of any training examples and queries; ids are matched.
        ks: how many to remove, each from 0 to N - 2.
        queries: ids of queries; by default all that were scored.

    Raises:
        InputError: a query without scores, a k that leaves fewer than two examples.
    """
    counts = many_whole(ks, "k", None)
    n = scores.train_ids.size
    if not counts or min(counts) < 0 or max(counts) > n - 2:
        raise InputError(
            f"k must be from 0 to N - 2 = {n - 2}, so that 2 examples stay to train on; got {counts or 'none'}."
        )
    chosen = scores.query_ids if queries is None else as_ids(queries, "queries")
    columns = positions_of(chosen, scores.query_ids, "query ids")
    if not columns.size:
        raise InputError("subsets.removals needs at least one query.")
    ranked = [scores.train_ids[highest(scores.values[:, q], scores.train_ids, max(counts))] for q in columns]
    removed = tuple(ids[:k] for ids in ranked for k in counts)
    return RemovedSubsets(removed, "removals", {"method": scores.method, "ks": counts, "queries": chosen.tolist()})
