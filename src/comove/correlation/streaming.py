r"""Class-balanced CLD while a model trains, from running co-moments: O(N) memory, no trajectory kept.

.. math:: C_t = C_{t-1} + (\Delta_t - m_{t-1})(D_t - M_t)

where m and M are the running means of an example's loss differences and of its class's mean differences. The result
after any row is that of :func:`comove.correlation.per_class` on all rows so far, to float32 rounding: one need not
finish training to see which examples are worth keeping.

References: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, Algorithm 1; Welford, "Note on a method
for calculating corrected sums of squares and products", Technometrics 1962.

Shape suffixes: N training examples, Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.checks import as_ids, as_real, as_whole
from comove.errors import InputError, NonFiniteError, some

__all__ = ["StreamingCLD"]

Floats = npt.NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


class StreamingCLD:
    """Class-balanced CLD, updated with one row of losses at a time.

    Memory is 32 bytes a training example, whatever the number of rows.

    Args:
        train_labels: (N,) integer classes.
        query_labels: (Q,) integer classes of the validation examples; every class of ``train_labels`` must occur.
        train_ids: (N,) ids, used to name an example in an error message.
        query_ids: (Q,) ids, likewise.

    Attributes:
        rows: how many rows have been taken in.

    Raises:
        InputError: labels that are no integers, a training class without a validation example, ids that do not fit.

    Example:
        >>> stream = StreamingCLD([7, 7, 7], [7])
        >>> for train, query in zip([[2, 2, 1], [1.5, 1.9, 0.5], [1.2, 1.6, 0.5], [1.1, 1.1, 0.6]], [2, 1.4, 1, 0.8]):
        ...     stream.update(train, [query])
        >>> stream.scores().round(2).tolist()  # doctest: +ELLIPSIS
        [1.0, -1.0, 0.93...]
    """

    def __init__(
        self, train_labels: object, query_labels: object, *, train_ids: object = None, query_ids: object = None
    ) -> None:
        train, query = _labels(train_labels, "train"), _labels(query_labels, "query")
        classes, self._query_codes = np.unique(query, return_inverse=True)
        codes = np.searchsorted(classes, train).clip(max=len(classes) - 1)
        absent = np.unique(train[classes[codes] != train])
        if absent.size:
            raise InputError(
                f"Every training class needs a validation example; found none for the classes {some(absent)}."
            )
        self._codes = codes.astype(np.int32)
        self._count_C = np.bincount(self._query_codes, minlength=len(classes))
        self._train_ids = None if train_ids is None else as_ids(train_ids, "train_ids")
        self._query_ids = None if query_ids is None else as_ids(query_ids, "query_ids")
        for ids, labels, side in ((self._train_ids, train, "train"), (self._query_ids, query, "query")):
            if ids is not None and ids.size != labels.size:
                raise InputError(f"There are {labels.size} {side} labels but {ids.size} {side}_ids.")
        self.rows = 0
        self._train, self._class = _Moments(train.size), _Moments(len(classes))
        self._co_N = np.zeros(train.size)

    def update(self, train_losses: object, query_losses: object) -> None:
        """Take in the losses of one moment of training; the first row is the one before training.

        Args:
            train_losses: (N,) any real dtype, NumPy or torch.
            query_losses: (Q,).

        Raises:
            InputError: wrong shapes.
            NonFiniteError: a NaN or infinite loss; nothing of the row has been taken in then.
        """
        train_N = _row(train_losses, self._codes.size, self._train_ids, "train")
        query_Q = _row(query_losses, self._query_codes.size, self._query_ids, "query")
        class_C = np.bincount(self._query_codes, query_Q, len(self._count_C)) / self._count_C
        before_N = self._train.step(train_N, self.rows)
        self._class.step(class_C, self.rows)
        if before_N is not None:
            assert self._class.deviation is not None
            before_N *= self._class.deviation[self._codes]
            self._co_N += before_N
        self.rows += 1

    def scores(self) -> npt.NDArray[np.float32]:
        """Return the (N,) scores of all rows so far, within [-1, 1]; 0 where an example or its class does not vary.

        Raises:
            InputError: fewer than three rows: two differences are the least that vary.
        """
        if self.rows < 3:
            raise InputError(f"CLD needs at least 3 rows (two differences); {self.rows} have been taken in.")
        flat_C = self._class.constant(self.rows)
        varies_N = ~(self._train.constant(self.rows) | flat_C[self._codes])
        product_N = self._train.square * self._class.square[self._codes]
        scores_N = np.zeros(self._codes.size)
        np.divide(self._co_N, np.sqrt(product_N, where=varies_N, out=np.ones_like(product_N)), scores_N, where=varies_N)
        return scores_N.clip(-1, 1).astype(np.float32)

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that an interrupted training needs to go on, as arrays."""
        state: dict[str, npt.NDArray[Any]] = {"rows": np.array(self.rows), "co": self._co_N.copy()}
        for name, moments in (("train", self._train), ("class", self._class)):
            state |= {f"{name}.{key}": getattr(moments, key).copy() for key in _Moments.KEPT}
        return state

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            InputError: it lacks an entry, or is of other examples.
        """
        expected = self.state_dict()
        wrong = [name for name, a in expected.items() if name not in state or np.shape(state[name]) != a.shape]
        if wrong:
            raise InputError(f"This state is not of these examples: {some(wrong)} are missing or of another shape.")
        self.rows, self._co_N = int(state["rows"]), np.array(state["co"])
        for name, moments in (("train", self._train), ("class", self._class)):
            for key in _Moments.KEPT:
                setattr(moments, key, np.array(state[f"{name}.{key}"]))

    def __repr__(self) -> str:
        return f"StreamingCLD({self._codes.size:,} examples, {len(self._count_C)} classes, {self.rows} rows so far)"


class _Moments:
    """Mean and sum of squared deviations of the differences of some columns, one row at a time."""

    KEPT = ("first", "last", "square", "largest")

    def __init__(self, columns: int) -> None:
        self.first, self.last = np.zeros(columns), np.zeros(columns)
        self.square, self.largest = np.zeros(columns), np.zeros(columns)
        self.deviation: Floats | None = None  # of the newest difference from the mean that includes it

    def step(self, losses: Floats, rows: int) -> Floats | None:
        """Take in a row, and return the deviation of its difference from the mean before it (``None`` for row 0)."""
        np.maximum(self.largest, np.abs(losses), out=self.largest)
        if rows == 0:
            self.first, self.last, self.deviation = losses.copy(), losses.copy(), None
            return None
        difference = losses - self.last
        before = difference - ((self.last - self.first) / (rows - 1) if rows > 1 else 0.0)  # differences telescope
        self.deviation = difference - (losses - self.first) / rows
        if rows > 1:
            self.square += before * self.deviation
        else:
            before = np.zeros_like(before)
            self.deviation = np.zeros_like(before)
        self.last = losses.copy()
        return before

    def constant(self, rows: int) -> npt.NDArray[np.bool_]:
        """Which columns have varied by no more than the rounding of their losses, as :func:`correlation.constant`."""
        found: npt.NDArray[np.bool_] = self.square <= (rows - 1) * (8 * _EPS * self.largest) ** 2
        return found


def _labels(labels: object, side: str) -> npt.NDArray[np.int64]:
    array = as_whole(labels, f"The {side} labels")
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"The {side} labels must be (M,) integers, got shape {array.shape}.")
    return array


def _row(losses: object, size: int, ids: npt.NDArray[np.int64] | None, side: str) -> Floats:
    array = as_real(losses, f"A row of {side} losses")
    if array.shape != (size,):
        raise InputError(f"A row of {side} losses must have the shape ({size},), got {array.shape}.")
    row: Floats = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(row))
    if bad.size:
        which = f"column {bad[0]}" if ids is None else f"id {ids[bad[0]]}"
        raise NonFiniteError(f"{bad.size} {side} losses are NaN or infinite, the first at {which} ({row[bad[0]]}).")
    return row
