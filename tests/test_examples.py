"""Every example runs, and its losses fall."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comove import Trace

FOLDER = Path(__file__).parents[1] / "examples"
NEEDS = {
    "your_own_loop": (),
    "losses_from_elsewhere": (),
    "with_accelerate": ("accelerate",),
    "with_lightning": ("lightning",),
    "with_transformers": ("transformers", "accelerate"),
}
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
    assert {file.stem for file in FOLDER.glob("*.py")} == {*NEEDS, *ADOPTED}


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


def test_the_page_on_recording_names_every_example() -> None:
    page = (FOLDER.parent / "docs" / "recording.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`examples/(\w+)\.py`", page)) == set(NEEDS)


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
    assert "Trace(" in capsys.readouterr().out
