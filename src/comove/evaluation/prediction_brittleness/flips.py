"""Flips of predictions, and how sure one can be of their rate.

    prediction(q) = the class that most of B models of the full data predict
    rate = 1/(Q R) sum_q,r [ class that model r predicts for q != prediction(q) ]

The R models of one query are trained without the same examples, so their flips are alike and tell less than R
independent trials: simulated, a binomial interval over all R Q flips (Wilson's) that should hold the truth 95 % of the
time does so 70 to 85 %. What is drawn independently is queries. So queries are resampled, each with all its models
(simulated with 40 queries or more: 90 to 95 %). The spread of the queries' means holds the noise of the models
already, and resampling these too would count it twice (Davison and Hinkley, Bootstrap Methods and their Application,
1997, section 3.8). Models of the full data (k = 0) each judge all queries; there models are resampled as well as
queries (Owen, The pigeonhole bootstrap, 2007).

Shape suffixes: Q queries, R models, B bootstrap resamples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["BOOTSTRAP", "Estimate", "flip_rate", "majority", "mean_with_interval"]

BOOTSTRAP = 2000
Floats = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean and its interval; the bounds are NaN where nothing is known of the spread (a single query)."""

    value: float
    low: float
    high: float


def majority(predicted_RQ: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The class that most of the R models predict for each query, (Q,); ties go to the smallest class."""
    classes = np.arange(int(predicted_RQ.max()) + 1)
    return np.asarray((predicted_RQ[None] == classes[:, None, None]).sum(1).argmax(0), np.int64)


def mean_with_interval(
    values_QR: npt.NDArray[np.generic], *, shared_models: bool = False, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean over queries and models, with percentiles of :data:`BOOTSTRAP` resamples.

    Args:
        values_QR: what model r says of query q.
        shared_models: whether model r is the same one for every query; else each query has R models of its own.
        confidence: level of the interval.
        seed: of the resamples; equal seeds resample the same queries, so results can be compared in pairs.
    """
    values = values_QR.astype(np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    rng = np.random.default_rng([seed, 0xF11B5])
    queries_BQ = _shares(len(values), rng)
    if shared_models and values.shape[1] > 1:
        means_B = np.einsum("br,br->b", queries_BQ @ values, _shares(values.shape[1], rng))
    else:
        means_B = queries_BQ @ values.mean(axis=1)
    low, high = np.quantile(means_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, float(low), float(high))


def flip_rate(
    flips_QR: npt.NDArray[np.bool_], *, shared_models: bool = False, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The share of flips, with its interval; as :func:`mean_with_interval`.

    Where no prediction flips, or every one, resampling finds no spread; the bound is then the exact binomial one that
    counts each query as one trial.
    """
    found = mean_with_interval(flips_QR, shared_models=shared_models, confidence=confidence, seed=seed)
    unseen = 1 - ((1 - confidence) / 2) ** (1 / len(flips_QR))
    if not flips_QR.any():
        return Estimate(0.0, 0.0, unseen)
    if flips_QR.all():
        return Estimate(1.0, 1 - unseen, 1.0)
    return found


def _shares(n: int, rng: np.random.Generator) -> Floats:
    """The share of each of ``n`` items in resamples of ``n``, (B, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP) / n
