"""DUAL scores, and Beta sampling without replacement against exact probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from comove.coreset import PerClass, select, selector
from comove.coreset.dual import DUAL, beta_parameters, dual, log_weights
from comove.errors import InputError, NonFiniteError
from comove.trace import Trace

P = np.array([[0.5], [0.6], [0.8], [0.9]])
Recorded = Callable[..., Trace]


def scores_of(p_TN: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    parts = [p_TN[start : start + window] for start in range(len(p_TN) - window + 1)]
    return np.asarray(np.mean([(1 - part.mean(0)) * part.std(0, ddof=1) for part in parts], axis=0))


def test_the_example_of_the_specification_comes_out(recorded: Recorded) -> None:
    terms = [dual(P[start : start + 2], 2)[0] for start in range(3)]
    np.testing.assert_allclose(terms, [0.031820, 0.042426, 0.010607], atol=1e-6)
    assert dual(P, 2) == pytest.approx([0.028284], abs=1e-6)
    trace = recorded(target_probability=P)
    assert DUAL(sampling="none", window=2).select(trace, 1).scores == pytest.approx([0.028284], abs=1e-6)


def test_the_beta_density_of_the_specification_comes_out() -> None:
    assert beta_parameters(0.5, 0.9) == pytest.approx((13.42075, 2.57925))
    assert beta_parameters(0.5, 0.5) == pytest.approx((8.96875, 7.03125))
    weights = np.exp(log_weights([1.0, 1.0], [0.5, 0.8], *beta_parameters(0.5, 0.9)))
    np.testing.assert_allclose(weights, [0.040610, 3.277239], atol=1e-6)


def test_weights_are_the_density_times_the_score() -> None:
    rng = np.random.default_rng(0)
    scores, means = rng.random(50), rng.random(50)
    a, b = beta_parameters(0.3, 0.7, 5.5)
    np.testing.assert_allclose(np.exp(log_weights(scores, means, a, b)), stats.beta.pdf(means, a, b) * scores)
    assert log_weights([0.0], [0.5], a, b).tolist() == [-np.inf]


def test_weights_stay_finite_where_the_density_is_infinite_or_underflows() -> None:
    for a, b in (beta_parameters(1.0, 0.999999), beta_parameters(0.0, 0.0), beta_parameters(1e-9, 0.5)):
        assert np.isfinite(log_weights(np.ones(3), [0.0, 1.0, 1 - 1e-12], a, b)).all()


@pytest.mark.parametrize(("window", "first"), [(10, 30), (2, 8), (5, None)])
def test_scores_are_those_of_windows_written_out(window: int, first: int | None, recorded: Recorded) -> None:
    p = np.random.default_rng(1).random((35, 40)).astype(np.float32)
    expected = scores_of(p[:first].astype(float), window)
    np.testing.assert_allclose(dual(p[:first], window), expected, rtol=1e-6)
    coreset = DUAL("none", first, window).select(recorded(target_probability=p), 40)
    np.testing.assert_allclose(coreset.scores, np.sort(expected)[::-1], rtol=1e-5)
    assert coreset.ids.tolist() == np.argsort(-expected).tolist()


def test_two_draws_have_the_probabilities_of_drawing_without_replacement(recorded: Recorded) -> None:
    """Inclusion of i in two draws: w_i + sum_j w_j w_i / (1 - w_j), with weights that sum to 1."""
    p = np.random.default_rng(5).random((12, 6)).astype(np.float32)
    trace, draws = recorded(target_probability=p), 1500
    scores, means = scores_of(p.astype(float), 10), p.mean(0, dtype=float)
    a, b = beta_parameters(means.mean(), 1 - 2 / 6)  # fewer than ten examples: mu is the mean of all
    weights = stats.beta.pdf(means, a, b) * scores
    weights /= weights.sum()
    expected = [w + sum(v * w / (1 - v) for j, v in enumerate(weights) if j != i) for i, w in enumerate(weights)]
    assert sum(expected) == pytest.approx(2)
    drawn = np.zeros(6)
    for seed in range(draws):
        ids = DUAL(seed=seed).select(trace, 2).ids
        assert ids[0] != ids[1]
        drawn[ids] += 1
    spread = np.sqrt(draws * np.array(expected) * (1 - np.array(expected)))
    assert (np.abs(drawn - draws * np.array(expected)) < 4 * spread + 1).all()
    assert np.ptp(expected) > 0.2


def test_the_fewer_are_kept_the_easier_they_are(recorded: Recorded) -> None:
    rng = np.random.default_rng(2)
    centre = rng.uniform(0.05, 0.95, 4000)
    p = np.clip(centre + rng.normal(0, 0.04, (30, 4000)), 0, 1).astype(np.float32)
    trace, means = recorded(target_probability=p), p.mean(0)
    ease = [means[DUAL().select(trace, share).ids].mean() for share in (0.05, 0.1, 0.2, 0.4)]
    assert all(few > more + 0.1 for few, more in itertools.pairwise(ease))
    assert all(
        means[DUAL(c=11).select(trace, share).ids].mean() < at_4 for share, at_4 in ((0.05, ease[0]), (0.1, ease[1]))
    )
    assert means[DUAL("none").select(trace, 0.05).ids].mean() < ease[-1]


def test_parameters_are_those_of_the_ten_highest_scores(recorded: Recorded) -> None:
    p = np.random.default_rng(7).random((30, 100)).astype(np.float32)
    top = np.argsort(-scores_of(p.astype(float), 10))[:10]
    info = DUAL().select(recorded(target_probability=p), 20).info
    assert info["mu"] == pytest.approx(p.mean(0, dtype=float)[top].mean())
    assert (info["a"], info["b"]) == pytest.approx(beta_parameters(info["mu"], 0.8))


def test_no_example_is_drawn_twice_and_the_coreset_is_sorted_by_score(recorded: Recorded) -> None:
    trace = recorded(target_probability=np.random.default_rng(0).random((30, 200)))
    for k in (1, 50, 199):
        coreset = DUAL().select(trace, k)
        assert np.unique(coreset.ids).size == k
        assert coreset.scores.tolist() == sorted(coreset.scores.tolist(), reverse=True)


def test_examples_whose_probability_never_changed_are_never_drawn(recorded: Recorded) -> None:
    p = np.random.default_rng(0).random((30, 20))
    p[:, :12] = 0.25
    trace = recorded(target_probability=p, labels=[0] * 12 + [1] * 8)
    for seed in range(20):
        assert DUAL(seed=seed).select(trace, 8).ids.min() >= 12
    with pytest.raises(InputError, match="dual: 9 examples are to be drawn, but only 8 of 20 have a score above 0"):
        DUAL().select(trace, 9)
    with pytest.raises(InputError, match="1 examples are to be drawn, but only 0 of 12"):
        PerClass("dual").select(trace, {0: 1})
    assert sorted(DUAL().select(trace, 20).ids.tolist()) == list(range(20))  # everything: nothing is drawn
    assert len(DUAL("none").select(trace, 15)) == 15


def test_runs_are_averaged(recorded: Recorded) -> None:
    a, b = np.random.default_rng(4).random((2, 30, 9)).astype(np.float32)
    traces = [recorded(target_probability=a), recorded(target_probability=b)]
    found = DUAL("none").select(traces, 9)
    expected = (dual(a, 10) + dual(b, 10)) / 2
    np.testing.assert_allclose(found.scores, np.sort(expected)[::-1], rtol=1e-5)
    assert DUAL().select(traces, 5).info["mu"] == pytest.approx((a.mean(dtype=float) + b.mean(dtype=float)) / 2)


def test_seeds_differ_and_the_same_seed_repeats(recorded: Recorded) -> None:
    trace = recorded(target_probability=np.random.default_rng(0).random((30, 300)))
    first = select("dual", trace, 30, seed=1).ids
    np.testing.assert_array_equal(first, select("dual", trace, 30, seed=1).ids)
    assert set(first.tolist()) != set(select("dual", trace, 30, seed=2).ids.tolist())


def test_fewer_epochs_than_the_window_and_broken_probabilities_are_told(recorded: Recorded) -> None:
    p = np.random.default_rng(0).random((9, 4))
    with pytest.raises(InputError, match="dual needs at least 10 recorded epochs, found 9"):
        DUAL().select(recorded(target_probability=p), 2)
    p[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"dual: 1 scores are NaN or infinite, the first of id 5\."):
        DUAL(window=3).select(recorded(target_probability=p, ids=[3, 5, 7, 9]), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "alpha"}, "dual: sampling must be one of beta, none"),
        ({"window": 31}, "a window of 31 epochs does not fit into the first 30"),
        ({"c": 0.0}, "dual: c must be a finite number above 0, got 0.0"),
        ({"c": float("nan")}, "got nan"),
        ({"seed": 1.5}, "dual: seed must be a whole number"),
    ],
)
def test_bad_options_are_refused_when_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        selector("dual", **options)
