"""Agreement between methods, against SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from comove import Scores
from comove.errors import InputError
from comove.evaluation import agreement


def scores(seed: int, name: str, train: range = range(20), query: range = range(100, 104)) -> Scores:
    values = np.random.default_rng(seed).normal(size=(len(train), len(query)))
    return Scores.from_arrays(values, train_ids=list(train), query_ids=list(query), method=name)


def test_it_is_the_rank_correlation_of_what_both_have() -> None:
    one, other = scores(0, "a"), scores(1, "b", range(5, 25), range(101, 106))
    found = agreement([one, other])
    np.testing.assert_array_equal(found.query_ids, [101, 102, 103])
    expected: Any = [spearmanr(one.values[5:, 1 + i], other.values[:15, i]).statistic for i in range(3)]
    np.testing.assert_allclose(found.per_query[0, 1], expected)
    np.testing.assert_allclose(found.mean, [[1, np.mean(expected)], [np.mean(expected), 1]])
    assert list(found.to_pandas().columns) == ["a", "b"]
    assert "3 queries" in str(found)


def test_constant_scores_agree_with_nothing_and_do_not_count() -> None:
    flat = Scores.from_arrays(np.zeros((20, 4)), train_ids=range(20), query_ids=range(100, 104), method="flat")
    assert np.isnan(agreement([scores(0, "a"), flat]).mean[0, 1])


def test_one_method_or_nothing_in_common_is_refused() -> None:
    with pytest.raises(InputError, match="two or more"):
        agreement(scores(0, "a"))
    with pytest.raises(InputError, match="0 training examples and 4 queries in common"):
        agreement([scores(0, "a"), scores(1, "b", range(50, 70))])
