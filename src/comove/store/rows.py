"""A matrix whose rows lie in one file each: read where it is sliced, never whole in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError
from comove.store.arrays import open_array

__all__ = ["LazyRows"]


class LazyRows:
    """(rows, columns) of memory-mapped files; ``lazy[rows, columns]`` is a NumPy array of what was asked for.

    ``numpy.asarray`` reads all of it. What is read is checked first, once.

    Args:
        files: one array file a row.
        name: the one-dimensional array taken from each.
        width: the number of columns that each must have.

    Raises:
        CorruptFileError: a file is missing, truncated or foreign, lacks the array, or has another width or type.
    """

    ndim = 2

    def __init__(self, files: Sequence[Path], name: str, width: int) -> None:
        self._maps = [open_array(file, name) for file in files]
        self.dtype: np.dtype[Any] = self._maps[0].dtype
        self.shape = (len(files), width)
        for file, row in zip(files, self._maps, strict=True):
            if row.shape != (width,) or row.dtype != self.dtype:
                raise CorruptFileError(f"{file} holds {row.size} values of {name} ({row.dtype}) for {width} examples.")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(rows, int | np.integer):
            return np.array(self._maps[rows][columns])
        chosen = [self._maps[index] for index in np.arange(len(self))[rows]]
        shape = self._maps[0][columns].shape
        return np.stack([row[columns] for row in chosen]) if chosen else np.empty((0, *shape), self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def __repr__(self) -> str:
        return f"LazyRows({self.shape[0]} rows of {self.shape[1]:,} {self.dtype}, on disk)"
