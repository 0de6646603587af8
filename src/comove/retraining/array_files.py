"""Arrays in files of other programs: NumPy's, PyTorch's and safetensors', read without unpickling."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.checks import as_array, is_tensor
from comove.errors import CorruptFileError, InputError, first_line, some
from comove.store.files import writing
from comove.training.weights import load_plain

__all__ = ["SUFFIXES", "read_array", "read_named_arrays", "write_npy", "write_npz", "write_pt"]

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
ONLY = ""
"""The name of the array in a file that holds one without a name."""
_DAMAGED = (OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
_FOREIGN = (ValueError, TypeError, OverflowError, SyntaxError, TokenError, RecursionError, KeyError, AttributeError)
"""What NumPy raises on headers that it did not write, or on an array where an archive should be."""
_UNREADABLE = (*_DAMAGED, *_FOREIGN)


def read_array(path: Path) -> npt.NDArray[Any]:
    """Read a file of one array; a ``.npy`` file is mapped into memory, not read.

    Raises:
        InputError: several arrays.
        CorruptFileError: as of :func:`read_named_arrays`.
    """
    found = read_named_arrays(path)
    if len(found) != 1:
        raise InputError(f"{path} must hold one array, it has {some(found) or 'none'}.")
    return next(iter(found.values()))


def read_named_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a ``.npy``, ``.npz``, ``.pt`` (``.pth``) or ``.safetensors`` file by their names.

    An array that has no name is called ``""``. Nothing is unpickled: ``.pt`` is read with ``weights_only=True``, as
    tensors or NumPy arrays.

    Raises:
        InputError: another ending.
        CorruptFileError: missing, damaged, foreign, or readable only by unpickling.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} must end in one of {', '.join(SUFFIXES)}, to say what it is.")
    if not path.is_file():
        raise CorruptFileError(f"{path} does not exist, or is no file.")
    read = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}.get(path.suffix, _read_pt)
    found = read(path)
    for name, array in found.items():
        if array.dtype.kind not in "biuf":
            raise CorruptFileError(f"{path} holds {array.dtype} under {name or 'no name'!r}, but numbers are needed.")
    return found


def _read_npy(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        return {ONLY: np.lib.format.open_memmap(path, mode="r")}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
            if repeated := [name for name in held.files if held.files.count(name) > 1]:
                raise ValueError(f"it holds {repeated[0]!r} twice")
            found = {name: held[name] for name in held.files}
            if foreign := [name for name, one in found.items() if not isinstance(one, np.ndarray)]:
                raise ValueError(f"{foreign[0]!r} in it is no array of NumPy")  # a member of another zip archive
            return found
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> CorruptFileError:
    if any(word in str(error) for word in ("allow_pickle", "Python objects")):
        return CorruptFileError(
            f"{path} holds pickled objects, and reading it could run code: save plain arrays of numbers."
        )
    return CorruptFileError(f"{path} cannot be read: {first_line(error)}")


def _read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: as_array(tensor) for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path} cannot be read: {first_line(error)}") from error


def _read_pt(path: Path) -> dict[str, npt.NDArray[Any]]:
    import torch

    with torch.serialization.safe_globals(_numpy_names()):
        content = load_plain(path)
    if isinstance(content, np.ndarray) or is_tensor(content):
        return {ONLY: as_array(content, str(path))}
    arrays = content if isinstance(content, Mapping) else {}
    if not arrays or not all(isinstance(one, np.ndarray) or is_tensor(one) for one in arrays.values()):
        raise CorruptFileError(
            f"{path} must hold a tensor, or tensors by name; it holds {type(content).__name__}"
            f"{' of other things' if arrays else ''}."
        )
    return {str(name): as_array(one, f"{path}: {name}") for name, one in arrays.items()}


def _numpy_names() -> list[Any]:
    """What an array of numbers is made of in a pickle: NumPy's own reconstruction, and nothing that runs code."""
    from _codecs import encode  # how old pickles spell bytes

    rebuild = np.zeros(0).__reduce__()[0]
    kinds = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    old = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return [*old, np.ndarray, np.dtype, encode, *dict.fromkeys(kinds)]


# --- writing --------------------------------------------------------------------------------------------------------


def write_npy(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a ``.npy`` file atomically; errors as of :func:`comove.store.files.writing`."""
    with writing(path) as file:
        np.save(file, array, allow_pickle=False)


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a compressed ``.npz`` file atomically; errors likewise."""
    with writing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def write_pt(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a tensor as ``torch.save`` does, readable with ``weights_only=True``, atomically; errors likewise."""
    import torch

    with writing(path) as file:
        torch.save(torch.from_numpy(np.ascontiguousarray(array)), file)
