"""What recording costs: the training pass, the evaluation pass, a row of ImageNet's size, the size of its files.

    python benchmarks/recording.py [--only passes] [--only files] [--width 1.0] [--examples 256]

Each pair (with and without the recorder) is timed in turn within one run; the result, with hardware and versions, goes
to ``benchmarks/results/recording.json``. Passes are ResNet-9's on random images of CIFAR-10's shape, on one thread, in
CPU seconds of this process, as a machine that is shared makes wall-clock seconds of passes differ by more than 1 %; a
row is timed by the clock, since it waits for the disk.
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

from comove import Recorder, Trace
from comove.data import ExampleSet
from comove.models import build_model
from comove.training import Recipe, Resident, evaluate, fit
from comove.training.loop import OptimizerState

ROW = 1_281_167
FIELDS = ("loss", "target_probability", "margin_logit", "margin_prob", "el2n", "correct")


class InPass:
    """Hooks that record the training pass, and count the CPU seconds they take."""

    def __init__(self, recorder: Recorder, examples: ExampleSet) -> None:
        self.recorder, self.ids, self.seconds = recorder, examples.ids, 0.0

    def _timed(self, function: Callable[[], object]) -> None:
        started = time.process_time()
        function()
        self.seconds += time.process_time() - started

    def on_start(self) -> None:
        """Nothing is recorded before training."""

    def on_epoch_start(self, epoch: int) -> None:
        """Nothing to do."""

    def on_batch(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take the batch in."""
        ids = self.ids[positions.numpy()]
        self._timed(lambda: self.recorder.observe(ids, logits=logits, labels=labels, side="train"))

    def on_step(self, step: int, epoch: float, lr: float, last_of_epoch: bool) -> None:
        """Nothing to do."""

    def on_epoch_end(self, state: OptimizerState) -> None:
        """Write the row; the one query was seen before."""
        self.recorder.observe([-1], logits=torch.zeros(1, 10), labels=torch.zeros(1, dtype=torch.int64))
        self._timed(self.recorder.end_epoch)


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of this process, on one thread."""
    started = time.process_time()
    function()
    return time.process_time() - started


def in_turn(pairs: dict[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """Median of each, taken in turn after one call of each to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in pairs}
    for repetition in range(repetitions + 1):
        for name, function in pairs.items():
            seconds = function()
            if repetition:
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def recorder_of(folder: Path, examples: ExampleSet, **options: Any) -> Recorder:
    """A recorder of these examples and of one query, which plays no part."""
    return Recorder(Path(tempfile.mkdtemp(dir=folder)) / "trace", train_ids=examples.ids, query_ids=[-1], **options)


def in_pass(folder: Path, examples: ExampleSet, width: float, batch: int, repetitions: int) -> dict[str, Any]:
    """One training epoch with and without the recorder."""
    options = {"num_classes": 10, "input_shape": (3, 32, 32), "width": width}
    recipe = Recipe(epochs=1, batch_size=batch, lr=0.01)
    data, shares = Resident(examples, torch.device("cpu")), []

    def plain() -> float:
        model = build_model("resnet9", seed=0, **options)
        return cpu_seconds(lambda: fit(model, data, recipe, seed=0))

    def recorded() -> float:
        model = build_model("resnet9", seed=0, **options)
        hooks = InPass(recorder_of(folder, examples, mode="in_pass"), examples)
        seconds = cpu_seconds(lambda: fit(model, data, recipe, seed=0, hooks=hooks))
        shares.append(hooks.seconds / (seconds - hooks.seconds))
        return seconds

    found = in_turn({"plain": plain, "recorded": recorded}, repetitions)
    return {
        "plain pass (CPU s)": round(found["plain"], 3),
        "recorded pass (CPU s)": round(found["recorded"], 3),
        "ratio of the medians": round(found["recorded"] / found["plain"], 4),
        "recorder's own CPU time, of the pass": round(statistics.median(shares[1:]), 5),
    }


def sweep(folder: Path, examples: ExampleSet, width: float, repetitions: int) -> dict[str, Any]:
    """One evaluation pass that is recorded, row written, and one whose logits are only computed."""
    model = build_model("resnet9", seed=0, num_classes=10, input_shape=(3, 32, 32), width=width)
    data = Resident(examples, torch.device("cpu"))

    def plain() -> float:
        return cpu_seconds(lambda: [None for _ in evaluate(model, data, 256)])

    def recorded() -> float:
        recorder = recorder_of(folder, examples)

        def passing() -> None:
            for positions, logits, labels in evaluate(model, data, 256):
                recorder.observe(data.examples.ids[positions], logits=logits, labels=labels, side="train")
            recorder.observe([-1], logits=torch.zeros(1, 10), labels=torch.zeros(1, dtype=torch.int64))
            recorder.end_epoch()

        return cpu_seconds(passing)

    found = in_turn({"plain": plain, "recorded": recorded}, repetitions)
    return {
        "plain pass (CPU s)": round(found["plain"], 3),
        "recorded pass (CPU s)": round(found["recorded"], 3),
        "ratio of the medians": round(found["recorded"] / found["plain"], 4),
    }


