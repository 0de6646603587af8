r"""CLD: how strongly the losses of two examples move together while a model trains.

.. math:: \mathrm{CLD}(m, q) = \rho(\Delta_m, \Delta_q), \qquad \Delta_t = \ell_t - \ell_{t-1}

A training example matters to a query when the updates that lower the one's loss lower the other's. Only recorded losses
are needed, so everything here runs on arrays from any framework (NumPy, torch on any device, nested lists, JAX through
NumPy). Differences, means and norms are taken in float64, a block of columns at a time; what remains is one float32
matrix product of unit columns.

Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64 and Algorithm 1.

Shape suffixes: T loss differences (T+1 recorded losses), N training examples, Q queries, B columns of one block,
C classes, K kept by ``top_k``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from comove.errors import InputError, InputTypeError, NonFiniteError, did_you_mean, some

__all__ = ["constant", "pairwise", "per_class", "top_k"]

Correlation: TypeAlias = Literal["pearson", "spearman", "covariance"]
CommonMode: TypeAlias = Literal["keep", "remove"]
RowScaling: TypeAlias = Literal["none", "rms"]
ArrayLike: TypeAlias = Any  # NumPy array, torch tensor, nested lists, or anything numpy.asarray reads

_EPS = float(np.finfo(np.float64).eps)
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}  # float64 values of one block of columns: 2 MB stay in cache on a CPU
_NARROWEST = 128  # columns of a block at least, however many rows: reads along a row stay worth their while
_PANEL = 1 << 25  # float32 values of unit columns held for one side: 128 MB
_TILE_N, _TILE_Q = 512, 8192  # scores of one product: 16 MB in long rows, still in cache when clipped or filtered
_FAST_COLUMNS, _FAST_ROWS = 8192, 64  # losses of one float32 step of per_class; more rows would round more
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_LARGEST = 1e150  # the square of anything beyond overflows float64


# ------------------------------------------------------------------------------------------------- public functions


def pairwise(
    train_losses: ArrayLike,
    query_losses: ArrayLike,
    *,
    correlation: Correlation = "pearson",
    common_mode: CommonMode = "keep",
    row_scaling: RowScaling = "none",
    out: Any = None,
    train_ids: ArrayLike | None = None,
    query_ids: ArrayLike | None = None,
) -> Any:
    """Score every training example against every query by the correlation of their loss differences (CLD, eq. 64).

    A pair scores high when the two losses rise and fall together from one recorded row to the next. A column whose
    differences do not vary says nothing and scores exactly 0 everywhere (count such columns with :func:`constant`).

    Args:
        train_losses: (T+1, N) losses, row 0 before training; any real dtype; never changed.
        query_losses: (T+1, Q) losses recorded at the same moments.
        correlation: ``"pearson"`` (the paper's); ``"spearman"``, Pearson of the ranks over time; or ``"covariance"``,
            the sample covariance (divided by T-1) in squared loss units, which lets large movements count for more.
        common_mode: ``"remove"`` projects the mean training trajectory out of every column first, so that what all
            examples share (all losses fall early on) does not count: a partial correlation.
        row_scaling: ``"rms"`` first divides each row of differences by its root mean square over the training
            examples, so that early, violent rows do not drown the late ones.
        out: (N, Q) float32 array to fill block by block and return, a memory map included; for torch input, a tensor.
        train_ids: (N,) integer ids, used to name an example in an error message.
        query_ids: (Q,) integer ids, likewise.

    Returns:
        (N, Q) float32 scores, correlations within [-1, 1]; torch, on the same device, if the losses were torch.
        Besides it, memory stays below about 0.5 GB whatever N and Q.

    Raises:
        InputError: Fewer than three rows, unequal row counts, an unknown option, a wrong ``out``.
        InputTypeError: Losses that are not real numbers.
        NonFiniteError: A NaN or infinite loss; the message names side, row and example.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64.

    Example:
        >>> train = [[2.0, 2.0, 1.0], [1.5, 1.9, 1.0], [1.2, 1.6, 1.0], [1.1, 1.1, 1.0]]
        >>> query = [[2.0], [1.4], [1.0], [0.8]]
        >>> pairwise(train, query).round(3).tolist()
        [[1.0], [-1.0], [0.0]]
    """
    train, query = _sides(train_losses, query_losses, train_ids, query_ids)
    plan = _plan(train, correlation, common_mode, row_scaling)
    scores_NQ = _output(out, train, query)
    flat = scores_NQ.numpy() if isinstance(scores_NQ, torch.Tensor) and train.xp is np else scores_NQ
    for query_panel in _panels(query, plan, _TILE_Q):
        for train_panel in _panels(train, plan, _TILE_N):
            for n in _ranges(train_panel.start, train_panel.stop, _TILE_N):
                for q in _ranges(query_panel.start, query_panel.stop, _TILE_Q):
                    _score_tile(train_panel, query_panel, n, q, flat[n, q])
                    if correlation != "covariance":
                        train.xp.clip(flat[n, q], -1, 1, out=flat[n, q])
    return scores_NQ if out is None else out


def top_k(
    train_losses: ArrayLike,
    query_losses: ArrayLike,
    k: int,
    *,
    train_ids: ArrayLike | None = None,
    correlation: Correlation = "pearson",
    common_mode: CommonMode = "keep",
    row_scaling: RowScaling = "none",
    query_ids: ArrayLike | None = None,
) -> tuple[Any, Any]:
    """Find the ``k`` training examples that score highest for each query, without ever holding the N x Q scores.

    The same scores as :func:`pairwise`, computed tile by tile; only what beats a query's k-th best so far is kept.

    Args:
        train_losses: (T+1, N) losses, row 0 before training; any real dtype; never changed.
        query_losses: (T+1, Q) losses recorded at the same moments.
        k: How many to keep for each query, 1 to N.
        train_ids: (N,) integer ids to report; without them, column indices.
        correlation: As in :func:`pairwise`.
        common_mode: As in :func:`pairwise`.
        row_scaling: As in :func:`pairwise`.
        query_ids: (Q,) integer ids, used to name a query in an error message.

    Returns:
        ids (Q, k) int64 and scores (Q, k) float32, highest first; of equal scores the lower column index comes first.

    Raises:
        InputError: ``k`` outside 1..N, or as in :func:`pairwise`.
        InputTypeError: ``k`` is not an integer, or as in :func:`pairwise`.
        NonFiniteError: As in :func:`pairwise`.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64.

    Example:
        >>> train = [[2.0, 2.0, 1.0], [1.5, 1.9, 1.0], [1.2, 1.6, 1.0], [1.1, 1.1, 1.0]]
        >>> ids, scores = top_k(train, [[2.0], [1.4], [1.0], [0.8]], 2, train_ids=[70, 80, 90])
        >>> ids.tolist(), scores.round(3).tolist()
        ([[70, 90]], [[1.0, 0.0]])
    """
    train, query = _sides(train_losses, query_losses, train_ids, query_ids)
    _check_k(k, train.columns)
    plan = _plan(train, correlation, common_mode, row_scaling)
    best_QK = train.zeros(query.columns, k, dtype="int64") + _NOTHING
    for query_panel in _panels(query, plan, _TILE_Q):
        for train_panel in _panels(train, plan, _TILE_N):
            for q in _ranges(query_panel.start, query_panel.stop, _TILE_Q):
                best_QK[q] = _keep_best(best_QK[q], train_panel, query_panel, q)
    index_QK, scores_QK = _unpack(_descending(best_QK))
    ids_QK = index_QK if train.ids is None else train.native(train.ids)[index_QK]
    return train.result(ids_QK), train.result(scores_QK)


def per_class(
    train_losses: ArrayLike,
    train_labels: ArrayLike,
    query_losses: ArrayLike,
    query_labels: ArrayLike,
    *,
    train_ids: ArrayLike | None = None,
    query_ids: ArrayLike | None = None,
) -> Any:
    """Score each training example by its correlation with the mean query of its class (Algorithm 1, lines 7 to 16).

    The mean is taken over the loss differences of the queries (validation examples) of one class; an example that
    learns when its class is learned scores near 1. One pass over the losses, a block of columns at a time.

    Args:
        train_losses: (T+1, N) losses, row 0 before training; any real dtype; never changed.
        train_labels: (N,) integer classes.
        query_losses: (T+1, Q) losses recorded at the same moments.
        query_labels: (Q,) integer classes; every class of ``train_labels`` must occur.
        train_ids: (N,) integer ids, used to name an example in an error message.
        query_ids: (Q,) integer ids, likewise.

    Returns:
        (N,) float32 scores within [-1, 1], 0 where the example or the mean of its class does not vary; torch, on the
        same device, if the losses were torch.

    Raises:
        InputError: A training class without a query, labels of the wrong length, or losses as in :func:`pairwise`.
        InputTypeError: Labels that are not integers, or losses that are not real numbers.
        NonFiniteError: As in :func:`pairwise`.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, Algorithm 1.

    Example:
        >>> train = [[2.0, 2.0, 1.0], [1.5, 1.9, 0.5], [1.2, 1.6, 0.5], [1.1, 1.1, 0.6]]
        >>> per_class(train, [7, 7, 7], [[2.0], [1.4], [1.0], [0.8]], [7]).round(2).tolist()  # doctest: +ELLIPSIS
        [1.0, -1.0, 0.93...]
    """
    train, query = _sides(train_losses, query_losses, train_ids, query_ids)
    classes_C, query_codes = np.unique(_integers(query_labels, "The query labels", query.columns), return_inverse=True)
    codes_N = _codes(_integers(train_labels, "The train labels", train.columns), classes_C)
    mean_TC = _class_means(query, query_codes, len(classes_C))
    score = _per_class_cpu if train.xp is np else _per_class_device
    return train.result(score(train, codes_N, mean_TC).clip(-1, 1))


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
    side = _side(losses, "", ids, losses)
    return side.result(side.xp.concatenate([_center(block_RB, _Plan())[2] for _, block_RB in _blocks(side)]))


# ------------------------------------------------------------------------------------------- inputs and their checks


@dataclass(frozen=True)
class _Side:
    """The losses of one side, read a block of columns at a time whatever they came as."""

    losses: Any  # NumPy array or torch tensor, (T+1, columns)
    name: str
    ids: Any  # NumPy int64 (columns,) or None
    device: torch.device
    torch_out: bool

    @property
    def rows(self) -> int:
        return int(self.losses.shape[0])

    @property
    def columns(self) -> int:
        return int(self.losses.shape[1])

    @property
    def xp(self) -> Any:
        """NumPy on the CPU, where its product is the faster, and torch elsewhere: the calls below exist in both."""
        return np if self.device.type == "cpu" else torch

    def native(self, array: Any) -> Any:
        """A NumPy array as the kind that ``xp`` works on."""
        return array if self.xp is np else torch.from_numpy(array).to(self.device)

    def zeros(self, *shape: int, dtype: str = "float64") -> Any:
        where = {} if self.xp is np else {"device": self.device}
        return self.xp.zeros(shape, dtype=getattr(self.xp, dtype), **where)

    def result(self, array: Any) -> Any:
        """An array of ``xp`` as the kind the caller gave."""
        return torch.from_numpy(array) if self.torch_out and self.xp is np else array

    def block(self, at: Any) -> Any:
        """Columns ``at`` in float64, checked; perhaps a view of the input, so never to be written to."""
        part: Any = self.losses[:, at]
        if self.xp is torch:
            block_RB = torch.as_tensor(part).to(self.device, torch.float64)
        else:
            part = part.double().numpy(force=True) if isinstance(part, torch.Tensor) else part
            block_RB = part.astype(np.float64, copy=False)
        self._check(block_RB, at)
        return block_RB

    def array(self, at: slice) -> Any:
        """Columns ``at`` as NumPy, unchecked, in float32 where that is exact and in float64 elsewhere."""
        part = self.losses[:, at]
        if isinstance(part, torch.Tensor):
            part = (part.float() if part.dtype is torch.bfloat16 else part).numpy()
        small = part.dtype.kind not in "iu" and part.dtype.itemsize <= 4
        return part.astype(np.float32 if small else np.float64, copy=False)

    def _check(self, block_RB: torch.Tensor, at: Any) -> None:
        if block_RB.min() > -_LARGEST and block_RB.max() < _LARGEST:  # false for NaN too
            return
        row, column = (int(i) for i in self.xp.argwhere(~(abs(block_RB) < _LARGEST))[0])
        value = float(block_RB[row, column])
        where = range(self.columns)[at][column] if isinstance(at, slice) else int(at[column])
        example = f"column {where}" if self.ids is None else f"id {self.ids[where]}"
        raise (InputError if np.isfinite(value) else NonFiniteError)(
            f"The {self.name}losses must be finite and below {_LARGEST:g}; found {value} at row {row}, {example}. A "
            f"diverged run or an example that was never evaluated leaves such values; leave out that example or row."
        )


def _side(losses: ArrayLike, name: str, ids: ArrayLike | None, like: ArrayLike) -> _Side:
    """Check one side; ``like`` decides whether results are torch, and on which device."""
    array, is_torch = _real(losses, name), isinstance(like, torch.Tensor)
    shape = tuple(array.shape)
    if len(shape) != 2 or shape[0] < 3 or shape[1] < 1:
        raise InputError(
            f"The {name}losses must have the shape (T+1, examples): at least 3 recorded rows (two differences, for a "
            f"variance) and 1 example; found {shape}. Record one row before training and one after each epoch."
        )
    known = None if ids is None else _integers(ids, f"The {name}ids", shape[1])
    return _Side(array, name, known, like.device if is_torch else torch.device("cpu"), is_torch)


def _sides(train: ArrayLike, query: ArrayLike, train_ids: Any, query_ids: Any) -> tuple[_Side, _Side]:
    like = train if isinstance(train, torch.Tensor) else query
    sides = _side(train, "train ", train_ids, like), _side(query, "query ", query_ids, like)
    if sides[0].rows != sides[1].rows:
        raise InputError(
            f"Train and query losses must be recorded at the same moments, one row each; found {sides[0].rows} rows "
            f"for train and {sides[1].rows} for query. Was one transposed? Rows come first: (T+1, examples)."
        )
    return sides


def _real(losses: ArrayLike, name: str) -> Any:
    array: Any
    if isinstance(losses, torch.Tensor):
        kind, array = "?" if losses.is_complex() or losses.dtype is torch.bool else "f", losses.detach()
    else:
        try:
            array = np.asarray(losses)
        except ValueError as error:
            raise InputError(f"The {name}losses must be rectangular, every row of the same length; {error}.") from error
        kind = "f" if array.dtype.name == "bfloat16" else array.dtype.kind
    if kind not in "fiu":
        raise InputTypeError(
            f"The {name}losses must be real numbers (floats or integers); found {array.dtype}. "
            f"Pass an array or tensor of shape (T+1, examples)."
        )
    return array


def _integers(values: ArrayLike, title: str, length: int) -> Any:
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.dtype.kind not in "iu":
        raise InputTypeError(
            f"{title} must be integers; found {array.dtype}. Number them, or cast with .astype('int64')."
        )
    if array.shape != (length,):
        raise InputError(
            f"{title} must have the shape ({length},), one for each column of losses; found {array.shape}."
        )
    return array.astype(np.int64, copy=False)


def _codes(train_labels: Any, classes_C: Any) -> Any:
    """Position of each training label among the classes of the queries."""
    low, high = int(classes_C[0]), int(classes_C[-1])
    if high - low < 1 << 20:  # a table: several times faster than a search for each of a million labels
        table = np.zeros(high - low + 1, np.int64)
        table[classes_C - low] = np.arange(len(classes_C))
        codes_N = table.take(train_labels - low, mode="clip")
    else:
        codes_N = np.searchsorted(classes_C, train_labels).clip(max=len(classes_C) - 1)
    absent = np.unique(train_labels[classes_C[codes_N] != train_labels])
    if len(absent):
        raise InputError(
            f"Every training class must have at least one query, whose mean it is compared with; found none for the "
            f"class(es) {some(absent)}. Add queries of these classes (a stratified split has them), or leave them out."
        )
    return codes_N


def _check_k(k: int, columns: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise InputTypeError(f"k must be an integer, how many training examples to keep; found {k!r}.")
    if not 1 <= k <= columns:
        raise InputError(f"k must lie between 1 and the number of training examples, {columns}; found {k}.")


def _choice(value: str, title: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise InputError(f"{title} must be one of {some(map(repr, choices))}; found {value!r}.{hint}")


def _output(out: Any, train: _Side, query: _Side) -> Any:
    shape, like = (train.columns, query.columns), torch.Tensor if train.torch_out else np.ndarray
    if out is None:
        return train.result(np.empty(shape, np.float32) if train.xp is np else torch.empty(shape, device=train.device))
    if not isinstance(out, np.ndarray | torch.Tensor):
        raise InputTypeError(f"out must be a NumPy array or a torch tensor; found {type(out).__name__}.")
    here = isinstance(out, like) and (isinstance(out, np.ndarray) or out.device == train.device)
    ready = isinstance(out, torch.Tensor) or out.flags.writeable
    if not here or not ready or tuple(out.shape) != shape or str(out.dtype).removeprefix("torch.") != "float32":
        raise InputError(
            f"out must be a writeable float32 {like.__name__} of shape {shape} on {train.device}, of the kind of the "
            f"losses; found {type(out).__name__}, {out.dtype}, {tuple(out.shape)}{'' if ready else ', read-only'}."
        )
    return out


# ------------------------------------------------------------------------------ float64: differences to unit columns


@dataclass(frozen=True)
class _Plan:
    """What happens to every column, train or query, before the product."""

    correlation: str = "pearson"
    weight: Any = None  # (T,) one over the RMS of each row of training differences
    shared: Any = None  # (T,) unit mean training trajectory, to be projected out
    order: Any = None  # (T,) rows in the order of the product, small entries first


def _plan(train: _Side, correlation: str, common_mode: str, row_scaling: str) -> _Plan:
    _choice(correlation, "correlation", get_args(Correlation))
    _choice(common_mode, "common_mode", get_args(CommonMode))
    _choice(row_scaling, "row_scaling", get_args(RowScaling))
    plan = _Plan(correlation, weight=_inverse_rms(train) if row_scaling == "rms" else None)
    if common_mode == "remove":
        plan = replace(plan, shared=_shared(train, plan))
    # Summed after a few large early differences, a long flat tail would be rounded away in float32, term by term.
    first_TB, _ = _standardise(next(_blocks(train))[1], plan)
    return replace(plan, order=train.xp.argsort((first_TB**2).sum(1)))


def _inverse_rms(train: _Side) -> Any:
    squares = ((train.xp.diff(block_RB, 1, 0) ** 2).sum(1) for _, block_RB in _blocks(train))
    rms_T = (sum(squares) / train.columns) ** 0.5
    return 1.0 / train.xp.where(rms_T > 0, rms_T, 1.0)


def _shared(train: _Side, plan: _Plan) -> Any:
    """Direction of the mean of the centred training columns, or nothing where they cancel."""
    mean_T, size = train.zeros(train.rows - 1), 0.0
    for _, block_RB in _blocks(train):
        delta_TB, square_B, _constant = _center(block_RB, plan)
        mean_T += delta_TB.sum(1) / train.columns
        size += float(square_B.sum()) / train.columns
    norm = float((mean_T**2).sum()) ** 0.5
    # A mean that is only the rounding of cancelling columns has no direction; it would remove one at random.
    return mean_T / norm if norm**2 > (64 * _EPS) ** 2 * size else None


def _center(block_RB: Any, plan: _Plan) -> tuple[Any, Any, Any]:
    """Centred differences of a block, their sums of squares, and which columns are nothing but rounding."""
    xp = _xp(block_RB)
    delta_TB = xp.diff(block_RB, 1, 0)
    if plan.weight is None:
        noise_B = len(delta_TB) * (8 * _EPS * xp.amax(abs(block_RB), 0)) ** 2
    else:  # a late row is weighted up by orders of magnitude, so each row carries its own rounding
        local_TB = xp.maximum(abs(block_RB[1:]), abs(block_RB[:-1])) * plan.weight[:, None]
        noise_B = ((8 * _EPS * local_TB) ** 2).sum(0)
        delta_TB *= plan.weight[:, None]
    delta_TB -= delta_TB.mean(0)
    square_B = (delta_TB**2).sum(0)
    if plan.shared is not None:
        # What the projection leaves of a multiple of the shared direction is rounding of the column's own size.
        noise_B = noise_B + (64 * _EPS) ** 2 * square_B
        delta_TB -= xp.outer(plan.shared, plan.shared @ delta_TB)
        square_B = (delta_TB**2).sum(0)
    return delta_TB, square_B, square_B <= noise_B


def _standardise(block_RB: Any, plan: _Plan) -> tuple[Any, Any]:
    """Columns of unit length, zero where constant, and the standard deviation each of them had."""
    xp = _xp(block_RB)
    delta_TB, square_B, constant_B = _center(block_RB, plan)
    if plan.correlation == "spearman":
        delta_TB = _ranks(delta_TB) - (len(delta_TB) + 1) / 2
        square_B = (delta_TB**2).sum(0)
        constant_B = constant_B | (square_B == 0)
    norm_B = xp.where(constant_B, 1.0, square_B) ** 0.5
    delta_TB *= xp.where(constant_B, 0.0, 1 / norm_B)
    return delta_TB, norm_B / (len(delta_TB) - 1) ** 0.5


def _ranks(values_TB: Any) -> Any:
    """Ranks 1..T down each column; equal values share the mean of their ranks."""
    if isinstance(values_TB, torch.Tensor):
        values_BT = values_TB.T.contiguous()
        ascending = values_BT.sort(dim=1).values
        below, upto = (torch.searchsorted(ascending, values_BT, right=right) for right in (False, True))
        return (below + upto + 1).double().T / 2
    table_BT = np.ascontiguousarray(values_TB.T)
    order_BT = table_BT.argsort(axis=1)
    sorted_BT = np.take_along_axis(table_BT, order_BT, 1)
    change, edge = sorted_BT[:, 1:] != sorted_BT[:, :-1], np.ones((len(table_BT), 1), bool)
    position = np.arange(len(values_TB))
    first = np.maximum.accumulate(np.where(np.hstack([edge, change]), position, 0), axis=1)
    last = np.where(np.hstack([change, edge]), position, len(values_TB))[:, ::-1]
    last = np.minimum.accumulate(last, axis=1)[:, ::-1]
    np.put_along_axis(table_BT, order_BT, (first + last) / 2 + 1, 1)
    return np.ascontiguousarray(table_BT.T)


def _xp(array: Any) -> Any:
    return torch if isinstance(array, torch.Tensor) else np


def _ranges(start: int, stop: int, step: int) -> Iterator[slice]:
    for low in range(start, stop, step):
        yield slice(low, min(stop, low + step))


def _blocks(side: _Side, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, Any]]:
    width = max(_NARROWEST, _BLOCK["cpu" if side.xp is np else "cuda"] // side.rows)
    for at in _ranges(start, side.columns if stop is None else stop, width):
        yield at, side.block(at)


# ------------------------------------------------------------------------------------- float32: products of columns


@dataclass(frozen=True)
class _Panel:
    """Unit columns ``start`` to ``stop`` of one side, ready for the product."""

    start: int
    stop: int
    unit: Any  # (T, stop - start) float32
    scale: Any  # (stop - start,) standard deviations, for a covariance

    def at(self, columns: slice) -> tuple[Any, Any]:
        here = slice(columns.start - self.start, columns.stop - self.start)
        return self.unit[:, here], None if self.scale is None else self.scale[here]


def _panels(side: _Side, plan: _Plan, tile: int) -> Iterator[_Panel]:
    """Panels of whole tiles: pairwise and top_k then multiply the same tiles and get the same bits."""
    width = max(1, _PANEL // (side.rows - 1))
    for panel in _ranges(0, side.columns, width - width % tile if width > tile else width):
        yield _panel(side, plan, panel.start, panel.stop)


def _panel(side: _Side, plan: _Plan, start: int, stop: int) -> _Panel:
    unit_TB = side.zeros(side.rows - 1, stop - start, dtype="float32")
    scale_B = side.zeros(stop - start)
    for at, block_RB in _blocks(side, start, stop):
        here = slice(at.start - start, at.stop - start)
        columns_TB, scale_B[here] = _standardise(block_RB, plan)
        unit_TB[:, here] = columns_TB[plan.order]
    return _Panel(start, stop, unit_TB, scale_B if plan.correlation == "covariance" else None)


def _score_tile(train: _Panel, query: _Panel, n: slice, q: slice, out: Any) -> None:
    """Fill ``out``; correlations are left unclipped, an ulp or so beyond 1 at worst."""
    (unit_TN, scale_N), (unit_TQ, scale_Q) = train.at(n), query.at(q)
    xp = _xp(unit_TN)
    xp.matmul(unit_TN.T, unit_TQ, out=out)
    if scale_N is None:
        return
    largest_N, largest_Q = float(scale_N.max()), float(scale_Q.max())
    if largest_N * largest_Q > _FLOAT32_MAX:
        raise InputError(
            f"Covariances must fit in float32, below {_FLOAT32_MAX:.2g}; found differences with standard deviations of "
            f"{largest_N:.2g} and {largest_Q:.2g}. Divide the losses by a constant, or use a correlation."
        )
    shift = 2.0 ** round(np.log2(largest_N / largest_Q) / 2)  # keeps both factors in range and costs no accuracy
    out *= xp.asarray(scale_N / shift, dtype=xp.float32)[:, None]
    out *= xp.asarray(scale_Q * shift, dtype=xp.float32)


# ------------------------------------------------------------------------------------------------ the best k of each

_NOTHING = -(0x7F800001 << 32)  # below the key of any finite score, above the least int64; reads back as -inf


def _pack(scores: Any, index: Any) -> Any:
    """One int64 that orders by score and, among equal scores, by falling index: a maximum then needs no tie rule."""
    xp = _xp(scores)
    bits = (scores + 0.0).view(xp.int32)  # + 0.0 makes one zero of -0.0 and 0.0
    high = xp.asarray(xp.where(bits < 0, bits ^ 0x7FFFFFFF, bits), dtype=xp.int64)
    return (high << 32) | (0xFFFFFFFF - index)


def _unpack(keys: Any) -> tuple[Any, Any]:
    xp = _xp(keys)
    bits = xp.asarray(keys >> 32, dtype=xp.int32)
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF), xp.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(xp.float32)


def _descending(keys_QK: Any) -> Any:
    if isinstance(keys_QK, torch.Tensor):
        return keys_QK.sort(dim=1, descending=True).values
    keys_QK.sort(axis=1)
    return np.ascontiguousarray(keys_QK[:, ::-1])


def _keep_best(best_BK: Any, train: _Panel, query: _Panel, q: slice) -> Any:
    """Best k keys of some queries after one more panel of training columns; the least of them stands in column 0."""
    merge = _merge_cpu if isinstance(best_BK, np.ndarray) else _merge_device
    limit = np.inf if train.scale is not None else 1.0
    return merge(best_BK, _tiles(train, query, q), limit)


def _tiles(train: _Panel, query: _Panel, q: slice) -> Iterator[tuple[int, Any]]:
    """Tiles of scores in the order of the training columns, each overwriting the one before."""
    width = q.stop - q.start
    empty = np.empty if isinstance(train.unit, np.ndarray) else train.unit.new_empty
    scratch = empty((min(_TILE_N, train.stop - train.start), width), dtype=train.unit.dtype)
    for n in _ranges(train.start, train.stop, _TILE_N):
        tile_NB = scratch[: n.stop - n.start]
        _score_tile(train, query, n, q, tile_NB)
        yield n.start, tile_NB


def _merge_device(best_BK: Any, tiles: Iterator[tuple[int, Any]], limit: float) -> Any:
    k = best_BK.shape[1]
    for first, tile_NB in tiles:
        index_N = torch.arange(first, first + len(tile_NB), device=tile_NB.device)
        keys = _pack(tile_NB.clamp(-limit, limit).T.contiguous(), index_N)
        best_BK = torch.cat([best_BK, keys], 1).topk(k).values
    return best_BK


def _merge_cpu(best_BK: Any, tiles: Iterator[tuple[int, Any]], limit: float) -> Any:
    """Let through only what beats the k-th best so far, and raise that bar whenever enough has come through."""
    width, k = best_BK.shape
    bar_B, columns, keys, waiting = _unpack(best_BK[:, 0])[1], [], [], 0
    for first, tile_NB in tiles:
        if first == 0 and len(tile_NB) > k:  # no bar yet: the k-th best of this tile; itself and its equals pass
            kth_B = np.partition(np.ascontiguousarray(tile_NB.T), -k, axis=1)[:, -k]
            bar_B = np.nextafter(np.minimum(kth_B, np.float32(limit)), np.float32(-np.inf))
            bar_B[kth_B <= -limit] = -np.inf  # all that is clipped to -1 is equal
        row, column = np.divmod(_true_at(tile_NB > bar_B), width)
        columns.append(column.astype(np.uint16))  # a tile is narrower than 65,536: _join's stable sort is a radix sort
        keys.append(_pack(tile_NB[row, column].clip(-limit, limit), row + first))
        waiting += len(row)
        if 2 * waiting > k * width:
            best_BK = _join(best_BK, np.concatenate(columns), np.concatenate(keys))
            bar_B, columns, keys, waiting = _unpack(best_BK[:, 0])[1], [], [], 0
    return _join(best_BK, np.concatenate(columns), np.concatenate(keys)) if waiting else best_BK


def _true_at(mask: Any) -> Any:
    """Flat positions of the few true entries; eight at a time are skipped where none is true."""
    flat = mask.reshape(-1)
    if len(flat) % 8:
        return np.flatnonzero(flat)
    word = np.flatnonzero(flat.view(np.uint64))
    hit = np.flatnonzero(flat.reshape(-1, 8)[word])
    return word[hit >> 3] * 8 + (hit & 7)


def _join(best_BK: Any, column: Any, key: Any) -> Any:
    width, k = best_BK.shape
    order = np.argsort(column, kind="stable")
    count_B = np.bincount(column, minlength=width)
    place = np.arange(len(column)) - np.repeat(count_B.cumsum() - count_B, count_B) + k
    all_BK = np.full((width, k + int(count_B.max())), np.iinfo(np.int64).min)
    all_BK[:, :k] = best_BK
    all_BK[column[order], place] = key[order]
    all_BK.partition(all_BK.shape[1] - k, axis=1)
    return all_BK[:, all_BK.shape[1] - k :]


# -------------------------------------------------------------------------------------------------------- per class


def _class_means(query: _Side, codes_Q: Any, classes: int) -> Any:
    """Unit columns (T, C) of the mean loss differences of each class, the differences of the mean losses."""
    total_CR = query.zeros(classes, query.rows)
    codes = query.native(codes_Q)
    for at, block_RB in _blocks(query):
        if query.xp is np:
            np.add.at(total_CR, codes[at], block_RB.T)
        else:
            total_CR.index_add_(0, codes[at], block_RB.T)
    count_C = query.native(np.bincount(codes_Q, minlength=classes))
    return _standardise((total_CR / count_C[:, None]).T, _Plan())[0]


def _per_class_device(train: _Side, codes_N: Any, mean_TC: Any) -> Any:
    codes = train.native(codes_N)
    blocks = ((mean_TC[:, codes[at]], _standardise(block_RB, _Plan())[0]) for at, block_RB in _blocks(train))
    return torch.cat([(mean_TB * unit_TB).sum(0) for mean_TB, unit_TB in blocks]).float()


def _per_class_cpu(train: _Side, codes_N: Any, mean_TC: Any) -> Any:
    scores_N = np.empty(train.columns, np.float32)
    mean32_TC = mean_TC.astype(np.float32)

    def step(span: slice) -> None:
        for at in _ranges(span.start, span.stop, _FAST_COLUMNS):
            scores_N[at], sure_B = _quick(train.array(at), mean32_TC, codes_N[at])
            if not sure_B.all():
                rest = np.flatnonzero(~sure_B) + at.start
                scores_N[rest] = (_standardise(train.block(rest), _Plan())[0] * mean_TC[:, codes_N[rest]]).sum(0)

    # NumPy lets go of the interpreter lock, so threads share the work; a column's bits do not depend on them.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(step, _ranges(0, train.columns, 2 * _FAST_COLUMNS)):
            pass
    return scores_N


def _quick(losses_RB: Any, mean_TC: Any, codes_B: Any) -> tuple[Any, Any]:
    """Scores in float32 arithmetic, and for which columns that is as good as float64.

    A float32 difference of float32 losses errs by at most 6e-8 of itself. That is harmless unless the differences
    are nearly all alike, rounding itself, or out of range once squared: such columns (NaN too) are left to float64.
    """
    differences = len(losses_RB) - 1
    with np.errstate(all="ignore"):
        drift_B = (losses_RB[-1].astype(np.float64) - losses_RB[0]) / differences
        drift32_B = drift_B.astype(np.float32)
        square_B, dot_B = np.zeros(len(codes_B)), np.zeros(len(codes_B))
        for t in _ranges(0, differences, _FAST_ROWS):
            part_RB = losses_RB[t.start : t.stop + 1]
            delta_TB = np.subtract(part_RB[1:], part_RB[:-1]).astype(np.float32, copy=False)
            delta_TB -= drift32_B
            square_B += np.einsum("tb,tb->b", delta_TB, delta_TB)
            dot_B += np.einsum("tb,tb->b", delta_TB, np.take(mean_TC[t], codes_B, axis=1, mode="clip"))
        floor_B = differences * np.maximum(drift_B**2 / 100, 1e-28 * losses_RB[0].astype(np.float64) ** 2)
        sure_B = (square_B > floor_B) & (square_B > 1e-24) & (square_B < 1e30)
        return dot_B / np.sqrt(square_B), sure_B
