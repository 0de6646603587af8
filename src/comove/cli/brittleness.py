"""``comove brittleness``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, note, say, table, written
from comove.cli.options import (
    AttributionOptions,
    ComputeOptions,
    TrainingOptions,
    parse_methods,
)
from comove.cli.own import OwnFunction
from comove.cli.train import recording_of
from comove.errors import InputError

if TYPE_CHECKING:
    from comove.attribution import Scores
    from comove.data import Splits
    from comove.evaluation import Brittleness, Counterfactual, Runs
    from comove.evaluation.estimate import Estimate
    from comove.jobs import Compute
    from comove.training import Training

__all__ = ["brittleness"]

ENDS = ("csv", "png", "safetensors")


@dataclass(frozen=True)
class CounterfactualOptions:
    """Whether to search for the smallest removals that flip a prediction."""

    counterfactual: Annotated[
        bool, typer.Option("--counterfactual", help="Find the counterfactual size of each query too, by bisection.")
    ] = False
    max_k: Annotated[
        int | None,
        typer.Option(
            min=1, help="Largest number of examples removed by --counterfactual.", show_default="the largest k"
        ),
    ] = None


@command
def brittleness(
    out: Annotated[Path, typer.Option(help="Folder for runs, scores, bank, tables and figures.")],
    task: TrainingOptions,
    machines: ComputeOptions,
    fitted: AttributionOptions,
    search: CounterfactualOptions,
    k: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Numbers of examples to remove, such as 5 20.", show_default="10 50 100"),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Number of queries, taken evenly from the classes.")] = 40,
    seeds: Annotated[int, typer.Option(min=1, help="Models trained for each query, method and k (R).")] = 5,
    base_seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Models trained on all data, whose majority is the prediction; as many again measure the noise."
        ),
    ] = 11,
    training: OwnFunction = None,
    fit_subsets: Annotated[
        int, typer.Option(min=4, help="Random halves that fz and datamodels are fitted on (one model each).")
    ] = 200,
) -> None:
    """Prediction brittleness: remove the highest-scored examples, retrain, and count changed predictions.

    With the --out folder of comove lds, its runs and its bank are used. Interrupted, it goes on when the same command
    is run again.

    Example: comove brittleness --dataset digits --methods cld trak --k 10 50 100 --out brittleness/
    """
    from comove.evaluation import Runs, counterfactual_sizes
    from comove.evaluation import brittleness as measure
    from comove.evaluation.prediction_brittleness.benchmark import checked_ks
    from comove.evaluation.prediction_brittleness.removal import check_k

    chosen = parse_methods(fitted.methods, ["cld"], controls=False)
    splits = task.splits()
    counts = checked_ks(k or [10, 50, 100])
    for largest in (counts[-1], search.max_k or 1):  # what cannot be done must not wait for the runs
        check_k(largest, len(splits.train))
    ours, own, compute = task.training_for(splits), task.own(training), machines.compute(task)
    runs = Runs(fitted.runs, recording_of("sweep", fitted.record_every))
    scores = _scores(chosen, splits, ours, runs, queries, fit_subsets, compute, out)
    options: dict[str, Any] = {
        "dataset": splits,
        "out": out,
        "training": own or ours,
        "seeds": seeds,
        "base_seeds": base_seeds,
        "controls": fitted.controls,
        "compute": compute,
    }
    with _warnings_shown():
        found = measure(scores, counts, **options)
    _show(found, out)
    if search.counterfactual:
        _show_sizes(counterfactual_sizes(scores, search.max_k or counts[-1], **options), out)


def _scores(
    methods: list[Any],
    splits: Splits,
    training: Training,
    runs: Runs,
    queries: int,
    fit_subsets: int,
    compute: Compute,
    out: Path,
) -> list[Scores]:
    """Train the runs (and the bank of random halves where a method needs one), and score the queries."""
    from comove.attribution.queries import choose_queries
    from comove.evaluation import RetrainingBank, attribution_runs, score_methods
    from comove.evaluation.lds_benchmark.benchmark import needs_bank
    from comove.retraining import subsets

    if any(method.name == "leave-one-out" for method in methods):
        raise InputError("leave-one-out needs a bank of its own kind: see comove.evaluation.brittleness in Python.")
    trained = attribution_runs(
        splits, training, count=runs.count, out=out / "runs", recording=runs.recording, compute=compute
    )
    bank = None
    if any(map(needs_bank, methods)):
        other = replace(training, seed=training.seed + 1)
        halves = subsets.random(0.5, fit_subsets, other.seed)
        planned = RetrainingBank.create(out / "fit-bank", splits, other, subsets=halves)
        bank = planned.run(executor=compute.on(), device=compute.device, progress=compute.progress)
    wanted = choose_queries(trained[0].trace, queries)
    return score_methods(methods, trained, splits.query.subset(wanted).ids, out / "removal-scores", fit_bank=bank)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Tell warnings in a line, when they come: what follows them takes long."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, message="Removing leaves")
        warnings.showwarning = lambda message, *_: say(str(message), "Warning:", "yellow")
        yield


def _show(found: Brittleness, out: Path) -> None:
    from comove.evaluation.prediction_brittleness.result import NOTHING
    from comove.plots import save_figure

    level = f"{found.confidence:.0%} intervals over queries"
    columns = ["method", *(f"k = {k:,}" for k in found.ks)]
    blank = [""] * (len(found.ks) - 1)
    flips = [[name, *(_percent(found.rate(name, k)) for k in found.ks)] for name in found.methods]
    if found.flips_are != "none":
        table(
            f"Predictions flipped (%), with {level}",
            columns,
            [[NOTHING, _percent(found.noise), *blank], *flips],
            name="flipped",
        )
    drops = [[name, *(_amount(found.margin_drop(name, k)) for k in found.ks)] for name in found.methods]
    lost = f"\n{'Margin of the label' if 'training' not in found.info else 'Output'} lost, with {level}"
    table(lost, columns, [[NOTHING, _amount(found.noise_margin_drop), *blank], *drops], name="lost")
    save_figure(found.plot(), out / "brittleness.png")
    models, *remarks = found.notes()
    say(models)
    for remark in remarks:
        note(remark)
    written(out, *(f"brittleness.{end}" for end in ENDS), "runs", "removal-scores", "removal-bank")


def _show_sizes(found: Counterfactual, out: Path) -> None:
    from comove.plots import save_figure

    largest = int(found.grid[-1])
    rows = [
        [name, found.median_text(name), _percent(found.share(name, largest)), f"{found.not_flipped[name]:,}"]
        for name in found.methods
    ]
    columns = ["method", "half flip by k =", f"flipped by {largest:,} (%)", "not flipped"]
    table(f"\nSmallest removal that flips a query, up to {largest:,}", columns, rows, name="smallest_removals")
    save_figure(found.plot(), out / "counterfactual.png")
    say("\n".join(found.notes()))
    written(out, *(f"counterfactual.{end}" for end in ENDS))


def _amount(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.1f}, {found.high:.1f}]"


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"
