"""Gauss-Newton influence against dense solves in float64; the solvers against each other; the rule for lambda."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.batches import Given, draw, whole
from torch import Tensor, nn

from comove.attribution import gauss_newton, gauss_newton_solvers
from comove.attribution.gauss_newton import GaussNewton, default_damping, gauss_newton_scores
from comove.attribution.gauss_newton_solvers import (
    Cholesky,
    ConjugateGradients,
    Problem,
    Sketch,
    Solver,
    Woodbury,
    plan,
    shifted_cholesky,
)
from comove.data import ExampleSet, Splits
from comove.data.batches import Batch, batch_size, rows_of
from comove.errors import InputError
from comove.gradients.ekfac import ekfac_factors
from comove.gradients.gauss_newton import JacobianRows
from comove.gradients.per_example import PerExampleGradients
from comove.gradients.projections import Identity
from comove.tasks import CausalLM, Classification, MultiLabel, PerExample, Regression, Task
from comove.training import Recipe, Run, adopt, train

LAMBDA = 0.05


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operations shared by two threads take longer, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(4, 3), nn.Linear(3, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids).cumsum(1).tanh())  # type: ignore[no-any-return]


def drawn(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return model.double().eval()


def cases() -> dict[str, tuple[nn.Module, Task, Batch]]:
    x = draw(30, 3)
    mlp = drawn(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    return {
        "classification": (mlp, Classification(), (x, whole(3, 30))),
        "regression": (mlp, Regression(), (x, draw(30, 3, seed=2))),
        "multi-label": (mlp, MultiLabel(), (x, whole(2, 30, 3))),
        "language": (drawn(Language()), CausalLM(), {"input_ids": whole(4, 30, 5)}),
    }


def dense_scores(model: nn.Module, task: Task, batch: Batch, examples: int) -> Tensor:
    """-grad m' (1/N sum J' H J + lambda I)^-1 grad loss by autograd; the examples after ``examples`` are queries."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def outputs(chosen: dict[str, Tensor], one: Batch) -> Tensor:
        args, named = ((), one) if isinstance(one, dict) else ((one[0],), None)
        return torch.func.functional_call(model, chosen, args, named)  # type: ignore[no-any-return]

    def gradient(function: Any, one: Batch) -> Tensor:
        found = torch.func.jacrev(lambda chosen: function(outputs(chosen, one), one))(parameters)
        return torch.cat([part.flatten(1) for part in found.values()], 1)[0]

    ones = [rows_of(batch, slice(row, row + 1)) for row in range(batch_size(batch))]
    total: Any = 0
    for one in ones[:examples]:
        found = outputs(parameters, one)
        jacobian = torch.func.jacrev(lambda chosen, one=one: outputs(chosen, one))(parameters)
        flat = torch.cat([part.reshape(found.numel(), -1) for part in jacobian.values()], 1)
        hessian = torch.func.jacrev(torch.func.jacrev(lambda o, one=one: task.loss(o, one).sum()))(found)
        total = total + flat.T @ hessian.reshape(found.numel(), -1) @ flat / examples
    losses = torch.stack([gradient(task.loss, one) for one in ones[:examples]])
    measured = torch.stack([gradient(task.measure, one) for one in ones[examples:]])
    matrix = total + LAMBDA * torch.eye(len(total), dtype=torch.float64)
    scores: Tensor = -losses @ torch.linalg.solve(matrix, measured.T)
    return scores


def problem_of(model: nn.Module, task: Task, train: Batch) -> Problem:
    data = Given(train)
    losses, measures = (PerExampleGradients(model, scalar, task=task) for scalar in ("loss", "measure"))
    return Problem(JacobianRows(model, task, data, batch=7), losses, measures, data, (data,))


@pytest.mark.parametrize("name", list(cases()))
def test_every_solver_gives_the_dense_solution_in_float64(name: str) -> None:
    model, task, batch = cases()[name]
    truth = dense_scores(model, task, batch, 25)
    train, asked = rows_of(batch, slice(0, 25)), Given(rows_of(batch, slice(25, 30)))
    problem = problem_of(model, task, train)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    solvers: list[Solver] = [
        Cholesky(problem, lambda _: LAMBDA),
        Woodbury(problem, lambda _: LAMBDA),
        ConjugateGradients(problem, lambda _: LAMBDA, max_steps=500, tolerance=1e-10),
        ConjugateGradients(
            problem,
            lambda _: LAMBDA,
            max_steps=500,
            tolerance=1e-10,
            factors=ekfac_factors(problem.losses, problem.train),
        ),
        Sketch(problem, lambda _: LAMBDA, Identity(sizes)),
    ]
    for solver in solvers:
        torch.testing.assert_close(solver.scores(asked), truth, rtol=1e-7, atol=1e-8 * float(truth.abs().max()))
        assert solver.damping == LAMBDA


