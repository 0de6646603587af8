"""How a value travels between processes: a pickle, and beside it the raw memory of its arrays.

Arrays and CPU tensors are not copied into the pickle (PEP 574); they arrive writable and aligned to 64 bytes, as
torch's own memory is, because MKL promises the same bits only for memory that is aligned alike. Functions and classes
of the user's script or notebook travel by value (cloudpickle), so nobody imports the script again.

Nothing of this is ever written to a file: both ends are processes of one run.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections.abc import Sequence
from typing import IO, Any

import cloudpickle
import numpy as np

__all__ = ["Parts", "pack", "receive", "send", "unpack"]

Parts = Sequence[memoryview]
"""The pickle, then the memory of every array."""
_ALIGNMENT = 64


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc, unused-ignore]
    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and type(obj) is torch.Tensor and _is_plain(obj, torch):
            return torch.from_numpy, (obj.numpy(),)
        return super().reducer_override(obj)


def _is_plain(tensor: Any, torch: Any) -> bool:
    """Whether numpy can hold the tensor as it is; torch pickles the others itself."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.requires_grad
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.__dict__
        and tensor.dtype not in (torch.bfloat16, torch.complex32)
        and not tensor.is_quantized
    )


def pack(value: object) -> Parts:
    """Return ``value`` as parts to send; its arrays must not change until they are sent.

    Raises whatever pickling raises (``pickle.PicklingError``, ``TypeError``, ``AttributeError``, ...).
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    return [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]


def unpack(parts: Parts) -> Any:
    """Return the value; imports what it needs."""
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301  # sent by this run's own processes, never a file


def send(stream: IO[bytes], parts: Parts) -> None:
    """Write one value to a stream: number of parts, their sizes, the parts."""
    stream.write(struct.pack(f"<{1 + len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> Parts:
    """Read one value's parts from a stream.

    Raises:
        EOFError: the stream ended.
    """
    (count,) = struct.unpack("<Q", _exactly(stream, 8))
    sizes = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
    ends = np.cumsum([-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes])
    block = _aligned(int(ends[-1]))
    parts = [block[end - -(-size // _ALIGNMENT) * _ALIGNMENT :][:size] for end, size in zip(ends, sizes, strict=True)]
    for part in parts:
        _fill(stream, part)
    return parts


def _aligned(size: int) -> memoryview:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory.data[start : start + size]


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    _fill(stream, memoryview(data))
    return data


def _fill(stream: IO[bytes], view: memoryview) -> None:
    read = 0
    while read < len(view):
        got = stream.readinto(view[read:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("the other process closed its end")
        read += got


def to_bytes(parts: Parts) -> bytes:
    """Return what :func:`send` would write."""
    stream = io.BytesIO()
    send(stream, parts)
    return stream.getvalue()


def from_bytes(data: object) -> Any:
    """Return the value in what :func:`to_bytes` returned: bytes, or the same memory as an array."""
    return unpack(receive(io.BytesIO(data)))  # type: ignore[arg-type]
