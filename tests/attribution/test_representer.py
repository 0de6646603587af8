"""Representer points: the fitted layer is the sum of its examples' parts, and what it cannot explain is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from comove import adopt
from comove.attribution import Representer
from comove.attribution.representer import fit_last_layer, representer_scores
from comove.data import ExampleSet
from comove.errors import InputError
from comove.tasks import Classification, Regression, Task
from comove.training import Run

RIDGE = 0.01


class Scaled(nn.Sequential):
    """A factor after the last layer, as in ResNet-9."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = 0.2 * super().forward(x)  # type: ignore[no-untyped-call]
        return found


def problem(folder: Path, model: nn.Module, task: Task, seed: int = 0) -> Run:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 4, generator=rng)
    y = x[:, 0] * 2 + torch.randn(30, generator=rng) if isinstance(task, Regression) else x[:, :3].argmax(1)
    items = [(a, b) for a, b in zip(x, y, strict=True)]
    train, queries = (ExampleSet(part, collate=default_collate) for part in (items[:24], items[24:]))
    return adopt(model, [model.state_dict()], train=train, queries=queries, task=task, out=folder)


@pytest.mark.parametrize("kind", ["classification", "scaled", "no bias"])
def test_scores_of_a_query_add_up_to_its_measured_outputs_slope_times_its_outputs(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=kind != "no bias"))
    model = Scaled(*layers) if kind == "scaled" else nn.Sequential(*layers)
    run = problem(tmp_path / "run", model, Classification())
    method = Representer(regularization=RIDGE).fit(run)
    scores = method.attribute()
    weight = method._require_fitted()[1][0][1]
    (x, y), head = default_collate([run.data().query[i] for i in range(6)]), model.double()
    features = torch.tanh(layers[0](x.double()))
    hidden = features if kind == "no bias" else torch.cat([features, torch.ones(6, 1)], 1)
    outputs = (hidden @ weight.T).detach().requires_grad_()
    factor = 0.2 if kind == "scaled" else 1.0
    margin = Classification().measure(factor * outputs, (x, y))
    slope = torch.autograd.grad(margin.sum(), outputs)[0]
    assert head is model
    expected = (slope * outputs).sum(1).detach().numpy()  # what a sum over all training examples must give
    np.testing.assert_allclose(scores.values.sum(0), expected, rtol=1e-3, atol=1e-4)


def test_ridge_regression_is_the_closed_form(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = problem(tmp_path / "run", nn.Linear(4, 1), Regression())
    scores = Representer(regularization=RIDGE).fit(run).attribute()
    x, y = default_collate([run.data().train[i] for i in range(24)])
    q, target = default_collate([run.data().query[i] for i in range(6)])
    design, asked = (torch.cat([part.double(), torch.ones(len(part), 1)], 1) for part in (x, q))
    weight = torch.linalg.solve(design.T @ design / 24 + 2 * RIDGE * torch.eye(5), design.T @ y.double() / 24)
    alpha = (design @ weight - y.double()) / (-2 * RIDGE * 24)
    slope = -(asked @ weight - target.double())
    expected = alpha[:, None] * (design @ asked.T) * slope
    np.testing.assert_allclose(scores.values, expected.numpy(), rtol=2e-3, atol=1e-5)


def test_plain_functions_take_arrays_from_anywhere() -> None:
    weight = fit_last_layer(torch.zeros(1, 2), lambda w: ((w - 1) ** 2).sum() / 2, 0.5)
    np.testing.assert_allclose(weight, np.full((1, 2), 0.5), rtol=1e-6)
    one = torch.ones(1, 1)
    assert representer_scores(one, -one, one, one, 0.5).tolist() == [[1.0]]


def test_a_model_that_does_more_after_its_last_layer_is_refused(tmp_path: Path) -> None:
    run = problem(tmp_path / "run", nn.Sequential(nn.Linear(4, 3), nn.Softplus()), Classification())
    with pytest.raises(InputError, match="fixed multiple of the last linear layer"):
        Representer().fit(run)


def test_what_happens_after_the_last_layer_is_looked_for_in_every_example(tmp_path: Path) -> None:
    torch.manual_seed(0)
    last = nn.Linear(4, 1)
    model = nn.Sequential(last, nn.ReLU())
    with torch.no_grad():  # the first two of all outputs are positive, where nothing happens, others negative
        x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        last.bias.fill_(-float((x @ last.weight.T)[:2].min()) + 1e-3)
        assert (model(x)[:2] > 0).all()
        assert (last(x) < 0).any()
    with pytest.raises(InputError, match="fixed multiple of the last linear layer"):
        Representer().fit(problem(tmp_path / "run", model, Regression()))


def test_a_model_in_bfloat16_is_rounded_not_refused() -> None:
    def collated(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in items]).bfloat16(), torch.tensor([y for _, y in items])

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    items = [(torch.randn(4, generator=generator).bfloat16().float(), place % 3) for place in range(20)]
    half = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).bfloat16()
    found = []
    for model, collate in ((half, collated), (copy.deepcopy(half).float(), default_collate)):
        train, queries = (ExampleSet(part, collate=collate) for part in (items[:14], items[14:]))
        run = adopt(model, [model.state_dict()], train=train, queries=queries)
        found.append(Representer(regularization=RIDGE).fit(run).attribute().values)
    np.testing.assert_allclose(found[0], found[1], atol=0.05 * np.abs(found[1]).max())


def test_features_of_nothing_in_the_first_examples_are_no_factor_of_nothing() -> None:
    items = [(torch.tensor([one]), torch.tensor([1.0])) for one in (0.0, 0.0, 1.0, 2.0, -3.0)]
    train, queries = (ExampleSet(part, collate=default_collate) for part in (items, items[:2] + items[3:]))
    layer = nn.Linear(1, 1, bias=False)
    run = adopt(layer, [layer.state_dict()], train=train, queries=queries, task=Regression())
    scores = Representer(regularization=RIDGE).fit(run).attribute()
    design = np.array([0.0, 0.0, 1.0, 2.0, -3.0])
    weight = (design.sum() / 5) / ((design**2).sum() / 5 + 2 * RIDGE)
    alpha = (design * weight - 1) / (-2 * RIDGE * 5)
    asked = design[[0, 1, 3, 4]]
    expected = alpha[:, None] * np.outer(design, asked) * -(asked * weight - 1)
    np.testing.assert_allclose(scores.values, expected, rtol=2e-3, atol=1e-5)


def test_a_penalty_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="regularization must be"):
        Representer(regularization=0.0)
