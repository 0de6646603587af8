"""Arguments as users give them, taken to NumPy and checked: every check of an array or a number is said here, once.

What comes out is plain: native byte order, no graph behind it, no mask, nothing lazily negated or conjugated. What
could only be taken by losing something (complex as real, text as numbers, 2.5 as 2) is refused: the message says what
must hold, what was found, and what to do.
"""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.errors import ComoveError, InputError, InputTypeError, some

if TYPE_CHECKING:
    import torch

__all__ = [
    "as_array",
    "as_ids",
    "as_labels",
    "as_real",
    "as_tensor",
    "as_whole",
    "check_number",
    "check_seed",
    "check_share",
    "check_text",
    "given_ids",
    "is_tensor",
    "many_whole",
    "real_number",
    "whole_number",
]

Ids = npt.NDArray[np.int64]
LARGEST = np.iinfo(np.int64).max
_SURROGATE = re.compile("[\ud800-\udfff]")
_FLAT = "a 1-D array of integers"
_REMEDY = {
    "b": "Cast booleans first, with .astype(int) or .astype(float), if numbers are what they mean.",
    "c": "Take the real part or the magnitude first.",
    "U": "Text is not read as numbers; convert it first.",
    "S": "Text is not read as numbers; convert it first.",
    "M": "Convert dates to numbers first.",
    "m": "Convert time differences to numbers first.",
    "V": "Pass one field of a structured array.",
    "O": "NumPy makes objects of None, of Decimal, of rows of unequal length and of whole numbers beyond 64 bits; pass "
    "plain numbers.",
    "f": "Cast them with .astype('int64') if they are whole.",
}


# --- arrays ------------------------------------------------------------------------------------------------------


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(values: Any, what: str = "The values") -> npt.NDArray[Any]:
    """Return ``values`` as an array of whatever type, in native byte order.

    A tensor is detached, taken to the CPU, and resolved if it is lazily negated or conjugated; float types that NumPy
    lacks become float32. Of a pandas object the values are taken, in order of rows whatever its index.

    Raises:
        InputError: rows of unequal length, masked entries, another size than NumPy can hold.
        InputTypeError: a sparse, quantized, nested or meta tensor, a list of numbers and booleans, or what NumPy does
            not take.
    """
    if is_tensor(values):
        return _from_tensor(values, what)
    if isinstance(values, np.ma.MaskedArray):
        return _unmasked(values, what)
    if isinstance(values, list | tuple) and any(is_tensor(v) or isinstance(v, np.ma.MaskedArray) for v in values):
        values = [as_array(value, what) for value in values]
    try:
        array = np.asarray(values)
        mixed = isinstance(values, list | tuple) and array.dtype.kind in "iufc" and _holds_booleans(values)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{what} must be rectangular, every row of the same length, got {type(values).__name__}: {error}."
        ) from error
    except (TypeError, RuntimeError) as error:
        raise InputTypeError(f"{what} must be an array or a tensor, got {type(values).__name__}: {error}.") from error
    if mixed:  # NumPy reads [True, 3] as [1, 3]
        raise InputTypeError(f"{what} must not mix booleans with numbers, got a {type(values).__name__} of both.")
    if array.dtype.kind == "V" and array.dtype.names is None and "float" in array.dtype.name:
        return np.asarray(array.astype(np.float32))  # bfloat16 and float8 of ml_dtypes, as JAX gives them
    if not array.dtype.isnative and array.dtype.names is None:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _holds_booleans(values: list[Any] | tuple[Any, ...]) -> bool:
    return any(
        _holds_booleans(value) if isinstance(value, list | tuple) else isinstance(value, bool | np.bool_)
        for value in values
    )


def _from_tensor(tensor: Any, what: str) -> npt.NDArray[Any]:
    tensor = _resolved(tensor, what).cpu()
    if tensor.is_floating_point() and str(tensor.dtype) not in ("torch.float16", "torch.float32", "torch.float64"):
        tensor = tensor.float()
    try:
        array: npt.NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise InputTypeError(f"{what} must be a tensor that NumPy can take, got {tensor.dtype}: {error}.") from error
    return array


def _resolved(tensor: Any, what: str) -> Any:
    """The tensor itself, on its device, without a graph and with lazy negation or conjugation carried out."""
    kind = (
        "nested"
        if tensor.is_nested
        else "quantized"
        if tensor.is_quantized
        else "meta"
        if tensor.is_meta
        else str(tensor.layout).removeprefix("torch.")
    )
    if kind != "strided":
        raise InputTypeError(
            f"{what} must be a dense tensor with values, got a tensor of the kind {kind}; make it one first "
            "(to_dense(), dequantize(), to_padded_tensor())."
        )
    return tensor.detach().resolve_conj().resolve_neg()


def _unmasked(values: np.ma.MaskedArray[Any, Any], what: str) -> npt.NDArray[Any]:
    masked = int(np.count_nonzero(np.ma.getmaskarray(values)))
    if masked:
        raise InputError(
            f"{what} must have no masked entries, got {masked} of {values.size}: leave those examples out, or put "
            "values in with .filled(value)."
        )
    return as_array(np.asarray(values.data), what)


