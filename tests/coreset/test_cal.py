"""Contrastive scores against divergences written out, and DeepCore's opposite order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import rel_entr

from comove.coreset import select
from comove.coreset.cal import Cal, contrast
from comove.errors import InputError
from comove.trace import Trace

Anchored = Callable[..., Trace]

POINTS = [[0.0], [1.0], [3.0]]
PROBABILITIES = [[0.5, 0.5], [0.9, 0.1], [0.6, 0.4]]
NEAREST = np.array([[1], [0], [1]])


def test_the_example_of_the_specification_comes_out(anchored: Anchored) -> None:
    one_way, both = [0.368064, 0.510826, 0.226289], [0.439445, 0.439445, 0.268764]
    np.testing.assert_allclose(contrast(PROBABILITIES, NEAREST), one_way, atol=1e-6)
    np.testing.assert_allclose(contrast(PROBABILITIES, NEAREST, symmetric=True), both, atol=1e-6)
    # on a circle the nearest are the same as on the line, also in features divided by their norms
    angles = np.array([0.0, 0.1, 0.3])
    trace = anchored(np.stack([np.cos(angles), np.sin(angles)], 1), PROBABILITIES, [0, 0, 0])
    np.testing.assert_allclose(Cal(neighbours=1).scores(trace), one_way, atol=1e-5)
    assert select("cal", trace, 1, neighbours=1).ids.tolist() == [1]


def test_deepcore_is_symmetric_and_keeps_the_lowest(anchored: Anchored) -> None:
    trace = anchored(POINTS, PROBABILITIES, [0, 0, 0])
    scores = Cal(neighbours=1, variant="deepcore").scores(trace)
    np.testing.assert_allclose(scores, [-0.439445, -0.439445, -0.268764], atol=1e-5)
    assert select("cal", trace, 1, neighbours=1, variant="deepcore").ids.tolist() == [2]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_mean_divergences_over_the_nearest_in_direction(seed: int, anchored: Anchored) -> None:
    rng = np.random.default_rng(seed)
    features, labels = rng.standard_normal((50, 4)), rng.integers(0, 3, 50)
    probabilities = rng.dirichlet(np.ones(3), 50)
    trace = anchored(features, probabilities, labels)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for pool in ("all", "class"):
        expected = []
        for i in range(50):
            allowed = [j for j in range(50) if j != i and (pool == "all" or labels[j] == labels[i])]
            near = sorted(allowed, key=lambda j: float(np.linalg.norm(unit[i] - unit[j])))[:5]
            expected.append(np.mean([rel_entr(probabilities[j], probabilities[i]).sum() for j in near]))
        found = Cal(neighbours=5, pool=pool).scores(trace)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_probability_of_zero_gives_a_large_and_finite_score(anchored: Anchored) -> None:
    sure = [[1.0, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(contrast(sure, np.array([[1], [0]])), 12 * np.log(10), rtol=1e-12)
    assert np.isfinite(Cal().scores(anchored([[0.0], [1.0]], sure, [0, 1]))).all()


def test_examples_that_predict_alike_score_zero_and_so_does_one_alone(anchored: Anchored) -> None:
    assert Cal().scores(anchored(POINTS, np.full((3, 2), 0.5), [0, 0, 1])).tolist() == [0, 0, 0]
    assert Cal(pool="class").scores(anchored(POINTS, PROBABILITIES, [0, 1, 1]))[0] == 0


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="cal: neighbours must be a whole number from 1 on, got 0"):
        Cal(neighbours=0)
    with pytest.raises(InputError, match="cal: pool must be one of all, class"):
        Cal(pool="classes")  # type: ignore[arg-type]
