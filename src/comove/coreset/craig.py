"""S = argmax sum_i max_{j in S} (D - ||g_i - g_j||), D = max ||g_i - g_j||; weight_j = #{i : j is i's nearest in S}.

Gradients of the picks, each times its weight, add up to nearly the gradient of all: the facility location function
bounds the error. g_i are last-layer gradients, in factors; the function is maximised class by class, by lazy greedy.

Shape legend: N candidates, k picks, B candidates of one evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Picks, Positions, Selector
from comove.coreset.greedy import FacilityLocation, Rows, lazy_greedy
from comove.coreset.last_layer import LastLayerGradients, anchor_gradients, in_tie_order
from comove.data import Ids
from comove.training.sources import Source

__all__ = ["Craig", "craig", "facility_location"]

Floats = npt.NDArray[np.float64]

HOLD_BYTES = 4 << 30
"""Similarities (N, N) float32 up to this size are held; of larger classes rows are computed when asked for."""
BLOCK_BYTES = 128 << 20


def facility_location(similarity_NN: npt.ArrayLike, k: int) -> tuple[Positions, Floats, Positions]:
    """Maximise sum_i max_{j in S} s_ij by lazy greedy.

    Args:
        similarity_NN: (N, N), symmetric, none negative.
        k: from 1 to N.

    Returns:
        (k,) picks in order (ties to the lower index), the gain of each, and how many points each serves.

    Raises:
        InputError: k out of range.
    """
    similarity = np.asarray(similarity_NN)
    return _maximise(lambda candidates: similarity[candidates], similarity.sum(1, dtype=np.float64), k, 1)


def craig(
    gradients: LastLayerGradients, k: int, *, hold_bytes: int = HOLD_BYTES
) -> tuple[Positions, Floats, Positions]:
    """Pick ``k`` examples by facility location on the distances of their gradients.

    O(N^2 (C + F)) time. Memory is (N, N) float32 up to ``hold_bytes``, beyond which it is O(N) and rows are computed
    again at every evaluation.

    Returns:
        (k,) picks in order, the gain of each, and weights: how many examples are nearest to it (they add up to N).

    Raises:
        InputError: k out of range.
    """
    n, double = len(gradients), gradients.double()
    if 4 * n * n <= hold_bytes:
        return facility_location(_similarities(double), k)
    rows = max(1, BLOCK_BYTES // (8 * n))
    sums_N, largest = np.empty(n, np.float64), 0.0
    for start in range(0, n, rows):
        block = np.arange(start, min(start + rows, n))
        distances_BN = double.take(block).distances(double)
        sums_N[block] = distances_BN.sum(1)
        largest = max(largest, float(distances_BN.max()))

    def similarities(candidates: Positions) -> Floats:
        found: Floats = largest - double.take(candidates).distances(double)
        return found

    return _maximise(similarities, n * largest - sums_N, k, min(32, rows))


def _similarities(gradients: LastLayerGradients) -> npt.NDArray[np.float32]:
    """Return (N, N), symmetric to the last bit: else rounding would decide between two that serve one another."""
    n = len(gradients)
    found_NN = np.empty((n, n), np.float32)
    rows = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        block_BM = gradients.take(np.arange(start, stop)).distances(gradients.take(np.arange(start, n)))
        own_BB = block_BM[:, : stop - start]
        own_BB[:] = np.triu(own_BB, 1) + np.triu(own_BB, 1).T
        found_NN[start:stop, start:] = block_BM
        found_NN[start:, start:stop] = block_BM.T
    np.subtract(found_NN.max(), found_NN, out=found_NN)
    return found_NN


def _maximise(rows: Rows, bounds_N: Floats, k: int, width: int) -> tuple[Positions, Floats, Positions]:
    function = FacilityLocation(rows, bounds_N.size)
    picks, gains = lazy_greedy(function, bounds_N, k, width=width)
    return picks, gains, function.served(picks)


@dataclass(frozen=True)
class Craig(Selector):
    """Weighted facility location of last-layer gradients (Mirzasoleiman, Bilmes, Leskovec, "CRAIG", ICML 2020).

    Class by class; :attr:`Coreset.weights` say how many examples of the class each stands for. The authors select
    again every few epochs of training; here once, at one anchor. The gradient is the outer product of error and
    features with the error itself (weights and bias), not their concatenation.

    Args:
        epoch: after which epoch the gradients are taken; by default the last whose features were kept.
    """

    name: ClassVar[str] = "craig"
    summary: ClassVar[str] = "weighted medoids of last-layer gradients (facility location), class by class"
    cost: ClassVar[str] = "O(N_c^2 (F + C)) a class on features"
    balanced: ClassVar[bool] = True
    greedy: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    epoch: int | None = None

    def _prepare(self, sources: tuple[Source, ...]) -> tuple[LastLayerGradients, Ids]:
        return anchor_gradients(sources[0], self.epoch, self.name), sources[0].train_ids

    def _pick(self, prepared: tuple[LastLayerGradients, Ids], candidates: Positions, k: int) -> Picks:
        gradients, ids = prepared
        ordered = in_tie_order(candidates, ids)
        picks, gains, weights = craig(gradients.take(ordered), k)
        return Picks(ordered[picks], gains.astype(np.float32), weights.astype(np.float32))
