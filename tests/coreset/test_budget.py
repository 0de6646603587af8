"""Budgets: what a share, a number and class budgets mean, and every one that makes no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from comove.coreset import Budget, resolve_budget
from comove.errors import InputError, InputTypeError

LABELS = np.array([0] * 5 + [1] * 3 + [2] * 2)  # coresets.md section 0: counts (5, 3, 2)


def resolved(budget: Any, *, balanced: bool = True, labels: Any = LABELS, n: int = 10) -> Budget:
    return resolve_budget(budget, labels, n, balanced, "the method")


def test_a_total_of_four_is_shared_two_one_one() -> None:
    assert resolved(4) == Budget(4, {0: 2, 1: 1, 2: 1})


@pytest.mark.parametrize("total", range(1, 11))
def test_shares_add_up_and_never_exceed_a_class(total: int) -> None:
    per_class = resolved(total).per_class
    assert per_class is not None
    assert sum(per_class.values()) == total
    for label, count in per_class.items():
        exact = total * np.count_nonzero(label == LABELS) / 10
        assert np.floor(exact) <= count <= np.ceil(exact)


@pytest.mark.parametrize(
    ("budget", "total"), [(0.4, 4), (1.0, 10), (np.float32(0.5), 5), (1, 1), (10, 10), (np.int64(7), 7), (0.05001, 1)]
)
def test_a_float_is_a_share_and_an_integer_a_number(budget: Any, total: int) -> None:
    assert resolved(budget, balanced=False) == Budget(total, None)
    assert resolved(budget).total == total


@pytest.mark.parametrize("budget", [[2, 1, 1], (2, 1, 1), np.array([2, 1, 1]), {0: 2, 1: 1, 2: 1}, {2: 1, 0: 2, 1: 1}])
def test_class_budgets_come_as_a_sequence_or_a_mapping(budget: Any) -> None:
    assert resolved(budget) == Budget(4, {0: 2, 1: 1, 2: 1})


def test_classes_a_mapping_leaves_out_get_nothing() -> None:
    assert resolved({1: 3}) == Budget(3, {1: 3})


def test_labels_need_not_be_consecutive() -> None:
    assert resolved(2, labels=np.array([4, 4, 9, 9]), n=4) == Budget(2, {4: 1, 9: 1})
    assert resolved({9: 2}, labels=np.array([4, 4, 9, 9]), n=4) == Budget(2, {9: 2})


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, r"from 1 to the 10 training examples, got 0"),
        (-3, r"got -3"),
        (11, r"from 1 to the 10 training examples, got 11"),
        (0.0, r"share must be in \(0, 1\], got 0\.0"),
        (1.5, r"got 1\.5; give a number as an integer"),
        (-0.1, r"got -0\.1"),
        (float("nan"), r"got nan"),
        (0.04, r"0\.04 of 10 examples is less than one example"),
        ([2, 4, 1], r"class 1 is 4, but it holds 3"),
        ({3: 1}, r"class 3 is 1, but it holds 0"),
        ([1, 1, 1, 1], r"class 3 is 1, but it holds 0"),
        ([2, 1], r"a number for each class 0 \.\.\. 2, got 2 numbers"),
        ([], r"got 0 numbers"),
        ([0, 0, 0], r"add up to 0"),
        ({}, r"add up to 0"),
        ([1, -1, 1], r"class 1 must be a whole number from 0 on, got -1"),
        ([1, 0.5, 1], r"whole number from 0 on, got 0\.5"),
        ([True, 1, 1], r"got True"),
    ],
)
def test_budgets_that_make_no_sense_say_why(budget: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolved(budget)


@pytest.mark.parametrize("budget", [True, False, "0.1", "ab", b"ab", None, {1, 2}, 1j])
def test_budgets_of_another_type_are_refused(budget: Any) -> None:
    with pytest.raises(InputTypeError, match="a share, a number, or a number for each class"):
        resolved(budget)


def test_class_budgets_need_a_method_that_picks_class_by_class() -> None:
    with pytest.raises(InputError, match="the method does not pick class by class"):
        resolved([2, 1, 1], balanced=False)


def test_balanced_methods_need_labels_and_others_do_not() -> None:
    with pytest.raises(InputError, match="the method picks class by class and needs training labels"):
        resolved(4, labels=None)
    assert resolved(4, labels=None, balanced=False) == Budget(4, None)
