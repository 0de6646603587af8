"""Weights around the trained ones: the distribution of the draws, the trace on disk, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from comove import Exploration, Trace, adopt, explore
from comove.attribution.bayesian_influence import bayesian_influence
from comove.data import ExampleSet
from comove.errors import FingerprintError, InputError, NonFiniteError
from comove.tasks import Regression
from comove.trace.trace import write_row
from comove.training import Run, exploration

FEW = Exploration(chains=3, steps=12, every=4, batch_size=5)


class OneByOne(nn.Module):
    """A linear model whose forward pass reads a value into Python, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = float(x.abs().max() >= 0)
        found: Tensor = self.layer(x) * scale
        return found


def regression(folder: Path, model: nn.Module | None = None, size: int = 40) -> Run:
    """A linear regression at its least-squares solution, adopted."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + rng.normal(size=size)).astype(np.float32)
    items = [(torch.from_numpy(a), torch.tensor(b)) for a, b in zip(x, y, strict=True)]
    model = model or nn.Linear(3, 1)
    design = np.c_[x, np.ones(size)]
    solution = np.linalg.lstsq(design[: size - 6], y[: size - 6], rcond=None)[0]
    layer = model.layer if isinstance(model, OneByOne) else model
    state = {"weight": torch.tensor(solution[None, :3]).float(), "bias": torch.tensor(solution[3:]).float()}
    assert isinstance(layer, nn.Module)
    layer.load_state_dict(state)
    train, queries = (ExampleSet(part, collate=default_collate) for part in (items[: size - 6], items[size - 6 :]))
    return adopt(model, [model.state_dict()], train=train, queries=queries, task=Regression(), out=folder)


def quadratic_covariance(run: Run, how: Exploration) -> np.ndarray[Any, Any]:
    """-Cov[loss_m, measure_q] (N, Q) of weights drawn by steps of this size on the whole data, in closed form.

    u = w - w* is Gaussian with mean 0 and covariance (A - eps A^2 / 4)^-1, A = n_beta H + gamma; for quadratics
    f = a'u + u'Au/2 and g = b'u + u'Bu/2 the covariance is a'Su + tr(A S B S) / 2.
    """
    state = {name: value.double().numpy() for name, value in run.load_model().state_dict().items()}
    w = np.r_[state["weight"][0], state["bias"]]

    def parts(examples: ExampleSet) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        inputs, targets = examples.collated(np.arange(len(examples)), torch.device("cpu"))
        design = np.c_[inputs.double().numpy(), np.ones(len(inputs))]
        return design, design @ w - targets.double().numpy()

    design, errors = parts(run.data().train)
    asked, misses = parts(run.data().query)
    precision = how.inverse_temperature * design.T @ design / len(design) + how.localization * np.eye(4)
    covariance = np.linalg.inv(precision - how.step_size * precision @ precision / 4)
    linear = (design * errors[:, None]) @ covariance @ (asked * misses[:, None]).T
    total: np.ndarray[Any, Any] = linear + (design @ covariance @ asked.T) ** 2 / 2
    return total


def test_the_covariance_of_draws_is_that_of_the_gaussian_around_the_minimum(tmp_path: Path) -> None:
    run = regression(tmp_path / "run")
    how = Exploration(100, 400, 40, len(run.data().train) * 4, 20.0, 5.0, step_size=0.02)
    trace = explore(run, how=how)
    found = bayesian_influence(trace.train_losses[200:], trace.read("query", "measure")[200:])
    expected = quadratic_covariance(run, how)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    slope = (found * expected).sum() / (expected**2).sum()
    assert 0.85 < slope < 1.15  # batches drawn with replacement add a little noise of their own


def test_rows_are_draws_chain_after_chain(tmp_path: Path) -> None:
    run = regression(tmp_path / "run")
    trace = explore(run, tmp_path / "explored", FEW)
    assert len(trace.rows) == FEW.draws == 9
    assert [row.step for row in trace.rows] == [4] * 3 + [8] * 3 + [12] * 3
    assert trace.mode == "explored"
    np.testing.assert_array_equal(trace.train_ids, run.trace.train_ids)
    np.testing.assert_array_equal(trace.query_ids, run.trace.query_ids)
    np.testing.assert_allclose(trace.read("query", "measure"), -trace.query_losses, rtol=1e-6)
    assert not (tmp_path / "explored" / "chains.safetensors").exists()
    again = explore(run, tmp_path / "explored", FEW)
    np.testing.assert_array_equal(again.train_losses, trace.train_losses)


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_killed_after_any_row_it_goes_on_to_the_same_bits(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = regression(tmp_path / "run")
    whole = explore(run, tmp_path / "whole", FEW)
    written: list[Any] = []
    write = write_row

    def dying(*arguments: Any) -> None:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(write(*arguments))

    monkeypatch.setattr(exploration, "write_row", dying)
    with pytest.raises(KeyboardInterrupt):
        explore(run, tmp_path / "killed", FEW)
    monkeypatch.setattr(exploration, "write_row", write)
    resumed = explore(run, tmp_path / "killed", FEW)
    np.testing.assert_array_equal(resumed.train_losses, whole.train_losses)
    np.testing.assert_array_equal(resumed.read("query", "measure"), whole.read("query", "measure"))
    assert Trace.load(tmp_path / "killed").manifest["rows"] == 9


def test_a_damaged_file_of_chains_starts_again_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = regression(tmp_path / "run")
    whole = explore(run, tmp_path / "whole", FEW)
    monkeypatch.setattr(exploration._Chains, "step", _interrupted(exploration._Chains.step, at=9))
    with pytest.raises(KeyboardInterrupt):
        explore(run, tmp_path / "killed", FEW)
    monkeypatch.undo()
    (tmp_path / "killed" / "chains.safetensors").write_bytes(b"damage")
    np.testing.assert_array_equal(explore(run, tmp_path / "killed", FEW).train_losses, whole.train_losses)


def _interrupted(step: Any, at: int) -> Any:
    def stepping(self: Any, number: int, data: Any) -> None:
        if number == at:
            raise KeyboardInterrupt
        step(self, number, data)

    return stepping


def test_a_model_that_vmap_cannot_follow_goes_one_chain_at_a_time(tmp_path: Path) -> None:
    together = explore(regression(tmp_path / "a"), how=FEW)
    apart = explore(regression(tmp_path / "b", OneByOne()), how=FEW)
    np.testing.assert_allclose(apart.train_losses, together.train_losses, rtol=1e-4, atol=1e-6)


def test_new_queries_meet_the_same_draws(tmp_path: Path) -> None:
    run = regression(tmp_path / "run")
    asked = run.data().query
    assert asked is not None
    new = ExampleSet([asked[i] for i in range(2)], ids=[900, 901], collate=default_collate)
    trace, known = explore(run, how=FEW, queries=new), explore(run, how=FEW)
    np.testing.assert_array_equal(trace.query_ids, [900, 901])
    np.testing.assert_array_equal(trace.train_losses, known.train_losses)
    np.testing.assert_allclose(trace.query_losses, known.query_losses[:, :2], rtol=1e-5)


def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    run = regression(tmp_path / "run")
    explore(run, tmp_path / "explored", FEW)
    with pytest.raises(FingerprintError, match=r"another exploration .*seed differ"):
        explore(run, tmp_path / "explored", Exploration(chains=3, steps=12, every=4, batch_size=5, seed=1))
    run.trace.save(tmp_path / "trace")
    with pytest.raises(FingerprintError, match="another trace"):
        explore(run, tmp_path / "trace", FEW)


def test_a_chain_that_diverges_is_named_with_a_smaller_step(tmp_path: Path) -> None:
    run = regression(tmp_path / "run")
    with pytest.raises(NonFiniteError, match=r"Chain 0 \(3 of 3\) diverged.*try 2.5e\+19"):
        explore(run, tmp_path / "explored", Exploration(3, 12, 4, 5, step_size=1e20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size must be a finite number above 0"),
        ({"localization": -1.0}, "localization must be"),
        ({"inverse_temperature": float("nan")}, "inverse_temperature must be"),
        ({"chains": 0}, "chains must be"),
        ({"steps": 10, "every": 20}, "make 0 draws, and a covariance needs at least 3"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Exploration(**options)
