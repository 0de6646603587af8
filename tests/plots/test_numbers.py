"""Numbers in figures and tables: one style."""

from __future__ import annotations

import math

import numpy as np
import pytest

from comove.display import fixed, percent, scored, span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.74, "+0.740"),
        (-0.0831, "\u22120.0831"),
        (1, "+1.00"),
        (0.9996, "+1.00"),
        (9.996, "+10.0"),
        (99.96, "+100"),
        (-1234.6, "\u22121,235"),
        (0.001, "+0.00100"),
        (0.0009999, "+0.00100"),
        (-0.00012345, "\u22121.2\u00d710\u207b\u2074"),
        (1.5e12, "+1.5\u00d710\u00b9\u00b2"),
        (0, "0"),
        (-0.0, "0"),
        (math.nan, "\u2013"),
        (-math.inf, "\u2013"),
    ],
)
def test_a_score_has_three_digits_a_sign_and_a_power_of_ten_where_it_is_tiny_or_huge(value: float, text: str) -> None:
    assert scored(value) == text
    assert scored(float(np.float32(value))) == text
    assert scored(value, plus=False) == text.removeprefix("+")


def test_counts_have_no_decimals() -> None:
    assert [scored(value, counts=True) for value in (12.0, -3.0, 0.0, 12345.0)] == ["+12", "\u22123", "0", "+12,345"]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.0001, 3, "0.000"), (0.1 + 0.2, 3, "0.300"), (-1234.5678, 1, "\u22121,234.6"), (math.nan, 3, "\u2013")],
)
def test_decimals_are_as_many_as_asked_for_and_zero_has_no_minus(value: float, digits: int, text: str) -> None:
    assert fixed(value, digits) == text


def test_an_interval_without_ends_is_a_dash() -> None:
    assert span(-0.1, 0.25, 2) == "\u22120.10 to 0.25"
    assert span(math.nan, math.nan) == span(0.1, math.inf) == "\u2013"


@pytest.mark.parametrize(("share", "text"), [(0.1, "10%"), (0.0025, "0.25%"), (0.1 + 0.2, "30%"), (1.0, "100%")])
def test_a_share_has_the_digits_it_needs(share: float, text: str) -> None:
    assert percent(share) == text
