"""Ranks with ties, as whole numbers, and Spearman's correlation of columns, once or in many resamples of the rows.

    rho = sum_i (a_i - mean a)(b_i - mean b) / sqrt(sum_i (a_i - mean a)^2  sum_i (b_i - mean b)^2),  a, b average ranks

Shape suffixes: C rows that are ranked (subsets), Q columns (queries), B bootstrap resamples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.errors import InputError
from comove.lds.arrays import ArrayInput, Bools, Floats, Ints, Numbers, numbers

__all__ = ["ResampledRanks", "TieGroups", "centred_ranks", "exact_floats", "spearman_columns", "tie_groups", "varies"]


class TieGroups(NamedTuple):
    """Columns sorted once, so that any reweighting of the rows can be re-ranked without sorting again."""

    order: Ints  # row numbers in ascending order of value
    below: Ints  # for each row: how many rows have a smaller value
    through: Ints  # for each row: how many rows have a smaller or equal value

    def column(self, q: int) -> TieGroups:
        """The groups of one column, (C,)."""
        return TieGroups(self.order[:, q], self.below[:, q], self.through[:, q])


def tie_groups(values_CQ: Floats) -> TieGroups:
    """Sort every column and count, for each entry, the entries below it and those not above it."""
    order = np.argsort(values_CQ, axis=0, kind="stable")
    sorted_CQ = np.take_along_axis(values_CQ, order, axis=0)
    edge = np.ones((len(values_CQ) + 1, values_CQ.shape[1]), dtype=np.bool_)
    edge[1:-1] = sorted_CQ[1:] != sorted_CQ[:-1]
    position = np.arange(len(values_CQ))[:, None]
    first = np.maximum.accumulate(np.where(edge[:-1], position, 0), axis=0)
    end = np.minimum.accumulate(np.where(edge[1:], position + 1, len(values_CQ))[::-1], axis=0)[::-1]
    below, through = np.empty_like(order), np.empty_like(order)
    np.put_along_axis(below, order, first, axis=0)
    np.put_along_axis(through, order, end, axis=0)
    return TieGroups(order, below, through)


def centred_ranks(values_CQ: Floats) -> Floats:
    """Average ranks of every column, doubled and centred: ``2 rank - (C + 1)``, whole numbers, so sums are exact."""
    groups = tie_groups(values_CQ)
    return (groups.below + groups.through - len(values_CQ)).astype(np.float64)


def spearman_columns(a_CQ: ArrayInput, b_CQ: ArrayInput) -> Floats:
    """Spearman's rank correlation of each column of ``a`` with the same column of ``b``.

    The Pearson correlation of the ranks, ties sharing their average rank. Ranks are held as whole numbers, so equal
    orders give exactly 1 and reversed ones exactly -1.

    Args:
        a_CQ: (C, Q) numbers.
        b_CQ: (C, Q) numbers.

    Returns:
        (Q,) correlations, NaN where either column is constant or holds a NaN.

    Raises:
        InputError: the arrays are not two-dimensional, or their shapes differ.
        InputTypeError: an argument does not hold numbers.

    Reference:
        Spearman, The proof and measurement of association between two things, 1904.

    Example:
        >>> spearman_columns([[1, 5], [2, 5], [4, 5]], [[10, 1], [20, 2], [90, 3]])
        array([ 1., nan])
    """
    a = numbers(a_CQ, "a_CQ", (2,)).astype(np.float64)
    b = numbers(b_CQ, "b_CQ", (2,)).astype(np.float64)
    if a.shape != b.shape:
        raise InputError(f"a_CQ and b_CQ must have the same shape, found {a.shape} and {b.shape}.")
    a_ranks, b_ranks = centred_ranks(a), centred_ranks(b)
    correlations = _ratio((a_ranks * b_ranks).sum(axis=0), (a_ranks**2).sum(axis=0), (b_ranks**2).sum(axis=0))
    correlations[np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0)] = np.nan
    return correlations


def varies(values_CQ: Floats) -> Bools:
    """Whether a column is not constant, (Q,)."""
    different: Bools = (values_CQ != values_CQ[0]).any(axis=0)
    return different


class ResampledRanks:
    """The ranks of one column in B resamples given as whole-number weights, ready to be correlated with others.

    An entry's average rank in a resample is ``(weight before its tie group + weight through it + 1) / 2``, and the
    correlation is Pearson's, each entry counted ``weight`` times: the same as repeating the rows and ranking again.

    Attributes:
        squared_B: the weighted sum of squares of the centred ranks: 0 where the resample is constant.
    """

    def __init__(self, groups: TieGroups, weights_CB: Numbers) -> None:
        self._weights = weights_CB
        self._weighted = _resampled(groups, weights_CB)
        self.squared_B = np.einsum("cb,cb,cb->b", weights_CB, self._weighted, self._weighted).astype(np.float64)
        self._weighted *= weights_CB

    def spearman(self, other: TieGroups) -> Floats:
        """Spearman with another column in each resample, (B,); NaN where either is constant."""
        ranks_CB = _resampled(other, self._weights)
        product_B = np.einsum("cb,cb->b", self._weighted, ranks_CB).astype(np.float64)
        np.square(ranks_CB, out=ranks_CB)
        return _ratio(product_B, self.squared_B, np.einsum("cb,cb->b", self._weights, ranks_CB).astype(np.float64))


def exact_floats(rows: int) -> type[np.float32] | type[np.float64]:
    """The smallest floats in which the weighted sums of products of ``rows`` ranks are exact whole numbers.

    Ranks, doubled and centred, lie within C of zero and the weights sum to C, so no sum exceeds C cubed.
    """
    return np.float32 if rows**3 <= 2**24 else np.float64


def _resampled(groups: TieGroups, weights_CB: Numbers) -> Numbers:
    """Doubled, centred average ranks of a column in every resample, (C, B)."""
    cumulative = np.zeros((len(weights_CB) + 1, weights_CB.shape[1]), weights_CB.dtype)
    for place, row in enumerate(groups.order.tolist()):  # numpy.cumsum along the first axis takes six times as long
        np.add(cumulative[place], weights_CB[row], out=cumulative[place + 1])
    ranks_CB: npt.NDArray[Any] = cumulative[groups.below]
    ranks_CB += cumulative[groups.through]
    ranks_CB -= cumulative[-1]
    return ranks_CB


def _ratio(product: Floats, a_squared: Floats, b_squared: Floats) -> Floats:
    norm = np.sqrt(a_squared * b_squared)
    return np.divide(product, norm, out=np.full_like(norm, np.nan), where=norm > 0)
