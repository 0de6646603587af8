"""Glister: the look-ahead moves with every pick; a version that forgets to update it picks otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from comove.coreset import select
from comove.coreset.glister import Glister, Validation, glister
from comove.coreset.last_layer import LastLayerGradients
from comove.errors import InputError
from comove.ties import tie_keys
from comove.trace import Trace
from comove.training import Run

Anchored = Callable[..., Trace]

HALVES = np.full((3, 2), 0.5)
TRAIN = (np.array([[2.0], [2.0], [-1.0]]), HALVES, np.array([0, 0, 1]))
HELD_OUT = (np.array([[1.0], [-1.0]]), HALVES[:2], np.array([0, 1]))


def of(features: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> LastLayerGradients:
    return LastLayerGradients.of(probabilities, labels, features)


def held_out(features: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> Validation:
    return Validation(probabilities, labels, features)


def test_the_example_of_the_specification_comes_out(anchored: Anchored) -> None:
    """Without the update of the validation gradient the second pick would be 1, a duplicate of the first."""
    picks, gains = glister(of(*TRAIN), held_out(*HELD_OUT), 3, eta=1.0)
    assert picks[:2].tolist() == [0, 2]
    np.testing.assert_allclose(gains[:2], [1, 0.268941], atol=1e-6)
    never_updated = of(*TRAIN).along(of(*HELD_OUT).mean())
    np.testing.assert_allclose(never_updated, [1, 1, 0.5])
    trace = anchored(*TRAIN, ids=[30, 40, 50], validation=HELD_OUT)
    coreset = select("glister", trace, 2, eta=1.0)
    assert coreset.ids.tolist() == [min((30, 40), key=lambda id_: int(tie_keys(np.array([id_]))[0])), 50]  # twins
    np.testing.assert_allclose(coreset.scores, [1, 0.268941], atol=1e-6)


def test_the_gain_of_the_duplicate_falls_to_the_value_of_the_specification() -> None:
    train, validation = of(*TRAIN), held_out(*HELD_OUT)
    first = train.take(np.array([0])).mean([1.0])
    logits = -(validation.features_VF @ first[:, :-1].T + first[:, -1])
    moved = torch.from_numpy(logits).softmax(1).numpy()
    gains = train.along(LastLayerGradients.of(moved, validation.labels_V, validation.features_VF).mean())
    np.testing.assert_allclose(gains, [0.205610, 0.205610, 0.268941], atol=1e-6)
    assert glister(train, validation, 3, eta=1.0)[0].tolist() == [0, 2, 1]


Side = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_problem(seed: int, n: int = 25, v: int = 12) -> tuple[torch.nn.Linear, Side, Side]:
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(5, 3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    sides = []
    for size in (n, v):
        features = torch.randn(size, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 3, (size,), generator=generator)
        sides.append((features, layer(features).softmax(1).detach(), labels))
    return layer, sides[0], sides[1]


@pytest.mark.parametrize("seed", range(3))
def test_picks_are_those_of_stepping_a_real_layer_with_autograd(seed: int) -> None:
    """theta - eta x (sum of the picks' gradients at theta), the validation gradient there by autograd, every time."""
    eta = 0.3
    layer, (h, p, y), (hv, pv, yv) = random_problem(seed)
    parameters = list(layer.parameters())

    def flat(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    own = torch.stack([flat(F.cross_entropy(layer(h[i : i + 1]), y[i : i + 1])) for i in range(len(y))])
    start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    expected: list[int] = []
    gains = []
    for _ in range(10):
        torch.nn.utils.vector_to_parameters(start - eta * own[expected].sum(0), parameters)
        gain = own @ flat(F.cross_entropy(layer(hv), yv))
        gain[expected] = -torch.inf
        expected.append(int(gain.argmax()))
        gains.append(float(gain.max()))
    train, validation = of(h.numpy(), p.numpy(), y.numpy()), held_out(hv.numpy(), pv.numpy(), yv.numpy())
    picks, found = glister(train, validation, 10, eta=eta)
    assert picks.tolist() == expected
    np.testing.assert_allclose(found, gains, atol=1e-9)


def test_a_gain_is_how_fast_the_validation_loss_falls() -> None:
    layer, (h, p, y), (hv, pv, yv) = random_problem(7)
    parameters = list(layer.parameters())
    picks, gains = glister(of(h.numpy(), p.numpy(), y.numpy()), held_out(hv.numpy(), pv.numpy(), yv.numpy()), 1)
    best = int(picks[0])
    before = F.cross_entropy(layer(hv), yv).detach()
    step = torch.autograd.grad(F.cross_entropy(layer(h[best : best + 1]), y[best : best + 1]), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.sub_(1e-5 * gradient)
        fall = float(before - F.cross_entropy(layer(hv), yv)) / 1e-5
    assert gains[0] == pytest.approx(fall, rel=1e-3)


def test_rounds_take_the_best_of_each_and_update_between() -> None:
    _, (h, p, y), (hv, pv, yv) = random_problem(1)
    train, validation = of(h.numpy(), p.numpy(), y.numpy()), held_out(hv.numpy(), pv.numpy(), yv.numpy())
    at_once = glister(train, validation, 9, eta=0.5, rounds=1)[0]
    initial = train.along(of(hv.numpy(), pv.numpy(), yv.numpy()).mean())
    assert at_once.tolist() == np.argsort(-initial, kind="stable")[:9].tolist()
    thrice = glister(train, validation, 9, eta=0.5, rounds=3)[0]
    assert thrice[:3].tolist() == at_once[:3].tolist()
    assert np.unique(thrice).size == 9
    every = glister(train, validation, 9, eta=0.5)[0]
    for rounds in (9, 1000):
        assert glister(train, validation, 9, eta=0.5, rounds=rounds)[0].tolist() == every.tolist()
    assert every.tolist() != at_once.tolist()


def test_only_validation_examples_are_aimed_at(anchored: Anchored, run: Run) -> None:
    """On a real run: the gain of the first pick is that of the validation examples, not of all queries."""
    trace = run.trace
    assert trace.train_labels is not None
    assert trace.query_labels is not None
    columns = np.flatnonzero(np.isin(trace.query_ids, trace.validation_ids))
    assert 0 < columns.size < trace.query_ids.size
    train = LastLayerGradients.of(trace.probabilities("train"), trace.train_labels, trace.features("train"))
    aim = LastLayerGradients.of(
        trace.probabilities("query")[columns], trace.query_labels[columns], trace.features("query")[columns]
    )
    expected = train.along(aim.mean())
    coreset = select("glister", run, 3)
    assert coreset.scores[0] == pytest.approx(expected.max(), rel=1e-4)
    assert coreset.ids[0] == trace.train_ids[expected.argmax()]


def test_per_class_aims_at_the_validation_examples_of_the_class(anchored: Anchored) -> None:
    rng = np.random.default_rng(0)
    train = (rng.standard_normal((40, 3)), rng.dirichlet(np.ones(2), 40), np.arange(40) % 2)
    validation = (rng.standard_normal((10, 3)), rng.dirichlet(np.ones(2), 10), np.arange(10) % 2)
    coreset = select("per_class", anchored(*train, validation=validation), {1: 4}, selector="glister")
    own, aim = [np.flatnonzero(part[2] == 1) for part in (train, validation)]
    expected = glister(of(*(values[own] for values in train)), held_out(*(values[aim] for values in validation)), 4)[0]
    assert coreset.ids.tolist() == own[expected].tolist()


def test_a_class_without_validation_examples_is_an_error_that_names_it(anchored: Anchored) -> None:
    trace = anchored(*TRAIN, validation=tuple(part[:1] for part in HELD_OUT))
    with pytest.raises(
        InputError, match="needs validation examples of the classes to pick from, found none of class 1"
    ):
        select("per_class", trace, {1: 1}, selector="glister")
    assert len(select("glister", trace, 2)) == 2


def test_sure_predictions_do_not_turn_into_nan(anchored: Anchored) -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    coreset = select("glister", anchored(TRAIN[0], sure, TRAIN[2]), 3)
    assert np.isfinite(coreset.scores).all()


@pytest.mark.parametrize(("option", "value"), [("eta", 0), ("eta", np.inf), ("rounds", 0), ("rounds", 1.5)])
def test_bad_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"glister: {option} must be a"):
        Glister(**{option: value})  # type: ignore[arg-type]
