"""Bayesian influence: the covariance of draws, what is kept of them, and new queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import comove
from comove.attribution import BayesianInfluence
from comove.attribution.bayesian_influence import bayesian_influence, explored_folder
from comove.data import positions_of
from comove.errors import InputError
from comove.training import Run

FEW = BayesianInfluence(chains=3, steps=12, every=4, batch_size=8)


def test_scores_are_minus_the_covariance_of_losses_and_measured_outputs() -> None:
    rng = np.random.default_rng(0)
    losses, measures = rng.normal(size=(30, 9)), rng.normal(size=(30, 4))
    expected = -np.cov(losses.T, measures.T)[:9, 9:]
    np.testing.assert_allclose(bayesian_influence(losses, measures), expected, rtol=1e-5, atol=1e-7)


def test_scores_of_a_run_are_the_mean_over_runs_of_what_its_draws_give(runs: tuple[Run, ...]) -> None:
    expected = []
    for run in runs:
        trace = comove.explore(run, how=FEW.exploration)
        columns = positions_of(run.trace.explained_ids, trace.query_ids, "query ids")
        measures = trace.read("query", "measure")[:, columns]
        expected.append(-np.cov(trace.train_losses.T, measures.T)[: trace.train_ids.size, trace.train_ids.size :])
    found = FEW.fit(runs).attribute()
    np.testing.assert_allclose(found.values, np.mean(expected, 0), rtol=1e-3, atol=1e-6)
    assert found.info["draws"] == 9


def test_self_influence_is_the_variance_of_the_own_loss(runs: tuple[Run, ...]) -> None:
    trace = comove.explore(runs[0], how=FEW.exploration)
    found = FEW.fit(runs[0]).self_influence()
    np.testing.assert_allclose(found, trace.train_losses.var(0, ddof=1), rtol=1e-3, atol=1e-9)


def test_draws_are_kept_in_the_cache_and_read_again(
    runs: tuple[Run, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = BayesianInfluence(chains=3, steps=12, every=4, batch_size=8, cache=str(tmp_path))
    first = keeping.fit(runs[0]).attribute()
    assert (explored_folder(runs[0], keeping.exploration, tmp_path) / "manifest.json").exists()
    monkeypatch.setattr("comove.training.exploration._Chains.step", None)  # no step is taken again
    np.testing.assert_array_equal(keeping.fit(runs[0]).attribute().values, first.values)
    assert first.method == keeping.label


def test_new_queries_are_answered_by_the_same_draws(runs: tuple[Run, ...]) -> None:
    run = runs[0]
    known = FEW.fit(run).attribute()
    asked = run.data().query
    assert asked is not None
    new = FEW.fit(run).attribute(asked)
    np.testing.assert_allclose(new.values, known.subset(query_ids=asked.ids).values, rtol=1e-4, atol=1e-6)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="step_size must be"):
        BayesianInfluence(step_size=-1.0)
