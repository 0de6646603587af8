"""How a value travels between processes: a pickle, and beside it the raw memory of its arrays.

Arrays and CPU tensors are not copied into the pickle (PEP 574); they arrive writable and aligned to 64 bytes, as
torch's own memory is, because MKL promises the same bits only for memory that is aligned alike. Functions and classes
of the user's script or notebook travel by value (cloudpickle), so no worker imports the script again.

A pickle is never written to a file: both ends are processes of one run.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import cloudpickle
import numpy as np

__all__ = ["Parts", "chunks", "from_bytes", "pack", "split", "to_bytes", "unpack"]

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


def chunks(parts: Parts) -> Iterator[bytes | memoryview]:
    """Yield what, written one after another, :func:`split` reads: number of parts, sizes, then each part, aligned."""
    header = np.array([len(parts), *(part.nbytes for part in parts)], "<u8").data.cast("B")
    for chunk in (header, *parts):
        yield chunk
        yield bytes(-chunk.nbytes % _ALIGNMENT)


def split(memory: memoryview) -> Parts:
    """Return the parts that :func:`chunks` laid out in ``memory``, uncopied."""
    (count,) = np.frombuffer(memory, "<u8", 1).tolist()
    sizes = [8 * (1 + count), *np.frombuffer(memory, "<u8", count, offset=8).tolist()]
    starts = [0, *accumulate(size + -size % _ALIGNMENT for size in sizes)]
    return [memory[start:][:size] for start, size in zip(starts[1:], sizes[1:], strict=False)]


def to_bytes(parts: Parts) -> bytes:
    """Return the parts as one block."""
    return b"".join(chunks(parts))


def from_bytes(data: object) -> Any:
    """Return the value in what :func:`to_bytes` returned: bytes, or the same memory as an array."""
    source = np.frombuffer(data, np.uint8)  # type: ignore[call-overload]
    memory = np.empty(source.size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    memory[start : start + source.size] = source
    return unpack(split(memory.data[start : start + source.size]))
