"""A file never runs code: a factory named in a manifest is imported by no command until the user names it again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from comove.attribution import attributors
from comove.cli import app
from comove.coreset import select, selectors
from comove.data import Splits
from comove.data.builtin import load_dataset, reload_splits
from comove.errors import CorruptFileError, InputError
from comove.evaluation import RetrainingBank, brittleness, coreset_curve, lds_benchmark, subsets
from comove.evaluation.alignment import diagnose
from comove.training import Recipe, Run, Training, train

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05)
MODULE = """
from pathlib import Path
from torch import nn

Path({marker!r}).write_text("imported")

def factory(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


class Planted:
    """A run, a bank and the module that made both, which notes when it is imported."""

    def __init__(self, root: Path) -> None:
        self.root, self.marker = root, root / "marker"
        (root / "planted_by_a_stranger.py").write_text(MODULE.format(marker=str(self.marker)))
        self.name = "planted_by_a_stranger:factory"
        self.splits = load_dataset("digits", limit=60, queries=20)
        sys.path.insert(0, str(root))
        train(self.splits, self.name, RECIPE, 0, root / "run")
        plan = subsets.random(0.5, 4)
        bank = RetrainingBank.create(root / "bank", self.splits, Training(self.name, RECIPE), subsets=plan).run()
        for name in ("open", "merged"):
            RetrainingBank.create(root / name, self.splits, Training(self.name, RECIPE), subsets=plan)
        bank.compact(root / "bank.safetensors")

    def forget(self) -> None:
        sys.modules.pop("planted_by_a_stranger", None)
        self.marker.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    before = list(sys.path)
    yield Planted(tmp_path_factory.mktemp("planted"))
    sys.path[:] = before


@pytest.fixture
def planted(made: Planted) -> Iterator[Planted]:
    made.forget()
    yield made
    made.forget()


def call(planted: Planted, *words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Any) -> bool:
    """Whether a command was refused, in one line; nothing else than that or success will do."""
    assert result.exit_code in (0, 2), result.output
    if result.exit_code == 2:
        told = [line for line in result.output.splitlines() if line.startswith("Error:")]
        assert len(told) == 1, result.output
    return bool(result.exit_code == 2)


@pytest.mark.parametrize("method", sorted(attributors()))
def test_attribution_by_any_method_does_not_import_what_a_manifest_names(
    planted: Planted, tmp_path: Path, method: str
) -> None:
    for source in (planted.root / "run", planted.root / "bank"):
        refused(call(planted, "attribute", source, "--method", method, "--queries", 2, "--out", tmp_path / "out"))
    assert not planted.marker.exists()


@pytest.mark.parametrize("method", sorted(selectors()))
def test_coresets_by_any_method_do_not_import_what_a_manifest_names(
    planted: Planted, tmp_path: Path, method: str
) -> None:
    refused(call(planted, "coreset", planted.root / "run", "--method", method, "--out", tmp_path / "c.csv"))
    assert not planted.marker.exists()


COMMANDS: dict[str, tuple[bool, list[object]]] = {
    "curve": (True, ["curve", "run", "--methods", "cld", "--budgets", "0.5", "--seeds", "1"]),
    "diagnose": (True, ["diagnose", "run", "--methods", "cld", "--budget", "0.5"]),
    "clean": (False, ["clean", "run", "--methods", "all"]),
    "stability": (False, ["stability", "run", "run", "--methods", "all", "--budgets", "0.5"]),
    "report": (False, ["report", "run"]),
    "bank work": (True, ["bank", "work", "open"]),
    "bank work in workers": (True, ["bank", "work", "open", "--workers", "2"]),
    "bank status": (False, ["bank", "status", "bank"]),
    "bank status of a file": (False, ["bank", "status", "bank.safetensors"]),
    "bank merge": (False, ["bank", "merge", "merged", "bank"]),
    "bank compact": (False, ["bank", "compact", "bank"]),
    "bank export": (False, ["bank", "export", "bank", "--layout", "trak"]),
    "bank import": (False, ["bank", "import", "bank"]),
    "lds": (True, ["lds", "--limit", "60", "--held-out", "20", "--methods", "cld", "--bank", "bank"]),
    "lds of a file": (
        True,
        ["lds", "--limit", "60", "--held-out", "20", "--methods", "cld", "--bank", "bank.safetensors"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_what_a_manifest_names(planted: Planted, tmp_path: Path, command: str) -> None:
    needs_model, words = COMMANDS[command]
    named = {"run", "bank", "open", "merged", "bank.safetensors"}
    verb = 2 if words[0] == "bank" else 1
    full = [planted.root / str(word) if word in named and i >= verb else word for i, word in enumerate(words)]
    file = ["--out", tmp_path / "b.safetensors"]
    out = {"report": ["--out", tmp_path / "r.html"], "bank compact": file, "bank import": file}
    out["bank export"] = ["--out", tmp_path / "exported"]
    if words[0] != "bank" or command in out:
        full += out.get(command, ["--out", tmp_path / "out"])
    result = call(planted, *full)
    assert refused(result) or not needs_model
    assert not planted.marker.exists()
    if needs_model:
        assert "pass" in result.output or "give that factory again" in result.output


def test_a_factory_that_the_user_names_again_works(planted: Planted, tmp_path: Path) -> None:
    words = [planted.root / "run", "--methods", "cld", "--budgets", "0.5", "--seeds", 1, "--model", planted.name]
    result = call(planted, "curve", *words, "--out", tmp_path / "curve")
    assert result.exit_code == 0, result.output
    assert planted.marker.exists()
    named = ["--model", planted.name, "--out", tmp_path / "diagnose"]
    result = call(planted, "diagnose", *words[:3], "--budget", 0.5, *named)
    assert result.exit_code == 0, result.output
    RetrainingBank.create(
        tmp_path / "b", planted.splits, Training(planted.name, RECIPE), subsets=subsets.random(0.5, 4)
    )
    result = call(planted, "bank", "work", tmp_path / "b", "--workers", 2, "--model", planted.name)
    assert result.exit_code == 0, result.output


def _functions(planted: Planted, out: Path) -> dict[str, Callable[[], object]]:
    run, bank = Run.load(planted.root / "run"), RetrainingBank.load(planted.root / "bank")
    return {
        "coreset_curve": lambda: coreset_curve(run, ["cld"], [0.5], seeds=1, out=out),
        "diagnose": lambda: diagnose(run, ["cld"], 0.5),
        "load_model": run.load_model,
        "bank.run": lambda: RetrainingBank.load(planted.root / "open").run(),
        "lds_benchmark": lambda: lds_benchmark(
            planted.splits, [attributors()["cld"]()], subsets=bank, runs=1, out=out / "lds"
        ),
        "cost": lambda: __import__("comove.evaluation.costs.measured", fromlist=["measured_cost"]).measured_cost(run),
    }


@pytest.mark.parametrize("name", ["coreset_curve", "diagnose", "load_model", "bank.run", "lds_benchmark", "cost"])
def test_no_function_imports_what_a_manifest_names(planted: Planted, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="again"):
        _functions(planted, tmp_path)[name]()
    assert not planted.marker.exists()
    assert list(tmp_path.iterdir()) == []  # and nothing is left behind


def test_a_run_opened_with_its_factory_gives_a_curve(planted: Planted) -> None:
    run = Run.load(planted.root / "run", model=planted.name)
    assert coreset_curve(run, ["cld"], [0.5], seeds=1).points[0].method == "full data"
    assert select("cld", run, budget=0.5).ids.size == 30


@pytest.mark.parametrize(
    "source",
    [
        {"name": "digits", "download": True},
        {"name": "digits", "run": "this"},
        {"name": 7},
        {"seed": 0},
        {"name": "digits", "seed": "0"},
        {"name": "digits", "seed": True},
        {"name": "digits", "seed": -1},
        {"name": "digits", "limit": [1]},
        ["digits"],
        "digits",
    ],
)
def test_what_a_manifest_says_of_its_data_is_believed_only_as_far_as_we_write_it(
    small_digits: Splits, source: object
) -> None:
    with pytest.raises(CorruptFileError, match="damaged note of where its data was found"):
        reload_splits({"name": "digits", "source": source, "fingerprint": small_digits.fingerprint}, "this run")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_data_set_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data")
    with pytest.raises(InputError, match="neither one of"):
        reload_splits({"name": "x", "source": {"name": str(tmp_path / "data")}, "fingerprint": ""}, "this run")


# --- the current folder ----------------------------------------------------------------------------------------------

STRANGERS = ("json", "random", "torch", "numpy", "secrets", "comove")
DRIVER = """
import sys
from comove.jobs import as_executor, run_jobs

def set_up(payload):
    import json, random, secrets, numpy, torch
    return lambda job: (job, json.dumps(job), random.Random(0).random(), torch.zeros(1).item())

if __name__ == "__main__":
    done = {}
    run_jobs([1, 2, 3, 4], set_up, None, done.__setitem__, executor=as_executor("local", workers=2), description="")
    print(sorted(done))
"""


def _strangers(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'marker')!r}, 'a').write({name!r})\n")
    return folder


def test_modules_that_lie_in_the_current_folder_do_not_run_in_workers(tmp_path: Path) -> None:
    here = _strangers(tmp_path / "here", *STRANGERS)
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, tmp_path / "script" / "driver.py"], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[1, 2, 3, 4]\n", done.stderr
    assert not (here / "marker").exists()


def test_the_command_line_finds_a_factory_in_the_current_folder_and_nothing_else_there(tmp_path: Path) -> None:
    splits = load_dataset("digits", limit=60, queries=20)
    here = _strangers(tmp_path / "here", *STRANGERS)
    (here / "mine.py").write_text(MODULE.format(marker=str(tmp_path / "used")))
    sys.path.insert(0, str(here))
    try:
        RetrainingBank.create(tmp_path / "b", splits, Training("mine:factory", RECIPE), subsets=subsets.random(0.5, 6))
    finally:
        sys.path.remove(str(here))
    (tmp_path / "used").unlink()
    start = "import sys; from comove.cli import run; run()"
    words = ["bank", "work", tmp_path / "b", "--model", "mine:factory", "--workers", "2", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", start, *map(str, words)], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "used").exists()
    assert not (here / "marker").exists()
    assert np.isfinite(RetrainingBank.load(tmp_path / "b").logits()).all()


def test_brittleness_takes_the_factory_from_its_caller_alone(planted: Planted, tmp_path: Path) -> None:
    run = Run.load(planted.root / "run")
    found = attributors()["cld"]().fit(run).attribute(planted.splits.query.ids[:2])
    assert not planted.marker.exists()
    told = brittleness(
        found, [3], dataset=planted.splits, out=tmp_path, seeds=1, base_seeds=1, training=Training(planted.name, RECIPE)
    )
    assert told.query_ids.size == 2
