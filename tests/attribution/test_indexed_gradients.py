"""IndexedGradients against the dense formula, its best k against its scores, its cache, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.fork_server import Warm
from torch import Tensor, nn

from comove import Weights, adopt
from comove.attribution import IndexedGradients, TracIn
from comove.attribution import gradient_index as index_module
from comove.attribution import indexed_gradients as module
from comove.attribution.gradient_index import GradientIndex
from comove.attribution.indexed_gradients import layer_factors, precondition
from comove.attribution.tracin import run_gradients
from comove.data import ExampleSet
from comove.errors import CorruptFileError, InputError, NotFittedError
from comove.tasks import Regression
from comove.training import Resident, Run

WHOLE = {"input_dim": 1000, "output_dim": 1000}
"""Nothing is projected away."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples features were computed of, call by call."""
    calls: list[int] = []
    plain = module._features

    def counting(projected: Any, data: Any, values: Any) -> npt.NDArray[np.float32]:
        calls.append(len(data))
        return plain(projected, data, values)

    monkeypatch.setattr(module, "_features", counting)
    return calls


def regression(tmp_path: Path, net: nn.Module) -> Run:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=rng, dtype=torch.float64)
    y = x[:, :2] * 2 + torch.randn(60, 2, generator=rng, dtype=torch.float64)
    examples = ExampleSet(
        list(zip(x, y, strict=True)), ids=np.arange(60)[::-1] * 7, collate=torch.utils.data.default_collate
    )
    model = net.double().eval()
    weights = [Weights(model.state_dict(), epoch=1)]
    return adopt(model, weights, examples, examples, Regression(), out=tmp_path / "run")


def seeded(build: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = build()
    return net


def net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))


def dense(run: Run) -> tuple[list[Tensor], list[Tensor]]:
    """The whole gradients (N, P) of each layer: of the loss, and of the measured output."""
    data = Resident(run.data().train.subset(run.trace.train_ids), torch.device("cpu"))
    loss = run_gradients(run, run.checkpoints[-1]).collect(data)
    layers = [torch.cat([loss[f"{at}.weight"], loss[f"{at}.bias"][:, :, None]], 2).flatten(1) for at in (0, 2)]
    return layers, [-each for each in layers]  # the measured output is the negative loss


def test_whole_sides_give_the_dense_formula(tmp_path: Path) -> None:
    run = regression(tmp_path, net())
    loss, measure = dense(run)
    truth = torch.zeros(60, 60, dtype=torch.float64)
    for own, asked in zip(loss, measure, strict=True):
        moment = own.mT @ own / 60
        shifted = moment + 0.3 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
        truth -= own @ torch.linalg.solve(shifted, asked.mT)
    fitted = IndexedGradients(ridge=0.3, **WHOLE).fit(run)
    scores = fitted.attribute()
    np.testing.assert_allclose(scores.values, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))
    np.testing.assert_allclose(fitted.self_influence(), truth.diagonal(), rtol=1e-3)
    assert scores.info["projected_to"] == 5 * 5 + 6 * 2


def test_without_a_solve_it_is_the_inner_product_of_gradients(tmp_path: Path) -> None:
    run = regression(tmp_path, net())
    loss, measure = (torch.cat(each, 1) for each in dense(run))
    fitted = IndexedGradients(solver="none", **WHOLE).fit(run)
    np.testing.assert_allclose(fitted.attribute().values, -loss @ measure.mT, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fitted.self_influence(), loss.square().sum(1), rtol=1e-4)


def test_projections_come_near_the_whole_as_they_grow(runs: tuple[Run, ...]) -> None:
    def agreement(dimension: int) -> float:
        few = IndexedGradients(input_dim=dimension, output_dim=dimension, solver="none").fit(runs).attribute()
        return float(np.corrcoef(few.values.ravel(), whole.ravel())[0, 1])

    whole = IndexedGradients(solver="none", **WHOLE).fit(runs).attribute().values
    found = [agreement(dimension) for dimension in (2, 8, 32)]
    assert found == sorted(found)
    assert found[-1] > 0.95


