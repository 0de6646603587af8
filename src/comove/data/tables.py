"""Tables of losses recorded elsewhere, as :meth:`comove.Trace.from_csv` and its neighbours read them.

A *long* table has one line a loss, a *wide* one a line an example; ``label`` and ``split`` are optional::

    epoch,id,loss,label,split        id,label,split,0,1,2
    0,17,2.31,4,train                17,4,train,2.31,1.90,1.42
    1,17,1.90,4,train                90,1,query,2.28,2.02,1.77

In a long table the recorded row is named by ``row`` or by ``epoch``; in a wide one every heading that is a number (or
``epoch_`` or ``row_`` and a number) is a recorded row. ``split`` says train, validation or query: validation examples
are the queries that coreset methods may aim at. Without it, train and query losses come in two tables.

Shape legend: L lines, R recorded rows, M examples.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError, InputError, InputTypeError, MissingExamplesError, did_you_mean, some
from comove.store import write_bytes
from comove.store.checksums import BLANK, is_intact, seal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LossTable", "read_csv", "read_losses", "read_parquet", "read_rows", "write_frame", "write_rows"]

SPLITS = ("train", "validation", "query")
ROW = re.compile(r"(?:epoch_|row_)?(\d+(?:\.\d+)?)")


# --- tables that comove writes and reads again ------------------------------------------------------------------

CHECK = "check"
"""The last column of a table of ours: a checksum of the whole file in the first row, empty in the others."""
_SEAL = re.compile(rb",blake2b-([0-9a-f]{32})\n")
_WORDS = re.compile(rb"\A[^\n]*,check\b|blake2b-")


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically, with a last column ``check`` by which :func:`read_rows` knows that it is whole.

    Raises:
        StorageError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, CHECK])
    for number, row in enumerate(rows):
        writer.writerow([*row, "" if number else BLANK])
    content = text.getvalue().encode("utf-8", "backslashreplace")
    write_bytes(path, seal(content) if BLANK.encode() in content else content)


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame, without its index, as :func:`write_rows` does."""
    columns, *rows = csv.reader(io.StringIO(frame.to_csv(index=False), newline=""))
    write_rows(path, columns, rows)


def read_rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Read a table with a line of headings and at least one row, each as texts by heading.

    Tables of earlier versions, and those made by hand, have no column ``check``.

    Raises:
        CorruptFileError: no such file, no table, columns or rows that are missing, or a table that has changed since it
            was written.
    """
    try:
        content = path.read_bytes()
        intact = is_intact(content, _SEAL, _WORDS)
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorruptFileError(f"{path} cannot be read as a table: {error}.") from error
    if intact is False:
        raise CorruptFileError(
            f"{path} has changed since it was written, or is cut off: run the command that made it again. To use a "
            f"table that you have changed yourself, take out its column {CHECK!r}."
        )
    absent = [name for name in needed if not rows or name not in rows[0]]
    if absent:
        named = f"columns {', '.join(needed)}"
        raise CorruptFileError(f"{path} must be a table with {named}, and rows; it lacks {', '.join(absent)}.")
    if any(None in row for row in rows):
        raise CorruptFileError(f"{path} has rows with more cells than headings.")
    return rows


# --- tables of losses -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossTable:
    """What a table held: the recorded moments, and the arguments of :meth:`comove.Trace.from_arrays`."""

    epochs: tuple[float, ...]
    arrays: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Long:
    """One loss a line: which row, which example, how much."""

    epochs_R: npt.NDArray[np.float64]
    row_L: npt.NDArray[np.int64]
    id_L: npt.NDArray[np.int64]
    loss_L: npt.NDArray[np.float64]
    label_L: npt.NDArray[np.int64] | None
    split_L: npt.NDArray[Any] | None


def read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a CSV file with a line of headings.

    Raises:
        CorruptFileError: no such file, or not a table.
        InputError: a heading given twice, of which pandas would make a new one (a second ``0`` becomes ``0.1``).
    """
    import pandas as pd

    headings = _read(partial(pd.read_csv, header=None, nrows=1, dtype=str), path).iloc[0]
    _refuse_repeated(headings.astype(str).tolist(), str(path))
    return _read(pd.read_csv, path)


