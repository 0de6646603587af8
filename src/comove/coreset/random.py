"""Uniform choice without replacement: the baseline of every coreset curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.coreset.base import ScoreSelector
from comove.sources import Source

__all__ = ["RandomCoreset"]


@dataclass(frozen=True)
class RandomCoreset(ScoreSelector):
    """A uniform random coreset: the examples with the highest of N independent uniform numbers.

    Args:
        seed: of the choice. Smaller budgets are subsets of larger ones at the same seed.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "uniform without replacement"
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})

    seed: int = 0

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        return np.random.default_rng([self.seed, 0xC0]).random(sources[0].trace.train_ids.size, np.float32)
