"""Arrays and ids as users give them, taken to NumPy and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from comove.errors import InputError

__all__ = ["as_array", "as_ids"]


def as_array(values: Any) -> npt.NDArray[Any]:
    """Return ``values`` as an array; a tensor is detached and taken to the CPU first, bfloat16 to float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values  # NumPy has none
    return np.asarray(values)


def as_ids(ids: object, what: str) -> npt.NDArray[np.int64]:
    """Return ``ids`` as a one-dimensional int64 array without repeats.

    Raises:
        InputError: wrong shape, not integers, or an id given twice.
    """
    array = as_array(ids)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{what} must be a 1-D array of integers, got shape {array.shape}, dtype {array.dtype}.")
    unique, counts = np.unique(array, return_counts=True)
    if unique.size != array.size:
        twice = unique[counts > 1][:5].tolist()
        raise InputError(f"{what} must be unique; {int((counts > 1).sum())} are repeated, among them {twice}.")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{what} must fit into 64-bit signed integers, found {int(array.max())}.")
    return array.astype(np.int64)
