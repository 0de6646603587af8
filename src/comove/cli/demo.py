"""``comove demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, print_ranking, result, say, table
from comove.cli.options import Quiet
from comove.display import plain, whole_percent

__all__ = ["demo"]


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, of training and of retraining.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Try attribution, LDS, brittleness, cleaning and coresets on handwritten digits, with a report, in about a minute.

    Interrupted, it goes on when the same command is run again.

    Example: comove demo --out demo/
    """
    from comove.demo import run_demo

    made = run_demo(out, seed=seed, progress=not quiet, say=say)
    query = int(made.scores.query_ids[0])
    print_ranking(made.scores, query, 5)
    result("top", made.scores.both_ends(5))
    table(
        "\nLinear datamodeling score (margin), against real retraining",
        ["method", "LDS", "95% interval", "of the ceiling"],
        [
            [
                str(one.method),
                plain(one.mean),
                " to ".join(map(plain, one.interval)) if one.interval else "-",
                "-" if one.share_of_ceiling is None else whole_percent(one.share_of_ceiling),
            ]
            for one in made.benchmark.results
        ],
        name="lds",
    )
    ceiling = made.benchmark.results[0].noise_ceiling
    if ceiling is not None:
        say(f"Noise ceiling {ceiling:.3f}")
    table(
        "\nRemoving the 50 examples that help 8 queries most, and training again",
        ["removed by", "predictions flipped", "margin falls by"],
        [[row["method"], f"{row['flipped']:.0%}", f"{row['margin_drop']:+.2f}"] for row in made.removals.rows()],
        name="removals",
        values=made.removals.rows(),
    )
    table(
        f"\nFinding {made.cleaning.wrong} wrong labels among {made.cleaning.n:,}",
        ["method", "average precision"],
        [[name, plain(made.cleaning.average_precision(name).value)] for name in made.cleaning.methods],
        name="cleaning",
    )
    table(
        "\nAccuracy of models trained on coresets",
        ["method", "share", "examples", "accuracy (%)", "deviation (%)"],
        made.curve.cells(),
        name="curve",
        values=made.curve.to_pandas(),
    )
    result("report", made.page)
    result("conclusions", list(made.conclusions()))
    for sentence in made.conclusions():
        say(f"\n{sentence}")
    say(f"\nDone in {made.seconds:.0f} s. Open {made.page} for the report; everything is in {out}/.")
