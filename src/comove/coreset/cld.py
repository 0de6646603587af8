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
from comove.correlation import per_class
from comove.data import positions_of
from comove.errors import InputError
from comove.sources import Source

__all__ = ["CLDCoreset"]


@dataclass(frozen=True)
class CLDCoreset(ScoreSelector):
    """Class-balanced CLD (Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, Algorithm 1).

    Needs recorded losses, labels, and validation examples of every training class. Scores of several runs are averaged.
    """

    name: ClassVar[str] = "cld"
    summary: ClassVar[str] = "losses that move with the validation mean of one's class; class-balanced"
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})
    balanced: ClassVar[bool] = True

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        total = np.zeros(sources[0].trace.train_ids.size, np.float64)
        for source in sources:
            trace = source.trace
            if trace.query_labels is None:
                raise InputError("cld needs the validation labels; pass query_labels= when recording.")
            columns = positions_of(trace.validation_ids, trace.query_ids, "validation ids")
            total += per_class(
                trace.train_losses,
                source.labels(self.name),
                trace.query_losses[:, columns],
                trace.query_labels[columns],
                train_ids=trace.train_ids,
                query_ids=trace.validation_ids,
            )
        return (total / len(sources)).astype(np.float32)
