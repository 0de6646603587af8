"""The Gauss-Newton matrix against dense Jacobians and Hessians by autograd, in float64, for every kind of task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.batches import Given, draw, whole
from torch import Tensor, nn

from comove.data.batches import Batch, batch_size, rows_of
from comove.errors import InputError, NonFiniteError
from comove.gradients.gauss_newton import JacobianRows
from comove.models.outputs import flat_outputs
from comove.tasks import CausalLM, Classification, MultiLabel, PerExample, Regression, Task


class Language(nn.Module):
    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        self.table, self.head, self.mixes = nn.Embedding(4, 3), nn.Linear(3, 4), mixes

    def forward(self, input_ids: Tensor) -> Tensor:
        features = self.table(input_ids).cumsum(1).tanh()
        return self.head(features - features.mean(0) if self.mixes else features)  # type: ignore[no-any-return]


def drawn(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return model.double().eval()


def convolutional() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model[1].running_mean.copy_(draw(2))  # type: ignore[operator]
    return drawn(model)


def log_cosh(outputs: Tensor, batch: Any) -> Tensor:
    return torch.log(torch.cosh(outputs - batch[1])).sum(1)


def problems() -> dict[str, tuple[nn.Module, Task, Batch]]:
    x = draw(12, 3)
    mlp = drawn(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    return {
        "classification": (mlp, Classification(), (x, whole(3, 12))),
        "convolution": (convolutional(), Classification(), (draw(12, 1, 4, 4), whole(3, 12))),
        "regression": (mlp, Regression(), (x, draw(12, 3, seed=2))),
        "multi-label": (mlp, MultiLabel(), (x, whole(2, 12, 3))),
        "language": (drawn(Language()), CausalLM(), {"input_ids": whole(4, 12, 5)}),
        "own loss": (mlp, PerExample(log_cosh), (x, draw(12, 3, seed=2))),
    }


def dense(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """1/N sum_i J_i' H_i J_i by autograd, one example at a time."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    total: Tensor = torch.zeros(1, dtype=torch.float64)
    for row in range(batch_size(batch)):
        one = rows_of(batch, slice(row, row + 1))

        def outputs(chosen: dict[str, Tensor], one: Batch = one) -> Tensor:
            args = () if isinstance(one, dict) else (one[0],)
            found: Tensor = torch.func.functional_call(model, chosen, args, one if isinstance(one, dict) else None)
            return found

        found = outputs(parameters)
        jacobian = torch.func.jacrev(outputs)(parameters)
        flat = torch.cat([part.reshape(found.numel(), -1) for part in jacobian.values()], 1)
        hessian = torch.func.jacrev(torch.func.jacrev(lambda o, one=one: task.loss(o, one).sum()))(found)
        total = total + flat.T @ hessian.reshape(found.numel(), -1) @ flat
    mean: Tensor = total / batch_size(batch)
    return mean


@pytest.mark.parametrize("name", list(problems()))
def test_both_sides_are_those_of_dense_jacobians_and_hessians(name: str) -> None:
    model, task, batch = problems()[name]
    data, truth = Given(batch), dense(model, task, batch)
    rows = JacobianRows(model, task, data)
    torch.testing.assert_close(rows.matrix(data), truth, rtol=1e-8, atol=1e-10)
    gram = rows.gram(data)
    values, expected = torch.linalg.eigvalsh(gram), torch.linalg.eigvalsh(truth)
    rank = min(len(values), len(expected))
    torch.testing.assert_close(values[-rank:], expected[-rank:], rtol=1e-8, atol=1e-10)
    assert "exact" in rows.factors
    assert "one example at a time" not in str(rows.paths)


