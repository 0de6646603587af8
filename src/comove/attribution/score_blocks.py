"""CLD scores larger than memory: blocks of training examples and queries as independent jobs, written as they come.

The same bits as :class:`comove.attribution.CLD` gives in memory, whatever executor computes them: what depends on all
training examples (the order of summation, common mode, row scaling) is taken once, and blocks begin where the tiles of
:func:`comove.correlation.pairwise` do. Until all blocks are there they lie in a folder beside the file,
``NAME.partial``::

    manifest.json    what is being computed, from what, in which blocks; another computation is refused
    values           the file to be; its head is empty until the end, so that nothing opens it
    done.json        the numbers of the blocks that are safely on disk, each with its CRC-32

A block counts as done after it was flushed to disk, so whatever ends the process costs only the blocks in its hands.
When the computation goes on, and at its end, the blocks are read again: one that has changed is computed anew.

Shape legend: T+1 rows, N train, Q queries; n, q those of one block; R runs.
"""

from __future__ import annotations

import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from comove.attribution.cld import CLD
from comove.attribution.scores import PAGE, VALUES, Ranking, Scores, scores_layout, stored_width
from comove.correlation import constant, top_k
from comove.correlation.inputs import one_side, sides
from comove.correlation.pairs import fill
from comove.correlation.sizes import TILE
from comove.correlation.standardise import Plan, plan_for
from comove.correlation.workers import plain_products, product_workers
from comove.data import ExampleSet, IdIndex, Ids
from comove.errors import CorruptFileError, InputError, StorageError
from comove.jobs import Executor, run_jobs
from comove.store import (
    check_file,
    claim_cache,
    digest,
    new_folder,
    read_header,
    read_json,
    set_aside,
    write_json,
)
from comove.store.arrays import as_bytes
from comove.store.checksums import BlockSums
from comove.store.documents import fits
from comove.store.lock import driver_lock
from comove.training.sources import SourceLike

__all__ = ["Block", "PartialScores", "blocks_of", "top_in_blocks", "write_scores_in_blocks"]

FORMAT_VERSION = 2
BLOCK_BYTES = 256 << 20
"""Bytes of scores computed, sent and written at a time; a worker holds one such block, its driver up to three."""
TILE_N, TILE_Q = TILE["cpu"]
WIDEST = 16384 // TILE_Q * TILE_Q
"""Queries of a block at most: the losses of its training examples are sent once for all of them."""
_SLACK = 16 << 10
"""Bytes kept free in the file's head for what is not known before the last block."""
Floats = npt.NDArray[np.float32]


class Block(NamedTuple):
    """A rectangle of scores: training examples ``n0`` to ``n1``, queries ``q0`` to ``q1``."""

    n0: int
    n1: int
    q0: int
    q1: int


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
    if _is_finished(target, _fingerprint(problem.arrays, problem.header, made_from)):
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
        One ranking per query, the very one that :meth:`Scores.top` gives.

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
        method.product,
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


def prepare(train_losses: Any, *, correlation: str, common_mode: str, row_scaling: str) -> Plan:
    """Take from all training losses (T+1, N), read a block at a time, what every block needs."""
    with plain_products():
        return plan_for(one_side(train_losses, "train ", None, None), correlation, common_mode, row_scaling)


def score_block(plan: Plan, train_losses: Floats, query_losses: Floats) -> Floats:
    """The scores (n, q) of a block that begins at multiples of the tiles, laid out query by query as in the file."""
    train, query = sides(train_losses, query_losses, None, None)
    scores_qn = np.empty((query.columns, train.columns), np.float32)
    with product_workers() as crew:
        fill(train, query, plan, scores_qn.T, crew)
    return scores_qn.T


# --- the file to be ---------------------------------------------------------------------------------------------------


