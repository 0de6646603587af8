"""What selectors read: statistics by epoch, and features at an anchor; where a trace lacks them, what to record.

Shape legend: N train examples, V validation examples, T epochs, F features, C classes, B a block of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.checks import whole_number
from comove.data import Ids, positions_of
from comove.errors import InputError, some
from comove.trace import Trace
from comove.training.sources import Source

__all__ = [
    "Anchor",
    "check_first",
    "check_validation_classes",
    "check_window",
    "epoch_rows",
    "mean_over_epochs",
    "needs_anchor",
    "needs_features",
    "needs_field",
    "needs_validation",
    "over_epochs",
]

BLOCK_BYTES = 64 << 20
"""Statistics are read and worked on in blocks of examples of about this size, so memory does not grow with N x T."""


class Anchor(NamedTuple):
    """Penultimate features and class probabilities after one epoch."""

    features_NF: npt.NDArray[np.float32]
    probabilities_NC: npt.NDArray[np.float32]


# --- statistics by epoch -----------------------------------------------------------------------------------------


def check_first(first: int | None, who: str, option: str = "first") -> None:
    """Check an option that counts epochs (``None``: all).

    Raises:
        InputError: not a whole number from 1 on.
    """
    if first is not None:
        whole_number(first, f"{who}: {option}", 1, unit="a number of epochs", error=InputError)


def epoch_rows(trace: Trace, who: str, first: int | None = None, *, at_least: int = 1) -> tuple[int, ...]:
    """Return the rows at the ends of epochs 1, 2, ... in order; row 0 and rows within epochs are left out.

    Args:
        trace: the trace.
        who: the method's name, for messages.
        first: take the first so many epochs at most (all of a shorter run).
        at_least: how many the method cannot do without.

    Raises:
        InputError: fewer than ``at_least``; both numbers are shown.
    """
    rows = tuple(row.index for row in trace.rows if row.epoch > 0 and row.epoch.is_integer())[:first]
    if len(rows) < at_least:
        recorded = "" if first is None else f" (first={first})"
        raise InputError(
            f"{who} needs at least {at_least} recorded epochs, found {len(rows)}{recorded}; train longer, or choose a "
            "shorter window."
        )
    return rows


def check_window(window: int, first: int | None, who: str, least: int = 2) -> None:
    """Check the options of a method that slides a window over the first epochs, when it is built.

    Raises:
        InputError: a window below ``least`` or longer than ``first``.
    """
    check_first(first, who)
    whole_number(window, f"{who}: window", least, unit="a number of epochs", error=InputError)
    if first is not None and window > first:
        raise InputError(
            f"{who}: a window of {window} epochs does not fit into the first {first}; choose a shorter one."
        )


def _require_field(trace: Trace, field: str, who: str) -> None:
    if field not in trace.fields:
        record = (
            f"Record it: comove.train(..., recording=Recording(fields=('loss', {field!r}))) or Recorder.observe(ids, "
            "logits=, labels=)."
        )
        raise InputError(
            f"{who} needs {field!r} of the training examples by epoch; this trace holds {some(trace.fields)}. "
            + (_elsewhere(trace) or record)
        )


def _elsewhere(trace: Trace) -> str:
    """What to do where the trace is the replay of a model trained elsewhere; nothing where it was recorded."""
    task = trace.manifest.get("task")
    if task is None:
        return ""
    return (
        f"It was replayed from checkpoints of a model trained elsewhere ({task}): a replay computes such values for "
        "classifiers alone, features and probabilities where an nn.Linear gives the logits, at the last checkpoint. "
        "Choose a method that reads losses (cld, random), or pass a trace recorded in training, adopt(..., trace=)."
    )


def needs_field(trace: Trace, field: str, who: str, rows: Sequence[int] | None = None) -> npt.NDArray[Any]:
    """Return one statistic of the training examples, (T, N), by default at the end of every epoch.

    For many examples prefer :func:`over_epochs`, which holds a block at a time.

    Raises:
        InputError: the field was not recorded (says how to), no epoch was.
    """
    _require_field(trace, field, who)
    return trace.read("train", field, rows=epoch_rows(trace, who) if rows is None else rows)


def over_epochs(
    trace: Trace,
    field: str,
    function: Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]],
    who: str,
    rows: Sequence[int],
) -> npt.NDArray[np.float64]:
    """Return ``function`` of one statistic, block by block: (T, B) -> (..., B), joined to (..., N).

    Raises:
        InputError: the field was not recorded (says how to).
    """
    _require_field(trace, field, who)
    blocks = _blocks(trace.train_ids.size, len(rows))
    return np.concatenate([function(trace.read("train", field, rows=rows, columns=part)) for part in blocks], axis=-1)


def mean_over_epochs(
    sources: Sequence[Source],
    field: str,
    function: Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]],
    who: str,
    first: int | None = None,
    epoch: int | None = None,
    *,
    at_least: int = 1,
) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Return the mean over runs of :func:`over_epochs`, and how many epochs of each run were read.

    Args:
        sources: the runs.
        field: the statistic.
        function: of (T, B), as for :func:`over_epochs`.
        who: the method's name, for messages.
        first: read the first so many epochs at most.
        epoch: read this one alone instead.
        at_least: how many epochs the method cannot do without.

    Raises:
        InputError: the field, or that epoch, was not recorded; fewer than ``at_least`` epochs.
    """
    total, epochs = np.zeros(()), []
    for source in sources:
        rows = epoch_rows(source.trace, who, first if epoch is None else None, at_least=at_least)
        if epoch is not None:
            rows = tuple(row for row in rows if source.trace.rows[row].epoch == epoch)
            if not rows:
                raise InputError(f"{who}: epoch {epoch} was not recorded; the last is {source.trace.rows[-1].epoch:g}.")
        total = total + over_epochs(source.trace, field, function, who, rows)
        epochs.append(len(rows))
    return total / len(sources), epochs


