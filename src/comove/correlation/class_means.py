"""Class-balanced CLD near the speed of reading the losses: float32 where that is as good as float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from comove.correlation import sizes
from comove.correlation.inputs import Side
from comove.correlation.standardise import Plan, ranges, standardise
from comove.correlation.workers import workers

__all__ = ["per_class_cpu"]


def per_class_cpu(train: Side, codes_N: Any, mean_TC: Any) -> Any:
    """Scores (N,) of every column with the unit mean (T, C) of its class; a column's bits do not depend on threads."""
    scores_N = np.empty(train.columns, np.float32)
    late_first_TC = np.ascontiguousarray(mean_TC[::-1], np.float32)
    block = max(sizes.NARROWEST, sizes.BLOCK["cpu"] // train.rows)
    free: list[_Step] = []  # whose memory no thread works in just now

    def work(span: slice) -> None:
        try:
            step = free.pop()
        except IndexError:
            step = _Step(train, late_first_TC)
        scores_N[span], sure_B = step.scores(span, codes_N)
        free.append(step)
        doubtful = np.flatnonzero(~sure_B) + span.start
        for part in ranges(0, len(doubtful), block):
            rest = doubtful[part]
            scores_N[rest] = (standardise(train.block(rest), Plan())[0] * mean_TC[:, codes_N[rest]]).sum(0)

    with workers(train) as crew:
        crew.each(work, ranges(0, train.columns, sizes.FAST_SPAN))
    return scores_N


class _Step:
    """Scores of some columns, in memory that is used again for the next.

    Threads take turns at the interpreter between any two calls of NumPy, and each turn costs as much as thousands of
    losses: so there are few calls for many losses.
    """

    def __init__(self, train: Side, mean_TC: Any) -> None:  # last row first, as the differences are taken here
        self._train, self._mean_TC = train, mean_TC
        rows, columns = min(len(mean_TC), sizes.FAST_ROWS), min(train.columns, sizes.FAST_COLUMNS)
        self._delta, self._picked = (np.empty(rows * columns, np.float32) for _ in range(2))

    def scores(self, span: slice, codes_N: Any) -> tuple[Any, Any]:
        """Scores in float32 arithmetic, and for which columns that is as good as float64.

        A float32 difference of float32 losses errs by at most 6e-8 of itself. That is harmless unless the differences
        are nearly all alike, rounding itself, or out of range once squared: such columns (NaN too) are left to float64.
        The last difference comes first: after a few large early ones a long flat tail would be rounded away.
        """
        first_B, last_B, square_B, dot_B = np.zeros((4, span.stop - span.start))
        with np.errstate(all="ignore"):
            for at in ranges(span.start, span.stop, sizes.FAST_COLUMNS):
                here = slice(at.start - span.start, at.stop - span.start)
                losses_RB = self._train.array(at)
                first_B[here], last_B[here] = losses_RB[0], losses_RB[-1]
                for t, delta_TB in self._differences(losses_RB):
                    square_B[here] += np.einsum("tb,tb->b", delta_TB, delta_TB)
                    picked_TB = _shaped(self._picked, *delta_TB.shape)
                    # All codes are in range: "wrap" only takes less time than "clip".
                    np.take(self._mean_TC[t], codes_N[at], axis=1, mode="wrap", out=picked_TB)
                    dot_B[here] += np.einsum("tb,tb->b", delta_TB, picked_TB)  # no drift in it: the means are centered
            drift_B = (last_B - first_B) / (self._train.rows - 1)
            mean_square_B = (self._train.rows - 1) * drift_B**2
            square_B -= mean_square_B
            steep_B = ~(square_B > mean_square_B)  # what is left after taking out most: too few digits
            if steep_B.any():
                self._center(span, steep_B, drift_B, square_B)
            floor_B = np.maximum(mean_square_B / 100, (self._train.rows - 1) * 1e-28 * first_B**2)
            sure_B = (square_B > floor_B) & (square_B > 1e-24) & (square_B < 1e30)
            return dot_B / np.sqrt(square_B), sure_B

    def _center(self, span: slice, steep_B: Any, drift_B: Any, square_B: Any) -> None:
        """Sum the squares of steep columns again, their drift taken out of each difference."""
        steep = np.flatnonzero(steep_B)
        if 4 * len(steep) > len(steep_B):  # so many that all of them are read sooner than picked
            steep = np.arange(len(steep_B))
        for part in ranges(0, len(steep), sizes.FAST_COLUMNS):
            here = steep[part]
            at = here + span.start
            if at[-1] - at[0] == len(at) - 1:  # without gaps: read as it lies
                at = slice(at[0], at[-1] + 1)
            square_B[here] = 0
            for _, delta_TB in self._differences(self._train.array(at)):
                delta_TB -= drift_B[here].astype(np.float32)
                square_B[here] += np.einsum("tb,tb->b", delta_TB, delta_TB)

    def _differences(self, losses_RB: Any) -> Iterator[tuple[slice, Any]]:
        losses_RB = losses_RB[::-1]
        for t in ranges(0, len(losses_RB) - 1, sizes.FAST_ROWS):
            part_RB = losses_RB[t.start : t.stop + 1]
            delta_TB = _shaped(self._delta, len(part_RB) - 1, part_RB.shape[1])
            yield t, np.subtract(part_RB[:-1], part_RB[1:], out=delta_TB)


def _shaped(memory: Any, rows: int, columns: int) -> Any:
    return memory[: rows * columns].reshape(rows, columns)
