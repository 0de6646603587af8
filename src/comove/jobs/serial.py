"""All jobs in this process, one after another, in order."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from comove.jobs.base import Executor, Results, Work, one_torch_thread

__all__ = ["Serial"]


@dataclass(frozen=True)
class Serial(Executor):
    """One job after another in this process; what every other executor must equal to the bit."""

    def results(self, work: Work) -> Results:
        """Yield (index, result) in the order of the jobs."""
        with one_torch_thread():
            do = work.setup(work.payload)
        for index, job in enumerate(work.jobs):
            with one_torch_thread():
                result = do(job)
            yield index, result

    def session(self) -> AbstractContextManager[object]:
        """There is nothing to keep."""
        return nullcontext()
