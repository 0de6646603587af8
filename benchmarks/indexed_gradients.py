"""An index of projected gradients: build rate, query rate, memory.

    python benchmarks/indexed_gradients.py [--examples 100000] [--folder DIR]

A perceptron 256-512-512-512-64 on random inputs, both sides of its four layers projected to 32: 4,096 floats each.
Seconds on the clock, of one thread, and process CPU seconds beside them; each figure is of one run. Queries are random
vectors, their number is what counts. Writes ``benchmarks/results/indexed_gradients.json``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, peak_memory, plain, resident, write_result
from torch import nn

from comove.attribution.gradient_index import GradientIndex
from comove.attribution.indexed_gradients import layer_factors, precondition
from comove.data.batches import Batch
from comove.gradients.layer_projections import ProjectedGradients
from comove.gradients.per_example import Part, PerExampleGradients
from comove.tasks import Classification

WIDTHS, SIDE, TOP = (256, 512, 512, 512, 64), 32, 10
QUERIES = (1, 10, 100, 1000)


class Drawn:
    """Random examples, made as they are asked for."""

    def __init__(self, examples: int) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return self.examples

    def batch(self, positions: slice) -> Batch:
        """The examples at these positions."""
        size, generator = positions.stop - positions.start, torch.Generator().manual_seed(positions.start)
        inputs = torch.randn(size, WIDTHS[0], generator=generator)
        return inputs, torch.randint(WIDTHS[-1], (size,), generator=generator)


def perceptron() -> nn.Module:
    """Untrained."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def measured(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of the processor, peak memory above what was held before, and the result."""
    found: list[Any] = []
    clock, cpu, held = time.perf_counter(), time.process_time(), resident("VmRSS")
    peak = peak_memory(lambda: found.append(function()))
    spent = {"seconds": time.perf_counter() - clock, "cpu seconds": time.process_time() - cpu}
    return {**spent, "peak MB": (peak - held) / 1e6}, found[0]


def build(data: Drawn, folder: Path) -> tuple[dict[str, Any], GradientIndex]:
    """The index of the perceptron's gradients, and what building it took."""
    task = Classification()
    projected = ProjectedGradients(
        PerExampleGradients(perceptron(), task=task), data, SIDE, SIDE, torch.Generator().manual_seed(0)
    )

    def features(part: slice) -> Any:
        return torch.cat(list(projected.stream(Part(data, part.start, part.stop), task.loss))).numpy()

    ids = np.arange(len(data))

    def make() -> GradientIndex:
        return GradientIndex.build(folder, ids, projected.sections, features)

    spent, index = measured(make)
    again, _ = measured(make)
    return {"build": rates(spent, len(data)), "check of a finished index": rates(again, len(data))}, index


def write_alone(index: GradientIndex, folder: Path) -> dict[str, Any]:
    """Features that cost nothing, to disk."""
    block = index.read(index.parts[0])

    def make() -> GradientIndex:
        return GradientIndex.build(folder, index.ids, index.sections, lambda part: block[: part.stop - part.start])

    spent, _ = measured(make)
    shutil.rmtree(folder)
    return rates(spent, index.ids.size)


def rates(spent: dict[str, float], examples: int) -> dict[str, float]:
    """With examples a second."""
    return {**spent, "examples a second": examples / spent["seconds"]}


def ask(index: GradientIndex) -> dict[str, Any]:
    """The solve, and the best k of more and more queries."""
    moments, sums = measured(index.second_moments)
    solve, factors = measured(lambda: layer_factors(sums))
    found: dict[str, Any] = {"second moments": moments, "factors": solve}
    asked = np.random.default_rng(0).normal(size=(max(QUERIES), index.dimension))
    found[f"solve of {len(asked)} queries"], vectors = measured(lambda: precondition(asked, factors))
    for number in QUERIES:
        spent, _ = measured(lambda number=number: index.top(vectors[:number], TOP))
        found[f"top {TOP} of {number}"] = {**spent, "queries a second": number / spent["seconds"]}
        print(number, plain(spent), flush=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--folder", help="where the index is made, and deleted afterwards")
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="index-", dir=given.folder))
    try:
        built, index = build(Drawn(given.examples), place / "index")
        print(plain(built), flush=True)
        size = sum(file.stat().st_size for file in index.folder.iterdir())
        result = {**built, "write alone": write_alone(index, place / "write"), **ask(index)}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    about = {"examples": given.examples, "dimension": index.dimension, "GB on disk": size / 1e9}
    note = "A shared machine with other work on both cores: the clock may be far above the processor's seconds."
    write_result("indexed_gradients", plain({**about, **result, "note": note, "machine": machine()}))


if __name__ == "__main__":
    main()
