"""The best k training examples of each query, from tiles of scores that are never kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from comove.correlation import sizes
from comove.correlation.columns import CommonMode, Correlation, RowScaling, plan_for, ranges
from comove.correlation.inputs import ArrayLike, sides
from comove.correlation.keeping import Kept, descending, unpack
from comove.correlation.product import Panel, panels, score_tile
from comove.correlation.workers import Workers, plain_products, workers
from comove.errors import InputError, InputTypeError

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
        ids (Q, k) int64 and scores (Q, k) float32, highest first; of equal scores the lower column index comes first.

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
    _check_k(k, train.columns)
    plan = plan_for(train, correlation, common_mode, row_scaling)
    limit = np.inf if correlation == "covariance" else 1.0
    kept: list[Kept] = []
    with plain_products(), workers(train) as crew:
        for query_panel in panels(query, plan, sizes.TILE_Q, crew):
            tiles = list(ranges(query_panel.start, query_panel.stop, sizes.TILE_Q))
            best = [Kept(train, q.stop - q.start, k, limit) for q in tiles]
            for train_panel in panels(train, plan, sizes.TILE_N, crew):
                for each, q in zip(best, tiles, strict=True):
                    _look_through(each, train_panel, query_panel, q, crew)
            kept += best
    index_QK, scores_QK = unpack(descending(train.xp.concatenate([each.keys_BK for each in kept])))
    ids_QK = index_QK if train.ids is None else train.native(train.ids)[index_QK]
    return train.result(ids_QK), train.result(scores_QK)


def _look_through(kept: Kept, train: Panel, query: Panel, q: slice, crew: Workers) -> None:
    """Tiles in the order of the training columns, a wave of them at a time: what beats the bar before the wave."""
    empty = np.empty if isinstance(train.unit, np.ndarray) else train.unit.new_empty
    shape = min(sizes.TILE_N, train.stop - train.start), q.stop - q.start
    space = [empty(shape, dtype=train.unit.dtype) for _ in range(crew.number)]

    def look(n: slice, scratch: Any) -> Any:
        tile_NB = scratch[: n.stop - n.start]
        score_tile(train, query, n, q, tile_NB)
        return kept.candidates(n.start, tile_NB)

    for wave in crew.waves(list(ranges(train.start, train.stop, sizes.TILE_N))):
        for found in crew.each(look, wave, space):
            kept.add(found)
    kept.settle()


def _check_k(k: int, columns: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise InputTypeError(f"k must be an integer, how many training examples to keep; found {k!r}.")
    if not 1 <= k <= columns:
        raise InputError(f"k must lie between 1 and the number of training examples, {columns}; found {k}.")
