"""Features of training examples on disk, block by block: each a file written whole, and checked when it is read.

Shape legend: B examples of a block.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError
from comove.store import new_folder, read_arrays, read_header, set_aside, write_arrays

__all__ = ["CacheFolder", "KeptBlocks"]

Float32: TypeAlias = npt.NDArray[np.float32]


class CacheFolder:
    """Where features lie; a temporary folder is deleted with this object.

    Args:
        cache: the folder, made where it is not there; ``None`` for a temporary one.
        name: what the temporary one's name begins with.
    """

    def __init__(self, cache: str | None, name: str) -> None:
        self.path = new_folder(tempfile.mkdtemp(prefix=f"comove-{name}-") if cache is None else cache)
        if cache is None:
            weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class KeptBlocks:
    """Arrays of N examples in files of ``rows`` examples each.

    Attributes:
        folder: where they lie.
        identity: what they were made from; each file names it.
        examples: N.
        rows: examples a file, but for the last: what a killed process computes again at most.
        names: the arrays of a block, (B, ...).
    """

    folder: Path
    identity: str
    examples: int
    rows: int
    names: tuple[str, ...]

    @property
    def parts(self) -> list[slice]:
        """The examples of each block."""
        return [slice(at, min(at + self.rows, self.examples)) for at in range(0, self.examples, self.rows)]

    def file(self, start: int) -> Path:
        """Return where the block lies that begins with example ``start``."""
        return self.folder / f"{start:010d}.safetensors"

    @property
    def missing(self) -> list[slice]:
        """The blocks that have no file."""
        return [part for part in self.parts if not self.file(part.start).exists()]

    def read(self, part: slice, names: Sequence[str] | None = None) -> dict[str, Float32]:
        """Return the arrays of a block.

        Raises:
            CorruptFileError: the file is missing, damaged, or another block's.
        """
        file = self.file(part.start)
        _, header = read_header(file)
        place = {"features": self.identity, "start": part.start}
        if {name: header.get(name) for name in place} != place:
            raise CorruptFileError(f"{file} holds features of other examples or of another model.")
        return read_arrays(file, self.names if names is None else names)

    def made(self, compute: Callable[[slice], Mapping[str, Float32]]) -> Iterator[tuple[slice, dict[str, Float32]]]:
        """Yield (examples, arrays) block by block: read where they are on disk, else computed, and written whole.

        A damaged file is set aside with a warning, and its block computed again.
        """
        for part in self.parts:
            file, found = self.file(part.start), None
            if file.exists():
                try:
                    found = self.read(part)
                except CorruptFileError as error:
                    warnings.warn(f"{error} It is set aside as {set_aside(file)}, and computed again.", stacklevel=2)
            if found is None:
                write_arrays(file, compute(part), {"features": self.identity, "start": part.start})
                found = self.read(part)
            yield part, found
