"""Reading and writing the layouts of :mod:`comove.retraining.layouts`.

Every writer writes what tells the layout last: a folder whose writing was killed is not taken for a whole one without
its ids. Every reader takes a path and how many models to read at most; errors are those of
:func:`comove.retraining.layouts.import_bank`.

Shape legend: C subsets, S examples named a subset, M models, N train, Q queries.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.checks import as_ids, as_real, as_whole
from comove.data import positions_of
from comove.data.tables import read_parquet
from comove.errors import CorruptFileError, InputError, some
from comove.retraining.array_files import read_array, read_named_arrays, write_npy, write_npz, write_pt
from comove.retraining.compact import narrowed
from comove.retraining.files import EXAMPLE_ARRAYS
from comove.store import write_bytes

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Flat",
    "dattri_kinds",
    "is_datamodels",
    "read_datamodels",
    "read_dattri",
    "read_kronfluence",
    "read_npz",
    "read_parquet_bank",
    "read_trak",
    "write_datamodels",
    "write_dattri",
    "write_kronfluence",
    "write_npz_bank",
    "write_parquet_bank",
    "write_trak",
]

Arrays = dict[str, npt.NDArray[Any]]
STEMS = {"margin": "margins", "loss": "losses"}
"""What files of outputs are called, by the outputs' own names."""
NAMES = {stem: name for name, stem in STEMS.items()}


@dataclass(frozen=True, eq=False)
class Flat:
    """Ground truth model by model: masks (M, N), outputs by name (M, Q), and what is known of the examples."""

    masks: npt.NDArray[Any]
    outputs: Arrays
    examples: Arrays = field(default_factory=dict)


# --- folders of arrays ----------------------------------------------------------------------------------------------


def _beside(folder: Path, suffix: str) -> Arrays:
    """Ids and labels that lie beside the arrays of a layout that has none of its own."""
    files = {name: folder / f"{name}{suffix}" for name in EXAMPLE_ARRAYS}
    return {name: read_array(file) for name, file in files.items() if file.is_file()}


def _write_beside(folder: Path, flat: Flat, write: Callable[[Path, npt.NDArray[Any]], None], suffix: str) -> None:
    """Write labels, and ids where they say more than positions do."""
    for name, array in flat.examples.items():
        if name.endswith("labels") or not np.array_equal(array, np.arange(array.size)):
            write(folder / f"{name}{suffix}", array)


def _cut(array: npt.NDArray[Any], first: int | None) -> npt.NDArray[Any]:
    return array[:first] if array.ndim else array


