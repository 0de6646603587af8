"""Whitened rows and values in the place of differences, against dense linear algebra and NumPy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from comove.correlation import pairwise, whitened
from comove.errors import InputError, InputTypeError

ROWS, N, Q = 12, 40, 5


Losses = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture
def losses() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, N)).cumsum(0) + 5, rng.normal(size=(ROWS, Q)).cumsum(0)


def dense(train: Any, query: Any, ridge: float, of: str) -> Any:
    """Delta_m' (Delta Delta' / mean eigenvalue + ridge I)^-1 Delta_q / (T - 1), written out."""
    delta, asked = (np.diff(side, axis=0) if of == "differences" else side for side in (train, query))
    delta, asked = delta - delta.mean(0), asked - asked.mean(0)
    gram = delta @ delta.T
    solved = np.linalg.inv(gram / (np.trace(gram) / len(gram)) + ridge * np.eye(len(gram))) @ asked
    return delta.T @ solved / (len(delta) - 1)


@pytest.mark.parametrize("of", ["differences", "values"])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_whitened_rows_are_those_of_the_dense_inverse(losses: Losses, of: Any, ridge: float) -> None:
    train, query = losses
    found = pairwise(train, whitened(train, query, ridge, of=of), correlation="covariance", of=of)
    np.testing.assert_allclose(found, dense(train, query, ridge, of), rtol=2e-5, atol=1e-7)


def test_with_a_great_ridge_it_is_the_covariance(losses: Losses) -> None:
    train, query = losses
    found = pairwise(train, 1e6 * whitened(train, query, 1e6), correlation="covariance")
    np.testing.assert_allclose(found, pairwise(train, query, correlation="covariance"), rtol=1e-4, atol=1e-6)


def test_torch_losses_give_the_same(losses: Losses) -> None:
    train, query = losses
    found = whitened(torch.from_numpy(train), torch.from_numpy(query), 0.1)
    np.testing.assert_allclose(found, whitened(train, query, 0.1), rtol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_above_zero_is_refused(losses: Losses, ridge: float) -> None:
    with pytest.raises(InputError, match="ridge must be a finite number above 0"):
        whitened(*losses, ridge)


def test_losses_that_never_change_are_refused(losses: Losses) -> None:
    with pytest.raises(InputError, match="nothing to whiten"):
        whitened(np.ones((ROWS, N)), losses[1], 0.1)


@pytest.mark.parametrize("correlation", ["pearson", "covariance", "spearman"])
def test_values_are_correlated_as_they_are(
    losses: Losses, correlation: Literal["pearson", "covariance", "spearman"]
) -> None:
    train, query = losses
    found = pairwise(train, query, correlation=correlation, of="values")
    expected: Any = {
        "pearson": np.corrcoef(train.T, query.T),
        "covariance": np.cov(train.T, query.T),
        "spearman": np.asarray(spearmanr(train, query).statistic),
    }[correlation]
    np.testing.assert_allclose(found, expected[:N, N:], rtol=1e-5, atol=1e-6)


def test_values_take_row_scaling_and_common_mode_too(losses: Losses) -> None:
    train, query = losses
    zero = np.zeros((1, N)), np.zeros((1, Q))
    sums = [np.concatenate([first, side.cumsum(0)]) for first, side in zip(zero, losses, strict=True)]
    options: dict[str, Any] = {"row_scaling": "rms", "common_mode": "remove"}
    np.testing.assert_allclose(
        pairwise(train, query, of="values", **options), pairwise(*sums, **options), rtol=1e-4, atol=1e-5
    )


def test_an_unknown_series_is_refused(losses: Losses) -> None:
    with pytest.raises((InputError, InputTypeError), match="of"):
        pairwise(*losses, of="sums")  # type: ignore[arg-type]
