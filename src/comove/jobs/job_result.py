"""What a worker sends back for a job: its result or its error, and the warnings on the way."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from comove.jobs.base import torch_threads
from comove.jobs.serialization import Parts, pack, unpack

__all__ = ["Outcome", "attempt", "collect", "packed"]

_Warning = tuple[str, type[Warning], str, int]


@dataclass
class Outcome:
    """A result, or an error with its traceback; and the warnings: (text, category, file, line)."""

    result: Any = None
    error: BaseException | None = None
    traceback: str = ""
    warnings: list[_Warning] = field(default_factory=list)


def attempt(do: Callable[[], Any]) -> Outcome:
    """Call ``do`` in a worker on one torch thread, and catch what it raises and warns of."""
    outcome = Outcome()
    with _recorded(outcome.warnings), torch_threads(1):
        try:
            outcome.result = do()
        except (Exception, SystemExit) as error:
            outcome.error, outcome.traceback = error, "".join(traceback.format_exception(error))
    return outcome


@contextmanager
def _recorded(into: list[_Warning]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # each once: what to do about it is decided by the driver's filters
        yield
    into.extend((str(item.message), item.category, item.filename, item.lineno) for item in caught)


def packed(outcome: Outcome) -> Parts:
    """Pack an outcome to be sent; what cannot be pickled becomes an error that says so."""
    try:
        parts = pack(outcome)
        if outcome.error is not None and not isinstance(unpack(parts).error, Exception):
            raise TypeError("not an error that can be raised in the driver")  # SystemExit would end it silently
    except Exception as error:
        cause = outcome.error or error
        plain = RuntimeError(f"{type(cause).__name__}: {cause}")
        text = outcome.traceback or "".join(traceback.format_exception(error))
        return pack(Outcome(None, plain, text, outcome.warnings))
    return parts


def collect(outcome: Outcome, job: object, warned: set[_Warning]) -> Any:
    """Return the result in the driver, or raise the worker's error; pass on warnings not yet in ``warned``."""
    for warning in outcome.warnings:
        if warning not in warned:
            warned.add(warning)
            warnings.warn_explicit(*warning)
    if outcome.error is None:
        return outcome.result
    if outcome.traceback:
        outcome.error.add_note(f"In a worker process, job {str(job)[:200]}:\n{outcome.traceback}")
    raise outcome.error
