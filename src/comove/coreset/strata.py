"""budget_b <- min(size_b, floor(rest / strata left)), strata in ascending order of size: coverage-centric allocation.

Small strata are kept whole and what they leave goes to the larger ones, so every level of difficulty is covered (Zheng,
Liu, Lai, Prakash, "Coverage-centric coreset selection for high pruning rates", ICLR 2023).

Shape legend: N examples, S strata.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from comove.data import Ids
from comove.errors import InputError

__all__ = ["allocate", "draw", "equal_width", "random_keys"]

Integers = npt.NDArray[np.int64]


def equal_width(values_N: npt.ArrayLike, n: int) -> Integers:
    """Return the stratum (N,) of each value: ``n`` intervals of equal width from the least to the greatest.

    Intervals are closed below; the last is closed above too, so the greatest value belongs to it whatever its sign (the
    authors' code multiplies the greatest by 1.0001 instead, which leaves a negative one out). Equal values share one.

    >>> equal_width([2, 3, 5, 9], 4).tolist()
    [0, 0, 1, 3]
    """
    values = np.asarray(values_N, np.float64)
    edges = np.linspace(values.min(), values.max(), n + 1)[1:-1]
    if values.min() == values.max():
        return np.zeros(values.size, np.int64)
    return np.searchsorted(edges, values, side="right")


def allocate(sizes_S: npt.ArrayLike, k: int) -> Integers:
    """Return how many of ``k`` picks each stratum gets, (S,); all there is where ``k`` is more.

    >>> allocate([1, 6, 2, 3], 8).tolist()
    [1, 3, 2, 2]
    """
    sizes = np.asarray(sizes_S, np.int64)
    budgets = np.zeros_like(sizes)
    rest = k
    for done, stratum in enumerate(np.argsort(sizes, kind="stable")):
        budgets[stratum] = min(sizes[stratum], rest // (sizes.size - done))
        rest -= budgets[stratum]
    return budgets


def random_keys(ids: Ids, seed: int, stream: int) -> npt.NDArray[np.float64]:
    """Return independent uniform numbers (N,) above 0 and below 1 that belong to the ids, wherever these stand."""
    keys = np.empty(ids.size)
    keys[ids.argsort()] = np.random.default_rng([seed, stream]).integers(0, 2**52, ids.size)
    return (keys + 0.5) / 2**52


def draw(strata_N: Integers, keys_N: npt.NDArray[np.float64], k: int) -> Integers:
    """Return the positions of ``k`` examples: of each stratum its :func:`allocate` share, those with the highest keys.

    With :func:`random_keys` that is a uniform choice within each stratum.

    Raises:
        InputError: fewer than ``k`` examples.
    """
    if not 0 < k <= strata_N.size:
        raise InputError(f"k must be from 1 to the {strata_N.size} examples, got {k}.")
    _, strata, sizes = np.unique(strata_N, return_inverse=True, return_counts=True)
    order = np.lexsort((-keys_N, strata))
    rank = np.arange(strata.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < np.repeat(allocate(sizes, k), sizes)]
