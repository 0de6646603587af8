"""``comove bank``: how far a bank is, training it, joining shards, one file to publish, the layouts of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comove.cli.app import (
    CommandGroup,
    ListCommand,
    app,
    command_of,
    computes_nothing,
    facts,
    guarded,
    result,
    say,
    table,
    written,
)
from comove.cli.options import ComputeOptions, Device, Quiet, check_bank
from comove.cli.own import OwnDataset, OwnFunction, OwnModel, TaskName, importable, is_object, own_splits, own_training

if TYPE_CHECKING:
    from comove.retraining.status import BankStatus

__all__ = ["bank", "compact", "export", "import_", "merge", "status", "work"]

bank = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Retraining banks: state, training, merging, one file to publish, and the formats of other libraries.\n\n"
        "[bold]comove lds[/bold] and [bold]comove brittleness[/bold] make banks, or RetrainingBank.create in Python."
    ),
)
app.add_typer(bank, name="bank")
command = command_of(bank)

Folder = Annotated[Path, typer.Argument(help="Folder of the bank.")]


@command
@computes_nothing
def status(path: Annotated[Path, typer.Argument(help="Folder of the bank, or its compact file.")]) -> None:
    """Show how many models of a bank are trained, how fast it goes and which process is training it.

    Example: comove bank status lds/bank
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    found = RetrainingBank.load(path).status()
    rows = [[plan.name, f"{plan.subsets:,}", f"{plan.done:,}", f"{plan.total:,}"] for plan in found.plans]
    table(str(path), ["plan", "subsets", "trained", "models"], rows, name="plans")
    pace = found.models_a_minute
    lines: dict[str, object] = {"trained": f"{found.done:,} of {found.total:,} different models"}
    lines["pace"] = "-" if pace is None else f"{pace:,.1f} models per minute in this run"
    if pace is not None and found.done < found.total:
        lines["time left"] = f"about {(found.total - found.done) / pace:,.1f} minutes at that pace"
    if found.damaged:
        lines["damaged"] = f"{len(found.damaged)} results; comove bank work sets them aside and trains them again"
    lines["worked on by"] = "no process" if found.owner is None else found.owner
    facts("", lines, name="status", values=_numbers(found))


def _numbers(found: BankStatus) -> dict[str, object]:
    """A bank's state, for scripts."""
    return {
        "trained": found.done,
        "models": found.total,
        "models_a_minute": found.models_a_minute,
        "damaged": len(found.damaged),
        "worked_on_by": found.owner,
    }


@command
def work(
    path: Folder,
    machines: ComputeOptions,
    model: OwnModel = None,
    training: OwnFunction = None,
    task: TaskName = None,
    dataset: OwnDataset = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train the models that a bank still lacks, on this machine or on a Ray cluster.

    Interrupted, it goes on when the same command is run again.

    Example: comove bank work lds/bank --executor ray --address auto --gpus 0.25
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    data = own_splits(dataset) if dataset is not None and is_object(dataset) else dataset
    own = own_training(training, task)
    found = RetrainingBank.load(path, dataset=data, model=importable(model), training=own)
    pending = len(found.pending)
    found.run(executor=machines.executor_of(), device=device, progress=not quiet)
    result("trained", {"now": pending, "models": len(found.jobs)})
    say(
        f"{pending:,} of {len(found.jobs):,} models were pending; all are trained now." if pending else "Nothing to do."
    )


@command
@computes_nothing
def merge(
    path: Folder,
    others: Annotated[
        list[Path], typer.Argument(help="Folders or compact files of the same bank, trained on other machines.")
    ],
) -> None:
    """Copy into a bank the models that other machines have trained.

    Create the same bank on each machine (by the same comove lds or RetrainingBank.create), train parts of it, and merge
    them here. A bank that was published as one file is continued in the same way: create it, merge the file, go on.

    Example: comove bank merge lds/bank from-gpu/bank
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    found = RetrainingBank.load(path)
    for other in others:
        check_bank(other)
        copied = found.merge(other)
        result("merged", [{"from": other, "results": copied}])
        say(f"{copied:,} results copied from {other}")
    now = RetrainingBank.load(path).status()
    result("status", _numbers(now))
    say(f"{path}: {now.done:,} of {now.total:,} models trained")


@command
@computes_nothing
def compact(
    path: Folder,
    out: Annotated[Path, typer.Option(help="The file to write, ending in .safetensors.")],
    half: Annotated[bool, typer.Option("--half", help="Store logits as float16: half the size, three digits.")] = False,
) -> None:
    """Write a bank to one file, to publish it; RetrainingBank.load and --bank read it like the folder.

    Example: comove bank compact lds/bank --out digits-bank.safetensors
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    found = RetrainingBank.load(path)
    found.compact(out, "float16" if half else "float32")
    models, pending = len(found.jobs), len(found.pending)
    missing = f", {pending:,} of them still pending" if pending else ""
    written(out, about=f": {models:,} models{missing}, {out.stat().st_size / 1e6:,.1f} MB")


Layout = Annotated[
    str | None,
    typer.Option(
        help="trak, datamodels, dattri, kronfluence, npz or parquet.",
        show_default="recognised by the files",
    ),
]


def import_(
    path: Annotated[Path, typer.Argument(help="Folder (or .npz file) of masks and outputs.")],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .safetensors.")],
    layout: Layout = None,
    lower: Annotated[
        list[str] | None,
        typer.Option(
            help="Outputs, besides loss, of which lower is better, such as error perplexity.", show_default="none"
        ),
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="Read only this many models, from the first on.", show_default="all")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store outputs as float16: half the size.")] = False,
) -> None:
    """Read published ground truth (masks and outputs of retrained models) as a bank in one file.

    Example: comove bank import trak-cifar10/ --layout trak --out trak-cifar10.safetensors
    """
    from comove.evaluation import import_bank

    found = import_bank(path, layout, first=first, higher=dict.fromkeys(lower or (), False))
    found.compact(out, "float16" if half else "float32")
    counts = f"{len(found.jobs):,} models of {len(found.masks):,} subsets of {found.train_ids.size:,} training examples"
    say(f"Read {counts}, {found.query_ids.size:,} queries: {', '.join(found.output_names)}")
    written(out, about=f": {out.stat().st_size / 1e6:,.1f} MB")


bank.command("import", cls=ListCommand)(guarded(computes_nothing(import_)))


@command
@computes_nothing
def export(
    path: Annotated[Path, typer.Argument(help="Folder of the bank, or its compact file.")],
    out: Annotated[Path, typer.Option(help="The new folder (for npz, file) to write.")],
    layout: Annotated[str, typer.Option(help="trak, datamodels, dattri, kronfluence, npz or parquet.")],
    output: Annotated[
        list[str] | None, typer.Option(help="Outputs to write, such as margin loss.", show_default="all")
    ] = None,
) -> None:
    """Write a bank's masks and outputs in a layout that other libraries read.

    Example: comove bank export lds/bank --layout dattri --output loss --out dattri/
    """
    from comove.evaluation import RetrainingBank, export_bank

    check_bank(path)
    found = RetrainingBank.load(path)
    export_bank(found, out, layout, outputs=output)
    files = sorted(file.name for file in out.iterdir()) if out.is_dir() else []
    written(out, *files, about=f": {len(found.jobs):,} models" if not files else "")
