"""Herding follows the mean; the examples of the specification, and DeepCore's opposite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from comove.coreset import select
from comove.coreset.herding import herding
from comove.errors import InputError, NonFiniteError
from comove.trace import Trace

Anchored = Callable[..., Trace]

LINE = [[0.0], [1.0], [2.0], [6.0]]
LABELS = [0, 1, 0, 1]
EVEN = np.full((4, 2), 0.5)


@pytest.mark.parametrize(("variant", "order"), [("mean", [2, 1, 3]), ("kernel", [3, 0, 2]), ("deepcore", [3, 2, 1])])
def test_the_example_of_the_specification_comes_out(variant: str, order: list[int], anchored: Anchored) -> None:
    assert herding(LINE, 3, variant)[0].tolist() == order  # type: ignore[arg-type]
    ids = [40, 10, 30, 20]
    coreset = select("herding", anchored(LINE, EVEN, LABELS, ids), 3, variant=variant)
    assert coreset.ids.tolist() == [ids[position] for position in order]


def test_both_forms_agree_on_features_of_one_norm() -> None:
    angles = np.deg2rad([0, 90, 30, 200])
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert herding(circle, 3, "mean")[0].tolist() == herding(circle, 3, "kernel")[0].tolist() == [2, 3, 0]
    sphere = np.random.default_rng(0).standard_normal((80, 6))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert herding(sphere, 40, "mean")[0].tolist() == herding(sphere, 40, "kernel")[0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_every_pick_brings_the_mean_nearest(seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((30, 4)) + 3
    picks, scores = herding(features, 30)
    mean = features.mean(0)
    for s in range(1, 31):
        total = features[picks[: s - 1]].sum(0)
        others = [i for i in range(30) if i not in picks[: s - 1]]
        distances = [np.linalg.norm(s * mean - total - features[i]) for i in others]
        assert others[int(np.argmin(distances))] == picks[s - 1]
        assert scores[s - 1] == pytest.approx(-min(distances), abs=1e-6)


def test_its_mean_is_nearer_than_that_of_random_picks_and_deepcores_is_further() -> None:
    rng = np.random.default_rng(0)
    features = rng.exponential(size=(500, 10))

    def gap(picks: npt.NDArray[np.int64]) -> float:
        return float(np.linalg.norm(features[picks].mean(0) - features.mean(0)))

    chance = np.mean([gap(rng.permutation(500)[:25]) for _ in range(50)])
    assert gap(herding(features, 25)[0]) < chance / 5
    assert gap(herding(features, 25, "deepcore")[0]) > chance


def test_ties_go_to_the_lower_id(anchored: Anchored) -> None:
    trace = anchored(np.ones((4, 2)), EVEN, LABELS, [9, 3, 7, 5])
    assert select("herding", trace, 4).ids.tolist() == [3, 5, 7, 9]


def test_the_mean_is_that_of_the_class_under_per_class(anchored: Anchored) -> None:
    trace = anchored([[0.0], [10.0], [1.0], [11.0], [2.0], [12.0]], np.full((6, 2), 0.5), [0, 1] * 3)
    assert sorted(select("herding", trace, 2).ids.tolist()) != [2, 3]
    assert sorted(select("per_class", trace, 2, selector="herding").ids.tolist()) == [2, 3]


def test_the_order_of_choice_is_kept_and_smaller_budgets_are_prefixes(anchored: Anchored) -> None:
    rng = np.random.default_rng(1)
    trace = anchored(rng.standard_normal((40, 3)), np.full((40, 2), 0.5), np.arange(40) % 2, rng.permutation(100)[:40])
    longest = select("herding", trace, 40).ids.tolist()
    for k in (1, 7, 39):
        assert select("herding", trace, k).ids.tolist() == longest[:k]


def test_an_unknown_variant_and_broken_features_are_refused(anchored: Anchored) -> None:
    with pytest.raises(InputError, match="herding: variant must be one of mean, kernel, deepcore"):
        select("herding", anchored(LINE, EVEN, LABELS), 2, variant="kernal")
    with pytest.raises(NonFiniteError, match=r"herding: the features or probabilities of 1 examples .* id 1\."):
        select("herding", anchored([[0.0], [np.nan], [2.0], [6.0]], EVEN, LABELS), 2)
