"""Speed and memory of the CLD core against its limits, measured in the same run.

    python benchmarks/correlation.py [--full] [--repetitions 5]

What is measured and its limits take turns, round after round; each figure is the median of the rounds, a ratio that of
the rounds' ratios. Wall-clock seconds tell the truth on an idle machine only, so processor seconds stand by
them (of all threads: a spread-out product that waits for others' work pays for the waiting). Peak memory is the growth
of a child process's high-water mark while the one call runs, with the output if the call makes it (Linux). ``--full``
takes ImageNet sizes and needs about 6 GB of memory and 2 GB of disk. The result goes to
``benchmarks/results/correlation.json`` with hardware and versions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, peak_memory, resident, write_result

from comove.correlation import blocks, pairwise, per_class, top_k

Work = dict[str, Callable[[], object]]


def normal(rows: int, columns: int, seed: int) -> np.ndarray:
    """Losses without structure: the hardest for ``top_k``, and no case for any short cut."""
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def rounds(work: Work, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Wall-clock and processor seconds of each piece of work, taken in turns after one turn to warm up."""
    taken: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in work}
    for turn in range(repetitions + 1):
        for name, function in work.items():
            wall, busy = time.perf_counter(), time.process_time()
            function()
            if turn:
                taken[name]["wall"].append(time.perf_counter() - wall)
                taken[name]["processor"].append(time.process_time() - busy)
    return taken


def compared(work: Work, limits: tuple[str, ...], repetitions: int) -> dict[str, Any]:
    """Medians, and ratios to the faster of the limits."""
    taken = rounds(work, repetitions)
    rows = {}
    for name, clocks in taken.items():
        rows[name] = {f"{clock} s": round(statistics.median(seconds), 4) for clock, seconds in clocks.items()}
        for clock, seconds in clocks.items():
            least = [min(turn) for turn in zip(*(taken[limit][clock] for limit in limits), strict=True)]
            ratio = statistics.median(s / m for s, m in zip(seconds, least, strict=True))
            rows[name][f"{clock} x limit"] = round(ratio, 2)
        print(f"  {name:<34}" + "  ".join(f"{key} {value:<8}" for key, value in rows[name].items()), flush=True)
    return rows


def class_work(n: int, classes: int) -> Work:
    """The per-class problem, T = 90."""
    losses, labels = normal(91, n, 0), np.random.default_rng(1).integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    query, query_labels = normal(91, 4 * classes, 2), np.arange(4 * classes) % classes
    tensor = torch.from_numpy(losses)
    return {
        "one read (numpy sum)": losses.sum,
        "per_class": lambda: per_class(losses, labels, query, query_labels),
        "one read (torch sum)": tensor.sum,  # last: its threads spin on for a while, beside whatever comes next
    }


def product_work(n: int, q: int, t: int = 100) -> Work:
    """All scores in memory, the best of them, and ranks."""
    train, query, out = normal(t + 1, n, 0), normal(t + 1, q, 1), np.full((n, q), 0, np.float32)
    left, right = np.ascontiguousarray(train[1:].T), query[1:]
    tensors = [torch.from_numpy(array) for array in (left, right, out)]
    return {
        "numpy product": lambda: np.matmul(left, right, out=out),
        "pairwise": lambda: pairwise(train, query, out=out),
        "pairwise spearman": lambda: pairwise(train, query, correlation="spearman", out=out),
        "blocks": lambda: sum(1 for _ in blocks(train, query)),
        "top_k 100": lambda: top_k(train, query, 100),
        "torch product": lambda: torch.matmul(tensors[0], tensors[1], out=tensors[2]),  # last, for the same reason
    }


def ranking_work(n: int, q: int, t: int = 100) -> Work:
    """The ranks alone, as torch and NumPy sort them."""
    differences = np.diff(normal(t + 1, n + q, 0), axis=0).T.copy()
    return {"ranking (numpy argsort)": lambda: differences.argsort(axis=1)}


