"""A mean over queries, and how sure one can be of it.

Queries are drawn independently, so they are resampled, each with all of its models; the spread of the queries' means
holds the noise of the models already, and resampling these too would count it twice (Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8). Where the same models judge all queries, models are resampled as well
as queries (Owen, The pigeonhole bootstrap, 2007).

Shape suffixes: Q queries, R models, B bootstrap resamples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["BOOTSTRAP", "Estimate", "mean_with_interval"]

BOOTSTRAP = 2000
Floats = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean and its interval; the bounds are NaN where nothing is known of the spread (a single query)."""

    value: float
    low: float
    high: float


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


def _shares(n: int, rng: np.random.Generator) -> Floats:
    """The share of each of ``n`` items in resamples of ``n``, (B, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP) / n
