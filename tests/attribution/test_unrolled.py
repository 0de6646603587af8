"""Unrolled: the derivative of a training run by the weights of its examples, held to finite differences in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import comove
from comove.attribution import Unrolled
from comove.attribution.unrolled import Adjoint, unroll
from comove.data import ExampleSet, Splits
from comove.errors import InputError
from comove.gradients.batch_products import BatchProducts
from comove.gradients.scalars import margin
from comove.training import Recipe, Resident, Run, Weights, train
from comove.training.loop import EpochBatches, TrainingBatch
from comove.training.replay import Replay, Step

N, QUERIES, CLASSES = 24, 5, 3
PLAIN = Recipe(epochs=4, batch_size=8, lr=0.1, momentum=0.9, schedule="cosine")
RECIPES = {
    "momentum and a schedule": PLAIN,
    "no momentum": dataclasses.replace(PLAIN, momentum=0.0),
    "nesterov, weight decay": dataclasses.replace(PLAIN, nesterov=True, weight_decay=0.02),
    "weight decay, smoothed labels": dataclasses.replace(PLAIN, weight_decay=0.02, label_smoothing=0.1),
    "a short last batch": dataclasses.replace(PLAIN, batch_size=10),
}


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(),
        nn.Linear(27, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Tanh(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def built(factory: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return factory().double()


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and labels of training examples and of queries, in float64."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(N + QUERIES, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (N + QUERIES,), generator=generator)
    return inputs[:N], labels[:N], inputs[N:], labels[N:]


def plain_loop(
    model: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe, weights_N: Tensor
) -> tuple[nn.Module, list[Step]]:
    """Train a copy with torch's own SGD, the losses weighted; and the steps that were taken."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    steps = []
    for epoch in range(recipe.epochs):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        parts = torch.split(order, recipe.batch_size)
        for index, part in enumerate(parts):
            lr = optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch + (index + 0.5) / len(parts))
            state = {name: value.clone() for name, value in model.state_dict().items()}
            steps.append(Step(state, TrainingBatch(part, inputs[part], labels[part], lr)))
            smoothing = recipe.label_smoothing
            losses = F.cross_entropy(model(inputs[part]), labels[part], reduction="none", label_smoothing=smoothing)
            optimizer.zero_grad()
            torch.autograd.backward((losses * weights_N[part]).sum() / len(part))
            optimizer.step()
    return model.eval(), steps


def derivative(
    model: nn.Module, problem: tuple[Tensor, Tensor, Tensor, Tensor], recipe: Recipe, curvature: Any = "hessian"
) -> npt.NDArray[np.float64]:
    inputs, labels, asked, asked_labels = problem
    trained, steps = plain_loop(model, inputs, labels, recipe, torch.ones(N, dtype=torch.float64))
    products = BatchProducts(
        trained, curvature=curvature, smoothing=recipe.label_smoothing, dtype=torch.float64
    )
    products.load(trained.state_dict())
    weights_QP, statistics_QS = products.measure_gradients(margin, asked, asked_labels)
    start = Adjoint(weights_QP, torch.zeros_like(weights_QP), statistics_QS)
    return unroll(products, reversed(steps), start, recipe, N)


def finite_difference(
    model: nn.Module, problem: tuple[Tensor, Tensor, Tensor, Tensor], recipe: Recipe, example: int
) -> npt.NDArray[np.float64]:
    """Central, of fourth order."""
    inputs, labels, asked, asked_labels = problem
    found, size = torch.zeros(QUERIES, dtype=torch.float64), 1e-3
    for by, factor in ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12)):
        weights_N = torch.ones(N, dtype=torch.float64)
        weights_N[example] += by * size
        with torch.no_grad():
            logits = plain_loop_outputs(model, inputs, labels, recipe, weights_N, asked)
            found += factor / size * margin(logits, asked_labels)
    return found.numpy()


def plain_loop_outputs(
    model: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe, weights_N: Tensor, asked: Tensor
) -> Tensor:
    with torch.enable_grad():
        trained, _ = plain_loop(model, inputs, labels, recipe, weights_N)
    outputs: Tensor = trained(asked)
    return outputs


@pytest.mark.parametrize("factory", [dense, normalised])
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_the_finite_difference_of_a_plain_loop(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], factory: Callable[[], nn.Module], name: str
) -> None:
    model, recipe = built(factory), RECIPES[name]
    found = derivative(model, problem, recipe)
    for example in (0, 7, 13):
        expected = finite_difference(model, problem, recipe, example)
        np.testing.assert_allclose(found[example], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("factory", [dense, normalised])
def test_gauss_newton_equals_the_hessian_where_the_logits_are_linear_and_differs_elsewhere(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], factory: Callable[[], nn.Module]
) -> None:
    linear = built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
    one, other = (derivative(linear, problem, PLAIN, curvature) for curvature in ("hessian", "gauss-newton"))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    one, other = (derivative(built(factory), problem, PLAIN, curvature) for curvature in ("hessian", "gauss-newton"))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.5
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()
