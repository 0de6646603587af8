"""Prediction brittleness where the truth is planted: models that flip at known removals, a network that counts votes.

Planted models know for each query a class and a need: model r predicts another class as soon as need + r examples of
that class are gone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.calls import grouped
from torch import nn

from comove.attribution import Scores
from comove.attribution.scores import named_scores
from comove.data import ExampleSet, Ids, Splits
from comove.errors import CorruptFileError, FingerprintError, InputError
from comove.evaluation import Brittleness, RetrainingBank, brittleness
from comove.evaluation.prediction_brittleness.benchmark import measure_brittleness
from comove.evaluation.prediction_brittleness.removal import plan_removal, warn_of_emptied_classes
from comove.training import Recipe

N, Q = 30, 6
IDS = np.arange(100, 100 + N)
QUERIES = np.arange(900, 900 + Q)
NEEDS = np.array([1, 2, 3, 5, 8, 99])
KS = [1, 2, 4, 8]


def planted_splits() -> Splits:
    train = ExampleSet.from_arrays(np.zeros((N, 2), np.float32), IDS % 3, ids=IDS, classes=list("abc"))
    query = ExampleSet.from_arrays(np.zeros((Q, 2), np.float32), QUERIES % 3, ids=QUERIES, classes=list("abc"))
    return Splits(train, None, query)


SAME_CLASS = (IDS[:, None] % 3 == QUERIES % 3).astype(np.float32)


class Planted:
    """Model r without a set predicts the class after a query's own if need + r of its class are gone."""

    def __init__(self, again: Ids | None = None, voting: int = 3) -> None:
        predicted = np.tile(QUERIES % 3, (2 * voting, 1))
        if again is not None:
            predicted[voting:] = again
        self.predicted = predicted

    def full(self, models: int) -> Any:
        return self._logits(self.predicted[:models])

    def without(self, removed: Sequence[Ids], queries: Sequence[int], models: int) -> Any:
        gone_C = np.array([(ids % 3 == QUERIES[q] % 3).sum() for ids, q in zip(removed, queries, strict=True)])
        flips_CR = gone_C[:, None] >= NEEDS[queries][:, None] + np.arange(models)
        return self._logits((QUERIES[queries][:, None] + flips_CR) % 3)

    @staticmethod
    def _logits(predicted: Any) -> Any:
        return np.eye(3, dtype=np.float32)[predicted]


def measured(**changes: Any) -> Brittleness:
    own = Scores(SAME_CLASS + np.random.default_rng(0).random((N, Q)) / 2, IDS, QUERIES, "own class first")
    other = Scores(-SAME_CLASS, IDS, QUERIES, "own class last")
    removal = plan_removal(named_scores([own, other]), planted_splits(), 8, queries=None, controls=True, seed=0)
    options: dict[str, Any] = {"seeds": 3, "base_seeds": 3, "retraining": Planted(), **changes}
    return measure_brittleness(removal, KS, **options)


# --- planted flips ----------------------------------------------------------------------------------------------------


def test_a_prediction_flips_in_exactly_the_models_whose_need_is_met() -> None:
    found = measured()
    k, r = np.array(KS)[:, None], np.arange(3)
    expected_QKR = k >= NEEDS[:, None, None] + r
    np.testing.assert_array_equal(found.flips[0], expected_QKR)
    np.testing.assert_array_equal(found.flips[3], expected_QKR)  # same-class removal takes no other either
    assert not found.flips[1].any()
    for i, k_ in enumerate(KS):
        assert found.rate("own class first", k_).value == expected_QKR[:, i].mean()
        assert found.rate("own class last", k_).value == 0


def test_random_removal_flips_as_its_own_draw_says() -> None:
    removal = plan_removal(
        named_scores(Scores(SAME_CLASS, IDS, QUERIES, "m")), planted_splits(), 8, queries=None, controls=True, seed=0
    )
    gone_QK = removal.in_class[1][:, np.array(KS) - 1]
    np.testing.assert_array_equal(measured().flips[2], gone_QK[..., None] >= NEEDS[:, None, None] + np.arange(3))


def test_margins_fall_by_what_a_flip_costs() -> None:
    """Logits are 1 and 0, 0: the label's margin is 1 - log 2 where it is predicted, and -log(1 + e) where it is not."""
    found = measured()
    loss = 1 - math.log(2) + math.log1p(math.e)
    for k in KS:
        rate = found.rate("own class first", k).value
        assert found.margin_drop("own class first", k).value == pytest.approx(loss * rate, abs=1e-6)
    assert found.margin_drop("own class last", 8) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)


def test_noise_is_that_of_models_that_have_no_vote() -> None:
    again = np.tile(QUERIES % 3, (3, 1))
    for model, query, step in ((0, 0, 1), (1, 0, 2), (2, 4, 1)):
        again[model, query] = (QUERIES[query] + step) % 3
    found = measured(retraining=Planted(again))
    assert found.noise.value == pytest.approx(3 / (3 * Q))
    np.testing.assert_array_equal(found.flips, measured().flips)
    first = found.rows()[0]
    assert (first["method"], first["k"]) == ("nothing removed", 0)
    assert first["flipped"] == found.noise.value
    assert first["margin_drop"] == pytest.approx((1 - math.log(2) + math.log1p(math.e)) / Q, abs=1e-6)


