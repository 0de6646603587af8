"""S_i = sum_k d (1 - d)^(K - k) norm(kd_k - mean(kd_k)), K + 1 windows k of J epochs. Keep the highest.

kd_t = sum_c abs(P_t,c ln(P_t,c / P_(t-1),c)) is how far the prediction moved in epoch t; a window's deviation from its
mean is how unevenly it moved. The weights (d = .9) leave all but the last windows next to nothing.

Shape legend: N examples, T epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Scored, ScoreSelector
from comove.coreset.trace_values import check_window, epoch_rows, over_epochs
from comove.errors import InputError
from comove.training.sources import Source

__all__ = ["TDDS", "tdds"]


def tdds(kd_TN: npt.ArrayLike, window: int, *, decay: float = 0.9) -> npt.NDArray[np.float64]:
    """Return TDDS scores (N,). O(NTJ).

    Args:
        kd_TN: (T - 1, N) moves from each epoch to the next.
        window: J epochs, so J - 1 moves.
        decay: d, the weight of the newest window.

    Raises:
        InputError: fewer epochs than the window.
    """
    kd = np.asarray(kd_TN, np.float64)
    moves = window - 1
    if len(kd) < moves:
        raise InputError(f"tdds: a window of {window} epochs needs {moves} moves between epochs, got {len(kd)}.")
    score = np.zeros(kd.shape[1])
    for start in range(len(kd) - moves + 1):
        part = kd[start : start + moves]
        score *= 1 - decay
        score += decay * np.linalg.norm(part - part.mean(0), axis=0)
    return score


@dataclass(frozen=True)
class TDDS(ScoreSelector):
    """Temporal dual-depth scoring (Zhang, Du, Li, Xie, Zhou, CVPR 2024).

    Scores of several runs are averaged. The authors choose ``first`` and ``window`` by pruning rate; for CIFAR-100:
    30 % (90, 10), 90 % (10, 5), and by another repository's list 50 % (70, 10), 70 % (60, 20), 80 % (20, 10).

    Args:
        first: T, the first epochs of training used (30, the example in the authors' README; all of a shorter run);
            ``None`` for all.
        window: J epochs.
        decay: the weight of the newest window (authors: .9).

    Raises:
        InputError: a window below 3 epochs or longer than ``first``, a decay outside (0, 1]; when selecting, fewer
            epochs than the window.
    """

    name: ClassVar[str] = "tdds"
    summary: ClassVar[str] = "predictions that moved most unevenly over recent epochs"
    cost: ClassVar[str] = "O(NTJ) on the recorded moves (kd, which costs O(NCT) when recording)"

    first: int | None = 30
    window: int = 10
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_window(self.window, self.first, self.name, least=3)
        if not 0 < self.decay <= 1:
            raise InputError(f"tdds: decay must be in (0, 1], got {self.decay}.")

    def _scores(self, sources: tuple[Source, ...]) -> Scored:
        total, epochs = np.zeros(sources[0].train_ids.size), []
        for source in sources:
            rows = epoch_rows(source.trace, self.name, self.first, at_least=self.window)
            if rows[-1] - rows[0] >= len(rows):
                raise InputError(
                    "tdds reads how far predictions moved from epoch to epoch, but this trace also has rows within "
                    "epochs, and its kd compares with those. Record without every=."
                )
            moves = rows[1:]  # the move to the first epoch starts before training
            total += over_epochs(
                source.trace, "kd", lambda kd: tdds(kd, self.window, decay=self.decay), self.name, moves
            )
            epochs.append(len(rows))
        return Scored((total / len(sources)).astype(np.float32), {"epochs": epochs})
