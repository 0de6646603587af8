"""The best k of many queries at once, as tiles of scores go by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from comove.correlation.inputs import Side
from comove.correlation.standardise import namespace

__all__ = ["NOTHING", "TopK", "descending", "pack", "unpack"]

NOTHING = -(0x7F800001 << 32)  # below the key of any finite score, above the least int64; reads back as -inf


def pack(scores: Any, rank: Any) -> Any:
    """One int64 that orders by score and, among equal scores, by falling rank: a maximum then needs no tie rule."""
    xp = namespace(scores)
    bits = (scores + 0.0).view(xp.int32)  # + 0.0 makes one zero of -0.0 and 0.0
    high = xp.asarray(xp.where(bits < 0, bits ^ 0x7FFFFFFF, bits), dtype=xp.int64)
    return (high << 32) | (0xFFFFFFFF - rank)


def unpack(keys: Any) -> tuple[Any, Any]:
    """Ranks and scores."""
    xp = namespace(keys)
    bits = xp.asarray(keys >> 32, dtype=xp.int32)
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF), xp.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(xp.float32)


def descending(keys_QK: Any) -> Any:
    """Each row sorted, highest first."""
    if isinstance(keys_QK, torch.Tensor):
        return keys_QK.sort(dim=1, descending=True).values
    keys_QK.sort(axis=1)
    return np.ascontiguousarray(keys_QK[:, ::-1])


class TopK:
    """The best k keys (B, K) of B queries; column 0 holds each query's smallest, the bar to pass.

    What equals a bar is packed too, and compared by its key: ``rank_N`` says which of equal scores goes first.
    """

    def __init__(self, train: Side, width: int, k: int, limit: float, rank_N: Any) -> None:
        self.keys_BK = train.zeros(width, k, dtype="int64") + NOTHING
        self._limit, self._begun, self._rank_N = limit, False, rank_N
        self._settled()

    def look(self, first: int, tile_NB: Any) -> None:
        """Take what of a tile of scores beats the bar, the tile's first row being the training example ``first``."""
        k, width = self.keys_BK.shape[1], tile_NB.shape[1]
        if isinstance(tile_NB, torch.Tensor):
            rank_N = self._rank_N[first : first + len(tile_NB)]
            found = pack(tile_NB.clamp(-self._limit, self._limit).T.contiguous(), rank_N)
            self.keys_BK = torch.cat([self.keys_BK, found], 1).topk(k).values
            return
        at = np.flatnonzero(tile_NB >= (self._bar_B if self._begun else self._first_bar(tile_NB)))
        self._begun = True
        row = at // width
        column = (at - row * width).astype(np.uint16)  # a tile is narrower than 65,536: _join sorts them by radix
        scores = tile_NB.reshape(-1).take(at).clip(-self._limit, self._limit)
        keys = pack(scores, self._rank_N.take(row + first))
        better = keys > self.keys_BK[:, 0].take(column)  # of those that equal the bar, the ones that go before it
        self._found.append((column[better], keys[better]))
        self._waiting += int(np.count_nonzero(better))
        if 2 * self._waiting > k * width:
            self.settle()

    def settle(self) -> None:
        """Keep the best of all candidates."""
        if self._waiting:
            columns, keys = zip(*self._found, strict=True)
            self.keys_BK = _join(self.keys_BK, np.concatenate(columns), np.concatenate(keys))
        self._settled()

    def _settled(self) -> None:
        self._found: list[tuple[Any, Any]] = []
        self._waiting = 0
        self._bar_B = self._open(unpack(self.keys_BK[:, 0])[1])

    def _open(self, bar_B: Any) -> Any:
        """Let everything pass a bar at the lower limit: all that is clipped to it is equal."""
        bar_B[bar_B <= -self._limit] = -float("inf")
        return bar_B

    def _first_bar(self, tile_NB: Any) -> Any:
        """No bar yet: the k-th best of the first tile; itself and its equals pass."""
        k, limit = self.keys_BK.shape[1], np.float32(self._limit)
        if len(tile_NB) <= k:
            return self._bar_B
        kth_B = np.partition(np.ascontiguousarray(tile_NB.T), -k, axis=1)[:, -k]
        return self._open(np.minimum(kth_B, limit))


def _join(best_BK: Any, column: Any, key: Any) -> Any:
    width, k = best_BK.shape
    order = np.argsort(column, kind="stable")
    count_B = np.bincount(column, minlength=width)
    place = np.arange(len(column)) - np.repeat(count_B.cumsum() - count_B, count_B) + k
    all_BK = np.full((width, k + int(count_B.max())), np.iinfo(np.int64).min)
    all_BK[:, :k] = best_BK
    all_BK.reshape(-1)[column[order].astype(np.int64) * all_BK.shape[1] + place] = key[order]
    all_BK.partition(all_BK.shape[1] - k, axis=1)
    return all_BK[:, all_BK.shape[1] - k :]
