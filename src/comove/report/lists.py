"""The training examples at both ends of every method's ranking for every query, and which examples those are.

Shape suffixes: M methods, Q queries, S = 2 sides (helps, hurts), K places, U different training examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from comove.attribution import Scores
from comove.data import IdIndex, Ids

__all__ = ["NO_MEMBER", "TopLists", "top_lists"]

NO_MEMBER = -1
"""Where a method says nothing of a query, or has fewer examples than places."""


@dataclass(frozen=True)
class TopLists:
    """Who helps and hurts.

    Attributes:
        methods: M names.
        train_ids: (U,) int64 of every example in some list, in order of first appearance.
        members: (M, Q, S, K) int32 positions in ``train_ids``; -1 for none. Side 0 helps, the most first.
        scores: (M, Q, S, K) float32.
    """

    methods: tuple[str, ...]
    train_ids: Ids
    members: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]


def top_lists(named: Mapping[str, Scores], query_ids: Ids, top: int, *, others: Sequence[Ids] = ()) -> TopLists:
    """Read both ends of every ranking.

    Args:
        named: scores by the name of their method.
        query_ids: (Q,) int64; a method need not have scored all of them.
        top: K.
        others: further training examples that are shown somewhere.
    """
    shape = (len(named), query_ids.size, 2, top)
    ids_MQSK, scores_MQSK = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    told_MQSK = np.zeros(shape, np.bool_)
    for m, scores in enumerate(named.values()):
        k = min(top, scores.train_ids.size)
        _, known_Q = IdIndex(scores.query_ids, "query ids").find(query_ids)
        for q in np.flatnonzero(known_Q):
            query = int(query_ids[q])
            for side, ranking in enumerate((scores.top(k, query=query), scores.bottom(k, query=query))):
                ids_MQSK[m, q, side, :k], scores_MQSK[m, q, side, :k] = ranking.ids, ranking.scores
        told_MQSK[m, known_Q, :, :k] = True
    by_query = np.moveaxis(ids_MQSK, 1, 0)[np.moveaxis(told_MQSK, 1, 0)]  # neighbours in the grid share sheets
    train_ids = _in_order(np.concatenate([by_query, *others]).astype(np.int64))
    places, _ = IdIndex(train_ids).find(ids_MQSK.ravel())
    members = np.where(told_MQSK, places.reshape(shape), NO_MEMBER).astype(np.int32)
    return TopLists(tuple(named), train_ids, members, scores_MQSK)


def _in_order(ids: Ids) -> Ids:
    """Each id once, in order of first appearance."""
    unique, first = np.unique(ids, return_index=True)
    return np.asarray(unique[np.argsort(first)], np.int64)
