"""What methods read from: traces and runs, checked once for the methods that take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comove.data import Ids
from comove.errors import InputError, InputTypeError
from comove.trace import Trace
from comove.training import Run

__all__ = ["Source", "SourceLike", "as_sources", "open_source"]


@dataclass(frozen=True)
class Source:
    """One trace, and the run it comes from where there is one."""

    trace: Trace
    run: Run | None = None

    def labels(self, who: str) -> Ids:
        """The training labels.

        Raises:
            InputError: the trace has none.
        """
        if self.trace.train_labels is None:
            raise InputError(f"{who} needs training labels; pass train_labels= (and query_labels=) when recording.")
        return self.trace.train_labels


SourceLike = Run | Trace | Source


def open_source(path: Path) -> Run | Trace:
    """Open a folder as a run or as a trace."""
    return Run.load(path) if (path / "trace").is_dir() else Trace.load(path)


def _as_source(given: object) -> Source:
    if isinstance(given, Source):
        return given
    if isinstance(given, Run):
        return Source(given.trace, given)
    if isinstance(given, Trace):
        return Source(given)
    if isinstance(given, str | Path):
        return _as_source(open_source(Path(given)))
    raise InputTypeError(f"Expected a Run, a Trace or a sequence of them, got {type(given).__name__}.")


def as_sources(given: SourceLike | Sequence[SourceLike], requires: frozenset[str], who: str) -> tuple[Source, ...]:
    """Return the sources in ``given``, checked: at least one, all with the same training examples.

    Args:
        given: a run or a trace, or several.
        requires: ``"trace"`` and perhaps ``"checkpoints"``.
        who: the method's name, for messages.

    Raises:
        InputError: none given, different training examples, no checkpoints where they are needed.
        InputTypeError: something else than runs and traces.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    sources = tuple(map(_as_source, given)) if several else (_as_source(given),)  # type: ignore[arg-type]
    if not sources:
        raise InputError(f"{who} needs at least one run.")
    first = sources[0].trace
    for source in sources:
        trace = source.trace
        if not np.array_equal(trace.train_ids, first.train_ids):
            raise InputError(
                f"{who}: all runs must have the same training examples in the same order; one has "
                f"{trace.train_ids.size} ids that differ from the first run's {first.train_ids.size}."
            )
        same_labels = trace.train_labels is None or np.array_equal(trace.train_labels, first.train_labels)  # type: ignore[arg-type]
        if first.train_labels is not None and not same_labels:
            raise InputError(f"{who}: the runs give the same training ids different labels.")
    for source in sources:
        if "checkpoints" in requires and (source.run is None or not source.run.checkpoints):
            raise InputError(
                f"{who} needs checkpoints, and a bare trace (or a run that kept none) has none: "
                "pass runs made by comove.train(..., checkpoints='all')."
            )
    return sources
