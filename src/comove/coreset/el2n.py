"""s_i = mean_t || P_t(x_i) - onehot(y_i) ||: the norm of the error vector early in training. Keep the highest.

It approximates the norm of the loss gradient (GraNd) at the cost of a forward pass.

Shape legend: N examples, C classes, T epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Scored, ScoreSelector
from comove.coreset.trace_values import check_first, mean_over_epochs
from comove.training.sources import Source

__all__ = ["EL2N", "error_norms"]


def error_norms(probabilities_NC: npt.ArrayLike, labels_N: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return ||P - onehot(y)|| (N,), from 0 to sqrt(2). O(NC).

    >>> error_norms([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], [0, 1]).round(4).tolist()
    [0.7071, 0.0]
    """
    errors = np.array(probabilities_NC, np.float64)
    labels = np.asarray(labels_N, np.int64)
    errors[np.arange(labels.size), labels] -= 1
    norms_N: npt.NDArray[np.float64] = np.linalg.norm(errors, axis=1)
    return norms_N


@dataclass(frozen=True)
class EL2N(ScoreSelector):
    """Error L2 norm (Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021).

    Scores of several runs are averaged; the authors recommend ten, as one run's are noisy. Hardest-first selection
    collapses at high pruning rates and with label noise.

    Args:
        first: the mean over the first so many epochs (10, as in CCS's code and in the CLD paper's comparison; all of a
            shorter run); ``None`` for all.
        epoch: one epoch alone instead, as the authors do (CIFAR-10: 20).
    """

    name: ClassVar[str] = "el2n"
    summary: ClassVar[str] = "largest error norm early in training: hardest first"
    cost: ClassVar[str] = "O(NT) on the recorded error norms"

    first: int | None = 10
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_first(self.first, self.name)
        check_first(self.epoch, self.name, "epoch")

    def _scores(self, sources: tuple[Source, ...]) -> Scored:
        means, epochs = mean_over_epochs(sources, "el2n", _mean, self.name, self.first, self.epoch)
        return Scored(means.astype(np.float32), {"epochs": epochs})


def _mean(norms_TN: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    mean_N: npt.NDArray[np.float64] = norms_TN.mean(0, dtype=np.float64)
    return mean_N
