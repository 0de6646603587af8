"""The interface of every coreset method.

A selector is a frozen dataclass: its fields are its options and it builds with no arguments. Most score examples and
keep the highest (:class:`ScoreSelector`); others pick one by one (:class:`Selector`). What they read from a trace, and
what is said when the trace lacks it, is in :mod:`comove.coreset.trace_values`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import numpy.typing as npt

from comove.coreset.budget import Budget, resolve_budget
from comove.coreset.coreset import Coreset
from comove.data import Ids
from comove.discovery import label_of, parse_method
from comove.errors import InputError, InputTypeError, NonFiniteError, some
from comove.ties import highest, tie_keys
from comove.training.sources import Source, SourceLike, as_sources

__all__ = [
    "Coreset",
    "Picks",
    "Positions",
    "ScoreSelector",
    "Scored",
    "Selector",
    "adopt",
    "as_selector",
    "check_scores",
    "selectors",
]

Positions = npt.NDArray[np.int64]


def check_scores(scores: npt.NDArray[Any], ids: Ids, who: str) -> None:
    """Raise when a score is NaN or infinite.

    Raises:
        NonFiniteError: naming the first example's id.
    """
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise NonFiniteError(f"{who}: {bad.size} scores are NaN or infinite, the first of id {ids[bad[0]]}.")


@dataclass(frozen=True)
class Picks:
    """What a selector picked.

    Attributes:
        positions: in order of choice.
        scores: of these, in the same order.
        weights: likewise, where the method has any.
        info: what to note in :attr:`Coreset.info` (JSON values).
    """

    positions: Positions
    scores: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selector(ABC):
    """Base of all coreset methods.

    An instance may set its own ``requires``, ``greedy`` and ``balanced``, where its options decide.

    Attributes:
        name: how the command line and reports call it.
        summary: one line saying what it keeps.
        cost: what selecting costs beyond the recorded run, for N examples and T epochs.
        requires: what it reads: ``"trace"``, ``"checkpoints"``.
        balanced: whether it picks class by class (quotas by largest remainder) rather than from all examples at once.
        greedy: whether the picks' order is the order of choice, to be kept as it is. Classes are then merged so that
            every prefix of the coreset is as balanced as can be; else the coreset is sorted by score.
        one_run: whether it is defined for one run only, rather than for the average over several.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    cost: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})
    balanced: ClassVar[bool] = False
    greedy: ClassVar[bool] = False
    one_run: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults."""
        return label_of(self)

    def __str__(self) -> str:
        return self.label

    @property
    def options(self) -> dict[str, Any]:
        """The options as JSON values; a selector among them as its label."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @property
    def seeded(self) -> bool:
        """Whether it draws at random: it has a seed, or a selector among its options has."""
        return bool(self._seeds(1))

    def reseeded(self, number: int) -> Self:
        """Return the same method with its seeds, those of selectors among its options too, raised by ``number``."""
        return replace(self, **self._seeds(number))

    def _seeds(self, number: int) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        within = {name: value for name, value in values.items() if isinstance(value, Selector) and value.seeded}
        changes: dict[str, Any] = {name: value.reseeded(number) for name, value in within.items()}
        return changes | ({"seed": values["seed"] + number} if "seed" in values else {})

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
            The coreset, of exactly the size asked for. Where a share or a number is too small for some classes to get
            an example from a method that picks class by class, ``info["classes_left_out"]`` lists them.

        Raises:
            InputError: a budget of 0 or more than there is (in all or in a class), runs that lack what is required.

        Warns:
            UserWarning: classes are left out so.
        """
        return self._select(source, [budget])[0]

    @final
    def select_each(
        self,
        source: SourceLike | Sequence[SourceLike],
        budgets: Sequence[float | int | Sequence[int] | Mapping[int, int]],
    ) -> list[Coreset]:
        """Choose a coreset of each size, computing what they share once; else as :meth:`select`."""
        return self._select(source, budgets)

    def _select(
        self,
        source: SourceLike | Sequence[SourceLike],
        budgets: Sequence[float | int | Sequence[int] | Mapping[int, int]],
    ) -> list[Coreset]:
        sources = self._sources(source)
        trace = sources[0].trace
        ids, labels, classes = trace.train_ids, trace.train_labels, trace.manifest.get("classes")
        sizes = [resolve_budget(budget, labels, ids.size, self.balanced, self.name) for budget in budgets]
        prepared, chosen = self._prepare(sources), []
        for budget, size in zip(budgets, sizes, strict=True):
            left_out = list(size.left_out) if isinstance(budget, int | float | np.number) else []
            if left_out:
                warnings.warn(_left_out(self.label, size, left_out, classes), stacklevel=3)
            picks = self._pick_all(prepared, ids, labels, size)
            noted = {**self.options, "runs": len(sources), **picks.info}
            chosen.append(
                Coreset(
                    ids[picks.positions],
                    picks.scores,
                    np.ones(picks.positions.size, np.float32) if picks.weights is None else picks.weights,
                    None if labels is None else labels[picks.positions],
                    self.label,
                    int(ids.size),
                    None if classes is None else tuple(classes),
                    noted | ({"classes_left_out": left_out} if left_out else {}),
                )
            )
        return chosen

    @final
    def _sources(self, given: SourceLike | Sequence[SourceLike]) -> tuple[Source, ...]:
        sources = as_sources(given, self.requires, self.name)
        if self.one_run and len(sources) > 1:
            raise InputError(
                f"{self.name} is defined for one run, got {len(sources)}: scores of several cannot be averaged. "
                "Select with each run by itself."
            )
        return sources

    def _pick_all(self, prepared: Any, ids: Ids, labels: Ids | None, budget: Budget) -> Picks:
        if budget.per_class is None:
            return self._pick(prepared, np.arange(ids.size), budget.total)
        assert labels is not None
        parts = {
            label: self._pick(prepared, np.flatnonzero(labels == label), count)
            for label, count in sorted(budget.per_class.items())
            if count > 0
        }
        return _merged(parts, ids, self.greedy)

    @abstractmethod
    def _prepare(self, sources: tuple[Source, ...]) -> Any:
        """Compute what does not depend on the budget, once."""

    @abstractmethod
    def _pick(self, prepared: Any, candidates: Positions, k: int) -> Picks:
        """Pick ``k`` of the training examples at ``candidates`` (positions in the trace, ascending).

        Candidates are all examples, or those of one class.
        """


def _plain(value: Any) -> Any:
    if isinstance(value, Selector):
        return value.label
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _left_out(label: str, budget: Budget, left_out: Sequence[int], names: Sequence[str] | None) -> str:
    summary = some(left_out if names is None else [names[c] for c in left_out])
    of = len(budget.per_class or ())
    return (
        f"{label}: a budget of {budget.total} in proportion to the classes' sizes keeps none of {len(left_out)} of "
        f"{of} classes ({summary}). Give a larger budget, or the number for each class, to keep some of every class."
    )


def _merged(parts: Mapping[int, Picks], ids: Ids, greedy: bool) -> Picks:
    """The picks of all classes: by score; or, greedy, each class at its own even pace. Ties go as everywhere."""
    picked = list(parts.values())
    positions = np.concatenate([part.positions for part in picked])
    scores = np.concatenate([part.scores for part in picked])
    if greedy:
        pace = np.concatenate([np.arange(1, len(part.positions) + 1) / len(part.positions) for part in picked])
        order = np.lexsort((tie_keys(ids[positions]), pace))
    else:
        order = highest(scores, ids[positions])
    weighted = [part.weights for part in picked if part.weights is not None]
    weights = np.concatenate(weighted)[order] if len(weighted) == len(picked) else None
    return Picks(positions[order], scores[order], weights, _merged_info(parts))


def _merged_info(parts: Mapping[int, Picks]) -> dict[str, Any]:
    """What all classes noted alike stands once, what differs stands by class."""
    merged: dict[str, Any] = {}
    for name in {name: None for part in parts.values() for name in part.info}:
        values = {str(label): part.info[name] for label, part in parts.items() if name in part.info}
        first = next(iter(values.values()))
        merged[name] = first if all(value == first for value in values.values()) else values
    return merged


@dataclass(frozen=True)
class Scored:
    """What a score selector computed: (N,) scores, and what to note in :attr:`Coreset.info` (JSON values)."""

    scores: npt.NDArray[np.float32]
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ranked:
    scores: npt.NDArray[np.float32]
    ids: Ids
    info: Mapping[str, Any]


@dataclass(frozen=True)
class ScoreSelector(Selector):
    """A selector that scores every example and keeps the highest; ties by :mod:`comove.ties`.

    Attributes:
        easy_first: whether the highest scores are the easiest examples', as those of CLD are. Methods that need to know
            which end is hard (``ccs``) then read the scores from the other end. An instance may set its own.
    """

    easy_first: ClassVar[bool] = False

    @final
    def scores(self, source: SourceLike | Sequence[SourceLike]) -> npt.NDArray[np.float32]:
        """Return the (N,) scores of all training examples, in the order of the trace's ids."""
        return self._prepare(self._sources(source)).scores

    @final
    def _prepare(self, sources: tuple[Source, ...]) -> _Ranked:
        found, ids = self._scores(sources), sources[0].trace.train_ids
        scored = found if isinstance(found, Scored) else Scored(found)
        check_scores(scored.scores, ids, self.name)
        return _Ranked(scored.scores, ids, scored.info)

    @final
    def _pick(self, prepared: _Ranked, candidates: Positions, k: int) -> Picks:
        best = candidates[highest(prepared.scores[candidates], prepared.ids[candidates], k)]
        return Picks(best, prepared.scores[best], info=prepared.info)

    @abstractmethod
    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32] | Scored:
        """Return (N,) scores, higher is kept first; with notes, where there are any."""


# --- selectors by name -------------------------------------------------------------------------------------------


_KNOWN: dict[str, type[Selector]] = {}


def register(found: Mapping[str, type[Selector]]) -> None:
    """Make methods known by name; the package does it for all of its modules, which therefore need not import it."""
    _KNOWN.update(found)


def selectors() -> dict[str, type[Selector]]:
    """Every coreset method by name."""
    return dict(_KNOWN)


def adopt(outer: Selector, inner: Selector, *attributes: str) -> None:
    """Give a selector built around another the class attributes that the inner one decides, such as ``requires``."""
    for attribute in attributes:
        object.__setattr__(outer, attribute, getattr(inner, attribute))


def as_selector(given: Selector | str, who: str) -> Selector:
    """Return a selector built already, or the one that text such as ``"el2n"`` or ``"el2n:first=5"`` names.

    Args:
        given: the selector, or its name.
        who: the method that takes it, for messages.

    Raises:
        InputError: an unknown name (the nearest are suggested) or option.
        InputTypeError: something else.
    """
    if isinstance(given, str):
        return parse_method(given, selectors(), "coreset method")
    if not isinstance(given, Selector):
        raise InputTypeError(f"{who}: selector must be a coreset method or its name, got {given!r}.")
    return given
