"""What is known of each query: its class, what the runs predicted, how sure they were, its loss at the end.

Shape suffixes: Q queries, C classes, R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.data import Ids, positions_of
from comove.errors import CorruptFileError, InputError
from comove.training.sources import Source

__all__ = ["UNKNOWN", "QueryFacts", "query_facts"]

UNKNOWN = -1
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class QueryFacts:
    """Labels, predictions and losses of Q queries, where known.

    Attributes:
        ids: (Q,) int64.
        labels: (Q,) class indices; -1 unknown.
        predicted: (Q,) the class of the highest probability, averaged over runs; -1 unknown.
        confidence: (Q,) that probability; NaN unknown.
        correct: (Q,) 1 right, 0 wrong, -1 unknown.
        right: (Q,) how many runs are right.
        asked: R, the number of runs with predictions.
        loss: (Q,) after training, averaged over runs.
        how: a description of where the predictions come from.
    """

    ids: Ids
    labels: Ids
    predicted: Ids
    confidence: Floats
    correct: Ids
    right: Ids
    asked: int
    loss: Floats
    how: str

    def in_order(self) -> QueryFacts:
        """The same with the wrong ones first, and among them (and the others) the highest losses first."""
        order = np.lexsort((self.ids, -self.loss, self.correct == 1))
        arrays = ("ids", "labels", "predicted", "confidence", "correct", "right", "loss")
        return QueryFacts(asked=self.asked, how=self.how, **{name: getattr(self, name)[order] for name in arrays})

    def to_json(self) -> dict[str, Any]:
        """Columns as JSON values, without the ids."""
        columns = {name: getattr(self, name).tolist() for name in ("labels", "predicted", "correct", "right")}
        rounded = {
            "confidence": [round(value, 4) for value in self.confidence.tolist()],
            "loss": [float(f"{value:.7g}") for value in self.loss.tolist()],
        }
        return {**columns, **rounded, "asked": self.asked, "how": self.how}


def query_facts(sources: Sequence[Source], ids: Ids) -> QueryFacts:
    """Read what the runs recorded of these queries; where no probabilities were kept, ask their last checkpoints.

    Args:
        sources: runs or traces.
        ids: (Q,) recorded query ids.
    """
    first = sources[0]
    places = [positions_of(ids, source.query_ids, "query ids") for source in sources]
    labels = np.full(ids.size, UNKNOWN) if first.query_labels is None else first.query_labels[places[0]]
    last = [
        source.trace.read("query", rows=[len(source.trace.rows) - 1])[0][place]
        for source, place in zip(sources, places, strict=True)
    ]
    found = [_probabilities(source, place, ids) for source, place in zip(sources, places, strict=True)]
    known = [one for one in found if one is not None]
    loss: Floats = np.stack(last).mean(0, dtype=np.float64)
    if known:
        return _from_probabilities(ids, labels, known, loss)
    return _from_flags(ids, labels, sources, places, loss)


def _from_probabilities(ids: Ids, labels: Ids, known: Sequence[Floats], loss: Floats) -> QueryFacts:
    mean_QC = np.mean(known, axis=0)
    predicted = mean_QC.argmax(1).astype(np.int64)
    right = np.sum([found.argmax(1) == labels for found in known], axis=0).astype(np.int64)
    correct = np.where(labels == UNKNOWN, UNKNOWN, predicted == labels).astype(np.int64)
    how = f"The predicted class has the highest probability after training, averaged over {_runs(len(known))}."
    return QueryFacts(ids, labels, predicted, mean_QC.max(1), correct, right, len(known), loss, how)


def _from_flags(
    ids: Ids, labels: Ids, sources: Sequence[Source], places: Sequence[npt.NDArray[np.int64]], loss: Floats
) -> QueryFacts:
    flags = [_correct(source, place) for source, place in zip(sources, places, strict=True)]
    known = [found for found in flags if found is not None]
    unknown, nothing = np.full(ids.size, UNKNOWN), np.full(ids.size, np.nan)
    if not known:
        none = np.zeros(ids.size, np.int64)
        how = "The runs recorded losses only: what they predicted is not known."
        return QueryFacts(ids, labels, unknown, nothing, unknown.copy(), none, 0, loss, how)
    right = np.sum(known, axis=0).astype(np.int64)
    correct = (2 * right > len(known)).astype(np.int64)
    how = f"Whether {_runs(len(known))} were right was recorded, not which class they predicted; the majority counts."
    predicted = np.where(correct == 1, labels, UNKNOWN)
    return QueryFacts(ids, labels, predicted, nothing, correct, right, len(known), loss, how)


def _runs(count: int) -> str:
    return "one run" if count == 1 else f"{count} runs"


def _probabilities(source: Source, places: npt.NDArray[np.int64], ids: Ids) -> Floats | None:
    """(Q, C) of one run after training, as recorded or from its last checkpoint; ``None`` if neither is available."""
    trace = source.trace
    if len(trace.rows) - 1 in trace.anchors:
        try:
            return trace.probabilities("query", len(trace.rows) - 1)[places].astype(np.float64)
        except CorruptFileError:
            raise
        except InputError:  # kept for the training examples only
            pass
    return _asked(source, ids)


def _asked(source: Source, ids: Ids) -> Floats | None:
    run = source.run
    if run is None or not run.checkpoints or run.checkpoints[-1].row != len(source.trace.rows) - 1:
        return None
    try:
        splits = run.data()
    except CorruptFileError:
        raise
    except InputError:  # the user's own data or network, which were not passed again
        return None
    kept = [part for part in (splits.query, splits.validation) if part is not None]
    found: Floats = np.empty((ids.size, len(splits.classes)))
    for part in kept:
        here = np.isin(ids, part.ids)
        if here.any():
            logits = run.class_logits(part.subset(ids[here]))
            if logits is None:
                return None
            found[here] = logits.double().softmax(1).numpy()
    return found


def _correct(source: Source, places: npt.NDArray[np.int64]) -> Ids | None:
    trace = source.trace
    if "correct" not in trace.fields:
        return None
    flags = trace.read("query", "correct", rows=[len(trace.rows) - 1])[0][places]
    return np.asarray(flags, np.int64)
