"""The recorded runs, and every method's scores of the queries, kept as digests.

What is made piece by piece is kept piece by piece in ``state/partial``, so that a slice, or another machine, goes on:
the sum over runs of methods whose scores are a mean over runs, and the digests of a few queries at a time of methods
that are fitted on a bank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from digests import Digest, digest_scores, file_of, joined
from flops import counted_flops
from steps import Session, fit_bank, note_machine, timed, train_bank, truth_plans

from comove.attribution import EKFAC, TRAK, Arnoldi, Attributor, GaussNewton, Scores, TracIn
from comove.attribution.cld import CLD, chosen_rows
from comove.data import Ids
from comove.evaluation import RetrainingBank
from comove.evaluation.costs.measured import measured_cost
from comove.store import new_folder
from comove.training import Recording, Run, train
from comove.training.sources import BankSource

__all__ = ["MEANS", "do_runs", "first_run", "fit_and_score", "score"]

MEANS = (TracIn, Arnoldi, GaussNewton, EKFAC)
"""Methods whose scores are the mean over runs of what each run gives."""
QUERIES = 25
"""So many are scored at a time by what is fitted on a bank."""


# --- runs ---


def do_runs(at: Session) -> None:
    """Train the recorded runs, unless everything that reads them is scored."""
    if _missing(at):
        _runs(at)


def first_run(at: Session) -> Run:
    """The first recorded run, trained if it is not there."""
    return _run(at, 0)


def _runs(at: Session) -> list[Run]:
    return [_run(at, number) for number in range(at.study.runs)]


def _run(at: Session, number: int) -> Run:
    """A recorded run, trained if it is not there."""
    path = at.scratch / "runs" / f"{number:03d}"

    def trained() -> Run:
        recording = Recording(every=at.study.every)
        how = at.training
        options = {"recording": recording, "device": at.device, "model_options": how.options}
        return train(at.splits, how.model, how.recipe, number, path, **options)

    if (path / "result.json").exists():
        return trained()  # opens it
    with at.unit("run"):
        run = trained()
    cost = measured_cost(run)
    at.book.add("runs", count=1, seconds=cost.seconds, **{f"flops {k}": v for k, v in cost.flops.items()})
    at.book.note(f"run {number:03d}", accuracy=run.result["query_accuracy"], seconds=cost.seconds)
    at.book.note("model", parameters=cost.parameters, step_flops=cost.step_flops)
    note_machine(at)
    return run


# --- scores ---


def score(at: Session) -> None:
    """Score the queries with every method, and keep the digests; methods of a bank need it to be trained."""
    plans = [plan for plan, _ in truth_plans(at.study, at.splits)]
    kept = min(at.study.kept, len(at.splits.train))
    for method in _missing(at):
        digest_scores(_scored(at, method), plans, kept).save(at.folder / "scores")
        _partial(at, method.label).unlink(missing_ok=True)
    for method in at.study.bank_methods:
        if file_of(at.folder / "scores", method.label).exists():
            continue
        bank = fit_bank(at)
        if bank.pending:
            print(f"{method.label} waits for the {len(bank.pending)} models that the step bank has still to train.")
            return
        _of_bank(at, method, bank, lambda scores: digest_scores(scores, plans, kept)).save(at.folder / "scores")
        for start in range(0, len(at.splits.query), QUERIES):
            _partial(at, f"{method.label}-{start}").unlink(missing_ok=True)


def fit_and_score(at: Session) -> None:
    """Train what FZ and datamodels are fitted on, unless they are scored, and score with them."""
    if any(not file_of(at.folder / "scores", method.label).exists() for method in at.study.bank_methods):
        train_bank(at, fit_bank(at), "fit-bank")
    score(at)


def _missing(at: Session) -> list[Attributor]:
    """The methods, of those that are fitted on runs, whose digests are not there."""
    return [method for method in at.study.methods if not file_of(at.folder / "scores", method.label).exists()]


def _partial(at: Session, name: str) -> Path:
    return file_of(new_folder(at.folder / "partial"), name)


def _scored(at: Session, method: Attributor) -> Scores:
    """Fit a method on all runs and score the queries, a run at a time where that comes to the same."""
    if isinstance(method, MEANS):
        return _mean_over_runs(at, method)
    runs = _runs(at)
    if isinstance(method, TRAK):
        method = replace(method, cache=str(new_folder(at.scratch / "trak")))
        for run in runs:  # features are kept in the cache: what a slice has computed is not lost
            with at.unit(f"{method.name} of a run"):
                _of_one_run(at, method.label, lambda m=method, r=run: m.fit(r))  # type: ignore[misc]
    with at.unit(method.label):
        seconds, scores = timed(lambda: method.fit(runs).attribute(at.splits.query.ids))
    at.book.note(method.label, seconds_once=seconds)
    if isinstance(method, CLD):
        rows = [len(chosen_rows(run.trace, method.rows)) for run in runs]
        at.book.note(method.label, flops_once=2 * sum(rows) * scores.values.size)
    return scores


def _mean_over_runs(at: Session, method: Attributor) -> Scores:
    """Add up run by run; only runs that are not in the sum yet are needed."""
    file, queries = _partial(at, method.label), at.splits.query.ids
    total = Scores.load(file) if file.exists() else None
    for number in range(0 if total is None else total.info["summed"], at.study.runs):
        run = _run(at, number)
        with at.unit(f"{method.name} of a run"):
            part = _of_one_run(at, method.label, lambda r=run: method.fit(r).attribute(queries))  # type: ignore[misc]
            values = part.values if total is None else part.values + total.values
            total = replace(part, values=values, info={**part.info, "summed": number + 1})
            total.save(file)
    assert total is not None
    info = {**{key: value for key, value in total.info.items() if key != "summed"}, "runs": at.study.runs}
    return replace(total, values=total.values / np.float32(at.study.runs), info=info)


def _of_one_run(at: Session, label: str, work: Callable[[], Any]) -> Any:
    """Do the work of one run for the book: FLOPs are counted in the first, which slows it, seconds in the others."""
    if "flops" in at.book.entries.get(label, {}):
        seconds, found = timed(work)
        at.book.add(label, seconds=seconds, timed=1)
        return found
    flops, found = counted_flops(work)
    at.book.note(label, flops=flops)
    return found


@dataclass(frozen=True)
class _SomeQueries(BankSource):
    """A bank of which a method sees some of the queries."""

    places: slice

    @property
    def query_ids(self) -> Ids:
        return super().query_ids[self.places]

    @property
    def query_labels(self) -> Ids:
        return super().query_labels[self.places]

    @property
    def explained_ids(self) -> Ids:
        return self.query_ids

    def mean_outputs(self, kind: str, who: str) -> npt.NDArray[np.float64]:
        return super().mean_outputs(kind, who)[:, self.places]


def _of_bank(at: Session, method: Attributor, bank: RetrainingBank, digest: Callable[[Scores], Digest]) -> Digest:
    """The digest of a method that is fitted on a bank, some queries at a time."""
    parts: list[Digest] = []
    for start in range(0, len(bank.query_ids), QUERIES):
        file = _partial(at, f"{method.label}-{start}")
        if not file.exists():
            some = _SomeQueries(bank, slice(start, start + QUERIES))
            with at.unit(f"{method.name} of some queries"):
                seconds, scores = timed(lambda s=some: method.fit(s).attribute(s.query_ids))  # type: ignore[misc]
                digest(scores).save(file.parent, file.stem)
            at.book.add(method.label, seconds_once=seconds)
        parts.append(Digest.load(file))
    at.book.note(method.label, models=len(bank.jobs))
    return joined(parts)
