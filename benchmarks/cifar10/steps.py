"""The steps of the study. Each goes on where it was cut off, and raises ``SliceEndedError`` when its slice has ended.

What must outlive a slice lies in small files in ``folder``: the banks (a file of 8 KB a model), the digests of scores,
the book of costs. Runs with their checkpoints, full scores and TRAK's features are large and lie in ``scratch``; where
they are lost they are made again, unless the digest they are for is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from declared import Study
from digests import digest_scores, file_of
from flops import counted_flops
from slices import Book, Clock, SliceEndedError, Until

from comove.attribution import CLD, TRAK, Arnoldi, Attributor, Scores, TracIn
from comove.attribution.cld import chosen_rows
from comove.data import Splits
from comove.evaluation import RetrainingBank, coreset_curve, plans_of
from comove.evaluation.costs.measured import measured_cost
from comove.evaluation.subsets import RandomSubsets, SubsetPlan
from comove.execution import Executor
from comove.store import claim_folder, new_folder, versions, write_json
from comove.training import Recording, Run, train

__all__ = ["MEANS", "Sitting", "coreset_curves", "do_runs", "retrain", "score", "truth_plans"]

MEANS = (TracIn, Arnoldi)
"""Methods whose scores are the mean over runs of what each run gives: scored run by run, each kept."""


@dataclass(frozen=True)
class Sitting:
    """One slice of work on one study.

    Attributes:
        study: what is declared.
        folder: of the small state.
        scratch: of what is large and can be made again.
        clock: when the slice ends.
        device: where to compute.
        inner: where banks are trained.
    """

    study: Study
    folder: Path
    scratch: Path
    clock: Clock
    device: str
    inner: Executor

    @cached_property
    def splits(self) -> Splits:
        """The data; the folder is claimed for them."""
        splits = self.study.splits()
        new_folder(self.folder)
        claim_folder(self.folder, "study", 1, {**self.study.identity(), "dataset": splits.describe()})
        return splits

    @cached_property
    def book(self) -> Book:
        """What each step took."""
        return Book(self.folder / "costs.json")

    @property
    def executor(self) -> Until:
        """Trains until the slice ends."""
        return Until(self.clock, self.inner)

    def bank(self, name: str, plan: SubsetPlan, seeds: int) -> RetrainingBank:
        """Make, or open, a bank of this study in ``folder``."""
        return RetrainingBank.create(
            self.folder / name, self.splits, "resnet9", subsets=plan, seeds=seeds, **self.training
        )

    @property
    def training(self) -> dict[str, Any]:
        """How every model is trained."""
        return {"recipe": self.study.recipe, "model_options": {"width": self.study.width}}


def truth_plans(study: Study, splits: Splits) -> list[tuple[SubsetPlan, int]]:
    """The plans of the ground truth, each with its R, in the order of training."""
    plans = plans_of([alpha for alpha, _ in study.truths], study.subsets, splits.train.ids)
    return list(zip(plans, (seeds for _, seeds in study.truths), strict=True))


# --- attribution runs and scores ------------------------------------------------------------------------------------


def do_runs(at: Sitting) -> list[Run]:
    """Train the recorded runs that the methods are fitted on."""
    runs, longest = [], 0.0
    for number in range(at.study.runs):
        path = at.scratch / "runs" / f"{number:03d}"
        fresh, started = not (path / "result.json").exists(), time.monotonic()
        if fresh:
            at.clock.check(longest)
        run = train(
            at.splits,
            "resnet9",
            seed=number,
            out=path,
            recording=Recording(every=at.study.every),
            device=at.device,
            **at.training,
        )
        runs.append(run)
        if fresh:
            longest = max(longest, time.monotonic() - started)
            cost = measured_cost(run)
            at.book.add("runs", count=1, seconds=cost.seconds, **{f"flops {k}": v for k, v in cost.flops.items()})
            at.book.note(f"run {number:03d}", accuracy=run.result["query_accuracy"], seconds=cost.seconds)
            at.book.note("model", parameters=cost.parameters, step_flops=cost.step_flops)
    note_machine(at)
    return runs


def note_machine(at: Sitting) -> None:
    """Write down where this was computed."""
    from machine import machine

    write_json(at.folder / "machine.json", {**machine(at.device), "versions": versions()})


def score(at: Sitting) -> None:
    """Score the queries with every method, and keep the digests; methods of a bank need it to be trained."""
    plans = [plan for plan, _ in truth_plans(at.study, at.splits)]
    missing = [m for m in at.study.methods if not file_of(at.folder / "scores", m.label).exists()]
    runs = do_runs(at) if missing else []
    for method in missing:
        _keep(at, _scored(at, method, runs), plans)
    for method in at.study.bank_methods:
        if file_of(at.folder / "scores", method.label).exists():
            continue
        bank = _fit_bank(at)
        if bank.pending:
            print(f"{method.label} waits for the {len(bank.pending)} models that the step bank has still to train.")
            return
        at.clock.check()
        seconds, scores = _timed(lambda m=method, b=bank: m.fit(b).attribute(b.query_ids))  # type: ignore[misc]
        at.book.note(method.label, seconds_once=seconds, models=len(bank.jobs))
        _keep(at, scores, plans)


def _keep(at: Sitting, scores: Scores, plans: Sequence[SubsetPlan]) -> None:
    digest_scores(scores, plans, min(at.study.kept, scores.train_ids.size)).save(at.folder / "scores")


def _scored(at: Sitting, method: Attributor, runs: Sequence[Run]) -> Scores:
    """Fit a method on all runs and score the queries, a run at a time where that comes to the same."""
    queries = at.splits.query.ids
    if isinstance(method, MEANS):
        parts = [_one_run(at, method, run, number) for number, run in enumerate(runs)]
        mean = np.mean([part.values for part in parts], axis=0, dtype=np.float64)
        return replace(parts[0], values=mean.astype(np.float32), info={**parts[0].info, "runs": len(runs)})
    if isinstance(method, TRAK):
        method = replace(method, cache=str(new_folder(at.scratch / "trak")))
        for run in runs:  # features are kept in the cache: what a slice has computed is not lost
            at.clock.check()
            _of_one_run(at, method.label, lambda m=method, r=run: m.fit(r))  # type: ignore[misc]
    at.clock.check()
    seconds, scores = _timed(lambda: method.fit(runs).attribute(queries))
    at.book.note(method.label, seconds_once=seconds)
    if isinstance(method, CLD):
        rows = [len(chosen_rows(run.trace, method.rows)) for run in runs]
        at.book.note(method.label, flops_once=2 * sum(rows) * scores.values.size)
    return scores


def _one_run(at: Sitting, method: Attributor, run: Run, number: int) -> Scores:
    file = file_of(new_folder(at.scratch / "parts"), f"{method.label}-{number:03d}")
    if not file.exists():
        at.clock.check()
        _of_one_run(at, method.label, lambda: method.fit(run).attribute(at.splits.query.ids)).save(file)
    return Scores.load(file)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.monotonic()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started, found


def _of_one_run(at: Sitting, label: str, work: Callable[[], Any]) -> Any:
    """Do the work of one run for the book: FLOPs are counted in the first, which slows it, seconds in the others."""
    if "flops" in at.book.entries.get(label, {}):
        seconds, found = _timed(work)
        at.book.add(label, seconds=seconds, timed=1)
        return found
    flops, found = counted_flops(work)
    at.book.note(label, flops=flops)
    return found


# --- banks ----------------------------------------------------------------------------------------------------------


def _fit_bank(at: Sitting) -> RetrainingBank:
    return at.bank("fit-bank", RandomSubsets(0.5, at.study.fit_subsets, 1), 1)


def retrain(at: Sitting, alphas: Callable[[float | str], bool], *, fit: bool) -> None:
    """Train the ground truth at some of the sampling ratios, and what bank methods are fitted on.

    One seed at every ratio comes before a second one at any, so that a study cut short is a whole one with smaller R.

    Args:
        at: the sitting.
        alphas: says which ratios.
        fit: whether the bank that FZ and datamodels are fitted on is trained too, and their scores are made.
    """
    planned = zip(truth_plans(at.study, at.splits), at.study.truths, strict=True)
    chosen = [(plan, seeds) for (plan, seeds), (alpha, _) in planned if alphas(alpha)]
    for number in range(1, max(seeds for _, seeds in chosen) + 1):
        for plan, seeds in chosen:
            _run(at, at.bank("bank", plan, min(number, seeds)), plan.name)
    if fit:
        _run(at, _fit_bank(at), "fit-bank")
        score(at)


def _run(at: Sitting, bank: RetrainingBank, name: str) -> None:
    before = len(bank.pending)
    if not before:
        return
    at.clock.check()
    seconds, _ = _timed(lambda: bank.run(executor=at.executor, device=at.device))
    left = len(bank.pending)
    at.book.add(name, models=before - left, seconds=seconds)
    note_machine(at)
    print(f"{name}: {before - left} models in {seconds:.0f} s, {left} to go", flush=True)
    if left:
        raise SliceEndedError


# --- coreset curves -------------------------------------------------------------------------------------------------


def coreset_curves(at: Sitting) -> None:
    """Train models on what coreset methods keep; the points go to ``curves.json``."""
    done = at.folder / "curves.json"
    if done.exists():
        return
    study, splits = at.study.coresets, at.study.coreset_splits()
    epochs = at.study.recipe.epochs
    at.clock.check()
    proxy = train(
        splits,
        "resnet9",
        seed=0,
        out=at.scratch / "proxy",
        recording=Recording(anchors=tuple(sorted({min(epochs, 10), epochs}))),
        device=at.device,
        **at.training,
    )
    at.clock.check()
    seconds, curve = _timed(
        lambda: coreset_curve(
            proxy,
            study.methods,
            study.budgets,
            seeds=study.seeds,
            dataset=splits,
            out=new_folder(at.folder / "curves"),
            executor=at.executor,
            device=at.device,
        )
    )
    at.book.add("curves", seconds=seconds)
    if any(np.isnan(point.accuracy) for point in curve.points):  # models still pending
        raise SliceEndedError
    points = [point._asdict() for point in curve.points]
    write_json(done, {"points": points, "n_train": curve.n_train, "n_query": curve.n_query})
