"""tau(m, q) = mean of f(q) over subsets with m - mean of f(q) over subsets without m.

Feldman, Zhang, "What Neural Networks Memorize and Why", NeurIPS 2020, eq. 2 and its estimator (the paper's "Infl").

Shape legend: C subsets, N train, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.attribution.base import BankAttributor
from comove.errors import InputError, some
from comove.training.sources import BankSource

__all__ = ["SubsampledInfluence", "difference_of_means"]


def difference_of_means(
    masks_CN: npt.NDArray[np.bool_], outputs_CQ: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return (N, Q) mean output over subsets with each example minus the mean without; NaN where a side is empty.

    >>> difference_of_means(np.array([[True, False], [False, True]]), np.array([[3.0], [1.0]])).ravel().tolist()
    [2.0, -2.0]
    """
    with_N = masks_CN.sum(0)
    centred_CQ = outputs_CQ - outputs_CQ.mean(0)  # the sums over all subsets are then zero, and nothing cancels
    sums_NQ = masks_CN.T.astype(np.float64) @ centred_CQ
    without_N = len(masks_CN) - with_N
    with np.errstate(divide="ignore", invalid="ignore"):
        scale_N = 1 / with_N + 1 / without_N
        return np.where(np.isfinite(scale_N)[:, None], sums_NQ * scale_N[:, None], np.nan)


@dataclass(frozen=True)
class SubsampledInfluence(BankAttributor):
    """FZ influence: the difference of means between subsets with and without an example.

    Needs a retraining bank in which every example is sometimes in and sometimes out. Evaluate it on other subsets than
    it was fitted to (``bank.part``).

    Args:
        output: what is averaged, as in :data:`comove.evaluation.OUTPUTS`.
    """

    name: ClassVar[str] = "fz"
    summary: ClassVar[str] = "mean output of retrained models with an example minus without it"
    cost: ClassVar[str] = "hundreds to thousands of retrained models"

    output: str = "margin"

    def _bank_scores(self, bank: BankSource) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        scores_NQ = difference_of_means(bank.masks, bank.mean_outputs(self.output, self.name))
        undecided = np.flatnonzero(np.isnan(scores_NQ).any(1))
        if undecided.size:
            raise InputError(
                f"fz needs every example in some subsets and out of others; {undecided.size} are not, ids "
                f"{some(bank.train_ids[undecided].tolist())}: use more subsets, or an alpha nearer to 0.5."
            )
        return scores_NQ, {}
