"""A_i = (1 / T) sum_t (z_y - max_{c != y} z_c): the area under the margin. Keep the lowest, the hardest.

A margin that stays negative means that the model never believes the label: a hard example, or a wrong label.

Shape legend: N examples, T epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Scored, ScoreSelector
from comove.coreset.trace_values import check_first, mean_over_epochs
from comove.discovery import check_choice
from comove.training.sources import Source

__all__ = ["AUM", "area_under_margin"]

FIELD = {"logit": "margin_logit", "prob": "margin_prob"}


def area_under_margin(margins_TN: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the mean margin of each example over epochs, (N,). O(NT).

    >>> area_under_margin([[2, -1], [4, 0]]).tolist()
    [3.0, -0.5]
    """
    mean_N: npt.NDArray[np.float64] = np.mean(np.asarray(margins_TN), axis=0, dtype=np.float64)
    return mean_N


@dataclass(frozen=True)
class AUM(ScoreSelector):
    """Area under the margin (Pleiss, Zhang, Elenberg, Weinberger, NeurIPS 2020).

    As a pruning baseline the lowest are kept (Zheng et al., ICLR 2023); Pleiss et al. flag the very same examples as
    mislabelled. The coreset's scores are minus the area where ``keep`` is ``"low"``, so that higher was kept first.
    Scores of several runs are averaged.

    Args:
        keep: ``"low"`` (hardest first) or ``"high"``.
        margin: of ``"logit"`` (Pleiss et al.) or of ``"prob"``, class probabilities (CCS, which adds them up over
            epochs: the same order).
        first: only the first so many epochs.
    """

    name: ClassVar[str] = "aum"
    summary: ClassVar[str] = "lowest mean margin over training: hardest first"
    cost: ClassVar[str] = "O(NT) on the recorded margins"

    keep: Literal["low", "high"] = "low"
    margin: Literal["logit", "prob"] = "logit"
    first: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.keep, ("low", "high"), "keep", self.name)
        check_choice(self.margin, tuple(FIELD), "margin", self.name)
        check_first(self.first, self.name)
        object.__setattr__(self, "easy_first", self.keep == "high")

    def _scores(self, sources: tuple[Source, ...]) -> Scored:
        areas, epochs = mean_over_epochs(sources, FIELD[self.margin], area_under_margin, self.name, self.first)
        return Scored((-areas if self.keep == "low" else areas).astype(np.float32), {"epochs": epochs})
