"""Time and memory of every coreset method on recordings of N = 50,000, and of the score methods at 1.28 million.

    python benchmarks/coresets.py [--budget 0.1] [--only WORD ...] [--large] [--folder DIR] [--out FILE]

Each method runs in a process of its own, from a run on disk to a coreset; the imports come before and are not timed.
The trace holds every statistic after each of 90 epochs, and features at epoch 10 and at the last: C clusters of ReLU
features and the predictions of a linear layer on them. Methods that need a network get one of a quarter of the width,
trained for an epoch on images of 3 x 32 x 32, and run it at their defaults. ``--large`` takes ImageNet's sizes
(N = 1,281,167, C = 1000, features at epoch 10 only) for the methods whose cost is linear in N. Processor seconds are
those of all threads: on a busy machine they say more than the wall clock. The peak resident memory counts what Python
and torch take by themselves (the row of ``random``) and the pages of memory-mapped files. The result goes to
``benchmarks/results/coresets.json`` or ``coresets-large.json``, with hardware, versions and the command.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, write_result

from comove.coreset import Selector, select, selectors
from comove.data import ExampleSet, Normalization, Splits
from comove.store import as_header, new_folder, write_arrays, write_manifest
from comove.trace import FIELDS, Row, Trace
from comove.trace.trace import FORMAT_VERSION, write_row
from comove.training import Recipe, Recording, Run, train

SEED = 0
SCORES = ("aum", "ccs", "cld", "dual", "dyn_unc", "el2n", "forgetting", "grand", "moderate", "random", "tdds")
"""What is linear in N, given a recording."""


@dataclass(frozen=True)
class Sizes:
    """What is recorded: examples, validation examples, features, classes, epochs, and at which epochs features are."""

    n: int = 50_000
    validation: int = 5_000
    features: int = 512
    classes: int = 10
    epochs: int = 90
    anchors: tuple[int, ...] = (10, 90)


SMALL = Sizes()
LARGE = Sizes(1_281_167, 12_812, 512, 1000, 90, (10,))


# --- synthetic recordings ------------------------------------------------------------------------------------------


def write_trace(folder: Path, sizes: Sizes) -> None:
    """Write a trace of all statistics; nothing is learned, but every array has the shape and range it would have."""
    rng = np.random.default_rng(SEED)
    sides = {"train": sizes.n, "query": sizes.validation}
    labels = {side: rng.permutation(np.arange(size) % sizes.classes) for side, size in sides.items()}
    new_folder(folder / "rows")
    new_folder(folder / "anchors")
    ids = {"train": np.arange(sizes.n), "query": sizes.n + np.arange(sizes.validation)}
    examples = {f"{side}_{what}": values[side] for what, values in (("ids", ids), ("labels", labels)) for side in sides}
    write_arrays(folder / "examples.safetensors", {**examples, "validation_ids": ids["query"].copy()})
    hardness = {side: rng.random(size, np.float32) for side, size in sides.items()}
    for epoch in range(sizes.epochs + 1):
        arrays = {}
        for side in sides:
            statistics = _statistics(hardness[side], epoch / sizes.epochs, rng)
            arrays |= {f"{side}.{name}": statistics[name] for name in FIELDS if epoch or name != "kd"}
        write_row(folder, Row(epoch, epoch, float(epoch)), arrays)
        if epoch in sizes.anchors:
            write_anchor(folder / "anchors" / f"{epoch:06d}.safetensors", labels, sizes, rng)
    write_manifest(folder, "trace", FORMAT_VERSION, {"mode": "sweep", "rows": sizes.epochs + 1})


def _statistics(hardness: np.ndarray, done: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Margins that grow as training goes on, less for the hard, with noise; the others follow as for two classes."""
    margin = (4 * done * (1.2 - hardness) - 0.5 + 0.7 * rng.standard_normal(hardness.size, np.float32)).astype(
        np.float32
    )
    p = 1 / (1 + np.exp(-margin))
    moved = np.abs(rng.standard_normal(hardness.size, np.float32)) * p * (1 - p)
    return {
        "loss": -np.log(p),
        "target_probability": p,
        "margin_logit": margin,
        "margin_prob": 2 * p - 1,
        "el2n": (1 - p) * np.float32(2**0.5),
        "correct": (margin > 0).astype(np.uint8),
        "kd": moved,
    }


def write_anchor(file: Path, labels: dict[str, np.ndarray], sizes: Sizes, rng: np.random.Generator) -> None:
    """Write features and predictions block by block: they may be larger than memory."""
    centres = np.random.default_rng([SEED, 1]).standard_normal((sizes.classes, sizes.features), np.float32)
    shapes = {}
    for side, own in labels.items():
        shapes[f"{side}.features"] = (own.size, sizes.features)
        shapes[f"{side}.probabilities"] = (own.size, sizes.classes)
    arrays = empty_arrays(file, shapes)
    for side, own in labels.items():
        for start in range(0, own.size, 20_000):
            part = slice(start, start + 20_000)
            noise = rng.standard_normal((own[part].size, sizes.features), np.float32)
            features = np.maximum(centres[own[part]] + 2 * noise, 0)
            logits = features @ centres.T * np.float32(0.02)
            powers = np.exp(logits - logits.max(1, keepdims=True))
            arrays[f"{side}.features"][part] = features
            arrays[f"{side}.probabilities"][part] = powers / powers.sum(1, keepdims=True)


