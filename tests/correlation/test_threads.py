"""The bits of scores depend on the losses alone: not on threads, of torch or of the matrix library, nor on blocks."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from comove.attribution import CLD
from comove.attribution.score_blocks import write_scores_in_blocks
from comove.correlation import blocks, pairwise, per_class, top_k
from comove.correlation.workers import plain_products, product_workers
from comove.jobs.base import torch_threads
from comove.store import digest
from comove.trace import Trace

ROWS, N, Q = 601, 1100, 130
"""So many rows that a library cuts the sums over them, elsewhere when it shares a product out among threads."""
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"common_mode": "remove"},
    {"row_scaling": "rms"},
    {"correlation": "spearman"},
    {"correlation": "covariance"},
)


def _bits(*arrays: npt.NDArray[Any]) -> tuple[str, ...]:
    return tuple(digest(np.ascontiguousarray(array).tobytes().hex()) for array in arrays)


def _computed(threads: int, library: int, folder: Path) -> set[tuple[str, tuple[str, ...]]]:
    """The bits of everything that is computed from the same losses, with torch and the library on so many threads."""
    folder.mkdir()
    rng, found = np.random.default_rng(0), set()
    train, query = (rng.random((ROWS, m)).astype(np.float32).cumsum(0) for m in (N, Q))
    trace = Trace.from_arrays(train_losses=train, query_losses=query)
    with torch_threads(threads), threadpool_limits(library, user_api="blas"):
        assert set(_threads()) == {library}
        for number, options in enumerate(OPTIONS):
            scores = pairwise(train, query, **options)
            parts = np.empty_like(scores)
            for start in range(0, N, 400):
                for at_n, at_q, part in blocks(train, query, start=start, stop=min(N, start + 400), **options):
                    parts[at_n, at_q] = part
            file = folder / f"{number}.safetensors"
            written = write_scores_in_blocks(file, CLD(**options), trace, np.arange(Q), executor="serial")
            for one in (scores, parts, np.array(written.values)):
                found.add((f"scores {options}", _bits(one)))
            found.add((f"best {options}", _bits(*top_k(train, query, 7, **options))))
            found.add((f"one query {options}", _bits(pairwise(train, query[:, :1], **options))))
        found.add(("by class", _bits(per_class(train, np.arange(N) % 5, query, np.arange(Q) % 5))))
    return found


def test_no_number_of_threads_and_no_cut_changes_a_bit(tmp_path: Path) -> None:
    wanted = _computed(1, 1, tmp_path / "one")
    assert len(wanted) == 16  # for each option: one set of scores, however computed, the best, and those of one query
    for threads, library in ((1, 2), (2, 2), (3, 3), (2, 1)):
        assert _computed(threads, library, tmp_path / f"{threads}-{library}") == wanted


def _threads() -> list[int]:
    return [lib["num_threads"] for lib in ThreadpoolController().info() if lib["user_api"] == "blas"]


def test_products_stay_plain_until_the_last_of_several_threads_is_done() -> None:
    before, seen = _threads(), list[list[int]]()
    assert set(before) == {2}
    entered, leaving = threading.Event(), threading.Event()

    def other() -> None:
        with plain_products():
            entered.set()
            leaving.wait(30)
            time.sleep(0.1)  # the first thread is about to leave, or has to wait
            seen.append(_threads())

    thread = threading.Thread(target=other)
    with plain_products():
        thread.start()
        assert entered.wait(30)
        leaving.set()
    thread.join()
    assert [set(number) for number in seen] == [{1}]
    assert _threads() == before


def test_products_are_let_go_of_after_an_error() -> None:
    before = _threads()
    with pytest.raises(ZeroDivisionError), product_workers():
        raise ZeroDivisionError
    assert _threads() == before


def test_a_reader_that_multiplies_between_blocks_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    train, query = rng.random((ROWS, 60)), rng.random((ROWS, 40))
    wanted = pairwise(train, query, common_mode="remove")
    for n, q, part in blocks(train, query, common_mode="remove"):
        assert np.isfinite(train.T @ query).all()
        np.testing.assert_array_equal(part, wanted[n, q])
