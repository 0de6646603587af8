"""``comove train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, facts, note
from comove.cli.options import TrainingOptions, is_whole

if TYPE_CHECKING:
    from comove.training import Recording, Run

__all__ = ["recording_of", "train"]

TOO_FEW = 8
"""Examples whose mean and variance batch norm cannot go by; measured on CIFAR-10 (docs/decisions/0020-study.md)."""


@command
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    task: TrainingOptions,
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

    Example: comove train --out runs/a

    Example: comove train --dataset cifar10 --data-dir DIR --model resnet9 --width 0.125 --limit 2000 --out runs/b
    """
    from comove.training import train as train_run

    task.own()
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
    _note_last_batch(finished, len(splits.train))


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


def _note_last_batch(finished: Run, n_train: int) -> None:
    from comove.training.loop import batch_bounds

    start, stop = batch_bounds(n_train, finished.recipe.batch_size)[-1]
    if stop - start >= min(TOO_FEW, finished.recipe.batch_size):
        return
    if any(name.endswith("running_var") for name in finished.load_model().state_dict()):
        few = f"An epoch's last batch has {stop - start} examples, which batch norm learns badly from"
        note(f"{few}; another --limit or --batch-size gives better models.")


def _shown(name: str, value: object) -> object:
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB" if isinstance(value, int) else "not noted"
    return f"{value:.4g}" if isinstance(value, float) else value
