"""``comove explore`` and ``comove check``: what they write, say and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.cli.test_coreset import comove_

from comove import Trace
from comove.attribution import BayesianInfluence, Scores
from comove.attribution.bayesian_influence import explored_folder
from comove.training import Exploration, Run

FEW = ("--chains", "3", "--steps", "8", "--every", "4", "--batch-size", "8", "--quiet")


def test_draws_are_where_the_method_looks_for_them(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = comove_("explore", run.path, *FEW, "--out", tmp_path / "explored")
    assert made.exit_code == 0, made.stderr
    assert "6 samples" in made.stdout
    how = Exploration(chains=3, steps=8, every=4, batch_size=8)
    assert len(Trace.load(explored_folder(run, how, tmp_path / "explored")).rows) == 6
    method = f"bayesian-influence:chains=3:steps=8:every=4:batch_size=8:cache={tmp_path / 'explored'}"
    scored = comove_("attribute", run.path, "--method", method, "--queries", "2", "--out", tmp_path / "scores")
    assert scored.exit_code == 0, scored.stderr
    (file,) = (tmp_path / "scores").glob("*.safetensors")
    found = Scores.load(file)
    expected = BayesianInfluence(chains=3, steps=8, every=4, batch_size=8).fit(run).attribute(found.query_ids)
    np.testing.assert_array_equal(found.values, expected.values)


def test_draws_far_from_the_trained_weights_are_said(run: Run, tmp_path: Path) -> None:
    made = comove_("explore", run.path, *FEW, "--step-size", "0.1", "--out", tmp_path / "explored")
    assert made.exit_code == 0, made.stderr
    assert "left the region of the trained weights" in made.stdout + made.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--step-size", "1e30"), "diverged"),
        (("--localization", "-1"), "localization must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(words: tuple[str, str], message: str, run: Run, tmp_path: Path) -> None:
    made = comove_("explore", run.path, *FEW, *words, "--out", tmp_path / "explored")
    assert made.exit_code == 2
    assert message in made.stderr


def test_a_bare_trace_cannot_be_explored(run: Run, tmp_path: Path) -> None:
    made = comove_("explore", run.path / "trace", *FEW, "--out", tmp_path / "explored")
    assert made.exit_code == 2
    assert "bare trace" in made.stderr


def test_check_prints_a_verdict_a_method_and_check(tmp_path: Path) -> None:
    words = ("--epochs", "2", "--limit", "150", "--queries", "5", "--out", tmp_path)
    made = comove_("check", "cld", "random-control", *words)
    assert made.exit_code == 0, made.stderr
    assert (made.stdout.count("planted copies"), made.stderr.count("planted copies")) == (2, 1)
    assert "failed" in made.stdout
    assert "-0.00" not in made.stdout
    told = [line.partition(": ")[2] for line in made.stderr.splitlines() if "; passed " in line]
    assert [line.partition("; passed ")[2] for line in told] == [
        *("above chance", "above chance", "above what the label alone finds", "below half of that between two seeds"),
    ]
    assert (tmp_path / "checks.json").exists()
    refused = comove_("check", "datamodels", *words)
    assert refused.exit_code == 2
    assert "computed from retrained models" in refused.stderr
