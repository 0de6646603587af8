"""Linear datamodeling score: against scipy, against literal resampling, and against simulations with known answers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from comove.errors import InputError, InputTypeError, NonFiniteError
from comove.lds import score as lds_module
from comove.lds.ranks import ResampledRanks, centred_ranks, exact_floats, spearman_columns, tie_groups
from comove.lds.score import LDS, GroundTruth, linear_datamodeling_score
from comove.lds.truth import group_scores, merge_rounding_ties
from comove.lds.uncertainty import bootstrap_means, half_splits, split_half_reliability

Floats = npt.NDArray[np.float64]
C, N, Q, R = 30, 50, 6, 4


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def half_masks(rng: np.random.Generator, subsets: int = C, examples: int = N) -> npt.NDArray[np.bool_]:
    """Random subsets of exactly half the examples."""
    return np.argsort(rng.random((subsets, examples)), axis=1) < examples // 2


@pytest.fixture
def problem() -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
    rng = rng_of()
    scores, masks = rng.normal(size=(N, Q)), half_masks(rng)
    return scores, masks, (masks @ scores)[:, None] + 4 * rng.normal(size=(C, R, Q))


@dataclasses.dataclass(frozen=True)
class SomeScores:
    values: Any
    train_ids: Any
    query_ids: Any
    method: str | None = "some"


def random_columns(rng: np.random.Generator, shape: tuple[int, int], levels: int | None) -> Floats:
    """Normal numbers, or whole ones below ``levels`` so that there are ties."""
    return rng.normal(size=shape) if levels is None else rng.integers(levels, size=shape).astype(np.float64)


def scipy_spearman(a: Floats, b: Floats) -> float:
    return float(stats.spearmanr(a, b).statistic)


# --- Spearman --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 10, None])
def test_spearman_columns_equals_scipy_with_and_without_ties(levels: int | None) -> None:
    rng = rng_of(1)
    a, b = (random_columns(rng, (40, 25), levels) for _ in range(2))
    expected = [scipy_spearman(a[:, q], b[:, q]) for q in range(25)]
    np.testing.assert_allclose(spearman_columns(a, b), expected, rtol=0, atol=1e-14)


def test_centred_ranks_equal_scipys_average_ranks() -> None:
    values = rng_of(2).integers(5, size=(17, 8)).astype(np.float64)
    np.testing.assert_array_equal((centred_ranks(values) + 18) / 2, stats.rankdata(values, axis=0))


def test_spearman_columns_is_nan_where_either_side_is_constant_or_nan() -> None:
    a = np.array([[1.0, 1, 3, np.nan], [2, 1, 2, 1], [3, 1, 1, 2]])
    b = np.array([[7.0, 1, 5, 1], [7, 2, 6, 2], [7, 3, 7, 3]])
    np.testing.assert_array_equal(spearman_columns(a, b), [np.nan, np.nan, -1.0, np.nan])


def test_spearman_columns_ranks_infinities() -> None:
    assert spearman_columns([[-math.inf], [0.0], [math.inf]], [[1.0], [2.0], [3.0]]) == 1


def test_spearman_columns_refuses_different_shapes() -> None:
    with pytest.raises(InputError, match=r"same shape, found \(3, 1\) and \(3, 2\)"):
        spearman_columns(np.zeros((3, 1)), np.zeros((3, 2)))


# --- the score -------------------------------------------------------------------------------------------------------


def test_per_query_equals_scipy_on_mean_outputs_and_summed_scores(problem: Any) -> None:
    scores, masks, outputs = problem
    lds = linear_datamodeling_score(scores, masks, outputs, bootstrap=0)
    expected = [scipy_spearman(outputs[:, :, q].mean(axis=1), masks @ scores[:, q]) for q in range(Q)]
    np.testing.assert_allclose(lds.per_query, expected, atol=1e-14)
    assert lds.mean == pytest.approx(np.mean(expected))
    assert (lds.interval, lds.undefined, lds.constant_predictions, lds.subsets, lds.seeds) == (None, 0, 0, C, R)


@pytest.mark.parametrize("kind", ["margin", "correct"])
def test_per_query_equals_dattris_lds(kind: str, problem: Any) -> None:
    from dattri.metric import lds as dattri_lds

    scores, masks, outputs = problem
    measured = outputs if kind == "margin" else outputs > 0
    indices = torch.as_tensor(np.stack([np.flatnonzero(row) for row in masks]))
    theirs, _ = dattri_lds(torch.as_tensor(scores), (torch.as_tensor(measured.mean(axis=1)), indices))
    ours = linear_datamodeling_score(scores, masks, measured, bootstrap=0)
    np.testing.assert_allclose(ours.per_query, theirs.numpy(), atol=1e-14)


def test_several_methods_at_once_equal_one_at_a_time(problem: Any) -> None:
    scores, masks, outputs = problem
    several = [scores, -scores, rng_of(3).normal(size=(N, Q)), np.ones((N, Q))]
    truth = GroundTruth(masks, outputs, seed=4, bootstrap=100)
    together = truth.lds([truth.predictions(values) for values in several], list("abcd"))
    for values, found, name in zip(several, together, "abcd", strict=True):
        alone = linear_datamodeling_score(values, masks, outputs, seed=4, bootstrap=100, method=name)
        assert alone.to_json() == found.to_json()
        np.testing.assert_array_equal(alone.resamples, found.resamples)


def test_reliability_and_the_sort_of_the_truth_are_computed_once_for_all_methods(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, masks, outputs = problem
    calls: list[int] = []
    monkeypatch.setattr(
        lds_module,
        "split_half_reliability",
        lambda *arguments: calls.append(1) or split_half_reliability(*arguments),  # type: ignore[func-returns-value]
    )
    truth = GroundTruth(masks, outputs)
    assert len(truth.lds([truth.predictions(scores)] * 5, [None] * 5)) == 5
    assert calls == [1]


def test_tied_outputs_equal_scipy(problem: Any) -> None:
    scores, masks, outputs = problem
    correct = outputs > 0
    lds = linear_datamodeling_score(scores, masks, correct, bootstrap=0)
    expected = [scipy_spearman(correct[:, :, q].mean(axis=1), masks @ scores[:, q]) for q in range(Q)]
    np.testing.assert_allclose(lds.per_query, expected, atol=1e-14)


def test_scores_of_a_linear_truth_get_exactly_one_and_their_negative_minus_one(problem: Any) -> None:
    scores, masks, _ = problem
    truth = masks @ scores
    right = linear_datamodeling_score(scores, masks, truth, bootstrap=50)
    wrong = linear_datamodeling_score(-scores, masks, truth, bootstrap=50)
    assert (right.per_query == 1).all()
    assert (right.mean, right.interval) == (1.0, (1.0, 1.0))
    assert (wrong.per_query == -1).all()
    assert (wrong.mean, wrong.interval) == (-1.0, (-1.0, -1.0))


def test_increasing_transform_of_outputs_changes_nothing(problem: Any) -> None:
    scores, masks, outputs = problem
    plain = linear_datamodeling_score(scores, masks, outputs[:, 0])
    bent = linear_datamodeling_score(scores, masks, np.arctan(outputs[:, 0] / 10) * 3 - 100)
    np.testing.assert_array_equal(plain.per_query, bent.per_query)
    assert plain.interval == bent.interval


def test_positive_scaling_of_scores_changes_nothing(problem: Any) -> None:
    scores, masks, outputs = problem
    plain, scaled = (linear_datamodeling_score(s, masks, outputs).per_query for s in (scores, 3e-7 * scores))
    np.testing.assert_array_equal(plain, scaled)


def test_constant_truth_is_undefined_and_left_out(problem: Any) -> None:
    scores, masks, outputs = problem
    outputs[:, :, [1, 4]] = 0.3
    lds = linear_datamodeling_score(scores, masks, outputs)
    assert lds.undefined == 2
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(lds.per_query)), [1, 4])
    assert lds.mean == pytest.approx(np.nanmean(lds.per_query))
    rest = [0, 2, 3, 5]
    alone = linear_datamodeling_score(scores[:, rest], masks, outputs[:, :, rest])
    assert (lds.interval, lds.reliability, lds.mean) == (alone.interval, alone.reliability, alone.mean)


def test_everything_undefined_is_nan_without_a_warning(problem: Any) -> None:
    scores, masks, outputs = problem
    lds = linear_datamodeling_score(scores, masks, np.ones_like(outputs))
    assert lds.undefined == Q
    assert lds.interval is not None
    assert lds.reliability is not None
    assert all(math.isnan(value) for value in (lds.mean, *lds.interval, lds.reliability, lds.noise_ceiling or 0))
    assert json.loads(json.dumps(lds.to_json(), allow_nan=False))["interval"] == [None, None]


def test_constant_prediction_scores_zero_and_is_counted(problem: Any) -> None:
    scores, masks, outputs = problem
    scores[:, 2] = 0.0
    outputs[:, :, 0] = 1.0
    scores[:, 0] = 0.0  # undefined wins over a constant prediction
    lds = linear_datamodeling_score(scores, masks, outputs, bootstrap=0)
    assert (lds.constant_predictions, lds.undefined, lds.per_query[2]) == (1, 1, 0.0)
    assert lds.mean == pytest.approx(lds.per_query[1:].mean())


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e9 / 7])
def test_equal_scores_over_subsets_of_one_size_are_constant_in_spite_of_rounding(value: float) -> None:
    rng = rng_of(3)
    masks = half_masks(rng, 40, 999)
    lds = linear_datamodeling_score(np.full((999, 3), value), masks, rng.normal(size=(40, 3)), bootstrap=0)
    assert lds.constant_predictions == 3
    assert lds.mean == 0.0


def test_scores_of_two_values_tie_as_their_counts_do() -> None:
    rng = rng_of(4)
    masks, counted = half_masks(rng, 60, 999), rng.integers(2, size=(999, 3))
    outputs = rng.normal(size=(60, 3))
    by_count, by_third = (linear_datamodeling_score(s, masks, outputs).per_query for s in (counted, counted / 3 - 0.7))
    np.testing.assert_array_equal(by_count, by_third)


def test_merging_ties_leaves_values_apart_that_rounding_does_not_explain() -> None:
    values = np.array([[0.3, 1.0], [0.1 + 0.2, 1.0 + 1e-12], [0.31, 3.0]])
    merged = merge_rounding_ties(values, np.full_like(values, 1e-16))
    assert merged[0, 0] == merged[1, 0] != merged[2, 0]
    np.testing.assert_array_equal(merged[:, 1], values[:, 1])


def test_group_scores_sum_float32_scores_in_float64(problem: Any) -> None:
    scores, masks, _ = problem
    scores = (scores + 1e6).astype(np.float32)
    np.testing.assert_allclose(group_scores(masks, scores), masks @ scores.astype(np.float64), rtol=1e-14)


def test_group_scores_over_many_queries_equal_one_product() -> None:
    rng = rng_of(5)
    scores, masks = rng.normal(size=(20, 1100)), half_masks(rng, 7, 20)
    np.testing.assert_allclose(group_scores(masks, scores), masks @ scores, atol=1e-13)


def test_order_of_training_examples_does_not_matter(problem: Any) -> None:
    scores, masks, outputs = problem
    shuffled = rng_of(9).permutation(N)
    one = linear_datamodeling_score(scores, masks, outputs)
    other = linear_datamodeling_score(scores[shuffled], masks[:, shuffled], outputs)
    assert one.to_json() == other.to_json()


def test_order_of_subsets_does_not_matter_to_the_score(problem: Any) -> None:
    scores, masks, outputs = problem
    shuffled = rng_of(9).permutation(C)
    one = linear_datamodeling_score(scores, masks, outputs)
    other = linear_datamodeling_score(scores, masks[shuffled], outputs[shuffled])
    np.testing.assert_array_equal(one.per_query, other.per_query)
    assert one.reliability == other.reliability


def test_order_of_queries_and_of_seeds_does_not_matter_to_the_score(problem: Any) -> None:
    scores, masks, outputs = problem
    queries, seeds = rng_of(9).permutation(Q), rng_of(8).permutation(R)
    one = linear_datamodeling_score(scores, masks, outputs)
    other = linear_datamodeling_score(scores[:, queries], masks, outputs[:, seeds][:, :, queries])
    np.testing.assert_array_equal(one.per_query[queries], other.per_query)
    assert one.reliability == pytest.approx(other.reliability, abs=1e-12)


def test_two_dimensional_outputs_equal_one_seed(problem: Any) -> None:
    scores, masks, outputs = problem
    flat = linear_datamodeling_score(scores, masks, outputs[:, 0])
    one = linear_datamodeling_score(scores, masks, outputs[:, :1])
    assert flat.to_json() == one.to_json()
    assert (flat.seeds, flat.reliability, flat.noise_ceiling) == (1, None, None)


def test_same_seed_same_bits_and_another_seed_another_interval(problem: Any) -> None:
    first, again, other = (linear_datamodeling_score(*problem, seed=seed) for seed in (3, 3, 4))
    assert first.to_json() == again.to_json()
    assert first.interval != other.interval
    assert first.mean == other.mean


def test_inputs_are_not_mutated(problem: Any) -> None:
    before = [array.copy() for array in problem]
    for array in problem:
        array.flags.writeable = False
    linear_datamodeling_score(*problem)
    for array, copy in zip(problem, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_tensors_are_accepted(problem: Any, dtype: torch.dtype) -> None:
    scores, masks, outputs = (torch.as_tensor(array) for array in problem)
    scores, outputs = scores.to(dtype).requires_grad_(), outputs.to(dtype)
    expected = [tensor.detach().double().numpy() for tensor in (scores, outputs)]
    tensors = linear_datamodeling_score(scores, masks, outputs)
    arrays = linear_datamodeling_score(expected[0], masks.numpy(), expected[1])
    assert tensors.to_json() == arrays.to_json()


def test_masks_of_zeros_and_ones_equal_booleans(problem: Any) -> None:
    scores, masks, outputs = problem
    expected = linear_datamodeling_score(scores, masks, outputs).to_json()
    for dtype in (np.int64, np.uint8, np.float32):
        assert linear_datamodeling_score(scores, masks.astype(dtype), outputs).to_json() == expected


def test_scores_object_brings_its_ids_and_its_name(problem: Any) -> None:
    scores, masks, outputs = problem
    ids = np.array([90, 7, 3, 55, 1, 2])
    carried = SomeScores(scores, np.arange(N) * 3, ids)
    lds = linear_datamodeling_score(carried, masks, outputs)
    np.testing.assert_array_equal(lds.query_ids, ids)
    assert lds.query_ids.dtype == np.int64
    assert lds.method == "some"
    assert linear_datamodeling_score(carried, masks, outputs, method="mine").method == "mine"
    plain = linear_datamodeling_score(scores, masks, outputs)
    np.testing.assert_array_equal(plain.per_query, lds.per_query)
    np.testing.assert_array_equal(plain.query_ids, np.arange(Q))
    assert plain.method is None


# --- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [None, 4])
def test_spearman_of_weights_equals_scipy_on_the_literal_resample(levels: int | None, dtype: type[Any]) -> None:
    rng = rng_of(6)
    a, b = (random_columns(rng, (25, 3), levels) for _ in range(2))
    draws = rng.integers(25, size=(40, 25))
    weights = np.stack([np.bincount(draw, minlength=25) for draw in draws], axis=1).astype(np.float64)
    ranked_a, ranked_b = tie_groups(a), tie_groups(b)
    for q in range(3):
        found = ResampledRanks(ranked_a.column(q), weights.astype(dtype)).spearman(ranked_b.column(q))
        literal = [spearman_columns(a[draw, q : q + 1], b[draw, q : q + 1])[0] for draw in draws]
        np.testing.assert_array_equal(found, literal)
        np.testing.assert_allclose(found, [scipy_spearman(a[draw, q], b[draw, q]) for draw in draws], atol=1e-14)


def literal_bootstrap(truth: Floats, prediction: Floats, bootstrap: int, rng: np.random.Generator) -> list[float]:
    """The same draws, with the rows and columns really repeated and ranked again."""
    means: list[float] = []
    for start in range(0, bootstrap, 64):
        size = min(64, bootstrap - start)
        rows, columns = (rng.integers(n, size=(size, n)) for n in truth.shape)
        for row, column in zip(rows, columns, strict=True):
            a, b = truth[np.ix_(row, column)], prediction[np.ix_(row, column)]
            pairs = [(a[:, q], b[:, q]) for q in range(len(column)) if np.ptp(a[:, q]) > 0]
            values = [scipy_spearman(x, y) if np.ptp(y) > 0 else 0.0 for x, y in pairs]
            means.append(float(np.mean(values)) if values else math.nan)
    return means


@pytest.mark.parametrize(("subsets", "levels"), [(12, 3), (4, 2), (15, 1000)])
def test_bootstrap_equals_the_literal_one(subsets: int, levels: int) -> None:
    truth, prediction = (random_columns(rng_of(seed), (subsets, 5), levels) for seed in (7, 8))
    truth[0], truth[1], prediction[0], prediction[1] = 0, 1, 1, 0  # nothing is constant before resampling
    found = bootstrap_means(truth, [prediction], 70, rng_of(11))[0]
    literal = np.array(literal_bootstrap(truth, prediction, 70, rng_of(11)))
    np.testing.assert_allclose(found, literal, atol=1e-13)
    assert subsets > 4 or np.isnan(found).any()


def test_several_predictions_meet_the_resamples_that_each_meets_alone() -> None:
    truth, one, other = (random_columns(rng_of(seed), (12, 5), 4) for seed in (7, 8, 9))
    both = bootstrap_means(truth, [one, other], 1500, rng_of(11))
    alone = [bootstrap_means(truth, [prediction], 1500, rng_of(11))[0] for prediction in (one, other)]
    np.testing.assert_array_equal(both, alone)
    np.testing.assert_array_equal(both[:, :128], bootstrap_means(truth, [one, other], 128, rng_of(11)))


def test_small_floats_are_used_only_while_the_sums_of_ranks_are_exact() -> None:
    rng = rng_of(3)
    for rows in (256, 257):
        a, b = tie_groups(rng.normal(size=(rows, 1))), tie_groups(rng.normal(size=(rows, 1)))
        extreme = np.zeros((rows, 2))
        extreme[[0, -1], 0], extreme[:, 1] = rows / 2, 1  # the heaviest weights that a resample can have
        found, exact = (
            ResampledRanks(a.column(0), extreme.astype(dtype)).spearman(b.column(0))
            for dtype in (exact_floats(rows), np.float64)
        )
        np.testing.assert_array_equal(found, exact)
    assert (exact_floats(256), exact_floats(257)) == (np.float32, np.float64)


def test_interval_is_the_percentiles_of_the_bootstrap_recentred_on_the_mean(problem: Any) -> None:
    scores, masks, outputs = problem
    lds = linear_datamodeling_score(scores, masks, outputs, bootstrap=300, confidence=0.8, seed=5)
    means = bootstrap_means(outputs.mean(axis=1), [masks @ scores], 300, rng_of(5).spawn(2)[0])[0]
    np.testing.assert_array_equal(lds.resamples, means)
    low, high = np.quantile(means, [0.1, 0.9]) - means.mean() + lds.mean
    np.testing.assert_allclose(np.array(lds.interval), [low, high])
    assert lds.confidence == 0.8


def noisy_problem(
    rng: np.random.Generator, subsets: int, queries: int, ratios: tuple[float, ...], shared: float
) -> tuple[Any, Any, Any, float]:
    """Queries with these ratios of noise to signal, part of the noise shared by a subset's queries; the expected LDS.

    The expectation is exact for normal outputs and C subsets: Moran, Biometrika 35, 1948.
    """
    scores, masks = rng.normal(size=(60, queries)), rng.random((subsets, 60)) < 0.5
    ratio = rng.choice(ratios, size=queries)
    noise = shared * rng.normal(size=(subsets, 1)) + math.sqrt(1 - shared**2) * rng.normal(size=(subsets, queries))
    outputs = masks @ scores + noise * ratio * 0.5 * np.sqrt((scores**2).sum(axis=0))
    pearson = 1 / np.sqrt(1 + np.square(ratios))
    expected = 6 / (np.pi * (subsets + 1)) * (np.arcsin(pearson) + (subsets - 2) * np.arcsin(pearson / 2))
    return scores, masks, outputs, float(expected.mean())


@pytest.mark.parametrize(
    ("subsets", "queries", "ratios", "shared"),
    [(40, 20, (0.5, 2.0), 0.6), (100, 100, (0.5,), 0.0)],  # in the second, resampling's bias exceeds its spread
)
def test_interval_covers_the_truth_as_often_as_it_says(
    subsets: int, queries: int, ratios: tuple[float, ...], shared: float
) -> None:
    covered = []
    for trial in range(40):
        scores, masks, outputs, expected = noisy_problem(rng_of(trial), subsets, queries, ratios, shared)
        lds = linear_datamodeling_score(scores, masks, outputs, bootstrap=150)
        low, high = lds.interval or (0, 0)
        assert low < lds.mean < high
        covered.append(low <= expected <= high)
    assert np.mean(covered) >= 0.88


def test_interval_shrinks_with_more_subsets_and_with_less_confidence() -> None:
    scores, masks, outputs, _ = noisy_problem(rng_of(1), 320, 20, (0.5,), 0.6)
    outputs = outputs[:, :1] + 0 * outputs  # one query, so that only the subsets matter
    scores = scores[:, :1] + 0 * scores

    def width(subsets: int, confidence: float) -> float:
        part = masks[:subsets], outputs[:subsets]
        low, high = linear_datamodeling_score(scores, *part, confidence=confidence).interval or (0, 0)
        return high - low

    assert width(320, 0.95) < 0.7 * width(80, 0.95) < 0.49 * width(20, 0.95)
    assert width(80, 0.5) < width(80, 0.95)


# --- reliability and noise ceiling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("seeds", "count"), [(2, 1), (3, 3), (4, 3), (5, 15), (6, 10), (7, 32), (10, 32)])
def test_half_splits_are_disjoint_equal_and_all_of_them_when_few(seeds: int, count: int) -> None:
    splits = [(frozenset(left), frozenset(right)) for left, right in half_splits(seeds, rng_of())]
    assert len(splits) == count
    for left, right in splits:
        assert not left & right
        assert len(left) == len(right) == seeds // 2
        assert left | right <= set(range(seeds))
    if count < 32:
        assert len({frozenset(split) for split in splits}) == count


def test_reliability_of_two_seeds_is_spearman_brown_of_their_correlation(problem: Any) -> None:
    scores, masks, outputs = problem
    r = np.array([scipy_spearman(outputs[:, 0, q], outputs[:, 1, q]) for q in range(Q)])
    lds = linear_datamodeling_score(scores, masks, outputs[:, :2], bootstrap=0)
    assert lds.reliability == pytest.approx(np.mean(2 * r / (1 + np.abs(r))))


def test_reliability_of_three_seeds_extends_single_seeds_to_three(problem: Any) -> None:
    scores, masks, outputs = problem
    pairs = list(itertools.combinations(range(3), 2))
    r = np.mean([[scipy_spearman(outputs[:, i, q], outputs[:, j, q]) for q in range(Q)] for i, j in pairs], axis=0)
    lds = linear_datamodeling_score(scores, masks, outputs[:, :3], bootstrap=0)
    assert lds.reliability == pytest.approx(np.mean(3 * r / (1 + 2 * np.abs(r))))


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_reliability_recovers_known_signal_and_noise(noise: float, seeds: int) -> None:
    rng = rng_of(12)
    outputs = rng.normal(size=(400, 1, 40)) + noise * rng.normal(size=(400, seeds, 40))
    reliability = split_half_reliability(outputs, rng).mean()
    assert reliability == pytest.approx(1 / (1 + noise**2 / seeds), abs=0.03)


def test_reliability_of_noise_is_zero_and_so_is_its_ceiling() -> None:
    rng = rng_of(13)
    masks, outputs = half_masks(rng, 60), rng.normal(size=(60, 2, 200))
    lds = linear_datamodeling_score(rng.normal(size=(N, 200)), masks, outputs, bootstrap=0)
    assert lds.reliability == pytest.approx(0, abs=0.04)
    flipped = np.concatenate([outputs[:, :1], -outputs[:, :1]], axis=1) + 0.1 * outputs
    worse = linear_datamodeling_score(rng.normal(size=(N, 200)), masks, flipped, bootstrap=0)
    assert worse.reliability is not None
    assert -1 <= worse.reliability < -0.9
    assert worse.noise_ceiling == 0.0


def test_outputs_without_noise_have_reliability_one(problem: Any) -> None:
    scores, masks, outputs = problem
    lds = linear_datamodeling_score(scores, masks, np.repeat(outputs[:, :1], 3, axis=1))
    assert (lds.reliability, lds.noise_ceiling) == (1.0, 1.0)


def test_a_half_that_alone_is_constant_counts_as_no_agreement() -> None:
    correct = np.ones((10, 2, 1))
    correct[3, 0] = 0
    assert split_half_reliability(correct, rng_of()) == 0


@pytest.mark.parametrize("noise", [0.5, 2.0])
@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_an_oracle_reaches_the_noise_ceiling(noise: float, seeds: int) -> None:
    rng = rng_of(14)
    scores, masks = rng.normal(size=(N, 60)), rng.random((200, N)) < 0.5
    signal = masks @ scores
    outputs = signal[:, None] + noise * signal.std(axis=0) * rng.normal(size=(200, seeds, 60))
    lds = linear_datamodeling_score(scores, masks, outputs, bootstrap=0)
    assert lds.reliability is not None
    assert lds.mean == pytest.approx(lds.noise_ceiling, abs=0.02)
    assert lds.mean > lds.reliability + 0.01


# --- the result ------------------------------------------------------------------------------------------------------


def result(**changes: Any) -> LDS:
    lds = LDS(
        per_query=np.array([0.5, np.nan, 0.25]),
        mean=0.2876,
        interval=(0.264, 0.311),
        undefined=1,
        constant_predictions=0,
        reliability=0.87,
        noise_ceiling=0.933,
        method="trak",
        query_ids=np.array([5, 9, 2]),
        subsets=100,
        seeds=4,
        confidence=0.95,
    )
    return dataclasses.replace(lds, **changes)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "LDS(trak: 0.288 [0.26, 0.31], 3 queries, 100 subsets x 4 seeds, 1 undefined, ceiling 0.93)"),
        (
            {"interval": None, "method": None, "undefined": 0, "noise_ceiling": None, "seeds": 1},
            "LDS(0.288, 3 queries, 100 subsets x 1 seed)",
        ),
        (
            {"constant_predictions": 2, "undefined": 0, "per_query": np.zeros(1), "noise_ceiling": 0.0},
            "LDS(trak: 0.288 [0.26, 0.31], 1 query, 100 subsets x 4 seeds, 2 predicted constant, ceiling 0.00)",
        ),
        (
            {"output": "margin", "alpha": 0.5, "undefined": 0, "noise_ceiling": None},
            "LDS(trak: 0.288 [0.26, 0.31], 3 queries, 100 subsets x 4 seeds, margin, alpha 0.5)",
        ),
    ],
)
def test_prints_as_one_line(changes: dict[str, Any], line: str) -> None:
    assert str(result(**changes)) == repr(result(**changes)) == line


def test_result_is_frozen_and_its_arrays_are_copies_nobody_can_write() -> None:
    mine = np.zeros(3)
    lds = result(per_query=mine, resamples=mine)
    mine[0] = 9
    assert lds.per_query[0] == 0
    for array in (lds.per_query, lds.query_ids, np.asarray(lds.resamples)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        lds.mean = 1.0  # type: ignore[misc]


def test_to_pandas_has_a_row_a_query() -> None:
    frame = result().to_pandas()
    assert list(frame.columns) == ["query_id", "lds"]
    assert frame["query_id"].tolist() == [5, 9, 2]
    np.testing.assert_array_equal(frame["lds"].to_numpy(), [0.5, np.nan, 0.25])


def test_to_json_is_plain_and_has_none_for_nan() -> None:
    plain = result().to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["per_query"] == [0.5, None, 0.25]
    assert plain["interval"] == [0.264, 0.311]
    assert plain["query_ids"] == [5, 9, 2]
    assert set(plain) == {field.name for field in dataclasses.fields(LDS)} - {"resamples"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "masks", "outputs", "message"),
    [
        (
            (Q, N),
            (C, N),
            (C, R, Q),
            r"found scores \(6, 50\), masks \(30, 50\).*scores look transposed: must be \(train",
        ),
        ((N, Q), (N, C), (C, R, Q), "masks look transposed"),
        ((N, Q), (C, N), (Q, C), "outputs look transposed"),
        ((N, Q), (C, N), (R, C, Q), r"\(seed, subset, query\)"),
        ((N, Q), (C, N), (C, Q, R), r"\(subset, query, seed\)"),
        ((N, Q), (C, N), (C + 1, R, Q), "masks have 30 subsets and outputs 31"),
        ((N + 1, Q), (C, N), (C, R, Q), "scores have 51 training examples and masks 50"),
        ((N, Q), (C, N), (C, R, Q + 1), "scores have 6 queries and outputs 7"),
    ],
)
def test_shapes_that_disagree_are_named_with_the_likely_cause(
    scores: Any, masks: Any, outputs: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        linear_datamodeling_score(np.ones(scores), np.ones(masks), np.ones(outputs))


def test_dimensions_and_emptiness_are_checked(problem: Any) -> None:
    scores, masks, outputs = problem
    with pytest.raises(InputError, match=r"scores must be 2-dimensional, found shape \(50,\)"):
        linear_datamodeling_score(scores[:, 0], masks, outputs)
    with pytest.raises(InputError, match="masks must be 2-dimensional"):
        linear_datamodeling_score(scores, masks[0], outputs)
    with pytest.raises(InputError, match="outputs must be 2-dimensional or 3-dimensional"):
        linear_datamodeling_score(scores, masks, outputs[None])
    with pytest.raises(InputError, match=r"outputs \(30, 0, 6\)\. None may be empty"):
        linear_datamodeling_score(scores, masks, outputs[:, :0])


def test_masks_must_be_zero_or_one(problem: Any) -> None:
    scores, masks, outputs = problem
    ids = np.argsort(masks, axis=1)
    with pytest.raises(InputError, match=r"0/1, found int64 values from 0 to 49.*numpy\.isin"):
        linear_datamodeling_score(scores, ids, outputs)
    with pytest.raises(InputError, match="0/1, found float64 values from nan"):
        linear_datamodeling_score(scores, np.where(masks, 1.0, np.nan), outputs)


def test_two_subsets_are_too_few(problem: Any) -> None:
    scores, masks, outputs = problem
    with pytest.raises(InputError, match=r"At least 3 subsets are needed, found 2: .* always 1 or -1"):
        linear_datamodeling_score(scores, masks[:2], outputs[:2])


def test_identical_subsets_are_refused(problem: Any) -> None:
    scores, masks, outputs = problem
    with pytest.raises(InputError, match="subsets must differ, but all 30 rows"):
        linear_datamodeling_score(scores, np.repeat(masks[:1], C, axis=0), outputs)


def test_pending_models_are_counted(problem: Any) -> None:
    scores, masks, outputs = problem
    outputs[4, 1] = outputs[20] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"5 of 120 models are NaN .*\(subset 4 seed 1, .*and 1 more\).*finish the"
    ):
        linear_datamodeling_score(scores, masks, outputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_diverged_outputs_are_located(problem: Any, value: float) -> None:
    scores, masks, outputs = problem
    outputs[7, 2, 3] = value
    carried = SomeScores(scores, np.arange(N), np.arange(Q) + 100)
    with pytest.raises(NonFiniteError, match=f"1 of 120 models .* first {value} for subset 7, seed 2, query id 103"):
        linear_datamodeling_score(carried, masks, outputs)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_scores_name_their_ids(problem: Any, value: float) -> None:
    scores, masks, outputs = problem
    scores[3, 2] = scores[9, 4] = value
    carried = SomeScores(scores, np.arange(N) + 1000, np.arange(Q) + 100)
    with pytest.raises(NonFiniteError, match=f"found 2 of 300 .*{value} for train id 1003, query id 102"):
        linear_datamodeling_score(carried, masks, outputs)


def test_scores_object_must_agree_with_its_ids(problem: Any) -> None:
    scores, masks, outputs = problem
    with pytest.raises(InputError, match="49 train_ids and 6 query_ids"):
        linear_datamodeling_score(SomeScores(scores, np.arange(N - 1), np.arange(Q)), masks, outputs)


@pytest.mark.parametrize("scores", ["trak", None, [["a", "b"]], [[1.0], [1.0, 2.0]], np.ones((N, Q), dtype=complex)])
def test_scores_must_be_numbers(problem: Any, scores: Any) -> None:
    with pytest.raises((InputError, InputTypeError), match="scores must be"):
        linear_datamodeling_score(scores, *problem[1:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bootstrap": -1}, InputError, "bootstrap must be a whole number from 0 on, got -1"),
        ({"bootstrap": 10.0}, InputTypeError, "bootstrap must be a whole number from 0 on, got 10.0"),
        ({"seed": -1}, InputError, "seed must be a whole number from 0 on"),
        ({"seed": None}, InputTypeError, "seed must be a whole number from 0 on, got None"),
        ({"confidence": 95}, InputError, "between 0 and 1, found 95"),
        ({"confidence": math.nan}, InputError, "confidence must be finite, got nan"),
        ({"confidence": "high"}, InputTypeError, "confidence must be a number, got 'high'"),
        ({"method": 3}, InputTypeError, "method must be a string or None, found int"),
    ],
)
def test_options_out_of_range(problem: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_datamodeling_score(*problem, **options)


def test_the_share_of_the_ceiling_is_the_mean_over_it() -> None:
    rng = np.random.default_rng(3)
    scores, masks = rng.normal(size=(20, 3)), rng.random((30, 20)) < 0.5
    outputs = (masks @ scores)[:, None] + rng.normal(size=(30, 2, 3))
    found = linear_datamodeling_score(scores, masks, outputs)
    assert found.noise_ceiling is not None
    assert found.share_of_ceiling == pytest.approx(found.mean / found.noise_ceiling)
    assert linear_datamodeling_score(scores, masks, outputs[:, 0]).share_of_ceiling is None
    assert dataclasses.replace(found, noise_ceiling=0.0).share_of_ceiling is None
