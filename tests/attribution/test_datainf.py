"""DataInf against its definition written out with dense inverses, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import comove
from comove.attribution import EKFAC, Attributor, DataInf, GaussNewton, GradDot
from comove.attribution.datainf import damping_of, datainf_solve
from comove.data import ExampleSet
from comove.errors import InputError
from comove.gradients.per_example import PerExampleGradients
from comove.training import Resident, Run


def test_the_solve_is_the_mean_of_dense_inverses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    examples = ExampleSet.from_arrays(torch.randn(9, 3), [0, 1, 0, 1, 1, 0, 1, 0, 0])
    data = Resident(examples, torch.device("cpu"))
    gradients = PerExampleGradients(model)
    damping = damping_of(gradients, data, 0.1)
    wanted = {name: torch.randn(2, *p.shape) for name, p in model.named_parameters()}
    found = datainf_solve(gradients, data, wanted, damping)
    rows: dict[str, Any] = {name: g.reshape(9, -1).double() for name, g in gradients.collect(data).items()}
    for name, own in rows.items():
        lam = 0.1 * float((own**2).mean())
        assert damping[name] == pytest.approx(lam, rel=1e-5)
        inverse = sum(torch.linalg.inv(torch.outer(g, g) + lam * torch.eye(own.shape[1])) for g in own) / 9
        expected = wanted[name].reshape(2, -1).double() @ inverse
        np.testing.assert_allclose(found[name].reshape(2, -1), expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_scores_are_minus_measured_gradients_times_solved_losses(run: Run) -> None:
    method = DataInf(parameters="*bias").fit(run)
    scores = method.attribute()
    model = run.load_model()
    train = Resident(run.data().train.subset(scores.train_ids), torch.device("cpu"))
    asked = Resident(run.examples(scores.query_ids), torch.device("cpu"))
    losses, measures = (PerExampleGradients(model, kind, parameters="*bias") for kind in ("loss", "measure"))
    rows, wanted = losses.collect(train), measures.collect(asked)
    expected = np.zeros(scores.values.shape)
    for name, g in rows.items():
        own, m = g.flatten(1).double(), wanted[name].flatten(1).double()
        lam = 0.1 * (own**2).mean()
        norms = lam + (own**2).sum(1)
        solved = (m - (m @ own.T / norms) @ own / len(own)) / lam
        expected -= (own @ solved.T).numpy()
    np.testing.assert_allclose(scores.values, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_with_great_damping_it_ranks_as_inner_products_do(run: Run) -> None:
    parameters = "0.weight" if "0.weight" in dict(run.load_model().named_parameters()) else None
    name = parameters or next(iter(dict(run.load_model().named_parameters())))
    damped = DataInf(damping=1e6, parameters=name).fit(run).attribute()
    plain = GradDot(parameters=name).fit(run).attribute()
    for query in range(3):  # the measured output falls as the loss rises
        assert np.corrcoef(damped.values[:, query], plain.values[:, query])[0, 1] > 0.999


def test_damping_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="damping must be"):
        DataInf(damping=0.0)


@pytest.mark.parametrize("kind", ["instance norm", "keys"])
def test_gradients_of_rounding_alone_do_not_count(kind: str) -> None:
    """Neither a bias before instance norm nor that of attention's keys changes any output."""
    torch.manual_seed(0)
    if kind == "keys":
        model: nn.Module = Attention()
        inert, x = "keys.bias", torch.randn(9, 5, 4)
    else:
        norm = nn.InstanceNorm2d(4, affine=True)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))
        inert, x = "0.bias", torch.randn(9, 2, 6, 6)
    data = Resident(ExampleSet.from_arrays(x, [0, 1, 0, 1, 1, 0, 1, 0, 0]), torch.device("cpu"))
    gradients = PerExampleGradients(model.eval())
    collected = {name: each.double() for name, each in gradients.collect(data).items()}
    assert 0 < collected[inert].abs().max() < 1e-6
    damping = damping_of(gradients, data, 0.1)
    assert damping.pop(inert) == 0
    for name, lam in damping.items():
        assert lam == pytest.approx(0.1 * float(collected[name].square().mean()), rel=1e-4)


class Attention(nn.Module):
    """One head of attention, and the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.asks, self.keys, self.values = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.asks(x) @ self.keys(x).mT).softmax(2)
        found: torch.Tensor = (weights @ self.values(x)).mean(1)
        return found


@pytest.mark.parametrize("method", [DataInf(), GaussNewton(), EKFAC(damping=1e6)])  # so damped, its draws do not matter
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_parameters_that_hold_no_numbers_change_no_score(method: Attributor) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.nothing = nn.Parameter(torch.zeros(0))
            self.none_out, self.none_in = nn.Linear(4, 0), nn.Linear(0, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.layer(x) + self.none_in(self.none_out(x)) + self.nothing.sum()
            return outputs

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 4, generator=generator)
    train, query = (
        ExampleSet.from_arrays(inputs[part], torch.arange(12)[part] % 3, ids=torch.arange(12)[part])
        for part in (slice(0, 9), slice(9, 12))
    )
    padded = Padded()
    plain = nn.Sequential(padded.layer)
    found, expected = (
        method.fit(comove.adopt(model, [model.state_dict()], train, query)).attribute().values
        for model in (padded, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_a_model_of_empty_parameters_alone_has_nothing_to_differentiate_by() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(0))

    with pytest.raises(InputError, match="all are frozen or empty"):
        PerExampleGradients(Nothing().eval())
