"""Mean scores over the queries of a report, and examples that stand in most lists."""

from __future__ import annotations

import numpy as np
import pytest

from comove.attribution import Scores
from comove.report.lists import top_lists
from comove.report.mean_influence import MeanInfluence, mean_influence

N, Q, K = 40, 12, 3


def scores(queries: int = Q, train: int = N) -> Scores:
    """Scores from nowhere; example 107 hurts every query most, 103 helps the first seven most."""
    values = np.random.default_rng(0).normal(size=(train, queries))
    values[7] -= 20
    values[3, :7] += 20
    return Scores(values.astype(np.float32), 100 + np.arange(train), np.arange(queries), "m")


def found(one: Scores, k: int = K, others: tuple[int, ...] = ()) -> tuple[MeanInfluence, list[int]]:
    named = {"m": one}
    lists = top_lists(named, one.query_ids, k, others=[np.array(others, np.int64)])
    return mean_influence(named, one.query_ids, lists), lists.train_ids.tolist()


def test_means_and_counts_are_those_of_the_scores_query_by_query() -> None:
    one = scores()
    result, ids = found(one, others=(999,))
    for place, id_ in enumerate(ids[:-1]):
        np.testing.assert_allclose(result.mean[0, place], one.values[id_ - 100].mean(), rtol=1e-5)
        for side, ranking in enumerate((one.top, one.bottom)):
            lists = [ranking(K, query=int(query)).ids for query in one.query_ids]
            assert result.listed[0, side, place] == sum(id_ in own for own in lists)
    assert ids[-1] == 999
    assert np.isnan(result.mean[0, -1])  # a suspect that the method did not score


def test_typical_is_what_stands_in_the_lists_of_more_than_half_of_the_queries() -> None:
    result, ids = found(scores())
    assert [ids[place] for place in np.flatnonzero(result.typical[0, 1])] == [107]
    assert [ids[place] for place in np.flatnonzero(result.typical[0, 0])] == [103]
    assert result.listed[0, 0, ids.index(103)] >= 7
    assert not result.typical[0, 0, ids.index(107)]


@pytest.mark.parametrize(("queries", "train", "k"), [(9, N, K), (Q, 12, 3)], ids=["few queries", "long lists"])
def test_of_few_queries_and_of_lists_that_hold_much_of_the_data_nothing_is_typical_that_chance_could_list(
    queries: int, train: int, k: int
) -> None:
    result, ids = found(scores(queries, train), k)
    listed = result.listed[0, :, ids.index(107)]
    assert listed[1] == queries
    assert result.typical.any() == (queries >= 10)
    if train == 12:  # by chance a quarter lists it, so that half would be no more than twice as many
        assert (result.listed[0][result.typical[0]] > 0.5 * queries).all()
        crowded, _ = found(scores(queries, train), 6)
        assert not crowded.typical.any()


def test_queries_that_a_method_did_not_score_do_not_count() -> None:
    one = scores()
    named = {"m": one.subset(query_ids=np.arange(5))}
    lists = top_lists(named, one.query_ids, K)
    result = mean_influence(named, one.query_ids, lists)
    assert result.queries.tolist() == [5]
    place = lists.train_ids.tolist().index(107)
    np.testing.assert_allclose(result.mean[0, place], one.values[7, :5].mean(), rtol=1e-5)
