"""tau(m, q) = f(q) of models trained with m - f(q) of models trained on everything but m, each a mean over seeds.

The definition that influence functions approximate (Cook, 1977; Koh, Liang, ICML 2017), by retraining; the
alpha = (N-1)/N corner of the paper's evaluation.

Shape legend: C subsets, N train, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.attribution.base import BankAttributor
from comove.errors import InputError
from comove.training.sources import BankSource

__all__ = ["LeaveOneOut", "leave_one_out_effects"]


def leave_one_out_effects(
    masks_CN: npt.NDArray[np.bool_], outputs_CQ: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return (N, Q) mean output of the models that had an example, minus that of the models that lacked it.

    Every mask leaves out one example or none. NaN for an example that no subset leaves out.
    """
    removed_C, which_C = (~masks_CN).sum(1), (~masks_CN).argmax(1)
    n = masks_CN.shape[1]
    effects_NQ = np.full((n, outputs_CQ.shape[1]), np.nan)
    for m in np.unique(which_C[removed_C == 1]):
        without = (removed_C == 1) & (which_C == m)
        if not without.all():
            effects_NQ[m] = outputs_CQ[~without].mean(0) - outputs_CQ[without].mean(0)
    return effects_NQ


@dataclass(frozen=True)
class LeaveOneOut(BankAttributor):
    """Leave-one-out retraining, from a bank whose subsets each lack one example (or none).

    Only the examples that some subset leaves out are scored; the others are left out of the result and counted.

    Args:
        output: what is measured, as in :data:`comove.evaluation.OUTPUTS`.
    """

    name: ClassVar[str] = "leave-one-out"
    summary: ClassVar[str] = "output of retrained models with an example minus without it, one example at a time"
    cost: ClassVar[str] = "a retrained model an example and seed"

    output: str = "margin"

    def _bank_scores(self, bank: BankSource) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        removed_C = (~bank.masks).sum(1)
        if removed_C.max() > 1 or not (removed_C == 1).any():
            raise InputError(
                f"leave-one-out needs a bank whose subsets each lack one example; here they lack {removed_C.min()} to "
                f"{removed_C.max()}. Make one with subsets.leave_one_out(), or use fz."
            )
        return leave_one_out_effects(bank.masks, bank.mean_outputs(self.output, self.name)), {}
