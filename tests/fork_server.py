"""A process with everything imported that forks children: code in a process of its own, started in milliseconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

STRICT = "import warnings; warnings.simplefilter('error'); "
"""Code to put in front: every warning is an error, as with ``python -W error``."""

SERVER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
from comove.data.builtin import load_dataset
load_dataset("digits", limit=200, queries=40)  # imports what reads it
import comove.evaluation, filelock

for line in sys.stdin:
    code, arguments, files, folder = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for stream, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_TRUNC), stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(folder)
            sys.argv = ["test", *arguments]
            exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
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
        self.output, self.errors = folder / "output.txt", folder / "errors.txt"
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, code: str, *arguments: object, cwd: Path | None = None) -> int:
        """Start a child that runs ``code``; returns its process id. It must be waited for or killed."""
        self.output.write_text("")
        self.errors.write_text("")
        files = str(self.output), str(self.errors)
        return self._answer(json.dumps([code, list(map(str, arguments)), files, str(cwd or Path.cwd())]))

    def wait(self) -> int:
        """Wait for the child's end; returns its exit code, negative for the signal that ended it."""
        return self._answer("wait")

    def kill(self) -> int:
        """Kill the child with SIGKILL, unless it has ended just now; returns its exit code."""
        return self._answer("kill")

    def run(self, code: str, *arguments: object, cwd: Path | None = None) -> str:
        """Run ``code`` to its end, and return what it printed."""
        self.start(code, *arguments, cwd=cwd)
        assert self.wait() == 0, self.errors.read_text()
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