def _found(array: npt.NDArray[Any]) -> str:
    names = array.dtype.names
    return f"{array.dtype}" if names is None else f"a structured array with the fields {some(names)}"


def as_real(
    values: Any, what: str, *, ndim: int | None = None, error: type[ComoveError] = InputTypeError
) -> npt.NDArray[Any]:
    """Return ``values`` as an array of floats or integers; booleans are no numbers here.

    Args:
        values: anything that :func:`as_array` takes.
        what: its name, for messages, such as ``"train_losses"``.
        ndim: how many dimensions it must have.
        error: the exception for a wrong type.

    Raises:
        InputError: another number of dimensions.
        InputTypeError: other than real numbers.
    """
    array = as_array(values, what)
    if array.dtype.kind not in "fiu":
        remedy = _REMEDY.get(array.dtype.kind, "")
        raise error(f"{what} must be real numbers (floats or integers), got {_found(array)}. {remedy}".rstrip())
    if ndim is not None and array.ndim != ndim:
        raise InputError(f"{what} must have {ndim} dimensions, got shape {array.shape}.")
    return array


def as_whole(values: Any, what: str, *, rule: str = "integers", error: type[ComoveError] = InputError) -> Ids:
    """Return ``values`` as an int64 array of any shape; an empty one may be of any type.

    Args:
        values: anything that :func:`as_array` takes.
        what: its name, for messages.
        rule: what it must be, for messages.
        error: the exception for a wrong type.

    Raises:
        InputError: other than integers, or beyond 64-bit signed ones.
    """
    array = as_array(values, what)
    if array.size == 0:
        return np.zeros(array.shape, np.int64)
    if array.dtype.kind not in "iu":
        remedy = _REMEDY.get(array.dtype.kind, "")
        raise error(f"{what} must be {rule}, got shape {array.shape}, dtype {_found(array)}. {remedy}".rstrip())
    if array.dtype.kind == "u" and int(array.max()) > LARGEST:
        raise InputError(f"{what} must fit into 64-bit signed integers, found {int(array.max())}.")
    return array.astype(np.int64, copy=False)


def given_ids(ids: Any, what: str = "ids") -> Ids:
    """Return ids that are asked for, (M,) int64, repeated or not; a single one is taken as a list of one.

    Raises:
        InputError: not integers, more than one dimension.
    """
    array = np.atleast_1d(as_whole(ids, what))
    if array.ndim != 1:
        raise InputError(f"{what} must be {_FLAT}, got shape {array.shape}.")
    return array


def as_ids(ids: Any, what: str) -> Ids:
    """Return ``ids`` as a one-dimensional int64 array of its own without repeats.

    Raises:
        InputError: wrong shape, not integers, beyond 64-bit signed ones, or an id given twice.
    """
    array = as_array(ids, what)
    if array.ndim != 1:
        raise InputError(f"{what} must be {_FLAT}, got shape {array.shape}, dtype {_found(array)}.")
    whole = as_whole(array, what, rule=_FLAT)
    unique, counts = np.unique(whole, return_counts=True)
    if unique.size != whole.size:
        twice = unique[counts > 1][:5].tolist()
        raise InputError(f"{what} must be unique; {int((counts > 1).sum())} are repeated, among them {twice}.")
    return np.array(whole)  # of its own: results freeze their arrays


def as_labels(labels: Any, what: str, size: int | None = None, *, below: int | None = None) -> Ids:
    """Return ``labels`` as (size,) int64 class indices from 0 on.

    Args:
        labels: anything that :func:`as_array` takes.
        what: its name, for messages.
        size: how many there must be.
        below: the number of classes, where it is known.

    Raises:
        InputError: not integers (booleans, floats and one-hot rows are none), wrong length, out of range.
    """
    array = as_array(labels, what)
    if array.ndim != 1:
        hint = " One row an example looks one-hot: take .argmax(1)." if array.ndim == 2 and array.shape[1] > 1 else ""
        raise InputError(f"{what} must be {_FLAT}, got shape {array.shape}, dtype {_found(array)}.{hint}")
    array = as_whole(array, what, rule=_FLAT)
    if size is not None and array.size != size:
        raise InputError(f"{what} has {array.size} entries for {size} examples.")
    bad = np.flatnonzero((array < 0) | (array >= (LARGEST if below is None else below)))
    if bad.size:
        within = "class indices from 0 on" if below is None else f"in 0 ... {below - 1}"
        raise InputError(
            f"{what} must be {within}: {bad.size} are out of range, the first at position {bad[0]} with label "
            f"{array[bad[0]]}. Map labels to 0 ... C-1 and pass all class names in classes=."
        )
    return np.array(array)


