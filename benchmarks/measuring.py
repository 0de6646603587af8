"""What benchmarks share: seconds, memory, agreement of scores, the machine, writing results."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from comove.jobs.local import processor
from comove.store import versions

RESULTS = Path(__file__).parent / "results"


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process (all threads), and what the function returns."""
    started = time.process_time()
    found = function()
    return time.process_time() - started, found


def resident(field: str) -> int:
    """Bytes, from the kernel (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field}")


def peak_memory(function: Callable[[], Any]) -> int:
    """Peak resident bytes of this process while the function runs, by the kernel's high-water mark (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    function()
    return resident("VmHWM")


def agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Mean over queries of Spearman's correlation, and the largest difference relative to the largest score."""
    truth = truth[: len(found)]
    if not np.isfinite(found).all():
        return {"not finite": float(np.mean(~np.isfinite(found)))}
    ranks = [rankdata(side, axis=0) for side in (found, truth)]
    ranks = [side - side.mean(0) for side in ranks]
    norms = np.sqrt((ranks[0] ** 2).sum(0) * (ranks[1] ** 2).sum(0))
    spearman = float(np.mean((ranks[0] * ranks[1]).sum(0) / np.maximum(norms, 1e-30)))
    difference = float(np.abs(found - truth).max() / np.abs(truth).max())
    return {"spearman": round(spearman, 4), "largest difference": float(f"{difference:.2g}")}


def machine() -> dict[str, Any]:
    """What figures were measured on and with."""
    where = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "processor": processor()}
    return {**where, "versions": versions()}


def plain(value: Any) -> Any:
    """Floats within, rounded to four significant digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_result(name: str | Path, result: Mapping[str, Any]) -> None:
    """Write ``benchmarks/results/NAME.json``, or the file named, and say so."""
    path = name if isinstance(name, Path) else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
