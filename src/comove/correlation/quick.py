"""Class-balanced CLD near the speed of reading the losses: float32 where that is as good as float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from comove.correlation import sizes
from comove.correlation.columns import Plan, ranges, standardise
from comove.correlation.inputs import Side
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
            step = _Step(late_first_TC)
        for at in ranges(span.start, span.stop, sizes.FAST_COLUMNS):
            scores_N[at], sure_B = step.scores(train.array(at), codes_N[at])
            if not sure_B.all():
                doubtful = np.flatnonzero(~sure_B) + at.start
                for part in ranges(0, len(doubtful), block):
                    rest = doubtful[part]
                    scores_N[rest] = (standardise(train.block(rest), Plan())[0] * mean_TC[:, codes_N[rest]]).sum(0)
        free.append(step)

    with workers(train) as crew:
        crew.each(work, ranges(0, train.columns, 4 * sizes.FAST_COLUMNS))
    return scores_N


class _Step:
    """Scores of some thousand columns, in memory that is used again for the next."""

    def __init__(self, mean_TC: Any) -> None:  # last row first, as the differences are taken here
        self._mean_TC = mean_TC
        rows = min(len(mean_TC), sizes.FAST_ROWS)
        self._delta, self._picked = (np.empty(rows * sizes.FAST_COLUMNS, np.float32) for _ in range(2))

    def scores(self, losses_RB: Any, codes_B: Any) -> tuple[Any, Any]:
        """Scores in float32 arithmetic, and for which columns that is as good as float64.

        A float32 difference of float32 losses errs by at most 6e-8 of itself. That is harmless unless the differences
        are nearly all alike, rounding itself, or out of range once squared: such columns (NaN too) are left to float64.
        The last difference comes first: after a few large early ones a long flat tail would be rounded away.
        """
        losses_RB = losses_RB[::-1]
        differences = len(losses_RB) - 1
        with np.errstate(all="ignore"):
            drift_B = (losses_RB[0].astype(np.float64) - losses_RB[-1]) / differences
            square_B, dot_B = np.zeros(len(codes_B)), np.zeros(len(codes_B))
            for t, delta_TB in self._differences(losses_RB):
                square_B += np.einsum("tb,tb->b", delta_TB, delta_TB)
                picked_TB = _shaped(self._picked, *delta_TB.shape)
                # All codes are in range: "wrap" only takes less time than "clip".
                np.take(self._mean_TC[t], codes_B, axis=1, mode="wrap", out=picked_TB)
                dot_B += np.einsum("tb,tb->b", delta_TB, picked_TB)  # the class means are centered: no drift in it
            mean_square_B = differences * drift_B**2
            square_B -= mean_square_B
            steep_B = ~(square_B > mean_square_B)  # what is left after taking out most: too few digits
            if steep_B.any():
                at = slice(None) if 4 * steep_B.sum() > len(steep_B) else np.flatnonzero(steep_B)
                square_B[at] = self._squares(losses_RB[:, at], drift_B[at])
            floor_B = np.maximum(mean_square_B / 100, differences * 1e-28 * losses_RB[-1].astype(np.float64) ** 2)
            sure_B = (square_B > floor_B) & (square_B > 1e-24) & (square_B < 1e30)
            return dot_B / np.sqrt(square_B), sure_B

    def _squares(self, losses_RB: Any, drift_B: Any) -> Any:
        """Sums of squares of the differences once their means are taken out of each."""
        square_B, drift_B = np.zeros(len(drift_B)), drift_B.astype(np.float32)
        for _, delta_TB in self._differences(losses_RB):
            delta_TB -= drift_B
            square_B += np.einsum("tb,tb->b", delta_TB, delta_TB)
        return square_B

    def _differences(self, losses_RB: Any) -> Iterator[tuple[slice, Any]]:
        for t in ranges(0, len(losses_RB) - 1, sizes.FAST_ROWS):
            part_RB = losses_RB[t.start : t.stop + 1]
            delta_TB = _shaped(self._delta, len(part_RB) - 1, part_RB.shape[1])
            yield t, np.subtract(part_RB[:-1], part_RB[1:], out=delta_TB)


def _shaped(memory: Any, rows: int, columns: int) -> Any:
    return memory[: rows * columns].reshape(rows, columns)
