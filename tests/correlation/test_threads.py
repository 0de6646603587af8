"""The bits of scores depend on the losses alone: not on threads, of torch or of the matrix library, nor on blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import comove
from comove.correlation import blocks, pairwise
from comove.correlation.workers import plain_products, product_workers

ROWS, N, Q = 601, 1100, 130
"""So many rows that a library cuts the sums over them, elsewhere when it shares a product out among threads."""
COMPUTE = """
import hashlib, sys
from pathlib import Path
import numpy as np, torch
from comove import Trace
from comove.attribution import CLD
from comove.attribution.score_blocks import write_scores_in_blocks
from comove.correlation import blocks, pairwise, per_class, top_k

torch.set_num_threads(int(sys.argv[1]))
rows, n, q = map(int, sys.argv[3:])
rng = np.random.default_rng(0)
train, query = (rng.random((rows, m)).astype(np.float32).cumsum(0) for m in (n, q))
tell = lambda name, *arrays: print(name, *(hashlib.md5(np.ascontiguousarray(a).tobytes()).hexdigest() for a in arrays))
several = "common_mode remove", "row_scaling rms", "correlation spearman", "correlation covariance"
for options in ({}, *(dict([words.split()]) for words in several)):
    scores = pairwise(train, query, **options)
    tell(f"scores {options}", scores)
    parts = np.empty_like(scores)
    for start in range(0, n, 400):
        for at_n, at_q, part in blocks(train, query, start=start, stop=min(n, start + 400), **options):
            parts[at_n, at_q] = part
    tell(f"scores {options}", parts)
    trace = Trace.from_arrays(train_losses=train, query_losses=query)
    file = Path(sys.argv[2]) / f"{len(list(Path(sys.argv[2]).iterdir()))}.safetensors"
    written = write_scores_in_blocks(file, CLD(**options), trace, np.arange(q), executor="serial")
    tell(f"scores {options}", np.array(written.values))
    tell(f"best {options}", *top_k(train, query, 7, **options))
    one = pairwise(train, query[:, :1], **options)
    tell(f"one query {options}", one)
tell("by class", per_class(train, np.arange(n) % 5, query, np.arange(q) % 5))
"""


def _told(threads: int, library: int | None, folder: Path) -> set[str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {} if library is None else dict.fromkeys(names, str(library))
    environment["PYTHONPATH"] = str(Path(comove.__file__).parent.parent)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, *map(str, (threads, folder, ROWS, N, Q))],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines())


def test_no_number_of_threads_and_no_cut_changes_a_bit(tmp_path: Path) -> None:
    wanted = _told(1, 1, tmp_path / "one")
    assert len(wanted) == 16  # for each option: one set of scores, however computed, the best, and those of one query
    for threads, library in ((1, None), (2, None), (3, 3), (2, 1)):
        assert _told(threads, library, tmp_path / f"{threads}-{library}") == wanted


def _threads() -> list[int]:
    return [lib["num_threads"] for lib in ThreadpoolController().info() if lib["user_api"] == "blas"]


def test_products_stay_plain_until_the_last_of_several_threads_is_done() -> None:
    before, seen = _threads(), list[list[int]]()
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
