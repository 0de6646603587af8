"""Scores in blocks are those in memory to the bit, whoever computes them and however often they were interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comove.attribution import CLD, Scores
from comove.attribution import score_blocks as module
from comove.attribution.score_blocks import (
    TILE_Q,
    WIDEST,
    PartialScores,
    blocks_of,
    partial_folder,
    top_in_blocks,
    write_scores_in_blocks,
)
from comove.errors import FingerprintError, InputError, LockedError
from comove.jobs import Local, Serial
from comove.store.lock import driver_lock
from comove.ties import tie_keys
from comove.trace import Trace
from comove.training import Run

pytestmark = pytest.mark.usefixtures("two_threads")  # as against one in workers, or within the work

N, Q = 3_500, 40
SMALL = 1 << 18
"""Bytes of a block: 1,024 training examples at 40 queries."""


def made(seed: int, rows: int = 12) -> Trace:
    rng = np.random.default_rng(seed)
    train, query = rng.random((rows, N), np.float32), rng.random((rows, Q), np.float32)
    train[:, 7] = train[:, 2_000] = query[:, 3] = 0.5  # says nothing
    return Trace.from_arrays(
        train_losses=train,
        query_losses=query,
        train_ids=np.random.default_rng(9).permutation(9 * N)[:N],
        query_ids=np.arange(Q)[::-1] * 3,
        train_labels=np.arange(N) % 4,
        query_labels=np.arange(Q) % 4,
    )


@pytest.fixture
def traces(tmp_path: Path) -> list[Trace]:
    """Two on disk, of the same examples."""
    for seed in range(2):
        made(seed).save(tmp_path / f"trace-{seed}")
    return [Trace.load(tmp_path / f"trace-{seed}") for seed in range(2)]


def assert_same(found: Scores, expected: Scores) -> None:
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.train_ids, expected.train_ids)
    np.testing.assert_array_equal(found.query_ids, expected.query_ids)
    np.testing.assert_array_equal(found.train_labels, expected.train_labels)
    np.testing.assert_array_equal(found.query_labels, expected.query_labels)
    assert (found.method, found.classes) == (expected.method, expected.classes)
    same_file_from_any_command = {"command", "versions"}
    assert found.info == {key: value for key, value in expected.info.items() if key not in same_file_from_any_command}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"correlation": "spearman"},
    {"correlation": "covariance", "row_scaling": "rms"},
    {"common_mode": "remove"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("runs", [1, 2])
def test_the_bits_are_those_in_memory(traces: list[Trace], tmp_path: Path, options: dict[str, Any], runs: int) -> None:
    method = CLD(**options)
    found = write_scores_in_blocks(
        tmp_path / "s", method, traces[:runs], [0, 33, 9], executor="serial", block_bytes=SMALL
    )
    assert_same(found, method.fit(traces[:runs]).attribute([0, 33, 9]))
    assert found.info["constant_train"] == 2 * runs


@pytest.mark.parametrize("block_bytes", [SMALL, 2 * SMALL, module.BLOCK_BYTES])
def test_the_size_of_blocks_changes_no_bit(traces: list[Trace], tmp_path: Path, block_bytes: int) -> None:
    found = write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], executor="serial", block_bytes=block_bytes)
    assert_same(found, CLD().fit(traces[0]).attribute())


def test_worker_processes_change_no_bit(traces: list[Trace], tmp_path: Path) -> None:
    found = write_scores_in_blocks(tmp_path / "s", CLD(), traces, executor=Local(1), block_bytes=SMALL)
    assert_same(found, CLD().fit(traces).attribute())


def test_traces_in_memory_and_runs_do_too(run: Run, tmp_path: Path) -> None:
    found = write_scores_in_blocks(tmp_path / "a", CLD(), made(0), executor="serial")
    assert_same(found, CLD().fit(made(0)).attribute())
    assert_same(write_scores_in_blocks(tmp_path / "b", CLD(), run, executor="serial"), CLD().fit(run).attribute())


def test_new_queries_are_replayed_once(run: Run, tmp_path: Path) -> None:
    new = run.data().query.subset(run.data().query.ids[:5])
    found = write_scores_in_blocks(tmp_path / "s", CLD(), run, new, executor="serial")
    assert_same(found, CLD().fit(run).attribute(new))


# --- interruptions -----------------------------------------------------------------------------------------------


class StopError(Exception):
    """Stands for whatever ends the work."""


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let so many blocks be written, then stop; returns the list of those written."""
    written: list[int] = []
    real = PartialScores.write

    def write(self: PartialScores, index: int, values: Any) -> None:
        if len(written) == count:
            raise StopError
        real(self, index, values)
        written.append(index)

    monkeypatch.setattr(PartialScores, "write", write)
    return written


