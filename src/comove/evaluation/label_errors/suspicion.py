"""The result of a hunt for wrong labels: every method's number for every training example, and the rankings.

Shape legend: N train examples, M methods.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.checks import as_ids, whole_number
from comove.data import ExampleSet, Ids, positions_of
from comove.discovery import lookup
from comove.display import html_table, short
from comove.errors import InputError, NonFiniteError
from comove.plots import HURT, NEUTRAL, Picture, gallery
from comove.store import understanding
from comove.store.results import freeze, load_result, read_only, save_result, write_table
from comove.ties import highest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Suspicion"]

HEADER = {"methods": list[str], "low": list[str], "skipped": dict, "info": dict}
COLUMNS = 10
"""Pictures in a row."""


@dataclass(frozen=True, eq=False, repr=False)
class Suspicion:
    """How suspicious the label of each training example looks to each method; made by :func:`rank_labels`.

    Attributes:
        train_ids: (N,) int64.
        labels: (N,) the given class indices.
        values: method -> (N,) float32 in the method's own sign (see ``low``).
        low: the methods whose low values are suspicious (``cld``, ``aum``); of the others high values are.
        classes: class names, where known.
        suggested: (N,) of the classes other than the label, the one that the runs' networks give the highest mean
            probability over training, where they could be asked.
        confidence: (N,) that probability: low where the networks agree with the label.
        skipped: methods that were left out, and why.
        info: of the runs (JSON values).

    Raises:
        InputError: no method, shapes that do not fit, repeated ids.
        NonFiniteError: a value that is NaN or infinite.
    """

    train_ids: Ids
    labels: Ids
    values: Mapping[str, npt.NDArray[np.float32]]
    low: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    suggested: Ids | None = None
    confidence: npt.NDArray[np.float32] | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = as_ids(self.train_ids, "train_ids")
        if not self.values:
            raise InputError(f"A ranking of labels needs at least one method; left out were {dict(self.skipped)}.")
        arrays: dict[str, npt.NDArray[Any]] = {"train_ids": ids, "labels": np.asarray(self.labels, np.int64)}
        for name in ("suggested", "confidence"):
            if (given := getattr(self, name)) is not None:
                arrays[name] = np.asarray(given)
        values = {name: np.asarray(value, np.float32) for name, value in self.values.items()}
        for name, array in (arrays | values).items():
            if array.shape != ids.shape:
                raise InputError(f"{name} has shape {array.shape} for {ids.size} training examples.")
        for name, array in values.items():
            if not np.isfinite(array).all():
                first = int(ids[~np.isfinite(array)][0])
                raise NonFiniteError(f"{name}: values must be finite; that of id {first} is the first that is not.")
        freeze(self, arrays)
        object.__setattr__(self, "values", {name: read_only(array) for name, array in values.items()})

    def __len__(self) -> int:
        return int(self.train_ids.size)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order they were asked for."""
        return tuple(self.values)

    # --- asking ---

    def towards(self, method: str | None = None) -> npt.NDArray[np.float32]:
        """Return a method's values (N,), turned so that higher is more suspicious.

        Raises:
            InputError: an unknown method.
        """
        name = self.methods[0] if method is None else method
        values = lookup(name, self.values, "method here")
        return -values if name in self.low else values

    def ranks(self, method: str | None = None) -> Ids:
        """Return (N,) ranks from 1, the most suspicious; ties go by a hash of the id (:mod:`comove.ties`)."""
        ranks = np.empty(len(self), np.int64)
        ranks[self._order(method)] = np.arange(1, len(self) + 1)
        return ranks

    def most(self, k: int = 20, method: str | None = None) -> Ids:
        """Return the ids of the k most suspicious labels, the worst first; by default those of the first method.

        Raises:
            InputError: k outside 1 to N, an unknown method.
        """
        k = whole_number(k, "k", 1, len(self), unit="a number of labels", error=InputError)
        return self.train_ids[self._order(method)[:k]]

    def _order(self, method: str | None) -> Ids:
        return highest(self.towards(method), self.train_ids)

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where names are unknown."""
        return str(label) if self.classes is None else self.classes[label]

    def suggestion(self, id_: int) -> str | None:
        """The other class that the networks suggest for an example, by name; ``None`` where they were not asked.

        Raises:
            InputError: an unknown id.
        """
        place = int(positions_of([id_], self.train_ids, "train ids")[0])
        return None if self.suggested is None else self.class_name(int(self.suggested[place]))

    # --- telling and keeping ---

    def to_pandas(self, method: str | None = None) -> pd.DataFrame:
        """A data frame with one row per example, the most suspicious first (by ``method``, else the first).

        Columns: ``id``, ``label``, ``class``; ``suggested`` and ``confidence``, where known; of each method its value,
        and ``<method>_rank`` (1 is the most suspicious).
        """
        import pandas as pd

        columns: dict[str, Any] = {"id": self.train_ids, "label": self.labels, "class": self._names(self.labels)}
        if self.suggested is not None:
            columns |= {"suggested": self._names(self.suggested), "confidence": self.confidence}
        for name, values in self.values.items():
            columns |= {name: values, f"{name}_rank": self.ranks(name)}
        return pd.DataFrame(columns).iloc[self._order(method)].reset_index(drop=True)

    def suspects(self, k: int, wrong_ids: object = None) -> pd.DataFrame:
        """A long data frame of each method's k most suspicious labels, as ``comove report`` reads them.

        Columns: ``method``, ``id``, ``score``, ``note`` (which end is suspicious); ``suggested`` (a class index), where
        known; ``known_wrong`` (0 or 1), where ``wrong_ids`` are given.

        Raises:
            InputError: k outside 1 to N.
        """
        import pandas as pd

        parts = []
        for method in self.methods:
            ids = self.most(k, method)
            places = positions_of(ids, self.train_ids, "train ids")
            note = f"{'low' if method in self.low else 'high'} values are suspicious"
            columns: dict[str, Any] = {"method": method, "id": ids, "score": self.values[method][places], "note": note}
            if self.suggested is not None:
                columns["suggested"] = self.suggested[places]
            if wrong_ids is not None:
                columns["known_wrong"] = np.isin(ids, as_ids(wrong_ids, "wrong ids")).astype(np.int64)
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def _names(self, labels: Ids) -> list[str]:
        return [self.class_name(label) for label in labels.tolist()]

    def to_csv(self, path: str | os.PathLike[str], method: str | None = None) -> Path:
        """Write :meth:`to_pandas` as a table, atomically."""
        return write_table(path, self.to_pandas(method))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        arrays = {f"values.{name}": values for name, values in self.values.items()}
        arrays |= {name: getattr(self, name) for name in ("train_ids", "labels", "suggested", "confidence")}
        header = {name: getattr(self, name) for name in (*HEADER, "classes")}
        save_result(path, "suspicion", arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Suspicion:
        """Read what :meth:`save` wrote.

        Raises:
            CorruptFileError: the file is missing, truncated or something else.
        """
        own, arrays = load_result(path, "suspicion", HEADER, {"classes": list[str]})
        with understanding(path):
            values = {name: arrays.pop(f"values.{name}") for name in own.pop("methods")}
            return cls(values=values, **arrays, **own)

    def plot(
        self,
        examples: ExampleSet,
        k: int = 20,
        method: str | Sequence[str] | None = None,
        *,
        wrong_ids: Ids | None = None,
    ) -> Figure:
        """Show the k most suspicious examples, the worst on the left.

        Over each picture: its label, the other class that the networks suggest, its id. Labels known to be wrong are
        orange, others black; grey where nothing is known.

        Args:
            examples: the training examples; images.
            k: how many.
            method: by which method, or several; by default the first.
            wrong_ids: labels known to be wrong, to be marked.

        Raises:
            InputError: inputs that are no images, an unknown id or method, k above the number of labels.
        """
        methods = [method or self.methods[0]] if method is None or isinstance(method, str) else list(method)
        rows = [
            (name if start == 0 else "", ids[start : start + COLUMNS])
            for name in methods
            for ids in [self.most(k, name)]
            for start in range(0, k, COLUMNS)
        ]
        pictures = [[self._picture(examples, id_, wrong_ids) for id_ in ids.tolist()] for _, ids in rows]
        marked = "" if wrong_ids is None else "; orange: flipped on purpose"
        title = f"Most suspicious labels (\u2192 the other class that the networks suggest){marked}"
        return gallery(pictures, title, sides=[name for name, _ in rows])

    def _picture(self, examples: ExampleSet, id_: int, wrong_ids: Ids | None) -> Picture:
        place = int(positions_of([id_], self.train_ids, "train ids")[0])
        other = self.suggestion(id_)
        lines = [short(self.class_name(int(self.labels[place]))), *([f"\u2192 {short(other)}"] if other else [])]
        colour = NEUTRAL if wrong_ids is None else HURT if id_ in wrong_ids else "black"
        return Picture(examples.image(id_), "\n".join(lines) + examples.number(id_, "\n#") + examples.told(id_), colour)

    def _repr_html_(self) -> str:
        frame = self.to_pandas().head(10)
        title = f"{self!r}; the most suspicious by {self.methods[0]}"
        return html_table(title, list(frame.columns), frame.astype(object).to_numpy().tolist())

    def __repr__(self) -> str:
        left_out = f"; left out: {', '.join(self.skipped)}" if self.skipped else ""
        return f"Suspicion({len(self):,} labels by {', '.join(self.methods)}{left_out})"
