"""The recorder: three lines in anybody's training loop write a trace.

::

    recorder = comove.Recorder("runs/a/trace", train_ids=train_ids, query_ids=query_ids)
    ...  recorder.observe(ids, logits=logits, labels=labels)      # every batch
    ...  recorder.end_epoch()                                     # every epoch: one row on disk
    trace = recorder.finish()
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from comove.checks import as_ids, as_labels, as_tensor, as_whole, given_ids, real_number, whole_number
from comove.data import IdIndex, Ids
from comove.errors import InputError, InputTypeError, MissingExamplesError, NonFiniteError, some
from comove.store import (
    MANIFEST,
    check_fingerprint,
    digest,
    new_folder,
    read_header,
    write_manifest,
)
from comove.trace.statistics import kd, statistics
from comove.trace.trace import (
    FIELDS,
    FORMAT_VERSION,
    Row,
    Side,
    Trace,
    anchor_file,
    read_trace_manifest,
    row_file,
    write_anchor,
    write_examples,
    write_row,
)

__all__ = ["Recorder"]

Missing = Literal["error", "previous"]


class _Side:
    """The buffers of one side (train or query) for the row being recorded."""

    def __init__(self, name: Side, ids: Ids, labels: Ids | None) -> None:
        self.name, self.ids = name, ids
        self.index = IdIndex(ids, f"{name} ids")
        self.labels = None if labels is None else torch.from_numpy(labels.copy())
        self.buffers: dict[str, torch.Tensor] = {}
        self.seen = torch.zeros(ids.size, dtype=torch.bool)
        self.relabelled = torch.zeros(ids.size, dtype=torch.bool)
        self.previous: dict[str, torch.Tensor] = {}

    def write(self, name: str, positions: torch.Tensor, values: torch.Tensor) -> None:
        if name not in self.buffers:
            shape = (self.ids.size, *values.shape[1:])
            self.buffers[name] = torch.zeros(shape, dtype=values.dtype, device=values.device)
        elif self.buffers[name].device != values.device:
            self.buffers[name] = self.buffers[name].to(values.device)
        self.buffers[name][positions] = values

    def require_same(self, names: set[str]) -> None:
        """Refuse a batch that brings other statistics than the batches before it: the gaps would be read as zeros."""
        if self.buffers and names != set(self.buffers):
            raise InputError(
                f"Every batch of a row must bring the same: the {self.name} batches before had "
                f"{', '.join(sorted(self.buffers))}; this one has {', '.join(sorted(names))}. Pass logits=, loss= and "
                "features= alike for all batches between two rows."
            )

    def mark(self, positions: torch.Tensor, labels: torch.Tensor | None) -> None:
        device = positions.device
        if self.seen.device != device:
            self.seen, self.relabelled = self.seen.to(device), self.relabelled.to(device)
        if labels is not None:
            if self.labels is None:
                self.labels = torch.full((self.ids.size,), -1, dtype=torch.int64)
            self.labels = self.labels.to(device)
            known = self.labels[positions]
            self.relabelled[positions] |= (known >= 0) & (known != labels)
            self.labels[positions] = torch.where(known >= 0, known, labels)
        self.seen[positions] = True


class Recorder:
    """Writes a :class:`comove.Trace` from any training loop, one row at a time.

    Observe every training and every query example once a row (a second observation replaces the first), then close
    the row with :meth:`end_epoch`. For a ``sweep`` trace observe in evaluation mode, first before training (row 0) and
    then after each epoch; for an ``in_pass`` trace observe the batches of the training pass as they come.

    Args:
        path: a new folder for the trace.
        train_ids: (N,) unique int64 ids.
        query_ids: (Q,) unique int64 ids of held-out examples.
        train_labels: (N,) class indices; may be left to :meth:`observe`.
        query_labels: (Q,) likewise.
        validation_ids: the query ids that coreset methods may aim at; by default all.
        mode: ``"sweep"`` or ``"in_pass"``, kept with the trace.
        fields: what to keep of :data:`comove.trace.FIELDS`; by default all that the observations allow. Leaving out
            ``kd`` saves one (N, C) buffer.
        missing: what to do with an example not observed in a row: ``"error"``, or ``"previous"`` (its last values,
            which count as "no change"; the number filled is kept in the row's header).
        classes: class names, kept in the manifest.
        data_fingerprint: of the data set, checked when the trace is opened for one.
        notes: JSON values kept in the manifest.
        resume: go on after the rows already in ``path``; see :meth:`load_state_dict`.

    Raises:
        InputError: repeated ids, unknown fields, a folder that already holds a trace.
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        train_ids: object,
        query_ids: object,
        train_labels: object = None,
        query_labels: object = None,
        validation_ids: object = None,
        mode: Literal["sweep", "in_pass"] = "sweep",
        fields: Iterable[str] | None = None,
        missing: Missing = "error",
        classes: Iterable[str] | None = None,
        data_fingerprint: str | None = None,
        notes: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.fields = tuple(FIELDS if fields is None else fields)
        unknown = set(self.fields) - set(FIELDS)
        if unknown or "loss" not in self.fields:
            raise InputError(f"fields must contain 'loss' and be among {', '.join(FIELDS)}; got {list(self.fields)}.")
        if mode not in ("sweep", "in_pass") or missing not in ("error", "previous"):
            raise InputError(f"mode must be sweep or in_pass, missing error or previous; got {mode!r}, {missing!r}.")
        self.mode, self.missing = mode, missing
        self._sides: dict[Side, _Side] = {
            "train": _side("train", train_ids, train_labels),
            "query": _side("query", query_ids, query_labels),
        }
        self._overlap = np.intersect1d(self._sides["train"].ids, self._sides["query"].ids)
        query_ids_Q = self._sides["query"].ids
        self._validation_ids = query_ids_Q if validation_ids is None else as_ids(validation_ids, "validation_ids")
        self._sides["query"].index.positions(self._validation_ids)
        self.path = new_folder(path)
        self._manifest = {
            "mode": mode,
            "missing": missing,
            "classes": None if classes is None else list(classes),
            "data_fingerprint": data_fingerprint,
            **dict(notes or {}),
        }
        ids = (self._sides["train"].ids, query_ids_Q, self._validation_ids)
        self._manifest["id"] = self._manifest.get("run_fingerprint") or digest(
            self._manifest, ",".join(self.fields), *ids
        )
        self._format = FORMAT_VERSION
        self.rows: list[Row] = self._existing_rows(resume)
        self._described = False
        self._finished = False

    def _existing_rows(self, resume: bool) -> list[Row]:
        existing = (self.path / MANIFEST).exists()
        if existing and not resume:
            raise InputError(f"{self.path} already holds a trace; choose a new folder, or pass resume=True to go on.")
        rows: list[Row] = []
        if existing:
            found = read_trace_manifest(self.path)
            self._require_same_manifest(found)
            # A trace that an earlier version began has no id, and goes on without.
            self._manifest["id"], self._format = found.get("id"), found["format_version"]
            if any((self.path / "rows").glob("*.safetensors")):
                trace = Trace.load(self.path)
                self._take_examples(trace)
                rows = list(trace.rows)
        write_manifest(self.path, "trace", self._format, {**self._manifest, "rows": None})
        new_folder(self.path / "rows")
        return rows

    def _require_same_manifest(self, found: Mapping[str, Any]) -> None:
        before, now = found.get("data_fingerprint"), self._manifest["data_fingerprint"]
        check_fingerprint("data set", found=str(before), expected=str(now), where=self.path)
        if found.get("mode") != self.mode:
            raise InputError(f"The trace in {self.path} has mode {found.get('mode')!r}, not {self.mode!r}.")

    def _take_examples(self, trace: Trace) -> None:
        for name, side in self._sides.items():
            if not np.array_equal(trace.examples[f"{name}_ids"], side.ids):
                raise InputError(f"The {name} ids of the trace in {self.path} are not those given; cannot resume it.")
            labels = trace.examples.get(f"{name}_labels")
            if labels is not None and side.labels is None:
                side.labels = torch.from_numpy(labels.copy())

    # --- observing ---

    def observe(
        self,
        ids: object,
        *,
        logits: torch.Tensor | npt.NDArray[Any] | None = None,
        labels: torch.Tensor | npt.ArrayLike | None = None,
        loss: object = None,
        features: torch.Tensor | npt.NDArray[Any] | None = None,
        side: Side | None = None,
    ) -> None:
        """Take in one batch, of training or of query examples or of both; tensors, or arrays of another framework.

        Args:
            ids: (B,) integer ids.
            logits: (B, C) model outputs; with ``labels`` every statistic is computed from them.
            labels: (B,) class indices.
            loss: (B,) per-example losses, when there are no logits (language models, regression).
            features: (B, F) penultimate features, to be kept with the class probabilities as an anchor of this row.
            side: needed only when train and query ids overlap.

        Raises:
            InputError: unknown ids, shapes that do not fit, neither logits with labels nor a loss, other statistics
            than in the row's batches before.
        """
        logits, loss, features = (
            _tensor(value, what) for value, what in ((logits, "logits"), (loss, "loss"), (features, "features"))
        )
        labels = None if labels is None else _classes(labels)
        values = self._values(logits, labels, loss, features)
        device, size = values["loss"].device, len(values["loss"])
        wanted = given_ids(ids)
        if wanted.shape != (size,):
            raise InputError(f"ids has shape {wanted.shape} for a batch of {size} examples.")
        if labels is not None and labels.shape != (size,):
            raise InputError(f"labels has shape {tuple(labels.shape)} for a batch of {size} examples.")
        found = self._locate(wanted, side)
        for name, _, _ in found:
            self._sides[name].require_same(set(values))
        for name, places, rows in found:
            target = self._sides[name]
            places, rows = _last_of_each(places, rows)
            positions = torch.from_numpy(places).to(device)
            part = slice(None) if rows is None else torch.from_numpy(rows).to(device)
            for key, value in values.items():
                target.write(key, positions, value[part])
            target.mark(positions, None if labels is None else labels.to(device)[part])

    def _values(
        self,
        logits: torch.Tensor | None,
        labels: torch.Tensor | None,
        loss: torch.Tensor | None,
        features: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Return what a batch brings: the fields, and where they are needed ``probabilities`` and ``features``."""
        if logits is not None and loss is not None:
            raise InputError("observe takes logits= and labels=, or loss=, not both: the loss follows from the logits.")
        if logits is not None and labels is not None:
            computed, probabilities = statistics(logits, labels)
            values = {name: value for name, value in computed.items() if name in self.fields}
            if "kd" in self.fields or features is not None:
                values["probabilities"] = probabilities
            if features is not None:
                if features.ndim != 2 or len(features) != len(logits):
                    raise InputError(f"features must be ({len(logits)}, F), got {tuple(features.shape)}.")
                values["features"] = features.detach().to(logits.device, torch.float32)
            return values
        if loss is None:
            raise InputError("observe needs logits= and labels=, or loss=.")
        if features is not None:
            raise InputError("features= needs logits= and labels= beside it: class probabilities are kept with it.")
        per_example = loss.detach().to(torch.float32)
        if per_example.ndim != 1:
            raise InputError(
                f"loss must be per example, (B,), got shape {tuple(per_example.shape)}; use reduction='none'."
            )
        return {"loss": per_example}

    def _locate(
        self, ids: npt.NDArray[Any], side: Side | None
    ) -> list[tuple[Side, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]]:
        if side is not None and side not in self._sides:
            raise InputError(f"side must be 'train' or 'query', got {side!r}.")
        if side is not None:
            return [(side, self._sides[side].index.positions(ids), None)]
        if self._overlap.size and np.isin(ids, self._overlap).any():
            raise InputError(f"ids {some(self._overlap)} are both train and query ids: say side='train' or 'query'.")
        found = []
        known = np.zeros(ids.shape, bool)
        for name, target in self._sides.items():
            places, here = target.index.find(ids)
            if here.any():
                found.append((name, places[here], None if here.all() else np.flatnonzero(here)))
                known |= here
        if not known.all():
            raise InputError(
                f"Unknown ids: {some(ids[~known].tolist())} are neither train nor query ids. "
                "Are they positions in a shuffled subset? Pass the examples' stable ids."
            )
        return found

    # --- closing rows ---

    def end_epoch(self, *, step: int | None = None) -> Row:
        """Close the row of this epoch and write it; the first row of a sweep trace is epoch 0, before training."""
        if self.rows:
            return self.end_row(epoch=math.floor(self.rows[-1].epoch) + 1, step=step)
        return self.end_row(epoch=0.0 if self.mode == "sweep" else 1.0, step=step)

    def end_row(self, *, epoch: float, step: int | None = None) -> Row:
        """Close a row at any moment: ``epoch`` passes over the data, ``step`` optimizer steps.

        Raises:
            MissingExamplesError: examples were not observed (``drop_last``?) and ``missing="error"``.
            NonFiniteError: a loss is NaN or infinite.
            StorageError: the row cannot be written; earlier rows are safe, and the row can be closed again.
        """
        if self._finished:
            raise InputError(f"The trace in {self.path} is finished and frozen; record into a new folder.")
        at = len(self.rows) if step is None else whole_number(step, "step")
        row = Row(len(self.rows), at, real_number(epoch, "epoch"))
        row = replace(row, filled=sum(self._fill(side, row) for side in self._sides.values()))
        self._require_fields_of_before(row)
        arrays, anchors = self._row_arrays(row)
        row = replace(row, anchor=bool(anchors))
        if not self._described:
            self._describe()
        if anchors:
            write_anchor(self.path, row.index, anchors, self._manifest)
        write_row(self.path, row, arrays, self._manifest)
        self.rows.append(row)
        for side in self._sides.values():
            side.previous = {name: value for name, value in side.buffers.items() if self._outlives_row(name)}
            side.buffers = {}
            side.seen = torch.zeros_like(side.seen)
        return row

    def _fill(self, side: _Side, row: Row) -> int:
        absent = (~side.seen).nonzero()[:, 0]
        if absent.numel() == 0:
            return 0
        ids = side.ids[absent.cpu().numpy()].tolist()
        if self.missing == "error" or not side.previous:
            raise MissingExamplesError(
                f"{len(ids)} of {side.ids.size} {side.name} examples were not observed in row {row.index}: ids "
                f"{some(ids)}. Does the loader drop its last batch (drop_last=True) or skip examples? Observe all of "
                "them, or pass missing='previous' to repeat their last values (possible from the second row on)."
            )
        if "features" in side.buffers:
            raise MissingExamplesError(
                f"Features are not repeated from an earlier row: {len(ids)} {side.name} examples were not observed in "
                f"row {row.index}, where features are kept: ids {some(ids)}. Observe all of them in this row."
            )
        side.require_same(set(side.previous))
        for name in list(side.previous):
            side.write(name, absent, side.previous[name].to(absent.device)[absent])
        return len(ids)

    def _outlives_row(self, name: str) -> bool:
        """Tell whether the next row needs these values: kd compares probabilities, a fill repeats all but features."""
        if name == "probabilities":
            return "kd" in self.fields
        return self.missing == "previous" and name != "features"

    def _require_fields_of_before(self, row: Row) -> None:
        if not self.rows:
            return
        before = set(read_header(row_file(self.path, self.rows[-1].index))[0])
        now = {
            f"{name}.{field}" for name, side in self._sides.items() for field in self.fields if field in side.buffers
        }
        differing = sorted(name for name in before ^ now if not name.endswith(".kd"))
        if differing:
            raise InputError(
                f"Every row must hold the same statistics: {', '.join(differing)} "
                f"{'is' if len(differing) == 1 else 'are'} in row {row.index} or in the row before, not in both. "
                "Observe all rows alike, with logits= and labels= or with loss=."
            )

    def _row_arrays(self, row: Row) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        arrays: dict[str, npt.NDArray[Any]] = {}
        anchors: dict[str, npt.NDArray[Any]] = {}
        for name, side in self._sides.items():
            self._check(side, row)
            values = {field: side.buffers[field] for field in self.fields if field in side.buffers}
            if self.rows and "kd" in self.fields and "probabilities" in side.buffers:
                if "probabilities" not in side.previous:
                    raise InputError(
                        "kd compares with the row before, whose probabilities are gone: after a restart pass the saved "
                        "state to load_state_dict, or leave 'kd' out of fields."
                    )
                now = side.buffers["probabilities"]
                values["kd"] = kd(now, side.previous["probabilities"].to(now.device))
            arrays |= {f"{name}.{field}": value.cpu().numpy() for field, value in values.items()}
            if "features" in side.buffers:
                anchors |= {f"{name}.{key}": side.buffers[key].cpu().numpy() for key in ("features", "probabilities")}
        return arrays, anchors

    def _check(self, side: _Side, row: Row) -> None:
        bad = (~torch.isfinite(side.buffers["loss"])).nonzero()[:, 0]
        if bad.numel():
            ids = side.ids[bad.cpu().numpy()].tolist()
            cause = "The run probably diverged (lower its learning rate)" if row.index else "Look at these inputs"
            raise NonFiniteError(
                f"Losses must be finite: in row {row.index} (epoch {row.epoch:g}) {len(ids)} {side.name} examples have "
                f"a NaN or infinite loss: ids {some(ids)}. {cause}, or these labels are out of range. The rows before "
                "are kept."
            )
        if bool(side.relabelled.any()):
            ids = side.ids[side.relabelled.nonzero()[:, 0].cpu().numpy()].tolist()
            raise InputError(
                f"{len(ids)} {side.name} examples were observed with another label than before: ids {some(ids)}. "
                "Ids must belong to examples, not to positions in a batch or a shuffled subset."
            )

    def _describe(self) -> None:
        examples: dict[str, npt.NDArray[Any]] = {"validation_ids": self._validation_ids}
        for name, side in self._sides.items():
            examples[f"{name}_ids"] = side.ids
            if side.labels is not None and bool((side.labels >= 0).all()):
                examples[f"{name}_labels"] = side.labels.cpu().numpy()
        write_examples(self.path, examples, self._manifest)
        self._described = True

    def finish(self) -> Trace:
        """Freeze the trace (its number of rows goes into the manifest) and return it."""
        if not self.rows:
            raise InputError("Nothing was recorded: call observe and end_epoch before finish.")
        if any(bool(side.seen.any()) for side in self._sides.values()):
            raise InputError("Examples were observed after the last row was closed: call end_epoch before finish.")
        self._describe()
        write_manifest(self.path, "trace", self._format, {**self._manifest, "rows": len(self.rows)})
        self._finished = True
        return Trace.load(self.path)

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep to go on without losing or doubling a row: tensors and ``rows``."""
        state: dict[str, Any] = {"rows": len(self.rows)}
        for name, side in self._sides.items():
            for group in ("buffers", "previous"):
                for key, value in getattr(side, group).items():
                    state[f"{name}.{group}.{key}"] = _copied(value)
            for key in ("seen", "relabelled", "labels"):
                if (value := getattr(side, key)) is not None:
                    state[f"{name}.{key}"] = _copied(value)
        return state

    EMPTY_STATE: ClassVar[Mapping[str, Any]] = {"rows": 0}
    """The state before anything was observed."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; rows written after it are deleted (they will be recorded again)."""
        rows = int(state["rows"])
        if rows > len(self.rows):
            raise InputError(f"The state has {rows} rows, but {self.path} holds {len(self.rows)}: not its trace.")
        for name, side in self._sides.items():
            sizes = {len(value) for key, value in state.items() if key.startswith(f"{name}.")}
            if sizes - {side.ids.size}:
                raise InputError(f"The state is of {sorted(sizes)} {name} examples, this recorder has {side.ids.size}.")
        for row in reversed(self.rows[rows:]):  # from the end, so that a kill in between leaves a whole trace
            for file in (row_file(self.path, row.index), anchor_file(self.path, row.index)):  # the row names its anchor
                file.unlink(missing_ok=True)
        self.rows = self.rows[:rows]
        for name, side in self._sides.items():
            for group in ("buffers", "previous"):
                start = f"{name}.{group}."
                kept = {k.removeprefix(start): _copied(v) for k, v in state.items() if k.startswith(start)}
                setattr(side, group, kept)
            for key in ("seen", "relabelled"):
                setattr(side, key, _copied(state.get(f"{name}.{key}", torch.zeros(side.ids.size, dtype=torch.bool))))
            if f"{name}.labels" in state:
                side.labels = _copied(state[f"{name}.labels"])


def _side(name: Side, ids: object, labels: object) -> _Side:
    known = as_ids(ids, f"{name}_ids")
    if known.size == 0:
        raise InputError(f"{name}_ids must name at least one example.")
    return _Side(name, known, None if labels is None else as_labels(labels, f"{name}_labels", known.size))


def _last_of_each(
    places: npt.NDArray[np.int64], rows: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Keep the last of repeated places: which of several writes to one place wins is not defined in torch."""
    unique, from_end = np.unique(places[::-1], return_index=True)
    if unique.size == places.size:
        return places, rows
    last = places.size - 1 - from_end
    return unique, last if rows is None else rows[last]


def _tensor(value: object, what: str) -> torch.Tensor | None:
    if value is None:
        return None
    tensor = as_tensor(value, what)
    if tensor.dtype is torch.bool:
        raise InputTypeError(f"{what} must be real numbers, got booleans; cast them first if numbers are meant.")
    return tensor if tensor.is_floating_point() else tensor.double()


def _classes(labels: object) -> torch.Tensor:
    """Labels of a batch on their device, as int64; unsigned ones too large for that are refused."""
    if isinstance(labels, torch.Tensor) and labels.dtype in (torch.int64, torch.int32, torch.int16, torch.int8):
        return as_tensor(labels, "labels").long()
    return torch.from_numpy(np.array(as_whole(labels, "labels")))


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU: buffers go on being written in place."""
    return tensor.detach().to("cpu", copy=True)
