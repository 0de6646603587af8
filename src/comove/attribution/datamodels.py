r"""w_q = argmin over w, b of 1/(2C) sum_j (f_j(q) - b - 1_{S_j} . w)^2 + lambda_q ||w||_1;  tau(m, q) = w_q[m].

A datamodel is a sparse linear prediction of a retrained model's output from which examples it was trained on (Ilyas et
al., "Datamodels: Predicting Predictions from Training Data", ICML 2022, eq. 1 and section 3). The l1 path is solved for
all queries at once, and each query's lambda is the one that predicts held-out subsets best.

Shape legend: C subsets, N train, Q queries, L values of lambda.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.attribution.base import BankAttributor
from comove.errors import InputError
from comove.training.sources import BankSource

__all__ = ["Datamodels", "LassoPath", "choose_penalties", "largest_penalty", "lasso"]

Doubles = npt.NDArray[np.float64]


def largest_penalty(x_CN: Doubles, y_CQ: Doubles) -> Doubles:
    """Return (Q,) the smallest lambda at which every weight is zero: max over m of abs(x_m . y_q) / C, both centred."""
    x_CN, y_CQ = x_CN - x_CN.mean(0), y_CQ - y_CQ.mean(0)
    return np.asarray(np.abs(x_CN.T @ y_CQ).max(0) / len(x_CN))


def lasso(
    x_CN: Doubles,
    y_CQ: Doubles,
    penalty_Q: Doubles,
    *,
    start_NQ: Doubles | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 5000,
) -> tuple[Doubles, Doubles]:
    """Solve Q lasso problems with the same design at once, each with its own penalty and an intercept.

    Accelerated proximal gradient with restarts (Beck, Teboulle, 2009; O'Donoghue, Candes, 2015): every step is two
    matrix products for all queries together. Stops when the largest violation of the optimality conditions is below
    ``tolerance`` times the query's largest penalty.

    Args:
        x_CN: design, for datamodels the masks as 0 and 1.
        y_CQ: targets.
        penalty_Q: lambda of each query, at least 0.
        start_NQ: where to start (the solution at a neighbouring penalty).
        tolerance: of the optimality conditions.
        max_steps: at most; when they are used up the best so far is returned.

    Returns:
        Weights (N, Q) and intercepts (Q,).
    """
    c = len(x_CN)
    mean_N, mean_Q = x_CN.mean(0), y_CQ.mean(0)
    x_CN, y_CQ = x_CN - mean_N, y_CQ - mean_Q
    rate = c / max(_largest_eigenvalue(x_CN), 1e-300)
    scale_Q = np.maximum(np.abs(x_CN.T @ y_CQ).max(0) / c, 1e-300)
    weights = np.zeros((x_CN.shape[1], y_CQ.shape[1])) if start_NQ is None else start_NQ.copy()
    active = np.arange(y_CQ.shape[1])
    ahead, momentum = weights.copy(), np.ones(active.size)
    for _ in range(max_steps):
        gradient = x_CN.T @ (x_CN @ ahead - y_CQ[:, active]) / c
        stepped = ahead - rate * gradient
        new = np.sign(stepped) * np.maximum(np.abs(stepped) - rate * penalty_Q[active], 0)
        old = weights[:, active]
        moved = np.abs(new - ahead).max(0) / rate
        weights[:, active] = new
        restart = ((ahead - new) * (new - old)).sum(0) > 0
        following = np.where(restart, 1.0, (1 + np.sqrt(1 + 4 * momentum**2)) / 2)
        ahead = new + np.where(restart, 0.0, (momentum - 1) / following) * (new - old)
        momentum = following
        keep = moved > tolerance * scale_Q[active]
        if not keep.all():
            active, ahead, momentum = active[keep], ahead[:, keep], momentum[keep]
        if active.size == 0:
            break
    return weights, mean_Q - mean_N @ weights


def _largest_eigenvalue(x_CN: Doubles) -> float:
    """The largest eigenvalue of x^T x, from the smaller of the two Gram matrices; a little more, to be safe."""
    gram = x_CN @ x_CN.T if len(x_CN) <= x_CN.shape[1] else x_CN.T @ x_CN
    vector = np.random.default_rng(0).standard_normal(len(gram))
    value = 0.0
    for _ in range(100):
        vector = gram @ vector
        before, value = value, float(np.linalg.norm(vector))
        if value == 0 or abs(value - before) < 1e-6 * value:
            break
        vector /= value
    return 1.02 * value


@dataclass(frozen=True)
class LassoPath:
    """What the held-out subsets said: (L, Q) mean squared errors, and the (Q,) chosen share of the largest penalty."""

    shares_L: Doubles
    errors_LQ: Doubles
    chosen_Q: Doubles


def choose_penalties(x_CN: Doubles, y_CQ: Doubles, held_out_C: npt.NDArray[np.bool_], shares_L: Doubles) -> LassoPath:
    """Solve the path from the largest penalty down on the kept subsets, and score it on the held-out ones.

    Args:
        x_CN: masks.
        y_CQ: outputs.
        held_out_C: which subsets are held out.
        shares_L: penalties as shares of each query's largest one, descending from 1.

    Returns:
        The errors and each query's best share (ties: the larger penalty).
    """
    x, y = x_CN[~held_out_C], y_CQ[~held_out_C]
    top_Q = largest_penalty(x, y)
    weights: Doubles | None = None
    errors = []
    for share in shares_L:
        weights, intercepts = lasso(x, y, share * top_Q, start_NQ=weights, tolerance=1e-3)
        errors.append(((y_CQ[held_out_C] - x_CN[held_out_C] @ weights - intercepts) ** 2).mean(0))
    errors_LQ = np.stack(errors)
    return LassoPath(shares_L, errors_LQ, shares_L[errors_LQ.argmin(0)])


@dataclass(frozen=True)
class Datamodels(BankAttributor):
    """Sparse linear datamodels fitted to a retraining bank (Ilyas et al., ICML 2022).

    Evaluate them on other subsets than they were fitted to: ``bank.part(...)`` gives disjoint parts, and
    ``bank.lds`` refuses scores that were fitted on its own subsets.

    Args:
        output: what is predicted, as in :data:`comove.evaluation.OUTPUTS` (the paper: margin).
        held_out: share of the bank's subsets on which each query's penalty is chosen.
        penalties: length of the path, from the largest penalty down to ``smallest`` of it.
        smallest: the end of the path, as a share of the largest penalty.
        seed: of the choice of held-out subsets.
    """

    name: ClassVar[str] = "datamodels"
    summary: ClassVar[str] = "sparse linear prediction of retrained outputs from which examples were trained on"
    cost: ClassVar[str] = "hundreds to thousands of retrained models"

    output: str = "margin"
    held_out: float = 0.2
    penalties: int = 20
    smallest: float = 0.01
    seed: int = 0

    def _bank_scores(self, bank: BankSource) -> tuple[Doubles, dict[str, Any]]:
        x_CN, y_CQ = bank.masks.astype(np.float64), bank.mean_outputs(self.output, self.name)
        c = len(x_CN)
        n_held = round(self.held_out * c)
        if not (2 <= n_held <= c - 2) or self.penalties < 2 or not 0 < self.smallest < 1:
            raise InputError(
                f"datamodels: {c} subsets with held_out={self.held_out} leave {n_held} to choose the penalty on and "
                f"{c - n_held} to fit; both need at least 2 (and penalties >= 2, smallest in (0, 1))."
            )
        held_out_C = np.zeros(c, np.bool_)
        held_out_C[np.random.default_rng([self.seed, 0xDA7A]).choice(c, n_held, replace=False)] = True
        path = choose_penalties(x_CN, y_CQ, held_out_C, np.geomspace(1, self.smallest, self.penalties))
        weights_NQ, _ = lasso(x_CN, y_CQ, path.chosen_Q * largest_penalty(x_CN, y_CQ))
        info = {
            "empty_queries": int((weights_NQ == 0).all(0).sum()),
            "mean_nonzero": float((weights_NQ != 0).sum(0).mean()),
        }
        return weights_NQ, info
