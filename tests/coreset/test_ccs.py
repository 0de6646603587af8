"""Strata, their budgets, and coverage-centric selection against its worked example and its uniform sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from comove.coreset import ScoreSelector, select, selector
from comove.coreset.aum import AUM
from comove.coreset.ccs import CCS, coverage_centric, default_beta
from comove.coreset.cld import CLDCoreset
from comove.coreset.el2n import EL2N
from comove.coreset.strata import allocate, draw, equal_width, random_keys
from comove.errors import InputError, InputTypeError
from comove.trace import Trace
from comove.training.sources import Source

AREAS = np.array([9.0, 0, 5, 3, 1, 7, 2, 8, 4, 6])  # coresets.md section 6: AUM, low is hard
STRATA = [{3, 6}, {2, 8}, {5, 9}, {0, 7}]
Recorded = Callable[..., Trace]


@dataclass(frozen=True)
class Easiness(ScoreSelector):
    """Scores given, in the order of the trace; the highest are the easiest."""

    name: ClassVar[str] = "easiness"
    easy_first: ClassVar[bool] = True
    values: tuple[float, ...] = ()

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        return np.array(self.values, np.float32)


@pytest.mark.parametrize(
    ("sizes", "k", "expected"),
    [
        ((1, 6, 2, 3), 8, [1, 3, 2, 2]),
        ((0, 5), 3, [0, 3]),
        ((3, 3), 10, [3, 3]),
        ((4,), 2, [2]),
        ((2, 2, 2), 4, [1, 1, 2]),
    ],
)
def test_the_budgets_of_the_specification_come_out(sizes: tuple[int, ...], k: int, expected: list[int]) -> None:
    assert allocate(sizes, k).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_budgets_add_up_and_nobody_goes_short_while_another_has_two_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 12, rng.integers(1, 9))
    for k in range(1, sizes.sum() + 1):
        budgets = allocate(sizes, k)
        assert budgets.sum() == k
        assert (budgets <= sizes).all()
        wanting = budgets < sizes
        if wanting.any():
            assert budgets.max() <= budgets[wanting].min() + 1


def test_strata_have_equal_width_and_the_last_is_closed() -> None:
    kept = AREAS[AREAS >= 2]
    assert equal_width(kept, 4).tolist() == [3, 1, 0, 2, 0, 3, 1, 2]  # edges 2, 3.75, 5.5, 7.25, 9
    assert equal_width([0, 1, 2, 3, 4], 4).tolist() == [0, 1, 2, 3, 3]
    assert equal_width([0.0, 1.0], 1).tolist() == [0, 0]


def test_a_negative_maximum_is_not_lost() -> None:
    """The authors' upper edge is the maximum times 1.0001, which lies below a negative one."""
    assert equal_width([-4, -3, -2, -1], 3).tolist() == [0, 1, 2, 2]


def test_equal_values_share_one_stratum() -> None:
    assert equal_width([5.0, 5.0, 5.0], 50).tolist() == [0, 0, 0]


def test_draws_take_the_highest_keys_of_each_stratum() -> None:
    strata, keys = np.array([7, 7, 7, 2, 2, 9]), np.array([0.1, 0.9, 0.5, 0.3, 0.2, 0.7])
    assert sorted(draw(strata, keys, 3).tolist()) == [1, 3, 5]
    assert sorted(draw(strata, keys, 4).tolist()) == [1, 2, 3, 5]
    assert sorted(draw(strata, keys, 6).tolist()) == list(range(6))
    with pytest.raises(InputError, match="k must be from 1 to the 6 examples, got 7"):
        draw(strata, keys, 7)


def test_keys_belong_to_the_ids() -> None:
    ids = np.random.default_rng(0).permutation(500)
    keys = random_keys(ids, 3, 1)
    np.testing.assert_array_equal(random_keys(np.arange(500), 3, 1)[ids], keys)
    assert 0 < keys.min() < keys.max() < 1
    assert stats.kstest(keys, "uniform").pvalue > 0.001
    assert not np.array_equal(random_keys(ids, 4, 1), keys)
    assert not np.array_equal(random_keys(ids, 3, 2), keys)


