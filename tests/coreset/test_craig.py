"""CRAIG: medoids of gradients and their weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from comove.coreset import select
from comove.coreset.craig import craig, facility_location
from comove.coreset.last_layer import LastLayerGradients
from comove.trace import Trace

Anchored = Callable[..., Trace]

LINE = np.array([0.0, 1, 3, 4, 9, 10, 12])


def on_a_line(values: np.ndarray) -> np.ndarray:
    """Probabilities of label 0 whose gradients, at features of zero, lie as far apart as ``values`` x sqrt(2) / 20."""
    return np.stack([1 - values / 20, values / 20], 1)


def test_the_example_of_the_specification_comes_out(anchored: Anchored) -> None:
    distances = np.abs(LINE[:, None] - LINE)
    similarity = 12 - distances
    assert similarity.sum(0).tolist() == [45, 50, 56, 57, 52, 49, 39]
    picks, gains, weights = facility_location(similarity, 2)
    assert (picks.tolist(), gains.tolist(), weights.tolist()) == ([3, 5], [57, 16], [4, 3])
    ids = np.array([70, 60, 50, 40, 30, 20, 10])
    coreset = select("craig", anchored(np.zeros((7, 1)), on_a_line(LINE), np.zeros(7, int), ids), 2)
    assert coreset.ids.tolist() == [40, 20]
    assert coreset.weights.tolist() == [4, 3]
    np.testing.assert_allclose(coreset.scores * 20 / np.sqrt(2), [57, 16], rtol=1e-5)


def random_gradients(n: int, seed: int) -> LastLayerGradients:
    rng = np.random.default_rng(seed)
    probabilities, features = rng.dirichlet(np.ones(4), n), rng.standard_normal((n, 6))
    return LastLayerGradients.of(probabilities.astype(np.float32), rng.integers(0, 4, n), features.astype(np.float32))


def written_out(gradients: LastLayerGradients) -> np.ndarray:
    features = np.concatenate([gradients.features_NF, np.ones((len(gradients), 1))], 1)
    return np.asarray(np.einsum("nc,nf->ncf", gradients.errors_NC, features).reshape(len(gradients), -1), np.float64)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_in_factors_are_picked_like_gradients_written_out(seed: int) -> None:
    gradients = random_gradients(80, seed)
    full = written_out(gradients)
    distances = np.linalg.norm(full[:, None] - full, axis=2)
    picks, gains, weights = facility_location(distances.max() - distances, 20)
    found = craig(gradients, 20)
    np.testing.assert_array_equal(found[0], picks)
    np.testing.assert_allclose(found[1], gains, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[2], weights)


@pytest.mark.parametrize("seed", range(3))
def test_rows_computed_when_asked_for_reach_the_same_value(seed: int) -> None:
    """Not always the same picks: of two that serve one another only, rounding decides."""
    gradients = random_gradients(80, seed)
    held, asked = craig(gradients, 20), craig(gradients, 20, hold_bytes=0)
    np.testing.assert_allclose(asked[1], held[1], rtol=1e-5)
    assert asked[2].sum() == 80


def test_weights_are_cluster_sizes_and_the_weighted_sum_approaches_the_full_gradient() -> None:
    gradients = random_gradients(300, 0)
    full = written_out(gradients)
    errors = []
    for k in (5, 30, 150):
        picks, _, weights = craig(gradients, k)
        assert weights.sum() == 300
        nearest = np.linalg.norm(full[:, None] - full[picks], axis=2).argmin(1)
        np.testing.assert_array_equal(weights, np.bincount(nearest, minlength=k))
        errors.append(np.linalg.norm(weights @ full[picks] - full.sum(0)))
    assert errors[0] > errors[1] > errors[2]
    assert craig(gradients, 300)[2].tolist() == [1] * 300


def test_classes_are_picked_by_themselves_and_their_weights_add_up_to_their_sizes(anchored: Anchored) -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    trace = anchored(rng.standard_normal((60, 4)), rng.dirichlet(np.ones(3), 60), labels)
    coreset = select("craig", trace, 12)
    assert coreset.per_class == {0: 2, 1: 4, 2: 6}
    assert coreset.labels is not None
    for label, size in ((0, 10), (1, 20), (2, 30)):
        assert coreset.weights[coreset.labels == label].sum() == size


def test_all_gradients_alike_are_picked_in_order_of_their_ids(anchored: Anchored) -> None:
    trace = anchored(np.ones((4, 2)), np.full((4, 2), 0.5), [0] * 4, [9, 3, 7, 5])
    coreset = select("craig", trace, 3)
    assert coreset.ids.tolist() == [3, 5, 7]
    assert coreset.weights.tolist() == [4, 0, 0]
