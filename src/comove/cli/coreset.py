"""``comove coreset``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comove.cli.app import command, note, one_table, result, table, write_table_out, written
from comove.cli.named import Named, named_examples, plain_cells, told_columns
from comove.cli.options import open_runs, parse_budget
from comove.cli.output import STDOUT
from comove.cli.own import OwnOptions
from comove.errors import InputError, some

if TYPE_CHECKING:
    from comove.coreset import Coreset

__all__ = ["coreset"]

FIRST = 10
"""Kept examples that are printed."""
ENDINGS = (".csv", ".safetensors")


@command
@one_table
def coreset(
    run: Annotated[Path, typer.Argument(help="Folder of a recorded run or trace.")],
    out: Annotated[Path, typer.Option(help="A .csv or .safetensors file; or - to write the table to standard output.")],
    own: OwnOptions,
    method: Annotated[str, typer.Option(help="Coreset method; options as random:seed=1 or ccs:score=cld.")] = "cld",
    budget: Annotated[
        str,
        typer.Option(
            metavar="SHARE|NUMBER",
            help="How many to keep: a share (0.1, 10%), or a number of examples from 2 on (500); a bare 1 is refused.",
        ),
    ] = "0.1",
) -> None:
    """Choose the training examples worth keeping.

    Example: comove coreset runs/a --method cld --budget 0.1 --out coreset.csv
    """
    from comove.coreset import selectors
    from comove.discovery import parse_method
    from comove.store import new_folder

    stdout = out == STDOUT
    if out.suffix not in ("", *ENDINGS):
        raise InputError(f"A coreset is written as {' or '.join(ENDINGS)}, got --out {out}.")
    selector, amount = parse_method(method, selectors(), "coreset method"), parse_budget(budget)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, message=".*keeps none of")  # reported below
        sources = open_runs([run], own)
        chosen = selector.select(sources, amount)
    named = named_examples(sources)
    if stdout:
        write_table_out(chosen.to_csv())
    else:
        new_folder(out.parent)
        chosen.save(out, told=told_columns(named, chosen.ids))
    result("method", chosen.method)
    result("ids", chosen.ids)
    names = chosen.classes or ()
    rows = [
        [names[label] if names else str(label), str(count), f"{chosen.scores[chosen.labels == label].mean():+.4f}"]
        for label, count in chosen.per_class.items()
    ]
    table(str(chosen), ["class", "kept", "mean score"], rows, name="classes")
    _print_first(chosen, named)
    known = {*range(len(names)), *chosen.per_class, *chosen.info.get("classes_left_out", ())}
    if missing := sorted(known - set(chosen.per_class)) if chosen.labels is not None else []:
        summary = f"; for {amount} % give {amount}%" if isinstance(amount, int) and amount < 100 else ""
        which = some(names[label] if names else label for label in missing)
        note(f"{len(missing)} of {len(known)} classes have no example ({which}){summary}.")
    if not stdout:
        written(out)


def _print_first(chosen: Coreset, named: Named) -> None:
    """The examples that are kept first, where their files or texts are known."""
    from comove.data import spread_over_classes

    if not named:
        return
    names, rows = chosen.classes or (), []
    for id_ in spread_over_classes(chosen.ids, chosen.labels, FIRST).tolist():
        place = int((chosen.ids == id_).argmax())
        label = "" if chosen.labels is None else int(chosen.labels[place])
        shown = names[label] if names and isinstance(label, int) else str(label)
        rows.append([str(id_), shown, f"{chosen.scores[place]:+.4f}", *plain_cells(named, id_)])
    head = ["id", "class", "score", *named]
    table(f"\nThe first {len(rows)} kept", head, rows, left=("id", "class", *named))