def test_flips_are_counted_from_the_prediction_not_from_the_label() -> None:
    planted = Planted()
    planted.predicted[:, 5] = (QUERIES[5] + 1) % 3  # the ensemble is wrong there
    found = measured(retraining=planted)
    assert found.wrong.tolist() == [False] * 5 + [True]
    assert found.flips[:, 5].all()  # models without some examples predict the label there: another class
    right = found.only(found.query_ids[~found.wrong])
    assert right.query_ids.tolist() == QUERIES[:5].tolist()
    np.testing.assert_array_equal(right.flips, found.flips[:, :5])
    assert right.rate("own class last", 8).value == 0
    assert "6 queries, 1 predicted wrongly before" in found.notes()[0]


def test_differences_are_taken_query_by_query() -> None:
    found = measured()
    same = found.difference("own class first", "same-class removal", 8)
    assert same == (0.0, 0.0, 0.0)  # pairs: two equal columns leave no doubt, however wide each interval is
    against = found.difference("own class first", "own class last", 4)
    assert against.value == found.rate("own class first", 4).value
    assert found.difference("own class last", "own class first", 4).value == -against.value


def test_an_interval_is_that_of_the_method_alone() -> None:
    found = measured()
    assert found.rate("own class first", 4).low < found.rate("own class first", 4).value
    assert found.rate("own class last", 4).high == pytest.approx(1 - 0.025 ** (1 / Q))


# --- telling and keeping ----------------------------------------------------------------------------------------------


def test_rows_hold_every_method_and_k_in_order(tmp_path: Path) -> None:
    found = measured()
    table = found.to_pandas()
    assert table["method"].tolist() == ["nothing removed", *np.repeat(found.methods, 4)]
    assert table["k"].tolist() == [0, *KS * 4]
    pd.testing.assert_frame_equal(pd.read_csv(found.to_csv(tmp_path / "a.csv")), table)
    lines = repr(found).splitlines()
    assert lines[0] == "Brittleness(6 queries; nothing removed: 0.0% flipped)"
    assert lines[1].split() == ["k", "=", "1", "2", "4", "8"]
    assert lines[2].split() == ["own", "class", "first", "5.6%", "16.7%", "44.4%", "72.2%"]  # 1, 3, 8, 13 of 18
    assert lines[3].split() == ["own", "class", "last", *["0.0%"] * 4]


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    found = measured()
    found.save(tmp_path / "new" / "b.safetensors")
    again = Brittleness.load(tmp_path / "new" / "b.safetensors")
    assert again.rows() == found.rows()
    assert again.notes() == found.notes()
    assert (again.methods, again.controls, again.ks) == (found.methods, found.controls, found.ks)
    np.testing.assert_array_equal(again.flips, found.flips)
    Scores(SAME_CLASS, IDS, QUERIES, "m").save(tmp_path / "s.safetensors")
    with pytest.raises(CorruptFileError, match="not a comove brittleness"):
        Brittleness.load(tmp_path / "s.safetensors")


def test_unknown_methods_and_ks_are_named() -> None:
    with pytest.raises(InputError, match=r"No method 'own class frist' here.*Did you mean 'own class first'"):
        measured().rate("own class frist", 4)
    with pytest.raises(InputError, match="No k 3 here, only 1, 2, 4, 8"):
        measured().rate("own class first", 3)


# --- emptied classes --------------------------------------------------------------------------------------------------


def test_emptied_classes_are_counted_and_warned_of_before_training() -> None:
    own = Scores(SAME_CLASS, IDS, QUERIES, "own class first")
    removal = plan_removal(named_scores(own), planted_splits(), 12, queries=None, controls=True, seed=0)
    found = measure_brittleness(removal, [9, 10, 12], Planted(), seeds=1, base_seeds=3)
    assert found.class_emptied.sum(1).tolist() == [[0, 6, 6], [0, 0, 0], [0, 6, 6]]
    told = "own class first removes every example of the query's class at k = 10 for 6 queries, k = 12 for 6 queries."
    models = "1 model per removed set; of all examples 3 models for the prediction, 3 for the noise of retraining."
    assert found.notes() == [
        f"6 queries, 0 predicted wrongly before anything is removed; {models}",
        told,
        told.replace("own class first", "same-class removal"),
    ]
    with pytest.warns(UserWarning, match="own class first from k = 10, same-class removal from k = 10"):
        warn_of_emptied_classes(removal, [9, 10, 12])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_emptied_classes(removal, [9])


# --- a network that takes votes ---------------------------------------------------------------------------------------


