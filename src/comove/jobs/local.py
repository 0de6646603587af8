"""Jobs in worker processes of this machine: the default.

Without a number of workers the jobs begin in this process. Workers are started once the time left, judged by the last
job, pays for their start (each imports torch), and this process goes on with jobs until they are ready.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from comove.errors import InputError
from comove.jobs.base import Executor, Results, Serial, Work, check_retries, torch_threads
from comove.jobs.serialization import Parts, pack
from comove.jobs.worker_pool import WorkerPool

__all__ = ["Local", "processor", "usable_cpus"]

START_SECONDS = 6.0
"""What a worker needs before its first job, besides the set-up that is timed here: mostly the import of torch."""


@dataclass(frozen=True)
class Local(Executor):
    """Worker processes on this machine, one torch thread each.

    What jobs print in a worker is not shown; their warnings are, once each. Jobs must not depend on settings of this
    process (default dtype, deterministic algorithms): workers do not have them.

    Args:
        workers: number of worker processes, started in any case. By default one a usable core, started only where
            they pay; jobs that use a GPU then stay in this process, or get one process a GPU where there are several.
        retries: how often a job is begun again after the process that did it died.

    Raises:
        InputError: ``workers`` below 1 or negative ``retries``.
    """

    workers: int | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers must be at least 1, not {self.workers}; leave it out to have it chosen.")
        check_retries(self.retries)

    def results(self, work: Work) -> Results:
        """Yield (index, result) as they are done."""
        pool = WorkerPool(work.jobs, self.retries)
        try:
            if self.workers is None:
                yield from _begin_here(work, pool)
            elif (parts := _sendable(work)) is None:
                yield from Serial().results(work)
                return
            else:
                pool.start(parts, min(self.workers, len(work.jobs)), _gpus())
            yield from pool.rest()
        finally:
            pool.stop()

    def session(self) -> AbstractContextManager[object]:
        """There is nothing to keep: every run has workers of its own, set up for it."""
        return nullcontext()


def _begin_here(work: Work, pool: WorkerPool) -> Results:
    """Do jobs in this process until workers are ready, or to the end when none would pay."""
    started, allocations = time.perf_counter(), _gpu_allocations()
    with torch_threads(1):
        do = work.setup(work.payload)
    start_seconds = START_SECONDS + time.perf_counter() - started
    tried = False
    while not pool.ready and (index := pool.take()) is not None:
        started, worked = time.perf_counter(), time.process_time()
        try:
            with torch_threads(1):
                result = do(work.jobs[index])
        except Exception:
            yield from pool.good()
            raise
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        pool.left -= 1
        yield index, result
        on_gpu = _gpu_allocations() > allocations
        most = _gpus() if on_gpu else usable_cpus()
        seconds = seconds if on_gpu else worked  # others' work makes jobs and starts longer alike
        if not tried and (workers := _paying_workers(most, pool.left, seconds, start_seconds)):
            tried, parts = True, _sendable(work)
            if parts is not None:
                pool.start(parts, workers, _gpus())
        yield from pool.arrived()


def _paying_workers(most: int, left: int, seconds: float, start_seconds: float) -> int:
    """Return how many workers end ``left`` jobs of ``seconds`` each sooner than this process alone, or 0."""
    workers = min(most, left)
    return workers if workers > 1 and left * seconds * (1 - 1 / workers) > start_seconds else 0


def _sendable(work: Work) -> Parts | None:
    """Pack what workers need; None, with a warning that says why, when it cannot be sent."""
    try:
        return pack((work.setup, work.payload))
    except Exception as error:  # pickling raises what it likes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(
            f"Jobs run one after another in this process, as what they need cannot be sent to others ({reason}).",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def usable_cpus() -> int:
    """Return how many cores this process may use: affinity (Slurm) and the container's quota (Kubernetes) counted."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def processor() -> str:
    """Return the processor's name, where the system tells; else its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _gpu_allocations() -> int:
    """Return how often this process has allocated memory on a GPU: when it grows, the jobs compute there.

    One process keeps a GPU busy; several would only share its memory. So such jobs get a process a GPU, not a core.
    """
    import torch

    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count() if used else 0)
    return sum(torch.cuda.memory_stats(device).get("allocation.all.allocated", 0) for device in devices)
