"""Speed and memory of the CLD core against the limits, timed in the same run.

    python benchmarks/correlation.py [--full]

Each figure is the median of several repetitions; ratios compare within this run. ``--full`` takes ImageNet sizes (needs
about 6 GB). The result goes to ``benchmarks/results/correlation.json`` with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from comove.correlation import pairwise, per_class, top_k
from comove.store import versions


def median_seconds(function: Callable[[], object], repetitions: int) -> float:
    """Median wall-clock seconds, after one call to warm up."""
    function()
    taken = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="ImageNet sizes")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    n, q, t = (50_000, 10_000, 100) if arguments.full else (20_000, 5_000, 100)
    train, query = (generator.standard_normal((t + 1, size), dtype=np.float32) for size in (n, q))
    out = np.empty((n, q), np.float32)
    left, right = np.ascontiguousarray(train[1:].T), query[1:]

    def timed(function: Callable[[], object]) -> float:
        return median_seconds(function, arguments.repetitions)

    product = timed(lambda: np.matmul(left, right, out=out))
    rows = {"numpy product": product, "torch product": timed(lambda: torch.from_numpy(left) @ torch.from_numpy(right))}
    rows["pairwise"] = timed(lambda: pairwise(train, query, out=out))
    rows["pairwise spearman"] = timed(lambda: pairwise(train, query, correlation="spearman", out=out))
    rows["top_k 100"] = timed(lambda: top_k(train, query, 100))
    n_large, classes = (1_281_167, 1000) if arguments.full else (200_000, 100)
    losses = generator.standard_normal((91, n_large), dtype=np.float32)
    labels = generator.integers(0, classes, n_large)
    labels[:classes] = np.arange(classes)
    held_out, held_out_labels = losses[:, : 4 * classes].copy(), np.arange(4 * classes) % classes
    read = timed(lambda: losses.sum())
    rows["one read of the losses"] = read
    rows["per_class"] = timed(lambda: per_class(losses, labels, held_out, held_out_labels))

    for name, seconds in rows.items():
        limit = read if name in ("per_class", "one read of the losses") else product
        print(f"{name:<24} {seconds:8.3f} s   {seconds / limit:5.2f}x its limit")
    result = {
        "command": "python benchmarks/correlation.py" + (" --full" if arguments.full else ""),
        "sizes": {"N": n, "Q": q, "T": t, "per_class N": n_large, "per_class T": 90, "classes": classes},
        "seconds (median)": {name: round(seconds, 4) for name, seconds in rows.items()},
        "repetitions": arguments.repetitions,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
    }
    path = Path(__file__).parent / "results" / "correlation.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
