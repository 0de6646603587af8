"""Jobs whose results are files: a job is done when its file is there.

A job's result is a file that is written beside its name and renamed. The files are the only book, so whatever was
interrupted goes on with the jobs that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from comove.jobs.progress import progress_bar

__all__ = ["run_pending"]

Job = TypeVar("Job")


def run_pending(
    jobs: Sequence[Job],
    result_file: Callable[[Job], Path],
    work: Callable[[Job], None],
    *,
    description: str,
    progress: bool = False,
) -> int:
    """Run the jobs whose result file does not exist in this process, and return how many were run.

    Args:
        jobs: all jobs, in the order to run them.
        result_file: where the result of a job is.
        work: does a job and writes its result file atomically.
        description: for the progress bar.
        progress: whether to show it.
    """
    pending = [job for job in jobs if not result_file(job).exists()]
    with progress_bar(description, len(pending), shown=progress and bool(pending)) as advance:
        for job in pending:
            work(job)
            advance(1)
    return len(pending)
