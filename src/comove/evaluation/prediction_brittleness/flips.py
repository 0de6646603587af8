"""Flips of predictions, and how sure one can be of their rate.

    prediction(q) = the class that most of B models of the full data predict
    rate = 1/(Q R) sum_q,r [ class that model r predicts for q != prediction(q) ]

The R models of one query are trained without the same examples, so their flips are alike and tell less than R
independent trials: simulated, a binomial interval over all R Q flips (Wilson's) that should hold the truth 95 % of the
time does so 70 to 85 %. So
queries are resampled, each with all its models (simulated with 40 queries or more: 90 to 95 %); see
:mod:`comove.evaluation.estimate`.

Shape suffixes: Q queries, R models.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from comove.evaluation.estimate import Estimate, mean_with_interval

__all__ = ["flip_rate", "majority"]


def majority(predicted_RQ: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The class that most of the R models predict for each query, (Q,); ties go to the smallest class."""
    classes = np.arange(int(predicted_RQ.max()) + 1)
    return np.asarray((predicted_RQ[None] == classes[:, None, None]).sum(1).argmax(0), np.int64)


def flip_rate(
    flips_QR: npt.NDArray[np.bool_], *, shared_models: bool = False, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The share of flips, with its interval; as :func:`mean_with_interval`.

    Where no prediction flips, or every one, resampling finds no spread; the bound is then the exact binomial one that
    counts each query as one trial.
    """
    found = mean_with_interval(flips_QR, shared_models=shared_models, confidence=confidence, seed=seed)
    unseen = 1 - ((1 - confidence) / 2) ** (1 / len(flips_QR))
    if not flips_QR.any():
        return Estimate(0.0, 0.0, unseen)
    if flips_QR.all():
        return Estimate(1.0, 1 - unseen, 1.0)
    return found
