"""What results share: read-only arrays, tables, and one file of arrays with a header of JSON values.

A frozen dataclass calls these with the names of its fields; what they mean is its own affair.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.store.arrays import read_arrays, read_header, write_arrays
from comove.store.documents import entries
from comove.store.files import new_folder, write_bytes
from comove.store.manifests import check_kind

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["as_plain", "freeze", "load_result", "save_result", "write_table"]

FORMAT_VERSION = 2


def freeze(result: object, arrays: Mapping[str, npt.NDArray[Any] | None]) -> None:
    """Set fields of a frozen dataclass to read-only views of these arrays."""
    for name, array in arrays.items():
        object.__setattr__(result, name, None if array is None else read_only(array))


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view that nothing can be written to."""
    own = array.view()
    own.flags.writeable = False
    return own


def save_result(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, npt.NDArray[Any] | None],
    header: Mapping[str, Any],
) -> None:
    """Write a result to one safetensors file, atomically; arrays that are ``None`` are left out.

    Raises:
        StorageError: it cannot be written.
    """
    new_folder(Path(path).parent)
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in header.items()}
    known = {name: array for name, array in arrays.items() if array is not None}
    write_arrays(Path(path), known, {"kind": f"comove/{kind}", "format_version": FORMAT_VERSION, **plain})


def load_result(
    path: str | os.PathLike[str], kind: str, header: Mapping[str, Any], optional: Mapping[str, Any] = {}
) -> tuple[dict[str, Any], dict[str, Any]]:  # never written to
    """Read what :func:`save_result` wrote: the entries of the header, lists as tuples, and the arrays.

    Args:
        path: of the file.
        kind: of the result.
        header: name -> type of the entries, as :func:`comove.store.entries` checks them.
        optional: likewise; absent ones are ``None``.

    Raises:
        CorruptFileError: the file is missing, truncated, changed or something else.
    """
    _, found = read_header(Path(path))
    check_kind(found, kind, FORMAT_VERSION, path)
    own = entries(found, path, header, optional)
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    return own, read_arrays(Path(path))


def write_table(path: str | os.PathLike[str], frame: pd.DataFrame) -> Path:
    """Write a data frame as CSV without its index, atomically, and return the path."""
    write_bytes(Path(path), frame.to_csv(index=False).encode("utf-8", "backslashreplace"))
    return Path(path)


def as_plain(value: Any) -> Any:
    """A value for JSON: arrays and tuples as lists, NaN and infinities as ``None``, within mappings and lists too."""
    if isinstance(value, Mapping):
        return {str(name): as_plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return [as_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
