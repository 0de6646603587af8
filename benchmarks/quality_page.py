"""``docs/quality.md`` and its pictures, from ``benchmarks/results/quality.json``: nothing is computed here.

The conclusions are sentences with figures of the results put in; which of them holds is decided by the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import RESULTS

from comove.plots import Chart, Level, Table, draw, save_figure, styled

__all__ = ["write_page"]

PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
DRAWN = ("losses", "gradients", "baseline")
"""Kinds of methods in the picture; other libraries compute what ours do, and controls cost nothing."""
Row = Mapping[str, Any]


def write_page(result: Mapping[str, Any]) -> None:
    """Write the pictures and the page."""
    parts = [INTRODUCTION, conclusions(result["data"])]
    for name, data in result["data"].items():
        save_figure(picture(data), RESULTS / f"quality-{name}.png")
        parts.append(section(name, data))
    parts.append(formulas(result))
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written to {PAGE}")


# --- the picture ----------------------------------------------------------------------------------------------------


def picture(data: Mapping[str, Any]) -> Any:
    """LDS against forward-backward epochs, and against seconds."""
    rows = [row for row in data["rows"] if row["kind"] in DRAWN]
    charts = []
    for column, title in (
        ("epochs", "forward-backward epochs, training included"),
        ("seconds", "CPU seconds, training included"),
    ):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            lines.setdefault(row["method"], []).append((max(row[column], 1.0), row["lds"]))
        charts.append(
            Chart(
                kind="lines",
                title="LDS and cost",
                x=title,
                y="LDS",
                series=styled({name: sorted(points) for name, points in lines.items()}),
                table=Table([], []),
                levels=[Level("noise ceiling", data["ceiling"])],
                panel="by passes through the network" if column == "epochs" else "by time",
                caption=f"{data['title']}: points are 1, 3, 5 and 10 runs, or fewer",
                log=True,
                zero=True,
            )
        )
    return draw(*charts)


# --- the page -------------------------------------------------------------------------------------------------------

INTRODUCTION = """# How well methods predict retraining, and at what cost

One table and one picture per data set: the linear datamodeling score (LDS) of every method against the same retrained
models, its share of the noise ceiling, and its cost. Generated from `benchmarks/results/quality.json` by
`python benchmarks/quality.py --page`.

- LDS at alpha .5, by the margin (of text by the log odds of a sequence), with its 95 % interval over queries and
  subsets. The intervals do not say what other attribution runs would give.
- *Minus TRAK*: the paired difference of the LDS from `trak` on as many runs, with its interval; bold where the interval
  leaves out 0.
- *Epochs*: forward-backward passes over the training set, by the [formulas](#what-an-epoch-counts) below, the training
  of the runs included. Factorisations and matrix products beside the network are no passes: they show in the seconds.
- *Seconds* of one thread, the training of the runs included: those of the first run times the number of runs. *Memory*:
  the process's peak, Python and torch (about 500 MiB) included.
- **Nothing was tuned on the banks reported here.** Options are the defaults, which their authors or we chose on other
  banks, as the methods' pages say, or variants that only cost less (`chains=`, `steps=`); where that is not so, the
  notes of the tables say it. TRAK's ridge is its best on another bank of digits too (.03: .422, .1: .461, .3: .476,
  1: .463, 3: .409 with ten runs). Other libraries run with their own defaults."""


def section(name: str, data: Mapping[str, Any]) -> str:
    """A data set: what it is, the picture, the table, notes."""
    here = data["machine"]
    right = "" if data["accuracy"] is None else f" Right on the queries: {data['accuracy']:.0%}."
    seconds = f"{data['training seconds']:.1f} s with its recording"
    head = [
        f"## {data['title']}",
        f"{data['about']}{right} Noise ceiling {number(data['ceiling'])}. A run took {seconds}.",
        f"![LDS against cost: {data['title']}](../benchmarks/results/quality-{name}.png)",
        table(data["rows"]),
    ]
    notes = dict.fromkeys(f"- {row['method']}: {row['note']}." for row in data["rows"] if row["note"])
    left = [f"- Not run: {method} ({why})." for method, why in data.get("left out", {}).items()]
    measured = f"Measured on: {here['processor']}, {here['cores']} cores, one thread, other work beside it."
    return "\n\n".join(part for part in (*head, "\n".join([*notes, *left]), measured) if part)


def number(value: float | None, plus: bool = False) -> str:
    """.473, with a sign where asked for."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:+.3f}" if plus else f"{value:.3f}"
    return text.replace("0.", ".", 1)


