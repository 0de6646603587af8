"""The command line: parse, call, print. Everything heavy is imported inside the commands.

Exit codes: 0 done, 2 the user's input, 1 a fault of ours, 130 interrupted and resumable.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from comove.errors import ComoveError, InputError

if TYPE_CHECKING:
    from comove.data import Splits
    from comove.training import Recipe, Recording, Run

__all__ = ["app", "run"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Which training examples a prediction depends on, and which are worth keeping.\n\n"
        "Start with [bold]comove demo[/bold]. Then: [bold]comove train[/bold] records a run, [bold]comove "
        "attribute[/bold] and [bold]comove coreset[/bold] read it, [bold]comove lds[/bold] and [bold]comove "
        "curve[/bold] hold methods to real retraining."
    ),
)
out_console = Console()
err_console = Console(stderr=True)
Command = TypeVar("Command", bound=Callable[..., None])
_debugging: ContextVar[bool] = ContextVar("_debugging", default=False)


def run() -> None:
    """Entry point of the ``comove`` command; ``--debug`` may stand anywhere on the line."""
    words = sys.argv[1:]
    app([*(["--debug"] if "--debug" in words else []), *(word for word in words if word != "--debug")])


def command(function: Command) -> Command:
    """Register a command whose errors become one clear line and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            _say("What was finished is kept; run the same command again to go on.", "Interrupted.", "yellow")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except (ComoveError, OSError) as error:
            _traceback()
            _say(_one_line(error), "Error:", "red")
            raise typer.Exit(2) from None
        except Exception as error:
            _traceback()
            _say(
                f"{_one_line(error)}\n"
                "A fault of comove: run the command again with --debug for the traceback, and please report it.",
                f"Internal error ({type(error).__name__}):",
                "red",
            )
            raise typer.Exit(1) from None

    app.command()(guarded)
    return function


def _traceback() -> None:
    if _debugging.get():
        _say(traceback.format_exc())


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, ComoveError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(line.strip() for line in str(error).splitlines())


def _say(text: str, head: str = "", style: str = "") -> None:
    """Print ``text`` on the error stream as it is, unfolded and free of markup, after a coloured ``head``."""
    err_console.print(Text.assemble((head, style), " " if head else "", text), soft_wrap=True)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], plain: int = 1) -> None:
    """Print a table; all but the first ``plain`` columns are right-aligned. In a pipe no cell is folded."""
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if number < plain else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    out_console.print(Text(title), soft_wrap=True)
    (out_console if out_console.is_terminal else Console(width=1000)).print(table)


def _facts(title: str, facts: Mapping[str, object]) -> None:
    """Print names and values, a line each, unfolded: a path or a name can be copied whole."""
    width = max(map(len, facts))
    lines = [title, *(f"{name:<{width}}  {value}" for name, value in facts.items())]
    out_console.print(Text("\n".join(lines)), soft_wrap=True)


# --- options shared by commands ------------------------------------------------------------------------------------

Dataset = Annotated[
    str, typer.Option(help="digits (embedded), cifar10, or a folder with one sub-folder of images a class.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where cifar10 lies; by default $COMOVE_DATA, then ./data.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download cifar10 into --data-dir.")]