def test_ekfac_as_preconditioner_saves_steps_where_little_is_damped_and_changes_nothing() -> None:
    model = drawn(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    batch = (draw(205, 6) * torch.tensor([10, 3, 1, 1, 0.3, 0.1], dtype=torch.float64), whole(3, 205))
    problem = problem_of(model, Classification(), rows_of(batch, slice(0, 200)))
    asked, found = Given(rows_of(batch, slice(200, 205))), []
    for factors in (ekfac_factors(problem.losses, problem.train), None):
        solver = ConjugateGradients(problem, lambda _: 1e-4, max_steps=500, tolerance=1e-6, factors=factors)
        found.append((solver.scores(asked), solver.steps))
        assert bool(solver.converged.all())
    (scores, few), (plain, many) = found
    torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    assert few < 0.85 * many, (few, many)


def test_every_solver_sees_the_same_trace() -> None:
    model, task, batch = cases()["classification"]
    problem, seen = problem_of(model, task, batch), []

    def note(trace: float) -> float:
        seen.append(trace)
        return 1.0

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    Cholesky(problem, note), Woodbury(problem, note), Sketch(problem, note, Identity(sizes))
    ConjugateGradients(problem, note, max_steps=1, tolerance=0.1)
    np.testing.assert_allclose(seen, seen[0], rtol=1e-12)
    assert seen[0] == pytest.approx(float(problem.rows.matrix(problem.train).trace()), rel=1e-12)


def test_scores_of_arrays_are_those_of_the_solvers_with_the_default_damping() -> None:
    model, task, batch = cases()["classification"]
    train, asked = rows_of(batch, slice(0, 25)), Given(rows_of(batch, slice(25, 30)))
    problem = problem_of(model, task, train)
    rows_NRP = torch.cat([rows for _, rows in problem.rows.chunks(problem.train)]).reshape(25, 2, -1)
    losses = torch.cat([part.flatten(1) for part in problem.losses.collect(problem.train).values()], 1)
    found = gauss_newton_scores(rows_NRP, losses, problem.targets(asked))
    squared_norm = float(problem.losses.squared_norms(problem.train).mean())
    solver = Woodbury(problem, lambda trace: default_damping(trace, squared_norm, 25))
    torch.testing.assert_close(solver.scores(asked), found, rtol=1e-8, atol=1e-10)


def test_views_are_averaged() -> None:
    model, task, (x, y) = cases()["classification"]
    problem = problem_of(model, task, (x, y))
    views = [Given((x + shift, y)) for shift in (0.0, 0.5)]
    asked = Given((x[:4], y[:4]))
    singles = [Cholesky(replace(problem, views=(view,)), lambda _: LAMBDA).scores(asked) for view in views]
    both = replace(problem, views=views)
    for solver in (Cholesky(both, lambda _: LAMBDA), Woodbury(both, lambda _: LAMBDA)):
        torch.testing.assert_close(solver.scores(asked), (singles[0] + singles[1]) / 2, rtol=1e-8, atol=1e-10)


# --- the rule for lambda ------------------------------------------------------------------------------------------


def test_an_average_example_changes_its_own_loss_by_a_third_at_most_under_the_default_damping() -> None:
    losses_NP, rows_NP = draw(8, 20), draw(8, 20, seed=1) / 10
    matrix = rows_NP.T @ rows_NP / 8
    squared_norm = float(losses_NP.square().sum(1).mean())
    shift = default_damping(float(matrix.trace()), squared_norm, 8)
    assert shift == pytest.approx(3 * squared_norm / 8)
    inverse = torch.linalg.inv(matrix + shift * torch.eye(20, dtype=torch.float64))
    own_N = torch.einsum("np,pq,nq->n", losses_NP, inverse, losses_NP) / 8
    assert 0.2 < own_N.mean() <= 1 / 3


def test_the_default_damping_bounds_the_leverage_where_gradients_vanish() -> None:
    rows_NP = draw(8, 20)
    rows_NP /= torch.linalg.vector_norm(rows_NP, dim=1, keepdim=True)
    matrix = rows_NP.T @ rows_NP / 8
    shift = default_damping(float(matrix.trace()), 0.0, 8)
    inverse = torch.linalg.inv(matrix + shift * torch.eye(20, dtype=torch.float64))
    leverage = torch.einsum("np,pq,nq->n", rows_NP, inverse, rows_NP) / 8
    assert (leverage <= 1 / 1.3).all()
    assert default_damping(0.0, 0.0, 8) == 1.0


def test_a_damping_too_small_for_the_precision_is_refused() -> None:
    rows = draw(2, 6).float()
    with pytest.raises(InputError, match="too small"):
        shifted_cholesky(-rows.T @ rows, 1e-30)


# --- which solver -------------------------------------------------------------------------------------------------


def test_the_solver_is_chosen_by_size() -> None:
    memory = 16 << 30
    assert plan(1400, 9, 8970, memory=memory).solver == "cholesky"
    assert plan(2500, 9, 36168, memory=memory).solver == "woodbury"
    assert plan(50_000, 9, 11_000_000, memory=memory).solver == "sketch"
    assert plan(1_000_000, 9, 5_000, memory=memory).solver == "cholesky"
    assert plan(1400, 9, 8970, memory=1 << 29).solver == "sketch"


@pytest.mark.parametrize(
    ("solver", "sizes", "named"),
    [
        ("cholesky", (100, 1, 10**6), "woodbury"),
        ("woodbury", (10**6, 9, 1000), "cholesky"),
        ("cholesky", (10**6, 9, 10**6), "sketch"),
    ],
)
def test_what_memory_cannot_hold_is_refused_and_a_solver_that_fits_is_named(
    solver: str, sizes: tuple[int, int, int], named: str
) -> None:
    with pytest.raises(InputError, match=rf"solver='{solver}' needs .*GiB.*solver='{named}' takes"):
        plan(*sizes, solver=solver, memory=4 << 30)
    with pytest.raises(InputError, match="solver='cg'"):
        plan(*sizes, solver="sketch", memory=1 << 10)


# --- the method ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logistic_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three-class logistic regression on 40 examples of 3 features."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(46, 3, generator=generator)
    labels = torch.randint(3, (46,), generator=generator).numpy()
    ids = np.concatenate([7 + 2 * np.arange(40)[::-1], 100 + np.arange(6)])
    parts = [
        ExampleSet.from_arrays(inputs[rows], labels[rows], ids=ids[rows], classes=list("abc"))
        for rows in (slice(40), slice(40, 46))
    ]
    recipe = Recipe(epochs=10, batch_size=8, lr=0.1, momentum=0.0)
    folder = tmp_path_factory.mktemp("logistic") / "run"
    return train(Splits(parts[0], None, parts[1]), "mlp", recipe, 0, folder, model_options={"hidden": []})


def logistic_truth(run: Run, damping: float | None) -> npt.NDArray[np.float64]:
    weight, bias = (p.detach().double() for p in run.load_model().parameters())

    def parts(examples: ExampleSet) -> tuple[Tensor, Tensor, Tensor]:
        x = examples.prepare(examples.raw(np.arange(len(examples)))).double()
        p, target = torch.softmax(x @ weight.T + bias, 1), torch.from_numpy(examples.labels)
        extended = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        residual = p - torch.eye(3, dtype=torch.float64)[target]
        return p, extended, torch.einsum("nc,nf->ncf", residual, extended).flatten(1)

    p, x, train_NP = parts(run.data().train.subset(run.trace.train_ids))
    chosen, _, query_QP = parts(run.data().query.subset(run.trace.query_ids))
    labels = torch.from_numpy(run.data().query.subset(run.trace.query_ids).labels)
    margin_QP = -query_QP / (1 - chosen.gather(1, labels[:, None]))  # d log p/(1-p) = -(d loss) / (1 - p)
    curved = torch.diag_embed(p) - torch.einsum("nc,nd->ncd", p, p)
    matrix = torch.einsum("ncd,nf,ng->cfdg", curved, x, x).reshape(12, 12) / len(x)
    squared_norm = float(train_NP.square().sum(1).mean())
    shift = max(3 * squared_norm, 0.3 * float(matrix.trace())) / len(x) if damping is None else damping
    found: npt.NDArray[np.float64] = (
        -train_NP @ torch.linalg.solve(matrix + shift * torch.eye(12, dtype=torch.float64), margin_QP.T)
    ).numpy()
    return found


@pytest.mark.parametrize("damping", [None, 0.02])
@pytest.mark.parametrize("solver", ["auto", "cholesky", "woodbury", "cg", "ekfac-cg"])
def test_logistic_regression_has_its_exact_influence(solver: Any, damping: float | None, logistic_run: Run) -> None:
    truth = logistic_truth(logistic_run, damping)
    scores = GaussNewton(damping=damping, solver=solver, tolerance=1e-7).fit(logistic_run).attribute()
    np.testing.assert_allclose(scores.values, truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max())
    assert scores.info["plan"].startswith("cholesky" if solver == "auto" else solver)
    assert scores.info["unconverged"] == []
    assert scores.info["curvature"] == "exact, 2 rows an example"


def test_large_problems_take_the_leading_rows_unless_all_are_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauss_newton, "EXACT_OPERATIONS", 1.0)
    leading = GaussNewton(solver="woodbury").fit(run).attribute()
    whole_rows = GaussNewton(solver="woodbury", share=1.0).fit(run).attribute()
    assert "leading rows" in leading.info["curvature"]
    assert whole_rows.info["curvature"] == "exact, 9 rows an example"
    assert np.corrcoef(leading.values.ravel(), whole_rows.values.ravel())[0, 1] > 0.99