def table(rows: Sequence[Row]) -> str:
    """Rows in the order of the methods' best LDS."""
    best: dict[str, float] = {}
    for row in rows:
        best[row["method"]] = max(best.get(row["method"], -1.0), row["lds"])
    lines = [
        "| method | runs | LDS | of the ceiling | minus TRAK | epochs | seconds | memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [line(row) for row in sorted(rows, key=lambda row: (-best[row["method"]], row["method"], row["runs"]))]
    return "\n".join(lines)


def line(row: Row) -> str:
    """One row."""
    low, high = (number(end) for end in row["interval"])
    other = row.get("minus trak")
    difference = ""
    if other:
        ends = other["interval"]
        difference = f"{number(other['mean'], True)} [{number(ends[0], True)}, {number(ends[1], True)}]"
        difference = f"**{difference}**" if ends[0] > 0 or ends[1] < 0 else difference
    memory = row["peak memory"]
    cells = [
        row["method"],
        str(row["runs"]),
        f"{number(row['lds'])} [{low}, {high}]",
        f"{row['share']:.0%}",
        difference,
        f"{row['epochs']:,.0f}",
        f"{row['seconds']:,.1f}" if row["seconds"] < 10 else f"{row['seconds']:,.0f}",
        "" if memory is None else f"{memory / 2**20:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


# --- conclusions ----------------------------------------------------------------------------------------------------


def conclusions(sets: Mapping[str, Any]) -> str:
    """What the figures say of the two questions, data set by data set."""
    said = [
        f"{data['title']}: {losses_against_trak(data['rows'])} {most_for_its_cost(data['rows'])}"
        for data in sets.values()
    ]
    return (
        "## What it says\n\nDoes a method that sees only losses beat TRAK at equal cost? Which gives most for its cost?\n\n"
        + "\n\n".join(said)
    )


def affordable(rows: Sequence[Row], most: float, column: str) -> list[Row]:
    """The rows that cost no more."""
    return [row for row in rows if row[column] <= most * 1.001]


def best_of(rows: Sequence[Row]) -> Row:
    """The row of the highest LDS."""
    return max(rows, key=lambda row: row["lds"])


def named(row: Row) -> str:
    """A method, its runs and LDS."""
    runs = f", {row['runs']} run{'' if row['runs'] == 1 else 's'}" if row["runs"] else ""
    return f"{row['method']} ({number(row['lds'])}{runs})"


def losses_against_trak(rows: Sequence[Row]) -> str:
    """The answer to the first question, by epochs and by seconds."""
    losses, trak = ([row for row in rows if test(row)] for test in (is_losses, lambda row: row["method"] == "trak"))
    if not losses or not trak:
        return ""
    wins = {}
    for column in ("epochs", "seconds"):
        wins[column] = [
            row
            for row in losses
            if (rivals := affordable(trak, row[column], column)) and row["lds"] > best_of(rivals)["lds"]
        ]
    best, most = best_of(losses), best_of(trak)
    said = {
        column: f"at equal {column} {'yes, ' + named(best_of(rows)) if rows else 'no'}" for column, rows in wins.items()
    }
    text = f"of losses alone the best is {named(best)}, TRAK's best {named(most)}; above the best TRAK that costs no more: {said['epochs']}; {said['seconds']}."
    difference = best.get("minus trak")
    if difference:
        text += f" With as many runs it differs from TRAK by {number(difference['mean'], True)}."
    return text


def is_losses(row: Row) -> bool:
    """Whether a method sees losses only."""
    return bool(row["kind"] == "losses")


def most_for_its_cost(rows: Sequence[Row]) -> str:
    """The rows that nothing cheaper reaches, by epochs and by seconds."""
    ours = [row for row in rows if row["kind"] != "control" and row["runs"]]
    said = []
    for column in ("epochs", "seconds"):
        front: list[Row] = []
        for row in sorted(ours, key=lambda row: (row[column], -row["lds"])):
            if not front or row["lds"] > front[-1]["lds"]:
                front.append(row)
        steps = ", ".join(f"{named(row)} at {row[column]:,.0f}" for row in front)
        said.append(f"by {column}: {steps}")
    return "What nothing cheaper reaches, " + "; ".join(said) + "."


def formulas(result: Mapping[str, Any]) -> str:
    """What an epoch counts."""
    rows = [row for data in result["data"].values() for row in data["rows"]]
    own = dict.fromkeys((row["method"], row["formula"]) for row in rows)
    lines = ["## What an epoch counts", ""]
    lines += [
        "A forward pass is a third of a forward and backward pass (as in the paper's Appendix E), an example's gradient one of them, a product",
        "with the Hessian two. N training examples, Q queries, C classes. Per run, beside its training:",
        "",
        "| method | forward-backward epochs a run |",
        "|---|---|",
    ]
    lines += [f"| {method} | {formula} |" for method, formula in own]
    return "\n".join(lines)
