"""Votes, rates and their intervals: closed forms, invariances, and coverage where flips of one query go together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from comove.evaluation.estimate import Estimate, mean_with_interval
from comove.evaluation.prediction_brittleness.flips import flip_rate, majority


def test_the_majority_is_the_most_frequent_class_and_ties_go_to_the_smallest() -> None:
    predicted_RQ = np.array([[1, 2, 0, 3], [1, 2, 1, 3], [0, 0, 2, 3], [2, 0, 2, 0]])
    assert majority(predicted_RQ).tolist() == [1, 0, 2, 3]
    assert majority(predicted_RQ[:1]).tolist() == [1, 2, 0, 3]


def test_the_majority_does_not_depend_on_the_order_of_the_models() -> None:
    rng = np.random.default_rng(0)
    predicted_RQ = rng.integers(4, size=(6, 50))
    np.testing.assert_array_equal(majority(predicted_RQ), majority(rng.permutation(predicted_RQ)))


def test_the_rate_is_the_mean_and_lies_in_its_interval() -> None:
    flips_QR = np.random.default_rng(1).random((40, 5)) < 0.3
    found = flip_rate(flips_QR)
    assert found.value == flips_QR.mean()
    assert 0 < found.low < found.value < found.high < 1


def test_the_interval_is_that_of_the_queries_means_however_often_each_query_is_repeated() -> None:
    """Models that agree tell nothing new: an interval over all of them as if independent would shrink."""
    once_Q1 = (np.arange(60) % 3 == 0)[:, None]
    assert flip_rate(np.repeat(once_Q1, 20, axis=1)) == pytest.approx(flip_rate(once_Q1))


def test_the_interval_approaches_the_normal_one_of_the_queries_means() -> None:
    values_QR = np.random.default_rng(2).normal(size=(400, 3)) + np.random.default_rng(3).normal(size=(400, 1))
    found = mean_with_interval(values_QR)
    half = 1.96 * values_QR.mean(1).std() / math.sqrt(400)
    np.testing.assert_allclose([found.low, found.high], [found.value - half, found.value + half], atol=0.1 * half)


def test_more_confidence_is_wider_and_a_seed_gives_the_same_bits() -> None:
    flips_QR = np.random.default_rng(4).random((30, 5)) < 0.4
    narrow, wide = flip_rate(flips_QR, confidence=0.5), flip_rate(flips_QR, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert flip_rate(flips_QR, seed=3) == flip_rate(flips_QR, seed=3)


def test_of_a_single_query_nothing_is_known_but_the_mean() -> None:
    found = mean_with_interval(np.array([[1.0, 0.0]]))
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("queries", [1, 10, 200])
def test_without_any_flip_the_bound_is_the_exact_binomial_one_over_queries(queries: int) -> None:
    unseen = 1 - 0.025 ** (1 / queries)
    assert (1 - unseen) ** queries == pytest.approx(0.025)  # the rate at which no flip is just that unlikely
    assert flip_rate(np.zeros((queries, 5), bool)) == Estimate(0.0, 0.0, unseen)
    assert flip_rate(np.ones((queries, 5), bool)) == Estimate(1.0, 1 - unseen, 1.0)


def _coverage(draw: object, truth: float, *, shared_models: bool) -> float:
    rng = np.random.default_rng(5)
    found = [flip_rate(draw(rng), shared_models=shared_models, seed=s) for s in range(60)]  # type: ignore[operator]
    return float(np.mean([e.low <= truth <= e.high for e in found]))


def test_intervals_cover_the_truth_where_each_query_has_a_rate_of_its_own() -> None:
    def draw(rng: np.random.Generator) -> object:
        return rng.random((60, 5)) < rng.beta(0.3, 0.7, (60, 1))

    assert 0.89 <= _coverage(draw, 0.3, shared_models=False) <= 0.99


def test_models_shared_by_all_queries_are_resampled_too() -> None:
    """Here whole models flip or hold; queries alone would give an interval far too narrow."""

    def draw(rng: np.random.Generator) -> object:
        return rng.random((60, 12)) < rng.choice([0.1, 0.5], (1, 12))

    assert _coverage(draw, 0.3, shared_models=True) >= 0.85
    assert _coverage(draw, 0.3, shared_models=False) <= 0.7
