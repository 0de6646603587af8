"""Worker processes and the queue of jobs that they share.

Every worker has a thread that feeds it and puts what comes back among the events. The generators here run in the
driver's own thread, which an interrupt (Ctrl-C) therefore reaches at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from comove.jobs.base import Results, job_lost
from comove.jobs.job_result import collect
from comove.jobs.serialization import Parts
from comove.jobs.worker_process import Event, WorkerProcess

__all__ = ["Crew"]

_JOIN_SECONDS = 5.0
_RESULTS_A_WORKER = 3
"""Results in the making or waiting to be delivered; the workers pause above that."""


class Crew:
    """Jobs 0 ... n-1 and the processes that do them; none at first.

    Args:
        jobs: the jobs.
        retries: how often a job is begun again after the process that did it died.

    Attributes:
        left: how many results are still to come.
        ready: whether a worker has finished its set-up.
        workers: the processes that were started and have not died.
    """

    def __init__(self, jobs: Sequence[Any], retries: int) -> None:
        self.left = len(jobs)
        self.ready = False
        self.workers: list[WorkerProcess] = []
        self._jobs, self._retries = jobs, retries
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._room = threading.Semaphore(0)  # a delivery slower than the workers must not pile up results in memory
        self._deaths: Counter[int | None] = Counter()
        self._warned: set[Any] = set()
        self._parts: Parts = ()
        self._gpus = 0
        for index in range(len(jobs)):
            self._queue.put(index)

    def start(self, parts: Parts, workers: int, gpus: int = 0) -> None:
        """Start workers and send each ``parts``, the packed (setup, payload); spread them over ``gpus`` devices."""
        self._parts, self._gpus = parts, gpus
        self._room.release(_RESULTS_A_WORKER * workers)
        for slot in range(workers):
            self._start_one(slot)

    def _start_one(self, slot: int) -> None:
        device = str(slot % self._gpus) if self._gpus > 1 else ""
        self.workers.append(WorkerProcess(slot, device, self._parts, self._jobs, self._queue, self._events, self._room))

    def take(self) -> int | None:
        """Take the next job off the queue, for the driver to do itself; None when there is none."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def arrived(self) -> Results:
        """Yield what has come back, without waiting."""
        while not self._events.empty():
            yield from self._handle(self._events.get())

    def rest(self) -> Results:
        """Yield all that is still to come, waiting for it."""
        while self.left:
            yield from self._handle(self._events.get())

    def good(self) -> Results:
        """Yield the results that have come back, and nothing else: an error is about to go up."""
        while not self._events.empty():
            event = self._events.get()
            if event.index is not None and event.outcome is not None and event.outcome.error is None:
                yield event.index, event.outcome.result

    def stop(self) -> None:
        """End all workers at once."""
        for worker in self.workers:
            worker.kill()
            self._room.release()
            self._queue.put(None)
        deadline = time.monotonic() + _JOIN_SECONDS
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _handle(self, event: Event) -> Results:
        try:
            if event.outcome is None:
                self._replace(event)
                return
            job = "set-up" if event.index is None else self._jobs[event.index]
            result = collect(event.outcome, job, self._warned)
        except Exception:
            yield from self.good()
            raise
        if event.index is None:
            self.ready = True
            self._deaths[None] = 0  # workers can start here
        else:
            self.left -= 1
            self._room.release()
            yield event.index, result

    def _replace(self, event: Event) -> None:
        """Start another worker for one that died, and put its job back."""
        self.workers.remove(event.worker)
        self._deaths[event.index] += 1
        if self._deaths[event.index] > self._retries:
            job = "the set-up of the workers" if event.index is None else f"job {self._jobs[event.index]}"
            raise job_lost(job, self._deaths[event.index], event.death)
        if event.index is not None:
            self._room.release()
            self._queue.put(event.index)
        self._start_one(event.worker.slot)
