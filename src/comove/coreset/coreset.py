"""The result of every coreset method: which examples to keep, in which order and with which weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.data import ExampleSet, Ids
from comove.data.tables import read_rows, write_rows
from comove.display import figure, html_table
from comove.errors import InputError
from comove.store import (
    as_ids,
    check_kind,
    entries,
    new_folder,
    read_arrays,
    read_header,
    understanding,
    write_arrays,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Coreset"]

FORMAT_VERSION = 2
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
            own = array.view()
            own.flags.writeable = False
            object.__setattr__(self, name, own)

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

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with columns id, score, weight and, where known, label."""
        import pandas as pd

        columns = {"id": self.ids, "score": self.scores, "weight": self.weights}
        return pd.DataFrame({**columns, **({} if self.labels is None else {"label": self.labels})})

    def save(self, path: str | os.PathLike[str], *, made_from: str | None = None) -> None:
        """Write the coreset atomically: a table when the name ends in ``.csv``, else one safetensors file.

        Args:
            path: the file.
            made_from: a fingerprint of what it was chosen from and how, kept in the header of a safetensors file for
                those who read it again.

        Raises:
            StorageError: it cannot be written.
        """
        target = Path(path)
        new_folder(target.parent)
        if target.suffix == ".csv":
            write_rows(target, [*TABLE, "class"], self._rows())
            return
        arrays: dict[str, npt.NDArray[Any]] = {"ids": self.ids, "scores": self.scores, "weights": self.weights}
        if self.labels is not None:
            arrays["labels"] = self.labels
        head = {"kind": "comove/coreset", "format_version": FORMAT_VERSION, "method": self.method}
        rest = {"n_candidates": self.n_candidates, "classes": self.classes, "info": dict(self.info)}
        origin = {} if made_from is None else {"made_from": made_from}
        write_arrays(target, arrays, {**head, **rest, **origin})

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
        _, header = read_header(file)
        check_kind(header, "coreset", FORMAT_VERSION, file)
        kinds = {"method": str, "n_candidates": int, "info": dict}
        own = entries(header, file, kinds, {"classes": list[str]})
        arrays = read_arrays(file)
        with understanding(file):
            return cls(
                arrays["ids"],
                arrays["scores"],
                arrays["weights"],
                arrays.get("labels"),
                own["method"],
                own["n_candidates"],
                None if own["classes"] is None else tuple(own["classes"]),
                own["info"],
            )

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
        return (
            figure("coreset_bars", self) if examples is None else figure("coreset_gallery", self, examples, per_class)
        )

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
            f", {0 if missing else min(counts)} to {max(counts)} a class over {len(counts) + missing} classes"
            if counts
            else ""
        )
        return f"Coreset({self.method}: {len(self):,} of {self.n_candidates:,}{spread})"
