"""An LDS benchmark from end to end: attribution runs, a retraining bank, every method's scores, one table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

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
from comove.jobs import Executor
from comove.jobs.progress import progress_bar
from comove.lds.against_bank import bank_lds
from comove.models import Factory, ModelSpec
from comove.models.measured_outputs import check_measurable
from comove.retraining.bank import RetrainingBank
from comove.retraining.subsets import SubsetPlan
from comove.store import new_folder
from comove.training import Recipe, Recording, Run, train

__all__ = ["Benchmark", "at_alphas", "attribution_runs", "lds_benchmark", "plans_of", "score_methods"]


def attribution_runs(
    splits: Splits,
    model: str | Factory | None,
    recipe: Recipe | str | None,
    *,
    count: int,
    seed: int,
    out: Path,
    recording: Recording | None = None,
    model_options: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> tuple[Run, ...]:
    """Train ``count`` runs with seeds ``seed``, ``seed + 1``, ... into numbered folders of ``out``; resumable."""
    return tuple(
        train(
            splits,
            model,
            recipe,
            seed + number,
            out / f"{number:03d}",
            recording=recording,
            model_options=model_options,
            device=device,
            progress=progress,
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
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in label).strip("-")


def lds_benchmark(
    splits: Splits,
    methods: Sequence[Attributor],
    *,
    out: str | os.PathLike[str],
    subsets: SubsetPlan | Sequence[SubsetPlan] | None = None,
    seeds: int = 1,
    bank: RetrainingBank | None = None,
    runs: int = 3,
    model: str | Factory | None = None,
    recipe: Recipe | str | None = None,
    model_options: Mapping[str, Any] | None = None,
    recording: Recording | None = None,
    output: str | Sequence[str] = "margin",
    fit_subsets: int | None = None,
    fit_alpha: float | None = None,
    seed: int = 0,
    executor: Executor | str = "local",
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Benchmark:
    """Hold methods to retraining; an interrupted benchmark goes on from what ``out`` keeps.

    Every method is fitted and scored once, and held to every plan and output. So are the methods computed from a bank
    (FZ influence, datamodels): they are fitted once, on other subsets of one sampling ratio, in a bank of their own.

    Args:
        splits: the data; the query split holds the queries.
        methods: attribution methods, not yet fitted.
        out: a folder: ``runs/``, ``bank/`` (and ``fit-bank/`` where a method needs it), ``scores/``, ``lds.json``,
            ``lds.csv``, ``differences.csv``.
        subsets: of the bank: a plan such as ``subsets.random(0.5, 100)``, or several, such as :func:`plans_of` makes.
            Not with a ``bank``.
        seeds: R, models a subset.
        bank: an existing bank of these data (or a part, such as ``bank.at(0.5)``), instead of a new one: its random and
            leave-one-out subsets are used, and what of them is pending is trained.
        runs: how many models the methods are fitted on.
        model: as for :func:`comove.train`, for runs and bank alike; with a ``bank``, needed only for a factory of the
            user's own.
        recipe: likewise; with a ``bank``, its own.
        model_options: likewise.
        recording: of the runs.
        output: what is measured on the queries, one or several.
        fit_subsets: how many other subsets (one model each) the methods computed from a bank are fitted on; by default
            as many as there are models at one sampling ratio of the bank that they are measured on.
        fit_alpha: their sampling ratio; by default the one of the bank's that is nearest to 0.5.
        seed: of the first run and of the bank.
        executor: where the banks are trained; see :mod:`comove.jobs`.
        device: where to compute.
        progress: show bars.

    Raises:
        InputError: bad arguments.
        FingerprintError: ``out`` holds a benchmark with other settings, or ``bank`` is of other data.
    """
    outputs = _checked(methods, runs, output)
    if bank is None:
        plans = checked_plans(subsets, splits.train.ids)
        bank = RetrainingBank.create(  # planned first: what is wrong with it must not wait for the runs
            new_folder(out) / "bank",
            splits,
            model,
            recipe,
            subsets=plans,
            seeds=seeds,
            seed=seed,
            model_options=model_options,
        )
        parts = by_alpha([bank.plan(plan) for plan in plans])
    else:
        if subsets is not None:
            raise InputError("Give either subsets or a bank; of a bank, a part restricts them: bank.at(0.5).")
        check_bank(bank, splits, model, recipe, model_options)
        parts = by_alpha(parts_of(bank))
    folder, whole = new_folder(out), union(bank, parts)
    same, fit_bank = _training_of(bank, model), None
    if any(map(needs_bank, methods)):
        plan = fit_plan(bank, fit_subsets or len(parts[0].jobs), fit_alpha)
        options = {**same, "subsets": plan, "queries": bank.query_ids, "seed": seed + 1}
        fit_bank = RetrainingBank.create(folder / "fit-bank", splits, **options)
    trained = attribution_runs(
        splits,
        **same,
        count=runs,
        seed=seed,
        out=folder / "runs",
        recording=recording,
        device=device,
        progress=progress,
    )
    banks = [whole] if fit_bank is None else [whole, fit_bank]
    retrained = sum(len(each.pending) for each in banks)
    for each in banks:
        if each.pending:  # a compact bank cannot be run, nor need it be
            each.run(executor=executor, device=device, progress=progress)
    reused = sum(len(each.jobs) for each in banks) - retrained
    scores = score_methods(methods, trained, bank.query_ids, folder / "scores", fit_bank=fit_bank, progress=progress)
    results = tuple(bank_lds(parts, scores, outputs))
    benchmark = Benchmark(results, whole, trained, retrained, reused, fit_bank)
    benchmark.save(folder)
    return benchmark


def _training_of(bank: RetrainingBank, model: str | Factory | None) -> dict[str, Any]:
    """How the bank's models are trained, as arguments of :func:`comove.train`."""
    spec = ModelSpec.from_json(bank.manifest["model"])
    recipe = Recipe.from_json(bank.manifest["recipe"])
    return {"model": spec.named() if model is None else model, "recipe": recipe, "model_options": dict(spec.options)}


def _checked(methods: Sequence[Attributor], runs: int, output: str | Sequence[str]) -> tuple[str, ...]:
    """The outputs, each once, after a look at what else could be wrong with the call."""
    outputs = tuple(dict.fromkeys(listed(output)))
    for each in outputs:
        check_measurable(each)
    if not methods or runs < 1 or not outputs:
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
