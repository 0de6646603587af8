"""Counterfactual sizes: bisection finds the planted one with few questions, and is told off where flips go and come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.calls import grouped

from comove.attribution import Scores
from comove.attribution.scores import named_scores
from comove.data import ExampleSet, Ids, Splits
from comove.errors import CorruptFileError, InputError
from comove.evaluation import Brittleness, Counterfactual, brittleness, counterfactual_sizes
from comove.evaluation.prediction_brittleness.counterfactual import search_counterfactuals
from comove.evaluation.prediction_brittleness.removal import plan_removal
from comove.training import Recipe

N, Q = 60, 20
IDS, QUERIES = np.arange(100, 100 + N), np.arange(900, 900 + Q)
GRID = np.array([1, 2, 3, 5, 8, 13, 21, 34])
NEEDS = np.r_[np.arange(1, 20), 40]  # how many removals flip each query; the last is beyond the grid


class Planted:
    """Models that flip a query as a rule says; asks are kept. The ids removed are the lowest, so k is their number."""

    def __init__(self, flips: Callable[[int, int, int], bool], again: int = 0) -> None:
        self.flips, self.again, self.rounds = flips, again, list[Sequence[Ids]]()

    def full(self, models: int) -> Any:
        predicted = np.zeros((models, Q), int)
        predicted[models // 2 :, : self.again] = 1
        return np.eye(2, dtype=np.float32)[predicted]

    def without(self, removed: Sequence[Ids], queries: Sequence[int], models: int) -> Any:
        self.rounds.append(removed)
        predicted = [
            [int(self.flips(q, len(ids), r)) for r in range(models)] for ids, q in zip(removed, queries, strict=True)
        ]
        return np.eye(2, dtype=np.float32)[predicted]


def needed(q: int, k: int, r: int) -> bool:
    return bool(k >= NEEDS[q])


def search(planted: Planted, **changes: Any) -> Counterfactual:
    train = ExampleSet.from_arrays(np.zeros((N, 2), np.float32), IDS % 2, ids=IDS)
    query = ExampleSet.from_arrays(np.zeros((Q, 2), np.float32), QUERIES % 2, ids=QUERIES)
    scores = Scores(np.tile(-np.arange(N, dtype=np.float32)[:, None], Q), IDS, QUERIES, "m")
    removal = plan_removal(named_scores(scores), Splits(train, None, query), 34, queries=None, controls=False, seed=0)
    return search_counterfactuals(removal, GRID, planted, **{"seeds": 3, "base_seeds": 3, **changes})


def smallest_of_grid(need: int) -> int:
    return next((int(k) for k in GRID if k >= need), -1)


def test_bisection_finds_the_smallest_size_of_the_grid_that_flips() -> None:
    found = search(Planted(needed))
    assert found.sizes[0].tolist() == [smallest_of_grid(need) for need in NEEDS]
    assert found.not_flipped == {"m": 1}
    assert found.contradictions == (0, Q)


def test_it_asks_the_largest_first_and_then_one_size_a_query_and_halving() -> None:
    planted = Planted(needed)
    found = search(planted)
    assert len(planted.rounds) == 1 + math.ceil(math.log2(GRID.size)) + 1  # and the audit
    assert {len(ids) for ids in planted.rounds[0]} == {34}
    assert len(planted.rounds[0]) == Q
    assert all(len(asked) <= Q - 1 for asked in planted.rounds[1:-1])  # what the largest did not flip is settled
    assert (found.tried != -1).sum() == sum(map(len, planted.rounds[:-1]))
    assert not ((found.tried != -1) & (found.audited != -1)).any()
    assert ((found.audited != -1).sum(2) == 1).all()


def test_the_majority_of_the_models_decides() -> None:
    assert (search(Planted(lambda q, k, r: k >= 5 and r < 2)).sizes == 5).all()
    assert (search(Planted(lambda q, k, r: k >= 5 and r < 1)).sizes == -1).all()


def test_flips_that_are_not_monotone_are_found_by_the_audit() -> None:
    """Sizes 3 and 34 flip, nothing else does: bisection sees 34 only, and 1 in 5 of the sizes left is the 3."""
    found = search(Planted(lambda q, k, r: k in (3, 34)))
    assert (found.sizes == 34).all()
    wrong, asked = found.contradictions
    assert asked == Q
    assert wrong == ((found.audited[0] == 1) & (GRID == 3)).sum()
    assert wrong > 0
    assert f"of {Q} other sizes tried, {wrong} contradict that" in found.notes()[0]


def test_a_larger_size_that_holds_contradicts_as_a_smaller_one_that_flips() -> None:
    found = search(Planted(lambda q, k, r: k in (1, 2, 3, 13, 34)))  # bisection asks 34, 5, 13, 8; 1, 2, 3, 21 are left
    assert (found.sizes == 13).all()
    assert found.contradictions == (Q, Q)
    asked = {int(GRID[g]): int(found.audited[0, q, g]) for q, g in np.argwhere(found.audited[0] != -1)}
    assert asked == {1: 1, 2: 1, 3: 1, 21: 0}


def test_the_audited_sizes_do_not_depend_on_which_methods_stand_by() -> None:
    one, again = search(Planted(needed)), search(Planted(needed))
    np.testing.assert_array_equal(one.audited, again.audited)
    assert (search(Planted(needed), seed=1).audited != one.audited).any()


def test_shares_count_queries_flipped_within_the_budget() -> None:
    found = search(Planted(needed))
    for k in GRID:
        assert found.share("m", int(k)).value == pytest.approx(np.mean([need <= k for need in NEEDS]))
    assert [row["k"] for row in found.rows()] == GRID.tolist()
    assert [row["flipped"] for row in found.rows()] == [found.share("m", int(k)).value for k in GRID]
    assert found.share("m", 4).value == found.share("m", 3).value
    assert found.median("m") == smallest_of_grid(10)
    assert search(Planted(lambda q, k, r: q < 9)).median("m") == np.inf
    assert search(Planted(lambda q, k, r: q < 9)).median_text("m") == "> 34"
    assert found.median_text("m") == "13"
    assert replace(found, grid=found.grid + 2000).median_text("m") == "2,013"
    assert search(Planted(lambda q, k, r: q < 10)).median("m") == 1
    with pytest.raises(InputError, match="No method 'n' here, only m"):
        found.share("n", 3)


def test_noise_is_the_share_that_merely_training_again_flips() -> None:
    assert search(Planted(needed)).noise == 0
    noisy = search(Planted(needed, again=4))
    assert noisy.noise == 4 / Q
    assert "Without any removal, 20.0% of the 20 queries flip" in noisy.notes()[1]


def test_what_is_saved_is_what_is_loaded_and_tables_leave_out_what_never_flipped(tmp_path: Path) -> None:
    found = search(Planted(needed))
    found.save(tmp_path / "c.safetensors")
    again = Counterfactual.load(tmp_path / "c.safetensors")
    assert again.rows() == found.rows()
    assert again.notes() == found.notes()
    assert repr(again) == repr(found)
    assert repr(found).splitlines()[1] == "m  half by k = 13, 1 not within 34"
    table = found.to_pandas()
    assert table["m"].isna().tolist() == [False] * 19 + [True]
    assert table.loc[900, "m"] == 1
    assert pd.read_csv(found.to_csv(tmp_path / "c.csv"))["flipped"].tolist() == [row["flipped"] for row in found.rows()]
    with pytest.raises(CorruptFileError, match="not a comove brittleness"):
        Brittleness.load(tmp_path / "c.safetensors")


def test_digits_end_to_end_share_their_models_with_brittleness(
    small_digits: Splits, short_recipe: Recipe, tmp_path: Path
) -> None:
    same = (small_digits.train.labels[:, None] == small_digits.query.labels).astype(np.float32)
    drawn = np.random.default_rng(0).random(same.shape, np.float32) / 2
    scores = Scores(same + drawn, small_digits.train.ids, small_digits.query.ids, "same class first")
    options: dict[str, Any] = {"dataset": small_digits, "model": "mlp", "recipe": short_recipe, "executor": "serial"}
    options |= {"queries": small_digits.query.ids[:3], "out": tmp_path, "seeds": 2, "base_seeds": 2}
    with pytest.warns(UserWarning, match="no training example"):
        at_30 = brittleness(scores, [30], **grouped(options))
    before = len(list((tmp_path / "removal-bank" / "results").iterdir()))
    found = counterfactual_sizes(scores, [30, 1, 5, 2, 13], **grouped(options))
    assert found.grid.tolist() == [1, 2, 5, 13, 30]
    trained = len(list((tmp_path / "removal-bank" / "results").iterdir())) - before
    assert trained == 2 * ((found.tried[..., :-1] != -1).sum() + (found.audited[..., :-1] != -1).sum())
    flipped = (at_30.flips[:, :, 0].mean(2) > 0.5) | (found.tried[..., -1] == 1)  # one of two ties: the smaller class
    np.testing.assert_array_equal(found.sizes != -1, flipped)
    assert (found.sizes[0] != -1).all()  # the whole class is gone
    assert repr(Counterfactual.load(tmp_path / "counterfactual.safetensors")) == repr(found)
    assert len(pd.read_csv(tmp_path / "counterfactual.csv")) == 3 * 5


def test_what_cannot_work_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    same = (small_digits.train.labels[:, None] == small_digits.query.labels).astype(np.float32)
    scores = Scores(same, small_digits.train.ids, small_digits.query.ids, "same class")
    with pytest.raises(InputError, match="at least one number of examples"):
        counterfactual_sizes(scores, [], dataset=small_digits, out=tmp_path / "o")
    with pytest.raises(InputError, match="got 199"):
        counterfactual_sizes(scores, 199, dataset=small_digits, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
