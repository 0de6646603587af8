"""Files written whole or not at all: a temporary neighbour, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from comove.errors import StorageError

__all__ = [
    "TEMPORARY",
    "is_empty",
    "lives",
    "new_folder",
    "not_written",
    "readable",
    "remove_leftovers",
    "set_aside",
    "slug",
    "write_all",
    "write_bytes",
    "writing",
]

TEMPORARY = ".tmp"
"""The ending of a file being written; one that stays was left by a killed process and means nothing."""
DAMAGED = ".damaged"
"""The ending of a file that was set aside."""
_WRITER = re.compile(rf"\..*?(?:@([0-9a-f]{{8}}))?\.(\d+)-[0-9a-f]+{re.escape(TEMPORARY)}")
_ESCAPED = re.compile("[\udc80-\udcff]")
_STARTED = time.time()
_ELSEWHERE_SECONDS = 3600.0
"""From this age on, a file being written by a process of another machine is taken to be left behind."""


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` for the block to write; at its end it is flushed to disk and renamed.

    Raises:
        StorageError: the disk is full, the folder is not writable, ...; an earlier file at ``path`` is untouched.
    """
    writer = f"@{_host()}.{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name[:200]}{writer}{TEMPORARY}")
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


def readable(name: str) -> str:
    r"""The name of a file as text that UTF-8 holds: other bytes, which Python reads as surrogates, are written out.

    >>> readable("caf\udce9.png")
    'caf\\xe9.png'
    """
    return _ESCAPED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)


def slug(text: str, keep: str = "") -> str:
    """Return ``text`` as part of a file name: all but letters, digits and what is in ``keep`` becomes a hyphen."""
    return "".join(c if c.isalnum() or c in keep else "-" for c in text)


def is_empty(folder: Path) -> bool:
    """Tell whether ``folder`` holds nothing but what a killed write left behind."""
    return all(entry.name.startswith(".") and entry.name.endswith(TEMPORARY) for entry in folder.iterdir())


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it is out of the way and can still be examined.

    Raises:
        StorageError: it cannot be renamed.
    """
    aside = path.with_name(path.name + DAMAGED)
    try:
        if aside.is_dir():  # only files are replaced
            aside = path.with_name(f"{path.name}{DAMAGED}-{secrets.token_hex(4)}")
        path.replace(aside)
    except OSError as error:
        raise not_written(aside, error) from error
    return aside


# --- what killed processes left behind ---------------------------------------------------------------------------


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in ``folder`` whose writers are dead; of another machine's, those an hour old."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            writer = _WRITER.fullmatch(entry.name)
            if writer is not None and _is_left(Path(entry), int(writer[2]), writer[1]):
                _remove(Path(entry))


def _is_left(file: Path, pid: int, host: str | None) -> bool:
    with suppress(OSError):
        written = file.stat().st_mtime
        if host not in (None, _host()):  # earlier versions named no host
            return time.time() - written > _ELSEWHERE_SECONDS
        # Process numbers come again, in containers at every start: what is older than this process is not its own.
        return written < _STARTED - 1 if pid == os.getpid() else not lives(pid)
    return False  # renamed in this moment


@cache
def _host() -> str:
    """Return a digest that identifies the machine and the container, within which process numbers are unique."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.blake2b(f"{socket.gethostname()} {space}".encode(), digest_size=4).hexdigest()


def lives(pid: int) -> bool:
    """Return whether a process of this machine is running; on Windows, where asking ends it, whether it is this one."""
    if os.name != "posix":
        return pid == os.getpid()
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# --- folders -----------------------------------------------------------------------------------------------------


def new_folder(path: str | os.PathLike[str]) -> Path:
    """Make ``path`` (and its parents), check that files can be written in it, and remove what dead processes left.

    Raises:
        StorageError: it cannot be made or written to; then no new folder stays behind.
    """
    folder = Path(path)
    made: list[Path] = []
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.is_dir():
                part.mkdir(exist_ok=True)
                made.append(part)
    except OSError as error:
        for part in reversed(made):
            with suppress(OSError):  # another process may have put something there
                part.rmdir()
        raise StorageError(
            f"Cannot make the folder {folder}: {error.strerror}. Choose another with --out (out=...)."
        ) from error
    if not os.access(folder, os.W_OK):
        raise StorageError(f"The folder {folder} is not writable. Choose another with --out (out=...).")
    remove_leftovers(folder)
    return folder
