"""Progress, when asked for: a bar with the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Advance", "log_line", "progress_bar"]

Advance = Callable[[int], None]
"""Call with the number of units done since the last call."""

LINES = 20
"""About so many lines of progress are written to a log."""


@contextmanager
def progress_bar(description: str, total: int, *, shown: bool, lines: bool = True) -> Iterator[Advance]:
    """Show progress on the standard error stream while the block runs; yields the function that advances it.

    Args:
        description: what is done.
        total: units to be done.
        shown: whether anything is shown.
        lines: where there is no terminal, whether a line is written after every twentieth part; otherwise the caller
            writes its own (:func:`log_line`).
    """
    from comove.terminal import console

    if not shown or not (lines or console(stderr=True).is_terminal):
        yield lambda done: None
    elif not console(stderr=True).is_terminal:
        yield _lines(description, total)
    else:
        with _bar(description, total) as advance:
            yield advance


def log_line(text: str, *, shown: bool) -> None:
    """Write a line of progress where there is no terminal, as in the log of a batch system."""
    from comove.terminal import console

    if shown and not (stream := console(stderr=True)).is_terminal:
        stream.print(text, soft_wrap=True, markup=False, highlight=False)


def _lines(description: str, total: int) -> Advance:
    started, every, done = time.monotonic(), max(1, -(-total // LINES)), 0

    def advance(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done // every > before // every or (done >= total > before):
            seconds = time.monotonic() - started
            left = seconds / done * (total - done)
            then = f", about {left:,.0f} s left" if done < total else ""
            log_line(f"{description}: {done:,} of {total:,}, {seconds:,.0f} s{then}", shown=True)

    return advance


@contextmanager
def _bar(description: str, total: int) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    from comove.terminal import console

    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)
