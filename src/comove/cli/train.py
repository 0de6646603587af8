"""``comove train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, facts
from comove.cli.options import TrainingOptions, is_whole
from comove.display import counted
from comove.errors import InputError

if TYPE_CHECKING:
    from comove.training import Recording, Run

__all__ = ["recording_of", "train"]


@command
def train(
    task: TrainingOptions,
    run: Annotated[
        Path | None,
        typer.Argument(help="A finished run to train further, up to --epochs in all.", show_default="a new run"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="RUN; needed for a new run")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="sweep: losses of all examples after each epoch; in_pass: those of the training batches."),
    ] = "sweep",
    record_every: Annotated[
        int | None,
        typer.Option(min=1, help="Record a row every so many steps too.", show_default="a row after each epoch"),
    ] = None,
    anchors: Annotated[
        list[int] | None,
        typer.Option(
            help="Epochs after which features are stored, which some coreset methods need; -1 is the last.",
            show_default="-1",
        ),
    ] = None,
    checkpoints: Annotated[
        str,
        typer.Option(
            help="Checkpoints to keep: all, last, or N for every N epochs; gradient methods and pictures need them."
        ),
    ] = "all",
) -> None:
    """Train a model and record its trace: losses of every example before training and after each epoch.

    Interrupted, it goes on from the last finished epoch when the same command is run again.

    A finished run can be trained further if its learning rate schedule does not depend on the number of epochs
    (--schedule constant, multistep). The result is the same, to the bit, as training for all epochs at once.

    Example: comove train --out runs/a

    Example: comove train runs/a --epochs 40

    Example: comove train --dataset cifar10 --data-dir DIR --model resnet9 --width 0.125 --limit 2000 --out runs/b
    """
    from comove.training import train as train_run

    task.own()
    if run is not None:
        longer = _extended(run, task, out)
        _print_run(longer)
        return
    if out is None:
        raise InputError("--out names the folder of the new run; comove train RUN --epochs N trains one further.")
    splits = task.splits()
    kept: Any = int(checkpoints) if is_whole(checkpoints) else checkpoints
    finished = train_run(
        splits,
        task.model_for(splits),
        task.recipe_for(splits),
        task.seed,
        out,
        recording=recording_of(mode, record_every, anchors),
        checkpoints=kept,
        device=task.device,
        model_options=task.model_options,
        progress=not task.quiet,
    )
    _print_run(finished)


def _extended(path: Path, task: TrainingOptions, out: Path | None) -> Run:
    """Train a run further; all but the number of epochs is as it was."""
    from comove.training import extend

    if out is not None or task.epochs is None:
        wrong = "leave out --out" if out is not None else "say to how many in all"
        raise InputError(f"comove train RUN --epochs N trains a run further, in its folder: {wrong}.")
    found = replace(task, epochs=None).opened(path)
    return extend(found, task.epochs, device=task.device, progress=not task.quiet)


def recording_of(mode: str, every: int | None, anchors: Sequence[int] | None = None) -> Recording:
    """What a run records."""
    from comove.training import Recording

    return Recording(mode=mode, every=every, anchors=tuple(anchors or (-1,)))  # type: ignore[arg-type]  # it checks


CALLED = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "seconds_of_last_sitting": "seconds in the last call",
    "peak_memory_bytes": "peak memory",
}
"""What an entry of a run's result is called when it is printed."""


def _print_run(finished: Run) -> None:
    result, trace = finished.result, finished.trace
    counts = {"training": trace.train_ids.size, **trace.held_out_counts()}
    shown: dict[str, object] = {
        "examples": ", ".join(f"{count:,} {name}" for name, count in counts.items()),
        "trace": f"{counted(len(trace.rows), 'row')} of {', '.join(trace.fields)} ({trace.mode})",
        "checkpoints": len(finished.checkpoints),
    }
    for name, value in result.items():
        shown[CALLED.get(name, name.replace("_", " "))] = _shown(name, value)
    summary = {"path": finished.path, "seed": finished.seed, "rows": len(finished.trace.rows), **result}
    facts(str(finished), shown, name="run", values=summary)


def _shown(name: str, value: object) -> object:
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB" if isinstance(value, int) else "not noted"
    return f"{value:.4g}" if isinstance(value, float) else value
