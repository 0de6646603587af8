"""What scores say of where they come from: the data, the command and the versions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from comove.attribution import CLD, Scores, SubsampledInfluence
from comove.data import Splits
from comove.evaluation import RetrainingBank
from comove.store import versions
from comove.training import Run


@pytest.mark.parametrize("bare", [False, True])
def test_scores_of_a_run_and_of_its_trace_name_the_data_they_were_recorded_on(
    bare: bool, run: Run, small_digits: Splits, tmp_path: Path
) -> None:
    scores = CLD().fit(run.trace if bare else run).attribute()
    assert scores.info["data_fingerprint"] == small_digits.fingerprint
    scores.save(tmp_path / "cld.safetensors")
    assert Scores.load(tmp_path / "cld.safetensors").info["data_fingerprint"] == small_digits.fingerprint


def test_scores_of_a_bank_name_the_data_its_subsets_are_drawn_from(
    small_bank: RetrainingBank, small_digits: Splits
) -> None:
    known = SubsampledInfluence().fit(small_bank).attribute().info["data_fingerprint"]
    assert known == small_bank.data_fingerprint == small_digits.fingerprint


def test_scores_name_the_command_and_the_versions_that_made_them(
    run: Run, small_bank: RetrainingBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/comove", "attribute", "runs/a", "--out", "s"])
    for scores in (CLD().fit(run).attribute(), SubsampledInfluence().fit(small_bank).attribute()):
        assert scores.info["command"] == "comove attribute runs/a --out s"
        assert scores.info["versions"] == versions()
