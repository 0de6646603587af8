r"""Delta_m' (Delta Delta' / s + ridge I)^-1 Delta_q: covariance of rows whitened over the training examples.

Delta (T, N) are the training examples' centred differences and s the mean eigenvalue of Delta Delta'. A row in which
all losses move far says little about any pair; the inverse weighs each direction among the rows by how much the
training examples move along it, as a Gauss-Newton solve does among parameters. With a great ridge it is covariance.

Shape legend: T+1 rows, N train, Q queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from comove.checks import check_number
from comove.correlation.inputs import ArrayLike, sides
from comove.correlation.standardise import Plan, Series, center, column_blocks
from comove.errors import InputError

__all__ = ["whitened"]


def whitened(
    train_losses: ArrayLike, query_losses: ArrayLike, ridge: float, *, of: Series = "differences"
) -> npt.NDArray[np.float64]:
    """Return query losses whose covariance with the training losses is that of whitened rows.

    Args:
        train_losses: (T+1, N), read a block of columns at a time.
        query_losses: (T+1, Q), recorded at the same moments.
        ridge: what is added to every eigenvalue, as a multiple of their mean.
        of: whether differences between rows or the values themselves are whitened.

    Returns:
        (T+1, Q) to pass to :func:`comove.correlation.pairwise` with ``correlation="covariance"`` and the same ``of``.

    Raises:
        InputError: a ridge that is not above 0; fewer than three rows, unequal row counts; no example's losses change.
        NonFiniteError: a NaN or infinite loss.
    """
    check_number(ridge, "ridge")
    train, query = sides(train_losses, query_losses, None, None)
    plan = Plan("covariance", of)
    length = plan.length(train.rows)
    gram_TT = np.zeros((length, length))
    for _, block_RB in column_blocks(train):
        delta_TB = _on_cpu(center(block_RB, plan)[0])
        gram_TT += delta_TB @ delta_TB.T
    mean = np.trace(gram_TT) / length
    if not mean > 0:
        raise InputError("No training example's loss changes between the rows: there is nothing to whiten.")
    gram_TT /= mean
    gram_TT[np.diag_indices(length)] += ridge
    delta_TQ = np.concatenate([_on_cpu(center(block_RB, plan)[0]) for _, block_RB in column_blocks(query)], 1)
    solved_TQ = np.linalg.solve(gram_TT, delta_TQ)
    if of == "values":
        return solved_TQ
    return np.concatenate([np.zeros((1, solved_TQ.shape[1])), solved_TQ.cumsum(0)])  # whose differences these are


def _on_cpu(values: Any) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return found
