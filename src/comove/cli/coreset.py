"""``comove coreset`` and ``comove curve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, say, table
from comove.cli.options import (
    BudgetList,
    Device,
    MethodList,
    Quiet,
    RecipeName,
    Seed,
    Width,
    importable,
    open_runs,
    width_option,
)

__all__ = ["coreset", "curve"]


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
    chosen = selector.select(open_runs([run]), amount)
    new_folder(out.parent)
    chosen.save(out)
    names = chosen.classes or ()
    rows = [
        [names[label] if names else str(label), str(count), f"{chosen.scores[chosen.labels == label].mean():+.4f}"]
        for label, count in chosen.per_class.items()
    ]
    table(str(chosen), ["class", "kept", "mean score"], rows)
    say(f"Written to {out}")


@command
def curve(
    run: Annotated[Path, typer.Argument(help="Folder of the recorded run to select with.")],
    out: Annotated[Path, typer.Option(help="Folder for results, table and figure.")],
    methods: MethodList = None,
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

    Example: comove curve runs/a --methods cld random --budgets 0.1 0.3 --seeds 3 --out curve/
    """
    from comove.coreset import selectors
    from comove.demo import curve_rows
    from comove.evaluation import coreset_curve
    from comove.report import curve_figure, save_figure

    named = methods or ["cld", "random"]
    names = list(selectors()) if named == ["all"] else named
    found = coreset_curve(
        open_runs([run]),
        names,
        budgets or [0.1, 0.3, 0.5],
        seeds=seeds,
        seed=seed,
        target_model=importable(target_model),
        recipe=recipe,
        model_options=width_option(width) if target_model else None,
        out=out,
        device=device,
        progress=not quiet,
    )
    found.to_pandas().to_csv(out / "curve.csv", index=False)
    save_figure(curve_figure(found), out / "curve.png")
    table(
        f"Accuracy on {found.n_query:,} held-out queries",
        ["method", "share", "examples", "accuracy", "deviation"],
        curve_rows(found),
    )
    say(f"Written to {out}/: curve.csv, curve.png")
