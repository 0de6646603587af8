"""The interface of every coreset method, and the result they return.

A selector is a frozen dataclass: its fields are its options and it builds with no arguments. Most score examples and
keep the highest (:class:`ScoreSelector`); others pick one by one (:class:`Selector`).
"""

from __future__ import annotations

import csv
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import numpy.typing as npt

from comove.coreset.budget import Budget, resolve_budget
from comove.data import Ids
from comove.discovery import label_of
from comove.errors import CorruptFileError, InputError, NonFiniteError
from comove.sources import Source, SourceLike, as_sources
from comove.store import as_ids, check_kind, new_folder, read_arrays, read_header, write_arrays, write_bytes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Coreset", "Picks", "ScoreSelector", "Selector", "highest"]

FORMAT_VERSION = 1
Positions = npt.NDArray[np.int64]


def highest(scores: npt.NDArray[Any], ids: Ids, k: int) -> Positions:
    """Return the positions of the k highest scores, best first; ties go to the lower id.

    >>> highest(np.array([1.0, 3.0, 3.0]), np.array([7, 9, 8]), 2).tolist()
    [2, 1]
    """
    return np.lexsort((ids, -scores))[:k]


@dataclass(frozen=True)
class Picks:
    """What a selector picked: positions in order of choice, their scores, and weights where the method has any."""

    positions: Positions
    scores: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None = None


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

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with columns id, score, weight and, where known, label."""
        import pandas as pd

        columns = {"id": self.ids, "score": self.scores, "weight": self.weights}
        return pd.DataFrame({**columns, **({} if self.labels is None else {"label": self.labels})})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the coreset atomically: a table when the name ends in ``.csv``, else one safetensors file.

        Raises:
            StorageError: it cannot be written.
        """
        target = Path(path)
        new_folder(target.parent)
        if target.suffix == ".csv":
            write_bytes(target, self._csv().encode())
            return
        arrays: dict[str, npt.NDArray[Any]] = {"ids": self.ids, "scores": self.scores, "weights": self.weights}
        if self.labels is not None:
            arrays["labels"] = self.labels
        head = {"kind": "comove/coreset", "format_version": FORMAT_VERSION, "method": self.method}
        rest = {"n_candidates": self.n_candidates, "classes": self.classes, "info": dict(self.info)}
        write_arrays(target, arrays, {**head, **rest})

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "score", "weight", "label", "class"])
        for position, id_ in enumerate(self.ids.tolist()):
            label = "" if self.labels is None else int(self.labels[position])
            name = self.classes[label] if self.classes is not None and isinstance(label, int) else ""
            writer.writerow([id_, float(self.scores[position]), float(self.weights[position]), label, name])
        return text.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Coreset:
        """Read what :meth:`save` wrote (from a ``.csv`` the method's name and options are not known).

        Raises:
            CorruptFileError: the file is missing, truncated or no coreset.
        """
        file = Path(path)
        if file.suffix == ".csv":
            return cls._from_csv(file)
        _, header = read_header(file)
        check_kind(header, "coreset", FORMAT_VERSION, file)
        classes = None if header["classes"] is None else tuple(header["classes"])
        arrays = read_arrays(file)
        return cls(
            arrays["ids"],
            arrays["scores"],
            arrays["weights"],
            arrays.get("labels"),
            header["method"],
            header["n_candidates"],
            classes,
            header["info"],
        )

    @classmethod
    def _from_csv(cls, file: Path) -> Coreset:
        try:
            with file.open(newline="", encoding="utf-8") as text:
                rows = list(csv.DictReader(text))
            ids = np.array([int(row["id"]) for row in rows], dtype=np.int64)
            scores, weights = ([float(row[name]) for row in rows] for name in ("score", "weight"))
            labels = [int(row["label"]) for row in rows if row["label"] != ""]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise CorruptFileError(
                f"{file} is not a coreset table (columns id, score, weight, label): {error}"
            ) from error
        known = np.array(labels, dtype=np.int64) if len(labels) == len(rows) else None
        return cls(ids, np.array(scores), np.array(weights), known, file.stem, len(rows))

    def __repr__(self) -> str:
        counts = list(self.per_class.values())
        spread = f", {min(counts)} to {max(counts)} a class over {len(counts)} classes" if counts else ""
        return f"Coreset({self.method}: {len(self):,} of {self.n_candidates:,}{spread})"


