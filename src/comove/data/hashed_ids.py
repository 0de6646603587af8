"""Ids from what examples are, not from where they stand: those of the others stay when files are added or deleted.

id = the first 53 bits of BLAKE2b(name). So many are exact in JSON, in JavaScript and in a table read as floating-point
numbers; two of a million names are alike with a probability of about 1 in 18,000, and are refused.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from comove.data.examples import Ids
from comove.errors import InputError

__all__ = ["hashed_ids"]

BITS = 53


def hashed_ids(names: Sequence[str], digest_bits: int = BITS) -> Ids:
    """Return (N,) ids of names, such as paths relative to a folder; letters with accents count the same however coded.

    Args:
        names: (N,) different ones.
        digest_bits: at most 63.

    Raises:
        InputError: two names with one id.

    >>> hashed_ids(["cat/001.png", "dog/001.png"]).tolist()
    [8252374256987513, 6867293710679451]
    """
    found: dict[int, str] = {}
    for name in names:
        plain = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
        id_ = int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big") >> (64 - digest_bits)
        if id_ in found:
            raise InputError(f"{found[id_]!r} and {name!r} have one id, {id_}; rename one of them.")
        found[id_] = name
    return np.array(list(found), np.int64)