def read_parquet(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a Parquet file.

    Raises:
        CorruptFileError: no such file, or not a table.
    """
    return _read(_parquet, path)


def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    if path.is_dir():
        return pd.read_parquet(path)
    with path.open("rb") as file:  # pyarrow itself opens no path that is not UTF-8
        return pd.read_parquet(file)


def _read(reader: Any, path: str | os.PathLike[str]) -> pd.DataFrame:
    try:
        table: pd.DataFrame = reader(Path(path))
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        raise CorruptFileError(f"{path} is not readable as a table ({error}).") from error
    return table


def read_losses(train: pd.DataFrame, query: pd.DataFrame | None = None) -> LossTable:
    """Return the losses of one table with a ``split`` column, or of a training and a query table.

    Args:
        train: a long or wide table.
        query: the query examples' table, when ``train`` has no ``split`` column.

    Raises:
        InputError: columns that are missing or unknown, ids or losses that are no numbers, an example twice in a row,
            a label that changes, sides recorded at different moments.
        MissingExamplesError: an example without a loss in some row.
    """
    if query is None:
        long = _read_table(train, "the table")
        if long.split_L is None:
            raise InputError(
                "One table needs a column 'split' that says train, validation or query of every example. Add it, or "
                "pass the query examples' table as query=."
            )
        sides = {"train": long.split_L == "train", "query": long.split_L != "train"}
        tables = {side: _part(long, chosen, side) for side, chosen in sides.items()}
    else:
        tables = {"train": _read_table(train, "the train table"), "query": _read_table(query, "the query table")}
        if any(table.split_L is not None for table in tables.values()):
            raise InputError("Two tables were given, and one has a 'split' column: pass one table, or drop the column.")
    return _together(tables)


def _part(long: _Long, chosen: npt.NDArray[np.bool_], side: str) -> _Long:
    if not chosen.any():
        raise InputError(f"No line of the table has split {side}{' or validation' if side == 'query' else ''}.")
    label_L = None if long.label_L is None else long.label_L[chosen]
    split_L = None if long.split_L is None else long.split_L[chosen]
    return _Long(long.epochs_R, long.row_L[chosen], long.id_L[chosen], long.loss_L[chosen], label_L, split_L)


def _together(tables: dict[str, _Long]) -> LossTable:
    epochs = tables["train"].epochs_R
    if not np.array_equal(epochs, tables["query"].epochs_R):
        raise InputError(
            f"Both sides must be recorded at the same moments: the train table has rows {some(epochs)}, the query "
            f"table {some(tables['query'].epochs_R)}."
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for side, table in tables.items():
        arrays |= _pivot(table, side)
    return LossTable(tuple(float(epoch) for epoch in epochs), arrays)


def _pivot(table: _Long, side: str) -> dict[str, npt.NDArray[Any]]:
    """Return the side's ids in order of first appearance, its (R, M) losses, and its labels."""
    import pandas as pd

    place_L, ids_M = pd.factorize(table.id_L)
    rows, width = table.epochs_R.size, len(ids_M)
    cell_L = table.row_L * width + place_L
    count = np.bincount(cell_L, minlength=rows * width).reshape(rows, width)
    if (count > 1).any():
        row, column = np.argwhere(count > 1)[0]
        raise InputError(
            f"Every example has one loss a row: {int((count > 1).sum())} cells of the {side} table are given twice, "
            f"the first for id {ids_M[column]} in row {table.epochs_R[row]:g}. Keep one line of each."
        )
    if (count == 0).any():
        row, column = np.argwhere(count == 0)[0]
        raise MissingExamplesError(
            f"Every example needs a loss in every row: {int((count == 0).sum())} cells of the {side} table are "
            f"missing, the first for id {ids_M[column]} in row {table.epochs_R[row]:g}. Leave out such examples, or "
            "fill them knowingly: a repeated loss reads as 'no change'."
        )
    loss_RM = np.empty((rows, width))
    loss_RM.reshape(-1)[cell_L] = table.loss_L
    arrays: dict[str, npt.NDArray[Any]] = {f"{side}_ids": np.asarray(ids_M), f"{side}_losses": loss_RM}
    if table.label_L is not None:
        arrays[f"{side}_labels"] = _constant(table.label_L, place_L, width, ids_M, "label", side)
    if table.split_L is not None and side == "query":
        split_M = _constant(table.split_L, place_L, width, ids_M, "split", side)
        if (split_M == "validation").any():
            arrays["validation_ids"] = np.asarray(ids_M)[split_M == "validation"]
    return arrays


def _constant(
    value_L: npt.NDArray[Any], place_L: npt.NDArray[np.int64], width: int, ids_M: Any, what: str, side: str
) -> npt.NDArray[Any]:
    """Return each example's value, which must be the same in all of its lines."""
    value_M = np.empty(width, dtype=value_L.dtype)
    value_M[place_L] = value_L
    changing = np.unique(place_L[value_M[place_L] != value_L])
    if changing.size:
        raise InputError(
            f"An example has one {what}: it changes between rows for {changing.size} {side} ids, "
            f"{some(ids_M[changing])}. Ids must belong to examples, not to positions in a batch."
        )
    return value_M


# --- one table ---------------------------------------------------------------------------------------------------


def _read_table(table: Any, what: str) -> _Long:
    if not hasattr(table, "columns"):
        raise InputTypeError(f"{what} must be a pandas DataFrame, got {type(table).__name__}.")
    if len(table) == 0:
        raise InputError(f"{what} has no lines.")
    names = [str(name) for name in table.columns]
    _refuse_repeated(names, what)
    table = table.set_axis(names, axis=1)
    if "id" not in names:
        raise InputError(f"{what} needs a column 'id'; it has {some(names)}.{did_you_mean('id', names)}")
    return _read_long(table, names, what) if "loss" in names else _read_wide(table, names, what)


def _refuse_repeated(names: list[str], what: str) -> None:
    if len(set(names)) < len(names):
        raise InputError(f"{what} has a heading twice: {some(sorted({n for n in names if names.count(n) > 1}))}.")


def _read_long(table: Any, names: list[str], what: str) -> _Long:
    moments = [name for name in ("row", "epoch") if name in names]
    _refuse_others(names, {"id", "loss", "label", "split", *moments}, what)
    if len(moments) != 1:
        raise InputError(
            f"{what} has one loss a line and needs one column 'row' or 'epoch' beside it; it has {some(names)}."
        )
    moment_L = _numbers(table, moments[0], what)
    _refuse(~np.isfinite(moment_L) | (moment_L < 0), table, moments[0], "must be a number from 0 on", what)
    epochs_R, row_L = np.unique(moment_L, return_inverse=True)
    return _long(table, names, what, epochs_R, row_L.astype(np.int64), _numbers(table, "loss", what), repeats=1)


def _read_wide(table: Any, names: list[str], what: str) -> _Long:
    epoch_of = {name: float(found[1]) for name in names if (found := ROW.fullmatch(name))}
    _refuse_others(names, {"id", "label", "split", *epoch_of}, what)
    if not epoch_of:
        raise InputError(
            f"{what} must have a column 'loss' (one loss a line), or one column for every recorded row, headed by its "
            f"number; it has {some(names)}.{did_you_mean('loss', names)}"
        )
    ordered = sorted(epoch_of, key=epoch_of.__getitem__)
    epochs_R = np.array([epoch_of[name] for name in ordered])
    if np.unique(epochs_R).size < epochs_R.size:
        raise InputError(f"{what} names a row twice: its headings are {some(ordered)}.")
    loss_L = np.concatenate([_numbers(table, name, what) for name in ordered])
    row_L = np.repeat(np.arange(len(ordered)), len(table))
    return _long(table, names, what, epochs_R, row_L, loss_L, repeats=len(ordered))


def _long(
    table: Any,
    names: list[str],
    what: str,
    epochs_R: npt.NDArray[np.float64],
    row_L: npt.NDArray[np.int64],
    loss_L: npt.NDArray[np.float64],
    repeats: int,
) -> _Long:
    def integers(name: str) -> npt.NDArray[np.int64]:
        return np.tile(_integers(table, name, what), repeats)

    split_L = np.tile(_split(table, what), repeats) if "split" in names else None
    label_L = integers("label") if "label" in names else None
    return _Long(epochs_R, row_L, integers("id"), loss_L, label_L, split_L)


def _refuse_others(names: list[str], known: set[str], what: str) -> None:
    others = [name for name in names if name not in known]
    if others:
        raise InputError(
            f"{what} has columns that mean nothing here: {some(others)}. Known are id, loss, row or epoch, label and "
            "split, or one column for every recorded row, headed by its number."
            f"{did_you_mean(others[0], sorted(known))}"
        )


def _refuse(bad_L: npt.NDArray[np.bool_], table: Any, name: str, must: str, what: str) -> None:
    if bad_L.any():
        line = int(np.flatnonzero(bad_L)[0])
        raise InputError(
            f"Column {name!r} of {what} {must}: {int(bad_L.sum())} of {len(table)} lines differ, the first is line "
            f"{line + 1} with {table[name].iloc[line]!r}."
        )


def _numbers(table: Any, name: str, what: str) -> npt.NDArray[np.float64]:
    """Return a column as float64; what is empty comes back as NaN, what is no number is refused."""
    import pandas as pd

    column = table[name]
    numbers: npt.NDArray[np.float64] = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    boolean = pd.api.types.is_bool_dtype(column)
    _refuse((np.isnan(numbers) & column.notna().to_numpy()) | boolean, table, name, "must hold numbers", what)
    return numbers


def _integers(table: Any, name: str, what: str) -> npt.NDArray[np.int64]:
    import pandas as pd

    column = table[name]
    if pd.api.types.is_integer_dtype(column) and not column.isna().any():
        whole: npt.NDArray[Any] = column.to_numpy()
        _refuse(whole > np.iinfo(np.int64).max, table, name, "must fit into 64-bit signed integers", what)
        return whole.astype(np.int64)
    numbers = _numbers(table, name, what)
    # Past 2^53 a float no longer names one integer.
    _refuse(~((numbers % 1 == 0) & (np.abs(numbers) < 2**53)), table, name, "must hold integers", what)
    return numbers.astype(np.int64)


def _split(table: Any, what: str) -> npt.NDArray[Any]:
    split_L: npt.NDArray[Any] = table["split"].astype("object").to_numpy().astype(str)
    _refuse(~np.isin(split_L, SPLITS), table, "split", f"must say {', '.join(SPLITS)}", what)
    return split_L
