"""An LDS benchmark from end to end: attribution runs, a retraining bank, every method's scores, one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from comove.attribution import Attributor, Scores
from comove.attribution.leave_one_out import LeaveOneOut
from comove.data import Ids, Splits
from comove.errors import InputError
from comove.evaluation.lds_benchmark.plans import (
    at_alphas,
    by_alpha,
    check_bank,
    checked_plans,
    fit_plan,
    listed,
    parts_of,
    plans_of,
    union,
)
from comove.evaluation.lds_benchmark.result import Benchmark
from comove.jobs import Compute
from comove.jobs.progress import progress_bar
from comove.lds.against_bank import bank_lds
from comove.models import Factory, ModelSpec
from comove.models.measured_outputs import check_measurable
from comove.retraining.bank import RetrainingBank
from comove.retraining.own import OwnTraining
from comove.retraining.subsets import SubsetPlan
from comove.store import new_folder, slug
from comove.training import Recipe, Recording, Run, Training, as_training, train

__all__ = [
    "Benchmark",
    "FitSubsets",
    "Runs",
    "at_alphas",
    "attribution_runs",
    "lds_benchmark",
    "plans_of",
    "score_methods",
]


def attribution_runs(
    splits: Splits,
    training: Training,
    *,
    count: int,
    out: Path,
    recording: Recording | None = None,
    compute: Compute | None = None,
) -> tuple[Run, ...]:
    """Train ``count`` runs, their seeds counted up from the training's, into numbered folders of ``out``; resumable."""
    where = compute or Compute()
    return tuple(
        train(
            splits,
            training.model,
            training.recipe,
            training.seed + number,
            out / f"{number:03d}",
            recording=recording,
            model_options=training.options,
            device=where.device,
            progress=where.progress,
        )
        for number in range(count)
    )


def score_methods(
    methods: Sequence[Attributor],
    runs: Sequence[Run],
    queries: Ids,
    out: Path | None = None,
    *,
    fit_bank: RetrainingBank | None = None,
    progress: bool = False,
) -> list[Scores]:
    """Fit every method on the runs (or, where it requires one, on the bank), score the queries, and keep the scores."""
    found = []
    with progress_bar("scoring", len(methods), shown=progress) as advance:
        for method in methods:
            fitted = method.fit(fit_bank if needs_bank(method) and fit_bank is not None else runs)
            scores = fitted.attribute(queries)
            if out is not None:
                scores.save(out / f"{file_name(method.label)}.safetensors")
            found.append(scores)
            advance(1)
    return found


def needs_bank(method: Attributor) -> bool:
    """Whether a method is computed from a retraining bank."""
    return "bank" in method.requires


def file_name(label: str) -> str:
    """A method's label as a file name."""
    return slug(label, keep="_").strip("-")


@dataclass(frozen=True)
class Runs:
    """The runs that methods are fitted on: how many, and what is recorded of each (by default everything)."""

    count: int = 3
    recording: Recording | None = None


@dataclass(frozen=True)
class FitSubsets:
    """The subsets that methods computed from a bank are fitted on: other ones than they are measured on.

    Attributes:
        count: how many, one model each; by default as many as there are models at one sampling ratio of the bank.
        alpha: their sampling ratio; by default the one of the bank's that is nearest to 0.5.
    """

    count: int | None = None
    alpha: float | None = None


