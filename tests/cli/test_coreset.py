"""``comove coreset`` and the budgets of every command: shares, numbers, and what may mean either."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import comove
from comove import cli
from comove.cli.options import parse_budget, parse_share
from comove.coreset import Coreset
from comove.training import Run


def comove_(*words: object) -> Any:
    """Run a command in this process; its ``exit_code``, ``stdout`` and ``stderr``."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


@pytest.mark.parametrize(
    ("budget", "kept"),
    [("0.1", 20), ("10%", 20), ("12.5 %", 25), ("17", 17), ("1.0", 200), ("100%", 200), ("200", 200)],
)
def test_a_budget_is_a_share_a_percentage_or_a_whole_number_of_examples(
    run: Run, tmp_path: Path, budget: str, kept: int
) -> None:
    result = comove_("coreset", run.path, "--budget", budget, "--method", "random:seed=3", "--out", tmp_path / "c.csv")
    assert result.exit_code == 0, result.stderr
    assert len(Coreset.load(tmp_path / "c.csv")) == kept


def test_a_score_goes_into_another_method_by_name(run: Run, tmp_path: Path) -> None:
    for number, (method, label) in enumerate(
        {
            "ccs:score=cld": "ccs(score=cld)",
            "d2:difficulty=cld": "d2(difficulty=cld)",
            "ccs:score=(el2n:first=5):strata=9": "ccs(score=el2n(first=5), strata=9)",
        }.items()
    ):
        out = tmp_path / f"{number}.safetensors"
        result = comove_("coreset", run.path, "--method", method, "--out", out)
        assert result.exit_code == 0, result.stderr
        assert Coreset.load(out).method == label
        assert Coreset.load(out).ids.tolist() == comove.select(method, run).ids.tolist()


@pytest.mark.filterwarnings("ignore:.* keeps none of")
def test_a_bare_one_may_mean_all_or_one_and_is_refused(run: Run, tmp_path: Path) -> None:
    result = comove_("coreset", run.path, "--budget", "1", "--out", tmp_path / "c.csv")
    assert result.exit_code == 2
    assert "--budget 1 may mean every example or a single one: write 100% (or 1.0) for all" in result.stderr
    assert not (tmp_path / "c.csv").exists()
    assert len(comove.select("cld", run, budget=1)) == 1  # an integer in Python
    assert "a bare 1 is refused" in " ".join(comove_("coreset", "--help").stdout.split())


@pytest.mark.parametrize("text", ["0.1", "10%", " 10 % ", "1e-1"])
def test_a_share_and_a_percentage_are_the_same(text: str) -> None:
    assert parse_share(text, "--budget") == parse_budget(text) == 0.1


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("0", "A budget must be from 1 to the 200 training examples, got 0"),
        ("201", "A budget must be from 1 to the 200 training examples, got 201"),
        ("-0.1", "--budget must be a share of the training examples (0.1, 10%) or a number of them (500)"),
        ("-5", "or a number of them (500); a share is above 0 and up to 1, got -5."),
        ("1.5", "got 1.5; for 1.5 % write 1.5%"),
        ("150%", "above 0 and up to 1, got 150%."),
        ("0%", "above 0 and up to 1, got 0%."),
        ("nan", "above 0 and up to 1, got nan."),
        ("half", "or a number of them (500), got 'half'"),
        ("0.001", "A budget of 0.001 of 200 examples is less than one example"),
    ],
)
def test_a_budget_that_cannot_be_had_is_refused(run: Run, tmp_path: Path, budget: str, told: str) -> None:
    result = comove_("coreset", run.path, f"--budget={budget}", "--out", tmp_path / "c.csv")
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "c.csv").exists()


@pytest.mark.parametrize("name", ["c.parquet", "c.csv.gz"])
def test_an_ending_that_is_not_written_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    result = comove_("coreset", run.path, "--out", tmp_path / name)
    assert result.exit_code == 2
    assert f"A coreset is written as .csv or .safetensors, got --out {tmp_path / name}." in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_other_commands_take_shares_only_and_say_so_before_anything_is_trained(run: Run, tmp_path: Path) -> None:
    for words in (
        ("curve", run.path, "--budgets", "0.1", "30"),
        ("stability", run.path, "--budgets", "30"),
        ("diagnose", run.path, "--budget", "30"),
    ):
        result = comove_(*words, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "must be a share of the training examples (0.1, 10%); a share is above 0 and up to 1" in result.stderr
        assert "got 30; for 30 % write 30%." in result.stderr
        assert not (tmp_path / "out").exists()


def test_a_percentage_is_a_share_for_stability(run: Run) -> None:
    shown = [comove_("stability", run.path, "--budgets", share, "--epochs", "6").stdout for share in ("0.2", "20%")]
    assert "20.0%" in shown[0]
    assert shown[0] == shown[1]


def test_a_number_that_leaves_classes_empty_tells_how_many_and_how_percent_is_written(run: Run, tmp_path: Path) -> None:
    result = comove_("coreset", run.path, "--budget", "5", "--out", tmp_path / "c.csv")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"Note: 5 of 10 classes have no example \((\d, ){4}\d\); for 5 % give 5%\.\n", result.stderr)
    assert "Warning" not in result.stderr
    whole = comove_("coreset", run.path, "--budget", "0.1", "--out", tmp_path / "c.csv")
    assert "Note" not in whole.stderr


def test_a_share_that_leaves_classes_empty_is_told_without_advice_on_percent(run: Run, tmp_path: Path) -> None:
    result = comove_("coreset", run.path, "--budget", "2%", "--out", tmp_path / "c.csv")
    assert re.search(r"Note: 6 of 10 classes have no example \((\d, ){5}\d\)\.\n", result.stderr)


def test_no_class_is_missing_where_class_names_are_unknown(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random((5, 40))
    labels = np.arange(40) % 4
    trace = comove.Trace.from_arrays(train_losses=losses, query_losses=losses, train_labels=labels, query_labels=labels)
    trace.save(tmp_path / "trace")
    result = comove_("coreset", tmp_path / "trace", "--out", tmp_path / "c.csv")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"Written to {tmp_path / 'c.csv'}\n"
