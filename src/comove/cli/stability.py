"""``comove stability``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comove.cli.app import command, note, one_line, table, verdict, written
from comove.cli.options import budget_list, coreset_method_list, coreset_methods, open_runs, parse_shares
from comove.cli.own import OwnOptions
from comove.errors import InputError

if TYPE_CHECKING:
    from comove.evaluation.coreset_curves.stability import EarlyRows, Stability

__all__ = ["stability"]


@command
def stability(
    runs: Annotated[list[Path], typer.Argument(help="Runs or traces of the same data, from different seeds.")],
    own: OwnOptions,
    methods: Annotated[list[str] | None, coreset_method_list("cld")] = None,
    budgets: Annotated[list[str] | None, budget_list("0.1 0.3")] = None,
    epochs: Annotated[
        list[int] | None,
        typer.Option(help="After how many epochs to look at CLD's choice.", show_default="five, evenly spread"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for stability.csv and early.csv.", show_default="nothing is written")
    ] = None,
) -> None:
    """Say how much a coreset depends on the seed of the run it is read from, and how many epochs CLD needs.

    Example: comove stability runs/a runs/b runs/c --methods cld forgetting --budgets 0.1 0.3
    """
    from comove.coreset import selector
    from comove.evaluation.coreset_curves.stability import early_epochs
    from comove.evaluation.coreset_curves.stability import stability as compare
    from comove.training.sources import as_sources

    names, every = coreset_methods(methods, ["cld"])
    for name in names:
        selector(name)  # refuses an unknown one, which a single run would not be asked for
    shares, sources = parse_shares(budgets, [0.1, 0.3]), open_runs(runs, own)
    last = int(min(as_sources(source, frozenset(), "stability")[0].trace.rows[-1].epoch for source in sources))
    looked = epochs or sorted({max(2, last * step // 8) for step in (1, 2, 4, 6, 8)})
    early = [early_epochs(sources, looked, share) for share in shares]
    between = []
    for method in names if runs[1:] else []:
        try:
            between += [compare(sources, method, share) for share in shares]
        except InputError as error:
            if not every:
                raise
            note(f"{method} is left out: {one_line(error)}")
    if not runs[1:]:
        note("One run says nothing about seeds: give runs of several.")
    _print(between, early)
    verdict([*(one.verdict for one in between), *(one.verdict for one in early)])
    if out is not None:
        _write(between, early, out)
        written(out, *(["stability.csv"] if between else []), "early.csv")


def _number(value: float | None, digits: str = ".3f") -> str:
    return "no scores" if value is None else f"{value:{digits}}"


def _print(between: list[Stability], early: list[EarlyRows]) -> None:
    if between:
        table(
            f"Between {between[0].runs} seeds, on average over pairs of runs",
            ["method", "share", "error of scores", "rank correlation", "same examples"],
            [
                [
                    one.method,
                    f"{one.budget:.1%}",
                    _number(one.mean_absolute_error, ".2g"),
                    _number(one.spearman),
                    f"{one.overlap:.1%}",
                ]
                for one in between
            ],
            name="between_seeds",
            values=[one.to_json() for one in between],
        )
    rows = [
        [f"{one.budget:.1%}", str(epoch), f"{rank:.3f}", f"{share:.1%}"]
        for one in early
        for epoch, rank, share in one.rows
    ]
    head = ["share", "epochs", "rank correlation", "same examples"]
    table("\nCLD after its first epochs, against CLD after all of them", head, rows, name="early_epochs")


def _write(between: list[Stability], early: list[EarlyRows], out: Path) -> None:
    import pandas as pd

    from comove.store import new_folder

    new_folder(out)
    if between:
        pd.DataFrame([one.to_json() for one in between]).to_csv(out / "stability.csv", index=False)
    parts = [one.to_pandas().assign(budget=one.budget) for one in early]
    pd.concat(parts).to_csv(out / "early.csv", index=False)
