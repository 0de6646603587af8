"""One block of CLD scores from its own columns alone, to the bit as :func:`comove.correlation.pairwise` computes it.

:func:`comove.correlation.blocks` does the same where all training losses can be read. A job on another machine is sent
the plan, which is taken from all of them once, and the columns of its block.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.correlation.inputs import one_side, sides
from comove.correlation.product import Panel, panels, score_tile
from comove.correlation.sizes import TILE
from comove.correlation.standardise import Plan, plan_for, ranges
from comove.correlation.workers import plain_products, product_workers

__all__ = ["TILE_N", "TILE_Q", "Plan", "prepare", "score_block"]

TILE_N, TILE_Q = TILE["cpu"]
Floats = npt.NDArray[np.float32]


def prepare(train_losses: Any, *, correlation: str, common_mode: str, row_scaling: str) -> Plan:
    """Take from all training losses (T+1, N), read a block at a time, what every block needs.

    Raises:
        InputError: as :func:`comove.correlation.pairwise`.
    """
    with plain_products():
        return plan_for(one_side(train_losses, "train ", None, None), correlation, common_mode, row_scaling)


def score_block(plan: Plan, train_losses: Floats, query_losses: Floats) -> Floats:
    """Return the scores (n, q) of a block that begins at multiples of the tiles, laid out query by query.

    Args:
        plan: of all training losses.
        train_losses: (T+1, n) of the block.
        query_losses: (T+1, q) of the block.
    """
    train, query = sides(train_losses, query_losses, None, None)
    scores_qn = np.empty((query.columns, train.columns), np.float32)
    with product_workers() as crew:
        for query_panel in panels(query, plan, TILE_Q, crew):
            for train_panel in panels(train, plan, TILE_N, crew):
                parts = list(ranges(query_panel.start, query_panel.stop, TILE_Q))
                crew.each(_fill, repeat(plan), repeat(train_panel), repeat(query_panel), parts, repeat(scores_qn))
    return scores_qn.T


def _fill(plan: Plan, train: Panel, query: Panel, q: slice, scores_qn: Floats) -> None:
    space = np.empty((TILE_N, q.stop - q.start), np.float32)
    for n in ranges(train.start, train.stop, TILE_N):
        tile_nq = space[: n.stop - n.start]
        score_tile(train, query, n, q, tile_nq)
        if plan.correlation != "covariance":
            tile_nq.clip(-1, 1, out=tile_nq)
        scores_qn[q, n] = tile_nq.T  # while the tile is in cache
