"""Jobs in, results delivered: the one function that callers use, and executors by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TypeVar

from comove.errors import InputError, did_you_mean
from comove.jobs.base import Executor, Serial, Work
from comove.jobs.local import Local
from comove.jobs.progress import progress_bar
from comove.jobs.ray_cluster import RayCluster

__all__ = ["as_executor", "run_jobs"]

Job = TypeVar("Job")
Result = TypeVar("Result")
Payload = TypeVar("Payload")
_NAMES = ("serial", "local", "ray")


def run_jobs(
    jobs: Sequence[Job],
    setup: Callable[[Payload], Callable[[Job], Result]],
    payload: Payload,
    deliver: Callable[[Job, Result], None],
    *,
    executor: Executor | str = "local",
    description: str,
    progress: bool = False,
    size: Callable[[Job], int] | None = None,
) -> int:
    """Do all jobs wherever ``executor`` says, deliver every result here, and return how many there were.

    Results arrive in any order, are delivered one at a time in the calling thread, and (on processors of one kind) are
    the same bits whichever executor made them. When a job raises, what has arrived is delivered, the workers end and
    the error goes up; an interrupt (Ctrl-C) ends the workers too. A worker that dies (killed, out of memory) costs its
    job a retry.

    Args:
        jobs: small picklable values, each independent of the others.
        setup: called once in every process that works, with ``payload``; returns the function that does one job.
        payload: whatever all jobs share; sent once to every process that works.
        deliver: called with a job and its result; the only one to write.
        executor: an :class:`Executor`, or ``"serial"``, ``"local"``, ``"ray"``.
        description: for the progress bar.
        progress: whether to show it.
        size: how many units of the bar a job is; 1 by default.

    Raises:
        InputError: an unknown executor, or one whose package is not installed.
        JobLostError: every process that ran one job died.

    Example:
        >>> from comove.jobs import run_jobs
        >>> done = {}
        >>> run_jobs([1, 2, 3], lambda base: lambda job: base ** job, 10, done.__setitem__, description="powers")
        3
        >>> done
        {1: 10, 2: 100, 3: 1000}
    """
    chosen = as_executor(executor) if isinstance(executor, str) else executor
    units = [1 if size is None else size(job) for job in jobs]
    if not units:
        return 0
    results = chosen.results(Work(jobs, setup, payload))
    with progress_bar(description, sum(units), shown=progress) as advance, closing(results):
        for index, result in results:
            deliver(jobs[index], result)
            advance(units[index])
    return len(units)


def as_executor(
    name: str, workers: int | None = None, address: str | None = None, gpus: float = 0
) -> Serial | Local | RayCluster:
    """Build an executor by name, as the command line does.

    Args:
        name: ``"serial"``, ``"local"`` or ``"ray"``.
        workers: worker processes of ``local``; by default as many as pay.
        address: of a running Ray cluster, ``"auto"`` for the one on this machine.
        gpus: GPUs a job needs on Ray; 0.25 puts four jobs on one.

    Raises:
        InputError: an unknown name, or an argument that this executor has no use for.
    """
    if name not in _NAMES:
        raise InputError(f"The executor must be serial, local or ray, not {name!r}.{did_you_mean(name, _NAMES)}")
    if workers is not None and name != "local":
        raise InputError(f"Only the local executor takes a number of workers; {name} was given {workers}.")
    if name != "ray" and (address is not None or gpus):
        raise InputError(f"Only the ray executor takes an address and GPUs a job; {name} has none: leave them out.")
    if name == "ray":
        return RayCluster(address, num_gpus=gpus)
    return Serial() if name == "serial" else Local(workers)
