"""U_i = mean over windows k of std(p_k, ..., p_(k+J-1)), p_t the target probability. Keep the highest.

Examples whose prediction keeps changing are neither learned for good nor given up.

Shape legend: N examples, T epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Scored, ScoreSelector
from comove.coreset.trace_values import check_window, mean_over_epochs
from comove.discovery import check_choice
from comove.errors import InputError
from comove.training.sources import Source

__all__ = ["DynUnc", "dynamic_uncertainty", "windows"]

Floats = npt.NDArray[np.float64]


def windows(p_TN: npt.ArrayLike, window: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield mean and standard deviation (N,), ddof 1, of each window of ``window`` consecutive epochs.

    Raises:
        InputError: fewer epochs than the window.
    """
    p = np.asarray(p_TN, np.float64)
    if len(p) < window:
        raise InputError(f"A window of {window} epochs does not fit into {len(p)}; choose a shorter one.")
    for start in range(len(p) - window + 1):
        part = p[start : start + window]
        mean = part.mean(0)
        deviations = part - mean
        yield mean, np.sqrt(np.einsum("tn,tn->n", deviations, deviations) / (window - 1))


def dynamic_uncertainty(p_TN: npt.ArrayLike, window: int) -> Floats:
    """Return the mean over windows of the standard deviation of the target probability, (N,). O(NTJ).

    Args:
        p_TN: (T, N) target probabilities.
        window: J epochs.

    Raises:
        InputError: fewer epochs than the window.
    """
    total, count = np.zeros(()), 0
    for _, deviation in windows(p_TN, window):
        total, count = total + deviation, count + 1
    return total / count


@dataclass(frozen=True)
class DynUnc(ScoreSelector):
    """Dynamic uncertainty (He, Yang, Huang, Zhao, "Large-scale Dataset Pruning with Dynamic Uncertainty", 2023).

    Over the whole training. Scores of several runs are averaged. The authors multiply by 10, which changes no order.

    Args:
        window: J epochs (authors: 10).
        first: only the first so many epochs.
        variant: ``"all"`` windows; ``"official"`` leaves out the one that ends at the last epoch, as the authors' code.

    Raises:
        InputError: a window below 2 epochs or longer than ``first``; when selecting, fewer epochs than the window.
    """

    name: ClassVar[str] = "dyn_unc"
    summary: ClassVar[str] = "target probabilities that keep changing within windows of epochs"
    cost: ClassVar[str] = "O(NTJ) on the recorded target probabilities"

    window: int = 10
    first: int | None = None
    variant: Literal["all", "official"] = "all"

    def __post_init__(self) -> None:
        check_window(self.window, self.first, self.name)
        check_choice(self.variant, ("all", "official"), "variant", self.name)

    def _scores(self, sources: tuple[Source, ...]) -> Scored:
        left_out = 1 if self.variant == "official" else 0

        def score(p_TN: npt.NDArray[np.float32]) -> Floats:
            return dynamic_uncertainty(p_TN[: len(p_TN) - left_out], self.window)

        total, epochs = mean_over_epochs(
            sources, "target_probability", score, self.name, self.first, at_least=self.window + left_out
        )
        return Scored(total.astype(np.float32), {"epochs": epochs})
