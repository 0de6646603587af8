"""Whether an example is special to a query: its mean score over all queries of the report, and how often it is listed.

    mean_mu = sum_q scores_mqu / Q_m        listed_msu = number of queries at whose end s the method m lists u

Some examples head almost every list: outliers, wrong labels, whatever a model found hard. Where that is so, an
example's place in one query's list says more about the model than about the query.

Shape suffixes: M methods, Q queries, S = 2 sides (helps, hurts), U training examples, K places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from comove.attribution import Scores
from comove.data import IdIndex, Ids
from comove.report.lists import TopLists

__all__ = ["FEWEST_QUERIES", "MeanInfluence", "mean_influence"]

FEWEST_QUERIES = 10
"""Of fewer queries nothing is said to be typical."""
MOST_QUERIES = 0.5
"""Typical is what stands in the lists of more than this share of the queries ..."""
BY_CHANCE = 2
"""... and at least so many times as often as by chance."""


@dataclass(frozen=True)
class MeanInfluence:
    """Of every training example shown.

    Attributes:
        mean: (M, U) float32, the mean score over the method's queries; NaN where it did not score the example.
        listed: (M, S, U) int32, in the lists of how many queries it stands.
        queries: (M,) int64, how many queries the method scored among those of the report.
        threshold: (M,) float64, in the lists of more queries than this an example is typical; infinite for too few.
    """

    mean: npt.NDArray[np.float32]
    listed: npt.NDArray[np.int32]
    queries: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.float64]

    @property
    def typical(self) -> npt.NDArray[np.bool_]:
        """(M, S, U) whether an example helps, or hurts, most queries."""
        return np.asarray(self.listed > self.threshold[:, None, None])


def mean_influence(named: Mapping[str, Scores], query_ids: Ids, lists: TopLists) -> MeanInfluence:
    """Average scores over queries, and count in how many lists each example stands.

    Args:
        named: M scores by the name of their method.
        query_ids: (Q,) int64 of the report; a method need not have scored all of them.
        lists: the report's lists of them.
    """
    m_count, sides, shown, places = len(named), 2, lists.train_ids.size, lists.members.shape[-1]
    mean_MU = np.full((m_count, shown), np.nan, np.float32)
    listed_MSU = np.zeros((m_count, sides, shown), np.int32)
    queries_M, threshold_M = np.zeros(m_count, np.int64), np.full(m_count, np.inf)
    for m, scores in enumerate(named.values()):
        columns_Q, known_Q = IdIndex(scores.query_ids, "query ids").find(query_ids)
        rows_U, known_U = IdIndex(scores.train_ids, "train ids").find(lists.train_ids)
        queries_M[m] = known_Q.sum()
        for side in range(sides):
            members = lists.members[m, :, side]
            listed_MSU[m, side] = np.bincount(members[members >= 0], minlength=shown)
        if queries_M[m]:
            values = scores.values[rows_U[known_U]][:, columns_Q[known_Q]]
            mean_MU[m, known_U] = values.mean(1, dtype=np.float64)
        if queries_M[m] >= FEWEST_QUERIES:
            share = max(MOST_QUERIES, BY_CHANCE * min(1.0, places / scores.train_ids.size))
            threshold_M[m] = share * queries_M[m]
    return MeanInfluence(mean_MU, listed_MSU, queries_M, threshold_M)
