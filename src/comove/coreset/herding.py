"""s-th pick = argmin_i ||s mu - sum_{j picked} phi_j - phi_i||: the one that brings the picks' mean nearest to mu.

mu is the mean of the penultimate features phi_i of all candidates. With w_s = s mu - sum_{j picked} phi_j the kernel
form of the paper (E.1.1) picks argmax_i <w_s, phi_i> instead; the two agree when all features have the same norm.

Shape legend: N candidates, F features, k picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Picks, Positions, Selector
from comove.coreset.greedy import check_count
from comove.coreset.last_layer import check_features, in_tie_order
from comove.coreset.trace_values import needs_anchor
from comove.data import Ids
from comove.discovery import check_choice
from comove.training.sources import Source

__all__ = ["Herding", "herding"]

Variant = Literal["mean", "kernel", "deepcore"]


def herding(features_NF: npt.ArrayLike, k: int, variant: Variant = "mean") -> tuple[Positions, npt.NDArray[np.float64]]:
    """Pick ``k`` examples whose mean follows that of all.

    Args:
        features_NF: (N, F), finite.
        k: from 1 to N.
        variant: ``"mean"``, the nearest to w_s; ``"kernel"``, the largest inner product with it; ``"deepcore"``, the
            *farthest* from it, as the DeepCore library does by mistake.

    Returns:
        (k,) picks in order (ties to the lower index), and (k,) minus the distance, the inner product, the distance.

    Raises:
        InputError: k out of range.

    >>> herding([[0.0], [1.0], [2.0], [6.0]], 3)[0].tolist()
    [2, 1, 3]
    """
    features = np.asarray(features_NF)
    check_count(k, len(features))
    squares_N = np.einsum("nf,nf->n", features, features, dtype=np.float64)
    mean_F = features.mean(0, dtype=np.float64)
    w_F = mean_F.copy()
    free_N = np.ones(len(features), bool)
    picks, scores = np.empty(k, np.int64), np.empty(k, np.float64)
    for step in range(k):
        values_N = (features @ w_F.astype(features.dtype)).astype(np.float64)
        if variant != "kernel":
            sign = 1 if variant == "deepcore" else -1
            values_N = sign * np.sqrt(np.maximum(squares_N - 2 * values_N + w_F @ w_F, 0))
        values_N[~free_N] = -np.inf
        best = int(values_N.argmax())
        picks[step], scores[step], free_N[best] = best, values_N[best], False
        w_F += mean_F - features[best]
    return picks, scores


@dataclass(frozen=True)
class Herding(Selector):
    """Kernel herding of penultimate features (Welling, ICML 2009; Chen, Welling, Smola, UAI 2010).

    O(N F k) time. Not class-balanced; ``PerClass("herding")`` is.

    Args:
        variant: ``"mean"`` (default) or ``"kernel"``, the paper's form; ``"deepcore"`` for comparison with DeepCore,
            whose code picks the farthest.
        epoch: after which epoch the features are taken; by default the last that were kept.
    """

    name: ClassVar[str] = "herding"
    summary: ClassVar[str] = "features whose mean follows the mean of all, picked one by one"
    cost: ClassVar[str] = "O(NFk) on features"
    greedy: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    variant: Variant = "mean"
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.variant, ("mean", "kernel", "deepcore"), "variant", self.name)

    def _prepare(self, sources: tuple[Source, ...]) -> tuple[npt.NDArray[np.float32], Ids]:
        features_NF = needs_anchor(sources[0], self.epoch, self.name).features_NF
        check_features(features_NF, sources[0].train_ids, self.name)
        return features_NF, sources[0].train_ids

    def _pick(self, prepared: tuple[npt.NDArray[np.float32], Ids], candidates: Positions, k: int) -> Picks:
        features_NF, ids = prepared
        ordered = in_tie_order(candidates, ids)
        picks, scores = herding(features_NF[ordered], k, self.variant)
        return Picks(ordered[picks], scores.astype(np.float32))