def as_tensor(values: Any, what: str) -> torch.Tensor:
    """Return ``values`` as a dense tensor of real numbers or booleans, without a graph; a tensor stays on its device.

    Raises:
        InputError: rows of unequal length, masked entries.
        InputTypeError: complex numbers, text, dates, objects and all else that is no number.
    """
    import torch

    if isinstance(values, torch.Tensor):
        tensor: torch.Tensor = _resolved(values, what)
        if tensor.is_complex():
            raise InputTypeError(f"{what} must be real numbers, got {tensor.dtype}. {_REMEDY['c']}")
        return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 2 else tensor  # float8
    array = as_array(values, what)
    if array.dtype.kind not in "fiub":
        remedy = _REMEDY.get(array.dtype.kind, "")
        raise InputTypeError(
            f"{what} must be real numbers (floats or integers), got {_found(array)}. {remedy}".rstrip()
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # torch has no longdouble
    array = np.ascontiguousarray(array).reshape(array.shape)  # torch has no negative strides
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # and warns of read-only memory


# --- numbers -----------------------------------------------------------------------------------------------------


def whole_number(
    value: object,
    what: str,
    least: int | None = 0,
    most: int | None = LARGEST,
    *,
    unit: str = "a whole number",
    error: type[ComoveError] = InputTypeError,
) -> int:
    """Return a whole number; NumPy's and those in arrays and tensors of no dimension are taken too.

    Args:
        value: no boolean, no float (2.5 is never read as 2, nor 2.0), no text.
        what: its name, for messages.
        least: the least it may be; ``None`` for no bound.
        most: likewise.
        unit: what it counts, for messages.
        error: the exception for a wrong type.

    Raises:
        InputError: out of range.
        InputTypeError: no whole number.
    """
    kind = str(getattr(value, "dtype", ""))
    try:
        if isinstance(value, bool) or "bool" in kind or _dimensions(value) or np.ma.is_masked(value):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise error(f"{what} must be {unit}{_bounds(least, most)}, got {_short(value)}.") from None
    if (least is not None and number < least) or (most is not None and number > most):
        raise InputError(f"{what} must be {unit}{_bounds(least, most)}, got {number}.")
    return number


def _bounds(least: int | None, most: int | None) -> str:
    if most is None or most == LARGEST:
        return "" if least is None else f" from {least} on"
    return f" up to {most}" if least is None else f" from {least} to {most}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dimensions(value: object) -> int:
    """How many dimensions an array or a tensor has; 0 of anything else."""
    return int(getattr(value, "ndim", 0))


def many_whole(values: Any, what: str, least: int | None = 0, most: int | None = LARGEST) -> list[int]:
    """Return one whole number, or several, as a list; see :func:`whole_number`.

    Raises:
        InputError: out of range.
        InputTypeError: no whole number among them.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        return [whole_number(values, what, least, most)]
    return [whole_number(value, what, least, most) for value in values]


def real_number(value: object, what: str) -> float:
    """Return a finite number as a float.

    Raises:
        InputError: NaN or infinite.
        InputTypeError: no real number; booleans and text are none.
    """
    kind = str(getattr(value, "dtype", ""))
    number_like = not isinstance(value, bool | str | bytes) and "bool" not in kind and "complex" not in kind
    if not number_like or _dimensions(value) or np.ma.is_masked(value):
        raise InputTypeError(f"{what} must be a number, got {_short(value)}.")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputTypeError(f"{what} must be a number, got {_short(value)}.") from None
    if not math.isfinite(number):
        raise InputError(f"{what} must be finite, got {_short(value)}.")
    return number


def check_seed(seed: object, who: str) -> int:
    """Check and return a ``seed``.

    Raises:
        InputError: not a Python integer from 0 to 2^63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST:
        raise InputError(f"{who}: seed must be a whole number from 0 on, got {_short(seed)}.")
    return seed


def check_text(texts: Iterable[object], what: str) -> None:
    """Refuse text that no file in UTF-8 can hold: with a surrogate that has no other half.

    Raises:
        InputError: one of them is so.
    """
    for text in texts:
        if isinstance(text, str) and _SURROGATE.search(text):
            raise InputError(
                f"{what} must be text of whole characters, found {text!r}, which UTF-8 cannot hold. Python makes such "
                "text of bytes that are not UTF-8, as in the name of a file: rename it, or give the text that is meant."
            )


def check_share(value: object, what: str) -> float:
    """Check and return a share from 0 to below 1.

    Raises:
        InputError: outside of that, no number.
    """
    number = _number_or_nan(value)
    if not 0 <= number < 1:
        raise InputError(f"{what} must be a share from 0 to below 1, got {_short(value)}.")
    return number


def check_number(value: object, what: str, *, zero: bool = False) -> float:
    """Check and return a finite number above 0, or 0 itself where ``zero`` allows it.

    Raises:
        InputError: outside of that, no number.
    """
    number = _number_or_nan(value)
    if not (number > 0 or (zero and number == 0)):
        raise InputError(f"{what} must be a finite number {'from 0 on' if zero else 'above 0'}, got {_short(value)}.")
    return number


def _number_or_nan(value: object) -> float:
    try:
        return real_number(value, "a number")
    except (InputError, InputTypeError):
        return math.nan
