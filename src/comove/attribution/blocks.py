"""CLD scores larger than memory: blocks of training examples and queries as independent jobs, written as they come.

The same bits as :class:`comove.attribution.CLD` gives in memory, whatever executor computes them: what depends on all
training examples (the order of summation, common mode, row scaling) is taken once, and blocks begin where the tiles of
:func:`comove.correlation.pairwise` do.

Shape legend: T+1 rows, N train, Q queries; n, q those of one block; R runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.attribution.cld import CLD
from comove.attribution.partial_scores import Block, PartialScores, fingerprint, is_finished
from comove.attribution.scores import Ranking, Scores
from comove.attribution.scores_file import PAGE
from comove.attribution.tiles import TILE_N, TILE_Q, Plan, prepare, score_block
from comove.correlation import constant, top_k
from comove.data import ExampleSet, IdIndex, Ids
from comove.errors import InputError
from comove.jobs import Executor, run_jobs
from comove.store import digest, new_folder
from comove.training.sources import SourceLike

__all__ = ["BLOCK_BYTES", "blocks_of", "top_in_blocks", "write_scores_in_blocks"]

BLOCK_BYTES = 256 << 20
"""Bytes of scores computed, sent and written at a time; a worker holds one such block, its driver up to three."""
WIDEST = 16384 // TILE_Q * TILE_Q  # queries of a block: the losses of its training examples are sent once for all
Floats = npt.NDArray[np.float32]


def blocks_of(n: int, q: int, rows: int, block_bytes: int = BLOCK_BYTES) -> list[Block]:
    """Cut N x Q scores into blocks that begin at multiples of the tiles.

    Neither their scores nor the ``rows`` of losses they come from take more than ``block_bytes``.

    Raises:
        InputError: ``block_bytes`` is too small for one tile.
    """
    wide = min(q, WIDEST)
    page = max(TILE_N, PAGE // 4)  # blocks are whole pages of the file
    high = block_bytes // (4 * max(wide, rows)) // page * page
    if high == 0:
        least = 4 * page * max(wide, rows)
        raise InputError(
            f"block_bytes must be at least {least:,} for {q:,} queries and {rows:,} rows, got {block_bytes:,}."
        )
    corners = [(n0, q0) for n0 in range(0, n, high) for q0 in range(0, q, wide)]
    return [Block(n0, min(n, n0 + high), q0, min(q, q0 + wide)) for n0, q0 in corners]


def write_scores_in_blocks(
    path: str | os.PathLike[str],
    method: CLD,
    sources: SourceLike | Sequence[SourceLike],
    queries: ExampleSet | Sequence[int] | Ids | int | None = None,
    *,
    executor: Executor | str = "local",
    block_bytes: int = BLOCK_BYTES,
    progress: bool = False,
) -> Scores:
    """Compute CLD scores block by block into a file, wherever the executor runs the blocks, and open it.

    Neither the losses (of traces on disk) nor the scores are ever whole in memory. What interrupts it costs the blocks
    in work: the same call goes on with those that are missing in ``PATH.partial``, and returns the finished file when
    none is. Workers need no access to the files: losses travel with the jobs, scores with their results.

    Args:
        path: the file to write; its folder must have room for N x Q x 4 bytes, which are taken at once.
        method: with its options.
        sources: a run or a trace, or several of the same training examples (their scores are averaged).
        queries: as of :meth:`comove.attribution.Attributor.attribute`.
        executor: an :class:`comove.jobs.Executor`, or ``"serial"``, ``"local"``, ``"ray"``.
        block_bytes: size of a block's scores.
        progress: whether to show a bar.

    Returns:
        The scores, memory-mapped.

    Raises:
        InputError: unknown queries, ``path`` holds other scores, or as in :func:`comove.correlation.pairwise`.
        FingerprintError: ``PATH.partial`` holds another computation.
        StorageError: too little room (nothing is computed), or the disk fills up (what was written is kept).
        LockedError: another process computes these scores.
    """
    target = Path(path)
    new_folder(target.parent)
    problem = _problem(method, sources, queries)
    made_from, blocks = problem.made_from(), blocks_of(*problem.shape, problem.rows, block_bytes)
    if is_finished(target, fingerprint(problem.arrays, problem.header, made_from)):
        return Scores.load(target)
    with PartialScores(target, problem.arrays, problem.header, made_from, blocks) as partial:
        plans = tuple(prepare(train, **problem.options) for train in problem.train_losses)
        run_jobs(
            [_Job(index, blocks[index], problem.train_losses) for index in partial.pending],
            _set_up,
            (plans, problem.query_losses),
            lambda job, values_nq: partial.write(job.index, values_nq),
            executor=executor,
            description="blocks of scores",
            progress=progress,
        )
        partial.finish(problem.counts())
    return Scores.load(target)


def top_in_blocks(
    method: CLD,
    sources: SourceLike | Sequence[SourceLike],
    k: int,
    queries: ExampleSet | Sequence[int] | Ids | int | None = None,
) -> list[Ranking]:
    """Return the k training examples with the highest CLD scores for each query, without the N x Q scores anywhere.

    Args:
        method: with its options.
        sources: one run or trace.
        k: how many, at most N.
        queries: as of :meth:`comove.attribution.Attributor.attribute`.

    Returns:
        One ranking a query, the very one that :meth:`Scores.top` gives.

    Raises:
        InputError: several runs (average them by :func:`write_scores_in_blocks`), unknown queries, ``k`` out of range.
    """
    problem = _problem(method, sources, queries)
    if len(problem.train_losses) != 1:
        raise InputError(
            f"The best of {len(problem.train_losses)} runs' mean scores cannot be found without these scores: use "
            "write_scores_in_blocks and Scores.top, or one run."
        )
    train_ids, labels = problem.arrays["train_ids"], problem.arrays.get("train_labels")
    losses = problem.train_losses[0], problem.query_losses[0]
    ids_QK, scores_QK = top_k(*losses, k, **{**problem.options, "train_ids": train_ids})
    index = IdIndex(train_ids, "train ids")
    classes = problem.header["classes"]
    return [
        Ranking(ids_K, scores_K, None if labels is None else labels[index.positions(ids_K)], query, classes)
        for query, ids_K, scores_K in zip(problem.arrays["query_ids"].tolist(), ids_QK, scores_QK, strict=True)
    ]


# --- what is computed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """Losses of R runs, (T+1, N) where they lie and (T+1, Q), and what is said about the scores."""

    train_losses: tuple[Any, ...]
    query_losses: tuple[Floats, ...]
    options: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    header: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.arrays["train_ids"].size, self.arrays["query_ids"].size

    @property
    def rows(self) -> int:
        return sum(int(losses.shape[0]) for losses in self.query_losses)

    def made_from(self) -> dict[str, Any]:
        """A fingerprint of the losses."""
        sides = (*self.train_losses, *self.query_losses)
        return {"losses": digest({"rows": [digest(side[row]) for side in sides for row in range(side.shape[0])]})}

    def counts(self) -> dict[str, int]:
        """How many columns do not vary, as the scores in memory note them."""
        sides = {"constant_train": self.train_losses, "constant_queries": self.query_losses}
        return {name: sum(int(constant(losses).sum()) for losses in several) for name, several in sides.items()}


def _problem(method: CLD, sources: Any, queries: Any) -> _Problem:
    """What CLD would compute, its losses still where they lie."""
    fitted = method.fit(sources)
    found, _ = fitted._require_fitted()
    wanted = fitted._queries(found, queries)
    losses = [fitted._losses(source, wanted) for source in found]
    first = found[0]
    arrays = {
        "train_ids": first.train_ids,
        "query_ids": wanted.ids,
        "train_labels": first.train_labels,
        "query_labels": wanted.labels,
    }
    return _Problem(
        tuple(train for train, _ in losses),
        tuple(query for _, query in losses),
        {option: getattr(method, option) for option in ("correlation", "common_mode", "row_scaling")},
        {name: array for name, array in arrays.items() if array is not None},
        {
            "method": method.label,
            "classes": first.classes,
            # Not the command: another command goes on with the same file.
            "info": {**method.options, "runs": len(found), "not_scored": 0, **first.noted},
        },
    )


# --- jobs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class _Job:
    """A block, and the training losses of every run in which its columns are; only these travel to a worker."""

    index: int
    block: Block
    train_losses: Sequence[Any]
    first: int = 0  # training example of the first column

    def losses(self) -> list[Floats]:
        """The block's training losses of every run: (T+1, n)."""
        columns = slice(self.block.n0 - self.first, self.block.n1 - self.first)
        return [np.ascontiguousarray(train[:, columns]) for train in self.train_losses]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Job, (self.index, self.block, self.losses(), self.block.n0)

    def __repr__(self) -> str:
        return f"block {self.index} ({self.block})"


def _set_up(payload: tuple[tuple[Plan, ...], tuple[Floats, ...]]) -> Callable[[_Job], Floats]:
    """In a worker: the function that computes the scores (n, q) of a job, as CLD does."""
    plans, query_losses = payload

    def scores(job: _Job) -> Floats:
        block, total_nq = job.block, None
        for plan, train, query in zip(plans, job.losses(), query_losses, strict=True):
            scores_nq = score_block(plan, train, query[:, block.q0 : block.q1])
            total_nq = scores_nq if total_nq is None else np.add(total_nq, scores_nq, out=total_nq)
        assert total_nq is not None
        total_nq /= np.float32(len(plans))
        return total_nq

    return scores
