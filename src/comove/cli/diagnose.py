"""``comove diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, note, table, verdict, written
from comove.cli.options import Device, Quiet, coreset_method_list, coreset_methods, open_runs, parse_share
from comove.cli.own import OwnOptions
from comove.errors import InputError

__all__ = ["diagnose"]


@command
def diagnose(
    run: Annotated[Path, typer.Argument(help="Folder of a recorded run with its checkpoints.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs on the coresets, table and figure.")],
    own: OwnOptions,
    methods: Annotated[list[str] | None, coreset_method_list("cld random el2n")] = None,
    budget: Annotated[
        str, typer.Option(metavar="SHARE", help="Share of the training data kept, as 0.1 or 10%.")
    ] = "0.1",
    checkpoints: Annotated[int, typer.Option(min=1, help="How many of each run are looked at.")] = 6,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure the paper's Lemmas 1 to 3: do the gradients of a coreset point where the validation gradient points?

    Example: comove diagnose runs/a --methods cld random el2n --budget 0.1 --out diagnose/
    """
    from comove.evaluation.alignment import diagnose as measure
    from comove.plots import save_figure
    from comove.training import Run

    share = parse_share(budget, "--budget")
    (source,) = open_runs([run], own)
    if not isinstance(source, Run):
        raise InputError(f"{run} is a bare trace; gradients need a run made by comove train.")
    names, every = coreset_methods(methods, ["cld", "random", "el2n"])
    found = measure(
        source,
        names,
        share,
        checkpoints=checkpoints,
        out=out,
        skip=every,
        device=device,
        progress=not quiet,
    )
    for method, reason in found.skipped.items():
        note(f"{method} is left out: {reason}")
    found.to_pandas().to_csv(out / "diagnosis.csv", index=False)
    save_figure(found.plot(), out / "diagnosis.png")
    rows = [
        [r.method, r.trajectory, f"{r.epoch}", f"{r.mean:+.3f}", f"{r.own_class:+.3f}", f"{r.distance:.2f}"]
        for r in found.rows
    ]
    title = f"Coresets of {share:.0%} against the validation gradient"
    head = ["method", "trained on", "epoch", "cosine", "own class", "distance"]
    table(title, head, rows, plain=2, name="alignment", values=found.to_pandas())
    verdict(found.verdicts())
    written(out, *(f"diagnosis.{end}" for end in ("csv", "json", "png")), about=", the runs on the coresets")
