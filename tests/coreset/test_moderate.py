"""Distances from class centres, and what lies at their median."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from comove.coreset import PerClass, select
from comove.coreset.moderate import Moderate, central_band, centre_distances
from comove.errors import InputError, NonFiniteError
from comove.ties import tie_order
from comove.trace import Trace
from comove.training import Run

MEANS = np.array([[0.0], [1], [3], [4], [12]])
MEDIANS = np.array([[0.0], [1], [2], [3], [10]])
Anchored = Callable[..., Trace]


def placed(anchored: Anchored, features: np.ndarray, labels: list[int], ids: list[int] | None = None) -> Trace:
    return anchored(features, np.full((len(features), 2), 0.5), labels, ids)


def test_the_examples_of_the_specification_come_out(anchored: Anchored) -> None:
    zeros = [0] * 5
    assert centre_distances(MEANS, zeros).tolist() == [4, 3, 1, 0, 8]
    coreset = select("moderate", placed(anchored, MEANS, zeros), 2)
    assert coreset.ids.tolist() == [1, 0]
    assert coreset.scores.tolist() == [0, -1]
    distances = centre_distances(MEDIANS, zeros, "median")
    assert distances.tolist() == [2, 1, 0, 1, 8]
    deviations = np.abs(distances - np.median(distances))
    assert deviations.tolist() == [1, 0, 1, 0, 7]
    second = [i for i in tie_order(np.arange(5)).tolist() if i in (1, 3)][1]  # of two at a distance of 1
    assert central_band(distances, np.arange(5), 2).tolist() == [second, 0]
    assert set(select("moderate", placed(anchored, MEDIANS, zeros), 2, variant="released").ids.tolist()) == {0, second}


@pytest.mark.parametrize("n", [6, 7])
def test_the_released_band_is_that_of_the_rounded_ranks(n: int) -> None:
    distances = np.random.default_rng(n).random(n)
    order = np.argsort(distances)
    for k in range(1, n + 1):
        rho = Fraction(k, n)
        low = round(n * (Fraction(1, 2) - rho / 2))
        assert central_band(distances, np.arange(n), k).tolist() == order[low : low + k].tolist()


def test_each_class_has_its_own_centre_and_median(anchored: Anchored) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = rng.standard_normal((90, 4)) * (1 + labels)[:, None] + 10 * labels[:, None]
    trace = placed(anchored, features, labels.tolist())
    coreset = Moderate().select(trace, {0: 4, 1: 7, 2: 2})
    for label, k in ((0, 4), (1, 7), (2, 2)):
        own = np.flatnonzero(labels == label)
        distances = np.linalg.norm(features[own] - features[own].mean(0), axis=1)
        nearest = own[np.argsort(np.abs(distances - np.median(distances)))[:k]]
        assert coreset.labels is not None
        assert set(coreset.ids[coreset.labels == label].tolist()) == set(nearest.tolist())


def test_the_released_code_looks_at_all_classes_at_once(anchored: Anchored) -> None:
    """Class 1 lies far from its centre: at once its distances are the upper tail, so only class 0 is kept."""
    features = np.array([[0.0], [1], [2], [3], [4], [0], [100], [200]])
    labels = [0] * 5 + [1] * 3
    trace = placed(anchored, features, labels)
    released = Moderate(variant="released")
    assert not released.balanced
    assert released.select(trace, 2).per_class == {0: 2}
    assert PerClass(released).select(trace, {1: 2}).per_class == {1: 2}
    assert Moderate().balanced
    with pytest.raises(InputError, match="does not pick class by class"):
        released.select(trace, {1: 2})


def test_all_at_one_place_tie_to_the_lower_id(anchored: Anchored) -> None:
    trace = placed(anchored, np.ones((4, 2)), [0] * 4, [9, 3, 7, 5])
    for variant in ("paper", "released"):
        assert Moderate(variant=variant).select(trace, 4).ids.tolist() == [3, 5, 7, 9]
    assert Moderate().select(trace, 2).ids.tolist() == [3, 5]


def test_broken_features_name_the_id(anchored: Anchored) -> None:
    features = np.array([[0.0], [1], [np.nan]])
    with pytest.raises(NonFiniteError, match=r"moderate: 1 scores are NaN or infinite, the first of id 7\."):
        Moderate().select(placed(anchored, features, [0, 0, 1], [3, 5, 7]), 2)


def test_several_runs_are_refused_and_a_missing_epoch_is_told(runs: tuple[Run, ...]) -> None:
    with pytest.raises(InputError, match="moderate is defined for one run, got 2"):
        Moderate().select(runs, 10)
    with pytest.raises(InputError, match=r"moderate needs features.* at epoch 3; kept were epochs 6"):
        Moderate(epoch=3).select(runs[0], 10)
    assert len(Moderate(epoch=6).select(runs[0], 10)) == 10


def test_an_unknown_variant_is_refused_when_built() -> None:
    with pytest.raises(InputError, match="moderate: variant must be one of paper, released"):
        Moderate(variant="relaesed")  # type: ignore[arg-type]
