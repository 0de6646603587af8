"""What the linear datamodeling score is computed from, checked: numbers of the right shapes, and clear words if not.

Shape suffixes: C subsets, N training examples, Q queries, R seeds (models of one subset).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from comove.checks import as_array, as_ids, real_number, whole_number
from comove.errors import InputError, InputTypeError, NonFiniteError, some

if TYPE_CHECKING:
    import torch

__all__ = [
    "ArrayInput",
    "Bools",
    "Floats",
    "Ints",
    "Numbers",
    "ScoresLike",
    "at_least_zero",
    "check_outputs",
    "check_scores",
    "check_shapes",
    "level",
    "members_of",
    "numbers",
    "unpack",
]

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[Any]
ArrayInput: TypeAlias = "npt.ArrayLike | torch.Tensor"


@runtime_checkable
class ScoresLike(Protocol):
    """What is used of an attribution result; ``comove.attribution.Scores`` is one."""

    @property
    def values(self) -> Any:
        """(N, Q), positive where the training example helps the query."""

    @property
    def train_ids(self) -> Any:
        """(N,) ids, in the order of the rows."""

    @property
    def query_ids(self) -> Any:
        """(Q,) ids, in the order of the columns."""

    @property
    def method(self) -> str | None:
        """Name of the method."""


def at_least_zero(value: int, name: str) -> int:
    """Return a whole number from 0 on."""
    return whole_number(value, name)


def level(confidence: float) -> float:
    """Return the level of an interval, between 0 and 1."""
    found = real_number(confidence, "confidence")
    if not 0 < found < 1:
        raise InputError(f"confidence must be between 0 and 1, found {confidence}; 95 % is 0.95.")
    return found


def numbers(value: ArrayInput, name: str, ndims: tuple[int, ...]) -> Numbers:
    """Return ``value`` as a numpy array of numbers with one of ``ndims`` dimensions."""
    array = as_array(value, name)
    if array.dtype.kind not in "fiub":
        raise InputTypeError(f"{name} must be an array of numbers, found {type(value).__name__} of {array.dtype}.")
    if array.ndim not in ndims:
        wanted = " or ".join(f"{ndim}-dimensional" for ndim in ndims)
        raise InputError(f"{name} must be {wanted}, found shape {array.shape}.")
    return array


def unpack(scores: ScoresLike | ArrayInput, method: str | None) -> tuple[Numbers, Ints, Ints, str | None]:
    """Return the values (N, Q) of scores, their train and query ids (positions, if they have none), and the method."""
    if method is not None and not isinstance(method, str):
        raise InputTypeError(f"method must be a string or None, found {type(method).__name__}.")
    if not isinstance(scores, ScoresLike):
        values_NQ = numbers(scores, "scores", (2,))
        return values_NQ, np.arange(values_NQ.shape[0]), np.arange(values_NQ.shape[1]), method
    values_NQ = numbers(scores.values, "scores.values", (2,))
    train_ids = as_ids(scores.train_ids, "scores.train_ids")
    query_ids = as_ids(scores.query_ids, "scores.query_ids")
    if values_NQ.shape != (len(train_ids), len(query_ids)):
        raise InputError(
            f"scores.values must be (train, query), found shape {values_NQ.shape} "
            f"with {len(train_ids)} train_ids and {len(query_ids)} query_ids."
        )
    return values_NQ, train_ids, query_ids, scores.method if method is None else method


def check_shapes(scores: Numbers, masks: Numbers, outputs: Numbers) -> None:
    """Refuse empty arrays and shapes that disagree, naming them all and the likely slip."""
    (C, N), Q = masks.shape, outputs.shape[-1]
    agree = masks.shape == (outputs.shape[0], scores.shape[0]) and scores.shape[1] == Q
    if agree and outputs.size and N:
        return
    found = f"found scores {scores.shape}, masks {masks.shape}, outputs {outputs.shape}"
    rule = "scores must be (N, Q), masks (C, N) and outputs (C, Q) or (C, R, Q)"
    if agree:
        hint = "None may be empty."
    elif scores.shape == (Q, N) and outputs.shape[0] == C:
        hint = "The scores look transposed: must be (train, query); pass scores.T."
    elif scores.shape == (C, Q) and outputs.shape[0] == N:
        hint = "The masks look transposed: must be (subset, train); pass masks.T."
    elif scores.shape[0] == N and outputs.shape == (scores.shape[1], C):
        hint = "The outputs look transposed: must be (subset, query); pass outputs.T."
    elif scores.shape == (N, Q) and outputs.ndim == 3 and outputs.shape[1] == C:
        hint = (
            "The outputs look like (seed, subset, query): must be (subset, seed, query); pass outputs.swapaxes(0, 1)."
        )
    elif scores.shape[0] == N and outputs.ndim == 3 and outputs.shape[:2] == (C, scores.shape[1]):
        hint = (
            "The outputs look like (subset, query, seed): must be (subset, seed, query); pass outputs.swapaxes(1, 2)."
        )
    elif outputs.shape[0] != C:
        hint = f"masks have {C} subsets and outputs {outputs.shape[0]}: pass the masks the models were trained on."
    elif scores.shape[0] != N:
        hint = f"scores have {scores.shape[0]} training examples and masks {N}: score every example of the masks."
    else:
        hint = f"scores have {scores.shape[1]} queries and outputs {Q}: both must cover the same queries, in one order."
    raise InputError(f"{rule}; {found}. {hint}")


def members_of(masks: Numbers) -> Bools:
    """Return ``masks`` as booleans, with at least three subsets that are not all the same."""
    if masks.dtype != np.bool_ and not ((masks == 0) | (masks == 1)).all():
        raise InputError(
            f"masks must be boolean or 0/1, found {masks.dtype} values from {masks.min()} to {masks.max()}. "
            "Example ids become masks with numpy.isin(train_ids, ids) for each subset."
        )
    members: Bools = masks.astype(np.bool_)
    if len(members) < 3:
        raise InputError(
            f"At least 3 subsets are needed, found {len(members)}: the rank correlation of two is always 1 or -1."
        )
    if (members == members[0]).all():
        raise InputError(
            f"The subsets must differ, but all {len(members)} rows of masks are the same, so no prediction can vary."
        )
    return members


def check_scores(scores_NQ: Numbers, train_ids: Ints, query_ids: Ints) -> None:
    """Refuse scores that are NaN or infinite."""
    bad_NQ = ~np.isfinite(scores_NQ)
    count = int(bad_NQ.sum())
    if count:
        row, column = np.unravel_index(int(bad_NQ.argmax()), bad_NQ.shape)
        raise NonFiniteError(
            f"Scores must be finite, found {count} of {bad_NQ.size} that are not, the first "
            f"{scores_NQ[row, column]} for train id {train_ids[row]}, query id {query_ids[column]}; "
            "the models behind them may have diverged."
        )


def check_outputs(outputs_CRQ: Numbers, query_ids: Ints) -> None:
    """Refuse outputs that are NaN (models not trained yet) or infinite."""
    bad_CRQ = ~np.isfinite(outputs_CRQ)
    if not bad_CRQ.any():
        return
    models = outputs_CRQ.shape[0] * outputs_CRQ.shape[1]
    pending = np.argwhere(np.isnan(outputs_CRQ).all(axis=2))
    if len(pending):
        names = some((f"subset {j} seed {r}" for j, r in pending), limit=4)
        raise NonFiniteError(
            f"Outputs must be finite, but {len(pending)} of {models} models are NaN for every query ({names}), as "
            "pending models of a bank are: finish the bank, or leave out those subsets' rows of masks and outputs."
        )
    j, r, q = np.unravel_index(int(bad_CRQ.argmax()), bad_CRQ.shape)
    raise NonFiniteError(
        f"Outputs must be finite, but {int(bad_CRQ.any(axis=2).sum())} of {models} models hold NaN or infinity, the "
        f"first {outputs_CRQ[j, r, q]} for subset {j}, seed {r}, query id {query_ids[q]}: training may have diverged; "
        "retrain these models, or leave out their subsets' rows of masks and outputs."
    )
