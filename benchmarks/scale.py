"""Scores larger than memory: the rate of blocks, and what a plan for ImageNet's size follows from.

    python benchmarks/scale.py [--examples 32768] [--queries 12812] [--rows 91] [--workers 2]

Computes one block of scores, writes a file of scores block by block (4 bytes x examples x queries in the current
folder), asks it for the best of some queries, finds the best of all without it, and scores the examples by class.
Beside each stands its limit in the same run: the bare matrix product, a plain write of as many bytes, one read of the
losses. What computes is counted in CPU seconds of one core, so that the plan does not depend on what else the machine
does; what waits for the disk by the clock. The result goes to ``benchmarks/results/scale.json`` with hardware and
versions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, write_result
from threadpoolctl import threadpool_limits

from comove import Trace
from comove.attribution import CLD, Scores
from comove.attribution.score_blocks import blocks_of, prepare, score_block, top_in_blocks, write_scores_in_blocks
from comove.coreset.cld import CLDCoreset
from comove.jobs import Local, Serial
from comove.training.sources import Source

IMAGENET = (1_281_167, 12_812)


def taken(function: Callable[[], object], clock: Callable[[], float], repetitions: int = 1) -> float:
    """Median seconds of ``time.perf_counter`` or ``time.process_time``."""
    found = []
    for _ in range(repetitions):
        started = clock()
        function()
        found.append(clock() - started)
    return statistics.median(found)


def plain_write(path: Path, size: int) -> None:
    """Write and flush ``size`` bytes, 64 MB at a time."""
    piece = np.ones(64 << 20, np.uint8)
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, piece.size):
            file.write(piece[: size - start])
        os.fsync(file.fileno())
    path.unlink()


def trace_of(folder: Path, rows: int, n: int, q: int) -> Trace:
    """A random trace on disk."""
    rng = np.random.default_rng(0)
    train, query = rng.random((rows, n), np.float32), rng.random((rows, q), np.float32)
    labels, query_labels = rng.integers(0, 1000, n), np.arange(q) % 1000
    Trace.from_arrays(train_losses=train, query_losses=query, train_labels=labels, query_labels=query_labels).save(
        folder / "trace"
    )
    return Trace.load(folder / "trace")


def measure(folder: Path, rows: int, n: int, q: int, workers: int) -> dict[str, Any]:
    """Time everything on one trace."""
    trace = trace_of(folder, rows, n, q)
    losses, query = trace.train_losses, trace.query_losses
    size, blocks = 4 * n * q, blocks_of(n, q, rows)
    part = losses[:, : blocks[0].n1]
    plan = prepare(losses, correlation="pearson", common_mode="keep", row_scaling="none")
    left, out = np.ascontiguousarray(part[1:].T), np.empty((blocks[0].n1, q), np.float32)
    cpu, clock = time.process_time, time.perf_counter
    with threadpool_limits(1):
        product = taken(lambda: np.matmul(left, query[1:], out=out), cpu, 5)
        block = taken(lambda: score_block(plan, part, query), cpu, 5)
        best = taken(lambda: top_in_blocks(CLD(), trace, 100), cpu)
        per_class = taken(lambda: CLDCoreset()._scores((Source(trace),)), cpu, 3)
        read = taken(lambda: losses.sum(), cpu, 3)
    found: dict[str, Any] = {
        "sizes": {"rows": rows, "N": n, "Q": q, "GB": size / 1e9, "blocks": len(blocks), "block": blocks[0]},
        "bare product of one block (CPU s)": product,
        "scores of one block (CPU s)": block,
        "scores of blocks (GB per CPU s)": out.nbytes / 1e9 / block,
        "best 100 of all queries without their scores (CPU s)": best,
        "per class (CPU s)": per_class,
        "one read of the losses (CPU s)": read,
        "plain write of all bytes (s)": taken(lambda: plain_write(folder / "plain", size), clock),
    }
    for name, executor in {"serial": Serial(), "local": Local(workers)}.items():
        path, cpu_before = folder / name, cpu()
        seconds = taken(lambda at=path, how=executor: write_scores_in_blocks(at, CLD(), trace, executor=how), clock)  # type: ignore[misc]
        found[f"scores on disk, {name} (s)"] = seconds
        found[f"scores on disk, {name} (CPU s of the driver)"] = cpu() - cpu_before
        found["plain write of all bytes, again (s)"] = taken(lambda: plain_write(folder / "plain", size), clock)
    scores = Scores.load(folder / "serial")
    some = scores.query_ids[:: max(1, q // 20)].tolist()
    found["opening (s)"] = taken(lambda: Scores.load(folder / "serial"), clock, 5)
    each = taken(lambda: [scores.top(100, query=query) for query in some], clock) / len(some)
    found["best 100 of one query from the file (s)"] = each
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}


def main() -> None:
    """Measure, scale up, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=32_768)
    parser.add_argument("--queries", type=int, default=12_812)
    parser.add_argument("--rows", type=int, default=91)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        found = measure(Path(name), arguments.rows, arguments.examples, arguments.queries, arguments.workers)
    n, q = IMAGENET
    larger = n * q / (arguments.examples * arguments.queries)
    plan = {
        "GB": round(4e-9 * n * q, 1),
        "scores in blocks (CPU s)": round(4e-9 * n * q / found["scores of blocks (GB per CPU s)"]),
        "best 100 without scores (CPU s)": round(
            larger * found["best 100 of all queries without their scores (CPU s)"]
        ),
        "per class (CPU s)": round(n / arguments.examples * found["per class (CPU s)"], 1),
    }
    result = {
        "command": f"python benchmarks/scale.py --examples {arguments.examples} --queries {arguments.queries} "
        f"--rows {arguments.rows} --workers {arguments.workers}",
        "measured": found,
        "in proportion, for 1,281,167 x 12,812": plan,
        **machine(),
    }
    print(json.dumps({"measured": found, "plan": plan}, indent=1))
    write_result("scale", result)


if __name__ == "__main__":
    main()
