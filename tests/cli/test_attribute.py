"""``comove attribute``: the files of several methods beside one another, what it says, and what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from comove import cli
from comove.attribution import Scores
from comove.data import Splits
from comove.evaluation import RetrainingBank, subsets
from comove.training import Run, Training, train


def comove_(*words: object) -> Any:
    """Run a command in this process; its ``exit_code``, ``stdout`` and ``stderr``."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


def test_a_second_method_leaves_the_files_of_the_first_in_the_same_folder(run: Run, tmp_path: Path) -> None:
    assert comove_("attribute", run.path, "--queries", 3, "--out", tmp_path).exit_code == 0
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(first) == {"cld.safetensors", "cld-top.csv", "cld-influence.png"}
    for method, name in (("grad-cos", "grad-cos"), ("cld:correlation=spearman", "cld-correlation-spearman")):
        assert comove_("attribute", run.path, "--queries", 3, "--method", method, "--out", tmp_path).exit_code == 0
        found = {file.name for file in tmp_path.iterdir()}
        assert {f"{name}.safetensors", f"{name}-top.csv", f"{name}-influence.png"} <= found
        scores = Scores.load(tmp_path / f"{name}.safetensors")
        top = pd.read_csv(tmp_path / f"{name}-top.csv")
        best = top[(top["query_id"] == scores.query_ids[1]) & (top["side"] == "helps")]["train_id"]
        assert best.tolist() == scores.top(10, query=int(scores.query_ids[1])).ids.tolist()
    assert {name: (tmp_path / name).read_bytes() for name in first} == first


def test_it_ends_with_a_summary_for_people_and_the_files_keep_how_scores_were_made(
    runs: tuple[Run, ...], tmp_path: Path
) -> None:
    result = comove_("attribute", *(run.path for run in runs), "--queries", 3, "--top", 4, "--out", tmp_path)
    blank, more, told, written = result.stderr.splitlines()
    assert blank == ""
    assert more == "2 more queries, and up to 4 training examples at either end, in cld-top.csv."
    assert told == "cld: 200 training examples x 3 queries, the mean of 2 runs; positive = helps."
    assert written == f"Written to {tmp_path}/: cld.safetensors, cld-top.csv, cld-influence.png"
    assert "{" not in result.stdout
    assert Scores.load(tmp_path / "cld.safetensors").info["correlation"] == "pearson"