class PartialScores:
    """The scores of one computation while their blocks come in; :meth:`finish` makes them a file.

    Blocks are read and written within a ``with`` block, which one process at a time may enter.

    Args:
        path: the file to be.
        arrays: ``train_ids``, ``query_ids`` and, where known, ``train_labels`` and ``query_labels``.
        header: ``method``, ``classes`` and ``info`` as far as it is known (JSON values).
        made_from: what the scores depend on besides (JSON values), compared when an interrupted computation goes on.
        blocks: a partition of the N x Q scores.

    Raises:
        FingerprintError: ``NAME.partial`` holds another computation.
        StorageError: the folder cannot be written to; on entering, that there is not enough room.
        LockedError: on entering, that another process is in it.
    """

    def __init__(
        self,
        path: Path,
        arrays: Mapping[str, npt.NDArray[Any]],
        header: Mapping[str, Any],
        made_from: Mapping[str, Any],
        blocks: Sequence[Block],
    ) -> None:
        self.path, self.folder = path, partial_folder(path)
        self.blocks = blocks
        self._arrays, self._header = dict(arrays), {**header, "made_from": _fingerprint(arrays, header, made_from)}
        layout = scores_layout(self._arrays, self._header)
        begin = layout.offsets[VALUES] + _SLACK  # the scores begin on a page of their own
        self._layout = scores_layout(self._arrays, self._header, None, len(layout.head) + _SLACK + -begin % PAGE)
        new_folder(self.folder)
        content = {**header, **made_from, "ids": digest(*arrays.values()), "blocks": digest({"": list(blocks)})}
        claim_cache(self.folder, "partial scores", FORMAT_VERSION, content)
        self._file = self.folder / "values"
        self._done: dict[int, int] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(driver_lock(self.folder))
            self._done = self._read_done()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _read_done(self) -> dict[int, int]:
        """The CRC-32 of each block that is done, and still is what was written."""
        book = self.folder / "done.json"
        if not book.exists():
            self._reserve()
            return {}
        try:
            done = self._book(book)
        except CorruptFileError as error:
            warnings.warn(f"{error} All blocks of {self.path} are computed again.", stacklevel=4)
            set_aside(book)
            self._reserve()
            return {}
        changed = done.keys() & self._summed(done)[1]
        if changed:
            warnings.warn(
                f"{len(changed)} blocks in {self._file} have changed since they were written: they are computed again.",
                stacklevel=4,
            )
        return {index: crc for index, crc in done.items() if index not in changed}

    def _book(self, book: Path) -> dict[int, int]:
        """What ``done.json`` says, beside a file of the right size."""
        done = read_json(book).get("done")
        known = {str(index): index for index in range(len(self.blocks))}
        if not isinstance(done, dict) or not done.keys() <= known.keys() or not fits([*done.values()], list[int]):
            raise CorruptFileError(f"{book} does not say which blocks are done.")
        size = self._file.stat().st_size if self._file.exists() else 0
        if size != self._layout.size:
            raise CorruptFileError(f"{self._file} has {size} bytes, not {self._layout.size}.")
        return {known[name]: crc for name, crc in done.items()}

    def _summed(self, done: Mapping[int, int]) -> tuple[BlockSums, list[int]]:
        """Read all scores once: the sums of the file, and the numbers of the blocks that are not those in ``done``."""
        width = stored_width(self._arrays["train_ids"].size)
        sums, found = BlockSums(), dict.fromkeys(range(len(self.blocks)), 0)
        stripes: dict[tuple[int, int], list[int]] = {}
        for index, block in enumerate(self.blocks):
            stripes.setdefault((block.q0, block.q1), []).append(index)
        shape = (self._arrays["query_ids"].size, 4 * width)
        values = np.memmap(self._file, np.uint8, "r", self._layout.offsets[VALUES], shape)
        for (q0, q1), members in sorted(stripes.items()):
            for row in values[q0:q1]:
                content = row.data
                sums.add(content)
                for index in members:
                    block = self.blocks[index]
                    found[index] = zlib.crc32(content[4 * block.n0 : 4 * block.n1], found[index])
        return sums, [index for index, crc in found.items() if done.get(index) != crc]

    def _reserve(self) -> None:
        """Take all the room at once: better no disk space now than after hours of work."""
        if self._file.is_dir():
            set_aside(self._file)
        try:
            with self._file.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self._layout.size)
                else:
                    file.truncate(self._layout.size)
        except OSError as error:
            self._file.unlink(missing_ok=True)
            needed, free = self._layout.size / 1e9, shutil.disk_usage(self.folder).free / 1e9
            raise StorageError(
                f"The scores take {needed:.3f} GB in {self.path.parent}, where {free:.3f} GB are free "
                f"({error.strerror}). Nothing was computed; free some space, choose another folder, ask for fewer "
                "queries, or for the best k of each (top_in_blocks)."
            ) from error

    @property
    def pending(self) -> list[int]:
        """Numbers of the blocks that are not on disk yet."""
        return [index for index in range(len(self.blocks)) if index not in self._done]

    def write(self, index: int, values_NQ: npt.NDArray[np.float32]) -> None:
        """Put a block where it belongs and flush it to disk.

        Raises:
            InputError: another shape than the block's.
            StorageError: the system refused; the blocks before are safe.
        """
        block = self.blocks[index]
        if values_NQ.shape != (block.n1 - block.n0, block.q1 - block.q0):
            raise InputError(f"Block {index} is {block}, its scores have shape {values_NQ.shape}.")
        values_QN = np.ascontiguousarray(values_NQ.T, dtype=np.float32)
        width, begin = stored_width(self._arrays["train_ids"].size), self._layout.offsets[VALUES]
        # Not through a memory map: a disk that is full would then end the process with a signal.
        starts = (begin + 4 * (query * width + block.n0) for query in range(block.q0, block.q1))
        self._write_at({start: as_bytes(row_N) for start, row_N in zip(starts, values_QN, strict=True)})
        self._done[index] = zlib.crc32(as_bytes(values_QN))
        self._note_done()

    def _note_done(self) -> None:
        write_json(self.folder / "done.json", {"done": {str(index): self._done[index] for index in sorted(self._done)}})

    def _write_at(self, parts: Mapping[int, memoryview]) -> None:
        try:
            with self._file.open("r+b") as file:
                for start, content in parts.items():
                    written = 0
                    while written < len(content):
                        written += os.pwrite(file.fileno(), content[written:], start + written)
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"Could not write to {self._file}: {error.strerror}. The {len(self._done)} of {len(self.blocks)} "
                "blocks before are safe; run the same command again to go on."
            ) from error

    def finish(self, info: Mapping[str, Any]) -> None:
        """Make the blocks a file of scores, with ``info`` beside what was known before, and remove the folder.

        Raises:
            InputError: blocks are missing, or ``info`` is longer than the room kept for it.
            CorruptFileError: blocks have changed since they were written; the same call computes them again.
            StorageError: it cannot be written.
        """
        if self.pending:
            raise InputError(f"{len(self.pending)} of {len(self.blocks)} blocks are missing; compute them first.")
        header = {**self._header, "info": {**self._header["info"], **info}}
        sums, changed = self._summed(self._done)
        if changed:
            self._done = {index: crc for index, crc in self._done.items() if index not in changed}
            self._note_done()
            raise CorruptFileError(
                f"{len(changed)} blocks in {self._file} have changed since they were written; run the same command "
                "again to compute them anew."
            )
        layout = scores_layout(self._arrays, header, str(sums), len(self._layout.head))
        if layout.offsets != self._layout.offsets:
            raise InputError(f"info must be shorter than {_SLACK} bytes: keep it to options and counts.")
        self._write_at({layout.offsets[name]: as_bytes(array) for name, array in self._arrays.items()})
        self._write_at({0: memoryview(layout.head)})
        self._file.replace(self.path)
        shutil.rmtree(self.folder, ignore_errors=True)


def partial_folder(path: Path) -> Path:
    """Return the folder where the scores that will be ``path`` are made."""
    return path.with_name(path.name + ".partial")


def _fingerprint(
    arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any], made_from: Mapping[str, Any]
) -> str:
    """Return what identifies a computation of scores; the blocks do not count."""
    return digest(*arrays.values(), dict(header), dict(made_from))


def _is_finished(path: Path, made_from: str) -> bool:
    """Whether ``path`` holds the scores of this computation; a damaged file is set aside, with a warning.

    Raises:
        InputError: it holds something else.
    """
    if not path.exists():
        return False
    try:
        check_file(path)
    except CorruptFileError as error:
        warnings.warn(f"{error} It is set aside as {set_aside(path)}, and computed again.", stacklevel=3)
        return False
    if read_header(path)[1].get("made_from") != made_from:
        raise InputError(f"{path} holds other scores; choose another file, or delete this one.")
    shutil.rmtree(partial_folder(path), ignore_errors=True)
    return True
