"""``comove train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, facts
from comove.cli.options import TrainingOptions, is_whole
from comove.cli.own import OwnOptions, is_object
from comove.errors import InputError

if TYPE_CHECKING:
    from comove.training import Recording, Run

__all__ = ["recording_of", "train"]


@command
def train(
    task: TrainingOptions,
    run: Annotated[
        Path | None,
        typer.Argument(help="A finished run to be trained further, to --epochs in all.", show_default="a new run"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="that of RUN; a new run needs one")
    ] = None,
    mode: Annotated[str, typer.Option(help="sweep: clean passes; in_pass: from the training pass.")] = "sweep",
    record_every: Annotated[
        int | None,
        typer.Option(min=1, help="Also a row every so many steps.", show_default="rows at the ends of epochs"),
    ] = None,
    anchors: Annotated[
        list[int] | None,
        typer.Option(
            help="Epochs after which features are kept, for coreset methods that read them; -1 is the last.",
            show_default="-1",
        ),
    ] = None,
    checkpoints: Annotated[
        str, typer.Option(help="all, last, or a number N: every N epochs. New queries are replayed from them.")
    ] = "all",
) -> None:
    """Train a model and record its trace: losses, margins and more of every example, before training and each epoch.

    Interrupted, it goes on from the last finished epoch when the same command is run again.

    A finished run is trained further where its schedule does not go by the number of epochs (constant, multistep); it
    becomes what so many epochs from the start give, to the bit.

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
    from comove.training import Run, extend

    given = [*([] if out is None else ["--out"]), *(name for name in task.given if name != "--epochs")]
    if given or task.epochs is None:
        wrong = f"leave out {' '.join(given)}" if given else "say to how many in all"
        raise InputError(f"comove train RUN --epochs N trains a run further, and nothing else of it changes: {wrong}.")
    own = task.model if task.model and ":" in task.model else None
    found = OwnOptions(own, None, task.dataset if is_object(task.dataset) else None).open(path)
    if not isinstance(found, Run):
        raise InputError(f"{path} is a bare trace; only runs made by comove train can be trained further.")
    return extend(found, task.epochs, device=task.device, progress=not task.quiet)


def recording_of(mode: str, every: int | None, anchors: Sequence[int] | None = None) -> Recording:
    """What a run records."""
    from comove.training import Recording

    return Recording(mode=mode, every=every, anchors=tuple(anchors or (-1,)))  # type: ignore[arg-type]  # it checks


def _print_run(finished: Run) -> None:
    result = finished.result
    shown: dict[str, object] = {"trace": finished.trace, "checkpoints": len(finished.checkpoints)}
    for name, value in result.items():
        shown[name.removesuffix("_bytes").replace("_", " ")] = _shown(name, value)
    summary = {"path": finished.path, "seed": finished.seed, "rows": len(finished.trace.rows), **result}
    facts(str(finished), shown, name="run", values=summary)


def _shown(name: str, value: object) -> object:
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB" if isinstance(value, int) else "not noted"
    return f"{value:.4g}" if isinstance(value, float) else value
