"""One row an epoch, whatever trainer drives it: what the callbacks for Lightning and transformers share.

Trainers differ in whether they end an epoch again when they resume from a checkpoint saved at its very end. So a row
is closed when it is due and not yet there, at every hook that could be the moment, and never twice.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from comove.errors import InputError
from comove.store import MANIFEST
from comove.trace.distributed import DistributedRecorder
from comove.trace.evaluation_pass import clean_pass
from comove.trace.recorder import Recorder
from comove.trace.trace import Side, Trace

__all__ = ["SAME_EPOCH", "EpochRows", "Mode", "Sweep", "observe_outputs", "open_recorder"]

Mode = Literal["sweep", "in_pass"]
Sweep = Callable[[Side], None]
"""Observes every example of one side with the model as it stands (of several processes: this one's share)."""

SAME_EPOCH = 1e-6
"""Two moments nearer than this many epochs are one: trainers count epochs in fractions."""


def open_recorder(
    path: Path, options: Mapping[str, Any], state: Mapping[str, Any] | None, overwrite: bool
) -> DistributedRecorder:
    """Open a recorder for training that goes on from ``state``, or that starts anew.

    Args:
        path: the trace's folder.
        options: of :class:`comove.Recorder`.
        state: the recorder's state in the trainer's checkpoint, ``None`` at the start of training.
        overwrite: whether a trace already in the folder is begun anew when training starts.

    Raises:
        InputError: the folder holds a trace, and training does not go on from it.
    """
    take_up = state is not None or overwrite

    def create() -> Recorder:
        if not take_up and (path / MANIFEST).exists():
            raise InputError(
                f"{path} already holds a trace, and training does not go on from a checkpoint saved with it. Choose a "
                "new folder, or pass overwrite=True to begin the trace anew."
            )
        return Recorder(path, **options, resume=take_up)

    recorder = DistributedRecorder(create)
    if take_up:
        recorder.load_state_dict(Recorder.EMPTY_STATE if state is None else state)
    return recorder


class EpochRows:
    """Closes the rows of a recorder as epochs pass.

    Args:
        recorder: where the rows go.
        mode: ``"sweep"`` evaluates train and query examples for every row; ``"in_pass"`` takes the training losses
            from the training pass and evaluates the queries.
        row_zero: whether training examples can be evaluated before training.
    """

    def __init__(self, recorder: DistributedRecorder, mode: Mode, row_zero: bool) -> None:
        self.recorder, self.mode, self.row_zero = recorder, mode, row_zero

    def has(self, epoch: float) -> bool:
        """Tell whether the row after ``epoch`` passes is closed already."""
        return bool(self.recorder.rows) and self.recorder.rows[-1].epoch >= epoch - SAME_EPOCH

    def close(self, epoch: float, step: int, model: nn.Module, sweep: Sweep) -> None:
        """Close the row after ``epoch`` passes, unless it is there; ``step`` counts optimizer steps.

        A pass that training broke off has no row in ``in_pass`` mode: a part of the examples was not seen.
        """
        if self.has(epoch) or (epoch == 0 and not self.row_zero):
            return
        if self.mode == "in_pass" and abs(epoch - round(epoch)) > SAME_EPOCH:
            warnings.warn(
                f"Training stopped within epoch {math.ceil(epoch)}: the losses of this unfinished pass are not "
                "recorded, since not every example was seen. The rows before are kept.",
                stacklevel=2,
            )
            self.recorder.drop_open_row()
            return
        with clean_pass(model):
            if self.mode == "sweep" or epoch == 0:
                sweep("train")
            sweep("query")
        self.recorder.end_row(epoch=epoch, step=step)

    def finish(self) -> Trace | None:
        """Freeze the trace; the first process gets it."""
        return self.recorder.finish()


def observe_outputs(recorder: DistributedRecorder, outputs: object, side: Side, where: str) -> None:
    """Observe a batch given as a mapping with ``ids``, and ``logits`` and ``labels`` or ``per_sample_loss``.

    Raises:
        InputError: not such a mapping.
    """
    if not isinstance(outputs, Mapping) or "ids" not in outputs or not {"logits", "per_sample_loss"} & set(outputs):
        found = sorted(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise InputError(
            f"{where} must return a dict with 'ids', and 'logits' and 'labels' or 'per_sample_loss' (one float an "
            f"example); found {found}."
        )
    if "per_sample_loss" in outputs:
        recorder.observe(outputs["ids"], loss=outputs["per_sample_loss"], labels=outputs.get("labels"), side=side)
    else:
        recorder.observe(outputs["ids"], logits=outputs["logits"], labels=_labels(outputs, where), side=side)


def _labels(outputs: Mapping[str, Any], where: str) -> torch.Tensor:
    if "labels" not in outputs:
        raise InputError(f"{where} returned 'logits' without 'labels': the loss needs both.")
    labels: torch.Tensor = outputs["labels"]
    return labels
