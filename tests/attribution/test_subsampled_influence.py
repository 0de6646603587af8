"""FZ influence: a literal loop, a planted linear model, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comove.attribution.subsampled_influence import SubsampledInfluence, difference_of_means
from comove.data import ExampleSet, Splits
from comove.errors import InputError, InputTypeError
from comove.evaluation import RetrainingBank, subsets
from comove.training import Recipe, Run, Training


def test_difference_of_means_equals_a_literal_loop() -> None:
    generator = np.random.default_rng(0)
    masks, outputs = generator.random((30, 12)) < 0.4, generator.standard_normal((30, 4)) + 100
    found = difference_of_means(masks, outputs)
    for m in range(12):
        expected = outputs[masks[:, m]].mean(0) - outputs[~masks[:, m]].mean(0)
        np.testing.assert_allclose(found[m], expected, atol=1e-10)


def test_a_planted_linear_datamodel_is_recovered_with_its_sign() -> None:
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((10, 3))
    masks = generator.random((20_000, 10)) < 0.5
    np.testing.assert_allclose(difference_of_means(masks, masks @ weights), weights, atol=0.1)


def test_an_example_always_in_is_nan_in_the_function_and_an_error_naming_its_id_in_the_method(
    small_digits: Splits, tmp_path: Path
) -> None:
    masks = np.array([[True, True], [False, True]])
    assert np.isnan(difference_of_means(masks, np.ones((2, 1)))[1]).all()
    plan = subsets.leave_one_out(small_digits.train.ids[:2])  # every other example is in all subsets
    bank = RetrainingBank.create(tmp_path, small_digits, Training("mlp", Recipe(epochs=1)), subsets=plan).run()
    with pytest.raises(InputError, match=rf"198 are not, ids {small_digits.train.ids[2]}"):
        SubsampledInfluence().fit(bank)


def test_scores_are_the_difference_of_means_of_the_banks_margins(small_bank: RetrainingBank) -> None:
    scores = SubsampledInfluence().fit(small_bank).attribute(small_bank.query_ids[5:8])
    expected = difference_of_means(small_bank.masks, small_bank.outputs("margin").mean(1))[:, 5:8]
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores.train_labels, small_bank.train_labels)


def test_the_sign_of_the_loss_is_turned(small_bank: RetrainingBank) -> None:
    scores = SubsampledInfluence(output="loss").fit(small_bank).attribute()
    expected = -difference_of_means(small_bank.masks, small_bank.outputs("loss").mean(1))
    np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-6)


def test_runs_unfinished_banks_and_new_queries_are_refused(
    small_bank: RetrainingBank, small_digits: Splits, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(InputTypeError, match="fz is computed from a retraining bank"):
        SubsampledInfluence().fit(run)
    fresh = RetrainingBank.create(
        tmp_path, small_digits, Training("mlp", Recipe(epochs=1)), subsets=subsets.random(0.5, 4)
    )
    with pytest.raises(InputError, match=r"4 of the bank's 4 models are not trained yet; call bank\.run"):
        SubsampledInfluence().fit(fresh)
    with pytest.raises(InputError, match="better and worse"):
        SubsampledInfluence(output="predicted").fit(small_bank)
    query: ExampleSet = small_digits.query
    with pytest.raises(InputError, match="knows the queries of its bank only"):
        SubsampledInfluence().fit(small_bank).attribute(query)