@pytest.mark.parametrize("seed", range(5))
def test_the_example_of_the_specification_keeps_one_of_each_stratum(seed: int, recorded: Recorded) -> None:
    ids = np.arange(10)
    kept = coverage_centric(-AREAS, ids, random_keys(ids, seed, 0), 4, beta=0.2, n=4)
    assert [len(stratum & set(kept.tolist())) for stratum in STRATA] == [1, 1, 1, 1]
    trace = recorded(margin_prob=np.stack([AREAS, AREAS]))
    coreset = select("ccs", trace, 4, beta=0.2, strata=4, seed=seed)
    assert [len(stratum & set(coreset.ids.tolist())) for stratum in STRATA] == [1, 1, 1, 1]
    assert coreset.scores.tolist() == sorted((-AREAS[coreset.ids]).tolist(), reverse=True)
    assert coreset.info["dropped"] == 2


def test_within_a_stratum_all_are_drawn_equally_often(recorded: Recorded) -> None:
    trace = recorded(margin_prob=np.stack([AREAS, AREAS]))
    drawn: Counter[int] = Counter()
    for seed in range(400):
        drawn.update(CCS(beta=0.2, strata=4, seed=seed).select(trace, 4).ids.tolist())
    for stratum in STRATA:
        counts = [drawn[id_] for id_ in stratum]
        assert sum(counts) == 400
        assert stats.binomtest(counts[0], 400).pvalue > 0.001
    assert drawn[1] == drawn[4] == 0  # the hardest are never kept


@pytest.mark.parametrize(("beta", "k"), [(0.0, 300), (0.1, 100), (0.3, 30), (0.29, 213)])
def test_exactly_the_hardest_share_is_out_of_reach(beta: float, k: int, recorded: Recorded) -> None:
    areas = np.random.default_rng(2).normal(size=(3, 300)).astype(np.float32)
    trace = recorded(margin_prob=areas)
    hardest = np.argsort(areas.mean(0))[: int(np.floor(beta * 300 + 1e-9))]
    reached: set[int] = set()
    for seed in range(30):
        coreset = CCS(beta=beta, seed=seed).select(trace, k)
        assert len(coreset) == k
        reached |= set(coreset.ids.tolist())
    assert not reached & set(hardest.tolist())
    if k > 200:
        assert len(reached) == 300 - hardest.size


@pytest.mark.parametrize(("beta", "k"), [(0.3, 8), (0.5, 6), (0.1, 10)])
def test_a_beta_above_the_pruning_rate_is_refused_with_both_numbers(beta: float, k: int, recorded: Recorded) -> None:
    trace = recorded(margin_prob=np.stack([AREAS, AREAS]))
    message = (
        rf"beta must not exceed the pruning rate: beta = {beta} drops {round(10 * beta)} of 10 .* keeping {k} prunes"
    )
    with pytest.raises(InputError, match=message):
        CCS(beta=beta).select(trace, k)


@pytest.mark.parametrize(
    ("rate", "beta"), [(0.0, 0), (0.5, 0), (0.7, 0.1), (0.8, 0.1), (0.85, 0.2), (0.9, 0.3), (1.0, 0.3)]
)
def test_the_default_beta_follows_the_pruning_rate_and_never_exceeds_it(rate: float, beta: float) -> None:
    assert default_beta(rate) == pytest.approx(beta)
    assert default_beta(rate) <= rate


def test_the_default_beta_is_told(recorded: Recorded) -> None:
    trace = recorded(margin_prob=np.random.default_rng(0).normal(size=(3, 200)))
    info = CCS().select(trace, 20).info
    assert info["beta"] == pytest.approx(0.3)
    assert info["dropped"] == 60
    assert len(CCS().select(trace, 200)) == 200


def test_all_equal_scores_are_sampled_uniformly_and_everything_can_be_kept(recorded: Recorded) -> None:
    trace = recorded(margin_prob=np.ones((3, 20)))
    kept = Counter(id_ for seed in range(300) for id_ in CCS(beta=0.0, seed=seed).select(trace, 10).ids.tolist())
    assert set(kept) == set(range(20))
    assert all(stats.binomtest(count, 300).pvalue > 1e-4 for count in kept.values())
    assert sorted(CCS().select(trace, 20).ids.tolist()) == list(range(20))


