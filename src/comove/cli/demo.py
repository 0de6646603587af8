"""``comove demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, print_ranking, say, table
from comove.cli.options import Quiet

__all__ = ["demo"]


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

    made = run_demo(out, seed=seed, progress=not quiet, say=say)
    query = int(made.scores.query_ids[0])
    print_ranking(made.scores, query, 5)
    table(
        "\nLinear datamodeling score (margin), against real retraining",
        ["method", "LDS", "95% interval", "undefined"],
        [lds_row(result) for result in made.benchmark.results],
    )
    ceiling = made.benchmark.results[0].noise_ceiling
    if ceiling is not None:
        say(f"Noise ceiling {ceiling:.3f}")
    table(
        "\nAccuracy of models trained on coresets",
        ["method", "share", "examples", "accuracy (%)", "deviation (%)"],
        curve_rows(made.curve),
    )
    say(f"\nDone in {made.seconds:.0f} s. Open {made.page} for the figures; everything is in {out}/.")