class Votes(nn.Module):
    """Linear without bias from zero: inputs that are unit vectors share no weight, so each group's majority wins."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x)
        return logits


def votes(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Votes(input_shape[0], num_classes)


LEADS = np.array([1, 3, 5, 7])
VOTERS = 6


def elections() -> tuple[Splits, Scores]:
    """Query q is unit vector q; VOTERS + LEADS[q] examples like it are of class 1, VOTERS of class 0."""
    group = np.concatenate([np.full(2 * VOTERS + lead, q) for q, lead in enumerate(LEADS)])
    label = np.concatenate([np.r_[np.ones(VOTERS + lead, int), np.zeros(VOTERS, int)] for lead in LEADS])
    train = ExampleSet.from_arrays(np.eye(4, dtype=np.float32)[group], label, classes=["no", "yes"])
    query = ExampleSet.from_arrays(
        np.eye(4, dtype=np.float32), np.ones(4, int), ids=900 + np.arange(4), classes=["no", "yes"]
    )
    values_NQ = (group[:, None] == np.arange(4)) * np.where(label == 1, 1.0, -1.0)[:, None]
    return Splits(train, None, query), Scores(values_NQ.astype(np.float32), train.ids, query.ids, "votes")


RECIPE = Recipe(epochs=20, batch_size=100, lr=0.5)


def test_a_trained_network_flips_when_the_votes_removed_exceed_the_lead(tmp_path: Path) -> None:
    splits, scores = elections()
    options: dict[str, Any] = {
        "dataset": splits,
        "model": votes,
        "recipe": RECIPE,
        "out": tmp_path,
        "executor": "serial",
    }
    found = brittleness(scores, [2, 4, 6, 8], seeds=2, base_seeds=1, controls=False, **grouped(options))
    assert found.prediction.tolist() == [1, 1, 1, 1]
    expected_QK = np.array([2, 4, 6, 8]) > LEADS[:, None]
    np.testing.assert_array_equal(found.flips[0], np.repeat(expected_QK[..., None], 2, axis=2))
    assert found.noise.value == 0


# --- digits, end to end -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_scores(small_digits: Splits) -> dict[str, Scores]:
    query = small_digits.query
    rng = np.random.default_rng(0)
    same = (small_digits.train.labels[:, None] == query.labels).astype(np.float32)
    first = Scores(same + rng.random(same.shape, np.float32) / 2, small_digits.train.ids, query.ids, "a")
    return {"a": first, "twin": first, "b": Scores(-first.values, first.train_ids, first.query_ids, "b")}


def test_digits_end_to_end(
    small_digits: Splits, digits_scores: dict[str, Scores], short_recipe: Recipe, tmp_path: Path
) -> None:
    queries = small_digits.query.ids[:4]
    options: dict[str, Any] = {"dataset": small_digits, "model": "mlp", "recipe": short_recipe, "queries": queries}
    options |= {"out": tmp_path, "seeds": 2, "base_seeds": 2, "executor": "serial"}
    found = brittleness(digits_scores, [0, 10, 3], **grouped(options))
    assert found.ks == (3, 10)
    assert found.methods == ("a", "twin", "b", "random removal", "same-class removal")
    np.testing.assert_array_equal(found.predicted[0], found.predicted[1])
    models = list((tmp_path / "removal-bank" / "results").iterdir())
    assert len(models) == 4 + (5 - 1) * 4 * 2 * 2  # 2 + 2 of everything; the twin's removals cost nothing

    bank = RetrainingBank.load(tmp_path / "removal-bank")
    for q, k in ((0, 3), (3, 10)):
        gone = digits_scores["b"].top(k, query=int(queries[q])).ids
        row = np.flatnonzero((bank.masks == ~np.isin(bank.train_ids, gone)).all(1))
        own = bank.part(row).outputs("predicted")[0, :2, q]
        np.testing.assert_array_equal(found.predicted[2, q, found.ks.index(k)], own)

    kept = {file: file.stat().st_mtime_ns for file in models}
    more = brittleness({**digits_scores, "c": digits_scores["b"]}, [3, 10, 15], **grouped(options))
    np.testing.assert_array_equal(more.predicted[:3, :, :2], found.predicted[:3])
    np.testing.assert_array_equal(more.predicted[-2:, :, :2], found.predicted[-2:])
    assert all(file.stat().st_mtime_ns == kept[file] for file in models)
    assert Brittleness.load(tmp_path / "brittleness.safetensors").rows() == more.rows()
    assert len(pd.read_csv(tmp_path / "brittleness.csv")) == 1 + 6 * 3

    with pytest.raises(FingerprintError, match=r"recipe\.lr"):
        brittleness(digits_scores, 3, **grouped({**options, "recipe": short_recipe.with_changes(lr=0.1)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": [-1]}, "numbers of examples from 1 on"),
        ({"ks": []}, "numbers of examples from 1 on"),
        ({"ks": 199}, "k must be from 1 to N - 2 = 198"),
        ({"seeds": 0}, "^seeds must be a whole number from 1 on, got 0"),
        ({"base_seeds": 0}, "base_seeds must be a whole number from 1 on, got 0"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, small_digits: Splits, digits_scores: dict[str, Scores], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"ks": 3, "dataset": small_digits, "out": tmp_path / "out", "model": "mlp", **changes}
    with pytest.raises(InputError, match=message):
        brittleness(digits_scores, **grouped(options))
    assert not (tmp_path / "out").exists()
