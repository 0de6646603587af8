"""What our own runs really cost: FLOPs counted on the network, seconds, memory and bytes on disk as they were found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from comove.data import ExampleSet
from comove.evaluation.costs.formulas import Scenario
from comove.tasks import Classification, Task
from comove.training import Run

__all__ = ["MeasuredCost", "flops_of", "measured_cost", "scenario_of"]


@dataclass(frozen=True)
class MeasuredCost:
    """The cost of one recorded run.

    Attributes:
        forward_flops: of one example's forward pass (2 a multiply-add; convolutions and matrix products are counted,
            what is done element by element is not).
        step_flops: of one example's forward and backward pass.
        flops: by part: training, and recording losses in passes of their own.
        bytes_on_disk: by part: trace, checkpoints.
        seconds: of the last call that trained it, recording included; ``None`` where it was trained elsewhere.
        peak_memory: bytes, of the process that trained (on a GPU: of the GPU), or ``None`` where it was not noted.
        parameters: of the network.
        device: what it was trained on.
    """

    forward_flops: float
    step_flops: float
    flops: Mapping[str, float]
    bytes_on_disk: Mapping[str, int]
    seconds: float | None
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
            "seconds": "not known" if self.seconds is None else f"{self.seconds:,.1f} ({self.device})",
            "peak memory": "not noted" if self.peak_memory is None else f"{self.peak_memory / 2**20:,.0f} MiB",
            **disk,
        }


def flops_of(model: nn.Module, examples: ExampleSet, count: int = 8, task: Task | None = None) -> tuple[float, float]:
    """Count the FLOPs of one example's forward pass, and of its forward and backward pass, on ``model``.

    Counted by ``torch.utils.flop_counter`` on a batch of ``count`` examples: matrix products and convolutions.
    """
    from torch.utils.flop_counter import FlopCounterMode

    task, size = task or Classification(), min(count, len(examples))
    batch = examples.collated(np.arange(size))
    model.eval()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        task.outputs(model, batch)
    with FlopCounterMode(display=False) as both:
        torch.autograd.backward(task.loss(task.outputs(model, batch), batch).mean())
    model.zero_grad(set_to_none=True)
    return forward.get_total_flops() / size, both.get_total_flops() / size


def measured_cost(run: Run) -> MeasuredCost:
    """Return what a finished run cost; of a model trained elsewhere, what its epochs and a pass for each row cost.

    Raises:
        InputError: its data or model must be passed to :meth:`Run.load` again.
        CorruptFileError: it is unfinished, or a file is missing.
    """
    splits, trace, result = run.data(), run.trace, run.result
    ours = run.adopted is None
    model = run.model_spec.build(run.seed, factory=run.factory) if ours else run.load_model()
    forward, step = flops_of(model, splits.train, task=run.task)
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
        {part: _size(run.path / part) for part in ("trace", "checkpoints") if (run.path / part).exists()},
        float(result["seconds_of_last_sitting"]) if ours else None,
        _memory(result),
        sum(parameter.numel() for parameter in model.parameters()),
        f"{result['device']}, {result['threads']} threads" if ours else "trained elsewhere",
    )


def scenario_of(run: Run, measured: MeasuredCost) -> Scenario:
    """The sizes of a finished run for the formulas of Appendix E: its model is the proxy and the large model.

    A tenth of the data is kept. Windows and early epochs are the paper's, or as many as the run has.
    """
    splits, epochs = run.data(), int(run.trace.rows[-1].epoch)
    linear = [module for module in run.load_model().modules() if isinstance(module, nn.Linear)]
    n = len(splits.train)
    return Scenario(
        N=n,
        Q=run.trace.query_ids.size,
        k=max(1, n // 10),
        T=epochs,
        Tp=epochs,
        f=measured.forward_flops,
        fL=measured.forward_flops,
        p=measured.parameters,
        pL=measured.parameters,
        d=1 if splits.train.structured else math.prod(splits.train.input_shape),
        F=linear[-1].in_features if linear else 1,
        C=max(1, splits.train.n_classes),
        T_early=max(1, min(10, epochs // 2)),
        T_dual=min(50, epochs),
        J=min(10, epochs),
        gamma=min(20, epochs),
        clean_pass=run.trace.mode == "sweep",
    )


def _memory(result: Mapping[str, Any]) -> int | None:
    found = result.get("peak_memory_bytes")
    return None if found is None else int(found)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
