"""Brittleness and coreset curves of the user's own training function, held to the function called by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.neighbors import NearestCentroid

from comove import OwnTraining, Scores, Trace
from comove.attribution import CLD
from comove.coreset import select
from comove.data import ExampleSet, Splits
from comove.errors import InputError
from comove.evaluation import Brittleness, brittleness, coreset_curve, counterfactual_sizes, lds_benchmark
from comove.jobs import Compute
from comove.retraining.subsets import random
from comove.training import Run

N, Q = 40, 6
RNG = np.random.default_rng(0)
LABELS = np.arange(N + Q) % 2
INPUTS = (RNG.normal(size=(N + Q, 3)) + LABELS[:, None]).astype(np.float32)
IDS, QUERIES = np.arange(N), np.arange(N, N + Q)
HERE = Compute("serial")


def splits(labelled: bool = True) -> Splits:
    train, query = (
        ExampleSet.from_arrays(INPUTS[ids], LABELS[ids] if labelled else None, ids=ids, classes=["a", "b"])
        for ids in (IDS, QUERIES)
    )
    return Splits(train, None, query)


def centroids(train_ids: Any, seed: int) -> dict[str, Any]:
    """The class of the nearer centroid of a bootstrap sample, and by how much it is nearer to the label's."""
    ids = np.random.default_rng([seed, 1]).choice(train_ids, len(train_ids))
    model = NearestCentroid().fit(INPUTS[ids], LABELS[ids])
    distances = np.linalg.norm(INPUTS[QUERIES][:, None] - model.centroids_, axis=2)
    margin = np.where(LABELS[QUERIES] == 0, 1, -1) * (distances[:, 1] - distances[:, 0])
    predicted = model.predict(INPUTS[QUERIES])
    return {"predicted": predicted, "margin": margin, "correct": predicted == LABELS[QUERIES]}


def only(*names: str) -> Any:
    def function(train_ids: Any, seed: int) -> dict[str, Any]:
        found = centroids(train_ids, seed)
        return {name: found[name.removeprefix("my ")] for name in names}

    return function


SCORES = Scores(
    (LABELS[IDS][:, None] == LABELS[QUERIES]) - 0.1 * np.abs(INPUTS[IDS, :1] - INPUTS[QUERIES, 0]), IDS, QUERIES, "same"
)
KS = (5, 15)


def measured(folder: Path, own: OwnTraining, labelled: bool = True) -> Brittleness:
    return brittleness(
        SCORES, KS, dataset=splits(labelled), out=folder, training=own, seeds=2, base_seeds=3, compute=HERE
    )


def by_hand(output: str) -> tuple[Any, Any, Any]:
    """What voting models (3, Q), others (3, Q) and those without the highest scores (Q, K, 2) give."""
    full = np.stack([centroids(IDS, seed)[output] for seed in range(6)])
    ids = [[train_id for train_id, _ in SCORES.top(max(KS), query=int(query))] for query in QUERIES]
    removed = np.array(
        [
            [[centroids(np.setdiff1d(IDS, top[:k]), seed)[output][q] for seed in range(2)] for k in KS]
            for q, top in enumerate(ids)
        ]
    )
    return full[3:], full[:3], removed


def test_flips_of_classes_are_those_of_the_function(tmp_path: Path) -> None:
    found = measured(tmp_path, OwnTraining(centroids, "centroids"))
    voting, again, removed = by_hand("predicted")
    np.testing.assert_array_equal(found.full.voting, voting)
    np.testing.assert_array_equal(found.full.again, again)
    np.testing.assert_array_equal(found.predicted[0], removed)
    np.testing.assert_allclose(found.margins[0], by_hand("margin")[2], rtol=1e-6)
    assert found.flips[0].any()
    assert found.controls == ("random removal", "same-class removal")
    assert found.info["training"]["name"] == "centroids"
    assert Brittleness.load(tmp_path / "brittleness.safetensors").rows() == found.rows()


def test_some_queries_are_columns_of_the_whole_split(tmp_path: Path) -> None:
    own = OwnTraining(centroids, "centroids")
    whole = measured(tmp_path, own)
    some = brittleness(
        SCORES, KS, dataset=splits(), out=tmp_path, training=own, seeds=2, base_seeds=3, queries=QUERIES[[4, 1]],
        compute=HERE,
    )  # fmt: skip
    np.testing.assert_array_equal(some.predicted, whole.only(QUERIES[[4, 1]]).predicted)
    np.testing.assert_array_equal(some.margins, whole.only(QUERIES[[4, 1]]).margins)


def test_correct_alone_gives_the_same_flips_of_two_classes(tmp_path: Path) -> None:
    whole = measured(tmp_path / "whole", OwnTraining(centroids, "centroids"))
    found = measured(tmp_path / "correct", OwnTraining(only("correct"), "correct"))
    np.testing.assert_array_equal(found.flips, whole.flips)
    np.testing.assert_array_equal(found.wrong, whole.wrong)
    assert found.noise == whole.noise
    assert np.isnan(found.margins).all()


@pytest.mark.parametrize(("labelled", "higher"), [(True, True), (False, False)])
def test_without_classes_the_change_of_the_output_counts(labelled: bool, higher: bool, tmp_path: Path) -> None:
    own = OwnTraining(only("my margin"), "margin", higher={"my margin": higher})
    found = measured(tmp_path, own, labelled)
    voting, again, removed = by_hand("margin")
    sign = 1 if higher else -1
    for i, k in enumerate(KS):
        expected = sign * (voting.mean(0)[:, None] - removed[:, i]).mean()
        assert found.margin_drop("same", k).value == pytest.approx(expected, abs=1e-6)
        assert np.isnan(found.rate("same", k).value)
    assert found.noise_margin_drop.value == pytest.approx(sign * (voting.mean(0) - again).mean(), abs=1e-6)
    assert np.isnan(found.noise.value)
    assert found.controls == (("random removal", "same-class removal") if labelled else ("random removal",))
    assert "nothing removed: output drops by" in repr(found)
    assert any("No flip is known" in note for note in found.notes())
    assert isinstance(found.plot(), Figure)
    with pytest.raises(InputError, match="say what a flip is"):
        counterfactual_sizes(
            SCORES, 8, dataset=splits(labelled), out=tmp_path, training=own, base_seeds=3, compute=HERE
        )


