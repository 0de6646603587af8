"""``--training module:object``: the user's own training function behind lds, brittleness and bank work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from comove import cli
from comove.attribution import Scores
from comove.evaluation import RetrainingBank

MODULE = """
import numpy as np
import comove
from comove import OwnTraining
from sklearn.linear_model import LogisticRegression

data = comove.load_dataset("digits", limit=80, queries=20)
both = (data.train, data.query)
x = {int(i): row for part in both for i, row in zip(part.ids, part.held.numpy().reshape(len(part), -1))}
y = {int(i): label for part in both for i, label in zip(part.ids, part.labels)}

def logistic(train_ids, seed):
    kept = np.random.default_rng(seed).permutation(train_ids)[: len(train_ids) * 9 // 10]
    model = LogisticRegression(max_iter=50, tol=1e-2).fit([x[i] / 16 for i in kept], [y[i] for i in kept])
    probabilities = model.predict_proba([x[i] / 16 for i in data.query.ids])
    classes = {label: place for place, label in enumerate(model.classes_)}
    own = np.array([p[classes[y[i]]] if y[i] in classes else 0 for p, i in zip(probabilities, data.query.ids)])
    return {"loss": -np.log(np.maximum(own, 1e-6)), "predicted": model.classes_[probabilities.argmax(1)]}

mine = OwnTraining(logistic, name="logistic-1")
numbers = OwnTraining(lambda ids, seed: {"loss": logistic(ids, seed)["loss"]}, name="numbers-1")
"""
DATA = ("--dataset", "digits", "--limit", 80, "--held-out", 20, "--epochs", 2, "--runs", 1, "--executor", "serial")


def comove(*words: object) -> Result:
    made = CliRunner().invoke(cli.app, list(map(str, words)))
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_logistic.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_logistic", None)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_lds_holds_methods_to_the_users_own_retraining() -> None:
    words = ("--methods", "cld", "fz:output=loss", "--subsets", 16, "--seeds", 2, "--fit-subsets", 30, "--out", "lds")
    made = comove("lds", *DATA, *words, "--training", "own_logistic:mine")
    assert made.exit_code == 0, made.output
    assert "LDS (loss) of 20 queries, 16 subsets x 2 seeds" in made.output
    bank = RetrainingBank.load("lds/bank")
    assert bank.manifest["training"]["name"] == "logistic-1"
    table = pd.read_csv("lds/lds.csv")
    for name in ("cld", "fz"):
        scores = Scores.load(next(Path("lds/scores").glob(f"{name}*.safetensors")))
        row = table[table["method"] == scores.method].iloc[0]
        assert row["mean"] == pytest.approx(bank.lds(scores, "loss").mean, abs=1e-6)
    results = {file: file.read_bytes() for file in Path("lds/bank/results").iterdir()}
    again = comove(
        "lds", *DATA, "--methods", "cld", "--bank", "lds/bank", "--training", "own_logistic:mine", "--out", "b"
    )
    assert again.exit_code == 0, again.output
    assert {file: file.read_bytes() for file in Path("lds/bank/results").iterdir()} == results


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_brittleness_counts_flips_or_the_drop_of_the_output() -> None:
    words = ("--methods", "cld", "--k", 5, 20, "--queries", 4, "--seeds", 1, "--base-seeds", 2)
    made = comove("brittleness", *DATA, *words, "--training", "own_logistic:mine", "--out", "b", "--quiet")
    assert made.exit_code == 0, made.output
    assert "Predictions flipped (%)" in made.output
    assert json.loads(Path("b/removal-bank/manifest.json").read_text())["training"]["name"] == "logistic-1"
    made = comove("brittleness", *DATA, *words, "--training", "own_logistic:numbers", "--out", "c", "--quiet")
    assert made.exit_code == 0, made.output
    assert "Predictions flipped (%)" not in made.output
    assert "Output lost" in made.output
    assert pd.read_csv("c/brittleness.csv")["margin_drop"].notna().all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_bank_work_trains_with_the_function_that_is_named_again() -> None:
    words = ("--methods", "cld", "--subsets", 4, "--seeds", 1, "--out", "lds", "--quiet")
    assert comove("lds", *DATA, *words, "--training", "own_logistic:mine").exit_code == 0
    whole = RetrainingBank.load("lds/bank").outputs("loss")
    next(Path("lds/bank/results").iterdir()).unlink()
    refused = comove("bank", "work", "lds/bank", "--executor", "serial")
    assert refused.exit_code == 2
    assert "trained by a function of your own, 'logistic-1'" in " ".join(refused.output.split())
    other = comove("bank", "work", "lds/bank", "--executor", "serial", "--training", "own_logistic:numbers")
    assert other.exit_code == 2
    done = comove("bank", "work", "lds/bank", "--executor", "serial", "--training", "own_logistic:mine")
    assert "1 of 4 models were pending; all are trained now." in done.output
    np.testing.assert_array_equal(RetrainingBank.load("lds/bank").outputs("loss"), whole)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_logistic", "must be module:object"),
        ("nothing_here:mine", "cannot be imported: No module named 'nothing_here'"),
        ("own_logistic:yours", "has no attribute 'yours'"),
        ("own_logistic:logistic", "must be an OwnTraining, got function"),
    ],
)
def test_what_is_no_training_function_is_refused(name: str, words: str) -> None:
    made = comove("lds", *DATA, "--training", name, "--out", "lds")
    assert made.exit_code == 2
    assert words in " ".join(made.output.split())
    assert not Path("lds").exists()
