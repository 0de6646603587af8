"""Coreset curves: resumable point by point, honest about what selectors saw, equal to training by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import comove
from comove.coreset import Coreset, select
from comove.coreset.cld import CLDCoreset
from comove.coreset.random import RandomCoreset
from comove.data import ExampleSet, Splits
from comove.errors import FingerprintError, InputError
from comove.evaluation import Curve, CurveFolders, CurvePoint, coreset_curve
from comove.report.saved_results import read_curves
from comove.retraining.files import Key
from comove.retraining.training import model_seed
from comove.store import digest
from comove.trace import Trace
from comove.training import Recipe, Run, Training, fit, predict, train

TARGET = Recipe(epochs=3, batch_size=16, lr=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curve") / "out"


@pytest.fixture(scope="module")
def curve(runs: tuple[Run, ...], folder: Path) -> Curve:
    """Two methods, two budgets, two seeds, kept in ``folder``; not to be written to."""
    return coreset_curve(runs[0], ["cld", "random"], [0.2, 0.6], seeds=2, out=folder, training=Training(recipe=TARGET))


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted((folder / "bank" / "results").iterdir())}


def test_a_report_reads_the_folder(curve: Curve, folder: Path) -> None:
    (found,) = read_curves(folder)
    assert isinstance(found.result, Curve)
    assert found.result.points == curve.points
    assert found.name == "mlp"
    assert found.provenance.seed == 0


def test_it_prints_deviations_only_of_several_seeds(curve: Curve) -> None:
    assert repr(curve).startswith("Curve(accuracy on 40 queries, deviation over seeds):\n  full data ")
    alone = dataclasses.replace(curve, points=tuple(point for point in curve.points if point.seed == 0))
    assert repr(alone).startswith("Curve(accuracy on 40 queries, one seed):\n")
    assert "nan" not in repr(alone)


def test_two_folders_hold_no_table_for_one_target_of_several(runs: tuple[Run, ...], tmp_path: Path) -> None:
    where = CurveFolders(tmp_path / "trained", tmp_path / "coresets")
    coreset_curve(runs[0], ["cld"], [0.2], seeds=1, out=where, training=Training(recipe=TARGET))
    assert not list(tmp_path.rglob("*.csv"))


def accuracy_by_hand(run: Run, data: Splits, ids: npt.NDArray[np.int64], number: int) -> float:
    seed = model_seed(0, Key(digest(np.sort(ids)), number))
    model = run.model_spec.build(seed)
    fit(model, data.train.subset(data.train.ids[np.isin(data.train.ids, ids)]), TARGET, seed=seed)
    return float((predict(model, data.query).argmax(1).numpy() == data.query.labels).mean())


def test_it_holds_every_point_and_the_full_data_line(curve: Curve) -> None:
    points = {(point.method, point.budget, point.seed): point.size for point in curve.points}
    assert len(points) == len(curve.points) == 10
    for seed in range(2):
        assert points["full data", 1.0, seed] == 200
        for method in ("cld", "random"):
            assert points[method, 0.2, seed] == 40
            assert points[method, 0.6, seed] == 120
    assert (curve.n_train, curve.n_query) == (200, 40)
    assert all(0 <= point.accuracy <= 1 for point in curve.points)


@pytest.mark.parametrize("number", [0, 1])
def test_accuracies_equal_training_by_hand(number: int, curve: Curve, run: Run, small_digits: Splits) -> None:
    found = {(p.method, p.budget, p.seed): p.accuracy for p in curve.points}
    cld = select("cld", run, 0.6).ids
    random = select("random", run, 0.6, seed=number).ids
    one_query = pytest.approx  # sums of models trained together may round another way: a query may tip over
    by_hand = {
        ("cld", 0.6, number): accuracy_by_hand(run, small_digits, cld, number),
        ("random", 0.6, number): accuracy_by_hand(run, small_digits, random, 0),
        ("full data", 1.0, number): accuracy_by_hand(run, small_digits, small_digits.train.ids, number),
    }
    assert {point: found[point] for point in by_hand} == one_query(by_hand, abs=1 / 40 + 1e-9)


def test_selectors_with_a_seed_are_seeded_anew_and_others_are_not(curve: Curve, folder: Path) -> None:
    def chosen(method: str) -> set[bytes]:
        files = (folder / "coresets").glob(f"{method}-*-0.2-*.safetensors")
        return {np.sort(Coreset.load(file).ids).tobytes() for file in files}

    assert len(chosen("random")) == 2
    assert len(chosen("cld")) == 1


def test_a_second_call_trains_nothing(curve: Curve, folder: Path, run: Run) -> None:
    before = times(folder)
    again = coreset_curve(run, ["cld", "random"], [0.2, 0.6], seeds=2, out=folder, training=Training(recipe=TARGET))
    assert again.points == curve.points
    assert times(folder) == before


def test_a_lost_point_alone_is_trained_again_to_the_same_accuracy(curve: Curve, folder: Path, run: Run) -> None:
    before = times(folder)
    lost = next((folder / "bank" / "results").glob("*-001.safetensors"))
    lost.unlink()
    again = coreset_curve(run, ["cld", "random"], [0.2, 0.6], seeds=2, out=folder, training=Training(recipe=TARGET))
    assert again.points == curve.points
    after = times(folder)
    assert {name for name in after if after[name] != before[name]} == {lost.name}


def test_more_budgets_seeds_and_methods_reuse_what_is_there(curve: Curve, folder: Path, run: Run) -> None:
    before = times(folder)
    larger = coreset_curve(
        run, ["cld", RandomCoreset(seed=50)], [0.2, 0.4], seeds=3, out=folder, training=Training(recipe=TARGET)
    )
    assert {name: time for name, time in times(folder).items() if name in before} == before
    kept = {(p.method, p.budget, p.seed): p for p in curve.points}
    shared = [p for p in larger.points if (p.method, p.budget, p.seed) in kept]
    assert len(shared) == 4
    assert all(kept[p.method, p.budget, p.seed] == p for p in shared)


def test_budgets_that_differ_in_the_seventh_digit_do_not_share_a_file(run: Run, tmp_path: Path) -> None:
    budgets = [0.3, 0.30000001]
    found = coreset_curve(
        run, ["cld"], [*budgets, 0.3], seeds=1, out=tmp_path / "out", training=Training(recipe=TARGET)
    )
    assert len(list((tmp_path / "out" / "coresets").glob("*.safetensors"))) == 2
    assert len(times(tmp_path / "out")) == 2  # the same 60 examples, and the full data
    assert len(found.points) == 3  # the repeated budget is one point, not two


def test_a_selector_object_equals_its_name_and_options_make_a_label_of_their_own(run: Run, curve: Curve) -> None:
    methods = [RandomCoreset(), RandomCoreset(seed=1), CLDCoreset()]
    found = coreset_curve(run, methods, [0.2], seeds=2, training=Training(recipe=TARGET))
    by_name = {(p.method, p.budget, p.seed): p.accuracy for p in curve.points}
    mine = {(p.method, p.budget, p.seed): p.accuracy for p in found.points}
    assert {method for method, _, _ in mine} == {"full data", "random", "random(seed=1)", "cld"}
    for method in ("random", "cld"):
        for seed in range(2):
            assert mine[method, 0.2, seed] == by_name[method, 0.2, seed]


def test_several_runs_select_together(runs: tuple[Run, ...], small_digits: Splits) -> None:
    found = coreset_curve(runs, ["cld"], [0.5], seeds=1, training=Training(recipe=TARGET))
    ids = select("cld", runs, 0.5).ids
    assert found.points[1].accuracy == pytest.approx(accuracy_by_hand(runs[0], small_digits, ids, 0), abs=1 / 40 + 1e-9)


def test_another_target_model_and_the_runs_own_recipe_by_default(run: Run) -> None:
    other = coreset_curve(run, ["cld"], [0.5], seeds=1, training=Training("mlp", options={"hidden": [8]}))
    assert other.provenance["model"]["options"] == {"hidden": [8]}
    assert other.provenance["recipe"] == run.recipe.to_json()
    with pytest.raises(InputError, match="options of a Training belong to its model"):
        coreset_curve(run, ["cld"], [0.5], training=Training(options={"hidden": [8]}))


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_folder_of_another_curve_is_refused(curve: Curve, folder: Path, runs: tuple[Run, ...]) -> None:
    with pytest.raises(FingerprintError, match=r"recipe\.epochs was 3, now 6"):
        coreset_curve(runs[0], ["cld"], [0.2], out=folder)
    with pytest.raises(FingerprintError, match="sources was"):
        coreset_curve(runs[1], ["cld"], [0.2], out=folder, training=Training(recipe=TARGET))
    with pytest.raises(FingerprintError, match="seed was 0, now 4"):
        coreset_curve(runs[0], ["cld"], [0.2], out=folder, training=Training(recipe=TARGET, seed=4))


def test_bare_traces_are_refused_also_among_runs(run: Run) -> None:
    sources: list[list[Run | Trace]] = [[run.trace], [run, run.trace], [run.trace, run]]
    for source in sources:
        with pytest.raises(InputError, match="not bare traces"):
            coreset_curve(source, ["cld"], [0.2])


def test_other_data_than_the_runs_were_trained_on_are_refused(run: Run, digits: Splits) -> None:
    with pytest.raises(FingerprintError, match="another data set"):
        coreset_curve(run, ["cld"], [0.2], dataset=digits)


def test_selectors_must_not_aim_at_the_queries_that_accuracy_is_measured_on(images: ExampleSet) -> None:
    leaky = comove.split(images, validation=0, query=0.25)
    run = train(leaky, "mlp", Recipe(epochs=2, batch_size=8))
    with pytest.raises(InputError, match="no validation examples of its own"):
        coreset_curve(run, ["cld"], [0.5])
    honest = comove.split(images, validation=0.2, query=0.25)
    run = train(honest, "mlp", Recipe(epochs=2, batch_size=8))
    assert len(coreset_curve(run, ["cld"], [0.5], seeds=1).points) == 2


@pytest.mark.parametrize(
    ("methods", "budgets", "seeds"), [([], [0.2], 1), (["cld"], [], 1), (["cld"], [0.2], 0)], ids=str
)
def test_nothing_to_do_is_refused(methods: list[str], budgets: list[float], seeds: int, run: Run) -> None:
    with pytest.raises(InputError, match="at least one method, one budget and one seed"):
        coreset_curve(run, methods, budgets, seeds=seeds)


def test_an_unknown_method_is_refused_before_anything_is_trained(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'random'"):
        coreset_curve(run, ["cld", "randmo"], [0.2], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("budget", [0.0, 1.5, 0.001, float("nan")])
def test_an_impossible_budget_is_refused_before_anything_is_trained(budget: float, run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"budget"):
        coreset_curve(run, ["cld"], [0.2, budget], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the result ---------------------------------------------------------------------------------------------------


def made(accuracies: list[float]) -> Curve:
    points = [CurvePoint("cld", 0.1, 20, seed, accuracy) for seed, accuracy in enumerate(accuracies)]
    return Curve((CurvePoint("full data", 1.0, 200, 0, 0.9), *points), 200, 40, {})


def test_the_summary_is_mean_and_sample_deviation_over_seeds() -> None:
    full, cld = made([0.5, 0.6, 0.85]).summary()
    assert cld == {
        "method": "cld",
        "budget": 0.1,
        "size": 20,
        "mean": pytest.approx(0.65),
        "std": pytest.approx(np.std([0.5, 0.6, 0.85], ddof=1)),
        "seeds": 3,
    }
    assert (full["method"], full["mean"], full["seeds"]) == ("full data", 0.9, 1)


def test_one_seed_has_no_deviation_and_no_warning() -> None:
    assert all(math.isnan(row["std"]) for row in made([0.5]).summary())
    assert "nan" not in repr(made([0.5]))


def test_it_becomes_a_frame_with_one_row_a_model() -> None:
    frame = made([0.5, 0.6]).to_pandas()
    assert list(frame.columns) == ["method", "budget", "size", "seed", "accuracy"]
    assert frame["accuracy"].tolist() == [0.9, 0.5, 0.6]
    assert dataclasses.is_dataclass(Curve)


def test_the_smallest_budget_within_a_tolerance_of_the_full_accuracy() -> None:
    points = [CurvePoint("full data", 1.0, 200, seed, 0.9) for seed in range(2)]
    points += [
        CurvePoint("cld", budget, int(200 * budget), seed, accuracy + 0.01 * seed)
        for budget, accuracy in ((0.5, 0.89), (0.1, 0.5), (0.3, 0.88))
        for seed in range(2)
    ]
    curve = Curve(tuple(points), 200, 40, {})
    assert curve.smallest_budget("cld", 0.01) == 0.5  # .895 against .89
    assert curve.smallest_budget("cld", 0.015) == 0.3  # .885 against .885
    assert curve.smallest_budget("cld", 0.001) is None
    with pytest.raises(InputError, match="no point 'random'"):
        curve.mean("random", 0.5)


def test_methods_that_choose_the_same_examples_share_their_models(run: Run, tmp_path: Path) -> None:
    found = coreset_curve(run, ["cld", "random"], [1.0], seeds=2, out=tmp_path, training=Training(recipe=TARGET))
    assert len(times(tmp_path)) == 2
    assert len({point.accuracy for point in found.points if point.seed == 0}) == 1


def test_an_interrupted_selection_is_not_made_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = coreset_curve(run, ["random"], [0.2], seeds=1, out=tmp_path, training=Training(recipe=TARGET))
    monkeypatch.setattr(RandomCoreset, "_scores", None)  # selecting anew would fail
    assert (
        coreset_curve(run, ["random"], [0.2], seeds=1, out=tmp_path, training=Training(recipe=TARGET)).points
        == first.points
    )


def test_curves_of_several_targets_share_their_coresets(run: Run, tmp_path: Path) -> None:
    found = [
        coreset_curve(
            run,
            ["random"],
            [0.3],
            seeds=2,
            out=CurveFolders(tmp_path / str(width), tmp_path / "coresets"),
            training=Training("mlp", TARGET, options={"hidden": [width]}),
        )
        for width in (8, 16)
    ]
    assert [chosen.number for chosen in found[0].coresets] == [0, 1]
    for one, two in zip(found[0].coresets, found[1].coresets, strict=True):
        np.testing.assert_array_equal(one.coreset.ids, two.coreset.ids)
    assert not (tmp_path / "8" / "coresets").exists()


def test_coresets_of_other_runs_are_refused(runs: tuple[Run, ...], tmp_path: Path) -> None:
    coreset_curve(
        runs[0], ["random"], [0.3], seeds=1, out=CurveFolders(coresets=tmp_path), training=Training(recipe=TARGET)
    )
    with pytest.raises(FingerprintError, match="sources was"):
        coreset_curve(
            runs[1], ["random"], [0.3], seeds=1, out=CurveFolders(coresets=tmp_path), training=Training(recipe=TARGET)
        )


def test_methods_that_the_run_did_not_record_for_are_refused_or_left_out_with_the_reason(run: Run) -> None:
    with pytest.raises(InputError, match="needs features and class probabilities at epoch 10"):
        coreset_curve(run, ["random", "grand"], [0.3], seeds=1, training=Training(recipe=TARGET))
    found = coreset_curve(run, ["random", "grand"], [0.3], seeds=1, skip=True, training=Training(recipe=TARGET))
    assert found.methods == ("random",)
    assert "anchors=(10, -1)" in found.skipped["grand"]
    with pytest.raises(InputError, match="None of the methods"):
        coreset_curve(run, ["grand"], [0.3], seeds=1, skip=True, training=Training(recipe=TARGET))


def test_a_random_selector_within_another_is_seeded_anew(run: Run) -> None:
    found = coreset_curve(run, ["per_class"], [0.3], seeds=2, training=Training(recipe=TARGET))
    assert len({one.coreset.ids.tobytes() for one in found.coresets}) == 2
