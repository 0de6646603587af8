"""``comove clean``: the files it writes are what Python says, and it tells what is missing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.fork_server import STRICT, Warm
from typer.testing import CliRunner, Result

from comove import cli
from comove.evaluation.label_errors.detection import detect
from comove.evaluation.label_errors.ranking import flips_of, rank_labels
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.report import read_suspects
from comove.training import Run


def comove(*words: object) -> Result:
    made = CliRunner().invoke(cli.app, list(map(str, words)))
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 200 digits, 30 of them flipped."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    words = ("--limit", 200, "--held-out", 40, "--epochs", 6, "--flip-labels", 0.15, "--quiet", "--out", folder)
    assert comove("train", *words).exit_code == 0
    return folder


def test_what_is_written_is_what_python_says(noisy: Path, tmp_path: Path) -> None:
    made = comove("clean", noisy, "--methods", "aum", "cld", "loss", "--top", 12, "--out", tmp_path)
    assert made.exit_code == 0, made.stderr
    found = rank_labels(Run.load(noisy), ["aum", "cld", "loss"])
    frame = pd.read_csv(tmp_path / "suspicion.csv", dtype={"class": str, "suggested": str})
    pd.testing.assert_frame_equal(frame, found.to_pandas("aum"), check_dtype=False)
    kept = Suspicion.load(tmp_path / "suspicion.safetensors")
    np.testing.assert_array_equal(kept.values["cld"], found.values["cld"])
    wrong = flips_of([Run.load(noisy)])
    expected = detect(found, wrong)
    read = pd.read_csv(tmp_path / "detection.csv")
    np.testing.assert_allclose(read["average_precision"], expected.to_pandas()["average_precision"])
    assert len(pd.read_csv(tmp_path / "curves.csv")) == 600
    assert "30 of 200 labels were flipped on purpose" in made.stdout
    assert f"{expected.average_precision('aum').value:.3f}" in made.stdout
    for id_ in found.most(12, "aum").tolist():
        assert f"\n{id_} " in made.stdout
    suspects = pd.read_csv(tmp_path / "suspects.csv")
    assert suspects.groupby("method", sort=False)["id"].first().tolist() == [found.most(1, m)[0] for m in found.methods]
    assert wrong is not None
    shown = np.isin(found.most(12, "aum"), wrong).sum()
    assert suspects.loc[suspects["method"] == "aum", "known_wrong"].sum() == shown > 0
    assert len(suspects) == 3 * 12
    assert (tmp_path / "suspicious.png").read_bytes()[:4] == (tmp_path / "detection.png").read_bytes()[:4] == b"\x89PNG"


def test_the_report_knows_which_data_the_suspects_are_of(noisy: Path, tmp_path: Path) -> None:
    assert comove("clean", noisy, "--methods", "loss", "--out", tmp_path / "clean").exit_code == 0
    made = read_suspects(tmp_path / "clean").provenance
    assert made.fingerprint == Run.load(noisy).manifest["dataset"]["fingerprint"]
    assert made.command
    assert "torch" in made.versions
    other = tmp_path / "other"
    words = ("--limit", 200, "--held-out", 40, "--epochs", 2, "--quiet", "--out", other)
    assert comove("train", *words).exit_code == 0
    refused = comove("report", other, "--clean", tmp_path / "clean", "--out", tmp_path / "report.html")
    assert refused.exit_code == 2
    assert "was made with another data set" in refused.stderr
    assert not (tmp_path / "report.html").exists()


def test_by_orders_the_tables(noisy: Path, tmp_path: Path) -> None:
    made = comove("clean", noisy, "--methods", "cld", "loss", "--by", "loss", "--out", tmp_path)
    assert made.exit_code == 0, made.stderr
    assert pd.read_csv(tmp_path / "suspicion.csv")["loss_rank"].tolist() == list(range(1, 201))
    assert "by loss" in made.stdout


def test_a_bare_trace_is_ranked_by_what_it_has_and_the_rest_is_named(noisy: Path, tmp_path: Path) -> None:
    made = comove("clean", noisy / "trace", "--methods", "all", "--out", tmp_path)
    assert made.exit_code == 0, made.stderr
    names = set(pd.read_csv(tmp_path / "suspicion.csv").columns)
    assert {"cld", "aum", "forgetting", "loss"} <= names
    assert not {"tracin", "trak"} & names
    assert "tracin is left out" in made.stderr
    assert not (tmp_path / "detection.csv").exists()
    assert not (tmp_path / "suspicious.png").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--methods", "ama"), "Did you mean 'aum'"),
        (("--methods", "cld", "--by", "aum"), "Unknown method here 'aum'"),
        (("--methods", "cld", "--top", 201), "from 1 to 200, got 201"),
    ],
)
def test_bad_options_end_with_2_and_write_nothing(
    noisy: Path, tmp_path: Path, words: tuple[object, ...], told: str
) -> None:
    made = comove("clean", noisy, *words, "--out", tmp_path / "out")
    assert made.exit_code == 2
    assert told in made.stderr
    assert not (tmp_path / "out").exists()


def test_a_method_named_that_a_trace_has_nothing_for_ends_with_2(noisy: Path, tmp_path: Path) -> None:
    made = comove("clean", noisy / "trace", "--methods", "tracin", "--out", tmp_path / "out")
    assert made.exit_code == 2
    assert "tracin needs checkpoints" in made.stderr


def test_the_snippets_of_the_page_run(warm: Warm, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/cleaning.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
    accuracies = ast.literal_eval(warm.run(STRICT + code, cwd=tmp_path))
    assert len(accuracies) == 3
    assert min(accuracies) > 0.85


def test_figures_and_tables_of_another_call_do_not_stay(noisy: Path, tmp_path: Path) -> None:
    assert comove("clean", noisy, "--methods", "loss", "--out", tmp_path).exit_code == 0
    made = comove("clean", noisy / "trace", "--methods", "loss", "--out", tmp_path)  # knows neither data nor flips
    assert made.exit_code == 0, made.stderr
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == ["suspects.csv", "suspicion.csv", "suspicion.safetensors"]
    assert made.stderr.rstrip().endswith(": suspicion.csv, suspicion.safetensors, suspects.csv")
