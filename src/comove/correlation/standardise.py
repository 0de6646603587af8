"""From losses to unit columns: differences, centring and norms in float64, a block of columns at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from comove.correlation import sizes
from comove.correlation.inputs import Side, check_choice

__all__ = [
    "CommonMode",
    "Correlation",
    "Plan",
    "RowScaling",
    "Series",
    "center",
    "column_blocks",
    "namespace",
    "plan_for",
    "ranges",
    "spans",
    "standardise",
]

Correlation: TypeAlias = Literal["pearson", "spearman", "covariance"]
CommonMode: TypeAlias = Literal["keep", "remove"]
RowScaling: TypeAlias = Literal["none", "rms"]
Series: TypeAlias = Literal["differences", "values"]
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Plan:
    """What happens to every column, train or query, before the product."""

    correlation: str = "pearson"
    of: str = "differences"
    weight: Any = None  # (T,) one over the RMS of each row of training differences
    shared: Any = None  # (T,) unit mean training trajectory, to be projected out
    order: Any = None  # (T,) rows in the order of the product, small entries first

    def length(self, rows: int) -> int:
        """How many rows the product has, of losses with ``rows`` rows."""
        return rows - 1 if self.of == "differences" else rows

    def series(self, block_RB: Any) -> Any:
        """What is correlated, in an array of its own: differences between rows, or the values themselves."""
        return namespace(block_RB).diff(block_RB, 1, 0) if self.of == "differences" else block_RB + 0.0


def plan_for(train: Side, correlation: str, common_mode: str, row_scaling: str, of: Series = "differences") -> Plan:
    """Check the options, and learn from the training side what they need."""
    check_choice(correlation, "correlation", get_args(Correlation))
    check_choice(common_mode, "common_mode", get_args(CommonMode))
    check_choice(row_scaling, "row_scaling", get_args(RowScaling))
    check_choice(of, "of", get_args(Series))
    plan = Plan(correlation, of)
    if row_scaling == "rms":
        plan = replace(plan, weight=_inverse_rms(train, plan))
    if common_mode == "remove":
        plan = replace(plan, shared=_shared(train, plan))
    # Summed after a few large early differences, a long flat tail would be rounded away in float32, term by term.
    first_TB, _ = standardise(next(column_blocks(train))[1], plan)
    return replace(plan, order=train.xp.argsort((first_TB**2).sum(1)))


def _inverse_rms(train: Side, plan: Plan) -> Any:
    squares = ((plan.series(block_RB) ** 2).sum(1) for _, block_RB in column_blocks(train))
    rms_T = (sum(squares) / train.columns) ** 0.5
    return 1.0 / train.xp.where(rms_T > 0, rms_T, 1.0)


def _shared(train: Side, plan: Plan) -> Any:
    """Direction of the mean of the centred training columns, or nothing where they cancel."""
    mean_T, size = train.zeros(plan.length(train.rows)), 0.0
    for _, block_RB in column_blocks(train):
        delta_TB, square_B, _constant = center(block_RB, plan)
        mean_T += delta_TB.sum(1) / train.columns
        size += float(square_B.sum()) / train.columns
    norm = float((mean_T**2).sum()) ** 0.5
    # A mean that is only the rounding of cancelling columns has no direction; it would remove one at random.
    return mean_T / norm if norm**2 > (64 * EPS) ** 2 * size else None


def center(block_RB: Any, plan: Plan) -> tuple[Any, Any, Any]:
    """Centred differences (or values) of a block, their sums of squares, and which columns are only rounding."""
    xp = namespace(block_RB)
    delta_TB = plan.series(block_RB)
    if plan.weight is None:
        noise_B = len(delta_TB) * (8 * EPS * xp.amax(abs(block_RB), 0)) ** 2
    else:  # a late row is weighted up by orders of magnitude, so each row carries its own rounding
        size_RB = abs(block_RB)
        size_TB = xp.maximum(size_RB[1:], size_RB[:-1]) if plan.of == "differences" else size_RB
        local_TB = size_TB * plan.weight[:, None]
        noise_B = ((8 * EPS * local_TB) ** 2).sum(0)
        delta_TB *= plan.weight[:, None]
    delta_TB -= delta_TB.mean(0)
    square_B = (delta_TB**2).sum(0)
    if plan.shared is not None:
        # What the projection leaves of a multiple of the shared direction is rounding of the column's own size.
        noise_B = noise_B + (64 * EPS) ** 2 * square_B
        delta_TB -= xp.outer(plan.shared, plan.shared @ delta_TB)
        square_B = (delta_TB**2).sum(0)
    return delta_TB, square_B, square_B <= noise_B


def standardise(block_RB: Any, plan: Plan) -> tuple[Any, Any]:
    """Columns of unit length, zero where constant, and the standard deviation each of them had."""
    xp = namespace(block_RB)
    delta_TB, square_B, constant_B = center(block_RB, plan)
    if plan.correlation == "spearman":
        delta_TB = _ranks(delta_TB) - (len(delta_TB) + 1) / 2
        square_B = (delta_TB**2).sum(0)
        constant_B = constant_B | (square_B == 0)
    norm_B = xp.where(constant_B, 1.0, square_B) ** 0.5
    delta_TB *= xp.where(constant_B, 0.0, 1 / norm_B)
    return delta_TB, norm_B / (len(delta_TB) - 1) ** 0.5


def _ranks(values_TB: Any) -> Any:
    """Ranks 1..T down each column; equal values share the mean of their ranks."""
    if isinstance(values_TB, torch.Tensor):
        values_BT = values_TB.T.contiguous()
        ascending = values_BT.sort(dim=1).values
        below, upto = (torch.searchsorted(ascending, values_BT, right=right) for right in (False, True))
        return (below + upto + 1).double().T / 2
    table_BT = np.ascontiguousarray(values_TB.T)
    order_BT = table_BT.argsort(axis=1)
    sorted_BT = np.take_along_axis(table_BT, order_BT, 1)
    change, edge = sorted_BT[:, 1:] != sorted_BT[:, :-1], np.ones((len(table_BT), 1), bool)
    position = np.arange(len(values_TB))
    first = np.maximum.accumulate(np.where(np.hstack([edge, change]), position, 0), axis=1)
    last = np.where(np.hstack([change, edge]), position, len(values_TB))[:, ::-1]
    last = np.minimum.accumulate(last, axis=1)[:, ::-1]
    np.put_along_axis(table_BT, order_BT, (first + last) / 2 + 1, 1)
    return np.ascontiguousarray(table_BT.T)


def namespace(array: Any) -> Any:
    """NumPy or torch, whichever the array is of."""
    return torch if isinstance(array, torch.Tensor) else np


def ranges(start: int, stop: int, step: int) -> Iterator[slice]:
    """Consecutive slices of one length, the last perhaps shorter."""
    for low in range(start, stop, step):
        yield slice(low, min(stop, low + step))


def column_blocks(side: Side, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Any]]:
    """Columns ``start`` to ``stop``, checked and in float64, a cacheful at a time."""
    for at in spans(side, start, side.columns if stop is None else stop):
        yield at, side.block(at)


def spans(side: Side, start: int, stop: int) -> Iterator[slice]:
    """The columns of these blocks."""
    return ranges(start, stop, max(sizes.NARROWEST, sizes.BLOCK["cpu" if side.xp is np else "cuda"] // side.rows))
