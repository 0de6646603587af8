"""Appendix E of the paper: every figure of its example recomputed, and what does not follow from its formulas named."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from comove.evaluation import PAPER

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "paper" / "appendix_e.py"


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that holds the printed figures."""
    spec = importlib.util.spec_from_file_location("appendix_e", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "appendix_e", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_exactly_nine_printed_figures_do_not_follow_from_their_formulas(paper: ModuleType) -> None:
    figures = paper.printed_figures()
    assert len(figures) == 53
    assert sorted(figure.where for figure in paper.unreproduced()) == [
        "cal, storage",
        "el2n, compute",
        "forgetting, EL2N, GraNd, 3 k T_late fL",
        "grand, compute",
        "graphcut, storage, full kernel",
        "graphcut, storage, half the kernel",
        "moderate, storage",
        "p, parameters of ResNet-18",
        "slocurv, compute",
    ]


def test_the_four_storage_boxes_are_off_by_the_weights_of_the_proxy(paper: ModuleType) -> None:
    boxes = [figure for figure in paper.unreproduced() if figure.unit == "GB"]
    assert len(boxes) == 4
    for box in boxes:
        assert f"{box.recomputed + 4 * PAPER.p / 1e9:,.3f}" == box.printed


def test_in_one_unit_the_notes_say_what_the_methods_cost(paper: ModuleType) -> None:
    assert "1,527.143, CLD 1,526.725 and DUAL 970.328" in paper.notes()[0]


def test_the_script_prints_what_does_not_follow_and_on_request_all(
    paper: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    paper.main([])
    few = capsys.readouterr().out
    paper.main(["--all"])
    every = capsys.readouterr().out
    assert few.startswith("9 of 53 printed figures do not follow from their formulas\n")
    assert "cld, compute" not in few
    assert "cld, compute" in every
    assert every.count("\n") - few.count("\n") == 53 - 9


def test_what_is_called_negligible_is_shown(paper: ModuleType) -> None:
    assert round(paper.negligible("herding")["herding updates N d k"] / 1e15, 1) == 24.2
    assert [round(value / 1e15, 1) for value in paper.negligible("graphcut").values()] == [204.0, 242.2]
