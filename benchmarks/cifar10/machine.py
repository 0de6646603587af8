"""What a result was computed on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

__all__ = ["machine"]


def machine(device: str) -> dict[str, Any]:
    """The processor, the number of cores that may be used, and the GPU if that is what computes."""
    from comove.jobs.local import processor, usable_cpus
    from comove.training import resolve_device

    where = resolve_device(device)
    gpu = torch.cuda.get_device_name(where) if where.type == "cuda" else None
    return {"processor": processor(), "cores": usable_cpus(), "gpu": gpu, "system": f"{platform.system()} {os.name}"}