def lds_benchmark(
    splits: Splits,
    methods: Sequence[Attributor],
    *,
    out: str | os.PathLike[str],
    subsets: SubsetPlan | Sequence[SubsetPlan] | RetrainingBank,
    seeds: int = 1,
    runs: Runs | int = 3,
    training: Training | str | Factory | None = None,
    output: str | Sequence[str] | None = None,
    fit: FitSubsets | None = None,
    compute: Compute | None = None,
) -> Benchmark:
    """Compare methods with retraining; an interrupted benchmark goes on from what ``out`` keeps.

    Every method is fitted and scored once, and measured on every plan and output. So are the methods computed from a
    bank (FZ influence, datamodels): they are fitted once, on other subsets of one sampling ratio, in a bank of their
    own.

    Args:
        splits: the data; the query split holds the queries.
        methods: attribution methods, not yet fitted.
        out: a folder: ``runs/``, ``bank/`` (and ``fit-bank/`` where a method needs it), ``scores/``, ``lds.json``,
            ``lds.csv``, ``differences.csv``.
        subsets: of the bank: a plan such as ``subsets.random(0.5, 100)``, or several, such as :func:`plans_of` makes;
            or an existing bank of these data (or a part, such as ``bank.at(0.5)``), whose random and leave-one-out
            subsets are used, and what of them is pending is trained. Such a bank may be of the user's own training
            function (:class:`comove.OwnTraining`); ``training`` is then that of the runs alone.
        seeds: R, models per subset.
        runs: how many models the methods are fitted on, and what is recorded of them.
        training: how runs and bank are trained; with an existing bank, as that was: only a factory of the user's own
            must be given again. The seed is that of the first run and of the bank.
        output: what is measured on the queries, one or several; by default the margin (``bank.default_output``).
        fit: the other subsets that methods computed from a bank are fitted on.
        compute: where to train.

    Raises:
        InputError: bad arguments.
        FingerprintError: ``out`` holds a benchmark with other settings, or the bank is of other data.
    """
    if isinstance(training, OwnTraining):
        raise InputError(
            "training= is how comove trains the runs that methods are fitted on; measure them by models of your own "
            "function with subsets=RetrainingBank.create(path, splits, training=mine, subsets=...)."
        )
    wanted = runs if isinstance(runs, Runs) else Runs(runs)
    how, where, fit = as_training(training), compute or Compute(), fit or FitSubsets()
    own = subsets.training if isinstance(subsets, RetrainingBank) else None
    outputs = _checked(methods, wanted.count, output, own is not None)
    if not isinstance(subsets, RetrainingBank):
        plans = checked_plans(subsets, splits.train.ids)
        bank = RetrainingBank.create(  # planned first: what is wrong with it must not wait for the runs
            new_folder(out) / "bank", splits, how, subsets=plans, seeds=seeds
        )
        parts = by_alpha([bank.plan(plan) for plan in plans])
    else:
        bank = subsets
        check_bank(bank, splits, None if bank.is_own else how)
        parts = by_alpha(parts_of(bank))
    folder, whole = new_folder(out), union(bank, parts)
    same, fit_bank = how if bank.is_own else _training_of(bank, how), None
    if any(map(needs_bank, methods)):
        plan = fit_plan(bank, fit.count or len(parts[0].jobs), fit.alpha)
        other = own if bank.is_own else replace(same, seed=same.seed + 1)
        if other is None:
            raise InputError(
                f"Methods computed from a bank are fitted on other subsets than those of {bank.path}: open it with "
                "RetrainingBank.load(path, training=...), to train them as its own models."
            )
        fit_bank = RetrainingBank.create(folder / "fit-bank", splits, other, subsets=plan, queries=bank.query_ids)
    trained = attribution_runs(
        splits, same, count=wanted.count, out=folder / "runs", recording=wanted.recording, compute=where
    )
    banks = [whole] if fit_bank is None else [whole, fit_bank]
    retrained = sum(len(each.pending) for each in banks)
    for each in banks:
        if each.pending:  # a compact bank cannot be run, nor need it be
            each.run(executor=where.on(), device=where.device, progress=where.progress)
    reused = sum(len(each.jobs) for each in banks) - retrained
    scores = score_methods(
        methods, trained, bank.query_ids, folder / "scores", fit_bank=fit_bank, progress=where.progress
    )
    results = tuple(bank_lds(parts, scores, outputs or None))
    benchmark = Benchmark(results, whole, trained, retrained, reused, fit_bank)
    benchmark.save(folder)
    return benchmark


def _training_of(bank: RetrainingBank, how: Training) -> Training:
    """How the bank's models are trained; the seed is the one asked for."""
    spec = ModelSpec.from_json(bank.manifest["model"])
    recipe = Recipe.from_json(bank.manifest["recipe"])
    return Training(spec.named() if how.model is None else how.model, recipe, dict(spec.options), how.seed)


def _checked(
    methods: Sequence[Attributor], runs: int, output: str | Sequence[str] | None, own: bool
) -> tuple[str, ...]:
    """The outputs, each once (none: the default), after a look at what else could be wrong with the call."""
    outputs = () if output is None else tuple(dict.fromkeys(listed(output)))
    for each in () if own else outputs:  # what an own training function gives is seen when it has trained
        check_measurable(each)
    if not methods or runs < 1 or (output is not None and not outputs):
        raise InputError(
            "An LDS benchmark needs at least one method, one run and one output, "
            f"got {len(methods)}, {runs} and {len(outputs)}."
        )
    if any(isinstance(method, LeaveOneOut) for method in methods):
        raise InputError(
            "leave-one-out needs a bank of its own kind: make one with subsets.leave_one_out(), fit it on that, and "
            "measure its scores with bank.lds(scores)."
        )
    return outputs
