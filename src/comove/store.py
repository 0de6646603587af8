"""What every artefact on disk shares: atomic writes, array files, manifests and fingerprints.

A file is written beside its final name, flushed to disk and renamed, so a reader (or a run resumed after ``kill -9``)
sees it whole or not at all. Arrays and weights live in safetensors, manifests in JSON; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as _arrays_to_bytes

from comove.errors import CorruptFileError, FingerprintError, InputError, StorageError

__all__ = [
    "as_array",
    "as_header",
    "as_ids",
    "check_fingerprint",
    "check_kind",
    "claim_folder",
    "digest",
    "is_empty",
    "new_folder",
    "open_manifest",
    "read_arrays",
    "read_checked",
    "read_header",
    "read_json",
    "versions",
    "write_arrays",
    "write_bytes",
    "write_checked",
    "write_json",
    "write_manifest",
]

MANIFEST = "manifest.json"
HEADER = "comove"
TEMPORARY = ".tmp"
"""The ending of a file being written; one that stays was left by a killed process and means nothing."""


# --- writing -----------------------------------------------------------------------------------------------------


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: a temporary neighbour, fsync, rename.

    Raises:
        StorageError: the disk is full, the folder is not writable, ...; an earlier file at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        raise StorageError(
            f"Could not write {path}: {error.strerror or error}. What was there before is untouched; "
            "free some space or choose a writable folder, then run the same command again."
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # it may never have been made, or its folder may be gone
        temporary.unlink()


def is_empty(folder: Path) -> bool:
    """Tell whether ``folder`` holds nothing but what a killed write left behind."""
    return all(entry.name.startswith(".") and entry.name.endswith(TEMPORARY) for entry in folder.iterdir())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=False, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays to one safetensors file atomically, with ``metadata`` (JSON values) in its header."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, _arrays_to_bytes(contiguous, as_header(metadata or {})))


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


def new_folder(path: str | os.PathLike[str]) -> Path:
    """Make ``path`` (and its parents) and check that files can be written in it.

    Raises:
        StorageError: it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Cannot make the folder {folder}: {error.strerror}. Choose another with --out (out=...)."
        ) from error
    if not os.access(folder, os.W_OK):
        raise StorageError(f"The folder {folder} is not writable. Choose another with --out (out=...).")
    return folder


# --- reading -----------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CorruptFileError: the file is missing, is not JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path} does not exist; is {path.parent} the folder you meant?") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is not readable as JSON ({error}); restore it or make it again.") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} must hold a JSON object, found {type(content).__name__}.")
    return content


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


# --- manifests and fingerprints ------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for manifests."""
    names = ("comove", "torch", "numpy", "scipy", "torchvision", "traker")
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def digest(*parts: npt.NDArray[Any] | str | Mapping[str, Any]) -> str:
    """Return a 128-bit BLAKE2b fingerprint of arrays (dtype, shape and bytes), texts and JSON objects."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if part.size else b"")
        else:
            text = part if isinstance(part, str) else json.dumps(part, sort_keys=True, default=str)
            state.update(f"{len(text)}:{text}".encode())
    return state.hexdigest()


def check_fingerprint(what: str, *, found: str, expected: str, where: object) -> None:
    """Refuse an artefact made from something else.

    Raises:
        FingerprintError: the fingerprints differ; the message shows both.
    """
    if found != expected:
        raise FingerprintError(
            f"{where} was made with another {what}: its fingerprint is {found}, this {what} has {expected}. "
            f"Use the {what} it was made with, or another output folder."
        )


def write_manifest(folder: Path, kind: str, format_version: int, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: the kind of artefact, its format version, the libraries' versions and ``content``."""
    head = {"kind": f"comove/{kind}", "format_version": format_version, "versions": versions()}
    write_json(folder / MANIFEST, {**head, **content})


def claim_folder(folder: Path, kind: str, format_version: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new artefact with its fingerprint, or check that the folder holds this very one.

    Everything in ``content`` counts, but for where a data set was found (``dataset.source``): data may move.

    Returns:
        The manifest in the folder.

    Raises:
        InputError: the folder holds something else than artefacts of ours.
        FingerprintError: it holds one made otherwise; the message shows both fingerprints and what differs.
    """
    as_json = json.loads(json.dumps(content))  # tuples become lists, as in what is read back
    counted = {key: _without_source(value) for key, value in as_json.items()}
    fingerprint = digest(counted)
    if not (folder / MANIFEST).exists():
        if not is_empty(folder):
            raise InputError(f"{folder} is not empty and holds no {kind}; choose a new folder.")
        write_manifest(folder, kind, format_version, {**content, "fingerprint": fingerprint})
    found = open_manifest(folder, kind, format_version)
    if found.get("fingerprint") != fingerprint:
        before = {key: _without_source(found.get(key)) for key in content}
        raise FingerprintError(
            f"{folder} holds another {kind} (fingerprint {found.get('fingerprint')}, asked for {fingerprint}): "
            f"{_differences(before, counted)}. Use another folder, or delete this one."
        )
    return found


def _without_source(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "source"} if isinstance(value, Mapping) else value


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    parts = []
    for key, now in asked.items():
        before = found.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            names = [name for name in now if before.get(name) != now[name]]
            parts += [f"{key}.{name} was {before.get(name)}, now {now[name]}" for name in names]
        elif before != now:
            parts.append(f"{key} was {before}, now {now}")
    return "; ".join(parts) or "entries written by another version differ"


def open_manifest(folder: Path, kind: str, format_version: int) -> dict[str, Any]:
    """Read ``manifest.json`` and check that it is of this ``kind`` and of a format this version reads.

    Raises:
        CorruptFileError: no such folder, not one of ours, another kind of artefact, or a newer format.
    """
    if not folder.is_dir():
        raise CorruptFileError(f"{folder} is not a folder; a comove {kind} is a folder with a {MANIFEST}.")
    manifest = read_json(folder / MANIFEST)
    check_kind(manifest, kind, format_version, folder)
    return manifest


def check_kind(manifest: Mapping[str, Any], kind: str, format_version: int, where: object) -> None:
    """Check the ``kind`` and ``format_version`` entries of a manifest or of a file's metadata.

    Raises:
        CorruptFileError: another kind of artefact, or a format newer than this version of comove reads.
    """
    if manifest.get("kind") != f"comove/{kind}":
        raise CorruptFileError(f"{where} holds {manifest.get('kind', 'something foreign')!r}, not a comove {kind}.")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > format_version:
        raise CorruptFileError(
            f"{where} has format version {version!r}; this comove reads up to {format_version}. Update comove."
        )


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
