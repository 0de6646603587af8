"""tau(m, q) ~ N(0, 1), independent: what a benchmark table must show beside every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.attribution.base import Attributor, Queries
from comove.sources import Source

__all__ = ["RandomControl"]


@dataclass(frozen=True)
class RandomControl(Attributor):
    """Independent normal scores: a control that no method may fall below.

    A query's scores depend on the seed and its id only, not on which other queries are asked about.

    Args:
        seed: of the scores.
    """

    name: ClassVar[str] = "random-control"
    summary: ClassVar[str] = "independent normal scores: what chance gives"
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})

    seed: int = 0

    def _fit(self, sources: tuple[Source, ...]) -> int:
        return int(sources[0].trace.train_ids.size)

    def _scores(self, state: int, queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        words = queries.ids.view(np.uint64).tolist()
        columns = [np.random.default_rng([self.seed, word]).standard_normal(state, np.float32) for word in words]
        return np.stack(columns, axis=1), {}
