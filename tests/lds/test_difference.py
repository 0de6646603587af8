"""Paired differences between methods: what they are, and that their intervals cover as often as they say."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from comove.errors import InputError
from comove.evaluation import LDS, linear_datamodeling_score
from comove.lds.difference import paired_difference
from comove.lds.score import GroundTruth

Floats = npt.NDArray[np.float64]
C, N, Q = 40, 30, 12


def contest(seed: int, *noises: float, seeds: int = 1, truth_noise: float = 2.0) -> list[LDS]:
    """The LDS of methods that know the true scores with so much noise of their own, against one noisy truth."""
    rng = np.random.default_rng(seed)
    scores, masks = rng.normal(size=(N, Q)), rng.random((C, N)) < 0.5
    outputs = (masks @ scores)[:, None] + truth_noise * rng.normal(size=(C, seeds, Q))
    guesses = [scores + noise * rng.normal(size=(N, Q)) for noise in noises]
    truth = GroundTruth(masks, outputs, bootstrap=200, output="margin", alpha=0.5)
    return truth.lds([truth.predictions(values) for values in guesses], [f"m{n}" for n in range(len(noises))])


def test_the_difference_is_the_mean_of_the_differences_and_its_interval_that_of_the_resamples() -> None:
    a, b = contest(0, 0.3, 1.0)
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(a.mean - b.mean)
    assert a.resamples is not None
    assert b.resamples is not None
    gaps = a.resamples - b.resamples
    expected = np.quantile(gaps, [0.025, 0.975]) - gaps.mean() + found.mean
    np.testing.assert_allclose(found.interval, expected)
    assert found.better == int((a.per_query > b.per_query).sum())
    assert (found.method, found.other, found.queries, found.output, found.alpha) == ("m0", "m1", Q, "margin", 0.5)


def test_a_method_minus_itself_is_exactly_nothing_and_swapping_turns_the_sign() -> None:
    a, b = contest(0, 0.3, 1.0)
    nothing = paired_difference(a, a)
    assert (nothing.mean, nothing.interval, nothing.better, nothing.decided) == (0.0, (0.0, 0.0), 0, False)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.mean == -back.mean
    np.testing.assert_allclose(there.interval, [-back.interval[1], -back.interval[0]], atol=1e-15)
    assert there.better + back.better == Q


def test_methods_scored_one_at_a_time_against_one_truth_can_be_compared() -> None:
    rng = np.random.default_rng(1)
    scores, masks, outputs = rng.normal(size=(2, N, Q)), rng.random((C, N)) < 0.5, rng.normal(size=(C, 2, Q))
    one, other = (linear_datamodeling_score(values, masks, outputs, bootstrap=50) for values in scores)
    assert paired_difference(one, other).mean == pytest.approx(one.mean - other.mean)


def test_the_pair_decides_where_the_two_intervals_overlap() -> None:
    found = []
    for seed in range(10):
        a, b = contest(seed, 0.4, 0.6)
        assert a.interval is not None
        assert b.interval is not None
        if a.interval[0] < b.interval[1] and paired_difference(a, b).decided:
            found.append(seed)
    assert len(found) >= 3


@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_equal_methods_are_told_apart_no_oftener_than_the_level_allows(noise: float) -> None:
    covered = [not paired_difference(*contest(seed, noise, noise)).decided for seed in range(60)]
    assert np.mean(covered) >= 0.88


def test_queries_without_a_truth_are_left_out() -> None:
    rng = np.random.default_rng(1)
    scores, masks, outputs = rng.normal(size=(2, N, Q)), rng.random((C, N)) < 0.5, rng.normal(size=(C, 2, Q))
    outputs[:, :, :3] = 1.0
    one, other = (linear_datamodeling_score(values, masks, outputs, bootstrap=50) for values in scores)
    found = paired_difference(one, other)
    assert found.queries == Q - 3
    assert found.mean == pytest.approx(np.nanmean(one.per_query - other.per_query))


def test_nothing_defined_is_nan_without_a_warning_and_none_in_json() -> None:
    rng = np.random.default_rng(1)
    scores, masks = rng.normal(size=(N, Q)), rng.random((C, N)) < 0.5
    found = linear_datamodeling_score(scores, masks, np.ones((C, 2, Q)), bootstrap=10)
    gap = paired_difference(found, found)
    assert math.isnan(gap.mean)
    assert not gap.decided
    plain = json.loads(json.dumps(gap.to_json(), allow_nan=False))
    assert (plain["mean"], plain["interval"], plain["queries"]) == (None, [None, None], 0)


def test_it_prints_as_one_line() -> None:
    text = str(paired_difference(*contest(0, 0.3, 1.0)))
    assert text.startswith("Difference(m0 - m1: +0.")
    assert text.endswith("queries, margin, alpha 0.5)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "same ground truth and resamples"),
        ({"confidence": 0.9}, "same ground truth and resamples"),
        ({"bootstrap": 51}, "same ground truth and resamples"),
        ({"bootstrap": 0}, "bootstrap above 0"),
    ],
)
def test_other_resamples_are_refused(changes: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(1)
    scores, masks, outputs = rng.normal(size=(N, Q)), rng.random((C, N)) < 0.5, rng.normal(size=(C, 2, Q))
    one = linear_datamodeling_score(scores, masks, outputs, bootstrap=50)
    other = linear_datamodeling_score(scores, masks, outputs, **{"bootstrap": 50, **changes})
    with pytest.raises(InputError, match=message):
        paired_difference(one, other)


def test_another_truth_is_refused() -> None:
    rng = np.random.default_rng(1)
    scores, masks, outputs = rng.normal(size=(N, Q)), rng.random((C, N)) < 0.5, rng.normal(size=(C, 2, Q))
    one = linear_datamodeling_score(scores, masks, outputs, bootstrap=50)
    for other in (
        linear_datamodeling_score(scores, masks, outputs + 1, bootstrap=50),
        linear_datamodeling_score(scores[:, ::-1], masks, outputs[:, :, ::-1], bootstrap=50),
    ):
        with pytest.raises(InputError, match="same ground truth"):
            paired_difference(one, other)
