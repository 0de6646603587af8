"""keep the k_c smallest abs(d_i - median_c(d)), d_i = norm(h_i - m_(y_i)) the distance from the class centre m_c.

Examples at a middling distance are neither redundant nor outliers.

Shape legend: N examples, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Picks, Positions, Selector, check_scores
from comove.coreset.trace_values import check_first, needs_features
from comove.data import Ids
from comove.discovery import check_choice
from comove.ties import highest, tie_keys
from comove.training.sources import Source

__all__ = ["Moderate", "central_band", "centre_distances"]

Centre = Literal["mean", "median"]


def centre_distances(
    features_NF: npt.ArrayLike, labels_N: npt.ArrayLike, centre: Centre = "mean"
) -> npt.NDArray[np.float64]:
    """Return the distance (N,) of each example's features from the centre of its class. O(NF).

    Args:
        features_NF: features.
        labels_N: class indices.
        centre: the ``"mean"`` of the class's features, or their coordinate-wise ``"median"``.
    """
    features, labels = np.asarray(features_NF), np.asarray(labels_N)
    distances = np.empty(labels.size)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        part = features[own].astype(np.float64)
        middle = part.mean(0) if centre == "mean" else np.median(part, axis=0)
        distances[own] = np.linalg.norm(part - middle, axis=1)
    return distances


def central_band(distances_N: npt.NDArray[np.float64], ids: Ids, k: int) -> npt.NDArray[np.int64]:
    """Return the positions of the ``k`` middle ranks of the distances: the band of the authors' released code."""
    start = round((distances_N.size - k) / 2)  # half a rank goes to the even number, as in their code
    return np.lexsort((tie_keys(ids), distances_N))[start : start + k]


class _Prepared(NamedTuple):
    distances: npt.NDArray[np.float64]
    ids: Ids


@dataclass(frozen=True)
class Moderate(Selector):
    """Moderate coreset (Xia, Liu, Yu, Shen, Han, Liu, ICLR 2023).

    The coreset's scores are minus the deviation from the median distance (in its class; with ``"released"`` from that
    of all examples). For one run: features of several share no space.

    Args:
        variant: ``"paper"``, class means and, class by class, the smallest deviations from the median distance;
            ``"released"``, the authors' code: class medians and the middle ranks of all distances at once, whatever the
            class.
        epoch: at whose end the features were kept; by default the last that were.
    """

    name: ClassVar[str] = "moderate"
    summary: ClassVar[str] = "features at the median distance from their class centre; class-balanced"
    cost: ClassVar[str] = "O(NF + N log N) on the features of one epoch"
    balanced: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    variant: Literal["paper", "released"] = "paper"
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.variant, ("paper", "released"), "variant", self.name)
        check_first(self.epoch, self.name, "epoch")
        object.__setattr__(self, "balanced", self.variant == "paper")

    def _prepare(self, sources: tuple[Source, ...]) -> _Prepared:
        (source,) = sources
        labels = source.labels(self.name)
        features_NF = needs_features(source, self.epoch, self.name)
        distances = centre_distances(features_NF, labels, "mean" if self.variant == "paper" else "median")
        check_scores(distances, source.train_ids, self.name)
        return _Prepared(distances, source.train_ids)

    def _pick(self, prepared: _Prepared, candidates: Positions, k: int) -> Picks:
        distances, ids = prepared.distances[candidates], prepared.ids[candidates]
        scores = -np.abs(distances - np.median(distances))
        kept = highest(scores, ids, k)
        if self.variant == "released":
            band = central_band(distances, ids, k)
            kept = band[highest(scores[band], ids[band], k)]
        return Picks(candidates[kept], scores[kept].astype(np.float32))
