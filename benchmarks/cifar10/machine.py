"""What a result was computed on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["machine"]


def machine(device: str) -> dict[str, Any]:
    """The processor, the number of cores that may be used, and the GPU if that is what computes."""
    from comove.execution.local import usable_cpus
    from comove.training import resolve_device

    where = resolve_device(device)
    gpu = torch.cuda.get_device_name(where) if where.type == "cuda" else None
    return {"processor": _processor(), "cores": usable_cpus(), "gpu": gpu, "system": f"{platform.system()} {os.name}"}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = [part for part in info.read_text().splitlines() if part.startswith("model name")] if info.exists() else []
    return named[0].partition(":")[2].strip() if named else platform.processor() or platform.machine()
