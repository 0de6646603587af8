"""Property tests: whatever the losses look like, the scores are those of a float64 reference and of scipy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from comove.correlation import blocks, constant, pairwise, per_class, sizes, top_k

N, Q = 12, 5
LABELS = np.arange(N) % Q
OFTEN = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Losses:
    """Made losses: decaying, with ripples, perhaps flat from some row on but for differences far below the first."""

    rows: int
    scale: float
    flat: float
    seed: int

    def made(self, columns: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, seed))
        time = np.arange(self.rows)[:, None]
        curve = rng.uniform(0.5, 2, columns) * np.exp(-rng.uniform(1, 8, columns) * time / self.rows)
        curve += 0.1 * rng.random((self.rows, columns))
        tail = max(3, int(self.rows * (1 - self.flat)))
        curve[tail:] = curve[tail - 1] + 1e-4 * rng.random((max(0, self.rows - tail), columns))
        return self.scale * curve


LOSSES = st.builds(
    Losses,
    rows=st.one_of(st.integers(3, 60), st.sampled_from([3, 10_001])),  # T = 2 to T = 10,000
    scale=st.sampled_from([1e-7, 1e-3, 1.0, 1e4]),
    flat=st.sampled_from([0.0, 0.5, 0.95]),
    seed=st.integers(0, 2**16),
)


def exact(train: Any, query: Any) -> np.ndarray:
    """Pearson's correlation of the differences in extended precision, 0 where there is no variance."""
    d, e = (np.diff(np.asarray(side, np.longdouble), axis=0) for side in (train, query))
    d, e = d - d.mean(0), e - e.mean(0)
    norm = np.sqrt((d**2).sum(0))[:, None] * np.sqrt((e**2).sum(0))
    return np.asarray(np.divide(d.T @ e, norm, out=np.zeros_like(norm), where=norm > 0), np.float64)


@given(losses=LOSSES, dtype=st.sampled_from([np.float32, np.float64]))
@OFTEN
def test_all_scores_equal_extended_precision(losses: Losses, dtype: Any) -> None:
    train, query = losses.made(N, 0).astype(dtype), losses.made(Q, 1).astype(dtype)
    expected = exact(train, query)
    moving, asked = ~constant(train), ~constant(query)
    scores = pairwise(train, query)
    np.testing.assert_allclose(scores[moving][:, asked], expected[moving][:, asked], atol=2e-6)
    assert not scores[~moving].any()
    own = per_class(train, LABELS, query, np.arange(Q))
    keep = moving & asked[LABELS]
    np.testing.assert_allclose(own[keep], expected[np.arange(N), LABELS][keep], atol=2e-6)


@given(losses=LOSSES)
@OFTEN
def test_scores_equal_scipys_pearson_and_spearman(losses: Losses) -> None:
    train, query = losses.made(3, 0), losses.made(2, 1)
    moving = ~constant(train), ~constant(query)
    for name, oracle in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        scores = pairwise(train, query, correlation=name)  # type: ignore[arg-type]
        for n, q in zip(*np.nonzero(np.outer(*moving)), strict=True):
            ours, theirs = np.diff(train[:, n]), np.diff(query[:, q])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scipy warns of nearly constant input
                assert scores[n, q] == pytest.approx(oracle(ours, theirs).statistic, abs=3e-6)


@given(losses=LOSSES, dtype=st.sampled_from([torch.float16, torch.bfloat16]))
@OFTEN
def test_half_precision_losses_score_as_the_numbers_they_are(losses: Losses, dtype: torch.dtype) -> None:
    train, query = (torch.from_numpy(losses.made(size, size)).to(dtype) for size in (N, Q))
    train64, query64 = train.double().numpy(), query.double().numpy()
    np.testing.assert_array_equal(pairwise(train, query).numpy(), pairwise(train64, query64))
    expected = exact(train64, query64)
    moving, asked = ~constant(train64), ~constant(query64)
    np.testing.assert_allclose(pairwise(train, query).numpy()[moving][:, asked], expected[moving][:, asked], atol=2e-6)
    own = per_class(train, torch.from_numpy(LABELS), query, torch.arange(Q)).numpy()
    keep = moving & asked[LABELS]
    np.testing.assert_allclose(own[keep], expected[np.arange(N), LABELS][keep], atol=2e-6)


@given(losses=LOSSES, seed=st.integers(0, 99))
@OFTEN
def test_the_order_of_examples_and_queries_does_not_matter(losses: Losses, seed: int) -> None:
    rng = np.random.default_rng(seed)
    train, query, p, r = losses.made(N, 0), losses.made(Q, 1), rng.permutation(N), rng.permutation(Q)
    np.testing.assert_allclose(pairwise(train[:, p], query[:, r]), pairwise(train, query)[p][:, r], atol=2e-6)
    own = per_class(train, LABELS, query, np.arange(Q))
    np.testing.assert_allclose(per_class(train[:, p], LABELS[p], query[:, r], np.arange(Q)[r]), own[p], atol=2e-6)


