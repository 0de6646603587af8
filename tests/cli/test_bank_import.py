"""``comove bank import`` and ``export``, and ``comove lds --scores``: ground truth and scores of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from comove import cli
from comove.evaluation import RetrainingBank, import_bank, linear_datamodeling_score

RNG = np.random.default_rng(1)
MASKS = RNG.permuted(np.tile(np.arange(16) < 8, (20, 1)), axis=1)
SCORES = RNG.normal(size=(16, 6))
MARGINS = (MASKS @ SCORES + RNG.normal(size=(20, 6))).astype(np.float32)


def comove(*words: object) -> Result:
    made = CliRunner().invoke(cli.app, list(map(str, words)))
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


def refused(made: Result, told: str) -> None:
    errors = [line for line in made.output.splitlines() if line.startswith("Error:")]
    assert made.exit_code == 2, made.output
    assert len(errors) == 1
    assert told in " ".join(made.output.split())


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """The file of a bank that ``comove bank import`` wrote."""
    (tmp_path / "trak").mkdir()
    np.save(tmp_path / "trak/mask.npy", MASKS)
    np.save(tmp_path / "trak/val_margins.npy", MARGINS)
    made = comove("bank", "import", tmp_path / "trak", "--out", tmp_path / "b.safetensors")
    assert made.exit_code == 0, made.output
    assert "20 models of 20 subsets of 16 training examples, 6 queries: margin" in made.output
    return tmp_path / "b.safetensors"


def test_what_is_imported_is_a_bank_and_is_exported_again(bank: Path, tmp_path: Path) -> None:
    assert np.array_equal(RetrainingBank.load(bank).outputs()[:, 0], MARGINS)
    assert "imported" in comove("bank", "status", bank).stdout
    made = comove("bank", "export", bank, "--layout", "dattri", "--out", tmp_path / "d")
    assert made.exit_code == 0, made.output
    assert "indices_lds.pt" in made.output
    assert np.array_equal(import_bank(tmp_path / "d").masks, MASKS)
    made = comove("bank", "import", tmp_path / "d", "--lower", "target", "--first", 9, "--half", "--out", bank)
    assert made.exit_code == 0, made.output
    again = RetrainingBank.load(bank)
    assert (len(again.masks), again.higher_is_better("target")) == (9, False)
    refused(comove("bank", "import", tmp_path / "d", "--layout", "trak", "--out", bank), "mask.npy does not exist")
    refused(comove("bank", "import", tmp_path / "d", "--lower", "lost", "--out", bank), "there are target")
    refused(comove("bank", "import", tmp_path / "none", "--out", bank), "does not exist")
    refused(comove("bank", "export", bank, "--layout", "dattri", "--out", tmp_path / "d"), "holds something already")


def test_lds_holds_scores_of_others_to_it(bank: Path, tmp_path: Path) -> None:
    worse = SCORES + 3 * RNG.normal(size=SCORES.shape)
    np.save(tmp_path / "good.npy", SCORES.T)
    np.save(tmp_path / "worse.npy", worse.T)
    files = ("--scores", tmp_path / "good.npy", tmp_path / "worse.npy", "--orientation", "query,train")
    made = comove("lds", "--bank", bank, *files, "--scores-name", "a", "b", "--out", tmp_path / "lds")
    assert made.exit_code == 0, made.output
    results = json.loads((tmp_path / "lds/lds.json").read_text())["results"]
    assert [row["method"] for row in results] == ["a", "b"]
    for row, scores in zip(results, (SCORES, worse), strict=True):
        expected = linear_datamodeling_score(scores.astype(np.float32), MASKS, MARGINS)
        np.testing.assert_allclose(row["per_query"], expected.per_query, atol=1e-12)
    assert (tmp_path / "lds/lds.png").stat().st_size > 1000
    assert "runs a method" not in made.stdout


def test_the_folder_of_a_published_bank_stands_for_the_bank(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    bank.rename(tmp_path / "published/bank.safetensors")
    np.save(tmp_path / "s.npy", SCORES)
    given = ("--bank", tmp_path / "published", "--scores", tmp_path / "s.npy")
    made = comove("lds", *given, "--out", tmp_path / "lds")
    assert made.exit_code == 0, made.output
    (row,) = json.loads((tmp_path / "lds/lds.json").read_text())["results"]
    expected = linear_datamodeling_score(SCORES.astype(np.float32), MASKS, MARGINS).per_query
    np.testing.assert_allclose(row["per_query"], expected, atol=1e-12)
    refused(comove("bank", "work", tmp_path / "published"), "to be read only")
    (tmp_path / "published/bank.safetensors").unlink()
    refused(comove("lds", *given, "--out", tmp_path / "again"), "has no manifest.json")


def test_scores_in_a_folder_with_ids_in_files_are_matched(bank: Path, tmp_path: Path) -> None:
    order = RNG.permutation(16)
    (tmp_path / "s").mkdir()
    np.save(tmp_path / "s/one.npy", -SCORES[order])
    np.save(tmp_path / "ids.npy", order)
    words = ("--positive", "hurts", "--train-ids", tmp_path / "ids.npy", "--out", tmp_path / "lds")
    made = comove("lds", "--bank", bank, "--scores", tmp_path / "s", *words)
    assert made.exit_code == 0, made.output
    (row,) = json.loads((tmp_path / "lds/lds.json").read_text())["results"]
    expected = linear_datamodeling_score(SCORES.astype(np.float32), MASKS, MARGINS).per_query
    np.testing.assert_allclose(row["per_query"], expected, atol=1e-12)
    assert row["method"] == "one"


def test_what_scores_cannot_go_with_is_refused(bank: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", SCORES)
    out = ("--scores", tmp_path / "s.npy", "--out", tmp_path / "lds")
    refused(comove("lds", *out), "name it with --bank")
    refused(comove("lds", "--bank", bank, *out, "--methods", "cld"), "leave out --methods")
    refused(comove("lds", "--bank", bank, *out, "--subsets", 9), "leave out --subsets")
    refused(comove("lds", "--bank", bank, *out, "--scores-name", "a", "b"), "must name each of 1 files")
    refused(comove("lds", "--bank", bank, *out, "--orientation", "query,train"), "is the orientation the other one")
    refused(comove("lds", "--bank", bank, *out, "--output", "loss"), "no output 'loss'")
    refused(comove("lds", "--bank", bank, "--scores-name", "a", "--out", tmp_path / "lds"), "--scores")
    assert not (tmp_path / "lds").exists()
