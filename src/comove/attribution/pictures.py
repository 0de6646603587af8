"""Pictures of the user's own as queries: image files, brought to what the runs' models see, with a class to explain.

Shape legend: Q pictures, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from comove.attribution.base import Attributor
from comove.attribution.cld import replay_losses
from comove.attribution.scores import Scores, SomeScores, named_scores
from comove.data import ExampleSet, Ids, Splits
from comove.data.class_names import class_indices
from comove.data.preparation import image_files
from comove.errors import InputError, some
from comove.store import check_fingerprint
from comove.trace import Trace
from comove.training import Run
from comove.training.sources import Source

__all__ = ["Pictures", "check_answers_pictures", "open_pictures", "pictures_of"]


@dataclass(frozen=True)
class Pictures:
    """Q pictures to be asked about; made by :func:`open_pictures`.

    Attributes:
        examples: the queries, with ids 0 ... Q-1 and the classes to be explained.
        files: (Q) where they are.
        predicted: (Q,) the class of the highest probability, averaged over the runs.
        confidence: (Q,) that probability.
        labelled: whether the classes to be explained were given; else they are the predicted ones.
    """

    examples: ExampleSet
    files: tuple[Path, ...]
    predicted: Ids
    confidence: npt.NDArray[np.float64]
    labelled: bool

    @property
    def names(self) -> dict[int, str]:
        """The pictures' file names by id; the paths, where two files have one name."""
        short = [file.name for file in self.files]
        return dict(enumerate(short if len(set(short)) == len(short) else map(str, self.files)))

    def lines(self) -> Iterator[str]:
        """What of each picture is explained, and what the runs predict, in words."""
        for row in self.rows():
            predicted = f"predicted {row['predicted']} ({row['confidence']:.0%})"
            if self.labelled:
                yield f"{row['picture']}: {predicted}; explained as {row['explained']}, the label given."
            else:
                yield f"{row['picture']}: {predicted}, which is explained, as no label was given."

    def rows(self) -> list[dict[str, Any]]:
        """A row of JSON values for each picture: its id, name, the explained and the predicted class, and how sure."""
        classes, labels = self.examples.classes, self.examples.labels
        return [
            {
                "query_id": id_,
                "picture": name,
                "explained": classes[labels[id_]],
                "labelled": self.labelled,
                "predicted": classes[self.predicted[id_]],
                "confidence": float(self.confidence[id_]),
            }
            for id_, name in self.names.items()
        ]

    def noted(self, scores: Scores) -> Scores:
        """Return scores of these pictures that say which files they are of, and where their classes come from."""
        told: dict[str, Any] = {"pictures": [str(file) for file in self.files], "labelled": self.labelled}
        told["pictures_fingerprint"] = self.examples.fingerprint
        return replace(scores, values=scores.values, info={**scores.info, **told})

    def source(self, run: Run) -> Source:
        """Return the run as if it had recorded the pictures: their losses are replayed from its checkpoints.

        Raises:
            InputError: fewer than three checkpoints.
        """
        query_TQ, rows = replay_losses(run, self.examples)
        trace = run.trace
        replayed = Trace.from_arrays(
            train_losses=trace.read("train", rows=rows),
            query_losses=query_TQ,
            train_labels=trace.train_labels,
            query_labels=self.examples.labels,
            train_ids=trace.train_ids,
            query_ids=self.examples.ids,
        )
        return Source(replayed, replace(run, dataset=self.splits(run)))

    def splits(self, run: Run) -> Splits:
        """Return the run's training examples with the pictures as queries, for figures."""
        splits = run.data()
        if splits.train.raw(np.zeros(1, np.int64)).dtype == torch.uint8:
            return replace(splits, validation=None, query=self.examples, ids_apart=False)
        unit = self.examples.raw(np.arange(len(self.examples)))
        unit = unit / 255 if unit.dtype == torch.uint8 else unit
        examples = ExampleSet.from_arrays(
            unit, self.examples.labels, classes=splits.classes, normalization=splits.train.normalization
        )
        return replace(splits, validation=None, query=examples, ids_apart=False)


def open_pictures(runs: Sequence[Run], paths: Sequence[str | os.PathLike[str]], labels: Sequence[str] = ()) -> Pictures:
    """Open image files as queries of recorded runs, as :meth:`comove.training.Run.prepare` makes them.

    Args:
        runs: with the weights at the end of training; the first one's preprocessing counts.
        paths: image files, or folders of them.
        labels: class names (or indices): one for all pictures, or one each; none to explain what the runs predict.

    Raises:
        InputError: no picture, an unknown class, another number of labels than pictures; a run of other examples than
            images, or without checkpoints.
    """
    files = image_files(paths)
    examples = runs[0].prepare(files, np.zeros(len(files), np.int64))
    given = class_indices(labels, examples.classes, len(files)) if labels else None
    probabilities_QC = np.mean([_probabilities(run, examples) for run in runs], axis=0)
    predicted = probabilities_QC.argmax(1).astype(np.int64)
    explained = predicted if given is None else given
    return Pictures(examples.with_labels(explained), files, predicted, probabilities_QC.max(1), given is not None)


def pictures_of(scores: SomeScores, sources: Sequence[Run | Trace]) -> Pictures | None:
    """Open the pictures that scores are of again; ``None`` where they are of recorded queries.

    Raises:
        InputError: scores of other pictures, or of recorded queries, among them; a picture is gone; a bare trace.
        FingerprintError: a picture has changed.
    """
    asked = {tuple(one.info.get("pictures", ())): (name, one) for name, one in named_scores(scores).items()}
    if set(asked) <= {()}:
        return None
    if len(asked) > 1:
        several = ", ".join(name for name, _ in asked.values())
        raise InputError(
            f"The scores {several} are of different queries or pictures: show each in a report of its own."
        )
    ((files, (name, first)),) = asked.items()
    assert first.query_labels is not None
    check_answers_pictures((), sources)
    runs = [source for source in sources if isinstance(source, Run)]
    names = first.classes or tuple(map(str, range(1 + int(first.query_labels.max()))))
    found = open_pictures(runs, files, [names[label] for label in first.query_labels])
    check_fingerprint(
        "set of pictures",
        found=str(first.info.get("pictures_fingerprint")),
        expected=found.examples.fingerprint,
        where=f"The scores of {name}",
    )
    return found


def _probabilities(run: Run, examples: ExampleSet) -> npt.NDArray[np.float64]:
    logits = run.class_logits(examples)
    if logits is None:
        raise InputError(f"{run.path} is no classifier: pictures are explained by the class of a prediction.")
    found: npt.NDArray[np.float64] = logits.double().softmax(1).numpy()
    return found


def check_answers_pictures(methods: Sequence[Attributor], sources: Sequence[object]) -> None:
    """Refuse methods and sources that cannot answer for new examples.

    Raises:
        InputError: a method that is computed from a bank; a bare trace.
    """
    if unable := [method.name for method in methods if "bank" in method.requires]:
        raise InputError(
            f"{some(unable)}: a bank knows its own queries only, no new pictures; ask a method that reads runs, as cld."
        )
    if any(not isinstance(source, Run) for source in sources):
        raise InputError(
            "New pictures are shown to a run's checkpoints, and a bare trace has none; give runs of comove train."
        )