def _single(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return narrowed(values, "float32", "output")


def read_trak(folder: Path, first: int | None) -> Flat:
    """Read ``trak``: the first so many models."""
    masks, margins = (_cut(read_array(folder / name), first) for name in ("mask.npy", "val_margins.npy"))
    return Flat(masks, {"margin": margins}, _beside(folder, ".npy"))


def write_trak(folder: Path, flat: Flat) -> None:
    """Write ``trak``."""
    (values,) = flat.outputs.values()
    _write_beside(folder, flat, write_npy, ".npy")
    write_npy(folder / "val_margins.npy", _single(values))
    write_npy(folder / "mask.npy", flat.masks)


def read_kronfluence(folder: Path, first: int | None) -> Flat:
    """Read ``kronfluence``: the first so many models."""
    outputs = _other_arrays(folder, ".pt", {"masks"}, first)
    return Flat(_cut(read_array(folder / "masks.pt"), first), outputs, _beside(folder, ".pt"))


def write_kronfluence(folder: Path, flat: Flat) -> None:
    """Write ``kronfluence``."""
    _write_beside(folder, flat, write_pt, ".pt")
    for name, values in flat.outputs.items():
        write_pt(folder / f"{STEMS.get(name, name)}.pt", _single(values))
    write_pt(folder / "masks.pt", flat.masks)


def _other_arrays(folder: Path, suffix: str, known: set[str], first: int | None) -> Arrays:
    """The outputs in a folder: every file that is not named ``known``, and no ids or labels."""
    found: Arrays = {}
    for file in sorted(folder.glob(f"*{suffix}")):
        if file.stem in known or file.stem in EXAMPLE_ARRAYS:
            continue
        array, name = read_array(file), NAMES.get(file.stem, file.stem)
        if name in found:
            raise InputError(
                f"{folder} holds {name!r} twice, as {name}{suffix} and {file.name}: take one of them away."
            )
        if array.ndim == 2:
            found[name] = _cut(array, first)
        else:
            warnings.warn(f"{file} has shape {array.shape}, not (models, queries): it is left out.", stacklevel=5)
    if not found:
        raise CorruptFileError(f"{folder} holds masks, but no outputs (models, queries), such as margins{suffix}.")
    return found


# --- datamodels -----------------------------------------------------------------------------------------------------

_PUBLISHED = re.compile(r"train_masks_(\w+)\.npy")


def is_datamodels(folder: Path) -> bool:
    """Whether a folder is a store of datamodels, or has the names of their published files."""
    return (folder / "masks.npy").is_file() or bool(_published(folder))


def _published(folder: Path) -> list[str]:
    """The shares, such as ``50pct``, of which a folder holds masks under their published names."""
    found = (_PUBLISHED.fullmatch(file.name) for file in sorted(folder.glob("train_masks_*.npy")))
    return [match[1] for match in found if match]


def read_datamodels(folder: Path, first: int | None) -> Flat:
    """Read ``datamodels``: the first so many models."""
    shares = _published(folder)
    if shares and not (folder / "masks.npy").is_file():
        if len(shares) > 1:
            raise InputError(
                f"{folder} holds masks of several shares, {some(shares)}: keep each in a folder of its own."
            )
        names = (f"train_masks_{shares[0]}.npy", f"test_margins_{shares[0]}.npy")
        masks, margins = (_cut(read_array(folder / name), first) for name in names)
        return Flat(masks, {"margin": margins}, _beside(folder, ".npy"))
    masks = _cut(read_array(folder / "masks.npy"), first)
    outputs = _other_arrays(folder, ".npy", {"masks", "_completed"}, first)
    if (folder / "_completed.npy").is_file():
        done = _completed(folder / "_completed.npy", first, {"masks": masks, **outputs})
        if done.size < len(masks):
            masks, outputs = masks[done], {name: array[done] for name, array in outputs.items()}
    return Flat(masks, outputs, _beside(folder, ".npy"))


def _completed(file: Path, first: int | None, arrays: Arrays) -> npt.NDArray[np.intp]:
    """The rows of models that are finished, by a file of as many booleans as every array has rows."""
    said = _cut(read_array(file), first)
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if said.ndim != 1 or {*lengths.values()} != {said.size} or not np.isin(said, (0, 1)).all() or not said.any():
        found = ", ".join(f"{name} of {length}" for name, length in lengths.items())
        raise InputError(
            f"{file} must hold a 1 for each model that is finished and a 0 for each that is not, and one of them must "
            f"be; got {np.count_nonzero(said)} in shape {said.shape}, beside {found}."
        )
    return np.flatnonzero(said)


def write_datamodels(folder: Path, flat: Flat) -> None:
    """Write ``datamodels``."""
    _write_beside(folder, flat, write_npy, ".npy")
    write_npy(folder / "_completed.npy", np.ones(len(flat.masks), np.bool_))
    for name, values in flat.outputs.items():
        write_npy(folder / f"{STEMS.get(name, name)}.npy", narrowed(values, "float16", f"number of {name!r}"))
    write_npy(folder / "masks.npy", flat.masks)


# --- dattri ---------------------------------------------------------------------------------------------------------


def dattri_kinds(folder: Path) -> list[str]:
    """Which of dattri's ground truths a folder holds."""
    return [kind for kind in ("lds", "loo") if (folder / f"indices_{kind}.pt").is_file()]


def read_dattri(folder: Path, first: int | None) -> Flat:
    """Read ``dattri``: the first so many models."""
    kinds = dattri_kinds(folder)
    if len(kinds) != 1:
        raise InputError(
            f"{folder} must hold indices_lds.pt or indices_loo.pt (one of them), it has {some(kinds) or 'none'}."
        )
    names, examples = [f"{what}_{kinds[0]}.pt" for what in ("indices", "target_values")], _beside(folder, ".pt")
    given, values = (_cut(read_array(folder / name), first) for name in names)
    where = str(folder / names[0])
    whole = given.astype(np.int64) if given.dtype.kind == "f" and np.array_equal(given, np.round(given)) else given
    indices = as_whole(whole, where)
    if indices.ndim != (2 if kinds[0] == "lds" else 1) or not indices.size:
        raise InputError(f"{where} must be (subsets, size) of lds, (subsets,) of loo; got shape {indices.shape}.")
    size = int(indices.max()) + 1 if "train_ids" not in examples else examples["train_ids"].size
    if indices.min() < 0 or indices.max() >= size:
        raise InputError(f"{where} must be positions from 0 to {size - 1}, found {indices.min()} ... {indices.max()}.")
    try:
        named_CN = np.zeros((len(indices), size), np.bool_)
    except (MemoryError, ValueError) as error:  # the latter beyond what an address can be
        raise InputError(f"{where} names position {size - 1:,}: masks of so many examples fit no memory.") from error
    columns_CS = indices.reshape(len(indices), -1)
    named_CN[np.arange(len(indices))[:, None], columns_CS] = True
    if (named_CN.sum(1) != columns_CS.shape[1]).any():
        raise InputError(f"{where} names an example twice in one subset.")
    return Flat(named_CN if kinds[0] == "lds" else ~named_CN, {"target": values}, examples)


def write_dattri(folder: Path, flat: Flat) -> None:
    """Write ``dattri``."""
    (values_MQ,) = flat.outputs.values()
    starts = np.flatnonzero(np.r_[True, (flat.masks[1:] != flat.masks[:-1]).any(1)])
    masks_CN, counts_C = flat.masks[starts], np.diff([*starts, len(flat.masks)])
    means_CQ = np.add.reduceat(values_MQ, starts, axis=0) / counts_C[:, None]
    sizes = np.unique(masks_CN.sum(1))
    if sizes.size > 1:
        raise InputError(f"dattri's subsets are all of one size, these have {sizes.min()} to {sizes.max()} examples.")
    size = masks_CN.shape[1]
    kind = "loo" if sizes[0] == size - 1 and size > 2 else "lds"
    indices = np.nonzero(masks_CN if kind == "lds" else ~masks_CN)[1]
    _write_beside(folder, flat, write_pt, ".pt")
    if np.array_equal(flat.examples["train_ids"], np.arange(size)):  # positions alone do not say how many there are
        write_pt(folder / "train_ids.pt", flat.examples["train_ids"])
    write_pt(folder / f"target_values_{kind}.pt", _single(means_CQ))
    write_pt(folder / f"indices_{kind}.pt", indices.reshape(len(masks_CN), -1) if kind == "lds" else indices)


# --- npz and parquet ------------------------------------------------------------------------------------------------


def read_npz(path: Path, first: int | None) -> Flat:
    """Read ``npz``: the first so many models."""
    found = read_named_arrays(path)
    if "masks" not in found or not set(found) - {"masks", *EXAMPLE_ARRAYS}:
        raise InputError(f"{path} must hold masks (models, train) and outputs by name; it has {some(found) or 'none'}.")
    masks, examples = (
        _cut(found.pop("masks"), first),
        {name: found.pop(name) for name in EXAMPLE_ARRAYS if name in found},
    )
    return Flat(masks, {name: _cut(array, first) for name, array in found.items()}, examples)


def write_npz_bank(path: Path, flat: Flat) -> None:
    """Write ``npz``."""
    write_npz(path, {"masks": flat.masks, **flat.examples, **flat.outputs})


SIDES = {"train": "train", "query": "queries"}
"""The tables of examples, by the side that they are of."""


def read_parquet_bank(folder: Path, first: int | None) -> Flat:
    """Read ``parquet``."""
    sides = {side: _table(folder, table, ["id"]) for side, table in SIDES.items()}
    subsets, outputs = (
        _table(folder, "subsets", ["model", "train_id"]),
        _table(folder, "outputs", ["model", "query_id"]),
    )
    models = np.unique(outputs["model"])
    if not np.array_equal(models, np.unique(subsets["model"])):
        raise InputError(f"{folder}: subsets.parquet and outputs.parquet must be of the same models.")
    models = models[:first]
    ids = {side: as_ids(table["id"], f"{folder / SIDES[side]}.parquet: id") for side, table in sides.items()}
    masks_MN = np.zeros((models.size, ids["train"].size), np.bool_)
    rows, columns, _ = _cells(subsets, "train_id", models, ids["train"], folder / "subsets.parquet")
    masks_MN[rows, columns] = True
    rows, columns, kept = _cells(outputs, "query_id", models, ids["query"], folder / "outputs.parquet")
    if rows.size != models.size * ids["query"].size:
        raise InputError(f"{folder / 'outputs.parquet'} must have one row for every model and query.")
    found: Arrays = {}
    for name in outputs.columns.difference(["model", "query_id"], sort=False):
        values = as_real(outputs[name].to_numpy()[kept], f"outputs.parquet: {name}")
        found[str(name)] = np.empty((models.size, ids["query"].size), values.dtype)
        found[str(name)][rows, columns] = values
    labels = {f"{side}_labels": table["label"].to_numpy() for side, table in sides.items() if "label" in table}
    return Flat(masks_MN, found, {**{f"{side}_ids": one for side, one in ids.items()}, **labels})


def _table(folder: Path, name: str, columns: list[str]) -> pd.DataFrame:
    """A table that has these columns, of whole numbers."""
    table = read_parquet(folder / f"{name}.parquet")
    if lacking := [column for column in columns if column not in table]:
        raise InputError(f"{folder / name}.parquet lacks the column {some(lacking)}.")
    return table.assign(**{column: as_whole(table[column], f"{name}.parquet: {column}") for column in columns})


def _cells(
    table: pd.DataFrame, column: str, models: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], where: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where the rows of these models stand in an array (models, ids), and which rows of the table they are."""
    kept = np.isin(table["model"].to_numpy(), models)
    rows = np.searchsorted(models, table["model"].to_numpy()[kept])
    columns = positions_of(table[column].to_numpy()[kept], ids, f"{where.name}: {column}")
    if np.unique(rows * ids.size + columns).size != rows.size:
        raise InputError(f"{where} names a model and {column} twice.")
    return rows, columns, kept


def write_parquet_bank(folder: Path, flat: Flat) -> None:
    """Write ``parquet``."""
    import pandas as pd

    ids = {side: flat.examples[f"{side}_ids"] for side in SIDES}
    frames = {}
    for side, name in SIDES.items():
        labels = flat.examples.get(f"{side}_labels")
        frames[name] = pd.DataFrame({"id": ids[side], **({} if labels is None else {"label": labels})})
    rows, columns = np.nonzero(flat.masks)
    frames["subsets"] = pd.DataFrame({"model": rows, "train_id": ids["train"][columns]})
    models = np.repeat(np.arange(len(flat.masks)), ids["query"].size)
    cells = {"model": models, "query_id": np.tile(ids["query"], len(flat.masks))}
    frames["outputs"] = pd.DataFrame({**cells, **{name: values.ravel() for name, values in flat.outputs.items()}})
    for name, frame in frames.items():
        content = io.BytesIO()
        frame.to_parquet(content, index=False)
        write_bytes(folder / f"{name}.parquet", content.getvalue())
