"""Randomness without global state: every stream is derived from the seed, a name and an index.

An epoch's order, augmentation and dropout depend only on (seed, epoch), so a resumed run needs no saved generator.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derived_seed", "generator_for", "seeded"]


def derived_seed(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the stream named by ``path``, independent of every other path's."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def generator_for(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU generator for the stream named by ``path``."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


@contextmanager
def seeded(seed: int, *path: str | int, device: torch.device) -> Iterator[None]:
    """Run a block (dropout draws from torch's global generators) under its own seed; the caller's state comes back."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        value = derived_seed(seed, *path)
        torch.default_generator.manual_seed(value)  # torch.manual_seed would also touch GPUs that are not ours
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield
