"""<g_b, d_q>: inner products of per-example gradients with fixed directions, one matrix product per parameter.

Nothing is put together into flat vectors (these are six times slower), and nothing is transposed: a gradient is read in
the order in which it lies in memory, and the directions are brought into that order once.

Shape legend: B examples of a chunk, Q directions, P entries of one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["InnerProducts", "flat_rows"]

SMALL = 2048
"""Parameters of fewer entries are multiplied together: their products are too small to keep a processor busy."""
EXAMPLES = 100
"""The chunk that packed directions are made for; others work too."""

Add: TypeAlias = Callable[[Tensor, Tensor], object]
"""Adds flat gradients (B, P) times some directions to a sum (B, Q)."""


class InnerProducts:
    """Inner products of gradients with these directions.

    Args:
        directions: key -> (Q, shape of one gradient).
    """

    def __init__(self, directions: Mapping[str, Tensor]) -> None:
        self._small = [key for key, matrix in directions.items() if matrix[0].numel() < SMALL]
        self._large = {key: matrix for key, matrix in directions.items() if key not in self._small}
        small = [flat_rows(directions[key]) for key in self._small]
        self._add_small = _accumulator(torch.cat(small, 1)) if small else None
        self._add: dict[str, tuple[list[int], Add]] = {}

    def add(self, products_BQ: Tensor, gradients: Iterable[tuple[str, Tensor]]) -> None:
        """Add the inner products of one chunk, whose gradients come as (key, (B, ...)), to ``products_BQ``."""
        kept: dict[str, Tensor] = {}
        for key, gradient in gradients:
            if key in self._small:
                kept[key] = flat_rows(gradient)
                continue
            if key not in self._add:
                order = _order_in_memory(gradient)
                packed = _accumulator(self._large.pop(key).permute(order).flatten(1))
                self._add[key] = (order, packed)
            order, add = self._add[key]
            add(products_BQ, gradient.permute(order).flatten(1))
        if self._add_small is not None:
            self._add_small(products_BQ, torch.cat([kept[key] for key in self._small], 1))


def flat_rows(gradient: Tensor) -> Tensor:
    """Return (B, ...) as (B, entries), also where each example has one number and no dimension."""
    return gradient.reshape(len(gradient), -1)


def _order_in_memory(gradient: Tensor) -> list[int]:
    strides = gradient.stride()
    return [0, *sorted(range(1, gradient.ndim), key=lambda dim: -strides[dim])]


def _accumulator(matrix_QP: Tensor) -> Add:
    """A function that adds flat (B, P) times matrix' to a (B, Q) sum."""
    rows, columns = matrix_QP.shape
    if rows >= 16 and columns >= SMALL and _has_packed(matrix_QP):
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix_QP.contiguous(), EXAMPLES)
        multiply = torch.ops.mkldnn._linear_pointwise
        return lambda sum_BQ, flat_BP: sum_BQ.add_(multiply(flat_BP, packed, None, "none", [], ""))
    return lambda sum_BQ, flat_BP: sum_BQ.addmm_(flat_BP, matrix_QP.mT)


def _has_packed(matrix: Tensor) -> bool:
    """Whether oneDNN multiplies by it prepacked, up to twice as fast as MKL on processors not Intel's.

    torch makes no promise of these operators, which its own compiler uses: they are asked for, never assumed.
    """
    present = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return present and matrix.device.type == "cpu" and matrix.dtype == torch.float32
