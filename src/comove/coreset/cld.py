"""CLD(z_m) = Pearson(Delta_m, mean of Delta over validation examples of class y_m); keep the top k_c of each class.

Paper, Algorithm 1 (lines 7 to 18). An example is worth keeping when its losses move with those of its class's
held-out examples: it teaches what generalises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.coreset.base import ScoreSelector
from comove.coreset.trace_values import check_first, check_validation_classes, needs_validation
from comove.correlation import per_class
from comove.training.sources import Source

__all__ = ["CLDCoreset"]


@dataclass(frozen=True)
class CLDCoreset(ScoreSelector):
    """Class-balanced CLD (Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, Algorithm 1).

    Needs recorded losses, labels, and validation examples of every training class. Scores of several runs are averaged.

    Args:
        first: only the rows up to the end of this epoch (with row 0, and rows within epochs where they were recorded).
    """

    name: ClassVar[str] = "cld"
    summary: ClassVar[str] = "losses that move with the validation mean of one's class; class-balanced"
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})
    cost: ClassVar[str] = "O((N + V) T) on the recorded losses"
    balanced: ClassVar[bool] = True
    easy_first: ClassVar[bool] = True

    first: int | None = None

    def __post_init__(self) -> None:
        check_first(self.first, self.name)

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        total = np.zeros(sources[0].trace.train_ids.size, np.float64)
        for source in sources:
            trace = source.trace
            columns, validation_labels = needs_validation(source, self.name)
            check_validation_classes(source, validation_labels, self.name)
            rows = [row.index for row in trace.rows if self.first is None or row.epoch <= self.first]
            total += per_class(
                trace.lazy("train", rows=rows),
                source.labels(self.name),
                trace.lazy("query", rows=rows)[:, columns],
                validation_labels,
                train_ids=trace.train_ids,
                query_ids=trace.validation_ids,
            )
        return (total / len(sources)).astype(np.float32)