def test_scores_of_several_runs_are_their_mean_and_each_has_its_own_projection(runs: tuple[Run, ...]) -> None:
    few = {"input_dim": 4, "output_dim": 4}
    alone = [IndexedGradients(**few).fit(run).attribute().values for run in runs]
    together = IndexedGradients(**few).fit(runs)
    np.testing.assert_allclose(together.attribute().values, np.mean(alone, 0), rtol=1e-4, atol=1e-4)
    seeds = [index.made_from["projection"]["seed"] for index in together.indexes]
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("solver", ["fisher", "none"])
def test_the_best_k_are_those_of_all_scores(runs: tuple[Run, ...], solver: Any) -> None:
    fitted = IndexedGradients(8, 8, solver=solver).fit(runs)
    scores = fitted.attribute()
    ids_QK, values_QK = fitted.top(7)
    for place, query in enumerate(scores.query_ids.tolist()):
        ranking = scores.top(7, query=query)
        np.testing.assert_array_equal(ids_QK[place], ranking.ids)
        np.testing.assert_array_equal(values_QK[place], ranking.scores)


def test_the_best_k_of_new_examples_and_of_one_query(run: Run) -> None:
    fitted = IndexedGradients(8, 8).fit(run)
    query = int(run.trace.query_ids[3])
    ids_QK, _ = fitted.top(5, query)
    assert ids_QK.tolist() == [fitted.attribute(query).top(5, query=query).ids.tolist()]
    new_QK, _ = fitted.top(5, run.examples([query]))
    np.testing.assert_array_equal(new_QK, ids_QK)


def test_checkpoints_are_averaged(run: Run) -> None:
    last = IndexedGradients(8, 8).fit(run).attribute()
    several = IndexedGradients(8, 8, checkpoints=3).fit(run).attribute()
    assert several.info["used_checkpoints"] == 3
    assert not np.array_equal(last.values, several.values)


def test_inner_products_agree_with_tracin_on_the_ranking(run: Run) -> None:
    """Gradients of the margin and of the loss of a query differ by a factor for two classes, and little for ten."""
    ours = IndexedGradients(solver="none", **WHOLE).fit(run).attribute().values
    theirs = TracIn(checkpoints=1).fit(run).attribute().values
    assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True)]) > 0.9


class Mixed(nn.Module):
    """A linear layer and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(x))
        return found


def test_other_parameters_are_left_out_and_named(tmp_path: Path) -> None:
    run = regression(tmp_path, seeded(Mixed))
    info = IndexedGradients().fit(run).attribute().info
    assert "norm.weight" in info["left_out"]
    assert "head" not in info["left_out"]
    with pytest.raises(InputError, match="need linear layers or convolutions"):
        IndexedGradients(parameters="norm.*").fit(run)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_second_fit_reads_the_cache(run: Run, tmp_path: Path, counted: list[int]) -> None:
    method = IndexedGradients(8, 8, cache=str(tmp_path))
    values = method.fit(run).attribute().values
    assert sum(counted) == 200 + 40
    counted.clear()
    again = IndexedGradients(8, 8, ridge=0.1, cache=str(tmp_path)).fit(run)
    assert not counted
    np.testing.assert_array_equal(again.attribute().values, values)
    np.testing.assert_array_equal(IndexedGradients(8, 8).fit(run).attribute().values, values)


def test_ridge_and_solver_ask_for_no_other_features(run: Run, tmp_path: Path, counted: list[int]) -> None:
    IndexedGradients(8, 8, cache=str(tmp_path)).fit(run)
    counted.clear()
    IndexedGradients(8, 8, cache=str(tmp_path), ridge=1.0).fit(run)
    IndexedGradients(8, 8, cache=str(tmp_path), solver="none").fit(run)
    assert not counted


@pytest.mark.parametrize("change", [{"seed": 1}, {"input_dim": 7}, {"output_dim": 7}, {"parameters": "5.*"}])
def test_other_options_in_the_same_cache_are_not_mixed_up(
    change: dict[str, Any], run: Run, tmp_path: Path, counted: list[int]
) -> None:
    base: dict[str, Any] = {"input_dim": 8, "output_dim": 8}
    IndexedGradients(**base, cache=str(tmp_path)).fit(run)
    counted.clear()
    values = IndexedGradients(**{**base, **change}, cache=str(tmp_path)).fit(run).attribute().values
    assert sum(counted) == 200 + 40
    np.testing.assert_array_equal(values, IndexedGradients(**{**base, **change}).fit(run).attribute().values)


def test_an_index_in_the_cache_can_be_opened_without_the_run(run: Run, tmp_path: Path) -> None:
    fitted = IndexedGradients(8, 8, cache=str(tmp_path)).fit(run)
    (index,) = fitted.indexes
    found = GradientIndex.load(index.folder)
    np.testing.assert_array_equal(found.ids, run.trace.train_ids)
    assert found.made_from["run"] == run.manifest["fingerprint"]
    assert found.made_from["task"] == "Classification()"
    np.testing.assert_array_equal(found.read(slice(0, 9)), index.read(slice(0, 9)))


def test_a_file_that_is_damaged_after_fitting_is_told_of(run: Run, tmp_path: Path) -> None:
    fitted = IndexedGradients(8, 8, cache=str(tmp_path)).fit(run)
    file = next(tmp_path.rglob("0*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(CorruptFileError, match=file.name):
        fitted.top(3)
    with pytest.warns(UserWarning, match="set aside"):
        again = IndexedGradients(8, 8, cache=str(tmp_path)).fit(run)
    assert again.top(3)[0].shape == (40, 3)


def test_the_temporary_folder_goes_with_the_fitted_method(run: Run) -> None:
    fitted = IndexedGradients(8, 8).fit(run)
    folder = fitted.indexes[0].folder
    assert folder.exists()
    del fitted
    assert not folder.exists()


CHILD = """
import sys, time
from comove.attribution import IndexedGradients, gradient_index, indexed_gradients
from comove.training import Run
gradient_index.BLOCK_ROWS = 20
plain = indexed_gradients._features
def slow(*arguments):
    found = plain(*arguments)
    time.sleep(0.1)
    return found