def test_queries_out_of_steps_are_listed(logistic_run: Run) -> None:
    scores = GaussNewton(solver="cg", max_steps=1, tolerance=1e-9).fit(logistic_run).attribute()
    assert scores.info["unconverged"] == sorted(scores.query_ids.tolist())


def test_scores_do_not_depend_on_blocks_of_queries(logistic_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    method = GaussNewton(solver="woodbury")
    before = method.fit(logistic_run).attribute()
    monkeypatch.setattr(gauss_newton, "QUERY_BYTES", 32 * 12 * 4)
    after = method.fit(logistic_run).attribute()
    np.testing.assert_allclose(after.values, before.values, rtol=1e-5, atol=1e-6 * np.abs(before.values).max())


def test_runs_and_checkpoints_are_averaged(runs: tuple[Run, ...]) -> None:
    method = GaussNewton(solver="sketch", dimension=64)
    singles = [method.fit(run).attribute().values for run in runs]
    both = method.fit(runs).attribute()
    np.testing.assert_allclose(both.values, np.mean(singles, axis=0), rtol=1e-5, atol=1e-6 * np.abs(both.values).max())
    assert len(both.info["lambda"]) == len(runs)
    last = replace(method, checkpoints=2).fit(runs[0]).attribute()
    assert last.info["used_checkpoints"] == 2
    assert not np.allclose(last.values, singles[0])
    every = replace(method, checkpoints="all").fit(runs[0]).attribute()
    assert every.info["used_checkpoints"] == len(runs[0].checkpoints)


def test_the_sketch_comes_close_to_the_exact_solution(run: Run) -> None:
    exact = GaussNewton(solver="woodbury", draws=2).fit(run).attribute().values
    sketched = GaussNewton(solver="sketch", dimension=2048, draws=2).fit(run).attribute().values
    agreement = np.corrcoef(exact.ravel(), sketched.ravel())[0, 1]
    assert agreement > 0.9
    assert not np.array_equal(exact, sketched)


def test_a_long_solve_is_announced_with_its_memory_and_time(logistic_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauss_newton, "SAID_SECONDS", 0.0)
    with pytest.warns(RuntimeWarning, match=r"solver='cholesky' takes .*iB and about \d+ s a model"):
        GaussNewton().fit(logistic_run).attribute()


def test_a_matrix_too_large_is_refused_before_any_work(logistic_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauss_newton, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match="may be used"):
        GaussNewton(solver="woodbury").fit(logistic_run)
    assert gauss_newton_solvers.free_memory(torch.device("cpu")) > 1 << 20


def test_a_loss_that_is_not_convex_is_refused_by_name() -> None:
    examples = ExampleSet.from_arrays(draw(8, 2).float(), whole(2, 8).numpy())
    task = PerExample(lambda o, batch: o.cos().sum(1), lambda o, batch: o.sum(1), name="waves-1")
    model = nn.Linear(2, 2)
    run = adopt(model, weights=[model.state_dict()], train=examples, queries=examples, task=task)
    with pytest.raises(InputError, match=r"waves-1.*convex"):
        GaussNewton().fit(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"solver": "lu"}, "solver"),
        ({"dimension": 0}, "dimension"),
        ({"draws": 0}, "draws"),
        ({"share": 0.0}, "share"),
        ({"share": 1.5}, "share"),
        ({"augmentations": -1}, "augmentations"),
        ({"checkpoints": 0}, "checkpoints"),
        ({"checkpoints": "first"}, "checkpoints"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_steps": 0}, "max_steps"),
        ({"seed": -1}, "seed"),
        ({"parameters": []}, "parameters"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GaussNewton(**options)


# --- augmentations and what is kept -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    images, labels = torch.rand(26, 1, 6, 6, generator=torch.Generator().manual_seed(0)), np.arange(26) % 2
    parts = [
        ExampleSet.from_arrays(images[rows], labels[rows], ids=np.arange(26)[rows])
        for rows in (slice(20), slice(20, 26))
    ]
    recipe = Recipe(epochs=2, batch_size=10, lr=0.05, augment="flip_crop", crop_padding=1)
    folder = tmp_path_factory.mktemp("images") / "run"
    return train(Splits(parts[0], None, parts[1]), "mlp", recipe, 0, folder, model_options={"hidden": [4]})


def test_augmentations_average_the_gradients_of_flipped_and_shifted_examples(image_run: Run) -> None:
    plain, one, many = (GaussNewton(augmentations=count).fit(image_run).attribute().values for count in (0, 1, 30))
    np.testing.assert_array_equal(one, GaussNewton(augmentations=1).fit(image_run).attribute().values)
    assert not np.allclose(one, plain)
    other = GaussNewton(augmentations=30, seed=1).fit(image_run).attribute().values
    assert np.abs(other - many).max() < np.abs(one - many).max()  # more draws vary less


def test_augmentations_need_a_recipe_that_augments(logistic_run: Run) -> None:
    with pytest.raises(InputError, match="augment='none'"):
        GaussNewton(augmentations=2).fit(logistic_run)


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_a_factor_is_kept_for_the_next_queries_where_it_is_small(
    held: int, logistic_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(gauss_newton, "HELD_BYTES", held)
    monkeypatch.setattr(gauss_newton, "Cholesky", lambda *args: made.append(1) or Cholesky(*args))  # type: ignore[func-returns-value]
    fitted = GaussNewton().fit(logistic_run)
    first, second = fitted.attribute(), fitted.attribute([104, 101])
    assert len(made) == (1 if held else 2)
    np.testing.assert_allclose(second.column(104), first.column(104), rtol=1e-6)


def test_interrupted_scores_go_on_where_they_are_kept(
    runs: tuple[Run, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = GaussNewton(solver="sketch", dimension=32, draws=1, cache=str(tmp_path / "kept"))
    whole_scores = replace(method, cache=None).fit(runs[:2]).attribute()
    made: list[str] = []

    def counted(*args: Any) -> Sketch:
        made.append("solver")
        return Sketch(*args)

    monkeypatch.setattr(gauss_newton, "Sketch", counted)
    method.fit(runs[:1]).attribute()
    found = method.fit(runs[:2]).attribute()
    assert len(made) == 2
    np.testing.assert_array_equal(found.values, whole_scores.values)
    assert found.info["lambda"] == whole_scores.info["lambda"]
    again = method.fit(runs[:2]).attribute()
    assert len(made) == 2
    np.testing.assert_array_equal(again.values, whole_scores.values)
    replace(method, damping=1.0).fit(runs[:1]).attribute()
    assert len(made) == 3
    (file, *_) = sorted((tmp_path / "kept").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4])
    fitted = [each.fit(runs[:2]) for each in (method, replace(method, damping=1.0))]
    with pytest.warns(UserWarning, match="set aside"):
        values = [each.attribute().values for each in fitted]
    assert len(made) == 3 + 1 + 1  # the second run with the other damping, and what was damaged
    np.testing.assert_array_equal(values[0], whole_scores.values)


@pytest.mark.parametrize(
    ("trace", "squared_norm", "expected"),
    [(10.0, 0.5, 0.3 * 10 / 50), (1.0, 2.0, 3 * 2 / 50), (0.0, 0.0, 1.0)],
)
def test_the_default_damping_is_the_rule_of_its_page(trace: float, squared_norm: float, expected: float) -> None:
    assert default_damping(trace, squared_norm, 50) == pytest.approx(expected)
