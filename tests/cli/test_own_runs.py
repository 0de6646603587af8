"""Runs behind code of the user's own on the command line: ``module:object``, ``--model``, ``--task``, ``--dataset``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from comove import cli
from comove.attribution import CLD, Scores, TracIn
from comove.coreset import Coreset
from comove.training import Run

MODULE = """
import torch
from torch import nn
import comove
from comove import ExampleSet, Weights, adopt, tasks

x = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long() + (x[:, 1] > 0)
examples = ExampleSet.from_arrays(x, y, classes=["a", "b", "c"])
data = comove.split(examples, validation=10, query=10)
train, queries = data.train, data.query
numbers = [(row, row[:1] * 2) for row in x]
task = tasks.Regression()

def sets():
    collate = torch.utils.data.default_collate
    return ExampleSet(numbers[:50], collate=collate), ExampleSet(numbers[50:], collate=collate)

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def build_one():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

def factory(num_classes, input_shape):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, num_classes))

def weights(model, loss, inputs, targets, name):
    optimizer, kept = torch.optim.SGD(model.parameters(), lr=0.5), []
    for epoch in range(1, 5):
        loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.save(model.state_dict(), f"{name}{epoch}.pt")
        kept.append(Weights(f"{name}{epoch}.pt", epoch=epoch, lr=0.5))
    return kept

def classes():
    kept = weights(build(), nn.functional.cross_entropy, x[:50], y[:50], "c")
    return adopt(build, kept, train, queries, validation=data.validation, out="runs/classes", device="cpu")

def regression():
    kept = weights(build_one(), nn.functional.mse_loss, x[:50], x[:50, :1] * 2, "n")
    return adopt(build_one, kept, *sets(), task, out="runs/numbers", device="cpu")

def fails():
    raise ZeroDivisionError("no such luck")

def trace():
    return regression().trace

