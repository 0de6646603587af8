"""What the attribution benchmark measures with: seconds, memory, agreement of scores, the processor's name."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata


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


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    named = [part for part in info.read_text().splitlines() if part.startswith("model name")] if info.exists() else []
    return named[0].partition(":")[2].strip() if named else platform.processor() or platform.machine()