def test_any_score_that_keeps_the_hardest_first_can_be_covered(recorded: Recorded) -> None:
    rng = np.random.default_rng(3)
    trace = recorded(margin_prob=rng.normal(size=(12, 100)), el2n=rng.random((12, 100)))
    assert CCS(score="el2n:first=5") == CCS(score=EL2N(first=5))
    coreset = CCS(score="el2n:first=5", beta=0.1).select(trace, 40)
    scores = EL2N(first=5).scores(trace)
    assert coreset.scores.tolist() == scores[coreset.ids].tolist()
    assert coreset.scores.max() <= np.sort(scores)[::-1][10]
    assert coreset.method == "ccs(score=el2n(first=5), beta=0.1)"
    assert coreset.info["score"] == "el2n(first=5)"
    assert CCS().score == AUM(margin="prob")
    assert CCS().label == "ccs"


@pytest.mark.parametrize("seed", range(5))
def test_a_score_whose_highest_are_the_easiest_is_read_from_the_other_end(seed: int, recorded: Recorded) -> None:
    trace = recorded(margin_prob=np.zeros((2, 10)))
    coreset = CCS(score=Easiness(tuple(AREAS.tolist())), beta=0.2, strata=4, seed=seed).select(trace, 4)
    assert [len(stratum & set(coreset.ids.tolist())) for stratum in STRATA] == [1, 1, 1, 1]
    assert not {1, 4} & set(coreset.ids.tolist())  # the lowest scores are the hardest, and dropped
    assert coreset.scores.tolist() == sorted((-AREAS[coreset.ids]).tolist(), reverse=True)


def test_the_same_area_kept_from_either_end_is_covered_alike(recorded: Recorded) -> None:
    trace = recorded(margin_logit=np.random.default_rng(5).normal(size=(4, 200)))
    low, high = (CCS(score=AUM(keep=keep)).select(trace, 50) for keep in ("low", "high"))
    np.testing.assert_array_equal(low.ids, high.ids)


def test_cld_is_covered_in_strata_counted_by_hand() -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 120)
    trace = Trace.from_arrays(
        train_losses=rng.random((9, 120)),
        query_losses=rng.random((9, 30)),
        train_labels=labels,
        query_labels=np.arange(30) % 3,
        train_ids=rng.permutation(500)[:120],
        query_ids=np.arange(30) + 1000,
    )
    scores = CLDCoreset().scores(trace).astype(np.float64)
    kept = select("ccs:score=cld:beta=0.25:strata=4", trace, 20)
    assert kept.method == "ccs(score=cld, beta=0.25, strata=4)"
    rest = np.sort(scores)[30:]  # the 30 lowest correlations are dropped
    places = np.flatnonzero(np.isin(trace.train_ids, kept.ids))
    assert scores[places].min() >= rest[0]
    edges = np.linspace(rest[-1], rest[0], 5)[::-1]
    sizes, chosen = (np.histogram(values, edges)[0] for values in (rest, scores[places]))
    left, expected = 20, np.zeros(4, int)
    for done, stratum in enumerate(sorted(range(4), key=lambda b: sizes[b])):
        expected[stratum] = min(sizes[stratum], left // (4 - done))
        left -= expected[stratum]
    assert chosen.tolist() == expected.tolist()


def test_seeds_differ_and_the_same_seed_repeats(recorded: Recorded) -> None:
    trace = recorded(margin_prob=np.random.default_rng(0).normal(size=(3, 300)))
    first = CCS(seed=1).select(trace, 30).ids
    np.testing.assert_array_equal(first, CCS(seed=1).select(trace, 30).ids)
    assert set(first.tolist()) != set(CCS(seed=2).select(trace, 30).ids.tolist())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 1.0}, InputError, "beta must be a share from 0 to below 1, got 1.0"),
        ({"beta": -0.1}, InputError, "got -0.1"),
        ({"beta": float("nan")}, InputError, "got nan"),
        ({"strata": 0}, InputError, "strata must be a whole number from 1 on, got 0"),
        ({"seed": -1}, InputError, "ccs: seed must be"),
        ({"score": "dual"}, InputTypeError, "ccs: score must be a method that scores every example, got dual"),
        ({"score": "aun"}, InputError, "Did you mean 'aum'"),
        ({"score": 1.0}, InputTypeError, "ccs: selector must be a coreset method or its name, got 1.0"),
    ],
)
def test_bad_options_are_refused_when_built(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        selector("ccs", **options)