def file_work(n: int, q: int, folder: Path, t: int = 100) -> Work:
    """Scores into a memory-mapped file, on disk when the clock stops."""
    train, query, row = normal(t + 1, n, 0), normal(t + 1, q, 1), normal(256, q, 2)

    def mapped(fill: Callable[[np.ndarray], object]) -> None:
        out = np.lib.format.open_memmap(folder / "scores.npy", mode="w+", dtype=np.float32, shape=(n, q))
        fill(out)
        out.flush()
        (folder / "scores.npy").unlink()

    def plain(out: np.ndarray) -> None:
        for first in range(0, n, len(row)):
            out[first : first + len(row)] = row[: n - first]

    return {
        "plain writing of as many bytes": lambda: mapped(plain),
        "pairwise into a memory map": lambda: mapped(lambda out: pairwise(train, query, out=out)),
    }


def large_work(n: int, q: int, t: int = 90) -> Work:
    """``top_k`` of ImageNet, every query against every training example."""
    train, query = normal(t + 1, n, 0), normal(t + 1, q, 1)
    rows = 1 << 12
    left, right, out = np.ascontiguousarray(train[1:].T), query[1:], np.empty((rows, q), np.float32)

    def product() -> None:
        for first in range(0, n, rows):
            part = left[first : first + rows]
            np.matmul(part, right, out=out[: len(part)])

    return {"numpy product": product, "top_k 100": lambda: top_k(train, query, 100)}


def measured_peak(make: Callable[..., Work], arguments: tuple[Any, ...], name: str, answer: Any) -> None:
    """In a child process: how far one call drives memory above what its inputs take."""
    function = make(*arguments)[name]
    before = resident("VmRSS")
    answer.put(peak_memory(function) - before)


def extra_memory(make: Callable[..., Work], arguments: tuple[Any, ...], name: str) -> int:
    """Megabytes above the inputs at the worst moment of a call."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=measured_peak, args=(make, arguments, name, answer))
    child.start()
    peak = int(answer.get()) >> 20
    child.join()
    print(f"  {name:<34}peak extra memory {peak} MB", flush=True)
    return peak


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ImageNet sizes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the memory-mapped file goes; a temporary folder without it")
    arguments = parser.parse_args()
    full, repetitions = arguments.full, arguments.repetitions
    class_size = (1_281_167, 1000) if full else (200_000, 100)
    size, large = ((50_000, 10_000), (1_281_167, 12_812)) if full else ((10_000, 5_000), (100_000, 512))
    result: dict[str, Any] = {
        "command": "python benchmarks/correlation.py" + (" --full" if full else ""),
        "repetitions": repetitions,
        **machine(),
        "load average at the start": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        # name, sizes, what makes the work, its arguments, the limits, calls whose memory is measured
        plan: list[tuple[str, str, Callable[..., Work], tuple[Any, ...], tuple[str, ...], tuple[str, ...]]] = [
            ("per class", f"N = {class_size[0]:,}, T = 90, {class_size[1]:,} classes", class_work, class_size,
             ("one read (numpy sum)",), ("per_class",)),
            ("products", f"N = {size[0]:,}, Q = {size[1]:,}, T = 100", product_work, size,
             ("numpy product", "torch product"), ("pairwise", "top_k 100")),
            ("ranking", f"{sum(size):,} columns, T = 100", ranking_work, size, ("ranking (numpy argsort)",), ()),
            ("file", f"N = {size[0]:,}, Q = {size[1]:,}, T = 100", file_work, (*size, Path(folder)),
             ("plain writing of as many bytes",), ()),
            ("large top_k", f"N = {large[0]:,}, Q = {large[1]:,}, T = 90", large_work, large,
             ("numpy product",), ("top_k 100",)),
        ]  # fmt: skip
        for title, sizes, make, given, limits, watched in plan:
            print(f"{title}: {sizes}", flush=True)
            rows = compared(make(*given), limits, min(repetitions, 2) if make is large_work else repetitions)
            for name in watched:
                rows[name]["peak extra MB"] = extra_memory(make, given, name)
            result[title] = {"sizes": sizes, "limit": " or ".join(limits), "rows": rows}
    write_result("correlation", result)


if __name__ == "__main__":
    main()
