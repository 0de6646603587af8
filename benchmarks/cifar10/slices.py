"""Working in slices: a clock, an executor that stops in time, and a book of what each step took."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comove.errors import CorruptFileError
from comove.jobs import Executor, as_executor
from comove.jobs.base import Results, Work
from comove.store import read_json, write_json

__all__ = ["Book", "Clock", "SliceEndedError", "Until"]


class SliceEndedError(Exception):
    """The slice has ended and there is more to do: the same command goes on."""


@dataclass
class Clock:
    """When a slice ends.

    Args:
        minutes: of the slice; ``None`` for no end.
        worked: whether anything was done in this slice.
    """

    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)
    worked: bool = False

    def left(self) -> float:
        """Seconds."""
        return float("inf") if self.minutes is None else 60 * self.minutes - (time.monotonic() - self.started)

    def check(self, needed: float = 0.0) -> None:
        """Begin nothing that takes ``needed`` seconds unless there is time for it.

        Raises:
            SliceEndedError: there is not.
        """
        if self.left() <= needed:
            raise SliceEndedError


@dataclass(frozen=True)
class Until(Executor):
    """Another executor that begins no job which could end after the slice, but does one job in any case.

    A bank whose ``run`` is given this returns with models pending; what was trained is kept.
    """

    clock: Clock
    inner: Executor = field(default_factory=lambda: as_executor("local"))

    def results(self, work: Work) -> Results:
        """Yield (index, result) until the time is up."""
        before = time.monotonic()
        waits: list[float] = []
        found = self.inner.results(work)
        try:
            for result in found:
                now = time.monotonic()
                waits, before = [*waits, now - before], now
                longest = max(waits[1:] or waits)  # the first of them holds the setting up
                yield result
                if self.clock.left() <= longest:
                    return
        finally:
            found.close()

    def session(self) -> AbstractContextManager[object]:
        """That of the other executor."""
        return self.inner.session()


class Book:
    """Seconds, FLOPs and counts by step, added up over all slices, in one JSON file.

    The file is read before each change: one process may train a bank while another one scores.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """What is in the file."""
        try:
            return read_json(self.file)
        except CorruptFileError:
            return {}

    def add(self, name: str, **amounts: float) -> None:
        """Add to an entry's numbers, and write the file."""
        entry = self.entries.get(name, {})
        self.note(name, **{key: entry.get(key, 0) + amount for key, amount in amounts.items()})

    def note(self, name: str, **values: Any) -> None:
        """Set an entry's values, and write the file."""
        entries = self.entries
        entries.setdefault(name, {}).update(values)
        write_json(self.file, entries)
