"""The few exceptions that users meet.

Each is also a built-in (``ValueError``, ``TypeError``, ``RuntimeError``), so code that knows nothing of comove can
catch it; :class:`ComoveError` catches all of them, and the command line turns it into one clear line and exit code 2.
A message says what must hold, what was found, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ComoveError",
    "CorruptFileError",
    "FingerprintError",
    "InputError",
    "InputTypeError",
    "LockedError",
    "MissingExamplesError",
    "NonFiniteError",
    "NotFittedError",
    "StorageError",
    "did_you_mean",
    "first_line",
    "some",
]


class ComoveError(Exception):
    """Something the user can put right; the base of every exception comove raises on purpose."""


class InputError(ComoveError, ValueError):
    """An argument has the wrong value: shape, range, repeated ids, a budget too large."""


class InputTypeError(ComoveError, TypeError):
    """An argument has the wrong type."""


class NonFiniteError(InputError):
    """A loss is NaN or infinite; the message names the row and the example."""


class MissingExamplesError(InputError):
    """A row was closed before every example had been observed; the message names ids."""


class CorruptFileError(InputError):
    """A file is truncated, unreadable or not one of ours."""


class FingerprintError(InputError):
    """An artefact was made from other data or another recipe; the message shows both fingerprints."""


class StorageError(ComoveError, OSError):
    """A file could not be written (disk full, no permission); what stood there before is untouched."""


class LockedError(ComoveError, RuntimeError):
    """Another process works on the folder; the message names its host and process."""


class NotFittedError(ComoveError, RuntimeError):
    """``attribute`` was called before ``fit``."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean ...?"`` with the nearest of ``choices``, or ``""`` when none is near."""
    near = difflib.get_close_matches(word.lower(), list(choices), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return what an exception of somebody else's code says, in one line of at most 200 characters."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:197]}..."


def some(values: Iterable[object], limit: int = 8) -> str:
    """Write out at most ``limit`` of ``values`` for a message, and how many more there are."""
    items = [str(value) for value in values]
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")