def rows(folder: Path, logits: bool, repetitions: int) -> dict[str, Any]:
    """Rows of 1,281,167 examples: seconds to close one, beside plain writing of as many bytes; the files' sizes."""
    generator = np.random.default_rng(0)
    ids, labels = np.arange(ROW), generator.integers(0, 1000, ROW)
    values = torch.rand(ROW, 10) if logits else torch.rand(ROW)
    fields = FIELDS if logits else ("loss",)
    options: dict[str, Any] = {"train_labels": labels % 10 if logits else labels, "query_labels": [0]}
    path = Path(tempfile.mkdtemp(dir=folder)) / "trace"
    recorder = Recorder(path, train_ids=ids, query_ids=[-1], fields=fields, **options)
    content = np.zeros(ROW * (21 if logits else 4), np.uint8)
    closing, writing = [], []
    for index in range(repetitions + 1):
        for start in range(0, ROW, 65_536):
            part = slice(start, start + 65_536)
            given = (
                {"logits": values[part], "labels": torch.from_numpy(labels[part] % 10)}
                if logits
                else {"loss": values[part]}
            )
            recorder.observe(ids[part], side="train", **given)
        one = {"logits": torch.zeros(1, 10), "labels": torch.zeros(1, dtype=torch.int64)}
        recorder.observe([-1], side="query", **(one if logits else {"loss": torch.zeros(1)}))
        started = time.perf_counter()
        recorder.end_epoch()
        closing.append(time.perf_counter() - started)
        started = time.perf_counter()
        with (folder / f"plain-{index}").open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        writing.append(time.perf_counter() - started)
    trace = recorder.finish()
    raw = len(trace.rows) * content.size
    whole = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    row_bytes = (path / "rows" / "000001.safetensors").stat().st_size
    of_90 = (whole - raw + 91 * content.size) / (91 * content.size)
    return {
        "row closed and on disk (ms)": round(1e3 * statistics.median(closing[1:]), 1),
        "row closed and on disk, at best (ms)": round(1e3 * min(closing[1:]), 1),
        "plain write and fsync of its bytes (ms)": round(1e3 * statistics.median(writing[1:]), 1),
        "row file, of its raw numbers": round(row_bytes / content.size, 5),
        "trace of 91 rows with ids and labels, of its raw numbers": round(of_90, 4),
    }


def reading(folder: Path) -> dict[str, Any]:
    """Reading columns of a trace of 11 rows of 1,281,167: GB/s, from memory-mapped files in the page cache."""
    losses = np.random.default_rng(0).random((11, ROW), np.float32)
    path = folder / "read"
    Trace.from_arrays(train_losses=losses, query_losses=losses[:, :10]).save(path)
    lazy = Trace.load(path).lazy("train")

    def blocks(matrix: Any) -> Callable[[], float]:
        def taken() -> float:
            started = time.perf_counter()
            for start in range(0, ROW, 16_384):
                np.ascontiguousarray(matrix[:, start : start + 16_384])
            return time.perf_counter() - started

        return taken

    found = in_turn({"files": blocks(lazy), "memory": blocks(losses)}, 5)
    return {f"blocks of columns from {name} (GB/s)": round(losses.nbytes / s / 1e9, 2) for name, s in found.items()}


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0, help="of ResNet-9")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--only", choices=("passes", "files"), action="append", help="the rest stays as it was")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (arguments.examples, 3, 32, 32), dtype=torch.uint8)
    examples = ExampleSet.from_arrays(pixels, np.arange(arguments.examples) % 10)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        found: dict[str, Any] = {}
        if "passes" in (arguments.only or ["passes"]):
            found["in_pass"] = in_pass(folder, examples, arguments.width, arguments.batch, arguments.repetitions)
            found["sweep"] = sweep(folder, examples, arguments.width, arguments.repetitions)
        if "files" in (arguments.only or ["files"]):
            found["a row of 1,281,167 losses"] = rows(folder, False, 3 * arguments.repetitions)
            found["a row of 1,281,167 x 6 statistics"] = rows(folder, True, arguments.repetitions)
            found["reading"] = reading(folder)
    path = Path(__file__).parent / "results" / "recording.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    result = {
        "command": f"python benchmarks/recording.py --width {arguments.width:g} --examples {arguments.examples} "
        f"--batch {arguments.batch} --repetitions {arguments.repetitions}",
        **{key: value for key, value in before.items() if isinstance(value, dict) and key != "versions"},
        **found,
        **machine(),
    }
    print(json.dumps(found, indent=1))
    write_result(path, result)


if __name__ == "__main__":
    main()
