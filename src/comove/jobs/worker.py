"""What runs in a worker process, of :class:`comove.jobs.Local` and of a Ray cluster: a set-up, then jobs.

A worker never imports the user's script.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from comove.jobs.job_result import Outcome, attempt, packed
from comove.jobs.serialization import from_bytes, split, to_bytes, unpack

__all__ = ["ARRAYS", "do_job", "do_ray_job", "import_path", "start", "start_jobs"]

ARRAYS = "arrays"
"""The file, in the folder of a run, with the memory of the arrays that its jobs share."""

# Task after task runs in the same process; what the tasks of a run share is made once and lives here.
_prepared: dict[str, Outcome] = {}
_load: Callable[[], tuple[Callable[[Any], Any], Any]]


def import_path() -> list[str]:
    """Where a worker looks for modules: where this process does, but in the current folder last.

    What the caller could import from there (a notebook's neighbours), the worker can; what only has the name of an
    installed module, it cannot.
    """
    entries = [entry for entry in sys.path if isinstance(entry, str)]
    relative = [entry for entry in entries if entry in ("", ".")]
    return [entry for entry in entries if entry not in ("", ".")] + ([os.getcwd()] if relative else [])


def _ready(run: str, load: Callable[[], tuple[Callable[[Any], Any], Any]]) -> Outcome:
    """Return the outcome of a run's set-up, made once per process; the outcome of any other run is discarded."""
    if run not in _prepared:
        _prepared.clear()
        _prepared[run] = attempt(lambda: _set_up(*load()))
    return _prepared[run]


def _set_up(setup: Callable[[Any], Callable[[Any], Any]], payload: Any) -> Callable[[Any], Any]:
    return setup(payload)


def _result(ready: Outcome, job: bytes) -> bytes:
    outcome = ready if ready.error is not None else attempt(lambda: ready.result(from_bytes(job)))
    warnings = ready.warnings if outcome is not ready else []
    return to_bytes(packed(replace(outcome, warnings=warnings + outcome.warnings)))


# --- processes of this machine ---------------------------------------------------------------------------------------


def start(driver: int, path: list[str], folder: str, messages: str, device: str, pickle: bytes) -> None:
    """Make a new process a worker; loky calls it before any task.

    Args:
        driver: the process that started it. When it ends the worker ends too, even in the middle of a job: loky's
            own workers would wait forever.
        path: where to look for modules.
        folder: holds the shared arrays; the last process to end removes it.
        messages: the file for what is printed.
        device: the CUDA device that is to be the current one, ``""`` to leave it alone.
        pickle: of (setup, payload), whose arrays are in the folder.
    """
    import loky.process_executor

    global _load
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which ends its workers
    threading.Thread(target=_watch, args=(driver, folder), daemon=True).start()
    os.environ.pop("PYTHONSAFEPATH", None)
    sys.path[:] = path
    # loky replaces a process whose memory has grown by 300 MB, for which jobs of different sizes suffice.
    loky.process_executor._USE_PSUTIL = False
    _print_to(messages)

    def load() -> Any:
        if device:
            import torch

            torch.cuda.set_device(int(device))
        # Copy on write: the pages are shared by all workers until one of them writes.
        arrays = np.memmap(Path(folder, ARRAYS), np.uint8, mode="c")
        return unpack([memoryview(pickle), *split(arrays.data)])

    _load = load


def _print_to(file: str) -> None:
    stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for standard in (1, 2):
        os.dup2(stream, standard)
    os.close(stream)


def _watch(driver: int, folder: str) -> None:
    while _lives(driver):
        time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _lives(driver: int) -> bool:
    if sys.platform == "win32":  # where the parent's id stays when the parent is gone
        import psutil

        return psutil.pid_exists(driver)
    return os.getppid() == driver


def start_jobs() -> bytes:
    """Do the set-up, and return its packed outcome: an error, or nothing."""
    ready = _ready("", _load)
    return to_bytes(packed(Outcome(None, ready.error, ready.traceback, ready.warnings)))


def do_job(job: bytes) -> bytes:
    """Do one packed job and return its packed outcome."""
    return _result(_ready("", _load), job)


# --- processes of a Ray cluster --------------------------------------------------------------------------------------


def do_ray_job(run: str, shared: Any, job: bytes, last: str = "") -> bytes:
    """Do one job and return its packed outcome.

    Args:
        run: names the run; Ray hands tasks of several to one process.
        shared: (n,) uint8, the packed (setup, payload).
        job: the packed job.
        last: a folder that is to come last where modules are looked for. Ray puts the driver's current folder first,
            where a torch.py that happens to lie there would take the place of the installed one.
    """
    if last in sys.path:
        sys.path[:] = [*(entry for entry in sys.path if entry != last), last]
    return _result(_ready(run, lambda: from_bytes(shared)), job)