def test_one_run_is_no_mean_and_examples_without_a_score_are_counted(small_digits: Splits, tmp_path: Path) -> None:
    plan = subsets.leave_one_out(small_digits.train.ids[[3, 40, 7]])
    RetrainingBank.create(tmp_path / "bank", small_digits, Training("mlp", {"epochs": 1}), subsets=plan, seeds=1).run()
    words = ("attribute", tmp_path / "bank", "--method", "leave-one-out", "--queries", 2)
    result = comove_(*words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "Note: 197 training examples have no score by leave-one-out." in result.stderr
    assert "leave-one-out: 3 training examples x 2 queries; positive = helps." in result.stderr


def test_unknown_queries_are_refused_before_a_folder_is_made_and_repeated_ones_count_once(
    run: Run, tmp_path: Path
) -> None:
    known = int(run.trace.explained_ids[0])
    result = comove_("attribute", run.path, "--query-id", known, "--query-id", 99999, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Unknown query ids: 99999" in result.stderr
    assert not (tmp_path / "out").exists()
    assert comove_("attribute", run.path, "--query-id", known, known, "--out", tmp_path / "out").exit_code == 0
    assert Scores.load(tmp_path / "out/cld.safetensors").query_ids.tolist() == [known]


@pytest.mark.parametrize(
    ("method", "makes"), [("datamodels", "comove lds --out OUT"), ("leave-one-out", "comove lds --alpha loo --out OUT")]
)
def test_a_method_of_a_bank_says_how_one_is_made(
    runs: tuple[Run, ...], tmp_path: Path, method: str, makes: str
) -> None:
    for folders, found in (
        ([runs[0].path], "holds a run, but a retraining bank is needed"),
        ([tmp_path / "none"], "none does not exist"),
        ([run.path for run in runs], "computed from one retraining bank, got 2 folders"),
    ):
        result = comove_("attribute", *folders, "--method", method, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert found in result.stderr
        assert f"{makes} makes one, OUT/bank, for comove attribute OUT/bank --method {method}." in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def lds_folder(run: Run, small_bank: RetrainingBank, tmp_path: Path) -> Path:
    """A folder laid out as comove lds leaves it."""
    folder = tmp_path / "lds"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs/000").symlink_to(run.path)
    (folder / "bank").symlink_to(small_bank.path)
    return folder


def test_the_folder_above_or_beside_names_the_one_that_was_meant(lds_folder: Path, tmp_path: Path) -> None:
    lds, out = lds_folder, ("--out", tmp_path / "out")
    missing = "has no manifest.json, but a"
    for words, told in (
        (("attribute", lds, *out), f"{lds} {missing} run or trace is needed; did you mean {lds}/runs/000?"),
        (("coreset", lds / "runs", *out), f"did you mean {lds}/runs/000?"),
        (("attribute", lds / "bank", *out), "holds a bank, but a run or trace is needed; comove train --out RUN makes"),
        (("attribute", lds, "--method", "fz", *out), f"{missing} retraining bank is needed; did you mean {lds}/bank?"),
        (("bank", "status", lds), f"did you mean {lds}/bank?"),
        (
            ("bank", "work", lds / "runs/000"),
            "holds a run, but a retraining bank is needed; comove lds --out OUT makes",
        ),
        (("lds", "--bank", lds, *out), f"did you mean {lds}/bank?"),
    ):
        result = comove_(*words)
        assert result.exit_code == 2
        assert told in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()
    assert comove_("attribute", lds / "bank", "--method", "fz", *out).exit_code == 0
    assert np.isfinite(Scores.load(tmp_path / "out/fz.safetensors").values).all()


def test_several_methods_are_side_by_side_each_with_its_files(run: Run, tmp_path: Path) -> None:
    words = ("attribute", run.path, "--queries", 2, "--top", 3)
    made = comove_(*words, "--methods", "cld", "tracin", "--method", "random-control", "--out", tmp_path / "all")
    assert made.exit_code == 0, made.stderr
    names = ("cld", "tracin", "random-control")
    for name in names:
        assert comove_(*words, "--method", name, "--out", tmp_path / "one").exit_code == 0
        for end in (".safetensors", "-top.csv", "-influence.png"):
            assert (tmp_path / "all" / f"{name}{end}").exists()
        top = [(tmp_path / folder / f"{name}-top.csv").read_bytes() for folder in ("all", "one")]
        assert top[0] == top[1]
    heads = [line.split() for line in made.stdout.splitlines() if "tracin" in line]
    assert heads == [list(names)] * 2
    scores = {name: Scores.load(tmp_path / f"all/{name}.safetensors") for name in names}
    query = int(scores["cld"].query_ids[0])
    first = next(line for line in made.stdout.splitlines() if line.startswith("1 "))
    assert [scores[name].top(1, query=query).ids[0] for name in names] == [int(word) for word in first.split()[1::3]]


def test_methods_of_banks_and_of_runs_are_two_commands(run: Run, small_bank: RetrainingBank, tmp_path: Path) -> None:
    result = comove_("attribute", small_bank.path, "--methods", "fz", "cld", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "fz is computed from a bank, cld from runs: give a command to each." in result.stderr
    both = comove_("attribute", small_bank.path, "--methods", "fz", "datamodels", "--queries", 2, "--out", tmp_path)
    assert both.exit_code == 0, both.stderr
    assert not (tmp_path / "out").exists()


def test_the_table_goes_to_standard_output_and_nothing_else(run: Run, tmp_path: Path) -> None:
    words = ("attribute", run.path, "--queries", 3, "--top", 2)
    assert comove_(*words, "--out", tmp_path / "out").exit_code == 0
    made = comove_(*words, "--out", "-")
    assert made.exit_code == 0, made.stderr
    assert made.stdout == (tmp_path / "out/cld-top.csv").read_text()
    assert "positive = helps" in made.stderr
    several = comove_(*words, "--methods", "cld", "random-control", "--out", "-")
    assert len(several.stdout.splitlines()) == 1 + 2 * 3 * 2 * 2
    assert comove_(*words, "--out", "-", "--blocks", "serial").exit_code == 2


def test_a_device_is_that_of_methods_which_compute_on_one(run: Run, tmp_path: Path) -> None:
    result = comove_("attribute", run.path, "--method", "tracin", "--device", "gpu", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Unknown device 'gpu'" in result.stderr
    words = ("attribute", run.path, "--methods", "tracin", "cld", "--queries", 2, "--device", "cpu")
    assert comove_(*words, "--out", tmp_path / "out").exit_code == 0


@pytest.mark.filterwarnings("default:.*differ in more than their seed")
def test_runs_of_different_models_are_not_averaged_in_silence(run: Run, small_digits: Splits, tmp_path: Path) -> None:
    recipe = run.recipe.with_changes(epochs=3)
    train(small_digits, "cnn-small", recipe, 0, tmp_path / "other", model_options={"width": 0.25})
    result = comove_("attribute", run.path, tmp_path / "other", "--queries", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0
    told = (
        "cld averages runs that differ in more than their seed: model mlp, cnn-small; epochs 6, 3; width default, 0.25"
    )
    assert result.stderr.count("Warning:") == 1
    assert told in result.stderr


def test_a_trace_counts_as_its_data_set_does(run: Run) -> None:
    assert "200 train, 197 validation, 40 query, mode sweep" in repr(run.trace)
    assert "200 train, 197 validation, 40 query" in repr(run.data())
    assert "<td>197</td>" in run.trace._repr_html_()
