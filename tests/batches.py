"""Small batches and sources of examples that several files of tests use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from comove.data.batches import Batch, batch_size, rows_of


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(high: int, *shape: int) -> Tensor:
    """Whole numbers from 0 to below ``high``."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Given:
    """A batch as a source of examples."""

    held: Batch

    def __len__(self) -> int:
        return batch_size(self.held)

    def batch(self, positions: slice) -> Batch:
        return rows_of(self.held, positions)
