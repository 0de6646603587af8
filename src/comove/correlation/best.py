"""The best k training examples of each query, from tiles of scores that are never kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from comove.checks import whole_number
from comove.correlation.inputs import ArrayLike, Side, sides
from comove.correlation.product import Panel, panels, score_tile, tile_of
from comove.correlation.standardise import CommonMode, Correlation, RowScaling, namespace, plan_for, ranges
from comove.correlation.top_k_heap import TopK, descending, unpack
from comove.correlation.workers import plain_products, workers
from comove.ties import tie_order

__all__ = ["top_k"]


def top_k(
    train_losses: ArrayLike,
    query_losses: ArrayLike,
    k: int,
    *,
    train_ids: ArrayLike | None = None,
    correlation: Correlation = "pearson",
    common_mode: CommonMode = "keep",
    row_scaling: RowScaling = "none",
    query_ids: ArrayLike | None = None,
) -> tuple[Any, Any]:
    """Find the ``k`` training examples that score highest for each query, without ever holding the N x Q scores.

    The same scores as :func:`pairwise`, computed tile by tile; only what beats a query's k-th best so far is kept.

    Args:
        train_losses: (T+1, N) losses, row 0 before training; any real dtype; never changed.
        query_losses: (T+1, Q) losses recorded at the same moments.
        k: How many to keep for each query, 1 to N.
        train_ids: (N,) integer ids to report; without them, column indices.
        correlation: As in :func:`pairwise`.
        common_mode: As in :func:`pairwise`.
        row_scaling: As in :func:`pairwise`.
        query_ids: (Q,) integer ids, used to name a query in an error message.

    Returns:
        ids (Q, k) int64 and scores (Q, k) float32, highest first. Equal scores are ordered by a seeded
        hash of the id (without ids: of the column index), never by position (:mod:`comove.ties`).

    Raises:
        InputError: ``k`` outside 1..N, or as in :func:`pairwise`.
        InputTypeError: ``k`` is not an integer, or as in :func:`pairwise`.
        NonFiniteError: As in :func:`pairwise`.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64.

    Example:
        >>> train = [[2.0, 2.0, 1.0], [1.5, 1.9, 1.0], [1.2, 1.6, 1.0], [1.1, 1.1, 1.0]]
        >>> ids, scores = top_k(train, [[2.0], [1.4], [1.0], [0.8]], 2, train_ids=[70, 80, 90])
        >>> ids.tolist(), scores.round(3).tolist()
        ([[70, 90]], [[1.0, 0.0]])
    """
    train, query = sides(train_losses, query_losses, train_ids, query_ids)
    k = whole_number(k, "k", 1, train.columns)
    order_N, rank_N = _tie_ranks(train)
    with plain_products():
        plan = plan_for(train, correlation, common_mode, row_scaling)
    limit = np.inf if correlation == "covariance" else 1.0
    (tile_n, tile_q), keys = tile_of(train), []
    with plain_products(), workers(train) as crew:
        for query_panel in panels(query, plan, tile_q, crew):
            tiles = list(ranges(query_panel.start, query_panel.stop, tile_q))
            parts = -(-crew.number // len(tiles))  # of the training examples, where there are more threads than tiles
            best = [TopK(train, q.stop - q.start, k, limit, rank_N) for q in tiles for _ in range(parts)]
            for train_panel in panels(train, plan, tile_n, crew):
                rows = list(ranges(train_panel.start, train_panel.stop, tile_n))
                jobs = [(q, rows[part::parts]) for q in tiles for part in range(parts)]
                crew.each(_look_through, best, repeat(train_panel), repeat(query_panel), *zip(*jobs, strict=True))
            keys += [_best_of(best[i : i + parts], k) for i in range(0, len(best), parts)]
    rank_QK, scores_QK = unpack(train.xp.concatenate(keys))
    ids_QK = train.native(order_N if train.ids is None else train.ids[order_N])[rank_QK]
    return train.result(ids_QK), train.result(scores_QK)


def _tie_ranks(train: Side) -> tuple[Any, Any]:
    """The positions (N,) in the order in which equal scores go, and of each position its place there, both int64."""
    order_N = tie_order(np.arange(train.columns) if train.ids is None else train.ids)
    rank_N = np.empty_like(order_N)
    rank_N[order_N] = np.arange(train.columns)
    return order_N, train.native(rank_N)


def _best_of(parts: Sequence[TopK], k: int) -> Any:
    """The best k of the same queries over several parts of the training examples, highest first."""
    keys = [part.keys_BK for part in parts]
    return descending(namespace(keys[0]).concatenate(keys, 1))[:, :k]


def _look_through(kept: TopK, train: Panel, query: Panel, q: slice, rows: Sequence[slice]) -> None:
    """The tiles of some queries, in the order of the training examples: what beats the bar that the last ones left."""
    if not rows:
        return
    empty = np.empty if isinstance(train.unit, np.ndarray) else train.unit.new_empty
    space = empty((rows[0].stop - rows[0].start, q.stop - q.start), dtype=train.unit.dtype)
    for n in rows:
        tile_NB = space[: n.stop - n.start]
        score_tile(train, query, n, q, tile_NB)
        kept.look(n.start, tile_NB)
    kept.settle()
