"""Influence by conjugate gradients, and by all three Hessian methods, against closed forms on small models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from comove.attribution import influence_cg
from comove.attribution.arnoldi import Arnoldi
from comove.attribution.base import Attributor
from comove.attribution.influence_cg import InfluenceCG, conjugate_gradients
from comove.attribution.rand_select import RandSelect
from comove.data import ExampleSet, Splits
from comove.errors import InputError
from comove.gradients.hessian import Hessian
from comove.gradients.per_example import PerExampleGradients
from comove.training import Recipe, Run, train

DAMPING = 0.05


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operations shared by two threads take longer, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def logistic_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three-class logistic regression on 40 examples of 3 features; query 103 is a copy of training example 7."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(46, 3, generator=generator)
    labels = torch.randint(3, (46,), generator=generator)
    inputs[43], labels[43] = inputs[0], labels[0]
    ids = np.concatenate([7 + 2 * np.arange(40)[::-1], 100 + np.arange(6)])
    ids[[0, 39]] = ids[[39, 0]]
    assert ids[0] == 7

    def part(rows: slice) -> ExampleSet:
        return ExampleSet.from_arrays(inputs[rows], labels[rows].numpy(), ids=ids[rows], classes=list("abc"))

    splits = Splits(part(slice(40)), None, part(slice(40, 46)))
    recipe = Recipe(epochs=10, batch_size=8, lr=0.1, momentum=0.0)
    folder = tmp_path_factory.mktemp("logistic") / "run"
    return train(splits, "mlp", recipe, 0, folder, model_options={"hidden": []})


def logistic_truth(run: Run, damping: float) -> npt.NDArray[np.float64]:
    """G (H + damping I)^-1 G' with the gradients (p - e_y) [x 1] and the Hessian mean (diag p - p p') [x 1] [x 1]'."""
    weight, bias = (p.detach().double() for p in run.load_model().parameters())

    def parts(examples: ExampleSet) -> tuple[Tensor, Tensor, Tensor]:
        x = examples.prepare(examples.raw(np.arange(len(examples)))).double()
        p = torch.softmax(x @ weight.T + bias, 1)
        extended = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        residual = p - torch.eye(3, dtype=torch.float64)[torch.from_numpy(examples.labels)]
        return p, extended, torch.einsum("nc,nf->ncf", residual, extended).flatten(1)

    p, x, train_NP = parts(run.data().train.subset(run.trace.train_ids))
    query_QP = parts(run.data().query.subset(run.trace.query_ids))[2]
    curved = torch.diag_embed(p) - torch.einsum("nc,nd->ncd", p, p)
    hessian = torch.einsum("ncd,nf,ng->cfdg", curved, x, x).reshape(12, 12) / len(x)
    inverse = torch.linalg.pinv(hessian + damping * torch.eye(12, dtype=torch.float64), rtol=1e-8, hermitian=True)
    truth: npt.NDArray[np.float64] = (train_NP @ inverse @ query_QP.T).numpy()
    return truth


EXACT: list[Attributor] = [
    InfluenceCG(damping=DAMPING, tolerance=1e-8),
    Arnoldi(damping=DAMPING, hessian_examples=40, arnoldi_dim=12, rank=12),
    RandSelect(damping=DAMPING, hessian_examples=1000, subspace_dim=500, rank=500),  # more than there are of either
]


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
def test_logistic_regression_has_its_exact_influence(method: Attributor, logistic_run: Run) -> None:
    truth = logistic_truth(logistic_run, DAMPING)
    scores = method.fit(logistic_run).attribute()
    np.testing.assert_allclose(scores.values, truth, rtol=1e-3, atol=1e-3 * np.abs(truth).max())
    tight = 1e-6 if isinstance(method, InfluenceCG) else 1e-4
    assert np.abs(scores.values - truth).max() < tight * np.abs(truth).max()


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
def test_without_damping_the_softmax_s_flat_directions_do_no_harm(method: Any, logistic_run: Run) -> None:
    truth = logistic_truth(logistic_run, 0.0)
    scores = replace(method, damping=0.0).fit(logistic_run).attribute()
    assert np.isfinite(scores.values).all()
    np.testing.assert_allclose(scores.values, truth, atol=2e-3 * np.abs(truth).max())


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
def test_a_copy_of_the_query_helps(method: Attributor, logistic_run: Run) -> None:
    scores = method.fit(logistic_run).attribute(103)
    assert scores.column(103)[scores.train_ids == 7][0] > 0
    truth = logistic_truth(logistic_run, DAMPING)[0, 3]
    assert scores.column(103)[scores.train_ids == 7][0] == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
