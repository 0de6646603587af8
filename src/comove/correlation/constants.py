"""Which columns say nothing."""

from __future__ import annotations

from typing import Any

from comove.correlation.inputs import ArrayLike, one_side
from comove.correlation.standardise import Plan, center, column_blocks

__all__ = ["constant"]


def constant(losses: ArrayLike, *, ids: ArrayLike | None = None) -> Any:
    """Say which columns have loss differences of zero variance, and so score 0 whatever they are compared with.

    Differences count as equal when they agree within the float64 rounding of the losses they come from.

    Args:
        losses: (T+1, N) losses; any real dtype; never changed.
        ids: (N,) integer ids, used to name an example in an error message.

    Returns:
        (N,) booleans; torch, on the same device, if the losses were torch.

    Raises:
        InputError: Fewer than three rows.
        InputTypeError: Losses that are not real numbers.
        NonFiniteError: A NaN or infinite loss.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64 (undefined for such columns).

    Example:
        >>> constant([[2.0, 3.0, 1.0], [1.5, 2.0, 1.0], [1.2, 1.0, 1.0]]).tolist()
        [False, True, True]
    """
    side = one_side(losses, "", ids, losses)
    return side.result(side.xp.concatenate([center(block_RB, Plan())[2] for _, block_RB in column_blocks(side)]))
