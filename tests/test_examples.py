"""Every example runs, and its losses fall."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comove import RetrainingBank, Trace
from tests.retraining.test_kill import content

FOLDER = Path(__file__).parents[1] / "examples"
NEEDS = {
    "boosting_elsewhere": (),
    "your_own_loop": (),
    "losses_from_elsewhere": (),
    "with_accelerate": ("accelerate",),
    "with_lightning": ("lightning",),
    "with_transformers": ("transformers", "accelerate"),
}
TEXTS = {"explain_movie_reviews": "rt-polarity.pos", "explain_a_completion": "tinyshakespeare.txt"}
"""Examples on texts, and a file that they read."""
WITHOUT_A_TRACE = ("own_scheduler", "with_other_libraries")
"""The last is run by tests/attribution/test_other_libraries.py."""
AT_MOST_40_LINES = ("boosting_elsewhere", "own_scheduler")
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
    if importlib.util.find_spec("lightning")
    else pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated.*"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loaded(name: str) -> Any:
    """Import an example under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"comove_example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the packages it imports
        spec.loader.exec_module(module)
    return module


ADOPTED = {"adopt_a_vision_model": (), "adopt_a_language_model": ("transformers",), "adopt_several_labels": ()}
"""Examples of models that were trained without a recorder."""


def test_every_example_is_run_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.py")} == {*NEEDS, *ADOPTED, *TEXTS, *WITHOUT_A_TRACE}


@pytest.mark.parametrize("name", ADOPTED)
def test_an_adopted_model_is_explained_in_few_lines(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ADOPTED[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    made = loaded(name).main(tmp_path)
    for run in made if isinstance(made, list) else [made]:
        mean = run.trace.train_losses.mean(1)
        assert mean[-1] < mean[0]
    printed = capsys.readouterr().out
    assert ("grad-dot" if "several" in name else "tracin") in printed
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 40


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_explained_in_few_lines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    folders = os.environ.get("COMOVE_DATA", ""), FOLDER.parents[1] / "shared" / "data"
    data = next((folder for folder in folders if Path(folder, "text", TEXTS[name]).exists()), None)
    if data is None:
        pytest.skip("Texts were not found: set COMOVE_DATA to the folder with text/")
    monkeypatch.setenv("COMOVE_DATA", str(data))
    run = loaded(name).main(tmp_path)
    assert run.trace.train_losses[-1].mean() < 0.9 * run.trace.train_losses[0].mean()
    printed = capsys.readouterr().out
    if name == "explain_movie_reviews":
        assert "Coreset(cld: 160 of 800" in printed
        chance, found = re.search(r"by chance ([\d.]+)", printed), re.search(r"loss +[\d.]+ \[([\d.]+),", printed)
        assert chance is not None
        assert found is not None
        assert float(found[1]) > float(chance[1])  # the interval of the wrong labels found lies above chance
    else:
        assert len(re.findall(r"LDS\(\S+ -?[\d.]+ .*8 queries, 20 subsets x 1 seed, measure", printed)) == 3
        tracin = re.search(r"LDS\(tracin: ([\d.-]+) \[", printed)
        assert tracin is not None
        assert float(tracin[1]) > 0
        assert "64 train x 152 queries" in printed  # a column a token
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 40


def test_the_pages_on_recording_and_on_ones_own_name_every_example() -> None:
    pages = [(FOLDER.parent / "docs" / page).read_text(encoding="utf-8") for page in ("recording.md", "own.md")]
    assert set(re.findall(r"`examples/(\w+)\.py`", "".join(pages))) == {*NEEDS, *WITHOUT_A_TRACE, *ADOPTED, *TEXTS}


@pytest.mark.parametrize("name", [*AT_MOST_40_LINES, "with_other_libraries"])
def test_an_example_of_ones_own_training_is_short(name: str) -> None:
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 40


def test_a_scheduler_of_ones_own_is_killed_and_goes_on(tmp_path: Path) -> None:
    """Killed with its workers when so many results are there, time and again, it ends with the same bits."""
    example = loaded("own_scheduler")
    example.main(tmp_path / "whole")
    folder, command = tmp_path / "killed", [sys.executable, str(FOLDER / "own_scheduler.py"), str(tmp_path / "killed")]
    for results in (1, 9, 23, 40):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        while len(list(folder.glob("results/*.safetensors"))) < results and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert 0 < len(RetrainingBank.load(folder).pending) < 50
    bank = example.main(folder)
    assert bank.pending == []
    assert content(folder) == content(tmp_path / "whole")
    np.testing.assert_array_equal(bank.outputs()[3, 0], example.ridge(bank.train_ids[bank.masks[3]], 0)["loss"])


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_its_losses_fall(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    result = loaded(name).main(tmp_path)
    traces = result if isinstance(result, tuple) else (result or Trace.load(tmp_path / "trace"),)
    for trace in traces:
        mean = trace.train_losses.mean(1)
        assert mean[-1] < 0.9 * mean[0]
        assert np.isfinite(trace.query_losses).all()
    printed = capsys.readouterr().out
    assert "Trace(" in printed
    if name == "boosting_elsewhere":  # better than chance: the interval lies above 0
        found = re.search(r"LDS\(cld: ([\d.-]+) \[([\d.-]+), ", printed)
        assert found is not None
        assert float(found[2]) > 0
