"""Leave-one-out: the definition, partial banks, and real retraining that finds a duplicated label flip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comove.attribution.leave_one_out import LeaveOneOut, leave_one_out_effects
from comove.data import Splits
from comove.errors import InputError
from comove.evaluation import RetrainingBank, subsets
from comove.training import Recipe, Training


def test_effects_of_a_linear_model_are_its_weights() -> None:
    weights = np.random.default_rng(0).standard_normal((6, 2))
    masks = ~np.eye(6, dtype=bool)
    found = leave_one_out_effects(masks, masks @ weights)
    for m in range(6):  # with m: the mean over the five models that lack another one
        others = np.delete(weights, m, 0)
        expected = weights.sum(0) - others.mean(0) - (weights.sum(0) - weights[m])
        np.testing.assert_allclose(found[m], expected)


def test_a_model_trained_on_everything_counts_as_having_every_example() -> None:
    masks = np.array([[True, True, True], [False, True, True]])
    effects = leave_one_out_effects(masks, np.array([[5.0], [3.0]]))
    assert effects[0, 0] == 2.0
    assert np.isnan(effects[1:]).all()


def test_only_the_ids_left_out_are_scored_and_the_others_counted(small_digits: Splits, tmp_path: Path) -> None:
    chosen = small_digits.train.ids[[3, 40, 7]]
    plan = subsets.leave_one_out(chosen)
    bank = RetrainingBank.create(tmp_path, small_digits, Training("mlp", Recipe(epochs=2)), subsets=plan, seeds=2).run()
    np.testing.assert_array_equal((~bank.masks).sum(1), 1)
    scores = LeaveOneOut().fit(bank).attribute()
    assert set(scores.train_ids.tolist()) == set(chosen.tolist())
    assert scores.info["not_scored"] == 197
    outputs = bank.outputs("margin").mean(1)
    row = np.flatnonzero(scores.train_ids == chosen[0])[0]
    np.testing.assert_allclose(scores.values[row], outputs[1:].mean(0) - outputs[0], rtol=1e-4, atol=1e-5)


def test_a_bank_of_halves_is_refused(small_bank: RetrainingBank) -> None:
    with pytest.raises(InputError, match=r"lack 100 to 100.*fz"):
        LeaveOneOut().fit(small_bank)


def test_an_unknown_id_to_leave_out_is_named(small_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="999999"):
        RetrainingBank.create(tmp_path, small_digits, "mlp", subsets=subsets.leave_one_out([999999]))
