"""Scores on disk: one safetensors file, one query after another, so that a query's scores are read and no others.

``values_QN`` holds (Q, S) float32, where S is N, rounded up to whole pages where N is large; what lies beyond N means
nothing. Files of the first format hold ``values`` (N, Q) instead.

Shape legend: N training examples, Q queries, S stored columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError
from comove.store import check_kind, map_array, new_folder, read_arrays, read_header
from comove.store.arrays import Layout, as_bytes, lay_out
from comove.store.files import write_all, writing

__all__ = ["FORMAT_VERSION", "is_mapped", "open_scores", "scores_layout", "stored_width", "write_scores"]

FORMAT_VERSION = 2
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
    arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any], *, slack: int = 0, head_size: int = 0
) -> Layout:
    """Lay out a file of scores.

    Args:
        arrays: ids and labels.
        header: method, classes, info.
        slack: bytes to keep free in the head for what is not known yet; the scores then begin on a page of their own.
        head_size: bytes to keep for the head, where it is known.
    """
    n, q = arrays["train_ids"].size, arrays["query_ids"].size
    shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        name: (array.dtype, array.shape) for name, array in arrays.items()
    }
    shapes[VALUES] = (np.dtype(np.float32), (q, stored_width(n)))
    metadata = {"kind": "comove/scores", "format_version": FORMAT_VERSION, **header}
    layout = lay_out(shapes, metadata, head_size=head_size)
    if not slack:
        return layout
    begin = layout.offsets[VALUES] + slack
    return lay_out(shapes, metadata, head_size=len(layout.head) + slack + -begin % PAGE)


def write_scores(
    path: Path, values_NQ: npt.NDArray[np.float32], arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]
) -> None:
    """Write a file of scores atomically, some queries at a time, never a copy of them all.

    Raises:
        StorageError: it cannot be written; what was there before is untouched.
    """
    new_folder(path.parent)
    layout = scores_layout(arrays, header)
    with writing(path) as file:
        write_all(file, layout.head)
        for name in layout.offsets:
            if name == VALUES:
                for piece_QS in _pieces(values_NQ):
                    write_all(file, as_bytes(piece_QS))
            else:
                write_all(file, as_bytes(arrays[name]))


def _pieces(values_NQ: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    n, q = values_NQ.shape
    width = stored_width(n)
    queries = max(1, _PIECE // (4 * max(1, width)))
    for start in range(0, q, queries):
        piece_NQ = values_NQ[:, start : start + queries]
        stored_QS = np.zeros((piece_NQ.shape[1], width), np.float32)
        stored_QS[:, :n] = piece_NQ.T
        yield stored_QS


def open_scores(path: Path) -> dict[str, Any]:
    """Open a file of scores of either format, its values memory-mapped, as arguments of a ``Scores``.

    Raises:
        CorruptFileError: the file is missing, truncated or not scores.
    """
    names, header = read_header(path)
    check_kind(header, "scores", FORMAT_VERSION, path)
    first = header["format_version"] == 1
    values = "values" if first else VALUES
    absent = {values, "train_ids", "query_ids"} - set(names)
    if absent or "method" not in header:
        raise CorruptFileError(
            f"{path} lacks {', '.join(sorted(absent)) or 'the method'}; restore it or make it again."
        )
    arrays: dict[str, Any] = read_arrays(path, [name for name in names if name != values])
    stored = map_array(path, values)
    n, q = arrays["train_ids"].size, arrays["query_ids"].size
    if stored.dtype != np.float32 or stored.shape != ((n, q) if first else (q, stored_width(n))):
        raise CorruptFileError(f"{path} holds {stored.dtype} scores of shape {stored.shape} for {n} x {q} ids.")
    classes = header.get("classes")
    return {
        **{name: arrays.get(name) for name in ("train_ids", "query_ids", "train_labels", "query_labels")},
        "values": stored if first else stored.T[:n],
        "method": header["method"],
        "classes": None if classes is None else tuple(classes),
        "info": header.get("info", {}),
    }


def is_mapped(array: npt.NDArray[Any]) -> bool:
    """Whether an array's memory is a file's: looking at all of it would read the file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False
