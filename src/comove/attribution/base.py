"""The interface of every attribution method.

A method is a frozen dataclass: its fields are its options, it builds with no arguments, and it writes ``_fit`` and
``_scores``. :meth:`Attributor.fit` and :meth:`Attributor.attribute` are final and check everything once.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, final

import numpy as np
import numpy.typing as npt
import torch

from comove.attribution.scores import Scores
from comove.checks import whole_number
from comove.data import ExampleSet, Ids, positions_of
from comove.discovery import label_of
from comove.errors import InputError, NonFiniteError, NotFittedError, some
from comove.store import command_line, readable, versions
from comove.training.sources import Bank, BankSource, Source, SourceLike, as_bank, as_sources

__all__ = ["Attributor", "BankAttributor", "Queries", "said_once"]


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
        cost: what it costs beyond the training runs, where an epoch is one forward and backward pass over the data.
        requires: what it reads: ``"trace"``, perhaps ``"checkpoints"``; or ``"bank"``, a retraining bank.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    cost: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})

    @final
    def fit(self, source: SourceLike | Bank | Sequence[SourceLike]) -> Self:
        """Return a fitted copy; nothing passed in is changed.

        Args:
            source: a run or a trace, or several of the same training examples (their scores are averaged); or, for a
                method that requires a bank, one retraining bank.

        Raises:
            InputError: runs that do not belong together, or lack what the method requires.
            InputTypeError: something else than what the method reads.
        """
        sources = self._sources(source)
        fitted = copy.copy(self)  # a frozen dataclass: what fitting adds is set on the copy only
        with self._precise():
            object.__setattr__(fitted, "_fitted", (sources, self._fit(sources)))
        return fitted

    @final
    def attribute(self, queries: ExampleSet | Sequence[int] | Ids | int | None = None) -> Scores:
        """Return the scores of every training example for these queries.

        Args:
            queries: ids of recorded queries; ``None`` for all of them (validation examples left out); or an
                :class:`ExampleSet` of new examples, as :meth:`comove.training.Run.prepare` makes them, for methods that
                can answer for these (CLD replays them from the runs' checkpoints).

        Returns:
            Scores (N, Q), positive = helps.

        Raises:
            NotFittedError: :meth:`fit` was not called; use what it returns.
            InputError: unknown or repeated query ids; new examples of another shape, scale or normalization than the
                run's (:meth:`comove.training.Run.prepare` makes them right).
        """
        sources, state = self._require_fitted()
        first = sources[0]
        wanted = self._queries(sources, queries)
        with self._precise():
            values, info = self._scores(state, wanted)
        scored = self._scored(values, first.train_ids, wanted.ids)
        labels = first.train_labels
        return Scores(
            values[scored],
            first.train_ids[scored],
            wanted.ids,
            self.label,
            None if labels is None else labels[scored],
            wanted.labels,
            first.classes,
            {**self.options, "runs": len(sources), "not_scored": int((~scored).sum()), **info, **_provenance(first)},
        )

    @final
    def self_influence(self) -> npt.NDArray[np.float32]:
        """Return (N,) how much each training example helps itself, in the order of the training ids.

        High values mark examples that nothing else supports: hard, rare or mislabelled ones (Koh, Liang, 2017).

        Raises:
            NotFittedError: :meth:`fit` was not called.
            InputError: the method does not define it.
        """
        _, state = self._require_fitted()
        with self._precise():
            values = self._self_influence(state)
        if values is None:
            raise InputError(f"{self.name} does not define self-influence; TracIn, TRAK and Arnoldi do.")
        if not (finite := np.isfinite(values)).all():
            raise NonFiniteError(
                f"The self-influence of {int((~finite).sum())} training examples is NaN or infinite, of ids "
                f"{some(self._require_fitted()[0][0].train_ids[~finite])}: check the checkpoint and its losses."
            )
        return values

    def _scored(self, values: npt.NDArray[np.float32], train_ids: Ids, query_ids: Ids) -> npt.NDArray[np.bool_]:
        """Which training examples have scores: all, but where a bank never left one out."""
        bad = ~np.isfinite(values)
        unscored: npt.NDArray[np.bool_] = np.logical_and(np.isnan(values).all(1), "bank" in self.requires)
        bad[unscored] = False
        if bad.any():
            rows, columns = bad.any(1), bad.any(0)
            raise NonFiniteError(
                f"{self.name}: {int(bad.sum())} of {bad.size} scores are NaN or infinite, of training ids "
                f"{some(train_ids[rows])} and query ids {some(query_ids[columns])}. Check these examples, the "
                "checkpoint and its losses."
            )
        return ~unscored

    @contextmanager
    def _precise(self) -> Iterator[None]:
        """Keep a GPU from its TensorFloat-32, in which a convolution's per-example gradients may be off by a tenth."""
        flags = torch.backends.cudnn
        try:
            rounded = flags.allow_tf32
        except RuntimeError:  # set for each operation by itself: whoever does that knows
            rounded = False
        if rounded:
            flags.allow_tf32 = False
        try:
            yield
        finally:
            if rounded:
                flags.allow_tf32 = True

    def _check_whole(self, option: str, least: int = 1, unit: str = "a whole number") -> None:
        """Check an option that is a whole number; as a Python integer it is a JSON value."""
        value = whole_number(getattr(self, option), f"{self.name}: {option}", least, unit=unit, error=InputError)
        object.__setattr__(self, option, value)

    def _check_parameters(self) -> None:
        """Check the option ``parameters``: names or glob patterns, or ``None`` for all trainable ones."""
        given: Any = getattr(self, "parameters")  # noqa: B009 - gradient methods have it
        if given is None or isinstance(given, str):
            return
        if not isinstance(given, Sequence) or not given or not all(isinstance(name, str) for name in given):
            raise InputError(f"{self.name}: parameters must be a name or pattern, or several of them; got {given!r}.")
        object.__setattr__(self, "parameters", tuple(given))

    def _require_fitted(self) -> tuple[tuple[Any, ...], Any]:
        fitted: tuple[tuple[Any, ...], Any] | None = getattr(self, "_fitted", None)
        if fitted is None:
            raise NotFittedError(
                f"{type(self).__name__} is not fitted: scores = {type(self).__name__}().fit(runs).attribute(queries)."
            )
        return fitted

    def _sources(self, given: Any) -> tuple[Any, ...]:
        if "bank" in self.requires:
            return (as_bank(given, self.name),)
        return as_sources(given, self.requires, self.name)

    def _self_influence(self, state: Any) -> npt.NDArray[np.float32] | None:
        """Return (N,) self-influence, or ``None`` where the method does not define it."""
        return None

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults."""
        return label_of(self)

    @property
    def options(self) -> dict[str, Any]:
        """The method's options as JSON values."""
        found = asdict(self)
        return {name: readable(value) if isinstance(value, str) else value for name, value in found.items()}

    def _queries(self, sources: tuple[Source | BankSource, ...], queries: object) -> Queries:
        first = sources[0]
        if isinstance(queries, ExampleSet):
            if "bank" in self.requires:
                raise InputError(f"{self.name} knows the queries of its bank only; give their ids.")
            for source in sources:
                _check_prepared(source, queries)
            return Queries(queries.ids, queries.labels if queries.labelled else None, queries)
        ids = first.explained_ids if queries is None else np.atleast_1d(np.asarray(queries))
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.size == 0 or np.unique(ids).size != ids.size:
            raise InputError(f"queries must be distinct integer ids or an ExampleSet, got {queries!r}.")
        what = "query ids (pass an ExampleSet to ask about examples that were not recorded)"
        places = [positions_of(ids, source.query_ids, what) for source in sources]
        labels = None if first.query_labels is None else first.query_labels[places[0]]
        return Queries(ids.astype(np.int64), labels)

    @abstractmethod
    def _fit(self, sources: tuple[Any, ...]) -> Any:
        """Compute what does not depend on the queries, and return it.

        ``sources`` are :class:`comove.training.sources.Source`, or one :class:`comove.training.sources.BankSource`.
        """

    @abstractmethod
    def _scores(self, state: Any, queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return (N, Q) scores, positive = helps, and what to note beside them.

        From a bank, a row of NaN says that the method knows nothing of that example: it is left out of the result and
        counted. Any other number that is not finite is an error.
        """


@dataclass(frozen=True)
class BankAttributor(Attributor):
    """Base of the methods that are computed from a retraining bank: they know the queries of their bank only."""

    requires: ClassVar[frozenset[str]] = frozenset({"bank"})

    @abstractmethod
    def _bank_scores(self, bank: BankSource) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        """Return (N, Q) scores for all queries of the bank, positive = helps, and what to note beside them."""

    def _fit(self, sources: tuple[BankSource, ...]) -> tuple[npt.NDArray[np.float32], dict[str, Any], BankSource]:
        bank = sources[0]
        scores_NQ, info = self._bank_scores(bank)
        return scores_NQ.astype(np.float32), {**info, "fitted_on": bank.digests}, bank

    def _scores(
        self, state: tuple[npt.NDArray[np.float32], dict[str, Any], BankSource], queries: Queries
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        scores_NQ, info, bank = state
        return scores_NQ[:, positions_of(queries.ids, bank.query_ids, "query ids")], info


def said_once(notes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return what the notes of several runs or checkpoints say under each name, what several say once."""
    names = dict.fromkeys(name for note in notes for name in note)
    return {name: "; ".join(dict.fromkeys(note[name] for note in notes if name in note)) for name in names}


def _check_prepared(source: Source | BankSource, queries: ExampleSet) -> None:
    """Refuse new examples that were preprocessed differently from the run's own."""
    run = source.run if isinstance(source, Source) else None
    if run is None or queries.structured:
        return
    obstacle = run.preprocessing.obstacle(queries)
    if obstacle is not None:
        raise InputError(f"New examples {obstacle}. Make them with run.prepare(images, labels).")


def _provenance(source: Source | BankSource) -> dict[str, Any]:
    """Return the provenance that is saved with scores."""
    return {"command": command_line(), "versions": versions(), **source.noted}