Model = Annotated[
    str | None,
    typer.Option(help="mlp, cnn-small, resnet9, resnet18, ... (comove methods lists them) or package.module:factory."),
]
Width = Annotated[float | None, typer.Option(help="Width of resnet9 and cnn-small; 1 is the full network.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="A named recipe (comove methods lists them); else the model's default.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data, instead of the recipe's.")]
BatchSize = Annotated[int | None, typer.Option(min=2, help="Instead of the recipe's.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate, instead of the recipe's.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only so many training examples, classes in proportion.")]
HeldOut = Annotated[
    int | None, typer.Option("--held-out", min=1, help="How many query examples are held out and recorded.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the weights, the order and the augmentation.")]
SplitSeed = Annotated[
    int, typer.Option(min=0, help="Of the split (and --limit); runs to be averaged need the same one.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Runs = Annotated[
    list[Path],
    typer.Argument(help="Folders of runs (several are averaged) or traces; of a bank for fz."),
]
BudgetList = Annotated[
    list[float] | None, typer.Option("--budgets", help="Share to keep; give it once for each size.", min=0, max=1)
]


def _splits(
    dataset: str, data_dir: Path | None, seed: int, limit: int | None, held_out: int | None, download: bool
) -> Splits:
    from comove.datasets import load_dataset

    return load_dataset(dataset, data_dir=data_dir, seed=seed, limit=limit, queries=held_out, download=download)


def _recipe(
    splits: Splits, model: str, name: str | None, epochs: int | None, batch_size: int | None, lr: float | None
) -> Recipe:
    from comove.training import as_recipe

    recipe = as_recipe(name, model=model, n_train=len(splits.train))
    scaled = epochs is not None and recipe.schedule == "triangular" and epochs <= recipe.peak_epoch
    peak = epochs / 4 if scaled and epochs is not None else None  # a rise to the end would never come down again
    return recipe.with_changes(epochs=epochs, batch_size=batch_size, lr=lr, peak_epoch=peak)


def _model(name: str | None) -> str | None:
    """Make a factory in the working folder importable: the user has just named it."""
    if name and ":" in name and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    return name


def _options(width: float | None) -> dict[str, Any]:
    return {} if width is None else {"width": width}


def _open_runs(paths: Sequence[Path]) -> list[Any]:
    from comove.sources import open_source
    from comove.training import Run

    found = [open_source(path) for path in paths]
    for source in found:
        if isinstance(source, Run) and not source.finished:
            rows = len(source.trace.rows)
            _say(
                f"{source.path} has not been trained to its end; its first {rows} rows are used.", "Warning:", "yellow"
            )
    return found


def _open_banks(paths: Sequence[Path], method: str) -> list[Any]:
    from comove.evaluation import RetrainingBank

    if len(paths) != 1:
        raise InputError(f"{method} is computed from one retraining bank: give its folder (comove lds makes OUT/bank).")
    return [RetrainingBank.load(path) for path in paths]


# --- commands ------------------------------------------------------------------------------------------------------


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of everything after it.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Everything below on real handwritten digits, with a page of figures, in about a minute.

    Interrupted, it goes on from what it has when the same command is run again.

    Example: comove demo --out demo/
    """
    from comove.demo import curve_rows, lds_row, run_demo

    made = run_demo(out, seed=seed, progress=not quiet, say=_say)
    query = int(made.scores.query_ids[0])
    _print_ranking(made.scores, query, 5)
    _table(
        "\nLinear datamodeling score (margin), against real retraining",
        ["method", "LDS", "95 % interval", "undefined"],
        [lds_row(result) for result in made.benchmark.results],
    )
    ceiling = made.benchmark.results[0].noise_ceiling
    if ceiling is not None:
        _say(f"Noise ceiling {ceiling:.3f}")
    _table(
        "\nAccuracy of models trained on coresets",
        ["method", "share", "examples", "accuracy", "deviation"],
        curve_rows(made.curve),
    )
    _say(f"\nDone in {made.seconds:.0f} s. Open {made.page} for the figures; everything is in {out}/.")


def _print_ranking(scores: Any, query: int, k: int) -> None:
    for title, ranking in (("help", scores.top(k, query=query)), ("hurt", scores.bottom(k, query=query))):
        rows = [
            [str(id_), name, f"{score:+.4f}"] for (id_, score), name in zip(ranking, ranking.class_names(), strict=True)
        ]
        _table(f"\nTraining examples that {title} query {query} most", ["id", "class", scores.method], rows, plain=2)


@command
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    dataset: Dataset = "digits",
    data_dir: DataDir = None,
    model: Model = None,
    width: Width = None,
    recipe: RecipeName = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    limit: Limit = None,
    held_out: HeldOut = None,
    mode: Annotated[str, typer.Option(help="sweep: clean passes; in_pass: from the training pass.")] = "sweep",
    record_every: Annotated[int | None, typer.Option(min=1, help="Also a row every so many steps.")] = None,
    checkpoints: Annotated[
        str, typer.Option(help="all, last, or a number N: every N epochs. New queries are replayed from them.")
    ] = "all",
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    device: Device = "auto",
    download: Download = False,
    quiet: Quiet = False,
) -> None:
    """Train a model and record its trace: losses, margins and more of every example, before training and each epoch.

    Interrupted, it goes on from the last finished epoch when the same command is run again.

    Example: comove train --out runs/a

    Example: comove train --dataset cifar10 --data-dir DIR --model resnet9 --width 0.125 --limit 2000 --out runs/b
    """
    from comove.training import default_model
    from comove.training import train as train_run

    splits = _splits(dataset, data_dir, split_seed, limit, held_out, download)
    name = _model(model) or default_model(splits)
    kept: Any = int(checkpoints) if checkpoints.isdigit() else checkpoints
    finished = train_run(
        splits,
        name,
        _recipe(splits, name, recipe, epochs, batch_size, lr),
        seed,
        out,
        recording=_recording(mode, record_every),
        checkpoints=kept,
        device=device,
        model_options=_options(width),
        progress=not quiet,
    )
    _print_run(finished)


def _recording(mode: str, every: int | None) -> Recording:
    from comove.training import Recording

    return Recording(mode=mode, every=every)  # type: ignore[arg-type]  # checked by Recording


def _print_run(finished: Run) -> None:
    result = finished.result
    facts: dict[str, object] = {"trace": finished.trace, "checkpoints": len(finished.checkpoints)}
    for name, value in result.items():
        facts[name.replace("_", " ")] = f"{value:.4g}" if isinstance(value, float) else value
    _facts(str(finished), facts)


@command
def attribute(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Folder for scores, top.csv and a figure.")],
    method: Annotated[str, typer.Option(help="A method, with options as cld:correlation=spearman.")] = "cld",
    queries: Annotated[int, typer.Option(min=1, help="How many recorded queries, spread over classes.")] = 20,
    query_id: Annotated[list[int] | None, typer.Option(help="A query's id; may be given several times.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many training examples to list for each query.")] = 10,
) -> None:
    """Score every training example for queries: which help the prediction, which hurt it (positive = helps).

    Example: comove attribute runs/a runs/b --method cld --queries 20 --top 10 --out scores/
    """
    from comove.attribution import attributors
    from comove.demo import choose_queries
    from comove.discovery import parse_method
    from comove.evaluation.benchmark import file_name
    from comove.sources import as_bank, as_sources
    from comove.store import new_folder

    chosen = parse_method(method, attributors(), "attribution method")
    banked = "bank" in chosen.requires
    sources = _open_banks(runs, method) if banked else _open_runs(runs)
    new_folder(out)
    first = as_bank(sources, method) if banked else as_sources(sources, frozenset(), method)[0].trace
    wanted = query_id or choose_queries(first, queries)
    scores = chosen.fit(sources).attribute(wanted)
    top = min(top, scores.train_ids.size)
    scores.save(out / f"{file_name(scores.method)}.safetensors")
    _top_csv(scores, top, out / "top.csv")
    _print_ranking(scores, int(scores.query_ids[0]), min(top, 5))
    figure = _attribution_figure(sources[0], scores, out)
    _say(f"\n{scores}\nWritten to {out}/: scores, top.csv" + (f", {figure.name}" if figure else ""))


def _top_csv(scores: Any, k: int, path: Path) -> None:
    import pandas as pd

    parts = []
    for query in scores.query_ids.tolist():
        for side, ranking in (("helps", scores.top(k, query=query)), ("hurts", scores.bottom(k, query=query))):
            part = ranking.to_pandas()
            part.insert(0, "rank", range(1, len(part) + 1))
            part.insert(0, "side", side)
            part.insert(0, "query_id", query)
            parts.append(part)
    pd.concat(parts).rename(columns={"id": "train_id"}).to_csv(path, index=False)


def _attribution_figure(source: object, scores: Any, out: Path) -> Path | None:
    from comove.report import influence_grid, save_figure
    from comove.training import Run

    if not isinstance(source, Run):
        return None
    try:
        splits = source.data()
        return save_figure(influence_grid(scores, splits, scores.query_ids[:8].tolist()), out / "influence.png")
    except InputError as error:
        _say(_one_line(error), "No figure:", "yellow")
        return None


@command
def coreset(
    run: Annotated[Path, typer.Argument(help="Folder of a recorded run or trace.")],
    out: Annotated[Path, typer.Option(help="A .csv table, or a .safetensors file.")],
    method: Annotated[str, typer.Option(help="A method, with options as random:seed=1.")] = "cld",
    budget: Annotated[float, typer.Option(help="A share up to 1.0 (0.1), or a number of examples (500).")] = 0.1,
) -> None:
    """Choose the training examples worth keeping.

    Example: comove coreset runs/a --method cld --budget 0.1 --out coreset.csv
    """
    from comove.coreset import selectors
    from comove.discovery import parse_method
    from comove.store import new_folder

    selector = parse_method(method, selectors(), "coreset method")
    amount = int(budget) if budget > 1 and budget == int(budget) else budget
    chosen = selector.select(_open_runs([run]), amount)
    new_folder(out.parent)
    chosen.save(out)
    names = chosen.classes or ()
    rows = [
        [names[label] if names else str(label), str(count), f"{chosen.scores[chosen.labels == label].mean():+.4f}"]
        for label, count in chosen.per_class.items()
    ]
    _table(str(chosen), ["class", "kept", "mean score"], rows)
    _say(f"Written to {out}")


@command
def lds(
    out: Annotated[Path, typer.Option(help="Folder for runs, bank, scores, table and figure.")],
    methods: Annotated[str, typer.Option(help="Comma-separated, options as cld:correlation=spearman.")] = "cld",
    alpha: Annotated[float, typer.Option(help="Share of the training data in each subset.")] = 0.5,
    subsets: Annotated[int, typer.Option(min=3, help="C, random subsets.")] = 50,
    seeds: Annotated[int, typer.Option(min=1, help="R, models trained a subset.")] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Models that the methods are fitted on.")] = 3,
    output: Annotated[str, typer.Option(help="margin, correct, loss or probability.")] = "margin",
    fit_subsets: Annotated[
        int | None, typer.Option(min=4, help="Other subsets that fz and datamodels are fitted on (one model each).")
    ] = None,
    controls: Annotated[bool, typer.Option(help="Show the random and same-class controls too.")] = True,
    dataset: Dataset = "digits",
    data_dir: DataDir = None,
    model: Model = None,
    width: Width = None,
    recipe: RecipeName = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    limit: Limit = None,
    held_out: HeldOut = None,
    record_every: Annotated[int | None, typer.Option(min=1, help="Also a row every so many steps.")] = None,
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    device: Device = "auto",
    download: Download = False,
    quiet: Quiet = False,
) -> None:
    """Hold attribution methods to real retraining: the linear datamodeling score, with interval and noise ceiling.

    Example: comove lds --dataset digits --methods cld,cld:correlation=spearman --subsets 50 --seeds 2 --out lds/
    """
    from comove.attribution import attributors
    from comove.demo import lds_row
    from comove.discovery import parse_method
    from comove.evaluation import lds_benchmark
    from comove.evaluation.subsets import random
    from comove.report import lds_bars, save_figure
    from comove.training import default_model

    words = [*methods.split(","), *(["same-class-control", "random-control"] if controls else [])]
    chosen = [parse_method(word, attributors(), "attribution method") for word in dict.fromkeys(words)]
    splits = _splits(dataset, data_dir, split_seed, limit, held_out, download)
    name = _model(model) or default_model(splits)
    benchmark = lds_benchmark(
        splits,
        chosen,
        subsets=random(alpha, subsets, seed),
        seeds=seeds,
        out=out,
        runs=runs,
        model=name,
        recipe=_recipe(splits, name, recipe, epochs, batch_size, lr),
        model_options=_options(width),
        recording=_recording("sweep", record_every),
        output=output,
        fit_subsets=fit_subsets,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    rows = [lds_row(result) for result in benchmark.results]
    _table(
        f"LDS ({output}), alpha {alpha}, {subsets} subsets x {seeds} seeds, {runs} runs a method",
        ["method", "LDS", "95 % interval", "undefined"],
        rows,
    )
    first = benchmark.results[0]
    ceiling = "unknown (one seed)" if first.noise_ceiling is None else f"{first.noise_ceiling:.3f}"
    save_figure(lds_bars(benchmark.results), out / "lds.png")
    _say(f"Noise ceiling {ceiling}. Written to {out}/: lds.csv, lds.json, lds.png, runs, bank, scores")


@command
def curve(
    run: Annotated[Path, typer.Argument(help="Folder of the recorded run to select with.")],
    out: Annotated[Path, typer.Option(help="Folder for results, table and figure.")],
    methods: Annotated[str, typer.Option(help="Comma-separated, or all.")] = "cld,random",
    budgets: BudgetList = None,
    seeds: Annotated[int, typer.Option(min=1, help="Models trained a point.")] = 3,
    target_model: Annotated[str | None, typer.Option(help="Another model than the run's.")] = None,
    width: Width = None,
    recipe: RecipeName = None,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train from scratch on coresets of several sizes, and compare accuracies with random and with the full data.

    Example: comove curve runs/a --methods cld,random --budgets 0.1 --budgets 0.3 --seeds 3 --out curve/
    """
    from comove.coreset import selectors
    from comove.demo import curve_rows
    from comove.evaluation import coreset_curve
    from comove.report import curve_figure, save_figure

    names = list(selectors()) if methods == "all" else methods.split(",")
    found = coreset_curve(
        _open_runs([run]),
        names,
        budgets or [0.1, 0.3, 0.5],
        seeds=seeds,
        seed=seed,
        target_model=_model(target_model),
        recipe=recipe,
        model_options=_options(width) if target_model else None,
        out=out,
        device=device,
        progress=not quiet,
    )
    found.to_pandas().to_csv(out / "curve.csv", index=False)
    save_figure(curve_figure(found), out / "curve.png")
    _table(
        f"Accuracy on {found.n_query:,} held-out queries",
        ["method", "share", "examples", "accuracy", "deviation"],
        curve_rows(found),
    )
    _say(f"Written to {out}/: curve.csv, curve.png")


@command
def methods() -> None:
    """List attribution methods, coreset methods, models, recipes and data sets.

    Example: comove methods
    """
    from comove.attribution import attributors
    from comove.coreset import selectors
    from comove.datasets import dataset_names
    from comove.models import model_names
    from comove.training import RECIPES

    rows = [
        [name, ", ".join(sorted(cls.requires)), cls.summary, cls.cost, _fields(cls)]
        for name, cls in attributors().items()
    ]
    _table("\nAttribution methods", ["name", "needs", "what it measures", "what it costs", "options"], rows, plain=5)
    rows = [[name, ", ".join(sorted(cls.requires)), cls.summary, _fields(cls)] for name, cls in selectors().items()]
    _table("\nCoreset methods", ["name", "needs", "what it keeps", "options"], rows, plain=4)
    recipes = [
        [name, f"{recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g} {recipe.schedule}"]
        for name, recipe in RECIPES.items()
    ]
    _table("\nRecipes", ["name", "training"], recipes, plain=2)
    data = f"{', '.join(dataset_names())}, or a folder of images"
    _facts("", {"Models": ", ".join(model_names()), "Data sets": data})


def _fields(method: Any) -> str:
    import dataclasses

    return ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(method)) or "-"


@command
def doctor(data_dir: DataDir = None) -> None:
    """Show versions, device, threads and where data was found.

    Example: comove doctor --data-dir DIR
    """
    import shutil

    import torch

    from comove.datasets import data_folders, find_cifar10
    from comove.store import versions

    found = find_cifar10(data_dir)
    looked = ", ".join(str(folder) for folder in data_folders(data_dir))
    facts = {
        **versions(),
        "CUDA device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "torch threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "digits": "embedded (scikit-learn)",
        "cifar10": f"{found[0]} in {found[1]}" if found else f"not found in {looked}; name its folder with --data-dir",
        "free disk here": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB",
    }
    _facts("comove doctor", facts)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (may stand anywhere).")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    _debugging.set(debug)
    if version:
        from importlib.metadata import version as installed

        out_console.print(f"comove {installed('comove')}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        out_console.print(context.get_help())
