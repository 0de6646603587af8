"""One driver a folder: the living is refused by name, the dead is taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import comove
from comove.data import Splits
from comove.errors import LockedError, StorageError
from comove.store.lock import Owner, driver_lock, owner_of

HOLDER = """
import sys, time
from pathlib import Path
from comove.store.lock import driver_lock
with driver_lock(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A living process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def write_owner(folder: Path, *, age: float, **changes: object) -> None:
    """Leave the note of an owner that gave its last sign of life ``age`` seconds ago."""
    owner = {"host": "elsewhere", "pid": 17, "started": "2025-01-01 00:00:00", "command": "comove lds", **changes}
    (folder / "driver.json").write_text(json.dumps(owner))
    then = time.time() - age
    os.utime(folder / "driver.json", (then, then))


def test_a_living_owner_is_refused_with_both_named(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        named = (
            rf"{tmp_path} is being worked on by process {process.pid} on {socket.gethostname()} \(since .*\), and by "
            rf"one process at a time only: process {os.getpid()} on {socket.gethostname()} has to wait"
        )
        with pytest.raises(LockedError, match=named), driver_lock(tmp_path):
            pass
        owner = owner_of(tmp_path)
        assert owner is not None
        assert (owner.host, owner.pid) == (socket.gethostname(), process.pid)


def test_a_killed_owner_is_taken_over_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "driver.json").exists()  # it had no time to tidy up
        assert owner_of(tmp_path) is None
        with driver_lock(tmp_path):
            owner = owner_of(tmp_path)
            assert owner is not None
            assert owner.pid == os.getpid()
    assert owner_of(tmp_path) is None


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with driver_lock(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()} on"), driver_lock(tmp_path):
        pass
    with driver_lock(tmp_path):  # and what was refused has left the lock as it was
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), driver_lock(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / "driver.json").exists()
    with driver_lock(tmp_path):
        pass


def test_an_owner_on_another_machine_lives_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    write_owner(tmp_path, age=20)
    with pytest.raises(LockedError, match=r"process 17 on elsewhere \(since .*: comove lds\)"), driver_lock(tmp_path):
        pass
    assert owner_of(tmp_path) == Owner("elsewhere", 17, "2025-01-01 00:00:00", "comove lds")
    write_owner(tmp_path, age=100)
    assert owner_of(tmp_path) is None
    with driver_lock(tmp_path):
        owner = owner_of(tmp_path)
        assert owner is not None
        assert owner.host == socket.gethostname()


def test_who_holds_it_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comove.store.lock.BEAT_SECONDS", 0.01)
    with driver_lock(tmp_path):
        before = (tmp_path / "driver.json").stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while (tmp_path / "driver.json").stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("content", ["", "{", '{"host": "here"}', "[1]"])
def test_a_damaged_note_names_nobody_and_stops_nobody(content: str, tmp_path: Path) -> None:
    (tmp_path / "driver.json").write_text(content)
    assert owner_of(tmp_path) is None
    with driver_lock(tmp_path):
        assert owner_of(tmp_path) is not None


def test_what_is_no_folder_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot lock .*is it a writable folder"), driver_lock(tmp_path / "file"):
        pass


def test_a_run_is_trained_by_one_process_at_a_time(small_digits: Splits, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = {"epochs": 1}
    run = comove.train(small_digits, "mlp", recipe, out=tmp_path / "other")
    (tmp_path / "run" / "manifest.json").write_bytes((run.path / "manifest.json").read_bytes())
    with driver_lock(folder), pytest.raises(LockedError, match=f"is being worked on by process {os.getpid()} on"):
        comove.train(small_digits, "mlp", recipe, out=folder)
    assert comove.train(small_digits, "mlp", recipe, out=folder).finished
    with driver_lock(folder):
        assert comove.train(small_digits, "mlp", recipe, out=folder).finished  # opening it is free