@dataclass(frozen=True)
class Selector(ABC):
    """Base of all coreset methods.

    Class attributes:
        name: how the command line and reports call it.
        summary: one line saying what it keeps.
        requires: what it reads: ``"trace"``, ``"checkpoints"``.
        balanced: whether it picks class by class (quotas by largest remainder) rather than from all examples at once.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})
    balanced: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults."""
        return label_of(self)

    @final
    def select(
        self, source: SourceLike | Sequence[SourceLike], budget: float | int | Sequence[int] | Mapping[int, int] = 0.1
    ) -> Coreset:
        """Choose a coreset.

        Args:
            source: a run or a trace, or several of the same training examples.
            budget: a share of the training examples (a float up to 1.0), a number of examples (an integer), or the
                number for each class (a sequence, or a mapping from class to number).

        Returns:
            The coreset, of exactly the size asked for.

        Raises:
            InputError: a budget of 0 or more than there is (in all or in a class), runs that lack what is required.
        """
        sources = as_sources(source, self.requires, self.name)
        trace = sources[0].trace
        labels = trace.train_labels
        chosen = resolve_budget(budget, labels, trace.train_ids.size, self.balanced, self.name)
        prepared = self._prepare(sources)
        picks = self._pick_all(prepared, trace.train_ids, labels, chosen)
        classes = trace.manifest.get("classes")
        weights = picks.weights if picks.weights is not None else np.ones(picks.positions.size, np.float32)
        return Coreset(
            trace.train_ids[picks.positions],
            picks.scores,
            weights,
            None if labels is None else labels[picks.positions],
            self.label,
            int(trace.train_ids.size),
            None if classes is None else tuple(classes),
            {**asdict(self), "runs": len(sources)},
        )

    def _pick_all(self, prepared: Any, ids: Ids, labels: Ids | None, budget: Budget) -> Picks:
        if budget.per_class is None:
            return self._pick(prepared, np.arange(ids.size), budget.total)
        assert labels is not None
        parts = [
            self._pick(prepared, np.flatnonzero(labels == label), count)
            for label, count in budget.per_class.items()
            if count > 0
        ]
        positions = np.concatenate([part.positions for part in parts])
        scores = np.concatenate([part.scores for part in parts])
        weighted = [part.weights for part in parts if part.weights is not None]
        order = np.lexsort((ids[positions], -scores))
        weights = np.concatenate(weighted)[order] if len(weighted) == len(parts) else None
        return Picks(positions[order], scores[order], weights)

    @abstractmethod
    def _prepare(self, sources: tuple[Source, ...]) -> Any:
        """Compute what does not depend on the budget, once."""

    @abstractmethod
    def _pick(self, prepared: Any, candidates: Positions, k: int) -> Picks:
        """Pick ``k`` of the training examples at ``candidates`` (positions in the trace)."""


@dataclass(frozen=True)
class _Scored:
    scores: npt.NDArray[np.float32]
    ids: Ids


@dataclass(frozen=True)
class ScoreSelector(Selector):
    """A selector that scores every example and keeps the highest; ties go to the lower id."""

    @final
    def scores(self, source: SourceLike | Sequence[SourceLike]) -> npt.NDArray[np.float32]:
        """Return the (N,) scores of all training examples, in the order of the trace's ids."""
        return self._prepare(as_sources(source, self.requires, self.name)).scores

    @final
    def _prepare(self, sources: tuple[Source, ...]) -> _Scored:
        scores, ids = self._scores(sources), sources[0].trace.train_ids
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise NonFiniteError(f"{self.name}: {bad.size} scores are NaN or infinite, the first of id {ids[bad[0]]}.")
        return _Scored(scores, ids)

    @final
    def _pick(self, prepared: _Scored, candidates: Positions, k: int) -> Picks:
        best = candidates[highest(prepared.scores[candidates], prepared.ids[candidates], k)]
        return Picks(best, prepared.scores[best])

    @abstractmethod
    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        """Return (N,) scores; higher is kept first."""
