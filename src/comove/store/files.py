"""Files written whole or not at all: a temporary neighbour, fsync, rename."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from comove.errors import CorruptFileError, StorageError

__all__ = [
    "TEMPORARY",
    "is_empty",
    "new_folder",
    "not_written",
    "read_json",
    "write_all",
    "write_bytes",
    "write_json",
    "writing",
]

TEMPORARY = ".tmp"
"""The ending of a file being written; one that stays was left by a killed process and means nothing."""


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` for the block to write; at its end it is flushed to disk and renamed.

    Raises:
        StorageError: the disk is full, the folder is not writable, ...; an earlier file at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("wb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        raise not_written(path, error) from error
    except BaseException:
        _remove(temporary)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path`` atomically; errors as of :func:`writing`."""
    with writing(path) as file:
        write_all(file, content)


def write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write all of ``content`` to an unbuffered file, which may take it in several goes."""
    left = memoryview(content)
    while left.nbytes:
        left = left[file.write(left) :]


def not_written(path: Path, error: OSError) -> StorageError:
    """The error for a file that the system refused to write."""
    return StorageError(
        f"Could not write {path}: {error.strerror or error}. What was there before is untouched; "
        "free some space or choose a writable folder, then run the same command again."
    )


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # it may never have been made, or its folder may be gone
        temporary.unlink()


def is_empty(folder: Path) -> bool:
    """Tell whether ``folder`` holds nothing but what a killed write left behind."""
    return all(entry.name.startswith(".") and entry.name.endswith(TEMPORARY) for entry in folder.iterdir())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=False, allow_nan=False) + "\n").encode())


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
