"""Worker processes and the queue of jobs that they share, on loky.

Every worker is a loky executor of one process, since loky gives up all jobs of an executor that loses a process: so a
worker that is killed costs its own job a retry, and no other. A thread per worker hands it one job after another and
puts what comes back among the events. The generators here run in the driver's own thread, which an interrupt (Ctrl-C)
therefore reaches at once.
"""

from __future__ import annotations

import os
import queue
import re
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from comove.jobs.base import Results, job_lost
from comove.jobs.job_result import Outcome, collect
from comove.jobs.serialization import Parts, chunks, from_bytes, pack, to_bytes
from comove.jobs.worker import ARRAYS, do_job, import_path, start, start_jobs

__all__ = ["WorkerPool"]

_SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Python then imports nothing from the current folder, where a json.py may lie."""
_JOIN_SECONDS = 5.0
_LAST_WORDS = 1_000
_RESULTS_PER_WORKER = 3
"""Results in the making or waiting to be delivered; the workers pause above that."""

_Event = tuple[int | None, Outcome]
"""What became of a job, or of a worker's set-up (None)."""


class WorkerDiedError(Exception):
    """A worker process ended before its outcome had come."""


class WorkerPool:
    """Jobs 0 ... n-1 and the processes that do them; none at first.

    Args:
        jobs: the jobs.
        retries: how often a job is begun again after the process that did it died.

    Attributes:
        left: how many results are still to come.
        ready: whether a worker has finished its set-up.
    """

    def __init__(self, jobs: Sequence[Any], retries: int) -> None:
        self.left = len(jobs)
        self.ready = False
        self._jobs, self._retries = jobs, retries
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._room = threading.Semaphore(0)  # a delivery slower than the workers must not pile up results in memory
        self._deaths: Counter[int | None] = Counter()
        self._warned: set[Any] = set()
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        for index in range(len(jobs)):
            self._queue.put(index)

    def start(self, parts: Parts, workers: int, gpus: int = 0) -> None:
        """Start workers that share ``parts``, the packed (setup, payload); spread them over ``gpus`` devices."""
        self._folder = tempfile.TemporaryDirectory(prefix="comove-", ignore_cleanup_errors=True)
        with Path(self._folder.name, ARRAYS).open("wb") as file:
            file.writelines(chunks(parts[1:]))
        self._room.release(_RESULTS_PER_WORKER * workers)
        _start_trackers()
        for slot in range(workers):
            device = str(slot % gpus) if gpus > 1 else ""
            self._workers.append(_Worker(slot, self._folder.name, device, bytes(parts[0])))
            self._threads.append(threading.Thread(target=self._serve, args=(self._workers[-1],), daemon=True))
            self._threads[-1].start()

    def take(self) -> int | None:
        """Take the next job off the queue, for the driver to do itself; None when there is none."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def arrived(self) -> Results:
        """Yield what has come back, without waiting."""
        while not self._events.empty():
            yield from self._handle(*self._events.get())

    def rest(self) -> Results:
        """Yield all that is still to come, waiting for it."""
        while self.left:
            yield from self._handle(*self._events.get())

    def good(self) -> Results:
        """Yield the results that have come back, and nothing else: an error is about to go up."""
        while not self._events.empty():
            index, outcome = self._events.get()
            if index is not None and outcome.error is None:
                yield index, outcome.result

    def stop(self) -> None:
        """End all workers at once."""
        if self._workers:
            with ThreadPoolExecutor(len(self._workers)) as pool:  # each waits for the end of a process
                list(pool.map(_Worker.stop, self._workers))
        for _ in self._threads:
            self._room.release()
            self._queue.put(None)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._folder is not None:
            self._folder.cleanup()

    def _handle(self, index: int | None, outcome: Outcome) -> Results:
        try:
            result = collect(outcome, "set-up" if index is None else self._jobs[index], self._warned)
        except Exception:
            yield from self.good()
            raise
        if index is None:
            self.ready = True
            self._deaths[None] = 0  # workers can start here
        else:
            self.left -= 1
            self._room.release()
            yield index, result

    def _serve(self, worker: _Worker) -> None:
        while (outcome := self._attempt(worker, None)) is None:
            pass
        self._events.put((None, outcome))
        while outcome.error is None and (index := self._next()) is not None:
            done = self._attempt(worker, index)
            if done is None:  # its process died
                self._room.release()
                self._queue.put(index)
            else:
                outcome = done
                self._events.put((index, outcome))

    def _next(self) -> int | None:
        self._room.acquire()
        return self._queue.get()

    def _attempt(self, worker: _Worker, index: int | None) -> Outcome | None:
        """Return the outcome of a job or of the set-up (None); None where the worker died and may do it again."""
        try:
            return worker.ask(start_jobs) if index is None else worker.ask(do_job, to_bytes(pack(self._jobs[index])))
        except WorkerDiedError as death:
            self._deaths[index] += 1
            if self._deaths[index] <= self._retries:
                worker.begin()
                return None
            job = "the set-up of the workers" if index is None else f"job {self._jobs[index]}"
            return Outcome(error=job_lost(job, self._deaths[index], str(death)))
        except Exception as error:  # pickling raises what it likes
            return Outcome(error=error, traceback="".join(traceback.format_exception(error)))


def _start_trackers() -> None:
    """Start the processes that loky keeps until this one ends, which remove the semaphores it leaves when killed.

    loky would start them itself, but as ``python -c``, which imports from the current folder.
    """
    import multiprocessing.resource_tracker

    import loky.backend.resource_tracker

    before = dict(os.environ)
    os.environ.update(_SAFE_PATH)
    try:
        loky.backend.resource_tracker.ensure_running()
        if os.name == "posix":
            multiprocessing.resource_tracker.ensure_running()
    finally:
        for name in _SAFE_PATH.keys() - before.keys():
            del os.environ[name]


class _Worker:
    """One worker process at a time; the arguments are those of :func:`comove.jobs.worker.start`."""

    def __init__(self, slot: int, folder: str, device: str, pickle: bytes) -> None:
        self._messages = Path(folder, f"messages-{slot}")
        self._arguments = (os.getpid(), import_path(), folder, str(self._messages), device, pickle)
        self._lock = threading.Lock()
        self._stopped = False
        self.begin()

    def begin(self) -> None:
        """Have another process from now on."""
        import loky

        with self._lock:
            if self._stopped:
                return
            self._executor = loky.ProcessPoolExecutor(1, initializer=start, initargs=self._arguments, env=_SAFE_PATH)

    def ask(self, function: Callable[..., bytes], *arguments: bytes) -> Outcome:
        """Call ``function`` in the process, which starts with the first call, and wait for the outcome."""
        from loky.process_executor import BrokenProcessPool

        try:
            outcome = from_bytes(self._executor.submit(function, *arguments).result())
        except BrokenProcessPool as error:
            raise WorkerDiedError(self._how_it_died(str(error))) from error
        assert isinstance(outcome, Outcome)
        return outcome

    def _how_it_died(self, error: str) -> str:
        code = re.search(r"\{(.*)\}", error)  # what loky says: {SIGKILL(-9)}, {EXIT(1)}
        words = self._messages.read_bytes()[-_LAST_WORDS:] if self._messages.exists() else b""
        text = words.decode(errors="replace").strip()
        return f"by {code[1] if code else 'an unknown cause'}" + (f"; its last words were:\n{text}\n" if text else "")

    def stop(self) -> None:
        """End it for good."""
        with self._lock:
            self._stopped = True
        self._executor.shutdown(kill_workers=True)