indexed_gradients._features = slow
IndexedGradients(8, 8, cache=sys.argv[2]).fit(Run.load(sys.argv[1]))
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


def test_fitting_goes_on_after_kill_9_with_the_same_bits(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int], warm: Warm
) -> None:
    monkeypatch.setattr(index_module, "BLOCK_ROWS", 20)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    warm.start(CHILD, run.path, killed)
    until = time.monotonic() + 60
    while len(list(killed.rglob("0*.safetensors"))) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    assert warm.kill() == -9, warm.errors.read_text()
    before = files(killed)
    IndexedGradients(8, 8, cache=str(killed)).fit(run)
    assert counted == [20] * (11 - len(before))  # one of the files holds the ids
    IndexedGradients(8, 8, cache=str(whole)).fit(run)
    assert files(killed) == files(whole)
    assert before.items() <= files(killed).items()


# --- plain functions, bad input ---------------------------------------------------------------------------------------


def test_preconditioning_is_the_dense_inverse_of_each_section() -> None:
    rng = np.random.default_rng(0)
    roots = {"a": rng.normal(size=(4, 4)), "b": rng.normal(size=(3, 3))}
    moments = {name: root @ root.T for name, root in roots.items()}
    phi = rng.normal(size=(6, 7))
    factors = layer_factors(moments, 0.5)
    shifted = [m + 0.5 * np.trace(m) / len(m) * np.eye(len(m)) for m in moments.values()]
    truth = np.concatenate([np.linalg.solve(shifted[0], phi[:, :4].T), np.linalg.solve(shifted[1], phi[:, 4:].T)]).T
    np.testing.assert_allclose(precondition(phi, factors), truth)
    half = precondition(phi, factors, half=True)
    np.testing.assert_allclose(np.square(half).sum(1), (phi * truth).sum(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0}, "ridge"),
        ({"ridge": float("nan")}, "ridge"),
        ({"input_dim": 0}, "input_dim"),
        ({"output_dim": 1.5}, "output_dim"),
        ({"solver": "newton"}, "solver"),
        ({"checkpoints": 0}, "checkpoints"),
        ({"checkpoints": "first"}, "checkpoints"),
        ({"batch": 0}, "batch"),
        ({"seed": -1}, "seed"),
        ({"parameters": []}, "parameters"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        IndexedGradients(**options)


def test_the_best_k_need_a_fitted_method_and_a_k_in_range(run: Run) -> None:
    with pytest.raises(NotFittedError):
        IndexedGradients().top(3)
    fitted = IndexedGradients(4, 4).fit(run)
    for k in (0, 201):
        with pytest.raises(InputError, match="k must be"):
            fitted.top(k)
    with pytest.raises(InputError, match="query ids"):
        fitted.top(3, [10**9])