def test_new_queries_get_the_scores_of_recorded_ones(method: Attributor, logistic_run: Run) -> None:
    fitted = method.fit(logistic_run)
    recorded = fitted.attribute([104, 101])
    new = fitted.attribute(logistic_run.data().query.subset([104, 101]))
    np.testing.assert_array_equal(recorded.values, new.values)


@pytest.mark.parametrize("method", EXACT[1:], ids=lambda method: method.name)
def test_self_influence_is_the_diagonal(method: Attributor, logistic_run: Run) -> None:
    fitted = method.fit(logistic_run)
    train_set = logistic_run.data().train.subset(logistic_run.trace.train_ids)
    full = fitted.attribute(train_set).values
    found = fitted.self_influence()
    np.testing.assert_allclose(found, np.diag(full), rtol=1e-5)
    assert (found >= 0).all()
    assert found.dtype == np.float32


def test_several_runs_give_the_mean_of_their_scores(runs: tuple[Run, ...]) -> None:
    method = InfluenceCG(damping=1.0, hessian_examples=60)
    singles = [method.fit(run).attribute().values for run in runs]
    both = method.fit(runs).attribute()
    np.testing.assert_allclose(both.values, np.mean(singles, axis=0), rtol=1e-5, atol=1e-6 * np.abs(both.values).max())


# --- the solver ---------------------------------------------------------------------------------------------------


def ridge() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    return x.T @ x / 30 + 0.1 * torch.eye(8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)


def test_solutions_are_those_of_a_dense_solve() -> None:
    matrix, targets = ridge()
    solved = conjugate_gradients(lambda v: v @ matrix, targets, tolerance=1e-12)
    torch.testing.assert_close(solved.vectors, torch.linalg.solve(matrix, targets.T).T, rtol=1e-9, atol=1e-10)
    assert solved.converged.all()
    assert not solved.negative_curvature.any()
    assert int(solved.steps.max()) <= 10  # exact arithmetic needs 8


def test_each_system_goes_its_own_way_whatever_stands_beside_it() -> None:
    matrix, targets = ridge()
    targets[2] = torch.linalg.eigh(matrix)[1][:, 0]  # an eigenvector: solved in one step
    together = conjugate_gradients(lambda v: v @ matrix, targets)
    for index, target in enumerate(targets):
        alone = conjugate_gradients(lambda v: v @ matrix, target[None])
        torch.testing.assert_close(alone.vectors[0], together.vectors[index], rtol=1e-10, atol=1e-12)
        assert alone.steps[0] == together.steps[index]
    assert together.steps[2] == 1
    assert together.steps[0] > 3


def test_zero_is_solved_without_a_step() -> None:
    matrix, targets = ridge()
    solved = conjugate_gradients(lambda v: v @ matrix, torch.zeros_like(targets))
    assert (solved.vectors == 0).all()
    assert solved.converged.all()
    assert (solved.steps == 0).all()


def test_negative_curvature_stops_a_system_where_it_was() -> None:
    matrix = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.9]], dtype=torch.float64)
    solved = conjugate_gradients(lambda v: v @ matrix, targets)
    assert solved.negative_curvature.tolist() == [False, True, True]
    assert solved.converged.tolist() == [True, False, False]
    assert solved.vectors[1].tolist() == [0, 0]
    assert torch.isfinite(solved.vectors).all()


