"""``comove lds``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, say, table
from comove.cli.options import MethodList, Task, parse_methods
from comove.cli.train import recording_of

__all__ = ["lds"]


@command
def lds(
    out: Annotated[Path, typer.Option(help="Folder for runs, bank, scores, table and figure.")],
    task: Task,
    methods: MethodList = None,
    alpha: Annotated[float, typer.Option(help="Share of the training data in each subset.")] = 0.5,
    subsets: Annotated[int, typer.Option(min=3, help="C, random subsets.")] = 50,
    seeds: Annotated[int, typer.Option(min=1, help="R, models trained a subset.")] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Models that the methods are fitted on.")] = 3,
    output: Annotated[str, typer.Option(help="margin, correct, loss or probability.")] = "margin",
    fit_subsets: Annotated[
        int | None, typer.Option(min=4, help="Other subsets that fz and datamodels are fitted on (one model each).")
    ] = None,
    controls: Annotated[bool, typer.Option(help="Show the random and same-class controls too.")] = True,
    record_every: Annotated[int | None, typer.Option(min=1, help="Also a row every so many steps.")] = None,
) -> None:
    """Hold attribution methods to real retraining: the linear datamodeling score, with interval and noise ceiling.

    Example: comove lds --dataset digits --methods cld cld:correlation=spearman --subsets 50 --seeds 2 --out lds/
    """
    from comove.demo import lds_row
    from comove.evaluation import lds_benchmark
    from comove.evaluation.subsets import random
    from comove.report import lds_bars, save_figure

    chosen = parse_methods(methods, ["cld"], controls)
    splits = task.splits()
    benchmark = lds_benchmark(
        splits,
        chosen,
        subsets=random(alpha, subsets, task.seed),
        seeds=seeds,
        out=out,
        runs=runs,
        model=task.model_for(splits),
        recipe=task.recipe_for(splits),
        model_options=task.model_options,
        recording=recording_of("sweep", record_every),
        output=output,
        fit_subsets=fit_subsets,
        seed=task.seed,
        device=task.device,
        progress=not task.quiet,
    )
    rows = [lds_row(result) for result in benchmark.results]
    table(
        f"LDS ({output}), alpha {alpha}, {subsets} subsets x {seeds} seeds, {runs} runs a method",
        ["method", "LDS", "95 % interval", "undefined"],
        rows,
    )
    first = benchmark.results[0]
    ceiling = "unknown (one seed)" if first.noise_ceiling is None else f"{first.noise_ceiling:.3f}"
    save_figure(lds_bars(benchmark.results), out / "lds.png")
    say(f"Noise ceiling {ceiling}. Written to {out}/: lds.csv, lds.json, lds.png, runs, bank, scores")
