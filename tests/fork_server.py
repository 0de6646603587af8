"""A process with everything imported that forks children: code in a process of its own, started in milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SERVER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
from comove.data.builtin import load_dataset
load_dataset("digits", limit=200, queries=40)  # imports what reads it
import comove.evaluation, filelock

for line in sys.stdin:
    code, arguments, output = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(to, 1), os.dup2(to, 2)
            sys.argv = ["test", *arguments]
            exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
    if sys.stdin.readline() == "kill\\n":
        os.kill(child, 9)  # a child that has ended meanwhile keeps its id until it is waited for
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Warm:
    """A process that has imported torch and comove, on one thread, and forks a child that runs what it is told.

    A child is what a fresh ``python -c`` would be, but starts in milliseconds. One child at a time.
    """

    def __init__(self, folder: Path) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.output = folder / "output.txt"
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
        )

    def start(self, code: str, *arguments: object) -> int:
        """Start a child that runs ``code``; returns its process id. It must be waited for or killed."""
        self.output.write_text("")
        return self._answer(json.dumps([code, list(map(str, arguments)), str(self.output)]))

    def wait(self) -> int:
        """Wait for the child's end; returns its exit code, negative for the signal that ended it."""
        return self._answer("wait")

    def kill(self) -> int:
        """Kill the child with SIGKILL, unless it has ended just now; returns its exit code."""
        return self._answer("kill")

    def run(self, code: str, *arguments: object) -> str:
        """Run ``code`` to its end, and return what it printed."""
        self.start(code, *arguments)
        assert self.wait() == 0, self.output.read_text()
        return self.output.read_text()

    def stop(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.communicate()

    def _answer(self, request: str) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(request, file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())
