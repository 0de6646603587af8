"""score(z_m) ~ U(0, 1), independent; keep the k highest: uniform without replacement, the baseline of every curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.checks import check_seed
from comove.coreset.base import ScoreSelector
from comove.training.sources import Source

__all__ = ["RandomCoreset"]


@dataclass(frozen=True)
class RandomCoreset(ScoreSelector):
    """A uniform random coreset: the examples with the highest of N independent uniform numbers.

    Args:
        seed: of the choice. Smaller budgets are subsets of larger ones at the same seed; the order of the training
            examples does not matter.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "uniform without replacement"
    cost: ClassVar[str] = "O(N)"

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        ids = sources[0].trace.train_ids
        scores = np.empty(ids.size, np.float32)
        scores[ids.argsort()] = np.random.default_rng([self.seed, 0xC0]).random(ids.size, np.float32)
        return scores
