"""key(id) = mix(id + c (seed + 1)): one rule for ties, so that neither the order of ids nor positions ever decide.

Ids often run class by class (every folder of images is read so). If equal scores went to the lower id, a method whose
scores tie often would keep the first classes and lose the others. Here equal scores go to the lower key, a seeded hash
of the id: which of the tied examples come first looks random, is the same in whatever order they stand, and does not
change when others are added or left out. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), which maps no two ids to one key.

Shape legend: N examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["highest", "tie_keys", "tie_order"]

Ids = npt.NDArray[np.int64]
_STEP = 0x9E3779B97F4A7C15


def tie_keys(ids_N: Ids, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Return the keys (N,) of ids (N,): all different where the ids are; of equal scores the lowest key comes first.

    >>> tie_keys(np.array([0, 1])).tolist() == tie_keys(np.array([1, 0])).tolist()[::-1]
    True
    """
    step = np.array([_STEP * (seed + 1) % 2**64], np.uint64)
    keys = np.asarray(ids_N, np.int64).view(np.uint64) + step  # unsigned arrays wrap around, as is meant
    keys = (keys ^ (keys >> np.uint64(30))) * np.array([0xBF58476D1CE4E5B9], np.uint64)
    keys = (keys ^ (keys >> np.uint64(27))) * np.array([0x94D049BB133111EB], np.uint64)
    return np.asarray(keys ^ (keys >> np.uint64(31)), np.uint64)


def tie_order(ids_N: Ids, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the positions (N,) of ids in order of their keys: the order of examples that all have one score."""
    return np.argsort(tie_keys(ids_N, seed), kind="stable")


def highest(scores_N: npt.NDArray[Any], ids_N: Ids, k: int | None = None, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the positions of the ``k`` highest scores (by default of all), best first; ties go to the lower key.

    Args:
        scores_N: (N,) signed integers or floats, none NaN.
        ids_N: (N,) ids.
        k: from 0 to N.
        seed: of the keys.

    >>> highest(np.array([1.0, 3.0, 2.0]), np.array([7, 9, 8]), 2).tolist()
    [1, 2]
    """
    size = scores_N.size
    count = size if k is None else k
    if count == 0:
        return np.zeros(0, np.int64)
    among = np.arange(size)
    if count < size:  # a selection, then a sort of what was selected
        among = np.flatnonzero(scores_N >= np.partition(scores_N, size - count)[size - count])
    return among[np.lexsort((tie_keys(ids_N[among], seed), -scores_N[among]))[:count]]
