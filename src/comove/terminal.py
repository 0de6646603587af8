"""Standard output and standard error as a program meets them: a terminal, a log, or a pipe whose reader has left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console"]


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that outlives its reader: after ``| head`` has ended nothing more is printed, and work goes on.

    Args:
        stderr: print on standard error instead of standard output.
        width: letters a line; by default the terminal's.
    """
    from rich.console import Console

    class Lasting(Console):
        """What is printed to a closed pipe is lost; rich's own console would end the program."""

        def on_broken_pipe(self) -> None:
            """Send the rest of this stream nowhere."""
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)

    return Lasting(stderr=stderr, width=width)
