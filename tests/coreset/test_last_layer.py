"""The factors of last-layer gradients against gradients that autograd writes out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from comove.coreset import select
from comove.coreset.last_layer import LastLayerGradients, in_tie_order
from comove.errors import InputError, NonFiniteError
from comove.ties import tie_keys
from comove.trace import Trace

EXAMPLE = LastLayerGradients(np.array([[-0.3, 0.2, 0.1], [0.4, -0.6, 0.2]]), np.array([[1.0, 2.0], [0.0, -1.0]]))


def written_out(seed: int) -> tuple[LastLayerGradients, np.ndarray]:
    """Seven examples, four classes, five features: the factors, and (N, C (F + 1)) by autograd on a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(5, 4).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (7,), generator=generator)
    rows = []
    for h, y in zip(features, labels, strict=True):
        loss = F.cross_entropy(layer(h)[None], y[None])
        weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias])
        rows.append(torch.cat([weight, bias[:, None]], 1).flatten())
    probabilities = layer(features).softmax(1).detach().numpy()
    return LastLayerGradients.of(probabilities, labels.numpy(), features.numpy()), torch.stack(rows).numpy()


def test_the_example_of_the_specification_comes_out() -> None:
    np.testing.assert_allclose(EXAMPLE.gram(EXAMPLE), [[0.84, 0.22], [0.22, 1.12]], atol=1e-12)
    np.testing.assert_allclose(EXAMPLE.squared_norms(), [0.84, 1.12], atol=1e-12)
    assert EXAMPLE.distances(EXAMPLE)[0, 1] == pytest.approx(1.232883, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_factors_are_autograds_gradients(seed: int) -> None:
    factored, full = written_out(seed)
    np.testing.assert_allclose(factored.gram(factored), full @ full.T, atol=1e-12)
    np.testing.assert_allclose(factored.squared_norms(), (full**2).sum(1), atol=1e-12)
    np.testing.assert_allclose(factored.mean().reshape(-1), full.mean(0), atol=1e-12)
    weights = np.arange(7.0)
    np.testing.assert_allclose(factored.mean(weights).reshape(-1), weights @ full, atol=1e-12)
    np.testing.assert_allclose(factored.along(factored.mean()), full @ full.mean(0), atol=1e-12)
    others = factored.take(np.array([4, 1]))
    expected = np.linalg.norm(full[:, None] - full[[4, 1]], axis=2)
    np.testing.assert_allclose(factored.distances(others), expected, atol=1e-7)
    np.testing.assert_allclose(factored.unit().squared_norms(), 1, atol=1e-12)


def test_distances_in_float32_survive_large_norms() -> None:
    features = np.full((3, 8), 100, np.float32)
    features[1, 0] += np.float32(0.01)
    gradients = LastLayerGradients(np.ones((3, 2), np.float32), features)
    near = gradients.distances(gradients)
    assert near[0, 1] == pytest.approx(np.sqrt(2) * 0.01, rel=0.01)
    assert near[0, 2] == pytest.approx(0, abs=1e-4)


def test_a_gradient_of_zero_stays_zero_when_normed() -> None:
    gradients = LastLayerGradients(np.array([[0.0, 0.0], [0.5, -0.5]]), np.ones((2, 3)))
    np.testing.assert_allclose(gradients.unit().squared_norms(), [0, 1])


def test_probabilities_given_are_not_changed() -> None:
    probabilities = np.array([[0.25, 0.75]])
    LastLayerGradients.of(probabilities, [1], [[1.0]])
    assert probabilities.tolist() == [[0.25, 0.75]]


def test_shapes_and_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"got shapes \(2, 2\), \(1,\) and \(2, 3\)"):
        LastLayerGradients.of(np.ones((2, 2)), [0], np.ones((2, 3)))
    with pytest.raises(InputError, match=r"Labels must be in 0 \.\.\. 1, got 0 \.\.\. 2"):
        LastLayerGradients.of(np.ones((2, 2)), [0, 2], np.ones((2, 3)))


def test_candidates_come_in_the_order_in_which_ties_go() -> None:
    candidates, ids = np.array([0, 2, 3]), np.array([40, 10, 30, 20])
    assert in_tie_order(candidates, ids).tolist() == candidates[np.argsort(tie_keys(ids[candidates]))].tolist()


@pytest.mark.parametrize("method", ["herding", "cal", "craig", "graphcut", "glister"])
def test_the_choice_moves_with_the_ids_whatever_the_order_of_the_trace(
    method: str, anchored: Callable[..., Trace]
) -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 3, (40, 2)).astype(float)  # duplicates, so that ties are decided too
    probabilities, labels, ids = rng.dirichlet(np.ones(2), 4)[np.arange(40) % 4], np.arange(40) % 2, np.arange(40) * 3
    held_out = (features[:9], probabilities[:9], labels[:9])
    found = []
    for order in (np.arange(40), rng.permutation(40)):
        parts = (values[order] for values in (features, probabilities, labels, ids))
        found.append(select(method, anchored(*parts, validation=held_out), 20).ids.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["craig", "graphcut", "glister", "cal"])
def test_a_prediction_that_is_nan_is_an_error_that_names_the_example(
    method: str, anchored: Callable[..., Trace]
) -> None:
    probabilities = np.full((3, 2), 0.5)
    probabilities[1] = np.nan
    with pytest.raises(NonFiniteError, match=f"{method}: the features or probabilities of 1 examples .* of id 20"):
        select(method, anchored(np.ones((3, 2)), probabilities, [0, 0, 0], [10, 20, 30]), 1)
