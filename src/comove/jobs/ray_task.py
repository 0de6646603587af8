"""What runs in a worker process of a Ray cluster: one job a task, the set-up once a process."""

from __future__ import annotations

import sys
from typing import Any

from comove.jobs.job_result import Outcome, attempt, packed
from comove.jobs.serialization import from_bytes, to_bytes

__all__ = ["do_job"]

# Ray hands task after task to the same process; what the tasks of a run share is made once and lives here.
_prepared: dict[str, Outcome] = {}


def do_job(run: str, shared: Any, job: bytes, last: str = "") -> bytes:
    """Do one job and return its packed outcome.

    Args:
        run: names the run; the set-up of another run is dropped.
        shared: (n,) uint8, the packed (setup, payload).
        job: the packed job.
        last: a folder that is to come last where modules are looked for. Ray puts the driver's current folder first,
            where a torch.py that happens to lie there would take the place of the installed one.
    """
    if last in sys.path:
        sys.path[:] = [*(entry for entry in sys.path if entry != last), last]
    if run not in _prepared:
        _prepared.clear()
        _prepared[run] = attempt(lambda: _set_up(shared))
    ready = _prepared[run]
    if ready.error is not None:
        return to_bytes(packed(ready))
    outcome = attempt(lambda: ready.result(from_bytes(job)))
    outcome.warnings[:0] = ready.warnings
    return to_bytes(packed(outcome))


def _set_up(shared: Any) -> Any:
    setup, payload = from_bytes(shared)
    return setup(payload)
