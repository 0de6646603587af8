"""s_i = mean over the k nearest neighbours j of KL(P_j || P_i): predictions unlike those of one's neighbours.

The method was made to choose what to label next; where every example is labelled, the neighbours are sought among the
other training examples.

Shape legend: N examples, C classes, F features, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from comove.checks import whole_number
from comove.coreset.base import ScoreSelector
from comove.coreset.last_layer import check_features, in_tie_order
from comove.coreset.neighbours import nearest_neighbours, unit_rows
from comove.coreset.trace_values import needs_anchor
from comove.discovery import check_choice
from comove.errors import InputError
from comove.training.sources import Source

__all__ = ["PROBABILITY_FLOOR", "Cal", "contrast"]

Floats = npt.NDArray[np.float64]

PROBABILITY_FLOOR = 1e-12
"""Probabilities count as at least this in logarithms."""


def contrast(
    probabilities_NC: npt.ArrayLike, neighbours_Nk: npt.NDArray[np.int64], *, symmetric: bool = False
) -> Floats:
    """Return (N,) mean divergence of the neighbours' predictions from one's own; 0 where there are no neighbours.

    Args:
        probabilities_NC: (N, C) class probabilities.
        neighbours_Nk: (N, k) positions of neighbours.
        symmetric: half of KL(P_j || P_i) and half of KL(P_i || P_j), as DeepCore takes.

    >>> contrast([[0.5, 0.5], [0.9, 0.1], [0.6, 0.4]], np.array([[1], [0], [1]])).round(6).tolist()
    [0.368064, 0.510826, 0.226289]
    """
    own_NC = np.asarray(probabilities_NC, np.float64)
    logs_NC = np.log(np.maximum(own_NC, PROBABILITY_FLOOR))
    total_N = np.zeros(len(own_NC))
    for column_N in neighbours_Nk.T:  # one neighbour of all examples at a time: never (N, k, C)
        difference_NC = logs_NC[column_N] - logs_NC
        weights_NC = (own_NC[column_N] - own_NC) / 2 if symmetric else own_NC[column_N]
        total_N += np.einsum("nc,nc->n", weights_NC, difference_NC)
    mean_N: Floats = total_N / max(1, neighbours_Nk.shape[1])
    return mean_N


@dataclass(frozen=True)
class Cal(ScoreSelector):
    """Contrastive active learning (Margatina, Vernikos, Barrault, Aletras, EMNLP 2021), most contrastive first.

    Neighbours are exact, in features divided by their norms, as in the original. Not class-balanced.

    Args:
        neighbours: how many, 10 in the authors' code.
        pool: where they are sought: among ``"all"`` training examples, or among those of the same ``"class"`` (faster
            by the number of classes).
        variant: ``"cal"``; or ``"deepcore"`` for comparison with DeepCore, which averages both directions of the
            divergence over neighbours of the same class in features as they are, and keeps the *lowest*.
        epoch: after which epoch features and predictions are taken; by default the last that were kept.
    """

    name: ClassVar[str] = "cal"
    summary: ClassVar[str] = "predictions unlike those of the nearest neighbours"
    cost: ClassVar[str] = "O(N^2 F) on features, or O(N_c^2 F) a class"
    one_run: ClassVar[bool] = True

    neighbours: int = 10
    pool: Literal["all", "class"] = "all"
    variant: Literal["cal", "deepcore"] = "cal"
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.pool, ("all", "class"), "pool", self.name)
        check_choice(self.variant, ("cal", "deepcore"), "variant", self.name)
        whole_number(self.neighbours, f"{self.name}: neighbours", 1, error=InputError)
        object.__setattr__(self, "easy_first", self.variant == "deepcore")

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        source = sources[0]
        features_NF, probabilities_NC = needs_anchor(source, self.epoch, self.name)
        for values in (features_NF, probabilities_NC):
            check_features(values, source.train_ids, self.name)
        deepcore = self.variant == "deepcore"
        by_class = deepcore or self.pool == "class"
        groups_N = source.labels(self.name) if by_class else np.zeros(len(features_NF), np.int64)
        scores_N = np.zeros(len(features_NF))
        for group in np.unique(groups_N):
            members = in_tie_order(np.flatnonzero(groups_N == group), source.train_ids)  # ties between neighbours too
            features = features_NF[members] if deepcore else unit_rows(features_NF[members].astype(np.float64))
            near = nearest_neighbours(features, self.neighbours)
            scores_N[members] = contrast(probabilities_NC[members], near.index_Nk, symmetric=deepcore)
        return (-scores_N if deepcore else scores_N).astype(np.float32)
