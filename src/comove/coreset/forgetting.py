"""F_i = #{t : correct at t - 1, wrong at t}; an example never learned counts as T. Keep the most forgotten.

Forgettable examples lie near the boundary or are unusual; many that are never forgotten can be left out at little loss.

Shape legend: N examples, T epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from comove.coreset.base import Scored, ScoreSelector
from comove.coreset.trace_values import check_first, epoch_rows, over_epochs
from comove.discovery import check_choice
from comove.training.sources import Source

__all__ = ["Forgetting", "forgetting_events", "forgetting_scores"]


def forgetting_events(correct_TN: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return how often each example went from right to wrong, (N,). O(NT).

    >>> forgetting_events([[1, 0], [0, 0], [1, 1]]).tolist()
    [1, 0]
    """
    correct = np.asarray(correct_TN, bool)
    return np.asarray(np.count_nonzero(correct[:-1] & ~correct[1:], axis=0), np.int64)


def forgetting_scores(correct_TN: npt.ArrayLike, *, never_learned: int | None = None) -> npt.NDArray[np.float64]:
    """Return forgetting scores (N,): the events, and ``never_learned`` (by default T) where ``correct`` never is 1.

    Args:
        correct_TN: whether each example was classified correctly after each epoch (or as each epoch met it).
        never_learned: the score of an example never classified correctly; T puts these first (Toneva et al.), 0 last
            (DeepCore and CCS).
    """
    correct = np.asarray(correct_TN, bool)
    highest = len(correct) if never_learned is None else never_learned
    return np.where(correct.any(0), forgetting_events(correct), highest).astype(np.float64)


@dataclass(frozen=True)
class Forgetting(ScoreSelector):
    """Forgetting events (Toneva et al., "An empirical study of example forgetting", ICLR 2019).

    Scores of several runs are added, as the authors do. Scores are small integers and tie often; ties go by a seeded
    hash of the id (:mod:`comove.ties`), so no class is kept for its ids. The authors count each presentation of the
    training pass: record with ``mode="in_pass"`` for that; with ``"sweep"`` events are counted between clean passes at
    the ends of epochs.

    Args:
        first: only the first so many epochs (the authors: all 200; the CLD paper's comparison: 10).
        variant: ``"toneva"``, an example never learned counts T; ``"deepcore"``, 0 as in DeepCore and CCS, which leaves
            the hardest examples out.
    """

    name: ClassVar[str] = "forgetting"
    summary: ClassVar[str] = "examples most often learned and forgotten again, and those never learned"
    cost: ClassVar[str] = "O(NT) on the recorded correctness"

    first: int | None = None
    variant: Literal["toneva", "deepcore"] = "toneva"

    def __post_init__(self) -> None:
        check_first(self.first, self.name)
        check_choice(self.variant, ("toneva", "deepcore"), "variant", self.name)

    def _scores(self, sources: tuple[Source, ...]) -> Scored:
        total, epochs = np.zeros(sources[0].train_ids.size), []
        never = 0 if self.variant == "deepcore" else None
        for source in sources:
            rows = epoch_rows(source.trace, self.name, self.first, at_least=2)
            total += over_epochs(
                source.trace, "correct", lambda block: forgetting_scores(block, never_learned=never), self.name, rows
            )
            epochs.append(len(rows))
        return Scored(total.astype(np.float32), {"epochs": epochs})