def test_an_interrupted_computation_goes_on_with_what_is_missing(
    traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"executor": "serial", "block_bytes": SMALL}
    with monkeypatch.context() as patched:
        first = stop_after(2, patched)
        with pytest.raises(StopError):
            write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], **arguments)
    assert not (tmp_path / "s").exists()
    second = stop_after(99, monkeypatch)
    found = write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], **arguments)
    assert sorted(first + second) == list(range(len(blocks_of(N, Q, 12, SMALL))))
    assert len(first) == 2
    assert_same(found, CLD().fit(traces[0]).attribute())
    assert not partial_folder(tmp_path / "s").exists()


def test_finished_scores_are_opened_not_computed_again(
    traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], executor="serial")
    monkeypatch.setattr(module, "run_jobs", None)
    again = write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], executor="serial", block_bytes=SMALL)
    assert_same(again, CLD().fit(traces[0]).attribute())


@pytest.mark.parametrize(
    ("method", "source", "queries"), [(CLD(correlation="spearman"), 0, None), (CLD(), 1, None), (CLD(), 0, [0, 3])]
)
def test_other_scores_are_not_overwritten(
    traces: list[Trace], tmp_path: Path, method: CLD, source: int, queries: list[int] | None
) -> None:
    write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], executor="serial")
    with pytest.raises(InputError, match="holds other scores"):
        write_scores_in_blocks(tmp_path / "s", method, traces[source], queries, executor="serial")


def test_blocks_of_another_method_or_trace_are_not_mixed_in(
    traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(StopError):
            write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], executor="serial", block_bytes=SMALL)
    for method, trace in ((CLD(correlation="spearman"), traces[0]), (CLD(), traces[1])):
        with pytest.raises(FingerprintError, match="another partial scores"):
            write_scores_in_blocks(tmp_path / "s", method, trace, executor="serial", block_bytes=SMALL)


def test_one_process_at_a_time(traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(StopError):
            write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], executor="serial", block_bytes=SMALL)
    with driver_lock(partial_folder(tmp_path / "s")), pytest.raises(LockedError, match="is being worked on"):
        write_scores_in_blocks(tmp_path / "s", CLD(), traces[0], executor=Serial(), block_bytes=SMALL)


# --- the best, and blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_best_are_those_of_all_scores_ties_as_in_top(traces: list[Trace], options: dict[str, Any]) -> None:
    method = CLD(**options)
    scores = method.fit(traces[0]).attribute([0, 33])
    rankings = top_in_blocks(method, traces[0], 20, [0, 33])
    assert [ranking.query for ranking in rankings] == [0, 33]
    assert scores.train_labels is not None
    for ranking in rankings:
        best = np.lexsort((tie_keys(scores.train_ids), -scores.column(ranking.query)))[:20]
        np.testing.assert_array_equal(ranking.ids, scores.top(20, query=ranking.query).ids)
        np.testing.assert_array_equal(ranking.ids, scores.train_ids[best])
        np.testing.assert_array_equal(ranking.scores, scores.column(ranking.query)[best])
        assert ranking.class_names() == [str(label) for label in scores.train_labels[best]]


def test_the_best_of_several_runs_need_the_scores(traces: list[Trace]) -> None:
    with pytest.raises(InputError, match="The best of 2 runs' mean scores"):
        top_in_blocks(CLD(), traces, 3)


@pytest.mark.parametrize(("n", "q"), [(1, 1), (1_024, WIDEST), (5_000, WIDEST + 1), (1_281_167, 12_812)])
def test_blocks_are_a_partition_on_the_tiles(n: int, q: int) -> None:
    blocks = blocks_of(n, q, 91, 1 << 27)
    assert sum((b.n1 - b.n0) * (b.q1 - b.q0) for b in blocks) == n * q
    assert len({(b.n0, b.q0) for b in blocks}) == len(blocks)
    for b in blocks:
        assert 4 * (b.n1 - b.n0) * max(91, b.q1 - b.q0) <= 1 << 27
        assert (b.n0 % 1_024, b.q0 % TILE_Q) == (0, 0)
        assert b.n1 == n or b.n1 % 1_024 == 0


def test_blocks_too_small_for_a_tile_are_refused() -> None:
    with pytest.raises(InputError, match="at least 163,840 for 40 queries and 12 rows, got 1,000"):
        blocks_of(N, 40, 12, 1_000)
    with pytest.raises(InputError, match="at least 409,600 for 40 queries and 100 rows"):
        blocks_of(N, 40, 100, 163_840)
