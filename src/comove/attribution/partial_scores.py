"""Scores in the making: blocks are written where they belong, in any order; the file appears when all are there.

While they are made they lie in a folder beside the file, ``NAME.partial``::

    manifest.json    what is being computed, from what, in which blocks; another computation is refused
    values           the file to be; its head is empty until the end, so that nothing opens it
    done.json        the numbers of the blocks that are safely on disk, each with its CRC-32

A block counts as done after it was flushed to disk, so whatever ends the process costs only the blocks in its hands.
When the computation goes on, and at its end, the blocks are read again: one that has changed is computed anew.

Shape legend: N training examples, Q queries.
"""

from __future__ import annotations

import os
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from comove.attribution.scores_file import VALUES, scores_layout, stored_width
from comove.errors import CorruptFileError, InputError, StorageError
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

__all__ = ["Block", "PartialScores"]

FORMAT_VERSION = 2
_SLACK = 16 << 10


class Block(NamedTuple):
    """A rectangle of scores: training examples ``n0`` to ``n1``, queries ``q0`` to ``q1``."""

    n0: int
    n1: int
    q0: int
    q1: int


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
        self._arrays, self._header = dict(arrays), {**header, "made_from": fingerprint(arrays, header, made_from)}
        self._layout = scores_layout(self._arrays, self._header, slack=_SLACK)
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
        size = self._file.stat().st_size if self._file.exists() else 0
        try:
            done = read_json(book).get("done")
            known = {str(index): index for index in range(len(self.blocks))}
            if not isinstance(done, dict) or not done.keys() <= known.keys() or not fits([*done.values()], list[int]):
                raise CorruptFileError(f"{book} does not say which blocks are done.")
            if size != self._layout.size:
                raise CorruptFileError(f"{self._file} has {size} bytes, not {self._layout.size}.")
        except CorruptFileError as error:
            warnings.warn(f"{error} All blocks of {self.path} are computed again.", stacklevel=4)
            set_aside(book)
            self._reserve()
            return {}
        found = {known[name]: crc for name, crc in done.items()}
        changed = [index for index in self._summed(found)[1] if index in found]
        if changed:
            self._warn_of(changed, 4)
        return {index: crc for index, crc in found.items() if index not in changed}

    def _warn_of(self, changed: Sequence[int], stacklevel: int) -> None:
        warnings.warn(
            f"{len(changed)} blocks in {self._file} have changed since they were written: they are computed again.",
            stacklevel=stacklevel + 1,
        )

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
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, self._layout.size)
                else:
                    os.ftruncate(descriptor, self._layout.size)
            finally:
                os.close(descriptor)
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
            descriptor = os.open(self._file, os.O_RDWR)
            try:
                for start, content in parts.items():
                    written = 0
                    while written < len(content):
                        written += os.pwrite(descriptor, content[written:], start + written)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
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
        layout = scores_layout(self._arrays, header, str(sums), head_size=len(self._layout.head))
        if layout.offsets != self._layout.offsets:
            raise InputError(f"info must be shorter than {_SLACK} bytes: keep it to options and counts.")
        self._write_at({layout.offsets[name]: as_bytes(array) for name, array in self._arrays.items()})
        self._write_at({0: memoryview(layout.head)})
        self._file.replace(self.path)
        shutil.rmtree(self.folder, ignore_errors=True)


def partial_folder(path: Path) -> Path:
    """Return the folder where the scores that will be ``path`` are made."""
    return path.with_name(path.name + ".partial")


def fingerprint(arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any], made_from: Mapping[str, Any]) -> str:
    """Return what tells one computation of scores from another; the blocks do not count."""
    return digest(*arrays.values(), dict(header), dict(made_from))


def is_finished(path: Path, made_from: str) -> bool:
    """Tell whether ``path`` holds the scores of this computation; a damaged file is set aside, with a warning.

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
