"""Ground truth in the layouts that others publish theirs in: read as banks, and banks written so.

One row a model; M models, so that a subset with R models has R equal rows of masks::

    trak        mask.npy (M, N), val_margins.npy (M, Q)
    datamodels  masks.npy (M, N), margins.npy and other outputs (M, Q), _completed.npy (M,); or, as published,
                train_masks_50pct.npy, test_margins_50pct.npy
    dattri      indices_lds.pt (C, size), target_values_lds.pt (C, Q); or indices_loo.pt (C,), target_values_loo.pt
    kronfluence masks.pt (M, N), margins.pt or losses.pt (M, Q)
    npz         one file: masks (M, N), optional ids and labels, and outputs by name
    parquet     train.parquet (id, label), queries.parquet (id, label), subsets.parquet (model, train_id),
                outputs.parquet (model, query_id, and a column for each output)

The first four know no ids: where ``train_ids``, ``query_ids``, ``train_labels`` or ``query_labels`` lie in the
folder beside them, with the same ending, they count; else ids are the positions from 0 on.

Shape legend: C subsets, R seeds, M models, N train, Q queries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comove.checks import whole_number
from comove.discovery import lookup
from comove.errors import CorruptFileError, InputError, some
from comove.models.measured_outputs import sign_of
from comove.retraining import layout_files as files
from comove.retraining.bank import RetrainingBank
from comove.retraining.files import EXAMPLE_ARRAYS
from comove.retraining.layout_files import Flat
from comove.store import is_empty, new_folder

__all__ = ["LAYOUTS", "export_bank", "import_bank"]


class Layout(NamedTuple):
    """How one layout is told by its files, read and written.

    Attributes:
        found: whether a path is in it.
        read: of the path, the first so many models.
        write: into a new folder (or file).
        one_output: it holds a single output.
        signed: more of that is better.
        taken: names that an output cannot have, for something else in the layout has them.
        named_files: each output is a file of its name.
    """

    found: Callable[[Path], bool]
    read: Callable[[Path, int | None], Flat]
    write: Callable[[Path, Flat], None]
    one_output: bool = False
    signed: bool = False
    taken: tuple[str, ...] = ()
    named_files: bool = False


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda folder: all((folder / name).is_file() for name in names)


LAYOUTS: dict[str, Layout] = {
    "trak": Layout(_has("mask.npy", "val_margins.npy"), files.read_trak, files.write_trak, True, True),
    "datamodels": Layout(
        files.is_datamodels,
        files.read_datamodels,
        files.write_datamodels,
        taken=("masks", "_completed", *EXAMPLE_ARRAYS),
        named_files=True,
    ),
    "dattri": Layout(lambda path: bool(files.dattri_kinds(path)), files.read_dattri, files.write_dattri, True, True),
    "kronfluence": Layout(
        _has("masks.pt"),
        files.read_kronfluence,
        files.write_kronfluence,
        True,
        taken=("masks", *EXAMPLE_ARRAYS),
        named_files=True,
    ),
    "npz": Layout(
        lambda path: path.suffix == ".npz",
        files.read_npz,
        files.write_npz_bank,
        taken=("masks", *EXAMPLE_ARRAYS),
    ),
    "parquet": Layout(
        _has("subsets.parquet", "outputs.parquet"),
        files.read_parquet_bank,
        files.write_parquet_bank,
        taken=("model", "query_id"),
    ),
}
"""The layouts, by name."""


def import_bank(
    path: str | os.PathLike[str],
    layout: str | None = None,
    *,
    first: int | None = None,
    higher: Mapping[str, bool] | None = None,
) -> RetrainingBank:
    """Read ground truth that was published elsewhere as a bank in memory; nothing is unpickled.

    ``import_bank(path).compact("bank.safetensors")`` keeps it as comove's own file.

    Args:
        path: a folder, or the file of ``npz``.
        layout: one of :data:`LAYOUTS`; by default told by the files there.
        first: read this many models only, from the first on (arrays that are mapped from a file are not read further).
        higher: by output, whether more of it is better; what is not named is so, but for ``"loss"``.

    Raises:
        InputError: an unknown layout, files of none; shapes that do not fit, masks of other numbers than 0 and 1.
        CorruptFileError: a file is missing, damaged, foreign, or can be read only by unpickling.
        NonFiniteError: an output that is NaN or infinite.
    """
    where = Path(path)
    if not where.exists():
        raise CorruptFileError(f"{where} does not exist.")
    if first is not None:
        whole_number(first, "first", 1)
    name = _told(where) if layout is None else layout
    flat = lookup(name, LAYOUTS, "layout").read(where, first)
    return RetrainingBank.from_arrays(flat.masks, flat.outputs, **flat.examples, higher=higher, name=f"imported-{name}")


def export_bank(
    bank: RetrainingBank, path: str | os.PathLike[str], layout: str, *, outputs: Sequence[str] | None = None
) -> Path:
    """Write a bank's ground truth in a layout that others read; :func:`import_bank` reads it again.

    Args:
        bank: with every model trained.
        path: a new or empty folder; of ``npz`` the file.
        layout: one of :data:`LAYOUTS`. ``trak``, ``dattri`` and ``kronfluence`` hold one output, and the first two mean
            that more is better, so that the sign of a loss is turned. ``dattri`` has the mean of a subset's models;
            ``datamodels`` rounds outputs to float16.
        outputs: which; by default the bank's own default where the layout holds one, else all but ``"predicted"``.

    Raises:
        InputError: an unknown layout or output, several where one is held, outputs whose names the layout cannot hold,
            a folder that holds something, models that are pending, subsets of different sizes for ``dattri``.
        StorageError: it cannot be written; then nothing is left of it.
    """
    kind, where = lookup(layout, LAYOUTS, "layout"), Path(path)
    if bank.pending:
        raise InputError(
            f"{len(bank.pending):,} of {len(bank.jobs):,} models of {bank.path} are pending: train them first."
        )
    names = list(dict.fromkeys(outputs or ([bank.default_output] if kind.one_output else _amounts(bank))))
    if kind.one_output and len(names) != 1:
        raise InputError(f"The layout {layout} holds one output, got {some(names)}.")
    _check_names(names, layout, kind)
    if layout == "npz":
        if where.suffix != ".npz" or where.exists():
            raise InputError(f"The layout npz is a new file that ends in .npz, got {where}.")
        new_folder(where.parent)
    elif where.exists() and not (where.is_dir() and is_empty(where)):
        raise InputError(f"{where} holds something already: export a bank to a new or empty folder.")
    else:
        new_folder(where)
    try:
        kind.write(where, _flat(bank, names, kind.signed))
    except BaseException:
        _remove_part(where)
        raise
    return where


def _remove_part(where: Path) -> None:
    """Remove what was written of a bank into a folder that held nothing; of one file nothing is ever left."""
    with suppress(OSError):
        for file in where.iterdir() if where.is_dir() else ():
            file.unlink()
        where.rmdir()


def _check_names(names: Sequence[str], layout: str, kind: Layout) -> None:
    """Refuse outputs that would be written over something else, over each other, or outside the folder."""
    files_of = [files.STEMS.get(name, name) if kind.named_files else name for name in names]
    wrong = [name for name, file in zip(names, files_of, strict=True) if file in kind.taken or files_of.count(file) > 1]
    unsafe = r"[/\\:\0]" if kind.named_files else r"\0"
    if wrong := wrong or [name for name in names if re.search(unsafe, name)]:
        raise InputError(
            f"The layout {layout} cannot hold outputs named {some(map(repr, wrong))} (names of its own, two of one "
            "file, or no names of files): say which outputs to write (outputs=), or take another layout."
        )


def _amounts(bank: RetrainingBank) -> list[str]:
    return [name for name in bank.output_names if name != "predicted"]


def _flat(bank: RetrainingBank, names: Sequence[str], signed: bool) -> Flat:
    """A bank model by model, those of a subset side by side."""
    rows, seeds = np.array(sorted(bank.jobs)).T
    signs = {name: sign_of(bank, name) if signed else 1 for name in names}
    outputs = {name: signs[name] * bank.outputs(name)[rows, seeds] for name in names}
    sides = {name: getattr(bank, name) for name in EXAMPLE_ARRAYS}
    return Flat(bank.masks[rows], outputs, {name: side for name, side in sides.items() if side is not None})


def _told(path: Path) -> str:
    """The layout that the files at a path are in."""
    found = [name for name, layout in LAYOUTS.items() if layout.found(path)]
    if len(found) != 1:
        raise InputError(
            f"{path} holds {'files of several layouts' if found else 'ground truth in no known layout'}: say which it "
            f"is with layout=, one of {', '.join(found or LAYOUTS)}."
        )
    return found[0]
