"""Array files: safetensors with checksums, read through memory maps, written without a copy in memory.

The header of a file is sealed (:mod:`comove.store.checksums`): no byte of it can change unnoticed. Within it stands a
CRC-32 of every 256 KiB of each array, so that a part of a large array is checked when that part is read.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.checks import check_text
from comove.errors import CorruptFileError, InputTypeError
from comove.store.checksums import BLANK, BLOCK, block_sums, is_intact, seal, sums_length
from comove.store.documents import REMEDY, check_content, entries, parse_json
from comove.store.files import write_all, write_bytes, writing
from comove.store.manifests import digest

__all__ = [
    "HEADER",
    "Layout",
    "StoredArray",
    "as_bytes",
    "check_file",
    "lay_out",
    "open_array",
    "read_arrays",
    "read_bytes",
    "read_checked",
    "read_header",
    "sealed",
    "write_arrays",
    "write_checked",
    "write_sealed",
]

HEADER = "comove"
SUMS = "crc32"
_CODES = {"U64": "<u8", "I64": "<i8", "F64": "<f8", "F32": "<f4", "U32": "<u4", "I32": "<i4", "F16": "<f2"}
_CODES |= {"U16": "<u2", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}
"""Types in the order in which safetensors stores them."""
_SEAL = re.compile(rb'\A.{8}\{"__metadata__":\{"checksum":"blake2b-([0-9a-f]{32})"', re.DOTALL)
_WORDS = re.compile(rb'\A.{8,40}(\{"checksum"|blake2b-)', re.DOTALL)
_LONGEST_HEADER = 100_000_000
"""Bytes, as safetensors allows."""


# --- writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where each array of a file lies.

    Attributes:
        head: what the file begins with, sealed.
        offsets: by name, where each array begins, in the order of the file.
        size: bytes of the whole file.
    """

    head: bytes
    offsets: Mapping[str, int]
    size: int


def lay_out(
    shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    metadata: Mapping[str, Any],
    sums: Mapping[str, str],
    *,
    head_size: int = 0,
) -> Layout:
    """Lay out a safetensors file as safetensors itself does.

    Args:
        shapes: type and shape of each array.
        metadata: JSON values for the header.
        sums: of :func:`comove.store.checksums.block_sums`, by name; zeros stand for those that are not known yet, and
            take as much room.
        head_size: bytes to keep for the head at least; blanks fill it up.

    Raises:
        InputTypeError: a type that safetensors has not.
        InputError: names or metadata that could not be read again (:func:`comove.store.documents.check_content`).
    """
    codes = {np.dtype(kind): code for code, kind in _CODES.items()}
    unknown = [str(kind) for kind, _ in shapes.values() if kind.newbyteorder("<") not in codes]
    if unknown:
        raise InputTypeError(f"Arrays on disk hold numbers of {', '.join(_CODES)}; got {', '.join(unknown)}.")
    order = list(codes)
    names = sorted(shapes, key=lambda name: (order.index(shapes[name][0].newbyteorder("<")), name))
    tensors: dict[str, Any] = {}
    known, offsets, end = {}, {}, 0
    for name in names:
        kind, shape = shapes[name]
        offsets[name], end = end, end + kind.itemsize * math.prod(shape)
        code = codes[kind.newbyteorder("<")]
        tensors[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offsets[name], end]}
        known[name] = sums.get(name, "0" * sums_length(end - offsets[name]))
    head = _head(tensors, metadata, known, head_size)
    return Layout(head, {name: len(head) + start for name, start in offsets.items()}, len(head) + end)


