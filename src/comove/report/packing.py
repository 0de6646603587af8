"""How data is put into the page: arrays as base64 of little-endian numbers, all else as JSON that ends no script.

A browser reads ``<script type="application/json">`` as text up to the first ``</script``. So ``<``, ``>`` and ``&`` are
written as JSON escapes, and so are U+2028 and U+2029, which older JavaScript takes for ends of lines.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.store.results import as_plain

__all__ = ["base64_of", "json_for_script", "json_ids", "packed"]

ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
EXACT = 2**53
"""Integers beyond this are not exact in JavaScript."""


def base64_of(content: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")


def packed(array: npt.NDArray[Any], kind: str) -> str:
    """An array as base64 of its numbers in C order, as NumPy ``kind`` (such as ``"<f4"``)."""
    return base64_of(np.ascontiguousarray(array, dtype=np.dtype(kind)).tobytes())


def json_for_script(value: object) -> str:
    """JSON that may stand within a script element: no text in it ends the element; NaN and infinities become null."""
    text = json.dumps(as_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written


def json_ids(ids: npt.NDArray[np.int64]) -> list[Any]:
    """Ids as JSON values: text where a number of JavaScript could not hold one."""
    exact = bool((np.abs(ids) < EXACT).all())
    return ids.tolist() if exact else [str(id_) for id_ in ids.tolist()]
