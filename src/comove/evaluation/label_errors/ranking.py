"""From recorded runs to a ranking of labels by suspicion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comove.data import Ids
from comove.data.label_noise import known_flips
from comove.errors import InputError
from comove.evaluation.label_errors.signals import SIGNALS, as_signals, measure
from comove.evaluation.label_errors.suggestions import mean_probabilities, other_class
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.store import command_line, versions
from comove.training.sources import Source, SourceLike, as_sources

__all__ = ["flips_of", "rank_labels"]

WHO = "rank_labels"


def rank_labels(
    source: SourceLike | Sequence[SourceLike],
    methods: Sequence[Any] | None = None,
    *,
    suggest: bool = True,
    device: str = "auto",
) -> Suspicion:
    """Rank training labels by how suspicious they look, by several methods side by side.

    Args:
        source: a run or a trace, or several of the same training examples, which are averaged.
        methods: names of :data:`SIGNALS`, with options as ``"trak:proj_dim=256"``, or methods built already; ``None``
            for all, those that the runs did not record enough for left out (see ``Suspicion.skipped``); ``random``, a
            yardstick, only where labels were flipped on purpose.
        suggest: whether to ask the runs' networks which other class each example might have (a forward pass a
            checkpoint).
        device: where to ask them.

    Raises:
        InputError: no labels, no method, a method named that needs what the runs lack; the message says what to record.
        InputTypeError: something that says nothing of labels.
        NonFiniteError: a loss or another statistic is NaN.

    Example:
        >>> found = rank_labels(runs)  # doctest: +SKIP
        >>> found.most(20, "aum")  # doctest: +SKIP
    """
    sources = as_sources(source, frozenset({"trace"}), WHO)
    first = sources[0]
    labels = first.labels(WHO)
    chosen = as_signals(_all(sources) if methods is None else methods)
    values, skipped = {}, {}
    for name, (method, _) in chosen.items():
        try:
            values[name] = measure(method, sources)
        except InputError as error:
            lacks = type(error) is InputError  # not its kinds: NaN, a damaged file, other data
            if methods is not None or not lacks:
                raise
            skipped[name] = str(error)
    found = mean_probabilities(sources, device) if suggest else None
    suggested, confidence = (None, None) if found is None else other_class(found, labels)
    return Suspicion(
        first.train_ids,
        labels,
        values,
        tuple(name for name in values if chosen[name][1]),
        first.classes,
        suggested,
        confidence,
        skipped,
        {"runs": len(sources), "command": command_line(), "versions": versions(), **first.noted},
    )


def _all(sources: Sequence[Source]) -> tuple[str, ...]:
    described = [source.run.manifest["dataset"].get("source") or {} for source in sources if source.run is not None]
    flipped = any(source.get("flip_labels") for source in described)
    return tuple(name for name in SIGNALS if flipped or name != "random")


def flips_of(sources: Sequence[SourceLike]) -> Ids | None:
    """Return the ids whose labels were flipped on purpose when the runs' data was loaded, or ``None``.

    Raises:
        InputError: the run's data cannot be loaded again.
    """
    run = next((one.run for one in map(_source, sources) if one.run is not None), None)
    return None if run is None else known_flips(run.data())


def _source(given: SourceLike) -> Source:
    return as_sources(given, frozenset({"trace"}), WHO)[0]
