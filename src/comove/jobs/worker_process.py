"""One worker process, and the thread here that feeds it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from comove.jobs.job_result import Outcome
from comove.jobs.serialization import Parts, pack, receive, send, unpack

__all__ = ["Event", "WorkerProcess", "import_path"]

# The script that called us is not imported again (multiprocessing would), so it needs no `if __name__ == "__main__"`.
# Started with -P, which leaves the current folder out: a json.py that happens to lie there must not run.
_BOOT = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from comove.jobs.worker import main
main(int(sys.argv[2]), sys.argv[3])
"""
_LAST_WORDS = 1_000


def import_path() -> list[str]:
    """Where a worker looks for modules: where this process does, but in the current folder last.

    What the caller could import from there (a notebook's neighbours), the worker can; what only has the name of an
    installed module, it cannot.
    """
    entries = [entry for entry in sys.path if isinstance(entry, str)]
    relative = [entry for entry in entries if entry in ("", ".")]
    return [entry for entry in entries if entry not in ("", ".")] + ([os.getcwd()] if relative else [])


@dataclass(frozen=True)
class Event:
    """What became of a job, or of the set-up (``index`` None): an outcome, or, when that is None, how it died."""

    worker: WorkerProcess
    index: int | None
    outcome: Outcome | None
    death: str = ""


class WorkerProcess:
    """A process that is sent ``parts`` (set-up and payload), then jobs from the queue until None comes.

    Args:
        slot: which of the crew's places it fills.
        device: the CUDA device that is to be its current one, ``""`` to leave it alone.
        parts: the packed (setup, payload).
        jobs: all jobs.
        queue: indices of jobs to do, shared by all workers.
        events: where to say what became of them.
        room: acquired before a job is taken, released by whoever handles its event.
    """

    def __init__(
        self,
        slot: int,
        device: str,
        parts: Parts,
        jobs: Sequence[Any],
        queue: SimpleQueue[int | None],
        events: SimpleQueue[Event],
        room: threading.Semaphore,
    ) -> None:
        self.slot = slot
        self._parts, self._jobs, self._queue, self._events, self._room = parts, jobs, queue, events, room
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(import_path()), str(os.getpid()), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once: it holds nothing that is worth keeping."""
        self._process.kill()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread that feeds it, which waits for the process."""
        self._thread.join(seconds)

    def _serve(self) -> None:
        index: int | None = None
        try:
            outcome = self._ask(self._parts)
            self._parts = ()
            self._events.put(Event(self, index, outcome))
            while outcome.error is None and (index := self._next()) is not None:
                outcome = self._ask(pack(self._jobs[index]))
                self._events.put(Event(self, index, outcome))
        except (EOFError, OSError):
            self._events.put(Event(self, index, None, self._how_it_died()))
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            self._events.put(Event(self, index, Outcome(error=error, traceback=text)))
        finally:
            self._close()

    def _next(self) -> int | None:
        self._room.acquire()
        return self._queue.get()

    def _ask(self, parts: Parts) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        send(self._process.stdin, parts)
        answer = unpack(receive(self._process.stdout))
        assert isinstance(answer, Outcome)
        return answer

    def _how_it_died(self) -> str:
        code = self._process.wait()
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _LAST_WORDS))
        words = self._stderr.read().decode(errors="replace").strip()
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return how + (f"; its last words were:\n{words}\n" if words else "")

    def _close(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError), self._process:
            pass
        self._stderr.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
