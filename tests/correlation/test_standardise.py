"""Losses that lie elsewhere are read by columns; blocks refuse what is no range."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from comove.correlation import blocks, constant, pairwise, per_class, sizes, top_k
from comove.errors import InputError, InputTypeError, NonFiniteError


class Elsewhere:
    """Losses that notice who reads how much of them, and that no two threads read them at once."""

    def __init__(self, losses: np.ndarray) -> None:
        self.losses, self.shape, self.dtype = losses, losses.shape, losses.dtype
        self.widest, self._reading = 0, threading.Lock()

    def __getitem__(self, key: tuple[slice, Any]) -> np.ndarray:
        assert self._reading.acquire(blocking=False), "two threads read at once"
        part: np.ndarray = self.losses[key]
        self.widest = max(self.widest, part.shape[1])
        self._reading.release()
        return part

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise AssertionError("read whole")


def made(columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((7, columns)).astype(np.float32)


def test_losses_elsewhere_score_as_in_memory_and_are_never_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "NARROWEST", 8)
    monkeypatch.setattr(sizes, "BLOCK", {"cpu": 1})
    monkeypatch.setattr(sizes, "FAST_COLUMNS", 8)
    train, query, labels = made(70, 0), made(30, 1), np.arange(70) % 3
    far, away = Elsewhere(train), Elsewhere(query)
    np.testing.assert_array_equal(pairwise(far, away), pairwise(train, query))
    np.testing.assert_array_equal(top_k(far, away, 4)[0], top_k(train, query, 4)[0])
    own = np.arange(30) % 3
    np.testing.assert_array_equal(per_class(far, labels, away, own), per_class(train, labels, query, own))
    np.testing.assert_array_equal(constant(far), constant(train))
    assert far.widest == away.widest == 8


def test_losses_elsewhere_are_checked_as_any() -> None:
    train = made(70, 0)
    train[3, 50] = np.nan
    with pytest.raises(NonFiniteError, match="row 3, column 50"):
        pairwise(Elsewhere(train), made(3, 1))
    with pytest.raises(InputTypeError, match="real numbers"):
        pairwise(Elsewhere(train.astype("U8")), made(3, 1))
    with pytest.raises(InputError, match="at least 3 recorded rows"):
        pairwise(Elsewhere(train[:2]), made(3, 1))


@pytest.mark.parametrize(
    ("start", "stop", "error", "message"),
    [
        (-1, None, InputError, "0 <= start < stop <= 70; found -1 and 70"),
        (0, 71, InputError, "found 0 and 71"),
        (5, 5, InputError, "found 5 and 5"),
        (0.5, None, InputTypeError, "must be integers; found 0.5"),
    ],
)
def test_blocks_refuse_what_is_no_range_before_anything_is_computed(
    start: Any, stop: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        blocks(made(70, 0), made(3, 1), start=start, stop=stop)


def test_a_reader_of_blocks_finds_its_own_products_as_many_threads_as_before() -> None:
    libraries = ThreadpoolController()

    def threads() -> list[int]:
        return [library["num_threads"] for library in libraries.info() if library["user_api"] == "blas"]

    before = threads()
    for _ in blocks(made(600, 0), made(3, 1)):
        assert threads() == before
    pairwise(made(600, 0), made(3, 1))
    assert threads() == before
