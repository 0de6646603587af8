"""The command line, as a user meets it: what it writes, what it says, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tests.fork_server import STRICT, Warm
from typer.testing import CliRunner

import comove
from comove import cli
from comove.attribution import CLD, BayesianInfluence, RandomControl, SameClassControl, TracIn, attributors
from comove.attribution.queries import choose_queries
from comove.coreset import Coreset, selectors
from comove.data import Splits, split
from comove.data.builtin import load_dataset
from comove.data.tables import read_rows
from comove.demo import run_demo
from comove.evaluation.coreset_curves.stability import stability
from comove.evaluation.costs.measured import measured_cost
from comove.models import model_names
from comove.training import RECIPES, Run, loop, train

COMMANDS = (
    "demo",
    "train",
    "explore",
    "attribute",
    "coreset",
    "curve",
    "stability",
    "lds",
    "brittleness",
    "check",
    "cost",
    "diagnose",
    "clean",
    "report",
    "methods",
    "doctor",
)
SMALL = ("--limit", "200", "--held-out", "40", "--epochs", "4")


class Result:
    """How a command ended, and what it said on its two streams."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def comove_(*words: object) -> Result:
    """Run a command in this process."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return Result(made.exit_code, made.stdout, made.stderr)


RUN = STRICT + "from comove.cli import run; run()"


def refused(result: Result, *told: str) -> None:
    """Assert exit code 2 and one clear line that holds every text of ``told``."""
    assert result.code == 2, result.err
    assert result.out == ""
    assert result.err.startswith("Error: ")
    assert result.err.count("\n") == 1, result.err
    for text in told:
        assert text in result.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs made by the command line, with another seed each."""
    folder = tmp_path_factory.mktemp("cli")
    for seed, name in enumerate("ab"):
        result = comove_("train", *SMALL, "--seed", seed, "--out", folder / name, "--quiet")
        assert result.code == 0, result.err
    return folder / "a", folder / "b"


# --- the whole way -----------------------------------------------------------------------------------------------


def test_train_writes_a_run_that_python_opens(trained: tuple[Path, Path]) -> None:
    run = Run.load(trained[0])
    assert run.finished
    assert len(run.trace.rows) == 5
    assert run.recipe.epochs == 4
    assert (len(run.data().train), len(run.data().query)) == (200, 40)


def test_options_of_the_optimizer_are_those_of_the_recipe(tmp_path: Path) -> None:
    words = ("--optimizer", "adamw", "--clip-norm", 0.5, "--warmup-epochs", 1, "--patience", 2, "--ema", 0.9)
    made = comove_("train", *SMALL, *words, "--out", tmp_path / "a", "--quiet")
    assert made.code == 0, made.err
    recipe = Run.load(tmp_path / "a").recipe
    assert recipe == RECIPES["digits-mlp"].with_changes(
        epochs=4, lr=1e-3, optimizer="adamw", clip_norm=0.5, warmup_epochs=1, early_stop_patience=2, ema=0.9
    )
    assert re.search(r"^epochs trained +4$", made.out, re.MULTILINE)
    short = comove_("train", *SMALL, "--recipe", "adamw", "--epochs", 2, "--out", tmp_path / "b", "--quiet")
    assert short.code == 0, short.err
    assert Run.load(tmp_path / "b").recipe == RECIPES["adamw"].with_changes(epochs=2, warmup_epochs=0.5)
    refused(comove_("train", *SMALL, "--ema", 2, "--out", tmp_path / "c"), "ema must be above 0 and below 1, or None")


def test_a_schedule_is_chosen_and_a_constant_one_can_be_extended(tmp_path: Path) -> None:
    words = ("train", *SMALL, "--recipe", "resnet9-small", "--model", "mlp", "--out", tmp_path / "a", "--quiet")
    assert comove_(*words, "--schedule", "constant").code == 0
    assert Run.load(tmp_path / "a").recipe.schedule == "constant"
    longer = comove_("train", tmp_path / "a", "--epochs", 6, "--quiet")
    assert longer.code == 0, longer.err
    assert Run.load(tmp_path / "a").recipe.epochs == 6
    refused(comove_("train", *SMALL, "--schedule", "stairs", "--out", tmp_path / "b"), "schedule")


def test_anchors_are_kept_at_the_epochs_asked_for(tmp_path: Path) -> None:
    assert comove_("train", *SMALL, "--anchors", 2, -1, "--out", tmp_path / "a", "--quiet").code == 0
    assert Run.load(tmp_path / "a").trace.anchors == (2, 4)


