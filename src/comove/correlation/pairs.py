"""All scores: into one array, or handed out block by block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch

from comove.correlation.inputs import ArrayLike, Side, output, sides
from comove.correlation.product import Panel, panels, score_tile, tile_of
from comove.correlation.standardise import CommonMode, Correlation, Plan, RowScaling, Series, plan_for, ranges
from comove.correlation.workers import Workers, plain_products, workers
from comove.errors import InputError, InputTypeError

__all__ = ["blocks", "fill", "pairwise"]

_Tile = tuple[Panel, Panel, slice, slice]


def pairwise(
    train_losses: ArrayLike,
    query_losses: ArrayLike,
    *,
    correlation: Correlation = "pearson",
    common_mode: CommonMode = "keep",
    row_scaling: RowScaling = "none",
    of: Series = "differences",
    out: Any = None,
    train_ids: ArrayLike | None = None,
    query_ids: ArrayLike | None = None,
) -> Any:
    """Score every training example against every query by the correlation of their loss differences (CLD, eq. 64).

    A pair scores high when the two losses rise and fall together from one recorded row to the next. A column whose
    differences do not vary says nothing and scores exactly 0 everywhere (count such columns with :func:`constant`).

    Args:
        train_losses: (T+1, N) losses, row 0 before training; any real dtype; never changed.
        query_losses: (T+1, Q) losses recorded at the same moments.
        correlation: ``"pearson"`` (the paper's); ``"spearman"``, Pearson of the ranks over time; or ``"covariance"``,
            the sample covariance (divided by T-1) in squared loss units, which lets large movements count for more.
        common_mode: ``"remove"`` projects the mean training trajectory out of every column first, so that what all
            examples share (all losses fall early on) does not count: a partial correlation.
        row_scaling: ``"rms"`` first divides each row of differences by its root mean square over the training
            examples, so that early, violent rows do not drown the late ones.
        of: what is correlated: ``"differences"`` from each row to the next (CLD), or the ``"values"`` themselves, for
            rows that are independent draws (:class:`comove.attribution.BayesianInfluence`).
        out: (N, Q) float32 array to fill block by block and return, a memory map included; for torch input, a tensor.
        train_ids: (N,) integer ids, used to name an example in an error message.
        query_ids: (Q,) integer ids, likewise.

    Returns:
        (N, Q) float32 scores, correlations within [-1, 1]; torch, on the same device, if the losses were torch.
        Besides it, memory stays below about 0.5 GB whatever N and Q.

    Raises:
        InputError: Fewer than three rows, unequal row counts, an unknown option, a wrong ``out``.
        InputTypeError: Losses that are not real numbers.
        NonFiniteError: A NaN or infinite loss; the message names side, row and example.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64.

    Example:
        >>> train = [[2.0, 2.0, 1.0], [1.5, 1.9, 1.0], [1.2, 1.6, 1.0], [1.1, 1.1, 1.0]]
        >>> query = [[2.0], [1.4], [1.0], [0.8]]
        >>> pairwise(train, query).round(3).tolist()
        [[1.0], [-1.0], [0.0]]
    """
    train, query = sides(train_losses, query_losses, train_ids, query_ids)
    with plain_products():
        plan = plan_for(train, correlation, common_mode, row_scaling, of)
    scores_NQ = output(out, train, query)
    flat = scores_NQ.numpy() if isinstance(scores_NQ, torch.Tensor) and train.xp is np else scores_NQ

    with plain_products(), workers(train) as crew:
        fill(train, query, plan, flat, crew)
    return scores_NQ if out is None else out


def fill(train: Side, query: Side, plan: Plan, out: Any, crew: Workers) -> None:
    """Fill ``out`` (N, Q), laid out in either order, with the scores of these columns by a plan made before."""

    def work(tiles: list[_Tile], part: slice) -> None:
        space = _space(train, query)
        for tile in tiles[part]:
            _score(tile, plan, space, out[tile[2], tile[3]])

    for tiles in _tiles(train, query, plan, crew):
        crew.each(work, repeat(tiles), ranges(0, len(tiles), 1 + len(tiles) // (8 * crew.number)))


def blocks(
    train_losses: ArrayLike,
    query_losses: ArrayLike,
    *,
    start: int = 0,
    stop: int | None = None,
    correlation: Correlation = "pearson",
    common_mode: CommonMode = "keep",
    row_scaling: RowScaling = "none",
    train_ids: ArrayLike | None = None,
    query_ids: ArrayLike | None = None,
) -> Iterator[tuple[slice, slice, Any]]:
    """Hand out the scores of :func:`pairwise`, bit for bit, at most 1,024 x 512 at a time (x 16,384 on a GPU).

    For scores that fit nowhere in memory: write each block where it belongs, or keep what matters of it. Training
    examples ``start`` to ``stop`` alone can be asked for, as a job of its own; what the options learn from the training
    side (its mean, the scale of its rows) they still learn from all of it.

    Args:
        train_losses: (T+1, N) losses, as in :func:`pairwise`; all of them, whatever ``start`` and ``stop``.
        query_losses: (T+1, Q) losses recorded at the same moments.
        start: The first training example asked for.
        stop: One past the last; ``None`` for N.
        correlation: As in :func:`pairwise`.
        common_mode: As in :func:`pairwise`.
        row_scaling: As in :func:`pairwise`.
        train_ids: (N,) integer ids, used to name an example in an error message.
        query_ids: (Q,) integer ids, likewise.

    Yields:
        Which training examples, which queries, and their scores, float32: each pair once, in a fixed order (for each
        set of training examples all queries, unless the queries are too many for one panel of unit columns). The
        scores are overwritten by the next blocks: copy what is to stay.

    Raises:
        InputError: A range that does not lie within the training examples, or as in :func:`pairwise`.
        InputTypeError: As in :func:`pairwise`.
        NonFiniteError: As in :func:`pairwise`.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64.

    Example:
        >>> train = [[2.0, 2.0, 1.0], [1.5, 1.9, 1.0], [1.2, 1.6, 1.0], [1.1, 1.1, 1.0]]
        >>> for n, q, scores in blocks(train, [[2.0], [1.4], [1.0], [0.8]], start=1):
        ...     n, q, scores.round(3).tolist()
        (slice(1, 3, None), slice(0, 1, None), [[-1.0], [0.0]])
    """
    train, query = sides(train_losses, query_losses, train_ids, query_ids)
    stop = train.columns if stop is None else stop
    _check_range(start, stop, train.columns)
    with plain_products():
        plan = plan_for(train, correlation, common_mode, row_scaling)
    return _blocks(train, query, plan, start, stop)


def _check_range(start: int, stop: int, columns: int) -> None:
    if not all(isinstance(end, int | np.integer) and not isinstance(end, bool) for end in (start, stop)):
        raise InputTypeError(f"start and stop must be integers; found {start!r} and {stop!r}.")
    if not 0 <= start < stop <= columns:
        raise InputError(
            f"start and stop must name a range of the {columns} training examples, 0 <= start < stop <= {columns}; "
            f"found {start} and {stop}."
        )


def _blocks(train: Side, query: Side, plan: Plan, start: int, stop: int) -> Iterator[tuple[slice, slice, Any]]:
    with workers(train) as crew:
        space = [_space(train, query) for _ in range(crew.number)]
        for tiles in _tiles(train, query, plan, crew, start, stop):
            for wave in crew.waves(tiles):
                with plain_products():
                    filled = crew.each(_score, wave, repeat(plan), space)
                for (_, _, n, q), scores_NQ in zip(wave, filled, strict=True):
                    asked = slice(max(n.start, start), min(n.stop, stop))
                    yield asked, q, train.result(scores_NQ[asked.start - n.start : asked.stop - n.start])


def _space(train: Side, query: Side) -> Any:
    tile_n, tile_q = tile_of(train)
    shape = min(tile_n, train.columns) * min(tile_q, query.columns)
    return np.empty(shape, np.float32) if train.xp is np else torch.empty(shape, device=train.device)


def _score(tile: _Tile, plan: Plan, space: Any, out: Any = None) -> Any:
    """Fill ``out``, or ``space``: the product stays in cache until it is clipped, then memory is written once."""
    rows, columns = tile[2].stop - tile[2].start, tile[3].stop - tile[3].start
    scores_NQ = space[: rows * columns].reshape(rows, columns)
    score_tile(*tile, scores_NQ)
    limit = np.inf if plan.correlation == "covariance" else 1.0
    xp = np if isinstance(space, np.ndarray) else torch
    if isinstance(out, np.ndarray) and out.strides[0] < out.strides[1]:  # query by query: clipping across is slow
        out[...] = scores_NQ.clip(-limit, limit, out=scores_NQ)
        return out
    return xp.clip(scores_NQ, -limit, limit, out=scores_NQ if out is None else out)


def _tiles(
    train: Side, query: Side, plan: Plan, crew: Workers, start: int = 0, stop: int | None = None
) -> Iterator[list[_Tile]]:
    """The tiles of each pair of panels: what can be computed with no more than these in memory."""
    tile_n, tile_q = tile_of(train)
    for query_panel in panels(query, plan, tile_q, crew):
        for train_panel in panels(train, plan, tile_n, crew, start, stop):
            yield [
                (train_panel, query_panel, n, q)
                for n in ranges(train_panel.start, train_panel.stop, tile_n)
                for q in ranges(query_panel.start, query_panel.stop, tile_q)
            ]
