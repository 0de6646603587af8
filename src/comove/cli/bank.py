"""``comove bank``: how far a bank is, training it, joining shards, one file to publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import app, command_of, facts, say, table
from comove.cli.options import ComputeOptions, Device, Quiet, check_bank
from comove.cli.own import OwnFunction, TaskName, importable, own_training

__all__ = ["bank", "compact", "merge", "status", "work"]

bank = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Look at a retraining bank, train it, join shards of it, publish it.\n\n"
        "Banks are planned by [bold]comove lds[/bold], [bold]comove brittleness[/bold] and [bold]comove curve[/bold] "
        "(their OUT/bank), or in Python by RetrainingBank.create."
    ),
)
app.add_typer(bank, name="bank")
command = command_of(bank)

Folder = Annotated[Path, typer.Argument(help="Folder of the bank.")]


@command
def status(path: Annotated[Path, typer.Argument(help="Folder of the bank, or its compact file.")]) -> None:
    """Show how far a bank is, how fast it goes and who works on it; it may be running.

    Example: comove bank status lds/bank
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    found = RetrainingBank.load(path).status()
    rows = [[plan.name, f"{plan.subsets:,}", f"{plan.done:,}", f"{plan.total:,}"] for plan in found.plans]
    table(str(path), ["plan", "subsets", "trained", "models"], rows)
    pace = found.models_a_minute
    lines: dict[str, object] = {"trained": f"{found.done:,} of {found.total:,} different models"}
    lines["pace"] = "-" if pace is None else f"{pace:,.1f} models per minute in this run"
    if pace is not None and found.done < found.total:
        lines["time left"] = f"about {(found.total - found.done) / pace:,.1f} minutes at that pace"
    if found.damaged:
        lines["damaged"] = f"{len(found.damaged)} results; comove bank work sets them aside and trains them again"
    lines["worked on by"] = "no process" if found.owner is None else found.owner
    facts("", lines)


@command
def work(
    path: Folder,
    machines: ComputeOptions,
    model: Annotated[
        str | None, typer.Option(help="Your own package.module:factory, named again where the bank was made with it.")
    ] = None,
    training: OwnFunction = None,
    task: TaskName = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train every model that a bank still lacks, here or on a Ray cluster; what was interrupted goes on.

    Example: comove bank work lds/bank --executor ray --address auto --gpus 0.25
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    found = RetrainingBank.load(path, model=importable(model), training=own_training(training, task))
    pending = len(found.pending)
    found.run(executor=machines.executor_of(), device=device, progress=not quiet)
    say(
        f"{pending:,} of {len(found.jobs):,} models were pending; all are trained now." if pending else "Nothing to do."
    )


@command
def merge(
    path: Folder,
    others: Annotated[list[Path], typer.Argument(help="Folders of the same bank, worked on elsewhere.")],
) -> None:
    """Copy into a bank what was trained elsewhere, for machines that share no disk.

    Plan the same bank on each (the same comove lds or RetrainingBank.create), train parts of it, and join them here.

    Example: comove bank merge lds/bank from-gpu/bank
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    found = RetrainingBank.load(path)
    for other in others:
        check_bank(other)
        say(f"{found.merge(other):,} results copied from {other}")
    now = RetrainingBank.load(path).status()
    say(f"{path}: {now.done:,} of {now.total:,} models trained")


@command
def compact(
    path: Folder,
    out: Annotated[Path, typer.Option(help="The file to write, ending in .safetensors.")],
    half: Annotated[bool, typer.Option("--half", help="Keep logits as float16: half the size, three digits.")] = False,
) -> None:
    """Write a bank to one file, to publish and to read: RetrainingBank.load takes it in place of the folder.

    Example: comove bank compact lds/bank --out digits-bank.safetensors
    """
    from comove.evaluation import RetrainingBank

    check_bank(path)
    found = RetrainingBank.load(path)
    found.compact(out, "float16" if half else "float32")
    models, pending = len(found.jobs), len(found.pending)
    missing = f", {pending:,} of them still pending" if pending else ""
    say(f"Written to {out}: {models:,} models{missing}, {out.stat().st_size / 1e6:,.1f} MB")
