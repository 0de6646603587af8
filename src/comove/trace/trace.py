"""The trace: per-example statistics recorded while a model trains, row by row; frozen once written.

On disk a trace is a folder::

    manifest.json             kind, format version, mode, data fingerprint, number of rows once finished
    examples.safetensors      train_ids, query_ids, validation_ids, and labels where known
    rows/000000.safetensors   one file a recorded row: "train.loss", "query.loss", ... ; its header has step and epoch
    anchors/000010.safetensors   penultimate features and class probabilities of chosen rows

A row file is written beside its name and renamed, so a ``kill -9`` never costs an earlier row. Every file carries the
trace's id and its own place, and a row the checksums of the row before it and of its anchor: one that is swapped, or
belongs to another trace, even of the same examples, is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from comove.checks import as_ids, as_labels, as_real
from comove.data import Ids, Splits, positions_of
from comove.data.tables import read_csv, read_losses, read_parquet
from comove.display import html_facts
from comove.errors import CorruptFileError, InputError, NonFiniteError
from comove.plots import losses_figure
from comove.store import (
    LazyRows,
    check_file,
    check_fingerprint,
    digest,
    entries,
    is_empty,
    new_folder,
    open_manifest,
    read_arrays,
    read_header,
    write_arrays,
    write_manifest,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["FIELDS", "FORMAT_VERSION", "Row", "Side", "Trace", "check_losses"]

FORMAT_VERSION = 2
FIELDS = ("loss", "target_probability", "margin_logit", "margin_prob", "el2n", "correct", "kd")
"""What a row can hold for each example; all but ``loss`` need logits. ``kd`` compares with the row before."""

Side = Literal["train", "query"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One recorded row: after ``step`` optimizer steps, ``epoch`` passes over the data (0: before training).

    ``filled`` counts the examples not observed, whose values repeat those of the row before (``missing="previous"``);
    ``anchor`` says whether features were kept.
    """

    index: int
    step: int
    epoch: float
    filled: int = 0
    anchor: bool = False


def check_losses(losses: npt.NDArray[Any], ids: Ids, side: str, first_row: int = 0) -> None:
    """Raise when ``losses`` (rows, M) holds a NaN or an infinity.

    Raises:
        NonFiniteError: naming the row and the id.
    """
    bad = ~np.isfinite(losses)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise NonFiniteError(
            f"Losses must be finite: {int(bad.sum())} are not, the first in row {first_row + int(row)} for the {side} "
            f"example with id {int(ids[column])} ({losses[row, column]}). The training run probably diverged "
            "(lower its learning rate), or that example's input is broken."
        )


