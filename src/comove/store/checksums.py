"""Checksums within files: a BLAKE2b checksum of a text that contains it (a seal), and a CRC-32 per block of an array.

A seal is 32 hexadecimal digits after ``blake2b-``. While the text is hashed these digits are replaced by zeros, so that
the checksum covers every other byte of the text. Files of earlier versions have no seal. They are distinguished from
damaged files by the words that surround a seal: no single changed bit removes both.
"""

from __future__ import annotations

import re
import zlib
from hashlib import blake2b

__all__ = ["BLANK", "BLOCK", "BlockSums", "block_sums", "is_intact", "seal", "sums_length"]

BLANK = "blake2b-" + "0" * 32
"""A placeholder for a seal that has not been computed yet."""
BLOCK = 1 << 18
"""Bytes of an array per CRC-32: the smallest amount that is read and checked."""
_WIDTH = 8


def seal(text: bytes) -> bytes:
    """Return ``text`` with its first :data:`BLANK` filled in."""
    start = text.index(BLANK.encode()) + len(BLANK) - 32
    return text[:start] + _hashed(text) + text[start + 32 :]


def is_intact(text: bytes, pattern: re.Pattern[bytes], words: re.Pattern[bytes]) -> bool | None:
    """Return whether a text matches its seal; ``None`` for one that never had a seal.

    Args:
        text: what was read.
        pattern: matches the seal; its first group is the 32 digits.
        words: matches a text whose seal was damaged, and no text that never had one.
    """
    found = pattern.search(text)
    if found is None:
        return False if words.search(text) else None
    blank = text[: found.start(1)] + b"0" * 32 + text[found.end(1) :]
    return found[1] == _hashed(blank)


def _hashed(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).hexdigest().encode()


class BlockSums:
    """The CRC-32 of each :data:`BLOCK` bytes of an array that is passed in pieces of any size."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._size = 0

    def add(self, piece: memoryview) -> None:
        """Add the next bytes."""
        while piece.nbytes:
            used = self._size % BLOCK
            if not used:
                self._sums.append(0)
            part = piece[: BLOCK - used]
            self._sums[-1] = zlib.crc32(part, self._sums[-1])
            self._size += part.nbytes
            piece = piece[part.nbytes :]

    def __str__(self) -> str:
        return "".join(f"{value:0{_WIDTH}x}" for value in self._sums)


def block_sums(content: memoryview) -> str:
    """Return the CRC-32 of every block of ``content``, eight hexadecimal digits each."""
    sums = BlockSums()
    sums.add(content)
    return str(sums)


def sums_length(size: int) -> int:
    """Return how many digits the sums of ``size`` bytes take."""
    return _WIDTH * -(-size // BLOCK)
