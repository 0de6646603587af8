"""Panels of unit columns, and the float32 products of their tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from comove.correlation import sizes
from comove.correlation.inputs import Side
from comove.correlation.standardise import Plan, namespace, ranges, spans, standardise
from comove.correlation.workers import Workers, plain_products
from comove.errors import InputError

__all__ = ["Panel", "panels", "score_tile", "tile_of"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Panel:
    """Unit columns ``start`` to ``stop`` of one side, ready for the product."""

    start: int
    stop: int
    unit: Any  # (T, stop - start) float32
    scale: Any  # (stop - start,) standard deviations, for a covariance

    def at(self, columns: slice) -> tuple[Any, Any]:
        """Some of these columns, numbered as on their side."""
        here = slice(columns.start - self.start, columns.stop - self.start)
        return self.unit[:, here], None if self.scale is None else self.scale[here]


def tile_of(side: Side) -> tuple[int, int]:
    """How many training examples and queries make one product: the same for all scores, which then are equal bits."""
    return sizes.TILE["cpu" if side.xp is np else "cuda"]


def panels(
    side: Side, plan: Plan, tile: int, crew: Workers, start: int = 0, stop: int | None = None
) -> Iterator[Panel]:
    """Panels of whole tiles that hold columns ``start`` to ``stop``.

    Tiles lie where they would for all columns: whoever asks for whichever part multiplies the same, to the same bits.
    """
    stop = side.columns if stop is None else stop
    width = max(1, sizes.PANEL // plan.length(side.rows))
    for grid in ranges(0, side.columns, width - width % tile if width > tile else width):
        if grid.start < stop and grid.stop > start:
            low = grid.start + max(0, start - grid.start) // tile * tile
            yield _panel(side, plan, crew, low, min(grid.stop, low + -(-(stop - low) // tile) * tile))


def _panel(side: Side, plan: Plan, crew: Workers, start: int, stop: int) -> Panel:
    unit_TB = side.zeros(plan.length(side.rows), stop - start, dtype="float32")
    scale_B = side.zeros(stop - start)

    def fill(at: slice) -> None:
        here = slice(at.start - start, at.stop - start)
        columns_TB, scale_B[here] = standardise(side.block(at), plan)
        unit_TB[:, here] = columns_TB[plan.order]

    with plain_products():  # projecting the common mode out is one
        crew.each(fill, spans(side, start, stop))
    return Panel(start, stop, unit_TB, scale_B if plan.correlation == "covariance" else None)


def score_tile(train: Panel, query: Panel, n: slice, q: slice, out: Any) -> None:
    """Fill ``out``; correlations are left unclipped, some rounding beyond 1 at worst."""
    (unit_TN, scale_N), (unit_TQ, scale_Q) = train.at(n), query.at(q)
    xp = namespace(unit_TN)
    if 1 in out.shape and xp is np:  # how NumPy sums a single row or column depends on how it lies in memory
        out[...] = np.ascontiguousarray(unit_TN).T @ np.ascontiguousarray(unit_TQ)
    else:
        xp.matmul(unit_TN.T, unit_TQ, out=out)
    if scale_N is None:
        return
    largest_N, largest_Q = float(scale_N.max()), float(scale_Q.max())
    if largest_N * largest_Q > _FLOAT32_MAX:
        raise InputError(
            f"Covariances must fit in float32, below {_FLOAT32_MAX:.2g}; found differences with standard deviations of "
            f"{largest_N:.2g} and {largest_Q:.2g}. Divide the losses by a constant, or use a correlation."
        )
    shift = 2.0 ** round(np.log2(largest_N / largest_Q) / 2)  # keeps both factors in range and costs no accuracy
    out *= xp.asarray(scale_N / shift, dtype=xp.float32)[:, None]
    out *= xp.asarray(scale_Q * shift, dtype=xp.float32)
