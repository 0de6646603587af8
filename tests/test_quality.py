"""``benchmarks/quality.py``: the page says what the results say, costs follow their formulas, BM25 its definition."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
OWN = (
    "measuring",
    "attribution",
    "ekfac",
    "peers",
    "quality_cases",
    "quality_methods",
    "quality_findings",
    "quality_page",
)


@contextmanager
def benchmark_modules(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Modules of the benchmarks, which lie beside the package; those imported are gone at the end."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if str(FOLDER) in str(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, Any]]:
    """The modules of the benchmark."""
    with benchmark_modules(OWN) as found:
        yield found


def _row(method: str, kind: str, runs: int, lds: float, cost: float | None) -> dict[str, Any]:
    return {
        "method": method,
        "kind": kind,
        "runs": runs,
        "lds": lds,
        "interval": [lds - 0.02, lds + 0.02],
        "share": lds / 0.8,
        "epochs": 10.0 * runs,
        "formula": "1 + Q/N",
        "seconds": cost,
        "peak memory": None,
        "note": "",
    }


def test_methods_of_losses_are_held_to_the_curve_of_trak_at_their_cost(parts: dict[str, Any]) -> None:
    page = parts["quality_findings"]
    rows = [
        _row("trak", "gradients", 1, 0.2, 5.0),
        _row("trak", "gradients", 3, 0.4, 15.0),
        _row("few", "losses", 1, 0.3, 6.0),
        _row("many", "losses", 3, 0.35, 20.0),
        _row("untimed", "losses", 1, 0.5, None),
    ]
    row, rival = page.nearest_to_trak(rows, "seconds")
    assert row["method"] == "few"
    assert math.isclose(rival, 0.2 + 0.2 * math.log(6 / 5) / math.log(3))  # between TRAK's points
    assert page.nearest_to_trak(rows, "epochs")[0]["method"] == "untimed"
    assert page.nearest_to_trak(rows[2:], "epochs") is None
    assert "few .300 (1 run) at 6.0 s" in page.most_for_its_cost(rows, "seconds")
    assert "many" not in page.most_for_its_cost(rows, "seconds")


def test_a_line_of_the_table_marks_decided_differences_and_leaves_the_unknown_blank(parts: dict[str, Any]) -> None:
    row = _row("a", "gradients", 3, 0.4, None) | {"minus trak": {"mean": -0.1, "interval": [-0.12, -0.08]}}
    assert parts["quality_page"].line(row) == (
        "| a | 3 | .400 [.380, .420] | 50% | **-.100 [-.120, -.080]** | 30 |  |  |"
    )


def test_costs_follow_their_formulas(parts: dict[str, Any]) -> None:
    methods = parts["quality_methods"]
    sizes = methods.Sizes(n=1000, q=200, curvature=9, epochs=30, rows=60, augmented=False)
    case = parts["quality_cases"].CASES["digits"](Path(), Path())
    epochs = {method.name: method.epochs(sizes) for method in methods.methods_of(case)}
    assert math.isclose(epochs["trak"], 1.2)
    assert math.isclose(epochs["cld (paper)"], 31 * 1.2 / 3)
    assert math.isclose(epochs["bayesian-influence"], 16 * 1500 * 32 / 1000 + 16 * 75 * 1.2 / 3)
    assert math.isclose(epochs["gauss-newton"], 1 / 3 + 6 + 1.2)
    assert epochs["random-control"] == 0


def test_bm25_is_its_definition_on_three_documents(parts: dict[str, Any]) -> None:
    documents = [["a", "b", "b"], ["a", "c"], ["c"]]
    found = parts["quality_methods"].bm25(documents, [["b"], ["a", "z"]])
    rarity, norm = math.log(1 + 2.5 / 1.5), 1.2 * (0.25 + 0.75 * 3 / 2)
    np.testing.assert_allclose(found[:, 0], [rarity * 2 * 2.2 / (2 + norm), 0, 0])
    assert found[1, 1] > found[0, 1] > found[2, 1] == 0  # the shorter document weighs more


def test_the_page_is_that_of_the_published_results(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, measuring = parts["quality_page"], parts["measuring"]
    published = page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", tmp_path / "quality.md")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    from comove.store import read_json

    result = read_json(measuring.RESULTS / "quality.json")
    page.write_page(result)
    assert (tmp_path / "quality.md").read_text(encoding="utf-8") == published
    assert {file.name for file in tmp_path.glob("*.png")} == {f"quality-{name}.png" for name in result["data"]}


def test_two_methods_together_are_told_beside_the_better_one(parts: dict[str, Any]) -> None:
    both = _row("a + b", "combined", 3, 0.5, 9.0) | {"minus the better part": {"mean": 0.04, "interval": [0.01, 0.07]}}
    rows = [_row("a", "gradients", 3, 0.46, 5.0), _row("b", "losses", 3, 0.4, 4.0), both]
    findings = parts["quality_findings"]
    said = findings.two_together({"digits": {"rows": rows}, "words": {"rows": rows[:2]}})
    assert said.endswith("digits a + b .500 (3 runs), +.040 [+.010, +.070].")
    assert "words" not in said
    assert findings.two_together({"digits": {"rows": rows[:2]}}) == ""
    assert "(a + b, 3 runs)" in findings.to_the_ceiling({"digits": {"rows": rows}})
    assert "a + b" not in findings.of_one_run({"digits": {"rows": rows}})
