"""How far an LDS can be trusted: a bootstrap over subsets and queries, and the reliability of the ground truth.

Shape suffixes: C subsets, Q queries, R seeds (models of one subset), B bootstrap resamples, M methods.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from comove.lds.arrays import Floats, Numbers
from comove.lds.ranks import ResampledRanks, exact_floats, spearman_columns, tie_groups, varies
from comove.lds.truth import ground_truth

__all__ = ["bootstrap_means", "half_splits", "recentred_interval", "split_half_reliability"]

_DRAWN = 64  # resamples drawn at a time; part of the definition of the random stream
_HELD = 1024  # resamples held at a time: long rows to add
_MAX_SPLITS = 32  # half splits of the seeds; every one of them up to R = 6


def bootstrap_means(
    truth_CQ: Floats, predictions: Sequence[Floats], bootstrap: int, rng: np.random.Generator
) -> Floats:
    """Mean LDS of each prediction in each resample of the subsets and, independently, of the queries, (M, B).

    All predictions meet the same resamples, so that their means can be subtracted. Within a resample the rules are
    those of the score itself: a query whose truth has become constant is left out, and one whose prediction alone has
    become constant counts as 0. NaN where no query has an LDS.
    """
    truth, groups = tie_groups(truth_CQ), [tie_groups(prediction_CQ) for prediction_CQ in predictions]
    means = []
    for weights_CB, counts_QB in _resamples(truth_CQ.shape, bootstrap, rng):
        total_MB, count_B = np.zeros((len(groups), weights_CB.shape[1])), np.zeros(weights_CB.shape[1])
        for q, counts_B in enumerate(counts_QB):
            ranks = ResampledRanks(truth.column(q), weights_CB)
            count_B += counts_B * (ranks.squared_B > 0)
            for total_B, own in zip(total_MB, groups, strict=True):
                lds_B = ranks.spearman(own.column(q))
                total_B += counts_B * np.where(np.isnan(lds_B), 0.0, lds_B)
        means.append(np.divide(total_MB, count_B, out=np.full_like(total_MB, np.nan), where=count_B > 0))
    return np.concatenate(means, axis=1)


def _resamples(shape: tuple[int, ...], bootstrap: int, rng: np.random.Generator) -> Iterator[tuple[Numbers, Numbers]]:
    """How often each subset and each query is drawn, (C, B) and (Q, B), so many resamples at a time."""
    drawn = []
    for start in range(0, bootstrap, _DRAWN):
        drawn.append([_resample(n, min(_DRAWN, bootstrap - start), rng) for n in shape])
        if len(drawn) * _DRAWN >= _HELD or start + _DRAWN >= bootstrap:
            weights_CB, counts_QB = (np.concatenate(part, axis=1) for part in zip(*drawn, strict=True))
            yield weights_CB.astype(exact_floats(shape[0])), counts_QB
            drawn = []


def recentred_interval(means: Floats, estimate: float, confidence: float, limit: float = 1.0) -> tuple[float, float]:
    """Percentiles of the bootstrap ``means``, moved so that their own mean is the ``estimate``, within +-``limit``.

    A resample holds some subsets twice, and such ties bias its Spearman towards 0 by order 1/C. Averaged over many
    queries that exceeds the spread: the percentiles as they stand can lie wholly to one side of the estimate.
    NaN if no resample has a mean.
    """
    means = means[~np.isnan(means)]
    if not means.size:
        return math.nan, math.nan
    percentiles = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.clip(percentiles + (estimate - means.mean()), -limit, limit)
    return float(low), float(high)


def _resample(n: int, size: int, rng: np.random.Generator) -> Numbers:
    """How often each of ``n`` items is drawn in ``size`` draws of ``n`` with replacement, (n, size)."""
    drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
    return np.ascontiguousarray(counts.T, dtype=np.float64)


def split_half_reliability(outputs_CRQ: Floats, rng: np.random.Generator) -> Floats:
    """Reliability of each query's mean over R seeds, from Spearman between means of half the seeds, (Q,).

    With r the average over splits into two halves of h = R // 2 seeds (one seed sits out when R is odd), Spearman-Brown
    carries it to R = n h seeds: ``n r / (1 + (n - 1) |r|)``. The absolute value, the usual form for a correlation that
    may be negative, keeps noise about zero at zero. A half that is constant while the other is not counts as 0.
    """
    correlations = [_half_correlation(outputs_CRQ, *split) for split in half_splits(outputs_CRQ.shape[1], rng)]
    stacked = np.stack(correlations)
    defined = ~np.isnan(stacked)
    count = defined.sum(axis=0)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    r_Q = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    n = outputs_CRQ.shape[1] / (outputs_CRQ.shape[1] // 2)
    corrected_Q: Floats = n * r_Q / (1 + (n - 1) * np.abs(r_Q))
    return corrected_Q


def half_splits(seeds: int, rng: np.random.Generator) -> Iterator[tuple[list[int], list[int]]]:
    """Two disjoint halves of ``seeds // 2`` seeds: every distinct such pair if there are few, else random ones."""
    half = seeds // 2
    if math.comb(seeds, 2 * half) * math.comb(2 * half, half) // 2 > _MAX_SPLITS:
        for _ in range(_MAX_SPLITS):
            shuffled = rng.permutation(seeds).tolist()
            yield shuffled[:half], shuffled[half : 2 * half]
        return
    for used in itertools.combinations(range(seeds), 2 * half):
        for rest in itertools.combinations(used[1:], half - 1):  # the first seed stays left: each pair once
            left = [used[0], *rest]
            yield left, [seed for seed in used if seed not in left]


def _half_correlation(outputs_CRQ: Floats, left: list[int], right: list[int]) -> Floats:
    a_CQ, b_CQ = ground_truth(outputs_CRQ[:, left]), ground_truth(outputs_CRQ[:, right])
    correlation = spearman_columns(a_CQ, b_CQ)
    correlation[varies(a_CQ) ^ varies(b_CQ)] = 0.0
    return correlation