def _head(tensors: Mapping[str, Any], metadata: Mapping[str, Any], sums: Mapping[str, str], size: int = 0) -> bytes:
    check_content(metadata, "the header of a file")
    check_text(tensors, "The name of an array")
    # One entry of our own, since safetensors writes several in an order that changes from call to call.
    own = {"checksum": BLANK, HEADER: json.dumps({**metadata, SUMS: sums})}
    text = json.dumps({"__metadata__": own, **tensors}, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(max(len(text) + -len(text) % 8, size - 8))
    return seal(struct.pack("<Q", len(text)) + text)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays to one safetensors file atomically, with ``metadata`` (JSON values) in its header.

    Raises:
        StorageError: it cannot be written; an earlier file is untouched.
        InputTypeError: an array of something else than numbers.
    """
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    lay_out(shapes, {}, {})  # refuses a type before its sums are taken
    layout = lay_out(shapes, metadata or {}, {name: block_sums(as_bytes(array)) for name, array in arrays.items()})
    with writing(path) as file:
        write_all(file, layout.head)
        for name in layout.offsets:
            write_all(file, as_bytes(arrays[name]))


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """The memory of an array in the order and byte order of a file; copied only where it is not so already."""
    stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(np.uint8).data


write_checked = write_arrays
"""Every file is written with checksums."""


def write_sealed(path: Path, content: bytes, metadata: Mapping[str, Any]) -> None:
    """Write the content of a safetensors file of any types (as torch makes it) atomically, with ``metadata`` and sums.

    Raises:
        StorageError: it cannot be written; an earlier file is untouched.
    """
    write_bytes(path, sealed(content, metadata))


def sealed(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return the content of a safetensors file with ``metadata`` and checksums in its header."""
    (size,) = struct.unpack("<Q", content[:8])
    tensors = json.loads(content[8 : 8 + size])
    tensors.pop("__metadata__", None)
    body = memoryview(content)[8 + size :]
    sums = {name: block_sums(body[slice(*tensor["data_offsets"])]) for name, tensor in tensors.items()}
    return _head(tensors, metadata, sums) + body


# --- reading -----------------------------------------------------------------------------------------------------


class Metadata(dict[str, Any]):
    """What a file says of itself; ``seal`` is the checksum of all of it, empty in a file of an earlier version."""

    seal = ""


@dataclass(frozen=True)
class _Tensor:
    """One array in a file: its safetensors type name, shape, first and last byte, and the checksums of its blocks.

    ``sums`` is ``None`` in a file of an earlier version.
    """

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int
    sums: str | None


@dataclass(frozen=True)
class _File:
    """The header of an array file, checked."""

    path: Path
    tensors: Mapping[str, _Tensor]
    metadata: Metadata

    def tensor(self, name: str) -> _Tensor:
        if name not in self.tensors:
            raise CorruptFileError(f"{self.path} holds {sorted(self.tensors)}, not {[name]}: {REMEDY}")
        return self.tensors[name]


def _open(path: Path) -> _File:
    """Read and check the header of an array file.

    Raises:
        CorruptFileError: the file is missing, truncated or foreign, or its header has changed.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length > min(size - 8, _LONGEST_HEADER):
                raise CorruptFileError(f"{path} ({size} bytes) is truncated or not a safetensors file: {REMEDY}")
            head += file.read(length)
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path} does not exist: {REMEDY}") from error
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read ({error.strerror or error}).") from error
    intact = is_intact(head, _SEAL, _WORDS)
    if intact is False:
        raise CorruptFileError(f"{path} has changed since it was written (its header): {REMEDY}")
    tensors = parse_json(head[8:], path)
    metadata = _metadata(tensors.pop("__metadata__", {}), path)
    if intact and (sealed_as := _SEAL.search(head)):
        metadata.seal = sealed_as[1].decode()
    sums = entries({SUMS: metadata.pop(SUMS, None)}, path, {SUMS: dict})[SUMS] if intact else {}
    found, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: _begin(item[1], path)):
        read = entries(tensor, f"{path}, {name}", {"dtype": str, "shape": list[int], "data_offsets": list[int]})
        shape, (start, stop) = tuple(read["shape"]), read["data_offsets"]
        kind = _CODES.get(read["dtype"])
        expected = None if kind is None else np.dtype(kind).itemsize * math.prod(shape)
        if start != end or stop < start or min(shape, default=0) < 0 or expected not in (None, stop - start):
            raise CorruptFileError(f"{path} says that {name} has shape {shape} and {stop - start} bytes: {REMEDY}")
        own = sums.get(name) if intact else None
        if intact and (not isinstance(own, str) or len(own) != sums_length(stop - start)):
            raise CorruptFileError(f"{path} lacks the checksums of {name}: {REMEDY}")
        found[name] = _Tensor(read["dtype"], shape, len(head) + start, len(head) + stop, own)
        end = stop
    if len(head) + end != size:
        raise CorruptFileError(
            f"{path} ({size} bytes) is truncated or not a safetensors file (its header tells of {len(head) + end:,} "
            f"bytes): {REMEDY}"
        )
    return _File(path, {name: found[name] for name in sorted(found)}, metadata)


def _begin(tensor: object, path: Path) -> int:
    offsets: list[int] = entries(tensor, path, {"data_offsets": list[int]})["data_offsets"]
    if len(offsets) != 2:
        raise CorruptFileError(f"{path} gives {len(offsets)} ends of an array, not 2: {REMEDY}")
    return offsets[0]


def _metadata(found: object, path: Path) -> Metadata:
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        raise CorruptFileError(f"{path} must have a header of strings, found {type(found).__name__}: {REMEDY}")
    own = parse_json(found.get(HEADER, "{}"), path, finite=False)
    rest = {name: value for name, value in found.items() if name not in (HEADER, "checksum")}
    # The first files of comove had an entry of JSON for each value.
    text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in rest.items())
    return Metadata({**own, **parse_json(f"{{{text}}}", path, finite=False)})


class StoredArray:
    """One array of a file, memory-mapped: of ``stored[key]`` the blocks that it touches are read, and checked first.

    Attributes:
        path: the file.
        dtype: its type.
        shape: its shape.
        size: its number of values.
    """

    def __init__(self, path: Path, tensor: _Tensor) -> None:
        if tensor.code not in _CODES:
            raise CorruptFileError(f"{path} holds an array of {tensor.code}, which cannot be read as numbers here.")
        self.path, self.dtype, self.shape = path, np.dtype(_CODES[tensor.code]), tensor.shape
        self.size = math.prod(tensor.shape)
        self._sums, self._start = tensor.sums, tensor.start
        self._map = np.empty(tensor.shape, self.dtype)
        if self.size:
            self._map = np.memmap(path, self.dtype, "r", tensor.start, tensor.shape or (1,)).reshape(tensor.shape)
        self._bytes = self._map.reshape(-1).view(np.uint8)
        self._checked = np.zeros(-(-self._bytes.size // BLOCK), bool)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """A part, as of a NumPy array; a view of the map where that is one.

        Raises:
            CorruptFileError: a block of it has changed since it was written.
        """
        if self._sums is not None and not self._checked.all():
            self._check_part(key if isinstance(key, tuple) else (key,))
        return np.asarray(self._map[key])

    def _check_part(self, key: tuple[Any, ...]) -> None:
        """Check the blocks between the first and the last place asked for; of a matrix, row by row."""
        if not self.shape or any(part is Ellipsis for part in key):
            self.check()
            return
        width = self._bytes.size // self.shape[0]
        rows = _places(key[0], self.shape[0])
        columns = _places(key[1], self.shape[1]) if len(key) > 1 else None
        if not len(rows) or (columns is not None and not len(columns)):
            return
        if columns is None and (len(self.shape) == 1 or isinstance(rows, range)):
            self._check(int(rows[0]) * width, (int(rows[-1]) + 1) * width)
            return
        each = width if columns is None else width // self.shape[1]
        first, last = (0, 0) if columns is None else (int(columns[0]), int(columns[-1]))
        for row in rows:
            self._check(int(row) * width + first * each, int(row) * width + (last + 1) * each)

    def _check(self, start: int, stop: int) -> None:
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            if not self._checked[block]:
                self._compare(block, self._bytes[block * BLOCK : (block + 1) * BLOCK].data)

    def _compare(self, block: int, content: bytes | memoryview) -> None:
        assert self._sums is not None
        if f"{zlib.crc32(content):08x}" != self._sums[8 * block : 8 * block + 8]:
            raise CorruptFileError(
                f"{self.path} has changed since it was written (bytes {block * BLOCK:,} to "
                f"{block * BLOCK + len(content):,} of an array): {REMEDY}"
            )
        self._checked[block] = True

    def check(self) -> StoredArray:
        """Check all of it; returns itself.

        Raises:
            CorruptFileError: a block has changed since it was written.
        """
        if self._sums is not None and not self._checked.all():
            with self.path.open("rb") as file:  # not through the map, whose pages would count as memory of this process
                file.seek(self._start)
                for block in range(self._checked.size):
                    size = min(BLOCK, self._bytes.size - block * BLOCK)
                    self._compare(block, file.read(size))
        return self

    def mapped(self) -> npt.NDArray[Any]:
        """All of it as a read-only memory map, once it is checked.

        Raises:
            CorruptFileError: a block has changed since it was written.
        """
        self.check()
        return self._map


def _places(key: Any, size: int) -> range | npt.NDArray[np.int64]:
    """The places along an axis that an index stands for, in order."""
    if isinstance(key, slice):
        found = range(size)[key]
        return found if found.step > 0 else found[::-1]
    return np.unique(np.arange(size)[key])


# --- whole files -------------------------------------------------------------------------------------------------


def read_header(path: Path) -> tuple[tuple[str, ...], Metadata]:
    """Return the array names and the metadata of an array file without reading the arrays.

    Raises:
        CorruptFileError: the file is missing, truncated or foreign, or its header has changed.
    """
    file = _open(path)
    return tuple(file.tensors), file.metadata


def read_arrays(
    path: Path, names: Iterable[str] | None = None, columns: slice | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Read arrays (all, or ``names``) from a memory-mapped array file; only what is asked for is read, and checked.

    Args:
        path: the file.
        names: the arrays wanted; ``None`` for all.
        columns: a range of the first axis, to read a part; it may reach past the end, as in numpy.

    Raises:
        CorruptFileError: the file is missing, truncated, foreign or changed, or lacks one of ``names``.
    """
    file = _open(path)
    part = ... if columns is None else columns
    wanted = file.tensors if names is None else names
    return {name: np.array(StoredArray(path, file.tensor(name))[part]) for name in wanted}


def open_array(path: Path, name: str) -> StoredArray:
    """Return one array of a file, memory-mapped: what is never looked at is never read.

    Raises:
        CorruptFileError: the file is missing, truncated or foreign, or lacks the array.
    """
    return StoredArray(path, _open(path).tensor(name))


def check_file(path: Path) -> None:
    """Read all of an array file, and check that no bit changed.

    Raises:
        CorruptFileError: the file is missing, truncated, foreign or changed.
    """
    for tensor in _open(path).tensors.values():
        as_raw = replace(tensor, code="U8", shape=(tensor.stop - tensor.start,))
        StoredArray(path, as_raw).check()


def read_bytes(path: Path) -> bytes:
    """Return the content of an array file of any types, once it is checked.

    Raises:
        CorruptFileError: the file is missing, truncated, foreign or changed.
    """
    file, content = _open(path), path.read_bytes()
    for name, tensor in file.tensors.items():
        sums = block_sums(memoryview(content)[tensor.start : tensor.stop])
        if tensor.sums not in (None, sums):
            raise CorruptFileError(f"{path} has changed since it was written ({name}): {REMEDY}")
    return content


def read_checked(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read arrays (all, or ``names``) and metadata of a file that must have checksums, and check that no bit changed.

    Raises:
        CorruptFileError: the file is missing, truncated, foreign or changed, or lacks one of ``names``.
    """
    _, header = read_header(path)
    arrays = read_arrays(path, names)
    if header.seal:
        return arrays, header
    checksum, checksums = header.pop("checksum", None), header.pop("checksums", None)  # as earlier versions wrote them
    if not isinstance(checksums, dict) or checksum != digest({**header, "checksums": checksums}):
        raise CorruptFileError(f"{path} was not written by this comove, or its header has changed since.")
    changed = [name for name, array in arrays.items() if checksums.get(name) != digest(array)]
    if changed:
        raise CorruptFileError(f"{path} has changed since it was written: {', '.join(changed)} has another checksum.")
    return arrays, header
