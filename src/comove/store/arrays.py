"""Array files: safetensors, read through memory maps, written without a copy in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from comove.errors import CorruptFileError, InputTypeError
from comove.store.files import write_all, writing
from comove.store.manifests import digest

__all__ = [
    "HEADER",
    "Layout",
    "as_bytes",
    "as_header",
    "lay_out",
    "map_array",
    "read_arrays",
    "read_checked",
    "read_header",
    "write_arrays",
    "write_checked",
]

HEADER = "comove"
_CODES = {"U64": "<u8", "I64": "<i8", "F64": "<f8", "F32": "<f4", "U32": "<u4", "I32": "<i4", "F16": "<f2"}
_CODES |= {"U16": "<u2", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}
"""Types in the order in which safetensors stores them."""


# --- writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where each array of a file lies.

    Attributes:
        head: what the file begins with.
        offsets: by name, where each array begins, in the order of the file.
        size: bytes of the whole file.
    """

    head: bytes
    offsets: Mapping[str, int]
    size: int


def lay_out(
    shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, Any], *, head_size: int = 0
) -> Layout:
    """Lay out a safetensors file as safetensors itself does.

    Args:
        shapes: type and shape of each array.
        metadata: JSON values for the header.
        head_size: bytes to keep for the head at least; blanks fill it up.

    Raises:
        InputTypeError: a type that safetensors has not.
    """
    codes = {np.dtype(kind): code for code, kind in _CODES.items()}
    unknown = [str(kind) for kind, _ in shapes.values() if kind.newbyteorder("<") not in codes]
    if unknown:
        raise InputTypeError(f"Arrays on disk hold numbers of {', '.join(_CODES)}; got {', '.join(unknown)}.")
    order = list(codes)
    names = sorted(shapes, key=lambda name: (order.index(shapes[name][0].newbyteorder("<")), name))
    entries: dict[str, Any] = {"__metadata__": as_header(metadata)}
    offsets, end = {}, 0
    for name in names:
        kind, shape = shapes[name]
        offsets[name], end = end, end + kind.itemsize * math.prod(shape)
        code = codes[kind.newbyteorder("<")]
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(max(len(text) + -len(text) % 8, head_size - 8))
    head = struct.pack("<Q", len(text)) + text
    return Layout(head, {name: len(head) + start for name, start in offsets.items()}, len(head) + end)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays to one safetensors file atomically, with ``metadata`` (JSON values) in its header.

    Raises:
        StorageError: it cannot be written; an earlier file is untouched.
        InputTypeError: an array of something else than numbers.
    """
    layout = lay_out({name: (array.dtype, array.shape) for name, array in arrays.items()}, metadata or {})
    with writing(path) as file:
        write_all(file, layout.head)
        for name in layout.offsets:
            write_all(file, as_bytes(arrays[name]))


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """The memory of an array in the order and byte order of a file; copied only where it is not so already."""
    stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(np.uint8).data


def write_checked(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write an array file as :func:`write_arrays` does, with checksums by which :func:`read_checked` knows it."""
    checksums = {name: digest(np.ascontiguousarray(array)) for name, array in arrays.items()}
    head = json.loads(json.dumps({**(metadata or {}), "checksums": checksums}))  # as it will be read back
    write_arrays(path, arrays, {**head, "checksum": digest(head)})


def as_header(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return ``metadata`` (JSON values) as the header of a safetensors file.

    It is one entry, since safetensors writes several in an order that changes from call to call: same content, same
    bytes.
    """
    return {HEADER: json.dumps(metadata)}


# --- reading -----------------------------------------------------------------------------------------------------


def _corrupt(path: Path, error: Exception) -> CorruptFileError:
    if not path.exists():
        return CorruptFileError(f"{path} does not exist; restore it, or run the command that made it again.")
    size = path.stat().st_size
    return CorruptFileError(
        f"{path} ({size} bytes) is truncated or not a safetensors file ({error}). "
        "If it is a result of a bank or a curve, delete it and run the same command again; a run's or a trace's file "
        "must be restored from a copy, or the run made again in a new folder."
    )


def read_header(path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the array names and the metadata of an array file without reading the arrays.

    Raises:
        CorruptFileError: the file is missing, truncated or foreign.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            entries = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return tuple(file.keys()), {**entries.pop(HEADER, {}), **entries}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise _corrupt(path, error) from error


def read_arrays(
    path: Path, names: Iterable[str] | None = None, columns: slice | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Read arrays (all, or ``names``) from a memory-mapped array file; only what is asked for is read.

    Args:
        path: the file.
        names: the arrays wanted; ``None`` for all.
        columns: a range of the first axis, to read a part; it may reach past the end, as in numpy.

    Raises:
        CorruptFileError: the file is missing, truncated or foreign, or lacks one of ``names``.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            wanted = list(file.keys()) if names is None else list(names)
            missing = set(wanted) - set(file.keys())
            if missing:
                raise CorruptFileError(f"{path} holds {sorted(file.keys())}, not {sorted(missing)}.")
            if columns is None:
                return {name: file.get_tensor(name) for name in wanted}
            return {name: _part(file.get_slice(name), columns) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from error


def map_array(path: Path, name: str) -> npt.NDArray[Any]:
    """Return one array of a file as a read-only memory map: what is never looked at is never read.

    Raises:
        CorruptFileError: the file is missing, truncated or foreign, or lacks the array.
    """
    try:
        with safe_open(path, framework="numpy"):  # checks that header and size fit together
            pass
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            entry = json.loads(file.read(size)).get(name)
        if entry is None or entry["dtype"] not in _CODES:
            raise CorruptFileError(f"{path} holds no array {name!r} that can be read.")
        kind, shape = np.dtype(_CODES[entry["dtype"]]), tuple(entry["shape"])
        if 0 in shape:
            return np.empty(shape, kind)
        return np.asarray(np.memmap(path, kind, "r", 8 + size + entry["data_offsets"][0], shape))
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, CorruptFileError):
            raise
        raise _corrupt(path, error) from error


def read_checked(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read arrays (all, or ``names``) and metadata of a file of :func:`write_checked`, and check that no bit changed.

    Raises:
        CorruptFileError: the file is missing, truncated, foreign or changed, or lacks one of ``names``.
    """
    _, header = read_header(path)
    checksum, checksums = header.pop("checksum", None), header.get("checksums")
    arrays = read_arrays(path, names)
    if not isinstance(checksums, dict) or checksum != digest(header):
        raise CorruptFileError(f"{path} was not written by this comove, or its header has changed since.")
    changed = [name for name, array in arrays.items() if checksums.get(name) != digest(array)]
    if changed:
        raise CorruptFileError(f"{path} has changed since it was written: {', '.join(changed)} has another checksum.")
    return arrays, {name: value for name, value in header.items() if name != "checksums"}


def _part(stored: Any, columns: slice) -> npt.NDArray[Any]:
    start, stop, step = columns.indices(stored.get_shape()[0])  # safetensors refuses what lies outside
    part: npt.NDArray[Any] = stored[start:stop] if start < stop else stored[:][:0]
    return part[::step]