@given(losses=LOSSES, data=st.data())
@settings(OFTEN, max_examples=15)
def test_the_sizes_of_blocks_do_not_matter_and_threads_do_not_change_a_bit(losses: Losses, data: Any) -> None:
    train, query = losses.made(40, 0).astype(np.float32), losses.made(Q, 1).astype(np.float32)
    labels, threads = np.arange(40) % Q, torch.get_num_threads()

    def all_scores() -> tuple[Any, ...]:
        return pairwise(train, query), per_class(train, labels, query, np.arange(Q)), *top_k(train, query, 7)

    whole = all_scores()
    with pytest.MonkeyPatch.context() as patch:
        tile = data.draw(st.tuples(st.sampled_from([1, 4, 16]), st.sampled_from([1, 3])))
        patch.setattr(sizes, "TILE", {"cpu": tile})
        patch.setattr(sizes, "PANEL", data.draw(st.sampled_from([1, 1 << 10])))
        patch.setattr(sizes, "FAST_COLUMNS", data.draw(st.sampled_from([1, 5, 16])))
        patch.setattr(sizes, "FAST_SPAN", data.draw(st.sampled_from([7, 20])))
        patch.setattr(sizes, "NARROWEST", data.draw(st.sampled_from([1, 8])))
        patch.setattr(sizes, "BLOCK", {"cpu": 1})
        try:
            torch.set_num_threads(1)
            alone = all_scores()
            torch.set_num_threads(3)
            together = all_scores()
        finally:
            torch.set_num_threads(threads)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(alone[0], whole[0], atol=2e-6)
    np.testing.assert_allclose(alone[1], whole[1], atol=2e-6)


@pytest.mark.parametrize("span", [96, 1 << 17], ids=["spans", "one span"])
@pytest.mark.parametrize("steep", [20, 800], ids=["a few columns", "most columns"])
@pytest.mark.parametrize("ratio", [0.5, 2, 8, 30, 1e3])
def test_losses_that_fall_steadily_score_in_float32_as_in_float64(
    steep: int, ratio: float, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "FAST_SPAN", span)
    monkeypatch.setattr(sizes, "FAST_COLUMNS", min(span, 32))
    rng = np.random.default_rng(0)
    differences = rng.standard_normal((70, 1000))
    differences[:, rng.permutation(1000)[:steep]] -= ratio  # times the standard deviation about the mean
    train = np.vstack([np.zeros(1000), differences.cumsum(0)]).astype(np.float32) / 10
    query, labels = rng.standard_normal((71, 7)).cumsum(0), np.arange(1000) % 7
    exact = pairwise(train.astype(np.float64), query)[np.arange(1000), labels]
    np.testing.assert_allclose(per_class(train, labels, query, np.arange(7)), exact, atol=1e-6)


@given(n=st.integers(1, 60), q=st.integers(1, 20), rows=st.integers(3, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_blocks_of_any_range_are_pairwise_bit_for_bit_each_pair_once(n: int, q: int, rows: int, data: Any) -> None:
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    losses = Losses(rows, 1.0, 0.0, 3)
    train, query = losses.made(n, 0), losses.made(q, 1)
    options = data.draw(st.sampled_from([{}, {"common_mode": "remove"}, {"row_scaling": "rms"}]))
    with pytest.MonkeyPatch.context() as patch:
        tile = data.draw(st.tuples(st.sampled_from([4, 16, 256]), st.sampled_from([8, 16384])))
        patch.setattr(sizes, "TILE", {"cpu": tile})
        patch.setattr(sizes, "PANEL", data.draw(st.sampled_from([64, 1 << 25])))
        found, times = np.full((n, q), np.nan, np.float32), np.zeros((n, q), int)
        for at, columns, scores in blocks(train, query, start=start, stop=stop, **options):
            found[at, columns] = scores
            times[at, columns] += 1
        expected = pairwise(train, query, **options)
    np.testing.assert_array_equal(found[start:stop], expected[start:stop])
    assert (times[start:stop] == 1).all()
    assert times.sum() == (stop - start) * q


def test_a_tile_of_one_pair_has_the_same_bits_however_it_lies_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "TILE", {"cpu": (4, 8)})
    rng = np.random.default_rng(0)
    for _ in range(50):
        train, query = rng.standard_normal((9, 5)), rng.standard_normal((9, 1))
        ((_, _, alone),) = blocks(train, query, start=4)  # a panel of this one column; below, the last of five
        np.testing.assert_array_equal(alone, pairwise(train, query)[4:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("correlation", ["pearson", "spearman", "covariance"])
def test_cuda_tensors_score_as_the_processor_does(correlation: Any) -> None:
    losses = Losses(91, 1.0, 0.5, 1)
    train, query = (torch.from_numpy(losses.made(size, size)).float() for size in (3000, 700))
    there = pairwise(train.cuda(), query.cuda(), correlation=correlation)
    here = pairwise(train, query, correlation=correlation)
    assert there.is_cuda
    np.testing.assert_allclose(there.cpu(), here, atol=2e-6)  # TF32 would be a thousand times further off
    ids, best = top_k(train.cuda(), query.cuda(), 20, correlation=correlation)
    order = there.T.sort(dim=1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(ids, order)
    assert torch.equal(best, there.T.gather(1, order))
    labels, own = torch.arange(3000) % 7, torch.arange(700) % 7
    on_cuda = per_class(train.cuda(), labels.cuda(), query.cuda(), own.cuda())
    np.testing.assert_allclose(on_cuda.cpu(), per_class(train, labels, query, own), atol=2e-6)
