"""``comove report``: from the folders of other commands to one file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from comove import cli
from comove.attribution import CLD, Scores, TracIn
from comove.data import Splits
from comove.training import Run


def comove_(*words: object) -> Any:
    """Run a command in this process."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


def payload(path: Path) -> dict[str, Any]:
    """What the page says."""
    found = re.search(r'id="payload">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


@pytest.fixture(scope="module")
def folder(runs: Sequence[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scores by two methods, beside a file of something else."""
    made = tmp_path_factory.mktemp("scores")
    for method in (CLD(), TracIn()):
        scores = method.fit(runs).attribute()
        scores.save(made / f"{scores.method}.safetensors")
    (made / "trace.safetensors").write_bytes((runs[0].path / "trace" / "examples.safetensors").read_bytes())
    return made


def test_a_folder_of_scores_makes_a_report_that_names_files_and_command(
    runs: Sequence[Run], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "page.html"
    result = comove_("report", runs[0].path, runs[1].path, "--scores", folder, "--top", 4, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert f"Written to {out}" in result.stderr
    content = payload(out)
    assert [method["name"] for method in content["methods"]] == ["cld", "tracin"]
    assert content["shape"] == [2, 40, 2, 4]
    made = {entry["what"]: entry for entry in content["made"]}
    assert made["Scores of tracin"]["source"] == f"{folder.name}/tracin.safetensors"
    command = made["This report"]["command"]
    assert command.startswith(f"comove report {runs[0].path} {runs[1].path} --scores {folder}")
    assert command.endswith("--queries 1000 --top 4")


def test_without_scores_it_shows_cld_of_the_runs(runs: Sequence[Run], tmp_path: Path) -> None:
    result = comove_("report", runs[0].path, "--queries", 7, "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    content = payload(tmp_path / "r.html")
    assert [method["name"] for method in content["methods"]] == ["cld"]
    assert len(content["query"]["ids"]) == 7
    assert set(content["query"]["labels"]) == set(range(7))  # spread over classes


def test_two_files_of_one_method_keep_both(runs: Sequence[Run], tmp_path: Path) -> None:
    for number, run in enumerate(runs):
        CLD().fit(run).attribute().save(tmp_path / str(number) / "cld.safetensors")
    words = ("--scores", tmp_path / "0", tmp_path / "1" / "cld.safetensors", "--out", tmp_path / "r.html")
    result = comove_("report", runs[0].path, *words)
    assert result.exit_code == 0, result.stderr
    assert [method["name"] for method in payload(tmp_path / "r.html")["methods"]] == ["cld", "cld [1/cld]"]


def test_texts_from_a_table_are_shown(runs: Sequence[Run], folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    ids = [*runs[0].trace.train_ids.tolist(), *runs[0].trace.query_ids.tolist()]
    table.write_text("id,text\n" + "".join(f'{id_},"text, ""{id_}"""\n' for id_ in ids))
    result = comove_("report", runs[0].path, "--scores", folder, "--texts", table, "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    content = payload(tmp_path / "r.html")
    assert content["texts"]["query"] == [f'text, "{id_}"' for id_ in content["query"]["ids"]]


def test_folders_of_clean_and_curve_become_pages(runs: Sequence[Run], folder: Path, tmp_path: Path) -> None:
    clean, curve = tmp_path / "clean", tmp_path / "curve"
    assert comove_("clean", runs[0].path, "--methods", "aum", "--out", clean).exit_code == 0
    words = ("--methods", "random", "--budgets", "0.3", "--seeds", 1, "--quiet", "--out", curve)
    assert comove_("curve", runs[0].path, *words).exit_code == 0
    given = ("--curve", curve, "--clean", clean, "--out", tmp_path / "r.html")
    result = comove_("report", runs[0].path, "--scores", folder, *given)
    assert result.exit_code == 0, result.stderr
    content = payload(tmp_path / "r.html")
    assert [page["id"] for page in content["pages"]] == ["curves"]
    assert content["pages"][0]["figures"][0]["made"]["fingerprint"] == runs[0].manifest["dataset"]["fingerprint"]
    listed = content["suspects"]["lists"][0]
    assert listed["method"] == "aum"
    margins = runs[0].trace.read("train", "margin_logit")[1:].mean(0)
    worst = runs[0].trace.train_ids[int(np.argmin(margins))]
    assert content["train"]["ids"][listed["members"][0]] == worst


def refused(result: Any, told: str) -> None:
    """Assert exit code 2 and one clear line."""
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


def test_foreign_and_missing_inputs_are_refused_in_one_line(
    runs: Sequence[Run], folder: Path, digits: Splits, tmp_path: Path
) -> None:
    ids = digits.train.ids[:50] + 5_000
    Scores(np.zeros((50, 1), np.float32), ids, np.array([0]), "cld").save(tmp_path / "other.safetensors")
    run, out = runs[0].path, ("--out", tmp_path / "r.html")
    refused(comove_("report", run, "--scores", tmp_path / "other.safetensors", *out), "other data")
    refused(comove_("report", run, "--scores", tmp_path, *out), "other data")
    refused(comove_("report", run, "--scores", tmp_path / "none.safetensors", *out), "none.safetensors")
    refused(comove_("report", run, "--scores", run / "checkpoints", *out), "holds no scores")
    refused(
        comove_("report", run, "--scores", folder, "--lds", tmp_path, *out),
        "holds no lds.json; give the folder that comove lds",
    )
    refused(comove_("report", run, "--scores", folder, "--clean", tmp_path, *out), "suspects.csv")
    refused(comove_("report", tmp_path / "nowhere", *out), "nowhere")
    assert not (tmp_path / "r.html").exists()
