"""What methods read from: traces, runs and retraining banks, checked once for the methods that take them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from comove.data import Ids
from comove.errors import CorruptFileError, InputError, InputTypeError
from comove.models.measured_outputs import default_of, sign_of
from comove.trace import Trace
from comove.training.run import Run

__all__ = ["Bank", "BankSource", "Source", "SourceLike", "as_bank", "as_sources", "open_source"]


class _OfData:
    """What is made from one data set."""

    @property
    def data_fingerprint(self) -> str | None:
        """The fingerprint of the data that was trained on, where it is known."""
        raise NotImplementedError

    @property
    def noted(self) -> dict[str, str]:
        """What results say of their data: ``data_fingerprint``, where it is known."""
        return {} if self.data_fingerprint is None else {"data_fingerprint": self.data_fingerprint}


@dataclass(frozen=True)
class Source(_OfData):
    """One trace, and the run it comes from where there is one."""

    trace: Trace
    run: Run | None = None

    @property
    def train_ids(self) -> Ids:
        """(N,) int64."""
        return self.trace.train_ids

    @property
    def train_labels(self) -> Ids | None:
        """(N,) class indices, where known."""
        return self.trace.train_labels

    @property
    def query_ids(self) -> Ids:
        """(Q,) int64, all held-out examples."""
        return self.trace.query_ids

    @property
    def query_labels(self) -> Ids | None:
        """(Q,) class indices, where known."""
        return self.trace.query_labels

    @property
    def explained_ids(self) -> Ids:
        """The queries that attribution explains by default."""
        return self.trace.explained_ids

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, where known."""
        names = self.trace.manifest.get("classes")
        return None if names is None else tuple(names)

    def labels(self, who: str) -> Ids:
        """The training labels.

        Raises:
            InputError: the trace has none.
        """
        if self.trace.train_labels is None:
            raise InputError(f"{who} needs training labels; pass train_labels= (and query_labels=) when recording.")
        return self.trace.train_labels

    @property
    def data_fingerprint(self) -> str | None:
        """The fingerprint of the data that was trained on, where it is known."""
        if self.run is not None:
            return str(self.run.manifest["dataset"]["fingerprint"])
        found = self.trace.manifest.get("data_fingerprint")
        return None if found is None else str(found)


@runtime_checkable
class Bank(Protocol):
    """What methods use of a retraining bank (:class:`comove.evaluation.RetrainingBank` is one)."""

    masks: npt.NDArray[np.bool_]
    train_ids: Ids
    train_labels: Ids | None
    query_ids: Ids
    query_labels: Ids | None
    classes: tuple[str, ...] | None

    @property
    def digests(self) -> list[str]:
        """A fingerprint of each subset."""

    def outputs(self, kind: str = "margin") -> npt.NDArray[np.float64]:
        """(C, R, Q), NaN where pending."""


@dataclass(frozen=True)
class BankSource(_OfData):
    """A retraining bank as methods see it."""

    bank: Bank

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(C, N): which training examples each subset holds."""
        return self.bank.masks

    @property
    def train_ids(self) -> Ids:
        """(N,) int64."""
        return self.bank.train_ids

    @property
    def train_labels(self) -> Ids | None:
        """(N,) class indices, where known."""
        return self.bank.train_labels

    @property
    def query_ids(self) -> Ids:
        """(Q,) int64."""
        return self.bank.query_ids

    @property
    def query_labels(self) -> Ids | None:
        """(Q,) class indices, where known."""
        return self.bank.query_labels

    @property
    def data_fingerprint(self) -> str | None:
        """The fingerprint of the data that subsets are drawn from, where the bank knows it."""
        return getattr(self.bank, "data_fingerprint", None)

    @property
    def explained_ids(self) -> Ids:
        """All queries."""
        return self.bank.query_ids

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, where known."""
        return self.bank.classes

    @property
    def digests(self) -> list[str]:
        """A fingerprint of each subset."""
        return self.bank.digests

    def mean_outputs(self, kind: str, who: str) -> npt.NDArray[np.float64]:
        """(C, Q) means over seeds, turned where needed so that more is better.

        ``"margin"``, the methods' default, stands for a bank's own default where its models have no margin.

        Raises:
            InputError: models are still pending; an output that has no better and worse.
        """
        if kind == "predicted":
            raise InputError(f"{who}: the predicted class has no better and worse; use margin, correct or loss.")
        if kind == "margin" and kind not in getattr(self.bank, "output_names", (kind,)):
            kind = default_of(self.bank)
        sign, outputs_CRQ = sign_of(self.bank, kind), self.bank.outputs(kind)
        pending = int(np.isnan(outputs_CRQ).any(-1).sum())
        if pending:
            models = outputs_CRQ.shape[0] * outputs_CRQ.shape[1]
            raise InputError(f"{who}: {pending} of the bank's {models} models are not trained yet; call bank.run().")
        means_CQ: npt.NDArray[np.float64] = outputs_CRQ.mean(1)
        return sign * means_CQ


SourceLike = Run | Trace | Source


def as_bank(given: object, who: str) -> BankSource:
    """Return the retraining bank a method was given.

    Raises:
        InputTypeError: something else than one bank.
    """
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 1:
        given = given[0]
    if isinstance(given, BankSource):
        return given
    if not isinstance(given, Bank):
        raise InputTypeError(
            f"{who} is computed from a retraining bank, not from runs: fit it on one RetrainingBank "
            f"(RetrainingBank.create(...).run(); comove lds makes OUT/bank), got {type(given).__name__}."
        )
    return BankSource(given)


def open_source(path: Path) -> Run | Trace:
    """Open a folder as a run or as a trace.

    Raises:
        CorruptFileError: it is neither.
    """
    if not path.is_dir():
        raise CorruptFileError(f"{path} is not a folder; give the folder of a run (comove train --out) or of a trace.")
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


def _warn_of_mixture(sources: Sequence[Source], who: str) -> None:
    """Name what differs, but the seed, between the models and recipes of runs whose scores are averaged."""
    trained = [source.run.manifest for source in sources if source.run is not None and source.run.adopted is None]
    how = [{"model": one["model"]["name"], **one["model"].get("options", {}), **one["recipe"]} for one in trained]
    names = dict.fromkeys(name for one in how for name in one)
    found = {name: list(dict.fromkeys(str(one.get(name, "default")) for one in how)) for name in names}
    if differs := {name: values for name, values in found.items() if len(values) > 1}:
        text = "; ".join(f"{name} {', '.join(values)}" for name, values in differs.items())
        warnings.warn(f"{who} averages runs that differ in more than their seed: {text}.", stacklevel=2)


def as_sources(given: SourceLike | Sequence[SourceLike], requires: frozenset[str], who: str) -> tuple[Source, ...]:
    """Return the sources in ``given``, checked: at least one, all with the same training examples.

    Args:
        given: a run or a trace, or several.
        requires: ``"trace"`` and perhaps ``"checkpoints"``.
        who: the method's name, for messages.

    Warns:
        UserWarning: of runs of different models or recipes, which are named.

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
    _warn_of_mixture(sources, who)
    for source in sources:
        if "checkpoints" in requires and (source.run is None or not source.run.checkpoints):
            raise InputError(
                f"{who} needs checkpoints, and a bare trace (or a run that kept none) has none: "
                "pass runs made by comove.train(..., checkpoints='all'), or by comove.adopt for a model of your own."
            )
    return sources
