"""The random coreset is uniform, nested and seeded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from comove.coreset import select
from comove.coreset.random import RandomCoreset
from comove.errors import InputError
from comove.trace import Trace

N, K, DRAWS = 40, 10, 600


@pytest.fixture(scope="module")
def forty() -> Trace:
    losses = np.random.default_rng(0).random((3, N))
    ids = np.random.default_rng(1).permutation(1000)[:N]
    return Trace.from_arrays(train_losses=losses, query_losses=losses, train_ids=ids)


def test_every_example_and_every_pair_is_kept_equally_often(forty: Trace) -> None:
    kept = np.array([np.isin(forty.train_ids, RandomCoreset(seed).select(forty, K).ids) for seed in range(DRAWS)])
    share = K / N
    singles = kept.sum(0)
    # without replacement the N counts have a singular covariance; (N-1)/N undoes it
    statistic = ((singles - DRAWS * share) ** 2).sum() / (DRAWS * share * (1 - share)) * (N - 1) / N
    assert 0.001 < stats.chi2.sf(statistic, N - 1) < 0.999
    pairs = (kept.T.astype(int) @ kept)[np.triu_indices(N, 1)]
    assert pairs.mean() == pytest.approx(DRAWS * K * (K - 1) / (N * (N - 1)))
    assert pairs.std() == pytest.approx(np.sqrt(pairs.mean()), rel=0.15)


def test_smaller_budgets_are_nested_in_larger_ones(forty: Trace) -> None:
    sets = [set(RandomCoreset(3).select(forty, k).ids.tolist()) for k in (1, 5, 12, 39, 40)]
    for smaller, larger in itertools.pairwise(sets):
        assert smaller < larger


def test_the_seed_is_the_only_thing_that_matters(forty: Trace) -> None:
    np.testing.assert_array_equal(RandomCoreset(5).select(forty, 9).ids, select("random", forty, 9, seed=5).ids)
    assert set(RandomCoreset(5).select(forty, 9).ids) != set(RandomCoreset(6).select(forty, 9).ids)
    rng = np.random.default_rng(4)
    other = Trace.from_arrays(
        train_losses=rng.random((5, N)), query_losses=rng.random((5, 2)), train_ids=np.sort(forty.train_ids)
    )
    np.testing.assert_array_equal(RandomCoreset(5).select(other, 9).ids, RandomCoreset(5).select(forty, 9).ids)


@pytest.mark.parametrize("seed", [-1, 0.5, "x", True])
def test_a_seed_that_is_no_whole_number_is_refused_when_built(seed: object) -> None:
    with pytest.raises(InputError, match="random: seed must be a whole number"):
        RandomCoreset(seed)  # type: ignore[arg-type]
