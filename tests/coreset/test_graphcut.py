"""Graph cut: the example of the specification, and similarities in factors against the whole matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from comove.coreset import select
from comove.coreset.graphcut import GraphCut, gradient_graph_cut, graph_cut
from comove.coreset.last_layer import LastLayerGradients
from comove.errors import InputError
from comove.ties import tie_order
from comove.trace import Trace

Anchored = Callable[..., Trace]

FOUR = np.array([[1, 0.9, 0.8, 0.1], [0.9, 1, 0.7, 0.1], [0.8, 0.7, 1, 0.2], [0.1, 0.1, 0.2, 1]])


@pytest.mark.parametrize(("lam", "order", "gains"), [(1.0, [0, 3], [1.8, 0.2]), (2.0, [0, 2], [4.6, 2.8])])
def test_the_example_of_the_specification_comes_out(lam: float, order: list[int], gains: list[float]) -> None:
    found, gained = graph_cut(FOUR, 2, lam)
    assert found.tolist() == order
    np.testing.assert_allclose(gained, gains, atol=1e-12)


def random_gradients(n: int, seed: int) -> LastLayerGradients:
    rng = np.random.default_rng(seed)
    return LastLayerGradients.of(rng.dirichlet(np.ones(4), n), rng.integers(0, 4, n), rng.standard_normal((n, 6)))


def similarities(gradients: LastLayerGradients) -> np.ndarray:
    """(1 + cos) / 2 of gradients written out, 1 with oneself, cosine 0 with a gradient of zero."""
    features = np.concatenate([gradients.features_NF, np.ones((len(gradients), 1))], 1)
    full = np.einsum("nc,nf->ncf", gradients.errors_NC, features).reshape(len(gradients), -1)
    norms = np.linalg.norm(full, axis=1, keepdims=True)
    unit = full / np.where(norms > 0, norms, 1)
    found = (1 + unit @ unit.T) / 2
    np.fill_diagonal(found, 1)
    return np.asarray(found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lam", [1.0, 2.0])
def test_gradients_in_factors_are_picked_like_the_whole_matrix(seed: int, lam: float) -> None:
    gradients = random_gradients(70, seed)
    picks, gains = graph_cut(similarities(gradients), 35, lam)
    found, found_gains = gradient_graph_cut(gradients, 35, lam)
    np.testing.assert_array_equal(found, picks)
    np.testing.assert_allclose(found_gains, gains, atol=1e-9)


def test_a_gradient_of_zero_has_cosine_zero_and_not_nan() -> None:
    gradients = LastLayerGradients(np.array([[0.0, 0.0], [0.5, -0.5], [-0.5, 0.5]]), np.ones((3, 2)))
    picks, gains = gradient_graph_cut(gradients, 3)
    expected = graph_cut(similarities(gradients), 3)
    np.testing.assert_array_equal(picks, expected[0])
    np.testing.assert_allclose(gains, expected[1])
    assert np.isfinite(gains).all()


def test_classes_are_picked_by_themselves(anchored: Anchored) -> None:
    rng = np.random.default_rng(3)
    probabilities, features, labels = rng.dirichlet(np.ones(3), 60), rng.standard_normal((60, 4)), np.arange(60) % 3
    trace = anchored(features, probabilities, labels, 500 + rng.permutation(60))
    coreset = select("graphcut", trace, 12)
    assert coreset.per_class == {0: 4, 1: 4, 2: 4}
    assert coreset.labels is not None
    for label in range(3):
        members = np.flatnonzero(labels == label)
        members = members[trace.train_ids[members].argsort()]
        gradients = LastLayerGradients.of(probabilities[members], labels[members], features[members])
        expected = trace.train_ids[members[graph_cut(similarities(gradients), 4)[0]]]
        np.testing.assert_array_equal(coreset.ids[coreset.labels == label], expected)


def test_the_budget_is_filled_where_gains_are_negative(anchored: Anchored) -> None:
    trace = anchored(np.ones((6, 2)), np.full((6, 2), 0.5), [0] * 6)
    coreset = select("graphcut", trace, 6, lam=1.0)
    assert coreset.ids.tolist() == tie_order(np.arange(6)).tolist()
    assert coreset.scores[-1] < 0


@pytest.mark.parametrize("lam", [0, -1, np.nan, np.inf, True, "2"])
def test_a_lam_that_is_no_positive_number_is_refused(lam: object) -> None:
    with pytest.raises(InputError, match="graphcut: lam must be a finite number above 0"):
        GraphCut(lam=lam)  # type: ignore[arg-type]