nothing = 3
"""
CLASSES = ("--model", "own_runs:build", "--dataset", "own_runs:data")
NUMBERS = ("--model", "own_runs:build_one", "--dataset", "own_runs:sets", "--task", "own_runs:task")


def comove(*words: object) -> Result:
    made = CliRunner().invoke(cli.app, list(map(str, words)))
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


def done(*words: object) -> str:
    made = comove(*words)
    assert made.exit_code == 0, made.output
    return " ".join(made.output.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture(autouse=True)
def module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (folder / "own_runs.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    import own_runs  # type: ignore[import-not-found]

    own_runs.classes()
    own_runs.regression()
    yield own_runs
    sys.modules.pop("own_runs", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("classes", ("runs/classes", *CLASSES)),
        ("numbers", ("runs/numbers", *NUMBERS)),
        ("numbers", ("own_runs:regression",)),
    ],
)
def test_every_command_that_reads_a_run_opens_one_trained_elsewhere(
    name: str, words: tuple[str, ...], module: Any
) -> None:
    made: Run = module.classes() if name == "classes" else module.regression()
    for method, expected in (("tracin", TracIn()), ("cld", CLD())):
        done("attribute", *words, "--method", method, "--queries", 4, "--out", "scores")
        scores = Scores.load(f"scores/{method}.safetensors")
        whole = expected.fit(made).attribute(scores.query_ids)
        np.testing.assert_array_equal(scores.values, whole.values)
    done("coreset", *words, "--method", "cld", "--budget", "10", "--out", "kept.safetensors")
    assert len(Coreset.load("kept.safetensors")) == 10
    assert "CLD after its first epochs" in done("stability", *words, "--epochs", 3)
    done("clean", *words, "--methods", "loss", "tracin", "--top", 3, "--out", "clean")
    assert Path("clean/suspicion.csv").exists()
    done("report", *words, "--scores", "scores", "--out", "report.html")
    assert "tracin" in Path("report.html").read_text()
    printed = done("cost", *words)
    assert "parameters 31" in printed or "parameters 43" in printed
    assert "seconds not known" in printed
    done("diagnose", *words, "--methods", "cld", "random", "--budget", "20%", "--checkpoints", 2, "--out", "diagnosis")
    assert Path("diagnosis/diagnosis.png").exists()


def test_without_its_model_the_losses_alone_are_read_and_said_to_be() -> None:
    printed = done("attribute", "runs/numbers", "--queries", 3, "--out", "scores")
    assert "was trained elsewhere; its losses are read" in printed
    refused = comove("attribute", "runs/numbers", "--method", "tracin", "--out", "scores")
    assert refused.exit_code == 2
    assert "needs checkpoints" in " ".join(refused.output.split())


def test_the_losses_are_those_of_the_trace_that_was_passed(module: Any) -> None:
    module.regression().trace.save("recorded")
    kept = [module.Weights(f"n{epoch}.pt", epoch=epoch, lr=0.5) for epoch in range(1, 5)]
    made = (module.build_one, kept, *module.sets(), module.task)
    module.adopt(*made, trace="recorded", out="runs/given", device="cpu")
    assert "its losses are read" in done("attribute", "runs/given", "--queries", 3, "--out", "scores")
    told = done("clean", "runs/classes", "--methods", "loss", "--top", 3, "--out", "clean")
    assert "held-out ones." in told
    assert "--folds" not in told  # comove did not train it
    module.adopt(*made, trace=module.comove.Trace.load("recorded"), out="runs/moved", device="cpu")
    Path("recorded").rename("elsewhere")
    refused = comove("attribute", "runs/moved", "--queries", 3, "--out", "scores")
    assert refused.exit_code == 2
    assert "opening it takes --model" in refused.output


def test_a_trace_is_a_run_of_losses_alone() -> None:
    assert "cld" in done("attribute", "own_runs:trace", "--queries", 3, "--out", "scores")


def test_a_run_of_ones_own_model_and_data_is_trained_and_opened_again() -> None:
    data = ("--model", "own_runs:factory", "--dataset", "own_runs:data")
    done("train", *data, "--epochs", 3, "--task", "comove.tasks:Classification", "--out", "runs/trained", "--quiet")
    refused = comove("attribute", "runs/trained", "--method", "tracin", "--out", "scores")
    assert refused.exit_code == 2
    assert "pass it again" in refused.output
    done("attribute", "runs/trained", *data, "--method", "tracin", "--queries", 3, "--out", "scores")
    done("cost", "runs/trained", *data)
    other = comove("coreset", "runs/trained", "--dataset", "own_runs:examples", "--out", "kept.csv")
    assert other.exit_code == 2
    assert "was made with another data set" in " ".join(other.output.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nowhere:run",), "The run nowhere:run cannot be imported: No module named 'nowhere'"),
        (("own_runs:run",), "has no attribute 'run'"),
        (("own_runs:nothing",), "must be a Run, a Trace or a function that returns one, got int"),
        (("own_runs:fails",), "The run own_runs:fails fails when called. ZeroDivisionError: no such luck"),
        (("own_runs:factory",), "fails when called. TypeError"),
        (("own_runs:regression", "--model", "own_runs:build"), "makes the run itself: leave out --model"),
        (("broken:run",), "The run broken:run fails on import. SyntaxError"),
        (("runs/numbers", "--model", "own_runs:build_one"), "opening it takes --model mine:build --dataset mine:data"),
        (("runs/numbers", *NUMBERS[:4]), "made with the task Regression(), not Classification()"),
        (("runs/numbers", *NUMBERS[:4], "--task", "own_runs:x"), "--task own_runs:x must be a Task"),
        (("runs/numbers", *NUMBERS[2:], "--model", "own_runs:fails"), "--model own_runs:fails fails when called"),
        (("runs/numbers", *NUMBERS[2:], "--model", "own_runs:x"), "must be a torch.nn.Module"),
        (("runs/numbers", *NUMBERS[2:], "--model", "build"), "--model must be module:object"),
        (
            ("runs/numbers", *NUMBERS[:2], *NUMBERS[4:], "--dataset", "own_runs:x"),
            "The data of a run are Splits, (train, queries)",
        ),
    ],
)
def test_what_cannot_be_opened_is_refused_in_a_line(words: tuple[str, ...], expected: str) -> None:
    Path("broken.py").write_text("def run(:")
    made = comove("attribute", *words, "--out", "refused")
    assert made.exit_code == 2, made.output
    assert expected in " ".join(made.output.split())
    assert not Path("refused").exists()


def test_comoves_own_loop_trains_classifiers() -> None:
    data = ("--model", "own_runs:factory", "--dataset", "own_runs:data", "--quiet")
    for words in (("train", "--out", "t"), ("lds", "--out", "t"), ("brittleness", "--k", 5, "--out", "t")):
        made = comove(*words, *data, "--task", "own_runs:task")
        assert made.exit_code == 2
        assert "comove's own loop trains classifiers, not Regression()" in " ".join(made.output.split())
    made = comove("train", *data, "--limit", 20, "--out", "t")
    assert "is split by your own code: leave out --limit" in " ".join(made.output.split())
