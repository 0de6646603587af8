"""One driver a folder: who trains into it holds its lock.

The lock is the operating system's own on ``driver.lock``, so a process that dies in any way has let go of it.
``driver.json`` beside it names the owner. File systems shared by machines do not always pass locks on; there the
owner's sign of life counts: it touches ``driver.json`` every few seconds. Readers need no lock.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from comove.errors import CorruptFileError, LockedError, StorageError
from comove.store.documents import entries, read_json, write_json
from comove.store.files import lives
from comove.store.manifests import command_line

__all__ = ["Owner", "driver_lock", "lives", "owner_of"]

LOCK, OWNER = "driver.lock", "driver.json"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""An owner on another machine that has given no sign of life for so long is taken to be dead."""


@dataclass(frozen=True)
class Owner:
    """The process that drives a folder."""

    host: str
    pid: int
    started: str
    command: str

    @classmethod
    def current(cls) -> Owner:
        """The process that asks."""
        command = command_line()
        return cls(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"), command[:200])

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.started}: {self.command})"


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Drive ``folder`` (an existing one) while the block runs; a dead owner's lock is taken over.

    Raises:
        LockedError: another process drives it; the message names its host and process.
        StorageError: not a writable folder.
    """
    import filelock  # here: with its asynchronous parts it takes as long to import as this whole package

    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise _refused(folder, _owner_that_just_started(folder)) from None
    except OSError as error:
        raise StorageError(f"Cannot lock {folder} ({error.strerror or error}); is it a writable folder?") from error
    try:
        elsewhere = _read(folder)
        if elsewhere is not None and elsewhere.host != socket.gethostname() and not _silent(folder):
            raise _refused(folder, elsewhere)
        write_json(folder / OWNER, asdict(Owner.current()))
        try:
            with _beating(folder / OWNER):
                yield
        finally:
            with suppress(OSError):
                (folder / OWNER).unlink()
    finally:
        lock.release()


def owner_of(folder: Path) -> Owner | None:
    """Return the living process that drives ``folder``, if there is one."""
    owner = _read(folder)
    if owner is None:
        return None
    if owner.host == socket.gethostname() and os.name == "posix":
        return owner if lives(owner.pid) else None
    return None if time.time() - _beat(folder) > SILENT_SECONDS else owner


def _refused(folder: Path, owner: Owner | None) -> LockedError:
    by = "another process" if owner is None else str(owner)
    me = Owner.current()
    return LockedError(
        f"{folder} is being worked on by {by}, and by one process at a time only: process {me.pid} on {me.host} has to "
        f"wait for it to end (or stop it), then run the same command again. On another machine, a killed owner counts "
        f"as living for {SILENT_SECONDS:.0f} s."
    )


def _owner_that_just_started(folder: Path) -> Owner | None:
    """Whoever holds the lock names itself a moment later; until then the name of one that died may stand there."""
    for _ in range(20):
        owner = owner_of(folder)
        if owner is not None:
            return owner
        time.sleep(0.05)
    return None


def _read(folder: Path) -> Owner | None:
    try:
        kinds = {"host": str, "pid": int, "started": str, "command": str}
        return Owner(**entries(read_json(folder / OWNER), folder / OWNER, kinds))
    except CorruptFileError:
        return None


def _beat(folder: Path) -> float:
    try:
        return (folder / OWNER).stat().st_mtime
    except OSError:
        return 0.0


def _silent(folder: Path) -> bool:
    os.utime(folder / LOCK)  # the file server's clock, which may differ from ours
    return (folder / LOCK).stat().st_mtime - _beat(folder) > SILENT_SECONDS


@contextmanager
def _beating(file: Path) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, name="comove-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
