"""The result of every coreset method: which examples to keep, in which order and with which weights."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.data import ExampleSet, Ids, MapDataset
from comove.data.tables import read_rows, write_rows
from comove.display import are_counts, html_table, scored, short
from comove.errors import InputError
from comove.plots import Picture, coreset_bars, gallery
from comove.store import as_ids, new_folder, understanding
from comove.store.results import freeze, load_result, save_result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch.utils.data import Subset

__all__ = ["Coreset"]

HEADER = {"method": str, "n_candidates": int, "info": dict}
MOST_CLASSES = 20
"""Rows of pictures: one of a thousand classes could not be drawn."""
TABLE = ("id", "score", "weight", "label")


@dataclass(frozen=True, eq=False)
class Coreset:
    """The examples worth keeping.

    Attributes:
        ids: (k,) int64, the best first (greedy methods: in order of choice).
        scores: (k,) float32, in the same order; higher was kept first.
        weights: (k,) float32; all 1 unless the method weighs examples.
        labels: (k,) class indices, where known.
        method: the selector's name.
        n_candidates: how many examples there were to choose from.
        classes: class names, where known.
        info: options of the method and what it counted (JSON values).
    """

    ids: Ids
    scores: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    labels: Ids | None
    method: str
    n_candidates: int
    classes: tuple[str, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = as_ids(self.ids, "coreset ids")
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": ids,
            "scores": np.asarray(self.scores, np.float32),
            "weights": np.asarray(self.weights, np.float32),
        }
        if self.labels is not None:
            arrays["labels"] = np.asarray(self.labels, np.int64)
        for name, array in arrays.items():
            if array.shape != ids.shape:
                raise InputError(f"The {name} of a coreset of {ids.size} must have its size, got {array.shape}.")
        freeze(self, arrays)

    def __len__(self) -> int:
        return int(self.ids.size)

    @property
    def per_class(self) -> dict[int, int]:
        """How many examples of each class were kept (empty where labels are unknown)."""
        if self.labels is None:
            return {}
        labels, counts = np.unique(self.labels, return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))

    @property
    def balance(self) -> float | None:
        """The smallest class over an even share of the coreset: 1 is even, 0 leaves a class out.

        ``None`` where labels, or the number of classes, are unknown.
        """
        if self.labels is None or self.classes is None:
            return None
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return float(counts.min() * len(self.classes) / max(1, len(self)))

    def subset(self, dataset: MapDataset) -> Subset[Any]:
        """Return the kept examples of a data set, the best first, for a ``DataLoader`` of your own.

        >>> coreset.subset(run.data().train)  # doctest: +SKIP

        Args:
            dataset: an :class:`ExampleSet`, as ``run.data().train``, in which the ids are looked up; or the data set
                that an ``ExampleSet`` without ids of its own was made from, where an id is a position.

        Raises:
            InputError: ids that the data set has not.
        """
        from torch.utils.data import Subset

        if isinstance(dataset, ExampleSet):
            return Subset(dataset, dataset.positions(self.ids).tolist())  # type: ignore[arg-type]  # any map-style one
        if self.ids.min(initial=0) < 0 or self.ids.max(initial=0) >= len(dataset):
            raise InputError(
                f"The ids of this coreset are no positions in a data set of {len(dataset):,}: give the ExampleSet they "
                "were chosen from, as run.data().train."
            )
        return Subset(dataset, self.ids.tolist())  # type: ignore[arg-type]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with columns id, score, weight and, where known, label."""
        import pandas as pd

        columns = {"id": self.ids, "score": self.scores, "weight": self.weights}
        return pd.DataFrame({**columns, **({} if self.labels is None else {"label": self.labels})})

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        made_from: str | None = None,
        told: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Write the coreset atomically: a table when the name ends in ``.csv``, else one safetensors file.

        Args:
            path: the file.
            made_from: a fingerprint of what it was chosen from and how, kept in the header of a safetensors file for
                those who read it again.
            told: of a table, more columns to be read by people, such as the file of each example.

        Raises:
            StorageError: it cannot be written.
        """
        target, more = Path(path), dict(told or {})
        if target.suffix == ".csv":
            new_folder(target.parent)
            cells = zip(*more.values(), strict=True) if more else itertools.repeat(())
            rows = ([*row, *added] for row, added in zip(self._rows(), cells, strict=bool(more)))
            write_rows(target, [*TABLE, "class", *more], rows)
            return
        arrays = {name: getattr(self, name) for name in ("ids", "scores", "weights", "labels")}
        origin = {} if made_from is None else {"made_from": made_from}
        save_result(target, "coreset", arrays, {name: getattr(self, name) for name in (*HEADER, "classes")} | origin)

    def to_csv(self) -> str:
        """Return the table that :meth:`save` writes, without the column that tells whether a file is whole."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*TABLE, "class"])
        writer.writerows(self._rows())
        return text.getvalue()

    def _rows(self) -> Iterator[list[object]]:
        for position, id_ in enumerate(self.ids.tolist()):
            label = "" if self.labels is None else int(self.labels[position])
            name = self.classes[label] if self.classes is not None and isinstance(label, int) else ""
            yield [id_, float(self.scores[position]), float(self.weights[position]), label, name]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Coreset:
        """Read what :meth:`save` wrote (from a ``.csv`` the method's name and options are not known).

        Raises:
            CorruptFileError: the file is missing, truncated, changed or no coreset.
        """
        file = Path(path)
        if file.suffix == ".csv":
            return cls._from_csv(file)
        own, arrays = load_result(file, "coreset", HEADER, {"classes": list[str]})
        with understanding(file):
            return cls(labels=arrays.pop("labels", None), **arrays, **own)

    @classmethod
    def _from_csv(cls, file: Path) -> Coreset:
        with understanding(f"{file} is not a coreset table: it"):
            rows = read_rows(file, TABLE)
            ids = np.array([int(row["id"]) for row in rows], dtype=np.int64)
            scores, weights = (np.array([float(row[name]) for row in rows]) for name in ("score", "weight"))
            labels = [int(row["label"]) for row in rows if row["label"] != ""]
            known = np.array(labels, dtype=np.int64) if len(labels) == len(rows) else None
            return cls(ids, scores, weights, known, file.stem, len(rows))

    def plot(self, examples: ExampleSet | None = None, *, per_class: int = 8) -> Figure:
        """Draw how many of each class were kept and how they scored; or, of images, the first kept of each class.

        Args:
            examples: what the coreset was chosen from, if they are images to be shown.
            per_class: how many images of a class.

        Raises:
            InputError: an example that is not in ``examples``, or is no image.
        """
        if examples is None:
            names = self.classes or {label: str(label) for label in self.per_class}
            kept = {names[label]: count for label, count in self.per_class.items()}
            return coreset_bars(kept, self.scores, method=self.method, candidates=self.n_candidates)
        labels = examples.labels[examples.positions(self.ids)]
        counts = are_counts(self.scores)
        rows = []
        for label in np.unique(labels)[:MOST_CLASSES]:
            first, name = np.flatnonzero(labels == label)[:per_class], short(examples.classes[label])
            scores = [scored(float(self.scores[place]), plus=False, counts=counts) for place in first]
            ids = self.ids[first].tolist()
            rows.append(
                [
                    Picture(examples.image(id_), f"{name}\nscore {score}{examples.told(id_)}")
                    for id_, score in zip(ids, scores, strict=True)
                ]
            )
        return gallery(rows, f"{self.method}: first kept of each class", columns=per_class)

    def _repr_html_(self) -> str:
        if self.labels is None:
            pairs = list(zip(map(str, self.ids.tolist()), self.scores.tolist(), strict=True))
            return html_table(repr(self), ["id", "score"], pairs)
        names = self.classes or tuple(map(str, range(int(self.labels.max(initial=0)) + 1)))
        means = {label: float(self.scores[self.labels == label].mean()) for label in self.per_class}
        rows = [(names[label], count, means[label]) for label, count in self.per_class.items()]
        return html_table(repr(self), ["class", "kept", "mean score"], rows)

    def __repr__(self) -> str:
        counts = list(self.per_class.values())
        missing = max(0, len(self.classes or ()) - len(counts))
        spread = (
            f", {0 if missing else min(counts)} to {max(counts)} per class over {len(counts) + missing} classes"
            if counts
            else ""
        )
        return f"Coreset({self.method}: {len(self):,} of {self.n_candidates:,}{spread})"
