"""Subsets: exact sizes, uniform, each row its own stream; removed and kept sets by id, whatever the order."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from scipy import stats

from comove.attribution import Scores
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
    with pytest.raises(InputError, match=r"alpha must be (in \(0, 1\)|finite)"):
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


def test_a_plan_is_named_by_what_does_not_grow() -> None:
    assert subsets.random(0.5, 3, 2).name == subsets.random(0.5, 300, 2).name == "random-0.5-2"
    names = {subsets.random(0.5, 3, seed).name for seed in range(3)} | {subsets.random(0.25, 3).name}
    names |= {subsets.leave_one_out().name, subsets.leave_one_out([1]).name, subsets.leave_one_out([2]).name}
    names |= {subsets.without([[1]]).name, subsets.without([[1], [1]]).name, subsets.everything().name}
    names |= {subsets.without([[1, 2], [3]]).name, subsets.without([[1], [2, 3]]).name}
    assert len(names) == 12
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)  # they are file names


def test_removed_sets_go_by_id_and_in_order() -> None:
    ids = np.array([40, 10, 30, 20, 50])
    masks = subsets.without([[10, 50], [], [20]]).masks_for(ids)
    np.testing.assert_array_equal(masks, [[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 1]])
    np.testing.assert_array_equal(subsets.everything().masks_for(ids), [[1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(subsets.leave_one_out([20]).masks_for(ids), masks[2:])
    np.testing.assert_array_equal(subsets.leave_one_out().masks_for(ids), ~np.eye(5, dtype=bool))
    np.testing.assert_array_equal(
        subsets.only([[20, 40], [50, 10, 30]]).masks_for(ids), [[1, 0, 0, 1, 0], [0, 1, 1, 0, 1]]
    )
    assert subsets.without([[10, 50]]).name == subsets.without([[50, 10]]).name  # sets have no order


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([], "at least one set of ids"),
        ([[1, 1]], "must be unique"),
        ([[7]], "Unknown training ids: 7"),
        ([[0, 1, 2]], "of 4 at most 2 can be removed, got 3"),
    ],
)
def test_sets_that_cannot_be_removed_are_refused(removed: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        subsets.without(removed).masks_for(np.arange(4))


def scores(seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(12) + 100
    return Scores(rng.integers(0, 4, (12, 3)).astype(np.float32), ids, np.array([7, 5, 9]), "tied")


def test_removals_are_the_top_k_of_each_query_in_order() -> None:
    found = scores()  # of four values only: full of ties
    plan = subsets.removals(found, [1, 4, 0], queries=[9, 7])
    for ids, (query, k) in zip(plan.removed, [(9, 1), (9, 4), (9, 0), (7, 1), (7, 4), (7, 0)], strict=True):
        assert ids.tolist() == (found.top(k, query=query).ids.tolist() if k else [])
    masks = plan.masks_for(np.sort(found.train_ids))
    assert (~masks).sum(1).tolist() == [1, 4, 0, 1, 4, 0]
    assert plan.to_json() == {"kind": "removals", "count": 6, "method": "tied", "ks": [1, 4, 0], "queries": [9, 7]}
    assert len(subsets.removals(found, 2).removed) == 3


def test_removals_do_not_depend_on_the_order_of_the_scores() -> None:
    found = scores()
    rows = np.random.default_rng(1).permutation(12)
    shuffled = found.subset(train_ids=found.train_ids[rows], query_ids=[5, 9, 7])
    assert subsets.removals(shuffled, [3], [7, 5]).name == subsets.removals(found, [3], [7, 5]).name


@pytest.mark.parametrize("ks", [[], [-1], [11], [1, 12]])
def test_removing_so_many_that_fewer_than_two_stay_is_refused(ks: list[int]) -> None:
    subsets.removals(scores(), [10])
    with pytest.raises(InputError, match="k must be from 0 to N - 2 = 10"):
        subsets.removals(scores(), ks)


def test_removals_of_unknown_or_no_queries_are_refused() -> None:
    with pytest.raises(InputError, match="Unknown query ids: 8"):
        subsets.removals(scores(), [1], [8])
    with pytest.raises(InputError, match="at least one query"):
        subsets.removals(scores(), [1], [])


def test_the_plan_is_json() -> None:
    assert subsets.random(0.5, 3, 2).to_json() == {"kind": "random", "alpha": 0.5, "count": 3, "seed": 2}
