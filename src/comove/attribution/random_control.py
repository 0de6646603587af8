"""tau(m, q) ~ N(0, 1), independent: what a benchmark table must show beside every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.attribution.base import Attributor, Queries
from comove.data import Ids
from comove.discovery import check_seed
from comove.training.sources import Source

__all__ = ["RandomControl"]


@dataclass(frozen=True)
class RandomControl(Attributor):
    """Independent normal scores: a control that no method may fall below.

    A query's scores depend on the seed and its id only, not on which other queries are asked about; they are dealt out
    in the order of the training ids, so reordering the training examples moves each score with its id.

    Args:
        seed: of the scores.
    """

    name: ClassVar[str] = "random-control"
    summary: ClassVar[str] = "independent normal scores: what chance gives"
    cost: ClassVar[str] = "nothing"
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)

    def _fit(self, sources: tuple[Source, ...]) -> Ids:
        return sources[0].trace.train_ids.argsort()

    def _scores(self, state: Ids, queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        scores_NQ = np.empty((state.size, queries.ids.size), np.float32)
        for column, word in enumerate(queries.ids.view(np.uint64).tolist()):
            draws = np.random.default_rng([self.seed, word]).standard_normal(state.size, np.float32)
            scores_NQ[state, column] = draws
        return scores_NQ, {}
