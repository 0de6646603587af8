"""Rankings held to known wrong labels: average precision, curves, ties, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from comove.errors import InputError
from comove.evaluation.label_errors.detection import average_precision, detect, expected_hits
from comove.evaluation.label_errors.suspicion import Suspicion

WRONG = np.arange(100, 140)
"""Ids of the wrong labels among 100 ... 499."""


def suspicion(**values: Any) -> Suspicion:
    """A ranking of 400 labels."""
    return Suspicion(np.arange(100, 500), np.zeros(400, int), {k: np.asarray(v) for k, v in values.items()})


def informed(strength: float, seed: int = 0) -> np.ndarray:
    """Values of 400 labels, those of the first 40 higher by ``strength`` standard deviations."""
    return np.random.default_rng(seed).normal(size=400) + strength * (np.arange(400) < 40)


@pytest.mark.parametrize("levels", [3, 20, 10_000])
def test_average_precision_is_scikit_learns_with_and_without_ties(levels: int) -> None:
    for seed in range(5):
        values = np.round(informed(1.0, seed) * levels / 6)
        wrong = np.arange(400) < 40
        assert average_precision(values, wrong) == pytest.approx(average_precision_score(wrong, values), abs=1e-12)


def test_precision_and_recall_are_scikit_learns_at_the_end_of_every_group() -> None:
    values, wrong = np.round(informed(1.0) * 3), np.arange(400) < 40
    precision, recall, thresholds = precision_recall_curve(wrong, values)
    hits = expected_hits(values, wrong)
    for p, r, threshold in zip(precision, recall, thresholds, strict=False):
        k = int((values >= threshold).sum())
        assert hits[k - 1] / k == pytest.approx(p)
        assert hits[k - 1] / 40 == pytest.approx(r)


def test_within_ties_hits_are_the_mean_over_random_orders() -> None:
    values, wrong = np.array([2, 1, 1, 1, 1, 0.0]), np.array([0, 1, 0, 0, 1, 1], bool)
    generator, total = np.random.default_rng(0), np.zeros(6)
    for _ in range(20_000):
        order = np.lexsort((generator.random(6), -values))
        total += np.cumsum(wrong[order])
    np.testing.assert_allclose(expected_hits(values, wrong), total / 20_000, atol=0.02)


def test_the_order_of_examples_changes_nothing() -> None:
    order = np.random.default_rng(2).permutation(400)
    values, wrong = np.round(informed(1.0) * 5), np.arange(400) < 40
    np.testing.assert_allclose(expected_hits(values[order], wrong[order]), expected_hits(values, wrong))
    assert average_precision(values[order], wrong[order]) == pytest.approx(average_precision(values, wrong))


def test_a_perfect_ranking_scores_one_the_reverse_less_than_chance_and_a_constant_chance() -> None:
    perfect = -np.arange(400.0)
    found = detect(suspicion(perfect=perfect, reverse=-perfect, constant=np.ones(400)), WRONG, bootstrap=50)
    assert found.average_precision("perfect") == (1, 1, 1)
    assert found.at_wrong("perfect") == (1, 1, 1)
    assert found.average_precision("reverse").value < 0.1
    assert found.average_precision("constant").value == pytest.approx(0.1)
    assert found.precision("constant", 7) == pytest.approx(0.1)
    assert found.best == "perfect"
    assert (found.recall("perfect", 10), found.recall("reverse", 360), found.recall("reverse", 400)) == (0.25, 0, 1)


def test_low_values_count_as_suspicious_where_the_ranking_says_so() -> None:
    values = informed(2.0)
    high = detect(suspicion(m=values), WRONG, bootstrap=20)
    turned = Suspicion(np.arange(100, 500), np.zeros(400, int), {"m": -values}, ("m",))
    assert detect(turned, WRONG, bootstrap=20).rows() == high.rows()


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    wrong = np.arange(200_000) < 20_000
    truth = average_precision(np.random.default_rng(9).normal(size=wrong.size) + 1.5 * wrong, wrong)
    held = 0
    for seed in range(60):
        area = detect(suspicion(m=informed(1.5, seed)), WRONG, bootstrap=200, seed=seed).average_precision("m")
        assert area.low < area.value < area.high
        held += area.low <= truth <= area.high
    assert 50 <= held <= 60  # 57 expected, two deviations are 3.4


def test_a_paired_difference_is_narrower_than_the_intervals_of_two_rankings_that_agree() -> None:
    values = informed(1.5)
    found = detect(suspicion(one=values, two=values + 0.1 * informed(0, 5)), WRONG, bootstrap=300)
    gap = found.difference("one", "two")
    one = found.average_precision("one")
    assert gap.value == pytest.approx(one.value - found.average_precision("two").value)
    assert gap.low <= gap.value <= gap.high
    assert gap.high - gap.low < 0.5 * (one.high - one.low)
    assert found.difference("one", "one") == (0, 0, 0)


def test_the_same_seed_gives_the_same_intervals_and_blocks_of_resamples_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranking = suspicion(m=informed(1.0))
    first = detect(ranking, WRONG, bootstrap=40, seed=3)
    assert detect(ranking, WRONG, bootstrap=40, seed=3).rows() == first.rows()
    assert detect(ranking, WRONG, bootstrap=40, seed=4).rows() != first.rows()
    assert first.bands("m").shape == (2, first.grid.size)
    assert (first.bands("m")[0] <= first.hits("m")[first.grid - 1] + 1e-9).all()
    assert (first.bands("m")[1] >= first.hits("m")[first.grid - 1] - 1e-9).all()
    monkeypatch.setattr("comove.evaluation.label_errors.detection.BLOCK_VALUES", 400 * 7)
    in_blocks = detect(ranking, WRONG, bootstrap=41, seed=3)
    assert in_blocks.average_precision("m").value == first.average_precision("m").value
    assert in_blocks.average_precision("m").low == pytest.approx(first.average_precision("m").low, abs=0.05)


def test_tables_hold_every_method_and_every_k() -> None:
    found = detect(suspicion(a=informed(2.0), b=informed(0)), WRONG, bootstrap=20)
    assert found.to_pandas()["method"].tolist() == ["a", "b"]
    curves = found.curves()
    assert len(curves) == 800
    assert curves.groupby("method")["recall"].last().tolist() == [1, 1]
    assert "40 wrong of 400 labels" in repr(found)


def test_bad_truth_and_options_are_refused() -> None:
    ranking = suspicion(m=informed(1.0))
    with pytest.raises(InputError, match="Unknown train ids: 5"):
        detect(ranking, [5])
    with pytest.raises(InputError, match="wrong ids must be unique"):
        detect(ranking, [100, 100])
    for ids in (np.zeros(0, int), np.arange(100, 500)):
        with pytest.raises(InputError, match="From 1 to 399 of the 400 labels must be wrong"):
            detect(ranking, ids)
    with pytest.raises(InputError, match="bootstrap must be 1 or more"):
        detect(ranking, WRONG, bootstrap=0)
    with pytest.raises(InputError, match="seed must be a whole number"):
        detect(ranking, WRONG, seed=-1)
    found = detect(ranking, WRONG, bootstrap=5)
    for k in (0, 401):
        with pytest.raises(InputError, match="k must be from 1 to the 400"):
            found.recall("m", k)
    with pytest.raises(InputError, match="Unknown method here 'n'"):
        found.average_precision("n")