class Trace:
    """Per-example statistics by recorded row, on disk or in memory.

    Build one with :meth:`from_arrays`, :meth:`load`, :class:`comove.Recorder` or :func:`comove.train`.

    Attributes:
        train_ids: (N,) int64.
        query_ids: (Q,) int64: all held-out examples recorded.
        validation_ids: the part of ``query_ids`` that coreset methods may aim at (all of them unless stated).
        train_labels: (N,) int64, or ``None``.
        query_labels: (Q,) int64, or ``None``.
        rows: the recorded rows in order.
        mode: ``"sweep"`` (clean evaluation passes), ``"in_pass"`` (taken from the training pass) or ``"given"``.
        manifest: everything else that was recorded about it.
    """

    owner: object = None
    """What must live as long as the trace does: the run whose folder it reads from."""

    def __init__(
        self,
        *,
        examples: Mapping[str, npt.NDArray[Any]],
        rows: Sequence[Row],
        manifest: Mapping[str, Any],
        folder: Path | None,
        arrays: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        self.train_ids: Ids = examples["train_ids"]
        self.query_ids: Ids = examples["query_ids"]
        self.validation_ids: Ids = examples["validation_ids"]
        self.train_labels: Ids | None = examples.get("train_labels")
        self.query_labels: Ids | None = examples.get("query_labels")
        self.rows = tuple(rows)
        self.manifest = dict(manifest)
        self.mode: str = manifest.get("mode") or "given"
        self.path = folder
        self._arrays = dict(arrays or {})
        for value in (*examples.values(), *self._arrays.values()):
            value.flags.writeable = False

    # --- building, saving, loading ---

    @classmethod
    def from_arrays(
        cls,
        *,
        train_losses: object,
        query_losses: object,
        train_labels: object = None,
        query_labels: object = None,
        train_ids: object = None,
        query_ids: object = None,
        validation_ids: object = None,
    ) -> Trace:
        """Make a trace from losses recorded elsewhere (JAX, Keras, a database).

        Args:
            train_losses: (T+1, N) per-example losses, row 0 before training.
            query_losses: (T+1, Q) likewise for held-out examples.
            train_labels: (N,) class indices; class-balanced CLD needs them.
            query_labels: (Q,) class indices.
            train_ids: (N,) unique int64 ids; by default 0 ... N-1.
            query_ids: (Q,) likewise.
            validation_ids: the query ids that coreset methods aim at; by default all.

        Raises:
            InputError: shapes that do not fit, repeated ids.
            NonFiniteError: a loss that is NaN or infinite.
        """
        sides: dict[str, npt.NDArray[Any]] = {}
        arrays: dict[str, npt.NDArray[Any]] = {}
        for side, losses, ids, labels in (
            ("train", train_losses, train_ids, train_labels),
            ("query", query_losses, query_ids, query_labels),
        ):
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as that
                matrix = as_real(losses, f"{side}_losses").astype(np.float32)
            if matrix.ndim != 2 or 0 in matrix.shape:
                raise InputError(f"{side}_losses must be (rows, examples), got shape {matrix.shape}.")
            width = matrix.shape[1]
            sides[f"{side}_ids"] = np.arange(width) if ids is None else as_ids(ids, f"{side}_ids")
            if labels is not None:
                sides[f"{side}_labels"] = as_labels(labels, f"{side}_labels", width)
            if sides[f"{side}_ids"].size != width:
                raise InputError(
                    f"{side}_ids has {sides[f'{side}_ids'].size} entries for {width} columns of {side}_losses."
                )
            check_losses(matrix, sides[f"{side}_ids"], side)
            arrays[f"{side}.loss"] = matrix
        if len(arrays["train.loss"]) != len(arrays["query.loss"]):
            raise InputError(
                f"train_losses has {len(arrays['train.loss'])} rows and query_losses {len(arrays['query.loss'])}; "
                "both must be recorded at the same moments."
            )
        sides["validation_ids"] = _validation_ids(validation_ids, sides["query_ids"])
        rows = [Row(t, t, float(t)) for t in range(len(arrays["train.loss"]))]
        return cls(examples=sides, rows=rows, manifest={"mode": "given"}, folder=None, arrays=arrays)

    @classmethod
    def from_csv(cls, train: str | os.PathLike[str], query: str | os.PathLike[str] | None = None) -> Trace:
        """Make a trace from CSV files of losses recorded elsewhere; the columns are those of :meth:`from_pandas`.

        Raises:
            CorruptFileError: no such file, or not a table.
            InputError: a table that :meth:`from_pandas` would refuse.
        """
        return cls.from_pandas(read_csv(train), None if query is None else read_csv(query))

    @classmethod
    def from_parquet(cls, train: str | os.PathLike[str], query: str | os.PathLike[str] | None = None) -> Trace:
        """Make a trace from Parquet files of losses recorded elsewhere; the columns are those of :meth:`from_pandas`.

        Raises:
            CorruptFileError: no such file, or not a table.
            InputError: a table that :meth:`from_pandas` would refuse.
        """
        return cls.from_pandas(read_parquet(train), None if query is None else read_parquet(query))

    @classmethod
    def from_pandas(cls, train: pd.DataFrame, query: pd.DataFrame | None = None) -> Trace:
        """Make a trace from tables of losses recorded elsewhere (JAX, Keras, a database).

        A long table has one line a loss: ``epoch`` (or ``row``), ``id``, ``loss``. A wide one has one line an example:
        ``id``, and a column for every recorded row, headed by its number. Either may have ``label`` (class indices).

        Args:
            train: a table of training and held-out examples with a column ``split`` (train, validation or query;
                validation examples are the queries that coreset methods aim at), or of training examples alone.
            query: the table of the query examples, when ``train`` has no ``split``.

        Raises:
            InputError: unknown columns, ids or losses that are no numbers, an example twice in a row, a label that
                changes, sides recorded at different moments.
            MissingExamplesError: an example without a loss in some row.
            NonFiniteError: a loss that is NaN (an empty cell) or infinite.
        """
        table = read_losses(train, query)
        given = cls.from_arrays(**table.arrays)
        rows = [Row(t, t, epoch) for t, epoch in enumerate(table.epochs)]
        return cls(examples=given.examples, rows=rows, manifest=given.manifest, folder=None, arrays=given._arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, dataset: Splits | None = None) -> Trace:
        """Open a trace folder; rows are read from their memory-mapped files when asked for.

        A trace still being recorded opens too, with the rows written so far.

        Args:
            path: the folder.
            dataset: the splits it should belong to, to be checked.

        Raises:
            CorruptFileError: not a trace, a truncated file, a missing row.
            FingerprintError: recorded from another data set than ``dataset``.
        """
        folder = Path(path)
        manifest = read_trace_manifest(folder)
        if dataset is not None:
            found = manifest.get("data_fingerprint") or "unknown"
            check_fingerprint("data set", found=found, expected=dataset.fingerprint, where=folder)
        files = sorted((folder / "rows").glob("*.safetensors"))
        rows: list[Row] = []
        seal = ""
        for index, file in enumerate(files):
            row, seal = _read_row(file, index, manifest, seal)
            rows.append(row)
        expected = manifest.get("rows")
        if expected is not None and len(rows) != expected:
            raise CorruptFileError(
                f"{folder} should hold {expected} rows, found {len(rows)}: {row_file(folder, len(rows)).name} and what "
                "follows it is missing, or should not be there. Restore the rows, or make the trace again."
            )
        if not rows:
            raise InputError(f"{folder} holds no row yet: its recording has only begun, or was stopped before row 0.")
        return cls(examples=_read_examples(folder, manifest), rows=rows, manifest=manifest, folder=folder)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a new or empty folder.

        Raises:
            StorageError: the folder cannot be written to.
            InputError: the folder already holds something: traces are frozen once written.
        """
        folder = new_folder(path)
        if not is_empty(folder):
            raise InputError(f"{folder} is not empty; a trace is frozen once written. Choose a new folder.")
        own = {key: value for key, value in self.manifest.items() if key not in ("kind", "format_version", "versions")}
        own["id"] = own.get("id") or digest(
            *self.examples.values(), *(digest(*self._row(row.index).values()) for row in self.rows)
        )
        write_examples(folder, self.examples, own)
        new_folder(folder / "rows")
        for row in self.rows:
            if row.anchor:
                write_anchor(folder, row.index, self._anchor(row.index, None), own)
            write_row(folder, row, self._row(row.index), own)
        write_manifest(folder, "trace", FORMAT_VERSION, {**own, "rows": len(self.rows)})

    @property
    def examples(self) -> dict[str, npt.NDArray[Any]]:
        """The id and label arrays by name."""
        names = ("train_ids", "query_ids", "validation_ids", "train_labels", "query_labels")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    # --- reading ---

    @property
    def fields(self) -> tuple[str, ...]:
        """The statistics recorded (``kd`` only from the second row on)."""
        names = {name.split(".", 1)[1] for name in self._names(len(self.rows) - 1)}
        return tuple(field for field in FIELDS if field in names)

    @property
    def anchors(self) -> tuple[int, ...]:
        """The rows at which penultimate features and class probabilities were kept."""
        return tuple(row.index for row in self.rows if row.anchor)

    def _names(self, index: int) -> tuple[str, ...]:
        if self.path is None:
            return tuple(self._arrays)
        return read_header(row_file(self.path, index))[0]

    def _row(self, index: int) -> dict[str, npt.NDArray[Any]]:
        if self.path is None:
            return {name: values[index] for name, values in self._arrays.items()}
        return read_arrays(row_file(self.path, index))

    def read(
        self, side: Side, field: str = "loss", *, rows: Sequence[int] | None = None, columns: slice | None = None
    ) -> npt.NDArray[Any]:
        """Return one statistic as (rows, examples): float32, or uint8 for ``correct``.

        Args:
            side: ``"train"`` or ``"query"``.
            field: one of :data:`FIELDS`.
            rows: row indices; by default every row that has the field (``kd`` has none in the first).
            columns: a range of examples, to read a trace larger than memory in blocks.

        Raises:
            InputError: the field was not recorded, no such row.
            CorruptFileError: a truncated row file.
        """
        name, wanted = self._recorded(side, field, rows)
        part = slice(None) if columns is None else columns
        if self.path is None:
            return self._arrays[name][np.asarray(wanted, dtype=np.int64)][:, part]
        width = len(range(*part.indices((self.train_ids if side == "train" else self.query_ids).size)))
        matrix = np.empty((len(wanted), width), np.uint8 if field == "correct" else np.float32)
        for out, index in zip(matrix, wanted, strict=True):
            file = row_file(self.path, index)
            values = read_arrays(file, [name], part)[name]
            if values.shape != out.shape:
                raise CorruptFileError(f"{file} holds {values.size} values of {name} for {width} examples.")
            out[:] = values
        return matrix

    def lazy(
        self, side: Side, field: str = "loss", *, rows: Sequence[int] | None = None
    ) -> LazyRows | npt.NDArray[Any]:
        """Return what :meth:`read` does without reading it: ``lazy[:, columns]`` reads these columns only.

        The functions of :mod:`comove.correlation` take it as it is, so a trace larger than memory can be scored. A
        trace in memory gives an array.

        Raises:
            InputError: the field was not recorded, no such row.
            CorruptFileError: a truncated row file.
        """
        name, wanted = self._recorded(side, field, rows)
        if self.path is None:
            return self._arrays[name][np.asarray(wanted, dtype=np.int64)]
        width = (self.train_ids if side == "train" else self.query_ids).size
        return LazyRows([row_file(self.path, index) for index in wanted], name, width)

    def _recorded(self, side: Side, field: str, rows: Sequence[int] | None) -> tuple[str, Sequence[int]]:
        """The name under which a field is stored, and the rows to read, checked."""
        if side not in ("train", "query"):
            raise InputError(f"side must be 'train' or 'query', got {side!r}.")
        name = f"{side}.{field}"
        recorded = [have.removeprefix(f"{side}.") for have in self._names(len(self.rows) - 1) if have.startswith(side)]
        if field not in recorded:
            raise InputError(
                f"The trace has no {field!r} of the {side} examples; it holds {', '.join(sorted(recorded))}. "
                "Record it by passing logits= and labels= (not only loss=) to Recorder.observe."
            )
        first = 1 if field == "kd" else 0
        wanted = range(first, len(self.rows)) if rows is None else rows
        if not wanted or not all(first <= index < len(self.rows) for index in wanted):
            raise InputError(f"rows of {field!r} must be in {first} ... {len(self.rows) - 1}, got {list(wanted)}.")
        return name, wanted

    @property
    def train_losses(self) -> Floats:
        """(T+1, N) float32."""
        return self.read("train")

    @property
    def query_losses(self) -> Floats:
        """(T+1, Q) float32."""
        return self.read("query")

    @property
    def explained_ids(self) -> Ids:
        """The queries attribution explains: all but the validation examples, or all when every one is of these."""
        rest = self.query_ids[~np.isin(self.query_ids, self.validation_ids)]
        return rest if rest.size else self.query_ids

    def _anchor(self, row: int, name: str | None) -> dict[str, npt.NDArray[Any]]:
        if row not in self.anchors:
            raise InputError(
                f"No features were kept at row {row}; kept: {list(self.anchors) or 'none'}. "
                "Choose anchor epochs when recording (Recording(anchors=...))."
            )
        assert self.path is not None
        file = anchor_file(self.path, row)
        names = _check_anchor(self.path, row, self.manifest)
        if name is not None and name not in names:
            raise InputError(f"{name} was not kept at row {row}; pass features= to Recorder.observe for that side too.")
        return read_arrays(file, None if name is None else [name])

    def features(self, side: Side, row: int | None = None) -> Floats:
        """(examples, F) penultimate features at an anchor row (by default the last)."""
        return self._anchor(self._last_anchor(row), f"{side}.features")[f"{side}.features"]

    def probabilities(self, side: Side, row: int | None = None) -> Floats:
        """(examples, C) class probabilities at an anchor row (by default the last)."""
        return self._anchor(self._last_anchor(row), f"{side}.probabilities")[f"{side}.probabilities"]

    def _last_anchor(self, row: int | None) -> int:
        return row if row is not None else (self.anchors[-1] if self.anchors else -1)

    def plot(self) -> Figure:
        """Draw the losses of training and of held-out examples by epoch: medians, and 10th to 90th percentiles."""
        return losses_figure([row.epoch for row in self.rows], self.train_losses, self.query_losses)

    def held_out_counts(self) -> dict[str, int]:
        """Return how many validation examples and queries there are, counted as splits count them."""
        validation, every = self.validation_ids.size, self.query_ids.size
        return {"query": every} if validation == every else {"validation": validation, "query": every - validation}

    def _repr_html_(self) -> str:
        facts = {"rows": len(self.rows), "last epoch": self.rows[-1].epoch, "mode": self.mode}
        facts |= {"train": self.train_ids.size, **self.held_out_counts()}
        kept = ", ".join(f"{self.rows[row].epoch:g}" for row in self.anchors)
        return html_facts("Trace", {**facts, "fields": ", ".join(self.fields), "features kept at epochs": kept or None})

    def __repr__(self) -> str:
        held_out = ", ".join(f"{count:,} {name}" for name, count in self.held_out_counts().items())
        return (
            f"Trace({len(self.rows)} rows, {self.train_ids.size:,} train, {held_out}, "
            f"mode {self.mode}, fields {', '.join(self.fields) or 'none'})"
        )


# --- files -------------------------------------------------------------------------------------------------------


def row_file(folder: Path, index: int) -> Path:
    """Return where row ``index`` of the trace in ``folder`` lies."""
    return folder / "rows" / f"{index:06d}.safetensors"


def anchor_file(folder: Path, index: int) -> Path:
    """Return where the features kept at row ``index`` of the trace in ``folder`` lie."""
    return folder / "anchors" / f"{index:06d}.safetensors"


def read_trace_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a trace, its entries checked.

    Raises:
        CorruptFileError: not a trace, or not as it was written.
    """
    manifest = open_manifest(folder, "trace", FORMAT_VERSION)
    own = {"id": str} if manifest["format_version"] > 1 else {}
    kinds = {"rows": int, "mode": str, "data_fingerprint": str, "classes": list[str], "run_fingerprint": str}
    entries(manifest, folder / "manifest.json", own, kinds)
    return manifest


def trace_damage(folder: Path) -> list[Path]:
    """Read all files of a trace, and return those that are damaged, missing, or not its own."""
    try:
        manifest = read_trace_manifest(folder)
    except CorruptFileError:
        return [folder / "manifest.json"]
    found: dict[Path, None] = {}

    @contextmanager
    def noting(file: Path) -> Iterator[None]:
        try:
            yield
        except CorruptFileError:
            found[file] = None

    names = (file.stem for file in (folder / "rows").glob("*.safetensors"))
    last = max((int(name) for name in names if name.isdecimal()), default=-1)
    seal: str | None = ""
    for index in range(max(last + 1, manifest.get("rows") or 0)):
        before, seal = seal, None
        with noting(file := row_file(folder, index)):
            row, seal = _read_row(file, index, manifest, before)
            check_file(file)
            if row.anchor:
                with noting(anchor := anchor_file(folder, index)):
                    _check_anchor(folder, index, manifest)
                    check_file(anchor)
    if last >= 0:
        with noting(folder / "examples.safetensors"):
            _read_examples(folder, manifest)
    return list(found)


def write_examples(folder: Path, examples: Mapping[str, npt.NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Write ids and labels atomically, in the narrowest integers that hold them: a long file of losses is 4 N bytes."""
    narrow = {name: _narrow(array) for name, array in examples.items()}
    write_arrays(folder / "examples.safetensors", narrow, {"trace": manifest["id"]})


def write_anchor(folder: Path, index: int, arrays: Mapping[str, npt.NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Write the features and probabilities kept at a row atomically."""
    new_folder(folder / "anchors")
    write_arrays(anchor_file(folder, index), arrays, {"trace": manifest["id"], "row": index})


def _narrow(whole: npt.NDArray[Any]) -> npt.NDArray[Any]:
    ends = (int(whole.min()), int(whole.max())) if whole.size else (0, 0)
    fits = (kind for kind in (np.int16, np.int32) if np.iinfo(kind).min <= ends[0] <= ends[1] <= np.iinfo(kind).max)
    return whole.astype(next(fits, np.int64))


def _read_examples(folder: Path, manifest: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    file = folder / "examples.safetensors"
    examples = read_arrays(file)
    _check_place(read_header(file)[1], file, None, manifest)
    absent = {"train_ids", "query_ids", "validation_ids"} - set(examples)
    if absent:
        raise CorruptFileError(f"{file} lacks {', '.join(sorted(absent))}; restore it or record again.")
    sizes = {side: examples[f"{side}_ids"].shape for side in ("train", "query", "validation")}
    for name, array in examples.items():
        if array.dtype.kind != "i" or array.ndim != 1 or sizes.get(name.split("_")[0]) != array.shape:
            raise CorruptFileError(f"{file}: {name} has type {array.dtype} and shape {array.shape}, not one id each.")
    return {name: array.astype(np.int64) for name, array in examples.items()}


def write_row(folder: Path, row: Row, arrays: Mapping[str, npt.NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Write one row file atomically, after the row before it and its anchor."""
    place = {"trace": manifest["id"], "row": row.index, "step": row.step, "epoch": row.epoch, "filled": row.filled}
    before = read_header(row_file(folder, row.index - 1))[1].seal if row.index else ""
    anchor = read_header(anchor_file(folder, row.index))[1].seal if row.anchor else ""
    write_arrays(row_file(folder, row.index), arrays, {**place, "before": before, "anchor": anchor})


def _read_row(file: Path, index: int, manifest: Mapping[str, Any], before: str | None) -> tuple[Row, str]:
    """A row and its checksum; ``before`` is that of the row before it, ``None`` where it is not known."""
    names, header = read_header(file)
    if file.stem != f"{index:06d}":
        raise CorruptFileError(f"Row {index} of the trace is missing: {file.parent} goes on with {file.name}.")
    _check_place(header, file, index, manifest)
    found = entries(header, file, {"step": int, "epoch": float}, {"filled": int, "anchor": str, "before": str})
    if "train.loss" not in names or min(found["step"], found["epoch"]) < 0:
        raise CorruptFileError(f"{file} is not row {index} of a trace.")
    if found["before"] and before is not None and found["before"] != before:
        raise CorruptFileError(
            f"{file} was written after another row than {index - 1:06d}{file.suffix} beside it: one of the two belongs "
            "to another trace or run. Restore it, or run the command that made them again."
        )
    # Earlier versions did not note whether there is an anchor.
    anchor = anchor_file(file.parent.parent, index).exists() if found["anchor"] is None else bool(found["anchor"])
    return Row(index, found["step"], float(found["epoch"]), found["filled"] or 0, anchor), header.seal


def _check_anchor(folder: Path, index: int, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Check that the file of features is the one that its row was written with; the names of its arrays."""
    file = anchor_file(folder, index)
    names, header = read_header(file)
    _check_place(header, file, index, manifest)
    expected = entries(read_header(row_file(folder, index))[1], row_file(folder, index), {}, {"anchor": str})["anchor"]
    if expected and expected != header.seal:
        raise CorruptFileError(f"{file} holds the features of another trace or run: restore it, or make it again.")
    return names


def _check_place(header: Mapping[str, Any], file: Path, index: int | None, manifest: Mapping[str, Any]) -> None:
    """Check that a file is of this trace, and what it is called."""
    trace, own = header.get("trace"), manifest.get("id")
    if trace != own and (manifest["format_version"] > 1 or trace is not None):
        raise CorruptFileError(
            f"{file} belongs to another trace or run ({trace}, not {own}): restore this trace's own file, or run the "
            "command that made it again."
        )
    if header.get("row", index) != index:
        raise CorruptFileError(
            f"{file} holds row {header.get('row')!r}, not row {index}: files were renamed or swapped. Restore their "
            "names, or run the command that made them again."
        )


def _validation_ids(ids: object, query_ids: Ids) -> Ids:
    if ids is None:
        return query_ids.copy()
    chosen = as_ids(ids, "validation_ids")
    positions_of(chosen, query_ids, "validation_ids (they must be among query_ids)")
    return chosen
