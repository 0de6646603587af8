"""``comove bank``: what the folder says is what the commands print, and they do what the bank does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from comove import cli
from comove.data import Splits
from comove.evaluation import RetrainingBank, subsets
from comove.store.lock import driver_lock
from comove.training import Engine, Recipe, Training


def comove(*words: object) -> Result:
    made = CliRunner().invoke(cli.app, ["bank", *map(str, words)])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


@pytest.fixture(scope="module")
def planned(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    """Three halves x two seeds and everything x two, of which the first seed's halves are trained; read only."""
    folder = tmp_path_factory.mktemp("planned") / "bank"
    halves, recipe = subsets.random(0.5, 3), Recipe(epochs=1)
    both: list[subsets.SubsetPlan] = [halves, subsets.everything()]
    bank = RetrainingBank.create(folder, small_digits, Training("mlp", recipe), subsets=both, seeds=2)
    first = RetrainingBank.create(folder, small_digits, Training("mlp", recipe), subsets=halves)
    first.run(engine=Engine("one-by-one", 1, "for a test"))
    return bank


@pytest.fixture
def bank(planned: RetrainingBank, tmp_path: Path) -> RetrainingBank:
    """A copy of it."""
    return RetrainingBank.load(shutil.copytree(planned.path, tmp_path / "bank"))


def test_status_prints_what_the_bank_says(bank: RetrainingBank) -> None:
    made = comove("status", bank.path)
    assert made.exit_code == 0
    rows = [line.split() for line in made.stdout.splitlines()]
    assert ["everything", "1", "0", "2"] in rows
    assert ["random-0.5-0", "3", "3", "6"] in rows
    assert "3 of 8 different models" in made.stdout
    assert f"{bank.status().models_a_minute:,.1f} models per minute" in made.stdout
    assert "time left" in made.stdout
    assert "no process" in made.stdout
    assert "damaged" not in made.stdout


def test_status_tells_of_damage_and_of_who_works(bank: RetrainingBank) -> None:
    next((bank.path / "results").iterdir()).write_text("")
    with driver_lock(bank.path):
        made = comove("status", bank.path)
        owner = bank.status().owner
    assert "1 results; comove bank work sets them aside" in made.stdout
    assert str(owner) in made.stdout


def test_work_trains_what_is_pending(bank: RetrainingBank) -> None:
    made = comove("work", bank.path, "--executor", "serial")
    assert made.exit_code == 0
    assert "5 of 8 models were pending; all are trained now." in made.stderr
    assert bank.pending == []
    assert "Nothing to do." in comove("work", bank.path).stderr


def test_work_is_refused_while_another_works(bank: RetrainingBank) -> None:
    with driver_lock(bank.path):
        made = comove("work", bank.path, "--quiet")
    assert made.exit_code == 2
    assert "is being worked on by process" in made.stderr


def test_merge_joins_a_shard(bank: RetrainingBank, planned: RetrainingBank, tmp_path: Path) -> None:
    shard = RetrainingBank.load(shutil.copytree(planned.path, tmp_path / "shard")).run()
    made = comove("merge", bank.path, shard.path, planned.path)
    assert made.exit_code == 0
    assert f"5 results copied from {shard.path}" in made.stderr
    assert f"0 results copied from {planned.path}" in made.stderr
    assert "8 of 8 models trained" in made.stderr
    np.testing.assert_array_equal(bank.logits(), shard.logits())


def test_merge_takes_a_compact_file_and_an_imported_bank_is_another_one(
    bank: RetrainingBank, planned: RetrainingBank, tmp_path: Path
) -> None:
    shard = RetrainingBank.load(shutil.copytree(planned.path, tmp_path / "shard")).run()
    made = comove("merge", bank.path, shard.compact(tmp_path / "published" / "bank.safetensors").parent)
    assert made.exit_code == 0
    assert "5 results copied from" in made.stderr
    assert "8 of 8 models trained" in made.stderr
    np.testing.assert_array_equal(bank.logits(), shard.logits())
    margins = {"margin": bank.outputs("margin")[:, 0]}
    foreign = RetrainingBank.from_arrays(bank.masks, margins, train_ids=bank.train_ids, query_ids=bank.query_ids)
    made = comove("merge", bank.path, foreign.compact(tmp_path / "foreign.safetensors"))
    assert made.exit_code == 2
    assert "fingerprint" in made.stderr


def test_compact_writes_one_file(bank: RetrainingBank, tmp_path: Path) -> None:
    for half in ([], ["--half"]):
        made = comove("compact", bank.path, "--out", tmp_path / "one.safetensors", *half)
        assert made.exit_code == 0
        assert "8 models, 5 of them still pending" in made.stderr
        found = RetrainingBank.load(tmp_path / "one.safetensors").logits()
        kind = np.float16 if half else np.float32
        np.testing.assert_array_equal(found, bank.logits().astype(kind).astype(np.float32))
    assert "3 of 8 different models" in comove("status", tmp_path / "one.safetensors").stdout


def test_what_is_no_bank_is_the_users_mistake(tmp_path: Path) -> None:
    for words in (["status", tmp_path], ["work", tmp_path], ["merge", tmp_path, tmp_path]):
        made = comove(*words)
        assert made.exit_code == 2
        assert "has no manifest.json, but a retraining bank is needed; comove lds --out OUT makes one" in made.stderr


def test_interrupted_work_says_how_to_go_on_and_lets_go(bank: RetrainingBank, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("comove.retraining.training.train_many", interrupt)
        made = comove("work", bank.path, "--quiet")
    assert made.exit_code == 130
    assert "What was finished is kept; run the same command again to go on." in made.stderr
    assert len(bank.pending) == 5
    assert comove("work", bank.path, "--quiet").exit_code == 0
