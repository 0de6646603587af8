"""kill -9 at any moment of a bank's run: started again, it ends with exactly the uninterrupted result."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comove.evaluation import RetrainingBank
from comove.store import read_checked

KILLS = 10

MAKE = """
import sys
from comove.data.builtin import load_dataset
from comove.evaluation import RetrainingBank, subsets
from comove.training import Engine, Recipe, Training

def make(folder, seeds):
    bank = RetrainingBank.create(
        folder, load_dataset("digits", limit=200, queries=40),
        Training("mlp", Recipe(epochs=2, batch_size=32, lr=0.05)),
        subsets=[subsets.random(0.5, 3), subsets.everything()], seeds=seeds, keep_weights=True,
        engine=Engine("stacked", 2, "for a test"),
    )
    return bank.run(executor="serial")
"""

RUN = MAKE + "\nmake(sys.argv[1], 2)\n"

KILLED_AT = (
    MAKE
    + """
import os

counted = 0
def count(event, arguments):
    global counted
    if event not in ("open", "os.rename", "os.remove", "os.mkdir"):
        return
    if any(isinstance(part, (str, bytes)) and sys.argv[1] in os.fsdecode(part) for part in arguments):
        counted += 1
        if counted == int(sys.argv[2]):
            os.kill(os.getpid(), 9)

sys.addaudithook(count)
make(sys.argv[1], 1)
print(counted)
"""
)


def content(folder: Path) -> dict[str, bytes]:
    """Every array of every file of a bank, to the bit; and the manifest."""
    found: dict[str, bytes] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        arrays = (
            read_checked(file)[0] if file.parent.name != "weights" else {"": np.frombuffer(file.read_bytes(), "u1")}
        )
        found |= {f"{file.relative_to(folder)} {name}": array.tobytes() for name, array in arrays.items()}
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for own in ("command", "checksum"):  # of the process that made it
        manifest.pop(own)
    return found | {"manifest.json": json.dumps(manifest).encode()}


def check_ended_like(folder: Path, expected: dict[str, bytes]) -> None:
    assert content(folder) == expected
    strangers = [
        file.name
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in (".safetensors", ".json", ".lock")
    ]
    assert strangers == []  # no temporary, nothing damaged
    assert RetrainingBank.load(folder).pending == []


@pytest.fixture
def expected(warm: Any, tmp_path: Path) -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    warm.run(RUN, tmp_path / "whole")
    return content(tmp_path / "whole")


def test_kills_at_random_moments_lose_nothing(warm: Any, expected: dict[str, bytes], tmp_path: Path) -> None:
    started = time.monotonic()
    warm.run(RUN, tmp_path / "timed")
    whole = time.monotonic() - started
    moments, kills, banks = random.Random(0), 0, 0
    interrupted = set()
    while kills < KILLS:
        folder = tmp_path / f"killed-{banks}"
        code = None
        while code != 0:
            warm.start(RUN, folder)
            time.sleep(moments.uniform(0, 0.8 * whole))
            code = warm.kill()
            assert code in (0, -9), warm.errors.read_text()
            interrupted.add(len(list(folder.glob("results/*.safetensors"))))
            kills += code == -9
        check_ended_like(folder, expected)
        banks += 1
    assert len(interrupted) > 2  # the moments were spread over the run


def test_a_kill_before_any_change_to_the_folder_loses_nothing(warm: Any, tmp_path: Path) -> None:
    changes = int(warm.run(KILLED_AT, tmp_path / "whole", 0))
    expected = content(tmp_path / "whole")
    assert changes > 20
    for number in range(1, changes + 1):
        folder = tmp_path / f"killed-{number}"
        warm.start(KILLED_AT, folder, number)
        assert warm.wait() == -9
        warm.run(KILLED_AT, folder, 0)
        check_ended_like(folder, expected)
