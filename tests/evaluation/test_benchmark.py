"""The LDS benchmark at a tiny size: its parts are those one would make by hand, and it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.calls import grouped

from comove.attribution import Attributor, Scores
from comove.attribution.cld import CLD
from comove.attribution.leave_one_out import LeaveOneOut
from comove.attribution.random_control import RandomControl
from comove.attribution.same_class_control import SameClassControl
from comove.attribution.subsampled_influence import SubsampledInfluence
from comove.data import Splits
from comove.errors import FingerprintError, InputError
from comove.evaluation import (
    Benchmark,
    RetrainingBank,
    at_alphas,
    bank_lds,
    lds_benchmark,
    paired_difference,
    plans_of,
    subsets,
)
from comove.jobs import Compute
from comove.lds.charts import alpha_name
from comove.training import Recipe, Run, Training

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05)
METHODS: list[Attributor] = [
    CLD(),
    CLD(correlation="covariance", common_mode="remove"),
    SameClassControl(),
    RandomControl(),
]


def benchmark_in(folder: Path, data: Splits, methods: Sequence[Attributor] = METHODS, **changes: Any) -> Benchmark:
    plain: dict[str, Any] = {"subsets": subsets.random(0.5, 8), "seeds": 2, "runs": 2, "model": "mlp"}
    options = grouped({"executor": "serial", **plain, "recipe": RECIPE, **changes})
    return lds_benchmark(data, methods, out=folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark") / "out"


@pytest.fixture(scope="module")
def benchmark(small_digits: Splits, folder: Path) -> Benchmark:
    return benchmark_in(folder, small_digits)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wide") / "out"


@pytest.fixture(scope="module")
def wide(small_digits: Splits, wide_folder: Path) -> Benchmark:
    """Two sampling ratios and leave-one-out, two outputs, and a method that is fitted on a bank."""
    plans = plans_of([0.7, 0.3, "loo"], 6, small_digits.train.ids)
    methods = [CLD(), SubsampledInfluence(), RandomControl()]
    outputs = ("margin", "loss")
    return benchmark_in(wide_folder, small_digits, methods, subsets=plans, output=outputs, fit_subsets=30)


# --- one sampling ratio and output -----------------------------------------------------------------------------------


def test_there_is_one_result_a_method_in_the_order_given(benchmark: Benchmark) -> None:
    labels = ["cld", "cld(correlation=covariance, common_mode=remove)", "same-class-control", "random-control"]
    assert [result.method for result in benchmark.results] == labels
    assert len(benchmark.runs) == 2
    assert [run.seed for run in benchmark.runs] == [0, 1]
    assert benchmark.bank.pending == []
    assert (benchmark.output, benchmark.outputs, benchmark.alphas) == ("margin", ("margin",), (0.5,))
    assert (benchmark.retrained, benchmark.reused, benchmark.fit_bank) == (16, 0, None)


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
    np.testing.assert_allclose(table[["low", "high"]], [list(result.interval or ()) for result in benchmark.results])
    document = json.loads((folder / "lds.json").read_text())
    assert [row["method"] for row in document["results"]] == table["method"].tolist()
    assert document["results"][0]["output"] == "margin"
    assert document["results"][0]["runs"] == 2
    assert document["bank"]["subsets"]["alpha"] == 0.5
    gaps = pd.read_csv(folder / "differences.csv")
    assert len(gaps) == 6
    assert (gaps["low"] <= gaps["mean"]).all()
    assert (gaps["mean"] <= gaps["high"]).all()
    assert len(document["differences"]) == 6


def test_one_method_has_no_differences_and_still_makes_tables(
    benchmark: Benchmark, folder: Path, small_digits: Splits
) -> None:
    alone = benchmark_in(folder, small_digits, METHODS[:1])
    assert alone.differences() == ()
    assert pd.read_csv(folder / "differences.csv").empty
    benchmark.save(folder)


def test_a_second_call_trains_nothing_and_finds_the_same(
    benchmark: Benchmark, folder: Path, small_digits: Splits
) -> None:
    def state() -> dict[Path, int]:
        parts = [*(folder / "runs").rglob("*"), *(folder / "bank/results").rglob("*")]
        return {file: file.stat().st_mtime_ns for file in parts if file.is_file()}

    before = state()
    again = benchmark_in(folder, small_digits)
    assert state() == before
    assert again.rows() == benchmark.rows()
    assert (again.retrained, again.reused) == (0, 16)


def test_more_subsets_seeds_and_ratios_train_only_what_is_missing(
    benchmark: Benchmark, folder: Path, small_digits: Splits
) -> None:
    more = benchmark_in(folder, small_digits, METHODS[:1], subsets=plans_of([0.5, 0.4], 9, small_digits.train.ids))
    assert (more.reused, more.retrained) == (16, 20)
    first = [result.subsets for result in more.results]
    assert first == [9, 9]
    again = benchmark_in(folder, small_digits)  # what was asked for first is unchanged by what was added
    assert again.rows() == benchmark.rows()


def test_other_settings_in_the_folder_are_refused(benchmark: Benchmark, folder: Path, small_digits: Splits) -> None:
    with pytest.raises(FingerprintError, match=r"recipe\.lr was 0\.05, now 0\.1"):
        benchmark_in(folder, small_digits, recipe=RECIPE.with_changes(lr=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "predicted"}, "got 'predicted'"),
        ({"output": ["margin", "margins"]}, "Did you mean 'margin'"),
        ({"output": ()}, "one method, one run and one output, got 4, 2 and 0"),
        ({"subsets": subsets.random(0.5, 2)}, "at least 3 subsets of a kind, the plan random-0.5-0 has 2"),
        ({"subsets": None}, "Say which subsets"),
        ({"runs": 0}, "one run"),
        ({"subsets": subsets.random(0.999, 5)}, "gives subsets of 200"),
        (
            {"subsets": [subsets.random(0.5, 5), subsets.random(0.5, 5, 1)]},
            r"different sampling ratios, got \[0.5, 0.5",
        ),
        ({"seeds": 0}, "seeds must be a whole number from 1 on"),
        ({"methods": [LeaveOneOut()]}, "needs a bank of its own kind"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, small_digits: Splits, tmp_path: Path
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
    assert pd.read_csv(tmp_path / "out" / "lds.csv")["mean"].isna().all()


# --- several ---------------------------------------------------------------------------------------------------------


def test_several_ratios_and_outputs_come_in_long_form_lowest_ratio_first(wide: Benchmark) -> None:
    ratios, n = (0.3, 0.7, 199 / 200), 3
    expected = [(a, o, m) for a in ratios for o in ("margin", "loss") for m in ("cld", "fz", "random-control")]
    assert [(result.alpha, result.output, result.method) for result in wide.results] == expected
    assert (wide.alphas, wide.outputs) == (ratios, ("margin", "loss"))
    table = wide.to_pandas()
    assert list(zip(table["alpha"], table["output"], table["method"], strict=True)) == expected
    assert len(wide.at(0.3)) == 2 * n
    assert {result.subsets for result in wide.results} == {6}


def test_every_result_is_that_of_its_own_part_of_the_bank(wide: Benchmark, wide_folder: Path) -> None:
    bank = RetrainingBank.load(wide_folder / "bank")
    scores = Scores.load(wide_folder / "scores/cld.safetensors")
    for alpha in (0.3, 0.7):
        for output in ("margin", "loss"):
            by_hand, found = bank.at(alpha).lds(scores, output), wide.of("cld", alpha=alpha, output=output)
            np.testing.assert_array_equal(by_hand.per_query, found.per_query)
            assert by_hand.interval == found.interval
    corner = bank.plan(next(name for name in bank.plans if name.startswith("leave-one-out")))
    assert (corner.masks.sum(1) == 199).all()
    np.testing.assert_array_equal(corner.lds(scores).per_query, wide.of("cld", alpha=199 / 200).per_query)


def test_the_margin_and_the_turned_loss_rank_nearly_alike(wide: Benchmark) -> None:
    margin, loss = (wide.of("cld", alpha=0.3, output=output) for output in ("margin", "loss"))
    assert np.nanmean(np.abs(margin.per_query - loss.per_query)) < 0.15  # one seed: the same order exactly


def test_runs_and_models_are_trained_once_for_all(
    wide: Benchmark, wide_folder: Path, small_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (wide.retrained, wide.reused) == (3 * 6 * 2 + 30, 0)
    assert len(list((wide_folder / "runs").iterdir())) == 2
    fits: list[str] = []
    fit = CLD.fit
    monkeypatch.setattr(CLD, "fit", lambda self, source: fits.append(self.label) or fit(self, source))  # type: ignore[func-returns-value]
    plans = plans_of([0.7, 0.3, "loo"], 6, small_digits.train.ids)
    benchmark_in(wide_folder, small_digits, [CLD()], subsets=plans, output=["margin", "correct", "probability"])
    assert fits == ["cld"]
    wide.save(wide_folder)


def test_bank_methods_are_fitted_once_on_other_subsets_of_the_ratio_nearest_a_half(
    wide: Benchmark, wide_folder: Path
) -> None:
    assert wide.fit_bank is not None
    assert wide.fit_bank.alphas == (0.3,)  # 0.3 and 0.7 are as near; the lower one
    assert len(wide.fit_bank.masks) == 30
    fitted_on = set(Scores.load(wide_folder / "scores/fz.safetensors").info["fitted_on"])
    assert fitted_on == set(wide.fit_bank.digests)
    assert not fitted_on & set(wide.bank.digests)
    document = json.loads((wide_folder / "lds.json").read_text())
    assert document["fit_bank"]["subsets"]["count"] == 30


def test_scores_fitted_on_the_subsets_they_meet_are_refused(wide: Benchmark) -> None:
    assert wide.fit_bank is not None
    scores = SubsampledInfluence().fit(wide.fit_bank).attribute(wide.bank.query_ids)
    with pytest.raises(InputError, match="fitted on 30 of the 30 subsets"):
        bank_lds([wide.bank.at(0.3), wide.fit_bank], [scores])


def test_comparing_two_methods_pairs_them_at_every_ratio_and_output(wide: Benchmark) -> None:
    gaps = wide.compare("cld", "random-control")
    assert [(gap.alpha, gap.output) for gap in gaps] == [(a, o) for a in wide.alphas for o in wide.outputs]
    for gap in gaps:
        pair = [wide.of(name, alpha=gap.alpha, output=gap.output) for name in ("cld", "random-control")]
        assert gap == paired_difference(*pair)
        assert gap.mean == pytest.approx(pair[0].mean - pair[1].mean)
    assert len(wide.differences()) == 3 * len(gaps)
    with pytest.raises(InputError, match="Did you mean 'random-control'"):
        wide.compare("cld", "random-contrl")


def test_it_prints_a_line_a_result(wide: Benchmark) -> None:
    lines = str(wide).splitlines()
    assert lines[0] == "Benchmark of 3 methods, 2 runs each:"
    assert [line.strip() for line in lines[1:]] == [str(result) for result in wide.results]


def test_a_result_is_found_by_its_ratio_and_output_or_what_there_is_is_told(wide: Benchmark) -> None:
    assert wide.of("fz", alpha=0.7) is wide.results[7]
    with pytest.raises(InputError, match=r"Say which alpha: one of 0\.3, 0\.7"):
        wide.of("fz")
    with pytest.raises(InputError, match=r"no LDS at alpha 0\.4 for margin"):
        wide.of("fz", alpha=0.4)


# --- an existing bank ------------------------------------------------------------------------------------------------


def test_an_existing_bank_or_part_or_compact_file_serves_as_ground_truth(
    wide: Benchmark, wide_folder: Path, small_digits: Splits, tmp_path: Path
) -> None:
    bank = RetrainingBank.load(wide_folder / "bank")
    compact = RetrainingBank.load(bank.compact(tmp_path / "bank.safetensors"))
    outputs = ("margin", "loss")
    for source in (bank, compact):
        found = lds_benchmark(small_digits, [CLD()], subsets=source, out=tmp_path / "out", runs=2, output=outputs)
        for result in found.results:
            same = wide.of("cld", alpha=result.alpha, output=result.output)
            assert result.to_json() == same.to_json()
        assert (found.retrained, found.reused) == (0, 36)
    part = lds_benchmark(small_digits, [CLD()], subsets=at_alphas(bank, [0.7, "loo"]), out=tmp_path / "out", runs=2)
    assert part.alphas == (0.7, 199 / 200)
    assert part.runs[0].manifest["recipe"] == bank.manifest["recipe"]


def test_only_the_asked_part_of_a_bank_is_finished(small_digits: Splits, tmp_path: Path) -> None:
    plans = plans_of([0.4, 0.6], 4, small_digits.train.ids)
    bank = RetrainingBank.create(tmp_path / "bank", small_digits, Training("mlp", RECIPE), subsets=plans)
    found = lds_benchmark(
        small_digits, [CLD()], subsets=bank.at(0.6), out=tmp_path / "out", runs=1, compute=Compute("serial")
    )
    assert found.retrained == 4
    assert bank.at(0.6).pending == []
    assert len(bank.at(0.4).pending) == 4


def test_seeds_that_some_subsets_lack_are_left_out_for_all(small_digits: Splits, tmp_path: Path) -> None:
    def bank_of(count: int, seeds: int) -> RetrainingBank:
        plan = subsets.random(0.5, count)
        return RetrainingBank.create(
            tmp_path / "bank", small_digits, Training("mlp", RECIPE), subsets=plan, seeds=seeds
        )

    bank_of(4, 3).run(executor="serial")
    bank_of(6, 2).run(executor="serial")
    ragged, even = RetrainingBank.load(tmp_path / "bank"), bank_of(6, 2)
    scores = RandomControl().fit(ragged_source(small_digits, tmp_path)).attribute()
    (found,), (expected,) = bank_lds([ragged], [scores]), bank_lds([even], [scores])
    assert (found.seeds, found.subsets) == (2, 6)
    assert found.to_json() == expected.to_json()


def ragged_source(data: Splits, folder: Path) -> Run:
    from comove.training import train

    return train(data, "mlp", RECIPE, 0, folder / "run")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "cnn-small"}, InputError, r"model\.name 'mlp', not 'cnn-small'"),
        ({"model_options": {"hidden": [8]}}, InputError, r"model\.options .*8.* leave that out"),
        ({"recipe": RECIPE.with_changes(epochs=9)}, InputError, r"recipe\.epochs 3, not 9"),
        ({"recipe": RECIPE.with_changes(optimizer="adamw")}, InputError, r"recipe\.optimizer 'sgd', not 'adamw'"),
    ],
)
def test_a_bank_and_what_contradicts_it_are_refused(
    wide: Benchmark, changes: dict[str, Any], error: type[Exception], message: str, small_digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        lds_benchmark(small_digits, [CLD()], subsets=wide.bank, out=tmp_path / "out", runs=1, **grouped(changes))
    assert not (tmp_path / "out").exists()


def test_a_bank_of_other_data_is_refused(wide: Benchmark, digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(FingerprintError, match="another data set"):
        lds_benchmark(digits, [CLD()], subsets=wide.bank, out=tmp_path / "out")


def test_a_bank_without_subsets_that_an_lds_could_use_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    ids = small_digits.train.ids.tolist()
    plan = subsets.without([ids[:2], ids[2:5], ids[5:9]])
    bank = RetrainingBank.create(tmp_path / "bank", small_digits, Training("mlp", RECIPE), subsets=plan)
    with pytest.raises(InputError, match="neither random nor leave-one-out subsets: without-"):
        lds_benchmark(small_digits, [CLD()], subsets=bank, out=tmp_path / "out")
    with pytest.raises(InputError, match="no leave-one-out subsets, only without-"):
        at_alphas(bank, ["loo"])


# --- plans -----------------------------------------------------------------------------------------------------------


def test_plans_are_random_subsets_and_at_one_the_leaving_out_of_random_ids(small_digits: Splits) -> None:
    ids = small_digits.train.ids
    half, corner = plans_of([0.5, 1.0, "loo", "0.5"], 10, ids, seed=3)
    assert half == subsets.random(0.5, 10, 3)
    masks = corner.masks_for(ids)
    assert masks.shape == (10, 200)
    assert (masks.sum(1) == 199).all()
    left_out = ids[(~masks).argmax(1)]
    assert np.unique(left_out).size == 10
    assert not np.array_equal(np.sort(left_out), np.sort(ids)[:10])


def test_more_leave_one_out_subsets_are_the_same_and_others_and_depend_on_the_seed(small_digits: Splits) -> None:
    ids = small_digits.train.ids
    few, many, other = (plans_of(["loo"], n, ids, s)[0].masks_for(ids) for n, s in ((5, 0), (9, 0), (5, 1)))
    np.testing.assert_array_equal(few, many[:5])
    assert not np.array_equal(few, other)


@pytest.mark.parametrize(
    ("alpha", "count", "message"),
    [
        ("half", 5, "or loo; got 'half'"),
        (0, 5, r"alpha must be in \(0, 1\)"),
        (1.2, 5, r"alpha must be in \(0, 1\)"),
        ("nan", 5, r"alpha must be finite"),
        ("loo", 201, "200 training examples to leave out, asked for 201"),
    ],
)
def test_ratios_that_cannot_be_had_are_refused(
    alpha: float | str, count: int, message: str, small_digits: Splits
) -> None:
    with pytest.raises(InputError, match=message):
        plans_of([alpha], count, small_digits.train.ids)


def test_the_last_ratio_is_named_by_what_it_leaves_out() -> None:
    names = [alpha_name(alpha) for alpha in (0.3, 0.5, 0.999, 1399 / 1400, 49_999 / 50_000, 0.9987, 1.0)]
    assert names == ["0.3", "0.5", "1-1/1,000", "1-1/1,400", "1-1/50,000", "0.9987", "1"]
