"""``comove attribute --blocks`` writes what the command writes without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from comove import Scores, cli
from comove.training import Run


def attribute(*words: object) -> tuple[int, str]:
    made = CliRunner().invoke(cli.app, ["attribute", *map(str, words)])
    return made.exit_code, made.stderr


def test_in_blocks_or_not_the_same_scores_and_table_are_written(runs: tuple[Run, ...], tmp_path: Path) -> None:
    words = [*(run.path for run in runs), "--queries", 6, "--top", 3, "--method", "cld:common_mode=remove"]
    assert attribute(*words, "--out", tmp_path / "whole")[0] == 0
    code, told = attribute(*words, "--out", tmp_path / "blocks", "--blocks", "serial")
    assert code == 0, told
    (whole,), (blocks,) = ((tmp_path / name).glob("*.safetensors") for name in ("whole", "blocks"))
    assert whole.name == blocks.name
    np.testing.assert_array_equal(Scores.load(blocks).values, Scores.load(whole).values)
    top = [(tmp_path / name / f"{whole.stem}-top.csv").read_bytes() for name in ("whole", "blocks")]
    assert top[0] == top[1]


def test_other_methods_and_executors_are_refused(runs: tuple[Run, ...], tmp_path: Path) -> None:
    code, told = attribute(runs[0].path, "--out", tmp_path, "--method", "random-control", "--blocks", "serial")
    assert code == 2
    assert "Only cld computes scores block by block" in told
    code, told = attribute(runs[0].path, "--out", tmp_path, "--blocks", "cereal")
    assert code == 2
    assert "must be serial, local or ray, not 'cereal'. Did you mean 'serial'" in told