def test_the_users_rule_says_what_a_flip_is(tmp_path: Path) -> None:
    asked = []

    def fell(full: Any, removed: Any) -> bool:
        asked.append((full.shape, removed.shape))
        return bool(removed.mean() < full.min())

    own = OwnTraining(only("my margin"), "margin", flip=fell)
    found = measured(tmp_path, own, labelled=False)
    voting, again, removed = by_hand("margin")
    expected = np.array([[fell(voting[:, q], removed[q, i]) for i in range(len(KS))] for q in range(Q)])
    np.testing.assert_array_equal(found.flips[0], np.repeat(expected[..., None], 2, 2))
    assert expected.any()
    assert found.rate("same", KS[1]).value == expected[:, 1].mean()
    assert found.noise.value == np.mean([fell(voting[:, q], again[:2, q]) for q in range(Q)])
    assert set(asked) == {((3,), (2,))}
    sizes = counterfactual_sizes(
        SCORES, [5, 15], dataset=splits(False), out=tmp_path, training=own, seeds=2, base_seeds=3, compute=HERE
    )
    np.testing.assert_array_equal(sizes.sizes[0] == 5, expected[:, 0])


def test_a_benchmark_says_how_its_models_become_ones_own(tmp_path: Path) -> None:
    own: Any = OwnTraining(centroids, "centroids")
    with pytest.raises(InputError, match=r"with subsets=RetrainingBank\.create"):
        lds_benchmark(splits(), [CLD()], out=tmp_path / "lds", subsets=random(0.5, 4), training=own)
    assert not (tmp_path / "lds").exists()


# --- coreset curves ------------------------------------------------------------------------------------------------


def test_a_curve_of_ones_own_function_is_the_mean_of_an_output(run: Run, small_digits: Splits, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random(int(small_digits.train.ids.max()) + 1)

    def function(train_ids: Any, seed: int) -> dict[str, Any]:
        share = weights[train_ids].mean() + seed / 100
        q = np.linspace(0, 1, len(small_digits.query))
        return {"correct": q < share, "loss": q / share, "x": q * share}

    own = OwnTraining(function, "shares")
    folder = tmp_path / "curve"
    curve = coreset_curve(run, ["cld"], [0.2], seeds=2, training=own, out=folder, compute=HERE)
    ids = select("cld", run, 0.2).ids
    found = {(point.method, point.seed): point.accuracy for point in curve.points}
    for seed in range(2):
        assert found["cld", seed] == pytest.approx(function(np.sort(ids), seed)["correct"].mean())
        assert found["full data", seed] == pytest.approx(function(run.trace.train_ids, seed)["correct"].mean())
    assert (curve.measure, curve.higher) == ("accuracy", True)
    lower = coreset_curve(run, ["cld"], [0.2], seeds=2, training=own, out=folder, measure="loss", compute=HERE)
    assert (lower.measure, lower.higher) == ("loss", False)
    assert lower.mean("cld", 0.2) == pytest.approx(
        np.mean([function(np.sort(ids), seed)["loss"].mean() for seed in range(2)])
    )
    gap = lower.mean("cld", 0.2) - lower.mean("full data", 1.0)
    assert lower.smallest_budget("cld", gap + 1e-9) == 0.2
    assert lower.smallest_budget("cld", gap - 1e-9) is None
    assert repr(lower).startswith("Curve(loss on 40 queries, deviation over seeds)")
    assert isinstance(lower.plot(), Figure)
    with pytest.raises(InputError, match="no output 'los'"):
        coreset_curve(run, ["cld"], [0.2], seeds=1, training=own, out=folder, measure="los", compute=HERE)
    numbers = OwnTraining(lambda ids, seed: {"x": np.ones(40)}, "numbers")
    assert coreset_curve(run, ["cld"], [0.2], seeds=1, training=numbers, compute=HERE).measure == "x"
    with pytest.raises(InputError, match="accuracy is the mean of the output 'correct', and there are only: x"):
        coreset_curve(run, ["cld"], [0.2], seeds=1, training=numbers, measure="accuracy", compute=HERE)


def test_a_trace_alone_will_do_beside_its_data(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random((4, N + 8))
    trace = Trace.from_arrays(
        train_losses=losses[:, :N], query_losses=losses[:, N:], train_ids=IDS, query_ids=900 + np.arange(8),
        train_labels=LABELS[IDS], query_labels=np.arange(8) % 2,
    )  # fmt: skip
    own = OwnTraining(centroids, "centroids")
    curve = coreset_curve(trace, ["cld"], [0.5], seeds=1, dataset=splits(), training=own, compute=HERE)
    expected = centroids(np.sort(select("cld", trace, 0.5).ids), 0)["correct"].mean()
    assert curve.mean("cld", 0.5) == expected
    with pytest.raises(InputError, match="pass dataset="):
        coreset_curve(trace, ["cld"], [0.5], training=own)
    with pytest.raises(InputError, match="not bare traces"):
        coreset_curve(trace, ["cld"], [0.5], dataset=splits())
    smaller = splits().without(IDS[:1])
    with pytest.raises(InputError, match="other training ids than dataset="):
        coreset_curve(trace, ["cld"], [0.5], dataset=smaller, training=own)