def test_train_tells_memory_so_that_it_can_be_read(trained: tuple[Path, Path]) -> None:
    told = comove_("train", *SMALL, "--out", trained[0], "--quiet").out
    used = Run.load(trained[0]).result["peak_memory_bytes"]
    assert re.search(rf"^peak memory +{re.escape(f'{used / 2**20:,.0f} MiB')}$", told, re.MULTILINE)
    assert str(used) not in told
    assert re.search(r"^examples +200 training, 197 validation, 40 query$", told, re.MULTILINE)
    assert re.search(r"^training accuracy +0\.\d+$", told, re.MULTILINE)


def test_train_is_python_train(trained: tuple[Path, Path]) -> None:
    recipe = RECIPES["digits-mlp"].with_changes(epochs=4)
    made = train(load_dataset("digits", limit=200, queries=40), "mlp", recipe, 1)
    assert made.manifest["fingerprint"] == Run.load(trained[1]).manifest["fingerprint"]
    np.testing.assert_array_equal(made.trace.train_losses, Run.load(trained[1]).trace.train_losses)


def test_attribute_averages_runs_of_several_seeds_and_writes_scores_table_and_figure(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    result = comove_("attribute", *trained, "--queries", 12, "--top", 3, "--out", tmp_path)
    assert result.code == 0, result.err
    scores = comove.Scores.load(tmp_path / "cld.safetensors")
    runs = [Run.load(path) for path in trained]
    wanted = choose_queries(runs[0].trace, 12)
    assert scores.query_ids.tolist() == wanted
    np.testing.assert_array_equal(scores.values, attributors()["cld"]().fit(runs).attribute(wanted).values)
    with (tmp_path / "cld-top.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * 2 * 3
    first = [row for row in rows if row["query_id"] == str(wanted[3]) and row["side"] == "helps"]
    assert [int(row["train_id"]) for row in first] == scores.top(3, query=wanted[3]).ids.tolist()
    assert [row["rank"] for row in first] == ["1", "2", "3"]
    assert not_blank(tmp_path / "cld-influence.png")
    assert f"help query {wanted[0]} most" in result.out


def test_attribute_answers_for_chosen_queries_with_a_method_and_its_options(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = Run.load(trained[0]).trace.explained_ids[[7, 2]].tolist()
    words = [word for id_ in wanted for word in ("--query-id", id_)]
    result = comove_("attribute", trained[0], *words, "--method", "cld:correlation=spearman", "--out", tmp_path)
    assert result.code == 0, result.err
    (file,) = tmp_path.glob("*.safetensors")
    scores = comove.Scores.load(file)
    assert scores.query_ids.tolist() == wanted
    assert scores.method == "cld(correlation=spearman)"


def test_attribute_and_coreset_read_a_bare_trace(trained: tuple[Path, Path], tmp_path: Path) -> None:
    assert comove_("attribute", trained[0] / "trace", "--out", tmp_path).code == 0
    assert {file.name for file in tmp_path.iterdir()} == {"cld.safetensors", "cld-top.csv"}
    assert comove_("coreset", trained[0] / "trace", "--out", tmp_path / "c.csv").code == 0
    assert len(Coreset.load(tmp_path / "c.csv")) == 20


@pytest.mark.parametrize("name", ["chosen.csv", "chosen.safetensors"])
def test_coreset_writes_what_python_selects(trained: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    result = comove_("coreset", trained[0], "--budget", 0.3, "--out", tmp_path / "new" / name)
    assert result.code == 0, result.err
    chosen = comove.select("cld", Run.load(trained[0]), budget=0.3)
    loaded = Coreset.load(tmp_path / "new" / name)
    assert loaded.ids.tolist() == chosen.ids.tolist()
    np.testing.assert_allclose(loaded.scores, chosen.scores)
    assert "60 of 200" in result.out


def test_curve_writes_a_table_and_a_figure(trained: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("--methods", "cld,random", "--budgets", 0.2, "--budgets", 0.5, "--seeds", 2, "--quiet")
    result = comove_("curve", trained[0], *words, "--out", tmp_path)
    assert result.code == 0, result.err
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"cld", "random", "full data"}
    assert len(rows) == 2 + 2 * 2 * 2
    assert not_blank(tmp_path / "curve.png")
    assert "full data   100%" in result.out


def test_what_a_run_was_trained_with_is_not_said_again(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = trained[0]
    for words, told in (
        (("curve", run, "--epochs", 3, "--out", tmp_path), "leave out --epochs"),
        (("curve", run, "--limit", 30, "--flip-labels", 0.1, "--out", tmp_path), "leave out --limit --flip-labels"),
        (("train", run, "--epochs", 40, "--lr", 0.1), "leave out --lr"),
        (("train", run, "--epochs", 40, "--out", tmp_path), "leave out --out"),
        (("train", run), "say to how many in all"),
        (("curve", run / "trace", "--out", tmp_path), "is a bare trace, with which no model can be trained"),
    ):
        result = comove_(*words)
        assert result.code == 2, result.err
        assert told in result.err


def test_curve_without_a_run_trains_a_proxy_and_counts_the_wrong_labels_that_coresets_keep(tmp_path: Path) -> None:
    words = (*SMALL, "--flip-labels", "0.2", "--methods", "cld", "el2n", "--budgets", "0.3", "--seeds", "1")
    result = comove_("curve", *words, "--target-model", "mlp", "cnn-small", "--executor", "serial", "--out", tmp_path)
    assert result.code == 0, result.err
    assert Run.load(tmp_path / "proxy").finished
    with (tmp_path / "curve.csv").open(newline="") as file:
        assert {row["target"] for row in csv.DictReader(file)} == {"mlp", "cnn-small"}
    assert "Wrong labels kept (40 of 200 are wrong)" in result.out
    assert "Smallest class, as a multiple of an even share" in result.out
    assert "Accuracy of cnn-small on 40" in result.out
    assert "Smallest share within 0.01" in result.err
    assert not_blank(tmp_path / "cnn-small" / "curve.png")


def test_lds_writes_table_json_and_figure_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = ("--subsets", 4, "--seeds", 2, "--runs", 1, "--executor", "serial")
    words = ("lds", *SMALL, "--methods", "cld", *counts, "--quiet", "--out", tmp_path)
    first = comove_(*words)
    assert first.code == 0, first.err
    with (tmp_path / "lds.csv").open(newline="") as file:
        names = [row["method"] for row in csv.DictReader(file)]
    assert names == ["cld", "same-class-control", "random-control"]
    assert [row["method"] for row in json.loads((tmp_path / "lds.json").read_text())["results"]] == names
    assert comove.RetrainingBank.load(tmp_path / "bank").masks.shape == (4, 200)
    assert not_blank(tmp_path / "lds.png")
    monkeypatch.setattr(loop, "_epochs", _never)
    assert comove_(*words).out == first.out


def test_lds_at_several_ratios_and_outputs_has_a_column_each_and_its_bank_serves_again(tmp_path: Path) -> None:
    ratios = ("--alpha", "0.5", "0.3,loo", "--output", "margin", "correct")
    counts = ("--subsets", 4, "--seeds", 2, "--runs", 1, "--executor", "serial")
    first = comove_("lds", *SMALL, "--methods", "cld", *ratios, *counts, "--out", tmp_path / "a")
    assert first.code == 0, first.err
    heads = [line.split() for line in first.out.splitlines() if line.startswith("method")]
    assert heads == [["method", "alpha", "0.3", "alpha", "0.5", "alpha", "1-1/200"]] * 2
    assert first.out.count("noise ceiling") == 2
    assert "24 trained now, 0 reused" in first.err
    with (tmp_path / "a/lds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["alpha"], row["output"]) for row in rows} == {
        (alpha, output) for alpha in ("0.3", "0.5", "0.995") for output in ("margin", "correct")
    }
    assert not_blank(tmp_path / "a/lds.png")
    again = comove_(
        "lds", *SMALL[:-2], "--methods", "cld", *ratios, "--runs", 1, "--bank", tmp_path / "a/bank",
        "--out", tmp_path / "b",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert "0 trained now, 24 reused" in again.err
    assert again.out == first.out


def test_lds_holds_methods_to_models_of_the_same_seed(tmp_path: Path) -> None:
    counts = ("--alpha", 0.95, "--subsets", 4, "--seeds", 1, "--runs", 1, "--executor", "serial", "--quiet")
    made = comove_("lds", *SMALL, "--methods", "cld", *counts, "--same-seed", "--out", tmp_path)
    assert made.code == 0, made.err
    bank = comove.RetrainingBank.load(tmp_path / "bank")
    assert bank.same_seed
    assert bank.pending == []


def test_lds_refuses_options_that_an_existing_bank_has_decided(tmp_path: Path) -> None:
    words = ("lds", "--bank", tmp_path, "--out", tmp_path / "x")
    told = "With --bank, how models are trained, and on what, is given: leave out --batch-size --subsets"
    refused(comove_(*words, "--subsets", 4, "--batch-size", 8), told)
    refused(comove_(*words), "manifest.json")
    refused(comove_("lds", *SMALL, "--alpha", "half", "--out", tmp_path / "x"), "or loo; got 'half'")
    assert not (tmp_path / "x").exists()


def _never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("trained again")


def not_blank(path: Path) -> bool:
    """Tell whether a file is a PNG with something on it."""
    from PIL import Image

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return float(pixels.std()) > 5 and min(pixels.shape) > 100


def test_cost_prints_the_papers_example_and_where_its_printed_figures_went() -> None:
    result = comove_("cost")
    assert "904.821" in result.out
    refused(comove_("cost", "--printed"), "python benchmarks/paper/appendix_e.py --all")
    assert "1,526.725" in comove_("cost", "--one-unit").out


def test_cost_of_a_run_is_measured(trained: tuple[Path, Path]) -> None:
    result = comove_("cost", trained[0])
    assert result.code == 0, result.err
    assert "one example forward" in result.out
    run = Run.load(trained[0])
    n, epochs, forward = len(run.data().train), run.recipe.epochs, measured_cost(run).forward_flops
    (full,) = (line for line in result.out.splitlines() if line.startswith("full "))
    assert f"{3 * n * epochs * forward / 1e9:,.3f} train on everything" in full  # a backward pass counts 2 f
    assert "To select 20 examples" in result.out
    (random,) = (line for line in comove_("cost", trained[0], "--k", 40).out.splitlines() if line.startswith("random "))
    assert random.split()[-2] == "0.20"  # of training on all 200
    refused(comove_("cost", trained[0], "--one-unit"), "counted in one unit anyway")
    refused(comove_("cost", trained[0] / "trace"), "is a bare trace")


def test_diagnose_writes_table_and_figure(trained: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("diagnose", trained[0], "--methods", "cld", "random", "--budget", "0.2", "--checkpoints", "2", "--quiet")
    result = comove_(*words, "--out", tmp_path)
    assert result.code == 0, result.err
    assert {"diagnosis.csv", "diagnosis.json", "diagnosis.png"} <= {file.name for file in tmp_path.iterdir()}
    assert result.out.count("full data") == 4
    said = result.out.splitlines()
    for start in ("Lemma 1, cld: ", "Lemma 2, cld: ", "Lemma 3, cld: ", "Lemma 1, random: "):
        assert sum(line.startswith(start) for line in said) == 1
    refused(comove_("diagnose", trained[0] / "trace", "--out", tmp_path / "b"), "is a bare trace")


def test_all_methods_are_those_that_the_run_can_feed(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name: made for name, made in selectors().items() if name in ("cld", "grand", "random", "per_class")}
    monkeypatch.setattr("comove.coreset.selectors", lambda: known)
    words = ("--methods", "all", "--out", tmp_path)
    compared = comove_("stability", *trained, *words, "--budgets", "0.2", "--epochs", "2")
    assert compared.code == 0, compared.err
    table = (tmp_path / "stability.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in table] == ["cld", "random"]
    diagnosed = comove_("diagnose", trained[0], *words, "--budget", "0.2", "--checkpoints", "1", "--quiet")
    assert diagnosed.code == 0, diagnosed.err
    table = (tmp_path / "diagnosis.csv").read_text().splitlines()[1:]
    assert {row.partition(",")[0] for row in table} == {"cld", "random"}
    for result in (compared, diagnosed):
        assert re.search("grand is left out: .*anchors", result.err)
    refused(comove_("diagnose", trained[0], "--methods", "grand", "--out", tmp_path), "anchors")


def test_stability_compares_seeds_and_first_epochs(trained: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("stability", *trained, "--methods", "cld", "random", "--budgets", "0.2", "--epochs", "2", "4")
    result = comove_(*words, "--out", tmp_path)
    assert result.code == 0, result.err
    with (tmp_path / "stability.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    cld = stability([Run.load(path) for path in trained], "cld", 0.2)
    assert float(rows["cld"]["overlap"]) == pytest.approx(cld.overlap)
    assert cld.verdict in result.out.splitlines()
    assert re.search(r"^CLD at 20.0%: .* of the choice", result.out, re.M)
    assert float(rows["cld"]["mean_absolute_error"]) == pytest.approx(cld.mean_absolute_error)
    assert float(rows["random"]["overlap"]) == 1  # the choice is seeded by the method, not by the run
    with (tmp_path / "early.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["epoch"], float(last["overlap"])) == ("4", 1)  # all four epochs: the same choice
    alone = comove_("stability", trained[0])  # the epochs to look at are chosen
    assert alone.code == 0, alone.err
    assert sum(line.startswith("10.0%") for line in alone.out.splitlines()) == 3
    assert "One run says nothing about seeds" in alone.err
    assert "Between" not in alone.out
    refused(comove_("stability", trained[0], "--epochs", "1"), "at least 2 epochs")


def test_methods_lists_every_method_model_and_recipe() -> None:
    result = comove_("methods")
    for name in (*attributors(), *selectors(), *model_names(), *RECIPES, "digits", "cifar10"):
        assert name in result.out


def test_a_table_in_a_pipe_keeps_each_row_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = comove_("methods").out.splitlines()
    for name, method in attributors().items():
        row = next(line for line in lines if line.split(" ")[0] == name and method.summary in line)
        assert method.cost in row


def test_doctor_tells_versions_and_where_cifar10_is(tmp_path: Path, cifar_folder: Path) -> None:
    import torch

    missing = comove_("doctor", "--data-dir", tmp_path)
    assert re.search(rf"torch +{re.escape(torch.__version__.split('+')[0])}", missing.out)
    assert f"not found in {tmp_path}" in missing.out
    found = comove_("doctor", "--data-dir", cifar_folder)
    assert re.search(rf"cifar10 +(parquet|torchvision) in {re.escape(str(cifar_folder))}", found.out)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest(trained: tuple[Path, Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x")
    refused(comove_("train", "--dataset", "digit", *out), "There is no data set 'digit'", "Did you mean 'digits'?")
    refused(comove_("train", "--model", "mpl", *out), "no model called 'mpl'", "Did you mean 'mlp'?")
    refused(comove_("train", "--recipe", "digits", *out), "Unknown recipe", "Did you mean 'digits-mlp'?")
    refused(comove_("attribute", trained[0], "--method", "cdl", *out), "Did you mean 'cld'?")
    refused(comove_("attribute", trained[0], "--method", "cld:corelation=x", *out), "Did you mean 'correlation'?")
    refused(comove_("coreset", trained[0], "--method", "randm", *out), "Did you mean", "'random'")
    refused(comove_("curve", trained[0], "--methods", "cld,randm", *out), "Did you mean", "'random'")
    refused(comove_("lds", "--methods", "clt", *out), "Did you mean 'cld'?")
    refused(comove_("lds", *SMALL, "--output", "margn", *out), "Did you mean 'margin'?")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--mode", "swep"), "mode must be 'sweep' or 'in_pass'"),
        (("--checkpoints", "often"), "checkpoints must be"),
        (("--device", "gpu"), "Unknown device 'gpu'"),
        (("--lr", "-1"), "lr must be above 0"),
        (("--width", "0.5"), "unexpected keyword argument 'width'"),
        (("--model", "nowhere:make"), "importable from here"),
    ],
)
def test_values_out_of_range_are_refused_and_leave_no_folder(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    refused(comove_("train", *SMALL, *words, "--out", tmp_path / "x"), told)
    assert not (tmp_path / "x").exists()


def test_an_unwritable_out_is_refused_before_anything_is_computed(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x"
    monkeypatch.setattr(loop, "_epochs", _never)
    for words in (
        ("train", *SMALL),
        ("attribute", trained[0]),
        ("coreset", trained[0]),
        ("curve", trained[0]),
        ("lds", *SMALL),
        ("demo",),
    ):
        refused(comove_(*words, "--out", out / "y"), "Cannot make the folder", str(out), "--out")


def test_a_truncated_row_file_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    row = tmp_path / "run/trace/rows/000002.safetensors"
    row.write_bytes(row.read_bytes()[:-10])
    refused(comove_("attribute", tmp_path / "run", "--out", tmp_path / "s"), str(row), "truncated")
    refused(comove_("coreset", tmp_path / "run", "--out", tmp_path / "c.csv"), str(row), "truncated")


def test_other_settings_in_the_same_folder_are_refused_with_what_differs(trained: tuple[Path, Path]) -> None:
    result = comove_("train", "--limit", 200, "--held-out", 40, "--epochs", 5, "--out", trained[0], "--quiet")
    refused(result, "recipe.epochs was 4, now 5", Run.load(trained[0]).manifest["fingerprint"])


def test_other_data_in_the_same_folder_are_refused(trained: tuple[Path, Path]) -> None:
    refused(comove_("train", *SMALL, "--split-seed", 1, "--out", trained[0], "-q"), "dataset.fingerprint was")


def test_runs_on_other_data_are_not_averaged(trained: tuple[Path, Path], tmp_path: Path) -> None:
    assert comove_("train", *SMALL, "--split-seed", 1, "--out", tmp_path / "c", "-q").code == 0
    refused(comove_("attribute", trained[0], tmp_path / "c", "--out", tmp_path / "s"), "same training examples")


def test_a_run_that_diverges_is_refused_with_row_and_ids(tmp_path: Path) -> None:
    refused(comove_("train", *SMALL, "--lr", 1e6, "--out", tmp_path / "x", "-q"), "row 1", "ids", "lower its learning")


def test_what_is_no_run_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    for command, out in (("attribute", "s"), ("coreset", "c.csv"), ("curve", "c")):
        refused(comove_(command, tmp_path / "nothing", "--out", tmp_path / out), "nothing")
        refused(comove_(command, Path(__file__).parent, "--out", tmp_path / out), "manifest.json")
    refused(
        comove_("curve", trained[0] / "trace", "--out", tmp_path / "c"),
        "is a bare trace, with which no model can be trained",
    )


def test_an_unknown_query_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    refused(comove_("attribute", trained[0], "--query-id", 99999, "--out", tmp_path), "99999")


def test_a_missing_cifar_folder_says_what_to_do(tmp_path: Path) -> None:
    result = comove_("train", "--dataset", "cifar10", "--data-dir", tmp_path, "--out", tmp_path / "x")
    refused(result, str(tmp_path), "--download", "parquet")


def test_text_in_brackets_is_printed_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "a[red]b:smile:[/x]"
    result = comove_("train", *SMALL, "--out", out, "-q")
    assert result.code == 0, result.err
    assert f"Run({out}:" in result.out
    made = comove_("attribute", out, "--out", tmp_path / "[bold]s")
    assert f"Written to {tmp_path}/[bold]s/" in made.err
    refused(comove_("attribute", tmp_path / "[blink]none[/blink]", "--out", tmp_path / "s"), "/[blink]none[/blink] ")


def test_class_names_in_brackets_are_printed_as_they_are(
    images: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = split(images, validation=8, query=8)
    for part in (splits.train, splits.validation, splits.query):
        assert part is not None
        part.classes = ("[red]a", "b]", "[/c]", ":smile:")
    train(splits, "mlp", {"epochs": 2, "batch_size": 8}, 0, tmp_path / "run")
    result = comove_("coreset", tmp_path / "run", "--budget", 0.5, "--out", tmp_path / "c.csv")
    assert result.code == 0, result.err
    for name in ("[red]a", "b]", "[/c]", ":smile:"):
        assert name in result.out
    told = comove_("attribute", tmp_path / "run", "--out", tmp_path / "s")
    assert told.code == 0, told.err
    assert "No figure:" in told.err  # the data were in memory


def test_a_figure_that_cannot_be_drawn_leaves_none_of_an_earlier_call(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    for source, drawn in ((trained[0], True), (trained[0] / "trace", False)):
        assert comove_("attribute", source, "--out", tmp_path).code == 0
        assert (tmp_path / "cld-influence.png").exists() == drawn


# --- how a command ends ------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make reading a data set raise."""

    def set_error(error: BaseException) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr("comove.data.builtin.load_dataset", fail)

    return set_error


def test_a_fault_of_ours_ends_with_1_and_asks_for_a_report(
    broken: Callable[[BaseException], None], tmp_path: Path
) -> None:
    broken(RuntimeError("the [bold]wheel[/bold]\n came off"))
    result = comove_("train", "--out", tmp_path)
    assert result.code == 1
    assert result.err.startswith("Internal error (RuntimeError): the [bold]wheel[/bold] came off\n")
    assert "--debug" in result.err
    assert "Traceback" not in result.err


def test_debug_adds_the_traceback_and_keeps_the_exit_code(
    broken: Callable[[BaseException], None], tmp_path: Path
) -> None:
    broken(RuntimeError("off"))
    ours = comove_("--debug", "train", "--out", tmp_path)
    assert ours.code == 1
    assert "Traceback" in ours.err
    broken(comove.errors.InputError("bad"))
    theirs = comove_("--debug", "train", "--out", tmp_path)
    assert theirs.code == 2
    assert "Traceback" in theirs.err
    assert theirs.err.endswith("Error: bad\n")
    assert "Traceback" not in comove_("train", "--out", tmp_path).err  # it does not outlive its command


def test_an_error_of_the_system_is_one_clear_line(broken: Callable[[BaseException], None], tmp_path: Path) -> None:
    broken(PermissionError(13, "Permission denied", "/secret/file"))
    refused(comove_("train", "--out", tmp_path), "/secret/file: Permission denied.")


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(broken: Callable[[BaseException], None], tmp_path: Path) -> None:
    broken(KeyboardInterrupt())
    result = comove_("train", "--out", tmp_path)
    assert result.code == 130
    assert result.err == "Interrupted. What was finished is kept; run the same command again to go on.\n"


def test_in_a_process_of_its_own_bad_input_ends_with_2_one_line_and_no_traceback(warm: Warm, tmp_path: Path) -> None:
    warm.start(RUN, "train", "--model", "mpl", "--out", tmp_path / "x")
    result = Result(warm.wait(), warm.output.read_text(), warm.errors.read_text())
    refused(result, "Did you mean 'mlp'?")


def test_debug_may_stand_last_on_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["comove", "train", "--dataset", "nowhere", "--out", str(tmp_path / "x"), "--debug"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code == 2
    assert sys.argv == words
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "There is no data set 'nowhere'" in err.splitlines()[-1]


def test_a_factory_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_to_find.py").write_text(
        "from torch import nn\ndef make(*, num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])  # as in a console script
    result = comove_("train", *SMALL, "--model", "mine_to_find:make", "--out", "run", "-q")
    assert result.code == 0, result.err
    assert Run.load(tmp_path / "run").model_spec.name == "mine_to_find:make"


def test_interrupted_training_ends_with_130_and_the_same_command_finishes_it(warm: Warm, tmp_path: Path) -> None:
    words = ["train", "--limit", "600", "--held-out", "40", "--epochs", "20", "--batch-size", "8", "--out"]
    process = warm.start(RUN, *words, tmp_path / "a")
    deadline = time.monotonic() + 60
    while not (tmp_path / "a/trace/rows/000003.safetensors").exists():
        assert time.monotonic() < deadline, warm.errors.read_text()
        time.sleep(0.01)
    os.kill(process, signal.SIGINT)
    assert warm.wait() == 130
    out, err = warm.output.read_text(), warm.errors.read_text()
    assert out == ""
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert not Run.load(tmp_path / "a").finished
    for name in "ab":
        assert comove_(*words, tmp_path / name, "-q").code == 0
    resumed, whole = (Run.load(tmp_path / name) for name in "ab")
    for field in resumed.trace.fields:
        for side in ("train", "query"):
            np.testing.assert_array_equal(resumed.trace.read(side, field), whole.trace.read(side, field))


def test_without_a_terminal_there_is_a_line_an_epoch_and_quiet_has_none(tmp_path: Path) -> None:
    assert comove_("train", *SMALL, "--out", tmp_path / "a", "--quiet").err == ""
    told = comove_("train", *SMALL, "--out", tmp_path / "b").err
    lines = re.findall(
        r"^training mlp: epoch (\d) of 4, mean loss (\S+), of held-out examples (\S+), ", told, re.MULTILINE
    )
    assert [line[0] for line in lines] == ["1", "2", "3", "4"]
    trace = Run.load(tmp_path / "b").trace
    assert [line[1] for line in lines] == [f"{loss:.4f}" for loss in trace.train_losses[1:].mean(1, dtype=np.float64)]
    assert [line[2] for line in lines] == [f"{loss:.4f}" for loss in trace.query_losses[1:].mean(1, dtype=np.float64)]
    assert told.count("\n") == 4


# --- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--budgets", "0.2", "0.4", "--methods", "cld", "random"),
        ("--budgets", "0.2", "--budgets", "0.4", "--methods", "cld,random"),
        ("--budgets=0.2,0.4", "--methods=cld", "--methods", "random"),
    ],
)
def test_a_list_may_be_given_with_spaces_with_commas_or_one_by_one(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[list[str], list[float]]] = []

    def note(runs: object, methods: list[str], budgets: list[float], **options: object) -> None:
        assert runs == tmp_path
        asked.append((methods, budgets))
        raise KeyboardInterrupt

    monkeypatch.setattr("comove.evaluation.coreset_curve", note)
    monkeypatch.setattr("comove.cli.curve._proxy", lambda run, task, out: run)
    for order in ((tmp_path, *words), (*words, tmp_path)):  # a folder is no item of the list before it
        assert comove_("curve", *order, "--out", tmp_path).code == 130
    assert asked == [(["cld", "random"], [0.2, 0.4])] * 2


def test_the_commands_are_those_promised() -> None:
    assert [command.callback.__name__ for command in cli.app.registered_commands if command.callback] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_gives_an_example_that_names_its_options(name: str) -> None:
    result = comove_(name, "-h")
    assert result.code == 0
    assert result.out == comove_(name, "--help").out
    examples = re.findall(rf"^  (comove {name}\b.*)", result.out, re.M)
    assert examples
    known = set(re.findall(r"--[a-z][a-z-]*", result.out.split(examples[-1], 1)[1]))
    for option in re.findall(r"--[a-z][a-z-]*", " ".join(examples)):
        assert option in known


def test_help_of_the_whole_names_every_command_and_no_markup_leaks() -> None:
    for words in (["--help"], []):
        result = comove_(*words)
        text = result.out + result.err
        for name in COMMANDS:
            assert name in text
        assert "[bold]" not in text


def test_an_unknown_command_or_option_ends_with_2() -> None:
    for words in (("trian",), ("train", "--epoch", "3", "--out", "x"), ("train",)):
        assert comove_(*words).code == 2


SMALL_DEMO: dict[str, Any] = {
    "runs": 1,
    "subset_count": 4,
    "retrain_seeds": 1,
    "methods": [
        CLD(),
        BayesianInfluence(chains=2, steps=40),
        TracIn(checkpoints=1),
        SameClassControl(),
        RandomControl(),
    ],
}


# --- the demo ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo's folder."""
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder, **SMALL_DEMO)
    return folder


def test_the_demo_writes_the_report_and_figures_beside_it(demo_folder: Path) -> None:
    text = (demo_folder / "index.html").read_text(encoding="utf-8")
    found = re.search(r'id="payload">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    content = json.loads(found[1])
    pages = {page["id"]: page for page in content["pages"]}
    assert [row[0] for row in pages["lds"]["figures"][0]["table"]["rows"]][:1] == ["cld"]
    assert {row[0] for row in pages["curves"]["figures"][0]["table"]["rows"]} == {"full data", "cld", "random"}
    (kept,) = pages["curves"]["kept"]["lists"]
    shown = [content["train"]["ids"][member] for member in kept["members"]]
    assert set(shown) <= set(Coreset.load(demo_folder / "coreset.csv").ids.tolist())
    assert len(content["query"]["ids"]) == 20
    names = {"influence", "trajectories", "lds", "brittleness", "curve"}
    assert {path.stem for path in (demo_folder / "figures").iterdir()} == names
    for name in names:
        assert not_blank(demo_folder / "figures" / f"{name}.png"), name


def test_the_demo_leaves_scores_a_coreset_a_bank_and_a_curve(demo_folder: Path) -> None:
    scores = comove.Scores.load(demo_folder / "scores.safetensors")
    assert scores.values.shape == (1400, 20)
    assert np.bincount(np.asarray(scores.query_labels)).tolist() == [2] * 10
    assert len(Coreset.load(demo_folder / "coreset.csv")) == 420
    assert comove.RetrainingBank.load(demo_folder / "lds/bank").masks.shape == (4, 1400)
    assert len(list((demo_folder / "curve/bank/results").glob("*.safetensors"))) == 21
    assert {row["method"] for row in read_rows(demo_folder / "curve/curve.csv", ["target"])} >= {"cld", "random"}


def test_the_demo_command_prints_what_it_found_and_trains_nothing_a_second_time(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(out: Path, **options: Any) -> Any:
        return run_demo(out, **{**options, **SMALL_DEMO})

    monkeypatch.setattr("comove.demo.run_demo", small)
    monkeypatch.setattr(loop, "_epochs", _never)
    scores = comove.Scores.load(demo_folder / "scores.safetensors").values
    result = comove_("demo", "--out", demo_folder)
    assert result.code == 0, result.err
    for text in ("help query", "hurt query", "random-control", "full data", "accuracy", "aum", "random removal"):
        assert text in result.out
    assert "-0.000" not in result.out
    assert re.findall(r"^\d/5", result.err, re.MULTILINE) == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    for sentence in ("predicts retraining best", "lowers a query's margin", "coreset by CLD gives"):
        assert sentence in result.err
    assert f"Open {demo_folder}/index.html" in result.err
    np.testing.assert_array_equal(comove.Scores.load(demo_folder / "scores.safetensors").values, scores)


def test_queries_are_spread_over_the_classes(small_digits: Splits, run: Run) -> None:
    chosen = choose_queries(run.trace, 25)
    labels = small_digits.query.labels[small_digits.query.positions(chosen)]
    assert labels[:20].tolist() == list(range(10)) * 2
    assert len(set(chosen)) == 25
    assert len(choose_queries(run.trace, 10_000)) == 40


def test_the_entry_point_is_the_function_the_package_declares() -> None:
    import tomllib

    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"comove": "comove.cli:run"}
    assert isinstance(cli.app, typer.Typer)
    assert os.environ.get("COMOVE_DEBUG") is None
