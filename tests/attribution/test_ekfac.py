"""EK-FAC as a method: several runs, the damping, the cache, self-influence, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comove import Weights, adopt
from comove.attribution import EKFAC
from comove.data import ExampleSet
from comove.errors import FingerprintError, InputError
from comove.gradients import ekfac
from comove.tasks import PerExample, Regression
from comove.training import Run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers whose eigenvalues are computed, call by call."""
    calls: list[str] = []
    before = ekfac.eigenvalue_sums

    def counting(*arguments: Tensor) -> Tensor:
        calls.append("eigenvalues")
        return before(*arguments)

    monkeypatch.setattr(ekfac, "eigenvalue_sums", counting)
    return calls


def test_scores_of_several_runs_are_their_mean(runs: tuple[Run, ...]) -> None:
    alone = [EKFAC().fit(run).attribute().values for run in runs]
    together = EKFAC().fit(runs).attribute().values
    np.testing.assert_allclose(together, np.mean(alone, 0), rtol=1e-5, atol=1e-6 * np.abs(together).max())


def test_a_share_of_the_mean_eigenvalue_is_that_damping(run: Run) -> None:
    fitted = EKFAC(share=0.5, parameters="5.*").fit(run)
    (model,) = fitted._fitted[1]
    (layer,) = model.factors.layers.values()
    same = EKFAC(damping=0.5 * float(layer.eigenvalues.mean()), parameters="5.*").fit(run)
    np.testing.assert_allclose(fitted.attribute().values, same.attribute().values, rtol=1e-5, atol=1e-7)


def test_factors_of_a_part_of_the_examples_are_those_of_that_part(run: Run) -> None:
    few, all_of_them = (EKFAC(factor_examples=number).fit(run) for number in (40, "all"))
    assert few._fitted[1][0].factors.examples == 40
    assert all_of_them._fitted[1][0].factors.examples == len(run.trace.train_ids)
    assert not np.array_equal(few.attribute().values, all_of_them.attribute().values)


def test_a_second_fit_reads_the_cache(run: Run, tmp_path: Path, counted: list[str]) -> None:
    method = EKFAC(cache=str(tmp_path))
    values = method.fit(run).attribute().values
    assert counted
    counted.clear()
    np.testing.assert_array_equal(method.fit(run).attribute().values, values)
    assert not counted
    np.testing.assert_array_equal(EKFAC().fit(run).attribute().values, values)


@pytest.mark.parametrize("change", [{"seed": 1}, {"factor_examples": 30}, {"parameters": "5.*"}])
def test_other_options_in_the_same_cache_are_not_mixed_up(
    change: dict[str, Any], run: Run, tmp_path: Path, counted: list[str]
) -> None:
    EKFAC(cache=str(tmp_path)).fit(run)
    counted.clear()
    values = EKFAC(cache=str(tmp_path), **change).fit(run).attribute().values
    assert counted
    np.testing.assert_array_equal(values, EKFAC(**change).fit(run).attribute().values)


def test_the_damping_does_not_ask_for_other_factors(run: Run, tmp_path: Path, counted: list[str]) -> None:
    EKFAC(cache=str(tmp_path)).fit(run)
    counted.clear()
    EKFAC(cache=str(tmp_path), damping=1.0).fit(run).attribute()
    assert not counted


def regression(tmp_path: Path) -> Run:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=rng, dtype=torch.float64)
    items = [(row, row[:2] * 2 + 0.1) for row in x]
    examples = ExampleSet(items, ids=np.arange(20), collate=torch.utils.data.default_collate)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double().eval()
    return adopt(model, [Weights(model.state_dict(), epoch=1)], examples, examples, Regression(), out=tmp_path / "run")


def test_self_influence_is_the_diagonal_where_the_negative_loss_is_measured(tmp_path: Path) -> None:
    fitted = EKFAC().fit(regression(tmp_path))
    np.testing.assert_allclose(fitted.self_influence(), fitted.attribute().values.diagonal(), rtol=1e-5)


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused(tmp_path: Path) -> None:
    def bent(outputs: Tensor, batch: Any) -> Tensor:
        found: Tensor = -outputs.square().sum(1)
        return found

    run = regression(tmp_path)
    examples = run.data().train
    task = PerExample(bent, lambda outputs, batch: -bent(outputs, batch), "bent")
    model = run.load_model()
    bad = adopt(model, [Weights(model.state_dict(), epoch=1)], examples, examples, task, out=tmp_path / "bad")
    with pytest.raises(InputError, match="convex"):
        EKFAC().fit(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0}, "damping"),
        ({"damping": -1.0}, "damping"),
        ({"share": 0}, "share"),
        ({"share": float("nan")}, "share"),
        ({"checkpoints": 0}, "checkpoints"),
        ({"factor_examples": "some"}, "factor_examples"),
        ({"seed": -1}, "seed"),
        ({"parameters": []}, "parameters"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EKFAC(**options)


def test_another_folder_s_manifest_is_refused(run: Run, tmp_path: Path) -> None:
    EKFAC(cache=str(tmp_path)).fit(run)
    (folder,) = tmp_path.iterdir()
    EKFAC(cache=str(tmp_path), seed=5).fit(run)
    (other,) = set(tmp_path.iterdir()) - {folder}
    (other / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    with pytest.raises(FingerprintError):
        EKFAC(cache=str(tmp_path), seed=5).fit(run)
