"""Scores on disk: one safetensors file, one query after another, so that a query's scores are read and no others.

``values_QN`` holds (Q, S) float32, where S is N, rounded up to whole pages where N is large; what lies beyond N means
nothing. Files of the first format hold ``values`` (N, Q) instead, those of the first two have no checksums.

Shape legend: N training examples, Q queries, S stored columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError
from comove.store import StoredArray, check_kind, entries, new_folder, open_array, read_arrays, read_header
from comove.store.arrays import Layout, as_bytes, lay_out
from comove.store.checksums import BlockSums, block_sums
from comove.store.files import write_all, writing

__all__ = ["FORMAT_VERSION", "StoredScores", "open_scores", "scores_layout", "stored_width", "write_scores"]

FORMAT_VERSION = 3
VALUES = "values_QN"
PAGE = 4096
_PIECE = 64 << 20
"""Bytes of scores turned and written at a time."""
_WIDE = 65_536
"""From so many training examples on, a query's scores begin on a page of their own, so that blocks are whole pages."""


def stored_width(n: int) -> int:
    """Return S, the columns stored for ``n`` training examples."""
    page = PAGE // 4
    return n if n < _WIDE else -(-n // page) * page


def scores_layout(
    arrays: Mapping[str, npt.NDArray[Any]],
    header: Mapping[str, Any],
    sums: str | None = None,
    *,
    slack: int = 0,
    head_size: int = 0,
) -> Layout:
    """Lay out a file of scores.

    Args:
        arrays: ids and labels.
        header: method, classes, info.
        sums: of the scores' blocks, once they are known.
        slack: bytes to keep free in the head for what is not known yet; the scores then begin on a page of their own.
        head_size: bytes to keep for the head, where it is known.
    """
    n, q = arrays["train_ids"].size, arrays["query_ids"].size
    shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        name: (array.dtype, array.shape) for name, array in arrays.items()
    }
    shapes[VALUES] = (np.dtype(np.float32), (q, stored_width(n)))
    metadata = {"kind": "comove/scores", "format_version": FORMAT_VERSION, **header}
    known = {name: block_sums(as_bytes(array)) for name, array in arrays.items()}
    known |= {} if sums is None else {VALUES: sums}
    layout = lay_out(shapes, metadata, known, head_size=head_size)
    if not slack:
        return layout
    begin = layout.offsets[VALUES] + slack
    return lay_out(shapes, metadata, known, head_size=len(layout.head) + slack + -begin % PAGE)


def write_scores(
    path: Path, values_NQ: npt.NDArray[np.float32], arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]
) -> None:
    """Write a file of scores atomically, some queries at a time, never a copy of them all.

    Raises:
        StorageError: it cannot be written; what was there before is untouched.
    """
    new_folder(path.parent)
    layout, sums = scores_layout(arrays, header), BlockSums()
    with writing(path) as file:
        write_all(file, layout.head)
        for name in layout.offsets:
            for content in map(as_bytes, _pieces(values_NQ) if name == VALUES else [arrays[name]]):
                write_all(file, content)
                if name == VALUES:
                    sums.add(content)
        file.seek(0)
        write_all(file, scores_layout(arrays, header, str(sums)).head)


def _pieces(values_NQ: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    n, q = values_NQ.shape
    width = stored_width(n)
    queries = max(1, _PIECE // (4 * max(1, width)))
    for start in range(0, q, queries):
        piece_NQ = values_NQ[:, start : start + queries]
        stored_QS = np.zeros((piece_NQ.shape[1], width), np.float32)
        stored_QS[:, :n] = piece_NQ.T
        yield stored_QS


class StoredScores:
    """The scores in a file, (N, Q): of ``stored[rows, columns]`` what is asked for is read, and checked first.

    Attributes:
        shape: (N, Q).
    """

    def __init__(self, stored: StoredArray, n: int, first: bool) -> None:
        self._stored, self._n, self._first = stored, n, first
        self.shape = (n, stored.shape[1 if first else 0])

    def __getitem__(self, key: tuple[Any, Any]) -> npt.NDArray[np.float32]:
        """Some rows and columns: slices, or one or two arrays of places, of which every pair is taken."""
        rows, columns = key
        outer, inner = (rows, columns) if self._first else (columns, rows)
        if isinstance(inner, slice):
            inner = slice(*inner.indices(self._n)) if not self._first else inner
        elif not isinstance(outer, slice):
            outer = np.asarray(outer)[:, None]
        part = self._stored[outer, inner]
        return part if self._first else part.T

    def all(self) -> npt.NDArray[np.float32]:
        """All of them as a read-only memory map, once they are checked."""
        return self._stored.mapped() if self._first else self._stored.mapped().T[: self._n]


def open_scores(path: Path) -> dict[str, Any]:
    """Open a file of scores of any format, its values left where they are, as arguments of a ``Scores``.

    Raises:
        CorruptFileError: the file is missing, truncated, changed or not scores.
    """
    names, header = read_header(path)
    check_kind(header, "scores", FORMAT_VERSION, path)
    entries(header, path, {"method": str}, {"classes": list[str], "info": dict})
    first = header["format_version"] == 1
    values = "values" if first else VALUES
    absent = {values, "train_ids", "query_ids"} - set(names)
    if absent:
        raise CorruptFileError(f"{path} lacks {', '.join(sorted(absent))}; restore it or make it again.")
    arrays: dict[str, Any] = read_arrays(path, [name for name in names if name != values])
    stored = open_array(path, values)
    n, q = arrays["train_ids"].size, arrays["query_ids"].size
    if stored.dtype != np.float32 or stored.shape != ((n, q) if first else (q, stored_width(n))):
        raise CorruptFileError(f"{path} holds {stored.dtype} scores of shape {stored.shape} for {n} x {q} ids.")
    classes = header.get("classes")
    return {
        **{name: arrays.get(name) for name in ("train_ids", "query_ids", "train_labels", "query_labels")},
        "values": StoredScores(stored, n, first),
        "method": header["method"],
        "classes": None if classes is None else tuple(classes),
        "info": header.get("info") or {},
    }
