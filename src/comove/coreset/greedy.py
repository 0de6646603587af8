"""S <- S + argmax_x f(x | S): lazy greedy, which re-evaluates only what could still be the best.

When marginal gains never grow (f is submodular), an old gain bounds the new one from above; of the candidates in a heap
only those whose bound exceeds the best fresh gain are evaluated again (Minoux, "Accelerated greedy algorithms for
maximizing submodular set functions", 1978). The picks are those of plain greedy, ties to the lower index.

Shape legend: N candidates, B candidates of one evaluation, k picks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from comove.errors import InputError

__all__ = ["FacilityLocation", "SetFunction", "check_count", "eager_greedy", "lazy_greedy"]

Positions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Rows = Callable[[Positions], npt.NDArray[np.floating]]


class SetFunction(Protocol):
    """A submodular function with the picks so far in it."""

    def gains(self, candidates: Positions) -> Floats:
        """Return (B,) what each of ``candidates`` (B,) would add now."""

    def add(self, candidate: int) -> None:
        """Pick ``candidate``."""


def check_count(k: int, n: int) -> None:
    """Raise an :class:`InputError` unless 1 <= k <= n."""
    if not 1 <= k <= n:
        raise InputError(f"The number of picks must be from 1 to the {n} candidates, got {k}.")


def lazy_greedy(function: SetFunction, bounds_N: npt.ArrayLike, k: int, *, width: int = 1) -> tuple[Positions, Floats]:
    """Pick ``k`` candidates one by one, each time one that adds most; gains may be negative, k picks are made.

    Args:
        function: submodular.
        bounds_N: (N,) the gains of the empty set, exact.
        k: from 1 to N.
        width: how many candidates are evaluated at a time (more where one evaluation is a costly pass over the data).

    Returns:
        (k,) picks in order, and the gain of each.

    Raises:
        InputError: k out of range.
    """
    bounds = np.asarray(bounds_N, np.float64)
    check_count(k, bounds.size)
    heap = [(-bound, index) for index, bound in enumerate(bounds.tolist())]
    heapq.heapify(heap)
    evaluated_at = np.zeros(bounds.size, np.int64)
    picks = np.empty(k, np.int64)
    gains = np.empty(k, np.float64)
    for step in range(k):
        while evaluated_at[heap[0][1]] < step:
            _refresh(heap, function, evaluated_at, step, width)
        negative, best = heapq.heappop(heap)
        picks[step], gains[step] = best, -negative
        function.add(best)
    return picks, gains


def _refresh(
    heap: list[tuple[float, int]], function: SetFunction, evaluated_at: Positions, step: int, width: int
) -> None:
    """Evaluate the top of the heap again, and with it up to ``width`` - 1 that follow and are old too."""
    old: list[int] = []
    while heap and len(old) < width and evaluated_at[heap[0][1]] < step:
        old.append(heapq.heappop(heap)[1])
    candidates = np.array(old)
    for gain, index in zip(function.gains(candidates).tolist(), old, strict=True):
        heapq.heappush(heap, (-gain, index))
    evaluated_at[candidates] = step


def eager_greedy(gains_N: npt.ArrayLike, update: Callable[[int, Floats], object], k: int) -> tuple[Positions, Floats]:
    """Pick ``k`` candidates by plain greedy, where one pick changes all gains in a single vector operation.

    Args:
        gains_N: (N,) the gains of the empty set.
        update: called with a pick and the (N,) gains, which it changes in place.
        k: from 1 to N.

    Returns:
        (k,) picks in order (ties to the lower index), and the gain of each.

    Raises:
        InputError: k out of range.
    """
    gains = np.array(gains_N, np.float64)
    check_count(k, gains.size)
    picks = np.empty(k, np.int64)
    gained = np.empty(k, np.float64)
    for step in range(k):
        best = int(gains.argmax())
        picks[step], gained[step] = best, gains[best]
        if step + 1 < k:
            update(best, gains)
            gains[picks[: step + 1]] = -np.inf
    return picks, gained


class FacilityLocation:
    """f(S) = sum_i max_{j in S} s_ij, with f(empty) = 0: every point is served by the pick most similar to it.

    Args:
        rows: gives (B, N) similarities, none negative, of the candidates asked for to all points.
        n: N, the number of points.
    """

    def __init__(self, rows: Rows, n: int) -> None:
        self._rows = rows
        self._best_N = np.zeros(n, np.float64)
        self._owner_N = np.full(n, -1, np.int64)
        self._last: tuple[int, npt.NDArray[np.floating]] | None = None

    def gains(self, candidates: Positions) -> Floats:
        """Return what each candidate would add to the sum."""
        rows_BN = self._rows(candidates)
        if candidates.size == 1:  # most likely picked next
            self._last = (int(candidates[0]), rows_BN[0])
        best_N = self._best_N.astype(rows_BN.dtype)
        added_B: Floats = np.maximum(rows_BN - best_N, 0).sum(1, dtype=np.float64)
        return added_B

    def add(self, candidate: int) -> None:
        """Pick ``candidate``: points more similar to it than to any pick before become its own."""
        held = self._last is not None and self._last[0] == candidate
        row_N = self._last[1] if held else self._rows(np.array([candidate]))[0]  # type: ignore[index]
        nearer = (row_N > self._best_N) | (self._owner_N < 0)
        self._owner_N[nearer] = candidate
        self._best_N[nearer] = row_N[nearer]

    def served(self, picks: Positions) -> Positions:
        """Return (k,) how many points each pick serves (they add up to N); ties go to the earlier pick."""
        return np.bincount(self._owner_N, minlength=self._owner_N.size)[picks]
