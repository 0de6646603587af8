"""Datamodels: the solver against scikit-learn, a planted model recovered, disjoint evaluation enforced."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from comove.attribution.datamodels import Datamodels, choose_penalties, largest_penalty, lasso
from comove.errors import InputError
from comove.evaluation import RetrainingBank


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks (240, 60), outputs (240, 5) of a sparse linear model with a little noise, and its weights (60, 5)."""
    generator = np.random.default_rng(0)
    masks = (generator.random((240, 60)) < 0.5).astype(np.float64)
    weights = generator.standard_normal((60, 5)) * (generator.random((60, 5)) < 0.15)
    return masks, masks @ weights + 3 + 0.1 * generator.standard_normal((240, 5)), weights


@pytest.mark.parametrize("share", [0.7, 0.1, 0.01])
def test_lasso_equals_scikit_learns_query_by_query(planted: tuple[np.ndarray, ...], share: float) -> None:
    masks, outputs, _ = planted
    penalties = share * largest_penalty(masks, outputs)
    weights, intercepts = lasso(masks, outputs, penalties, tolerance=1e-8)
    for query, penalty in enumerate(penalties):
        expected = Lasso(alpha=penalty, tol=1e-12, max_iter=100_000).fit(masks, outputs[:, query])
        np.testing.assert_allclose(weights[:, query], expected.coef_, atol=1e-6)
        assert intercepts[query] == pytest.approx(expected.intercept_, abs=1e-6)


def test_all_weights_vanish_at_the_largest_penalty_and_not_below_it(planted: tuple[np.ndarray, ...]) -> None:
    masks, outputs, _ = planted
    top = largest_penalty(masks, outputs)
    assert not lasso(masks, outputs, top)[0].any()
    assert lasso(masks, outputs, 0.99 * top)[0].any(0).all()


def test_a_query_solved_alone_equals_the_same_query_among_others(planted: tuple[np.ndarray, ...]) -> None:
    masks, outputs, _ = planted
    penalties = 0.05 * largest_penalty(masks, outputs)
    together, _ = lasso(masks, outputs, penalties, tolerance=1e-9)
    alone, _ = lasso(masks, outputs[:, 2:3], penalties[2:3], tolerance=1e-9)
    np.testing.assert_allclose(together[:, 2], alone[:, 0], atol=1e-7)


def test_constant_outputs_give_zero_weights_and_no_nan() -> None:
    masks = (np.random.default_rng(0).random((20, 8)) < 0.5).astype(np.float64)
    weights, intercepts = lasso(masks, np.full((20, 2), 4.0), np.zeros(2))
    assert not weights.any()
    np.testing.assert_allclose(intercepts, 4.0)


def test_held_out_subsets_choose_the_penalty_that_predicts_them_best(planted: tuple[np.ndarray, ...]) -> None:
    masks, outputs, weights = planted
    held_out = np.arange(240) % 5 == 0
    path = choose_penalties(masks, outputs, held_out, np.geomspace(1, 0.001, 15))
    np.testing.assert_array_equal(path.chosen_Q, path.shares_L[path.errors_LQ.argmin(0)])
    assert (path.chosen_Q < 0.5).all()  # a planted signal is worth more than silence
    found, _ = lasso(masks, outputs, path.chosen_Q * largest_penalty(masks, outputs))
    assert np.corrcoef(found.ravel(), weights.ravel())[0, 1] > 0.99


def test_fitted_to_a_bank_the_scores_carry_its_ids_and_what_they_were_fitted_on(small_bank: RetrainingBank) -> None:
    scores = Datamodels().fit(small_bank).attribute()
    np.testing.assert_array_equal(scores.train_ids, small_bank.train_ids)
    np.testing.assert_array_equal(scores.query_ids, small_bank.query_ids)
    assert scores.info["fitted_on"] == small_bank.digests
    assert "fitted_on" not in repr(scores)


def test_measuring_on_the_subsets_it_was_fitted_on_is_refused(small_bank: RetrainingBank) -> None:
    fit_on, test_on = small_bank.halves()
    scores = Datamodels(held_out=0.4).fit(fit_on).attribute()
    assert np.isfinite(test_on.lds(scores, bootstrap=0).mean)
    with pytest.raises(InputError, match=r"fitted on 8 of the 16 subsets.*halves"):
        small_bank.lds(scores)


@pytest.mark.parametrize("options", [{"held_out": 0.0}, {"held_out": 0.99}, {"penalties": 1}, {"smallest": 1.0}])
def test_impossible_options_are_refused(small_bank: RetrainingBank, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="datamodels"):
        Datamodels(**options).fit(small_bank)  # type: ignore[arg-type]
