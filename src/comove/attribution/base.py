"""The interface of every attribution method.

A method is a frozen dataclass: its fields are its options, it builds with no arguments, and it writes ``_fit`` and
``_scores``. :meth:`Attributor.fit` and :meth:`Attributor.attribute` are final and check everything once.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, final

import numpy as np
import numpy.typing as npt

from comove.attribution.scores import Scores
from comove.data import ExampleSet, Ids, positions_of
from comove.discovery import label_of
from comove.errors import InputError, NotFittedError
from comove.sources import Source, SourceLike, as_sources

__all__ = ["Attributor", "Queries"]


@dataclass(frozen=True)
class Queries:
    """The queries asked about: recorded ones by id, or new examples."""

    ids: Ids
    labels: Ids | None
    examples: ExampleSet | None = None

    @property
    def recorded(self) -> bool:
        """Whether their losses were recorded in training (else they are replayed from checkpoints)."""
        return self.examples is None


@dataclass(frozen=True)
class Attributor(ABC):
    """Base of all attribution methods.

    Class attributes:
        name: how the command line and reports call it.
        summary: one line saying what it measures.
        requires: what it reads: ``"trace"``, ``"checkpoints"``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})

    @final
    def fit(self, source: SourceLike | Sequence[SourceLike]) -> Self:
        """Return a fitted copy; nothing passed in is changed.

        Args:
            source: a run or a trace, or several of the same training examples (their scores are averaged).

        Raises:
            InputError: runs that do not belong together, or lack what the method requires.
            InputTypeError: something else than runs and traces.
        """
        sources = as_sources(source, self.requires, self.name)
        fitted = copy.copy(self)  # a frozen dataclass: what fitting adds is set on the copy only
        object.__setattr__(fitted, "_fitted", (sources, self._fit(sources)))
        return fitted

    @final
    def attribute(self, queries: ExampleSet | Sequence[int] | Ids | int | None = None) -> Scores:
        """Return the scores of every training example for these queries.

        Args:
            queries: ids of recorded queries; ``None`` for all of them (validation examples left out); or an
                :class:`ExampleSet` of new examples, for methods that can answer for these (CLD replays them from the
                runs' checkpoints).

        Returns:
            Scores (N, Q), positive = helps.

        Raises:
            NotFittedError: :meth:`fit` was not called; use what it returns.
            InputError: unknown or repeated query ids.
        """
        fitted: tuple[tuple[Source, ...], Any] | None = getattr(self, "_fitted", None)
        if fitted is None:
            raise NotFittedError(
                f"{type(self).__name__} is not fitted: scores = {type(self).__name__}().fit(runs).attribute(queries)."
            )
        sources, state = fitted
        first = sources[0].trace
        wanted = self._queries(sources, queries)
        values, info = self._scores(state, wanted)
        classes = first.manifest.get("classes")
        return Scores(
            values,
            first.train_ids,
            wanted.ids,
            self.label,
            first.train_labels,
            wanted.labels,
            None if classes is None else tuple(classes),
            {**self.options, "runs": len(sources), **info},
        )

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults."""
        return label_of(self)

    @property
    def options(self) -> dict[str, Any]:
        """The method's options as JSON values."""
        return asdict(self)

    def _queries(self, sources: tuple[Source, ...], queries: object) -> Queries:
        trace = sources[0].trace
        if isinstance(queries, ExampleSet):
            return Queries(queries.ids, queries.labels, queries)
        ids = trace.explained_ids if queries is None else np.atleast_1d(np.asarray(queries))
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.size == 0 or np.unique(ids).size != ids.size:
            raise InputError(f"queries must be distinct integer ids or an ExampleSet, got {queries!r}.")
        for source in sources:
            places = positions_of(
                ids,
                source.trace.query_ids,
                "query ids (pass an ExampleSet to ask about examples that were not recorded)",
            )
            if source is sources[0]:
                labels = None if trace.query_labels is None else trace.query_labels[places]
        return Queries(ids.astype(np.int64), labels)

    @abstractmethod
    def _fit(self, sources: tuple[Source, ...]) -> Any:
        """Compute what does not depend on the queries, and return it."""

    @abstractmethod
    def _scores(self, state: Any, queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return (N, Q) scores, positive = helps, and what to note beside them."""
