"""``comove lds``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, result, say, table, written
from comove.cli.groups import RESULTS
from comove.cli.options import (
    AttributionOptions,
    ComputeOptions,
    TrainingOptions,
    check_bank,
    parse_methods,
)
from comove.cli.own import OwnFunction, importable
from comove.cli.train import recording_of
from comove.display import counted, plain, whole_percent
from comove.errors import InputError

if TYPE_CHECKING:
    from comove.data import Splits
    from comove.evaluation import LDS, Benchmark

__all__ = ["lds"]

SUBSETS, SEEDS = 50, 2


@dataclass(frozen=True)
class FitOptions:
    """The subsets that methods computed from a bank are fitted on."""

    fit_subsets: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Subsets that fz and datamodels are fitted on, apart from those of the test (one model each).",
            show_default="as many as there are models for an alpha",
        ),
    ] = None
    fit_alpha: Annotated[
        float | None,
        typer.Option(help="Share of the training data in these subsets.", show_default="the alpha nearest to 0.5"),
    ] = None


@dataclass(frozen=True)
class TruthOptions:
    """The retrained models that methods are measured by."""

    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Shares of the training data in a subset, such as 0.3 0.5; loo leaves out one example.",
            show_default="0.5",
        ),
    ] = None
    subsets: Annotated[
        int | None, typer.Option(min=3, help="Subsets for each alpha (C).", show_default=str(SUBSETS))
    ] = None
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Models trained on each subset (R).", show_default=str(SEEDS))
    ] = None
    same_seed: Annotated[
        bool,
        typer.Option(
            "--same-seed", help="Train all models with the same initial weights and batches (a fixed-seed bank)."
        ),
    ] = False
    bank: Annotated[
        Path | None,
        typer.Option(
            help="A bank to use as ground truth: its folder, or its file made by comove bank compact.",
            show_default="a new one is trained",
        ),
    ] = None


@dataclass(frozen=True)
class ScoreOptions:
    """Scores of other libraries, measured by a bank as they are."""

    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scores to measure by --bank: .npy, .npz, .pt or .safetensors files, or a folder.",
            show_default="none",
            rich_help_panel=RESULTS,
        ),
    ] = None
    scores_name: Annotated[
        list[str] | None,
        typer.Option(help="Names of these scores.", show_default="the files' names", rich_help_panel=RESULTS),
    ] = None
    orientation: Annotated[
        str,
        typer.Option(
            help="Axes of the scores: train,query or query,train; or their library: captum, dattri, kronfluence, "
            "quanda, trak.",
            rich_help_panel=RESULTS,
        ),
    ] = "train,query"
    positive: Annotated[
        str, typer.Option(help="Meaning of a positive score: helps or hurts.", rich_help_panel=RESULTS)
    ] = "helps"
    train_ids: Annotated[
        Path | None,
        typer.Option(
            help="File with the training ids of the scores.",
            show_default="the bank's, in its order",
            rich_help_panel=RESULTS,
        ),
    ] = None
    query_ids: Annotated[
        Path | None,
        typer.Option(
            help="File with the query ids of the scores.",
            show_default="the bank's, in its order",
            rich_help_panel=RESULTS,
        ),
    ] = None

    def check_unused(self) -> None:
        """Refuse what says something of scores where none are given."""
        values = {"--scores-name": self.scores_name, "--train-ids": self.train_ids, "--query-ids": self.query_ids}
        if given := [name for name, value in values.items() if value is not None]:
            raise InputError(f"{' '.join(given)} is for scores from files: name them with --scores.")


@command
def lds(
    out: Annotated[Path, typer.Option(help="Folder for runs, bank, scores, table and figure.")],
    task: TrainingOptions,
    machines: ComputeOptions,
    fitted: AttributionOptions,
    fit: FitOptions,
    held_to: TruthOptions,
    theirs: ScoreOptions,
    training: OwnFunction = None,
    output: Annotated[
        list[str] | None,
        typer.Option(help="Outputs to predict: margin, correct, loss, probability.", show_default="margin"),
    ] = None,
) -> None:
    """Linear datamodeling score (LDS) of attribution methods, with interval and noise ceiling, by retraining.

    Models are retrained on random subsets of the training data. The LDS is the rank correlation between what a method
    predicts for the subsets and what their models do. Interrupted, it goes on when the same command is run again.

    Example: comove lds --dataset digits --methods cld cld:correlation=spearman --subsets 50 --seeds 2 --out lds/

    Example: comove lds --methods cld trak --alpha 0.3 0.5 0.7 0.9 loo --output margin correct --out lds/

    Example: comove lds --dataset digits --training mine:boosting --output loss --out lds/

    Example: comove lds --bank B.safetensors --scores theirs.npy --orientation query,train --out lds/
    """
    from comove.evaluation import FitSubsets, RetrainingBank, Runs, lds_benchmark

    if theirs.scores:
        unused = {"--methods": fitted.methods, "--training": training, "--fit-subsets": fit.fit_subsets}
        given = [*task.given, *(name for name, value in unused.items() if value is not None)]
        _report(_held(theirs, held_to, given, output, out), out, ())
        return
    theirs.check_unused()
    chosen, splits = parse_methods(fitted.methods, ["cld"], fitted.controls), task.splits()
    if held_to.bank is None:
        truth = _new_truth(task, splits, held_to)
        own = task.own(training)
        if own is not None or held_to.same_seed:
            plan = {name: truth.pop(name) for name in ("subsets", "seeds")}
            how, same = own or truth["training"], held_to.same_seed
            truth["subsets"] = RetrainingBank.create(out / "bank", splits, how, same_seed=same, **plan)
    else:
        truth = _known_truth(task, splits, held_to.bank, held_to, training)
    benchmark = lds_benchmark(
        splits,
        chosen,
        out=out,
        runs=Runs(fitted.runs, recording_of("sweep", fitted.record_every)),
        output=output or None,
        fit=FitSubsets(fit.fit_subsets, fit.fit_alpha),
        compute=machines.compute(task),
        **truth,
    )
    _report(benchmark, out, ["runs", "scores", *([] if held_to.bank else ["bank"])])


def _report(benchmark: Benchmark, out: Path, kept: Sequence[str]) -> None:
    from comove.plots import save_figure

    for name in benchmark.outputs:
        _print_table(benchmark, name)
    save_figure(benchmark.plot(), out / "lds.png")
    say("* the highest LDS, or not significantly below it (paired 95% intervals, in differences.csv)")
    result("retrained", {"now": benchmark.retrained, "reused": benchmark.reused})
    say(f"Retrained models: {benchmark.retrained:,} trained now, {benchmark.reused:,} reused")
    written(out, "lds.csv", "lds.json", "differences.csv", "lds.png", *kept)


def _held(
    theirs: ScoreOptions, held_to: TruthOptions, given: Sequence[str], output: list[str] | None, out: Path
) -> Benchmark:
    """Measure scores from files by an existing bank."""
    from comove.evaluation import RetrainingBank, at_alphas, lds_of_scores, read_scores
    from comove.evaluation.lds_benchmark.known_scores import score_files
    from comove.retraining.array_files import read_array

    counts = {"--subsets": held_to.subsets, "--seeds": held_to.seeds, "--same-seed": held_to.same_seed or None}
    ignored = [*given, *(name for name, value in counts.items() if value is not None)]
    if ignored:
        raise InputError(f"With --scores, nothing is trained or computed: leave out {' '.join(ignored)}.")
    if held_to.bank is None:
        raise InputError("--scores are measured by a bank: name it with --bank.")
    files = score_files(theirs.scores or [])
    if theirs.scores_name is not None and len(theirs.scores_name) != len(files):
        raise InputError(
            f"--scores-name must name each of {len(files)} files of scores, got {len(theirs.scores_name)}."
        )
    check_bank(held_to.bank)
    bank = RetrainingBank.load(held_to.bank)
    ids = {"train_ids": theirs.train_ids, "query_ids": theirs.query_ids}
    options: dict[str, Any] = {name: None if file is None else read_array(file) for name, file in ids.items()}
    options |= {"axes": theirs.orientation, "positive": theirs.positive}
    names = theirs.scores_name or [file.stem for file in files]
    scores = [read_scores(file, bank, method=name, **options) for file, name in zip(files, names, strict=True)]
    truth = bank if held_to.alpha is None else at_alphas(bank, held_to.alpha)
    return lds_of_scores(truth, scores, output=output, out=out)


def _new_truth(task: TrainingOptions, splits: Splits, held_to: TruthOptions) -> dict[str, Any]:
    from comove.evaluation import plans_of

    return {
        "subsets": plans_of(held_to.alpha or ["0.5"], held_to.subsets or SUBSETS, splits.train.ids, task.seed),
        "seeds": held_to.seeds or SEEDS,
        "training": task.training_for(splits),
    }


def _known_truth(
    task: TrainingOptions, splits: Splits, path: Path, held_to: TruthOptions, training: str | None
) -> dict[str, Any]:
    """Open a bank; how its models are trained, and on what, is its own affair."""
    from comove.evaluation import RetrainingBank, at_alphas
    from comove.training import Training

    ignored = [] if training else task.given  # of runs alone
    counts = {"--subsets": held_to.subsets, "--seeds": held_to.seeds, "--same-seed": held_to.same_seed or None}
    ignored += [name for name, value in counts.items() if value is not None]
    if ignored:
        raise InputError(f"With --bank, how models are trained, and on what, is given: leave out {' '.join(ignored)}.")
    model = importable(task.model)
    factory = model if model and ":" in model else None
    check_bank(path)
    bank = RetrainingBank.load(path, dataset=splits, model=factory, training=task.own(training))
    how = task.training_for(splits) if bank.is_own else Training(model, seed=task.seed)
    alphas = held_to.alpha
    return {"subsets": bank if alphas is None else at_alphas(bank, alphas), "training": how}


def _print_table(benchmark: Benchmark, output: str) -> None:
    from comove.lds.charts import alpha_name

    columns = [[result for result in benchmark.at(alpha) if result.output == output] for alpha in benchmark.alphas]
    first = columns[0][0]
    rows = [[str(line[0].method), *map(_cell, line, columns)] for line in zip(*columns, strict=True)]
    rows.append(["noise ceiling", *(plain(column[0].noise_ceiling) for column in columns)])
    if any(column[0].undefined for column in columns):
        rows.append(["undefined queries", *(str(column[0].undefined) for column in columns)])
    sizes = dict.fromkeys((column[0].subsets, column[0].seeds) for column in columns)
    models = " or ".join(f"{counted(subsets, 'subset')} x {counted(seeds, 'seed')}" for subsets, seeds in sizes)
    queries = counted(first.per_query.size, "query")
    runs = f", {counted(len(benchmark.runs), 'run')} a method" if benchmark.runs else ""
    shown = f"{first.confidence:.0%} intervals, share of the ceiling"
    table(
        f"LDS ({output}) of {queries}, {models}{runs}, {shown}",
        ["method", *(f"alpha {alpha_name(alpha)}" for alpha in benchmark.alphas)],
        rows,
        name="lds",
        values=benchmark.to_pandas().query("output == @output"),
    )


def _cell(result: LDS, column: Sequence[LDS]) -> str:
    """A method's LDS and interval, with a star where no other method is significantly better."""
    from comove.evaluation import paired_difference

    if math.isnan(result.mean):
        return "-"
    best = max(column, key=lambda other: other.mean)
    star = " " if paired_difference(best, result).decided else "*"
    low, high = result.interval or (None, None)
    share = f" {whole_percent(result.share_of_ceiling):>4}" if result.share_of_ceiling is not None else ""
    return f"{plain(result.mean)} [{plain(low)}, {plain(high)}]{star}{share}"