@pytest.mark.parametrize("memory", [1, 1 << 12, 1 << 30])
@pytest.mark.parametrize("batch", [1, 5, 100])
def test_the_gram_matrix_does_not_depend_on_blocks(memory: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comove.gradients.gauss_newton.BLOCK", 7)
    model, task, examples = problems()["classification"]
    data = Given(examples)
    rows = JacobianRows(model, task, data, batch=batch)
    whole_MP = torch.cat([part for _, part in rows.chunks(data)])
    torch.testing.assert_close(rows.gram(data, memory), whole_MP @ whole_MP.T / 12, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rows.matrix(data), whole_MP.T @ whole_MP / 12, rtol=1e-10, atol=1e-12)


def test_pseudo_gradients_give_the_matrix_on_average_and_the_same_rows_each_time() -> None:
    model, task, batch = problems()["classification"]
    data = Given(batch)
    rows = JacobianRows(model, task, data, draws=2000, seed=3)
    truth = dense(model, task, batch)
    assert (rows.matrix(data) - truth).abs().max() < 0.1 * truth.abs().max()
    few = JacobianRows(model, task, data, draws=2, seed=3, batch=5)
    assert few.count == 2
    torch.testing.assert_close(few.gram(data, 1), few.gram(data), rtol=0, atol=1e-12)
    other = JacobianRows(model, task, data, draws=2, seed=4, batch=5)
    assert not torch.allclose(other.matrix(data), few.matrix(data))
    assert few.factors == "2 pseudo-gradients an example"


def test_leading_rows_are_those_of_the_truncated_hessians_in_the_outputs() -> None:
    model, task, (x, y) = problems()["classification"]
    data = Given((3 * x, y))
    rows = JacobianRows(model, task, data)
    values_BK, vectors_BKK = torch.linalg.eigh(rows._columns(data.held, 0).mT @ rows._columns(data.held, 0))
    shares = values_BK.sum(0).flip(0).cumsum(0) / values_BK.sum()
    one = rows.leading(data, float(shares[0]) - 1e-6)
    assert (one.count, rows.count) == (1, 2)
    assert "1 leading rows" in one.factors
    assert rows.leading(data, float(shares[0]) + 1e-6).count == 2
    assert rows.leading(data, 1.0) is rows
    largest = values_BK[:, -1:].sqrt() * vectors_BKK[:, :, -1]
    for row in range(12):
        flat = torch.cat([part.flatten() for part in _along(model, data.held[0][row : row + 1], largest[row])])
        found = next(one.chunks(Given(rows_of(data.held, slice(row, row + 1)))))[1][0]
        torch.testing.assert_close(torch.outer(found, found), torch.outer(flat, flat), rtol=1e-8, atol=1e-10)
    both = rows.leading(data, float(shares[0]) + 1e-6)
    torch.testing.assert_close(both.matrix(data), rows.matrix(data), rtol=1e-8, atol=1e-10)


def _along(model: nn.Module, one: Tensor, column: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((model(one)[0] * column).sum(), list(model.parameters()))


def test_wide_outputs_are_drawn_unasked() -> None:
    model = drawn(nn.Linear(2, 300))
    data = Given((draw(3, 2), whole(300, 3)))
    rows = JacobianRows(model, Classification(), data)
    assert (rows.count, rows.draws) == (8, 8)
    assert JacobianRows(model, Classification(), data, draws=3).count == 3


def test_a_model_that_mixes_examples_is_computed_one_by_one() -> None:
    batch = {"input_ids": whole(4, 12, 5)}
    model, data = drawn(Language(mixes=True)), Given(batch)
    rows = JacobianRows(model, CausalLM(), data)
    torch.testing.assert_close(rows.matrix(data), dense(model, CausalLM(), batch), rtol=1e-8, atol=1e-10)
    assert "one example at a time" in str(rows.paths)


class Cut(Language):
    """Cuts a batch to its longest sequence; 3 is padding."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids[:, : int((input_ids != 3).sum(1).max())])


def test_outputs_of_different_sizes_are_refused_and_pseudo_gradients_named() -> None:
    ids = torch.tensor([[0, 3, 3], [1, 2, 0], [0, 1, 3]])
    task = PerExample(lambda o, b: o.square().flatten(1).sum(1), outputs=lambda model, batch: model(batch))
    data, model = Given(ids), drawn(Cut())
    with pytest.raises(InputError, match=r"outputs of different sizes, 12 columns.*draws=8"):
        JacobianRows(model, task, data).matrix(data)
    rows = JacobianRows(model, task, data, draws=150)
    truth = 2 * torch.stack([_outer(model, ids[row : row + 1]) for row in range(3)]).mean(0)
    assert (rows.matrix(data) - truth).abs().max() < 0.4 * truth.abs().max()


def _outer(model: nn.Module, one: Tensor) -> Tensor:
    outputs = flat_outputs(model(one))[0]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(o, list(model.parameters()), retain_graph=True)])
        for o in outputs
    ]
    found = torch.stack(rows)
    return found.T @ found


def test_rows_that_are_not_finite_name_the_example() -> None:
    model = drawn(nn.Linear(2, 1))
    inputs = draw(10, 2)
    inputs[6] = torch.inf
    data = Given((inputs, draw(10)))
    with pytest.raises(NonFiniteError, match="ids 6"):
        JacobianRows(model, Regression(), Given((draw(10, 2), draw(10)))).matrix(data)
