"""The two sides that the LDS ranks: what retraining said of each subset, and what summed scores predict of it.

    truth[j, q] = 1/R sum_r f(q, theta[S_j, r])          prediction[j, q] = sum_{i in S_j} scores[i, q]

Sums that are equal but for rounding are made equal, because ranks would turn the last bit into a full-sized step.

Shape suffixes: C subsets, N training examples, Q queries, R seeds (models of one subset).
"""

from __future__ import annotations

import numpy as np

from comove.lds.arrays import Bools, Floats, Numbers
from comove.lds.ranks import spearman_columns, varies

__all__ = ["ground_truth", "group_scores", "lds_columns", "merge_rounding_ties"]

_UNIT_ROUNDOFF = float(np.finfo(np.float64).eps) / 2
_QUERY_BLOCK = 512  # columns of the scores held in float64 at a time


def ground_truth(outputs_CRQ: Floats) -> Floats:
    """Mean output over the seeds, (C, Q)."""
    seeds = outputs_CRQ.shape[1]
    if seeds == 1:
        return outputs_CRQ[:, 0]
    error_CQ = seeds * _UNIT_ROUNDOFF * np.abs(outputs_CRQ).mean(axis=1)
    return merge_rounding_ties(outputs_CRQ.mean(axis=1), error_CQ)


def group_scores(masks_CN: Bools, scores_NQ: Numbers) -> Floats:
    """Predicted output of every subset: the sum of its members' scores, ``masks @ scores`` in float64, (C, Q)."""
    members_CN = masks_CN.astype(np.float64)
    bound_C1 = members_CN.sum(axis=1, keepdims=True) * _UNIT_ROUNDOFF
    prediction_CQ = np.empty((len(masks_CN), scores_NQ.shape[1]))
    for start in range(0, scores_NQ.shape[1], _QUERY_BLOCK):
        block = slice(start, start + _QUERY_BLOCK)
        scores = scores_NQ[:, block].astype(np.float64)
        sums = members_CN @ scores
        prediction_CQ[:, block] = merge_rounding_ties(sums, bound_C1 * (members_CN @ np.abs(scores)))
    return prediction_CQ


def merge_rounding_ties(values_CQ: Floats, error_CQ: Floats) -> Floats:
    """Make entries of a column equal where they differ by no more than the rounding ``error`` of their sums.

    Equal scores summed over subsets of one size must tie, but the order of the additions makes them differ in the last
    bit, and ranks would turn that bit into a full-sized correlation.
    """
    order = np.argsort(values_CQ, axis=0, kind="stable")
    sorted_CQ, error = np.take_along_axis(values_CQ, order, axis=0), np.take_along_axis(error_CQ, order, axis=0)
    apart = np.diff(sorted_CQ, axis=0) > error[1:] + error[:-1]
    position = np.arange(1, len(values_CQ))[:, None]
    first = np.zeros_like(order)
    first[1:] = np.maximum.accumulate(np.where(apart, position, 0), axis=0)
    merged = np.empty_like(values_CQ)
    np.put_along_axis(merged, order, np.take_along_axis(sorted_CQ, first, axis=0), axis=0)
    return merged


def lds_columns(truth_CQ: Floats, prediction_CQ: Floats) -> Floats:
    """LDS of every query: Spearman, NaN where the truth is constant, 0 where only the prediction is."""
    per_query = spearman_columns(truth_CQ, prediction_CQ)
    per_query[varies(truth_CQ) & ~varies(prediction_CQ)] = 0.0
    return per_query
