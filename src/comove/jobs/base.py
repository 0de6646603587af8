"""What an executor is: it turns a list of jobs into a stream of results, in whatever order they come.

:class:`Serial` is the plainest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from comove.errors import ComoveError, InputError

__all__ = ["Executor", "JobLostError", "Results", "Serial", "Work", "check_retries", "job_lost", "torch_threads"]

Results = Generator[tuple[int, Any], None, None]
"""Yields (index of the job, its result); closing it ends the workers."""


class JobLostError(ComoveError, RuntimeError):
    """A job was given up: every process that ran it died."""


@dataclass(frozen=True)
class Work:
    """The jobs and what is needed to do them.

    Args:
        jobs: small picklable values, each independent of the others.
        setup: called once in every process that works, with ``payload``; returns the function that does one job.
        payload: whatever all jobs share (data, recipe); sent once to every process that works.
    """

    jobs: Sequence[Any]
    setup: Callable[[Any], Callable[[Any], Any]]
    payload: Any


class Executor(ABC):
    """Where jobs run. Build one with :func:`as_executor`, or as ``Serial()``, ``Local()``, ``RayCluster()``."""

    @abstractmethod
    def results(self, work: Work) -> Results:
        """Yield (index, result) of every job once, in the order they are done.

        When a job raises, the results that had arrived are yielded first, then the error goes up. However the
        generator ends (exhausted, closed, an error, an interrupt), no process of its own outlives it.
        """

    @abstractmethod
    def session(self) -> AbstractContextManager[object]:
        """Keep what is slow to open, such as the connection to a cluster, for several runs within a ``with`` block."""


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run the block with torch on so many CPU threads; with one, sums are split alike and bits equal everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Serial(Executor):
    """One job after another in this process; what every other executor must equal to the bit."""

    def results(self, work: Work) -> Results:
        """Yield (index, result) in the order of the jobs."""
        with torch_threads(1):
            do = work.setup(work.payload)
        for index, job in enumerate(work.jobs):
            with torch_threads(1):
                result = do(job)
            yield index, result

    def session(self) -> AbstractContextManager[object]:
        """There is nothing to keep."""
        return nullcontext()


def check_retries(retries: int) -> None:
    """Refuse a negative number of retries with an :class:`InputError`."""
    if retries < 0:
        raise InputError(f"retries must be 0 or more, not {retries}: how often a lost job is begun again.")


def job_lost(job: object, deaths: int, last: str) -> JobLostError:
    """Return the error for a job whose process died again and again; ``last`` says how it died last."""
    return JobLostError(
        f"Gave up {str(job)[:200]} after {deaths} worker processes had died of it, the last one {last}. "
        "Memory running out is the likely cause: use fewer workers or smaller jobs, or find the fault with "
        "executor='serial'. Results that had arrived are kept."
    )