def test_least_squares_influence_through_the_network_s_hessian() -> None:
    """Squared error (w x - y)^2: gradient 2 (w x - y) x, Hessian 2 mean x x'."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    model = nn.Linear(4, 1, bias=False).double().eval()
    gradients = PerExampleGradients(model, lambda outputs, labels: (outputs[:, 0] - labels).square())

    class Data:
        labels = y

        def __len__(self) -> int:
            return 20

        def batch(self, positions: slice) -> tuple[Tensor, Tensor]:
            return x[positions], y[positions]

    data = Data()
    operator = Hessian(gradients, data)
    G = 2 * (model(x).detach()[:, 0] - y)[:, None] * x
    found = conjugate_gradients(operator, G[:3], tolerance=1e-12).vectors
    truth = torch.linalg.solve(2 * x.T @ x / 20, G[:3].T)
    torch.testing.assert_close(G @ found.T, G @ truth, rtol=1e-8, atol=1e-9)
    assert (torch.diag(G[:3] @ found.T) > 0).all()


# --- the method on a network --------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_size_of_blocks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    method = InfluenceCG(damping=1.0, hessian_examples=50)
    whole = method.fit(run).attribute()
    monkeypatch.setattr(influence_cg, "MEMORY", 8 * 8 * 9000 * 7)
    parts = method.fit(run).attribute()
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-5, atol=1e-7 * np.abs(whole.values).max())


def test_queries_out_of_steps_are_listed(run: Run) -> None:
    method = InfluenceCG(damping=1.0, max_steps=2, tolerance=1e-9, hessian_examples=50)
    scores = method.fit(run).attribute()
    assert scores.info["unconverged"] == sorted(scores.query_ids.tolist())
    assert scores.info["negative_curvature"] == []
    assert scores.info["steps"] == 2
    enough = replace(method, max_steps=200, tolerance=1e-4).fit(run).attribute()
    assert enough.info["unconverged"] == []
    assert 2 < enough.info["steps"] <= 200


def test_queries_that_meet_negative_curvature_are_listed(run: Run) -> None:
    scores = InfluenceCG(damping=0.0, hessian_examples=50, max_steps=300).fit(run).attribute()
    met = set(scores.info["negative_curvature"])
    assert met  # an undertrained network is not at a minimum
    assert met <= set(scores.query_ids.tolist())
    assert not met & set(scores.info["unconverged"])
    assert np.isfinite(scores.values).all()


def test_it_gives_no_self_influence(run: Run) -> None:
    with pytest.raises(InputError, match="self-influence"):
        InfluenceCG().fit(run).self_influence()


@pytest.mark.parametrize(
    "options",
    [
        {"damping": -0.1},
        {"damping": float("nan")},
        {"max_steps": 0},
        {"max_steps": 1.5},
        {"tolerance": -1},
        {"hessian_examples": 0},
        {"hessian_examples": "some"},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        InfluenceCG(**options)


def test_a_bare_trace_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoints"):
        InfluenceCG().fit(run.trace)


def test_a_preconditioner_that_is_the_inverse_needs_one_step_and_any_other_gives_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    root, targets = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 9), (4, 9)))
    matrix = root @ root.T + torch.eye(9, dtype=torch.float64)
    truth = torch.linalg.solve(matrix, targets.T).T
    diagonal = matrix.diagonal()
    for precondition, most in (
        (lambda residual: torch.linalg.solve(matrix, residual.T).T, 1),
        (lambda residual: residual / diagonal, 12),
    ):
        solved = conjugate_gradients(lambda v: v @ matrix, targets, tolerance=1e-10, precondition=precondition)
        torch.testing.assert_close(solved.vectors, truth)
        assert int(solved.steps.max()) <= most
        assert bool(solved.converged.all())
