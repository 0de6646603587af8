"""Random subsets: exact sizes, uniform, and each row its own stream."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from scipy import stats

from comove.errors import InputError
from comove.evaluation import subsets


@pytest.mark.parametrize("n", [20, 97, 100, 1400])
@pytest.mark.parametrize("alpha", ["0.3", "0.5", "0.55", "0.1", "0.7", "0.29", "0.57"])
def test_every_subset_holds_exactly_the_ceiling_of_alpha_n(alpha: str, n: int) -> None:
    expected = ceil(Fraction(alpha) * n)
    masks = subsets.random(float(alpha), 5).masks(n)
    assert (masks.shape, masks.dtype.kind) == ((5, n), "b")
    assert masks.sum(1).tolist() == [expected] * 5


@pytest.mark.parametrize("n", [3, 10, 1399, 1400, 50_000])
def test_leaving_one_out_is_alpha_one_less_than_n_over_n(n: int) -> None:
    assert subsets.random((n - 1) / n, 1).masks(n).sum() == n - 1


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    few, many = (subsets.random(0.5, count, seed=4).masks(60) for count in (3, 50))
    np.testing.assert_array_equal(few, many[:3])
    assert np.unique(many, axis=0).shape[0] == 50


def test_the_seed_decides() -> None:
    a, b, c = (subsets.random(0.5, 4, seed).masks(60) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any(1).all()


def test_every_example_is_drawn_equally_often() -> None:
    n, count = 40, 800
    drawn = subsets.random(0.25, count).masks(n).sum(0)
    statistic = ((drawn - count / 4) ** 2).sum() / (count * 0.25 * 0.75) * (n - 1) / n
    assert 0.001 < stats.chi2.sf(statistic, n - 1) < 0.999


@pytest.mark.parametrize("alpha", [0, 1, -0.5, 1.5, float("nan")])
def test_alpha_outside_zero_and_one_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match=r"alpha must be in \(0, 1\)"):
        subsets.random(alpha, 10)


def test_no_subset_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 subset, got 0"):
        subsets.random(0.5, 0)


@pytest.mark.parametrize(("alpha", "n", "size"), [(0.05, 10, 1), (0.99, 10, 10)])
def test_subsets_of_one_or_of_everything_are_refused(alpha: float, n: int, size: int) -> None:
    with pytest.raises(InputError, match=f"gives subsets of {size}; choose from 2 to 9"):
        subsets.random(alpha, 3).masks(n)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed must be a whole number"):
        subsets.random(0.5, 3, seed=-1)


def test_the_plan_is_json() -> None:
    assert subsets.random(0.5, 3, 2).to_json() == {"kind": "random", "alpha": 0.5, "count": 3, "seed": 2}
