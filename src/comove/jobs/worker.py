"""What runs in a worker process: jobs come in on its standard input, outcomes go out on its standard output.

It is started by :mod:`comove.jobs.local`, never imports the user's script, ignores Ctrl-C (the driver ends it),
and ends by itself as soon as the driver is gone, be it in the middle of a job.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from queue import SimpleQueue
from typing import IO

from comove.jobs.job_result import attempt, packed
from comove.jobs.serialization import Parts, receive, send, unpack

__all__ = ["main"]


def main(driver: int, device: str) -> None:
    """Serve the driver with process id ``driver`` until it closes the pipe; ``device``: CUDA device, "" for none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox, outbox = _take_over_pipes()
    messages: SimpleQueue[Parts] = SimpleQueue()
    threading.Thread(target=_listen, args=(inbox, messages), daemon=True).start()
    threading.Thread(target=_watch, args=(driver,), daemon=True).start()
    ready = attempt(lambda: _set_up(messages.get(), device))
    do, ready.result = ready.result, None
    send(outbox, packed(ready))
    while True:
        job = messages.get()
        send(outbox, packed(attempt(lambda: do(unpack(job)))))  # noqa: B023  # called at once


def _set_up(parts: Parts, device: str) -> object:
    if device:
        import torch

        torch.cuda.set_device(int(device))
    setup, payload = unpack(parts)
    return setup(payload)


def _take_over_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the two pipes for ourselves: a job that prints or reads must not meddle with them."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return inbox, outbox


def _listen(inbox: IO[bytes], messages: SimpleQueue[Parts]) -> None:
    try:
        while True:
            messages.put(receive(inbox))
    except (EOFError, OSError):
        os._exit(0)  # the driver is done with us, or gone


def _watch(driver: int) -> None:
    """End when the driver is gone although some process it forked still holds the other end of our pipe."""
    while os.getppid() == driver or sys.platform == "win32":
        time.sleep(0.5)
    os._exit(0)
