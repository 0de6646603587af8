"""The losses of one side, train or query: what they may come as, how they are read, and what is refused."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from comove.checks import as_real, as_tensor, as_whole
from comove.errors import InputError, InputTypeError, NonFiniteError, did_you_mean, some

__all__ = ["ArrayLike", "Side", "check_choice", "integers", "one_side", "output", "sides"]

ArrayLike: TypeAlias = Any  # NumPy array, torch tensor, nested lists, or anything numpy.asarray reads
_LARGEST = 1e150  # the square of anything beyond overflows float64
_READING = threading.Lock()  # few readers of files bear two threads at once


@dataclass(frozen=True)
class Side:
    """The losses of one side, read a block of columns at a time whatever they came as."""

    losses: Any  # (T+1, columns): NumPy array, torch tensor, or what is read by columns
    name: str
    ids: Any  # NumPy int64 (columns,) or None
    device: torch.device
    torch_out: bool

    @property
    def rows(self) -> int:
        """Recorded losses of each column, T+1."""
        return int(self.losses.shape[0])

    @property
    def columns(self) -> int:
        """Examples of this side."""
        return int(self.losses.shape[1])

    @property
    def xp(self) -> Any:
        """NumPy on the CPU, where its product is the faster, and torch elsewhere: the calls below exist in both."""
        return np if self.device.type == "cpu" else torch

    def native(self, array: Any) -> Any:
        """A NumPy array as the kind that ``xp`` works on."""
        return array if self.xp is np else torch.from_numpy(array).to(self.device)

    def zeros(self, *shape: int, dtype: str = "float64") -> Any:
        """Zeros of the kind that ``xp`` works on."""
        where = {} if self.xp is np else {"device": self.device}
        return self.xp.zeros(shape, dtype=getattr(self.xp, dtype), **where)

    def result(self, array: Any) -> Any:
        """An array of ``xp`` as the kind the caller gave."""
        return torch.from_numpy(array) if self.torch_out and self.xp is np else array

    def block(self, at: Any) -> Any:
        """Columns ``at`` in float64, checked; perhaps a view of the input, so never to be written to."""
        part = self._columns(at)
        block_RB: Any
        if self.xp is torch:
            block_RB = torch.as_tensor(part).to(self.device, torch.float64)
        else:
            part = part.double().numpy(force=True) if isinstance(part, torch.Tensor) else part
            with np.errstate(over="ignore"):  # what float64 cannot hold is infinite, and refused as that
                block_RB = part.astype(np.float64, copy=False)
        self._check(block_RB, at)
        return block_RB

    def array(self, at: slice) -> Any:
        """Columns ``at`` as NumPy, unchecked, in float32 where that is exact and in float64 elsewhere."""
        part = self._columns(at)
        if isinstance(part, torch.Tensor):
            part = (part.float() if part.dtype is torch.bfloat16 else part).numpy()
        small = part.dtype.kind not in "iu" and part.dtype.itemsize <= 4
        return part.astype(np.float32 if small else np.float64, copy=False)

    def _columns(self, at: Any) -> Any:
        if isinstance(self.losses, np.ndarray | torch.Tensor):
            return self.losses[:, at]
        with _READING:
            return np.asarray(self.losses[:, at])

    def _check(self, block_RB: Any, at: Any) -> None:
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


def one_side(losses: ArrayLike, name: str, ids: ArrayLike | None, like: ArrayLike) -> Side:
    """Check one side; ``like`` decides whether results are torch, and on which device."""
    array, is_torch = _real(losses, name), isinstance(like, torch.Tensor)
    shape = tuple(array.shape)
    if len(shape) != 2 or shape[0] < 3 or shape[1] < 1:
        raise InputError(
            f"The {name}losses must have the shape (T+1, examples): at least 3 recorded rows (two differences, for a "
            f"variance) and 1 example; found {shape}. Record one row before training and one after each epoch."
        )
    known = None if ids is None else integers(ids, f"The {name}ids", shape[1], unique=True)
    return Side(array, name, known, like.device if is_torch else torch.device("cpu"), is_torch)


def sides(train: ArrayLike, query: ArrayLike, train_ids: Any, query_ids: Any) -> tuple[Side, Side]:
    """Check both sides; results are of the kind of the training losses where these are torch."""
    like = train if isinstance(train, torch.Tensor) else query
    sides = one_side(train, "train ", train_ids, like), one_side(query, "query ", query_ids, like)
    if sides[0].rows != sides[1].rows:
        raise InputError(
            f"Train and query losses must be recorded at the same moments, one row each; found {sides[0].rows} rows "
            f"for train and {sides[1].rows} for query. Was one transposed? Rows come first: (T+1, examples)."
        )
    return sides


def _real(losses: ArrayLike, name: str) -> Any:
    array: Any
    if isinstance(losses, torch.Tensor):
        if losses.dtype is torch.bool:
            return as_real(losses, f"The {name}losses")  # refused there
        return as_tensor(losses, f"The {name}losses")
    plain = isinstance(losses, np.ndarray) and not isinstance(losses, np.ma.MaskedArray)
    if _read_by_columns(losses) or (plain and losses.dtype.kind in "fiu"):  # as it lies, whatever its byte order
        # A subclass may mean something else by its operators, as numpy.matrix does by *.
        array = losses if type(losses) is np.memmap or not isinstance(losses, np.ndarray) else np.asarray(losses)
        kind = "f" if str(array.dtype) == "bfloat16" else np.dtype(array.dtype).kind
    else:
        return as_real(losses, f"The {name}losses")
    if kind not in "fiu":
        raise InputTypeError(
            f"The {name}losses must be real numbers (floats or integers); found {array.dtype}. "
            f"Pass an array or tensor of shape (T+1, examples)."
        )
    return array


def _read_by_columns(losses: ArrayLike) -> bool:
    own = isinstance(losses, np.ndarray | np.generic)
    return not own and all(hasattr(losses, name) for name in ("shape", "dtype", "__getitem__"))


def integers(values: ArrayLike, title: str, length: int, *, unique: bool = False) -> Any:
    """Check and return (length,) integers, each once where they are ids."""
    array = as_whole(values, title, error=InputTypeError)
    if array.shape != (length,):
        raise InputError(
            f"{title} must have the shape ({length},), one for each column of losses; found {array.shape}."
        )
    if unique and np.unique(array).size != length:
        raise InputError(f"{title} must be unique: {length - np.unique(array).size} of {length} are repeated.")
    return array


def check_choice(value: str, title: str, choices: tuple[str, ...]) -> None:
    """Refuse any other value."""
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise InputError(f"{title} must be one of {some(map(repr, choices))}; found {value!r}.{hint}")


def output(out: Any, train: Side, query: Side) -> Any:
    """Check the array to fill, or make one."""
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
    _check_memory(out, (train.losses, query.losses))
    return out


def _check_memory(out: Any, losses: tuple[Any, ...]) -> None:
    """Refuse an array to fill whose places are not its own: what is written to one would change others."""
    if isinstance(out, torch.Tensor) and (out.requires_grad or out.is_neg()):
        raise InputError("out must be a plain tensor, without a gradient and not lazily negated: pass out.detach().")
    strides = out.stride() if isinstance(out, torch.Tensor) else out.strides
    if any(step == 0 and size > 1 for step, size in zip(strides, out.shape, strict=True)):
        raise InputError("out must have memory for each score, found one that was expanded or broadcast: pass a copy.")
    if any(_overlap(out, one) for one in losses):
        raise InputError("out must not share memory with the losses, which are read while it is filled: pass a copy.")


def _overlap(out: Any, losses: Any) -> bool:
    """Whether two arrays may lie in the same memory, by where they begin and end."""
    if isinstance(out, torch.Tensor) and isinstance(losses, torch.Tensor):
        return out.device == losses.device and out.untyped_storage().data_ptr() == losses.untyped_storage().data_ptr()
    both = isinstance(out, np.ndarray) and isinstance(losses, np.ndarray)
    return both and np.may_share_memory(out, losses)
