"""``benchmarks/coreset_noise.py``: intervals, verdicts and crossings by hand, and the page is that of the results."""

from __future__ import annotations

import doctest
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).parents[1] / "benchmarks"
OWN = ("measuring", "coreset_curves", "coreset_noise_summary", "coreset_noise_page", "coreset_noise")


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, Any]]:
    """The modules of the benchmark, which lies beside the package."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in OWN}
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(OWN) - before:
            sys.modules.pop(name, None)


def test_an_interval_is_students(parts: dict[str, Any]) -> None:
    summary = parts["coreset_noise_summary"]
    values = np.random.default_rng(0).normal(size=6)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = summary.interval(values)
    assert found.low == pytest.approx(float(expected.low))
    assert found.high == pytest.approx(float(expected.high))
    assert found[:1] + found[3:] == (float(values.mean()), 6)
    assert summary.interval([0.5]) == (0.5, None, None, 1)
    assert doctest.testmod(summary).failed == 0


def test_a_method_crosses_where_it_is_decidedly_better_from_there_on(parts: dict[str, Any]) -> None:
    summary = parts["coreset_noise_summary"]
    better, worse, same = [0.1, 0.11, 0.12], [-0.1, -0.11, -0.12], [-0.1, 0.0, 0.11]
    assert [summary.verdict(values) for values in (better, worse, same, [0.3])] == ["+", "-", "0", "?"]
    assert summary.crossing({0.0: worse, 0.1: same, 0.4: better, 0.2: better}) == 0.2
    assert summary.crossing({0.0: better, 0.2: same, 0.4: better}) == 0.4
    assert summary.crossing({0.0: better, 0.4: same}) is None
    assert summary.crossing({0.0: better, 0.4: [0.3]}) is None  # one seed decides nothing


def _cell(noise: float, seed: int, **accuracy: float) -> dict[str, Any]:
    rows = [{"method": name, "share": 0.3, "accuracy": value, "ids": [0, 1]} for name, value in accuracy.items()]
    return {"noise": noise, "seed": seed, "full data": 0.9, "wrong": [], "rows": rows, "CPU seconds": 1.0}


def test_differences_are_paired_by_seed_and_what_lacks_a_partner_is_left_out(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = parts["coreset_noise_summary"]
    monkeypatch.setattr(summary, "_kept", lambda cells, folder: [])
    cells = [
        _cell(0.0, 0, cld=0.5, random=0.6),
        _cell(0.0, 1, cld=0.7, random=0.8),
        _cell(0.4, 0, cld=0.5, random=0.4),
        _cell(0.4, 1, cld=0.9, random=0.8),
        _cell(0.4, 2, cld=0.1),
    ]
    found = summary.summary(cells, Path())
    assert found["finished"] == {"0.0": 2, "0.4": 3}
    rows = {row["noise"]: row for row in found["differences"] if (row["method"], row["less"]) == ("cld", "random")}
    assert [rows[noise]["mean"] for noise in (0.0, 0.4)] == pytest.approx([-0.1, 0.1])
    assert [(rows[noise]["seeds"], rows[noise]["verdict"]) for noise in (0.0, 0.4)] == [(2, "-"), (2, "+")]
    (crossing,) = (row for row in found["crossings"] if row["over"] == "random")
    assert crossing == {"method": "cld", "over": "random", "share": 0.3, "from": 0.4}
    three = next(row for row in found["accuracy"] if row["noise"] == 0.4 and row["method"] == "cld")
    assert (three["mean"], three["seeds"]) == (pytest.approx(0.5), 3)


def test_the_measures_of_what_is_kept_are_their_definitions(parts: dict[str, Any]) -> None:
    summary = parts["coreset_noise_summary"]
    points, labels = np.array([[0.0, 0], [3, 4], [6, 8], [0, 1]]), np.array([0, 0, 1, 1])
    kept = np.array([True, False, True, False])
    known = {"mean loss": summary.mid_ranks(np.array([4.0, 1, 2, 3]))}
    found = summary.described(kept, known, points, labels)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    typical = np.sqrt((distances**2).mean())  # root of the mean squared distance of two drawn with replacement
    assert found["distance to the nearest kept"] == pytest.approx((5 + 1) / 2 / typical)
    assert found["mean loss"] == pytest.approx((0.875 + 0.375) / 2)
    assert found["spread of the loss"] == pytest.approx(0.25)
    assert found["balance"] == 1.0
    assert summary.described(np.ones(4, bool), known, points, labels)["distance to the nearest kept"] == 0


def test_every_cell_has_the_first_shares_before_any_has_the_others(parts: dict[str, Any]) -> None:
    study = parts["coreset_noise"].STUDIES["digits"]
    steps = list(study.steps())
    assert len(steps) == 2 * len(study.cells()) == 2 * 4 * study.seeds
    assert [step[1:] for step in steps[:4]] == [(0.0, 0), *((noise, 0) for noise in study.noise)]
    asked = steps[0][0].asked(0.0)
    assert set(asked.values()) == {study.first}
    assert set(study.asked(0.0)["cld"]) == {*study.shares, *study.noisy_shares}
    rows = [{"method": name, "share": share} for name, shares in asked.items() for share in shares]
    assert steps[0][0].complete({"noise": 0.0, "rows": rows})
    assert not study.complete({"noise": 0.0, "rows": rows})
    assert not steps[0][0].complete({"noise": 0.0, "rows": rows[:-1]})


def test_the_page_is_that_of_the_published_results(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, results = parts["coreset_noise_page"], parts["measuring"].RESULTS
    published = page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    for file in results.glob("coreset-noise-*.json"):
        shutil.copy(file, tmp_path)
    page.write_page(list(parts["coreset_noise"].STUDIES))
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == published
