"""JSON documents: written with a checksum, read strictly.

Whatever a file holds, reading it gives an object of plain values or a :class:`comove.errors.CorruptFileError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from comove.checks import check_text
from comove.errors import ComoveError, CorruptFileError, InputError
from comove.store.checksums import BLANK, is_intact, seal
from comove.store.files import write_bytes

__all__ = [
    "as_read",
    "check_content",
    "entries",
    "parse_json",
    "read_document",
    "read_json",
    "understanding",
    "write_json",
]

SEAL = re.compile(rb'"checksum": "blake2b-([0-9a-f]{32})"\n\}\n\Z')
WORDS = re.compile(rb'("checksum"|blake2b-).{0,80}\Z', re.DOTALL)
LONGEST_INTEGER = 20
"""Digits of the longest integer that a file of ours holds: an unsigned one of 64 bits."""
DEEPEST = 32
"""Objects and lists within one another."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a checksum as its last entry.

    Raises:
        InputError: text or nesting that :func:`read_json` would refuse.
        StorageError: it cannot be written.
    """
    check_content(content, path)
    text = json.dumps({**content, "checksum": BLANK}, indent=1, sort_keys=False, allow_nan=False)
    write_bytes(path, seal((text + "\n").encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; one of an earlier version, or made by hand, may have no checksum.

    Raises:
        CorruptFileError: the file is missing, has changed since it was written, is not JSON, or holds something else
            than an object.
    """
    content, intact = read_document(path)
    if intact is False:
        raise CorruptFileError(f"{path} has changed since it was written: {REMEDY}")
    return content


REMEDY = (
    "restore it from a copy, or run the command that made it again, which sets what is damaged aside and makes it anew "
    "(a trace of your own loop must be recorded again)."
)


def read_document(path: Path) -> tuple[dict[str, Any], bool | None]:
    """Read a JSON object; return it, and whether its checksum matches (``None``: it never had a checksum).

    Raises:
        CorruptFileError: the file is missing, is not JSON, or holds something else than an object.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path} does not exist; is {path.parent} the folder you meant?") from error
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read ({error.strerror or error}).") from error
    content, intact = parse_json(text, path), is_intact(text, SEAL, WORDS)
    if intact is not None:
        content.pop("checksum", None)
    return content, intact


def parse_json(text: bytes | str, where: object, *, finite: bool = True) -> dict[str, Any]:
    """Parse a text that is one JSON object.

    Args:
        text: UTF-8.
        where: the file, for messages.
        finite: whether NaN and infinities are refused.

    Raises:
        CorruptFileError: not JSON, not an object, a name given twice, numbers or nesting beyond what comove writes,
            text that is not valid Unicode.
    """

    def constant(name: str) -> float:
        if finite:
            raise ValueError(f"the number {name}")
        return float(name.replace("Infinity", "inf"))

    try:
        content = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            parse_constant=constant,
            parse_float=_real,
            parse_int=_whole,
            object_pairs_hook=_object,
        )
        _check(content, DEEPEST)
    except (ValueError, RecursionError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CorruptFileError(f"{where} is not readable as JSON ({told}): {REMEDY}") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{where} must hold a JSON object, found {type(content).__name__}.")
    return content


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]}")
    return value


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _check(value: Any, depth: int) -> None:
    """Refuse what would break later: lone surrogates, which no file or screen takes, and nesting."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list | tuple):
        if not depth:
            raise RecursionError
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            if isinstance(part, str | dict | list | tuple):
                _check(part, depth - 1)


def check_content(content: object, where: object) -> None:
    """Refuse to write what reading would refuse.

    Raises:
        InputError: text with lone surrogates; objects or lists nested more than :data:`DEEPEST` deep.
    """
    try:
        _check(content, DEEPEST)
    except UnicodeEncodeError as error:
        check_text([error.object], f"What {where} holds")
    except RecursionError as error:
        raise InputError(f"What {where} holds must not be nested more than {DEEPEST} deep.") from error


def as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object as it will be read back: tuples become lists, names strings."""
    found: dict[str, Any] = json.loads(json.dumps(content))
    return found


# --- entries by name and kind ------------------------------------------------------------------------------------


def entries(
    content: object, where: object, kinds: Mapping[str, Any], optional: Mapping[str, Any] = {}
) -> dict[str, Any]:  # never written to
    """Return the entries of a JSON object that are named, each checked to be what it must be.

    Args:
        content: the object.
        where: what it was read from, for messages.
        kinds: by name, ``int`` (of 64 bits), ``float`` (finite; integers are taken), ``str``, ``bool``, ``dict``,
            ``list``, ``list[...]``, ``None``, ``object`` (anything), or a union of these.
        optional: likewise; an entry that is absent is ``None``.

    Raises:
        CorruptFileError: no object, an entry that is missing or is of another kind.
    """
    if not isinstance(content, Mapping):
        raise CorruptFileError(f"{where} must hold a JSON object, found {_told(content)}: {REMEDY}")
    absent = sorted(kinds.keys() - content.keys())
    if absent:
        raise CorruptFileError(f"{where} lacks {', '.join(absent)}: {REMEDY}")
    found = {name: content.get(name) for name in (*kinds, *optional)}
    for name, value in found.items():
        kind = kinds.get(name, optional.get(name))
        if not (name in optional and value is None) and not fits(value, kind):
            what = kind.__name__ if isinstance(kind, type) else kind
            raise CorruptFileError(f"{where}: {name} must be of type {what}, found {_told(value)}. {REMEDY}")
    return found


def fits(value: object, kind: Any) -> bool:
    """Return whether a JSON value is of a type, as :func:`entries` defines types."""
    if isinstance(kind, UnionType):
        return any(fits(value, part) for part in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(part, get_args(kind)[0]) for part in value)
    kind = get_origin(kind) or kind
    if kind is None or kind is type(None):
        return value is None
    if isinstance(value, bool) and kind in (int, float):
        return False
    if kind is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= 1e300
    return isinstance(value, kind)


def _told(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


@contextmanager
def understanding(where: object) -> Iterator[None]:
    """Report a file whose content cannot be turned into a result as damaged.

    Raises:
        CorruptFileError: instead of an error of the values in the file, raised in the block.
    """
    try:
        yield
    except CorruptFileError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        told = error if isinstance(error, ComoveError) else f"{type(error).__name__}: {error}"
        raise CorruptFileError(f"{where} does not hold what it should ({told}): {REMEDY}") from error