def _blocks(n: int, rows: int) -> Iterator[slice]:
    width = max(1, BLOCK_BYTES // (8 * rows))
    return (slice(start, min(start + width, n)) for start in range(0, n, width))


# --- anchors -----------------------------------------------------------------------------------------------------


def needs_anchor(source: Source, epoch: int | None, who: str, side: Literal["train", "validation"] = "train") -> Anchor:
    """Return penultimate features (N, F) and class probabilities (N, C) of the train or the validation examples.

    Args:
        source: where from.
        epoch: the epoch at whose end they were kept; ``None`` for the last that were.
        who: the method's name, for messages.
        side: ``"validation"`` gives those of :attr:`comove.Trace.validation_ids`, in that order.

    Raises:
        InputError: none were kept at that epoch; says what to record, and at which epochs some were kept.
    """
    trace, row = source.trace, _anchor_row(source.trace, epoch, who)
    if side == "train":
        return Anchor(trace.features("train", row), trace.probabilities("train", row))
    columns = positions_of(trace.validation_ids, trace.query_ids, "validation ids")
    return Anchor(trace.features("query", row)[columns], trace.probabilities("query", row)[columns])


def needs_features(source: Source, epoch: int | None, who: str) -> npt.NDArray[np.float32]:
    """Return the train examples' features (N, F) alone; arguments and errors as of :func:`needs_anchor`."""
    return source.trace.features("train", _anchor_row(source.trace, epoch, who))


def _anchor_row(trace: Trace, epoch: int | None, who: str) -> int:
    kept = {trace.rows[row].epoch: row for row in trace.anchors}
    wanted = epoch if epoch is not None else max(kept, default=-1)
    if wanted in kept:
        return kept[wanted]
    at = f"at epoch {epoch}" if epoch is not None else "at some epoch"
    have = f"kept were epochs {some(f'{e:g}' for e in sorted(kept))}" if kept else "none were kept"
    record = (
        "Record them: comove.train(..., recording="
        f"Recording(anchors=({'-1,' if epoch is None else f'{epoch}, -1'}))), or Recorder.observe(..., features=)"
        + (", or choose a kept epoch (epoch=)." if kept else ".")
    )
    raise InputError(f"{who} needs features and class probabilities {at}; {have}. {_elsewhere(trace) or record}")


def needs_validation(source: Source, who: str) -> tuple[npt.NDArray[np.int64], Ids]:
    """Return where the validation examples stand among the queries (V,), and their labels (V,).

    Raises:
        InputError: the trace has no query labels.
    """
    trace = source.trace
    if trace.query_labels is None:
        raise InputError(f"{who} needs the validation labels; pass query_labels= when recording.")
    columns = positions_of(trace.validation_ids, trace.query_ids, "validation ids")
    return columns, trace.query_labels[columns]


def check_validation_classes(source: Source, validation_labels: Ids, who: str) -> None:
    """Raise where a class that is trained on has no validation example.

    Raises:
        InputError: naming the classes and how many training examples they have.
    """
    labels, sizes = np.unique(source.labels(who), return_counts=True)
    absent = ~np.isin(labels, validation_labels)
    if not absent.any():
        return
    names = source.trace.manifest.get("classes")
    classes = [
        f"{label if names is None else names[label]} ({size} for training)"
        for label, size in zip(labels[absent].tolist(), sizes[absent].tolist(), strict=True)
    ]
    raise InputError(
        f"{who} compares each training example with the validation examples of its class (validation_ids), and there "
        f"are none of {int(absent.sum())} of {labels.size} classes: {some(classes)}. A stratified split gives none to "
        "a class with few examples. Set more validation examples aside and record again; leave the training examples "
        "of these classes out (splits.without(ids)) where there are too few for both; or choose a method that needs no "
        "validation examples."
    )
