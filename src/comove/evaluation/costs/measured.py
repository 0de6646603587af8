"""What our own runs really cost: FLOPs counted on the network, seconds, memory and bytes on disk as they were found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from comove.data import ExampleSet
from comove.models import logits_of
from comove.training import Run

__all__ = ["MeasuredCost", "flops_of", "measured_cost"]


@dataclass(frozen=True)
class MeasuredCost:
    """The cost of one recorded run.

    Attributes:
        forward_flops: of one example's forward pass (2 a multiply-add; convolutions and matrix products are counted,
            what is done element by element is not).
        step_flops: of one example's forward and backward pass.
        flops: by part: training, and recording losses in passes of their own.
        bytes_on_disk: by part: trace, checkpoints.
        seconds: of the last call that trained it, recording included.
        peak_memory: bytes, of the process that trained (on a GPU: of the GPU), or ``None`` where it was not noted.
        parameters: of the network.
        device: what it was trained on.
    """

    forward_flops: float
    step_flops: float
    flops: Mapping[str, float]
    bytes_on_disk: Mapping[str, int]
    seconds: float
    peak_memory: int | None
    parameters: int
    device: str

    @property
    def recording_share(self) -> float:
        """FLOPs of recording over those of training."""
        return self.flops["recording"] / self.flops["training"]

    def facts(self) -> dict[str, str]:
        """Names and values to print."""
        disk = {f"{part} on disk": f"{size / 1e6:,.2f} MB" for part, size in self.bytes_on_disk.items()}
        return {
            "parameters": f"{self.parameters:,}",
            "one example forward": f"{self.forward_flops / 1e6:,.3f} MFLOP",
            "one example forward and backward": f"{self.step_flops / 1e6:,.3f} MFLOP",
            **{name: f"{value / 1e12:,.4f} TFLOP" for name, value in self.flops.items()},
            "recording over training": f"{self.recording_share:.1%}",
            "seconds": f"{self.seconds:,.1f} ({self.device})",
            "peak memory": "not noted" if self.peak_memory is None else f"{self.peak_memory / 2**20:,.0f} MiB",
            **disk,
        }


def flops_of(model: nn.Module, examples: ExampleSet, count: int = 8) -> tuple[float, float]:
    """Count the FLOPs of one example's forward pass, and of its forward and backward pass, on ``model``.

    Counted by ``torch.utils.flop_counter`` on a batch of ``count`` examples: matrix products and convolutions.
    """
    from torch.utils.flop_counter import FlopCounterMode

    inputs, labels = examples.batch(np.arange(min(count, len(examples))), torch.device("cpu"))
    model.eval()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(inputs)
    with FlopCounterMode(display=False) as both:
        torch.autograd.backward(F.cross_entropy(logits_of(model(inputs)), labels))
    model.zero_grad(set_to_none=True)
    return forward.get_total_flops() / len(inputs), both.get_total_flops() / len(inputs)


def measured_cost(run: Run) -> MeasuredCost:
    """Return what a finished run cost.

    Raises:
        InputError: its data or model must be passed to :meth:`Run.load` again.
        CorruptFileError: it is unfinished, or a file is missing.
    """
    splits, trace, result = run.data(), run.trace, run.result
    model = run.model_spec.build(run.seed, factory=run.factory)
    forward, step = flops_of(model, splits.train)
    n, epochs, rows = len(splits.train), int(trace.rows[-1].epoch), len(trace.rows)
    passes = rows if trace.mode == "sweep" else sum(row.step == 0 for row in trace.rows)
    flops = {
        "training": n * epochs * step,
        "recording": forward * (passes * n + rows * trace.query_ids.size),
    }
    return MeasuredCost(
        forward,
        step,
        flops,
        {part: _size(run.path / part) for part in ("trace", "checkpoints")},
        float(result["seconds_of_last_sitting"]),
        _memory(result),
        sum(parameter.numel() for parameter in model.parameters()),
        f"{result['device']}, {result['threads']} threads",
    )


def _memory(result: Mapping[str, Any]) -> int | None:
    found = result.get("peak_memory_bytes")
    return None if found is None else int(found)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
