"""The LDS benchmark at a tiny size: its parts are those one would make by hand, and it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from comove.attribution import Scores
from comove.attribution.cld import CLD
from comove.attribution.random_control import RandomControl
from comove.attribution.same_class_control import SameClassControl
from comove.data import Splits
from comove.errors import FingerprintError, InputError
from comove.evaluation import Benchmark, RetrainingBank, lds_benchmark, subsets
from comove.training import Recipe, Run

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05)
METHODS = [CLD(), CLD(correlation="covariance", common_mode="remove"), SameClassControl(), RandomControl()]


def benchmark_in(folder: Path, data: Splits, **changes: object) -> Benchmark:
    plain: dict[str, object] = {"subsets": subsets.random(0.5, 8), "seeds": 2, "runs": 2, "model": "mlp"}
    return lds_benchmark(data, METHODS, out=folder, **{**plain, "recipe": RECIPE, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark") / "out"


@pytest.fixture(scope="module")
def benchmark(small_digits: Splits, folder: Path) -> Benchmark:
    return benchmark_in(folder, small_digits)


def test_there_is_one_result_a_method_in_the_order_given(benchmark: Benchmark) -> None:
    labels = ["cld", "cld(correlation=covariance, common_mode=remove)", "same-class-control", "random-control"]
    assert [result.method for result in benchmark.results] == labels
    assert len(benchmark.runs) == 2
    assert [run.seed for run in benchmark.runs] == [0, 1]
    assert benchmark.bank.pending == []


def test_results_are_those_of_the_parts_opened_again(benchmark: Benchmark, folder: Path) -> None:
    runs, bank = [Run.load(folder / "runs" / f"{n:03d}") for n in range(2)], RetrainingBank.load(folder / "bank")
    for method, result in zip(METHODS, benchmark.results, strict=True):
        by_hand = bank.lds(method.fit(runs).attribute())
        np.testing.assert_array_equal(by_hand.per_query, result.per_query)
        assert by_hand.interval == result.interval


def test_scores_are_kept_one_file_a_method(benchmark: Benchmark, folder: Path) -> None:
    files = sorted(file.name for file in (folder / "scores").iterdir())
    assert files == [
        "cld-correlation-covariance--common_mode-remove.safetensors",
        "cld.safetensors",
        "random-control.safetensors",
        "same-class-control.safetensors",
    ]
    kept = Scores.load(folder / "scores" / "cld.safetensors")
    np.testing.assert_array_equal(benchmark.bank.lds(kept).per_query, benchmark.results[0].per_query)


def test_tables_hold_what_the_result_holds(benchmark: Benchmark, folder: Path) -> None:
    table = pd.read_csv(folder / "lds.csv")
    assert table["method"].tolist() == [result.method for result in benchmark.results]
    np.testing.assert_allclose(table["mean"], [result.mean for result in benchmark.results])
    document = json.loads((folder / "lds.json").read_text())
    assert [row["method"] for row in document["results"]] == table["method"].tolist()
    assert document["results"][0]["output"] == "margin"
    assert document["results"][0]["runs"] == 2
    assert document["bank"]["subsets"]["alpha"] == 0.5


def test_a_second_call_trains_nothing_and_finds_the_same(
    benchmark: Benchmark, folder: Path, small_digits: Splits
) -> None:
    def state() -> dict[Path, int]:
        parts = [*(folder / "runs").rglob("*"), *(folder / "bank").rglob("*")]
        return {file: file.stat().st_mtime_ns for file in parts if file.is_file()}

    before = state()
    again = benchmark_in(folder, small_digits)
    assert state() == before
    assert again.rows() == benchmark.rows()


def test_other_settings_in_the_folder_are_refused(benchmark: Benchmark, folder: Path, small_digits: Splits) -> None:
    with pytest.raises(FingerprintError, match=r"recipe\.lr was 0\.05, now 0\.1"):
        benchmark_in(folder, small_digits, recipe=RECIPE.with_changes(lr=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "predicted"}, "got 'predicted'"),
        ({"output": "margins"}, "Did you mean 'margin'"),
        ({"subsets": subsets.random(0.5, 2)}, "3 subsets, got 4, 2 and 2"),
        ({"runs": 0}, "one run"),
        ({"subsets": subsets.random(0.999, 5)}, "gives subsets of 200"),
        ({"seeds": 0}, "seeds must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    changes: dict[str, object], message: str, small_digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        benchmark_in(tmp_path / "out", small_digits, **changes)
    assert not (tmp_path / "out" / "runs").exists()


def test_one_query_whose_truth_never_varies_still_makes_tables(small_digits: Splits, tmp_path: Path) -> None:
    one = Splits(small_digits.train, small_digits.validation, small_digits.query.subset(small_digits.query.ids[:1]))
    found = benchmark_in(tmp_path / "out", one, output="correct", recipe=RECIPE.with_changes(lr=1e-6), seeds=1, runs=1)
    assert found.results[0].undefined == 1
    assert np.isnan(found.results[0].mean)
    document = json.loads((tmp_path / "out" / "lds.json").read_text())
    assert document["results"][0]["mean"] is None