def empty_arrays(file: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, np.memmap]:
    """Make a safetensors file of float32 arrays to be filled through the memory maps returned."""
    ends = np.cumsum([4 * rows * columns for rows, columns in shapes.values()]).tolist()
    header: dict[str, Any] = {"__metadata__": as_header({})}
    for (name, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False):
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + ends[-1])
    return {
        name: np.memmap(file, np.float32, "r+", 8 + len(text) + header[name]["data_offsets"][0], shape)
        for name, shape in shapes.items()
    }


def train_network(folder: Path, sizes: Sizes) -> Run:
    """Train a small network on faint patterns in noise, one a class (or open the run, where it is finished)."""
    rng = np.random.default_rng(SEED)
    patterns = rng.integers(-20, 21, (sizes.classes, 3, 32, 32)).astype(np.int16)
    splits = []
    for size in (sizes.n, 1000):
        labels = np.arange(size) % sizes.classes
        images = rng.integers(90, 166, (size, 3, 32, 32)).astype(np.int16) + patterns[labels]
        normalization = Normalization((0.5,) * 3, (0.1,) * 3)
        ids = np.arange(size) + (0 if not splits else sizes.n)
        made = ExampleSet.from_arrays(images.astype(np.uint8), labels, ids=ids, normalization=normalization)
        splits.append(made)
    recipe = Recipe(epochs=1, batch_size=256, lr=0.1)
    recording = Recording(mode="in_pass", fields=("loss",), anchors=(), row_zero=False)
    options = {"width": 0.25}
    data = Splits(splits[0], None, splits[1])
    return train(data, "cnn-small", recipe, SEED, folder, recording=recording, model_options=options, device="cpu")


# --- measuring -----------------------------------------------------------------------------------------------------


def needs_network(method: Selector) -> bool:
    """Whether a method runs the network."""
    return "checkpoints" in method.requires


def measure(name: str, folder: Path, sizes: Sizes, budget: float) -> dict[str, Any]:
    """Select once in this process, and say what it took."""
    method = selectors()[name]()
    source = train_network(folder / "run", sizes) if needs_network(method) else Trace.load(folder / "trace")
    started, cpu_started = time.perf_counter(), time.process_time()
    coreset = select(method, source, budget)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "method": name,
        "n": coreset.n_candidates,
        "k": len(coreset),
        "seconds": round(seconds, 2),
        "processor seconds": round(cpu_seconds, 2),
        "peak MiB": peak_mib(),
        "load average": round(os.getloadavg()[0], 1),
    }


def peak_mib() -> int:
    """Peak resident memory of this process (what ``getrusage`` says on Linux includes that of the process before)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 1024)


def in_its_own_process(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run :func:`measure` in a fresh interpreter."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--budget", str(arguments.budget)]
    command += ["--large"] if arguments.large else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"method": name, "error": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def show(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    if "error" in row:
        print(f"{row['method']:<18} failed: {row['error']}", flush=True)
        return
    took = f"{row['seconds']:9.1f} s {row['processor seconds']:9.1f} s of processors {row['peak MiB']:7,} MiB"
    print(f"{row['method']:<18} {row['k']:>7,} of {row['n']:>9,} {took}", flush=True)


def main() -> None:
    """Record, measure each method, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--only", nargs="*", default=[], help="methods whose names contain one of these words")
    parser.add_argument("--large", action="store_true", help="N = 1,281,167 for the methods linear in N")
    parser.add_argument("--folder", type=Path, help="where recordings lie or are made; by default a temporary folder")
    parser.add_argument("--out", type=Path, help="where the result goes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = LARGE if arguments.large else SMALL
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.folder, sizes, arguments.budget)))
        return
    with tempfile.TemporaryDirectory(prefix="comove-coresets-") as temporary:
        rows = table(Path(arguments.folder or temporary), sizes, arguments)
    name = "coresets-large" if arguments.large else "coresets"
    result = {
        "command": " ".join(["python benchmarks/coresets.py", *sys.argv[1:]]),
        "sizes": asdict(sizes),
        "rows": rows,
        **machine(),
    }
    write_result(arguments.out or name, result)


def table(folder: Path, sizes: Sizes, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Make what is to be read, then measure one method after another."""
    names = [name for name in selectors() if not arguments.only or any(word in name for word in arguments.only)]
    names = [name for name in names if name in SCORES or not arguments.large]
    folder = new_folder(folder)
    if not (folder / "trace" / "manifest.json").exists():
        write_trace(folder / "trace", sizes)
    if any(needs_network(selectors()[name]()) for name in names):
        train_network(folder / "run", sizes)
    rows = []
    for name in names:
        rows.append(in_its_own_process(name, folder, arguments))
        show(rows[-1])
    return rows


if __name__ == "__main__":
    main()
