"""``comove brittleness``, as a user meets it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from comove import cli
from comove.attribution import Scores
from comove.evaluation import Brittleness, Counterfactual, RetrainingBank
from comove.evaluation.estimate import Estimate
from comove.retraining.files import ResultFiles

SMALL = ("--limit", "200", "--held-out", "40", "--epochs", "4", "--executor", "serial")
SPEARMAN = "cld:correlation=spearman"
FEW = (*SMALL, "--queries", "3", "--seeds", "2", "--base-seeds", "2", "--runs", "1")


def comove_(*words: object) -> Any:
    """Run a command in this process; its ``exit_code``, ``stdout`` and ``stderr``."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


def results(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "removal-bank" / "results").iterdir()}


def shown_percent(rate: Estimate) -> str:
    return f"{100 * rate.value:.1f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def shown_amount(drop: Estimate) -> str:
    return f"{drop.value:.2f} [{drop.low:.1f}, {drop.high:.1f}]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("brittleness") / "out"
    return out, comove_("brittleness", *FEW, "--methods", "cld", SPEARMAN, "--k", "5", "12", "--out", out)


def test_it_prints_a_table_of_flips_and_writes_tables_and_a_figure(finished: tuple[Path, Any]) -> None:
    out, result = finished
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "Predictions flipped (%), with 95% intervals over queries"
    assert lines[1].split() == ["method", "k", "=", "5", "k", "=", "12"]
    kept = Brittleness.load(out / "brittleness.safetensors")
    for start, value, show in ((3, kept.rate, shown_percent), (11, kept.margin_drop, shown_amount)):
        found = {
            name: cells for name, *cells in (re.split(r"\s{2,}", line.strip()) for line in lines[start : start + 4])
        }
        assert list(found) == ["cld", "cld(correlation=spearman)", "random removal", "same-class removal"]
        for name, cells in found.items():
            assert cells == [show(value(name, k)) for k in (5, 12)]
    assert re.split(r"\s{2,}", lines[2].strip())[1].startswith(f"{100 * kept.noise.value:.1f} [")
    assert "3 queries" in result.stderr
    table = pd.read_csv(out / "brittleness.csv")
    np.testing.assert_allclose(table["flipped"], [row["flipped"] for row in kept.rows()])
    assert (out / "brittleness.png").stat().st_size > 5000
    assert (
        Scores.load(out / "removal-scores" / "cld-correlation-spearman.safetensors").query_ids.tolist()
        == kept.query_ids.tolist()
    )
    assert len(set(kept.query_labels.tolist())) == 3  # spread over classes
    assert kept.info["recipe"]["epochs"] == 4


def test_the_same_command_trains_nothing_and_one_with_more_trains_what_is_missing(finished: tuple[Path, Any]) -> None:
    out, first = finished
    before = results(out)
    again = comove_("brittleness", *FEW, "--methods", "cld", SPEARMAN, "--k", "5", "12", "--out", out)
    assert again.stdout == first.stdout
    assert results(out) == before
    more = comove_("brittleness", *FEW, "--methods", "cld", "--k", "5,12", "--k", "8", "--out", out)
    assert more.exit_code == 0
    after = results(out)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 3 * 3 * 2  # three orders at k = 8, three queries, two models


def test_interrupted_it_ends_with_130_and_the_same_command_finishes_it(
    finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = ResultFiles.write, list[None]()

    def interrupted(self: ResultFiles, *args: Any, **kwargs: Any) -> None:
        if len(written) == 9:
            raise KeyboardInterrupt
        written.append(write(self, *args, **kwargs))

    words = ("brittleness", *FEW, "--methods", "cld", SPEARMAN, "--k", "5", "12", "--out", tmp_path)
    monkeypatch.setattr(ResultFiles, "write", interrupted)
    stopped = comove_(*words)
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "run the same command again to go on" in stopped.stderr
    assert len(results(tmp_path)) == 9
    monkeypatch.undo()
    assert comove_(*words).stdout == finished[1].stdout


def test_emptied_classes_are_told_before_and_after_and_counterfactuals_on_request(tmp_path: Path) -> None:
    words = ("brittleness", *FEW, "--methods", "cld", "--k", "30", "--counterfactual", "--max-k", "40")
    result = comove_(*words, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "Warning: Removing leaves no training example of some query's class" in result.stderr
    assert "same-class removal removes every example of the query's class at k = 30 for 3 queries." in result.stderr
    found = Counterfactual.load(tmp_path / "counterfactual.safetensors")
    row = next(line for line in result.stdout.split("Smallest removal")[1].splitlines() if line.startswith("cld"))
    cells = re.split(r"\s{2,}", row)
    assert cells[1] == found.median_text("cld")
    assert cells[3] == str(found.not_flipped["cld"])
    assert found.grid[-1] == 40
    assert "contradict" in result.stderr
    assert (tmp_path / "counterfactual.png").stat().st_size > 5000
    assert len(pd.read_csv(tmp_path / "counterfactual.csv")) == 3 * found.grid.size


def test_methods_of_a_bank_are_fitted_on_random_halves_and_the_folder_may_be_that_of_lds(tmp_path: Path) -> None:
    lds = comove_(
        "lds", *SMALL[:6], "--methods", "cld", "--subsets", "4", "--seeds", "1", "--runs", "1", "--out", tmp_path
    )
    assert lds.exit_code == 0, lds.stderr
    scores = (tmp_path / "scores" / "cld.safetensors").read_bytes()
    trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    result = comove_(
        "brittleness", *FEW, "--methods", "fz", "--fit-subsets", "24", "--k", "5", "--no-controls", "--out", tmp_path
    )
    assert result.exit_code == 0, result.stderr
    assert len(RetrainingBank.load(tmp_path / "fit-bank").masks) == 24
    assert Brittleness.load(tmp_path / "brittleness.safetensors").methods == ("fz",)
    assert (tmp_path / "scores" / "cld.safetensors").read_bytes() == scores
    assert all(file.stat().st_mtime_ns == before for file, before in trained.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "10", "199"], "k must be from 1 to N - 2 = 198"),
        (["--k", "0"], "numbers of examples from 1 on"),
        (["--max-k", "500", "--counterfactual"], "got 500"),
        (["--methods", "leave-one-out"], "leave-one-out needs a bank of its own kind"),
        (["--methods", "clt"], "Did you mean 'cld'"),
        (["--executor", "locl"], "Did you mean 'local'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(words: list[str], message: str, tmp_path: Path) -> None:
    result = comove_("brittleness", *FEW, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_option_of_one_value_that_is_given_twice_is_noted_and_the_last_one_counts(tmp_path: Path) -> None:
    result = comove_("brittleness", *FEW, "--executor", "locl", "--out", tmp_path / "out")
    assert "--executor takes one value and is given twice; the last one counts" in " ".join(result.stderr.split())
    assert "Did you mean 'local'" in result.stderr
