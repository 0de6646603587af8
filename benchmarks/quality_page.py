"""``docs/quality.md`` and its pictures, from ``benchmarks/results/quality.json``: nothing is computed here.

The conclusions are sentences with figures of the results put in; which of them holds is decided by the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS

from comove.display import counted
from comove.plots import Chart, Level, Table, draw, save_figure, styled

__all__ = ["write_page"]

PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
ORDER = ("digits", "cifar10", "words", "sentences", "characters")
DRAWN = ("losses", "gradients", "baseline")
"""Kinds of methods in the picture; other libraries compute what ours do, and controls cost nothing."""
Row = Mapping[str, Any]


def write_page(result: Mapping[str, Any]) -> None:
    """Write the pictures and the page."""
    sets = {name: result["data"][name] for name in ORDER if name in result["data"]}
    parts = [INTRODUCTION, conclusions(sets)]
    for name, data in sets.items():
        save_figure(picture(data), RESULTS / f"quality-{name}.png")
        parts.append(section(name, data))
    parts.append(formulas(sets))
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written to {PAGE}")


# --- the picture ----------------------------------------------------------------------------------------------------


def picture(data: Mapping[str, Any]) -> Any:
    """LDS against seconds, and against epochs, which are known of all: the legend is beside these."""
    return draw(
        panel(data, "seconds", "by time", "CPU seconds, training included"),
        panel(data, "epochs", "by passes through the network", "forward-backward epochs, training included"),
    )


def panel(data: Mapping[str, Any], column: str, name: str, x: str) -> Chart:
    """One of the two: methods that see losses only are solid, others dashed."""
    lines: dict[str, list[tuple[float, float]]] = {}
    solid = {row["method"] for row in data["rows"] if row["kind"] == "losses"}
    for row in data["rows"]:
        if row["kind"] in DRAWN and row["runs"]:
            points = lines.setdefault(row["method"], [])
            points += [] if row[column] is None else [(row[column], row["lds"])]
    costs = [cost for points in lines.values() for cost, _ in points]
    marks = [lead * 10**power for power in range(7) for lead in (1, 3)]
    return Chart(
        kind="lines",
        title="LDS and cost",
        x=x,
        y="LDS",
        series=[
            replace(one, style=replace(one.style, dash=() if one.name in solid else (4, 1.5)))
            for one in styled({method: sorted(points) for method, points in lines.items()})
            if one.points
        ],
        table=Table([], []),
        levels=[Level("noise ceiling", data["ceiling"])],
        panel=name,
        caption=f"{data['title']}: a line a method, a point a number of runs; solid: sees losses only",
        log=True,
        zero=True,
        named=[(float(mark), f"{mark:,}") for mark in marks if min(costs) <= mark <= max(costs)],
    )


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
- *Seconds* of one thread, the training of the runs included: the median run's times the number of runs. *Memory*: the
  process's peak, Python and torch (about 500 MiB) included.
- **No option was chosen by the figures of this page.** Options are the defaults, which their authors or we chose on
  other banks, as the methods' pages say, or variants that only cost less (`chains=`, `steps=`); where that is not so,
  the notes of the tables say it. Early trials of Gauss-Newton, Bayesian influence and whitened CLD had been measured on
  this digits bank before their defaults were chosen elsewhere, and Gauss-Newton's on CIFAR-10 at this ratio too (its
  damping and EK-FAC's share were chosen at others): these tables may flatter them. Both settings of Bayesian influence
  that were tried on CIFAR-10 are shown. Sentences had no part in any choice. TRAK's ridge is its best on another bank
  of digits too (.03: .422, .1: .461, .3: .476, 1: .463, 3: .409 with ten runs). Other libraries run with their own
  defaults.
- The Shakespeare characters (`--data characters`) are prepared and not run yet.
- bergson is not among the other libraries: it indexes transformers models for a GPU, and was not installed here."""


def section(name: str, data: Mapping[str, Any]) -> str:
    """A data set: what it is, the picture, the table, notes."""
    here = data["machine"]
    seconds = f"{data['training seconds']:.1f} s with its recording"
    head = [
        f"## {data['title']}",
        f"{data['about']} {data['learnt']} Noise ceiling {number(data['ceiling'])}. A run took {seconds}.",
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
        "" if row["seconds"] is None else cost_of(row, "seconds").removesuffix(" s"),
        "" if memory is None else f"{memory / 2**20:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


# --- conclusions ----------------------------------------------------------------------------------------------------


QUESTIONS = """## What it says

Does a method that sees only losses beat TRAK at equal cost? Which method gives most for its cost?

**No method of losses alone beats TRAK at equal cost.** On digits Bayesian influence on ten runs has .518 where TRAK on
the same ten has .463, but costs 33 times the epochs; TRAK given as many seconds, that is more runs, is level (.501
against .502 at 81 s), and given as many epochs ahead. On CIFAR-10 whitened CLD on log odds, which costs nothing but the
recording, has nearly twice the LDS of the paper's CLD (.398 against .216 on ten runs) with options taken over from
digits, and stays below TRAK at every cost, the less so the fewer the runs; on sentences it has .29 to .32 where the
paper's CLD has .04, and TRAK .54 to .65. **Most for its cost** gives Gauss-Newton: one run has .449 on digits (TRAK
.281), .378 on CIFAR-10 (.260) and .690 on sentences (.544; five runs of TRAK, at twice the seconds, .654); three runs
of digits have .550, a hundred of TRAK .505 in more time. Where its factorisation is large beside a tiny network's
training (digits: thirty times it), EK-FAC and SOURCE give most for a few seconds (.39 and .42 from one run); where most
of the model is word vectors, which have no factors, they fail (.16). Averaging over runs lifts TRAK most, and TracIn,
Grad-Dot and representer points hardly. Controls and baselines keep one modest: the same-class control (.213 on digits,
.240 on CIFAR-10), which knows no model, is above Grad-Dot, DataInf and the paper's CLD on both, Arnoldi on digits and
TracIn on CIFAR-10; BM25 with the sign of the class (.440) is above all on sentences but Gauss-Newton and TRAK. On
images nothing comes near the noise ceiling.

The lines below are filled in from the tables. At equal cost, a row is compared with TRAK's curve, straight over the
logarithm of the cost between its numbers of runs, as far as these go."""


def conclusions(sets: Mapping[str, Any]) -> str:
    """What the figures say of the two questions, data set by data set."""
    said = [QUESTIONS]
    for data in sets.values():
        rows = [row for row in data["rows"] if row["kind"] != "control" and row["runs"]]
        lines = [losses_against_trak(rows), *(most_for_its_cost(rows, column) for column in ("epochs", "seconds"))]
        said.append("\n".join([f"**{data['title']}**", "", *(f"- {line}" for line in lines if line)]))
    return "\n\n".join(said)


def named(row: Row) -> str:
    """A method, its LDS and runs."""
    return f"{row['method']} {number(row['lds'])} ({counted(row['runs'], 'run')})"


def best_of(rows: Sequence[Row]) -> Row:
    """The row of the highest LDS."""
    return max(rows, key=lambda row: row["lds"])


def cost_of(row: Row, column: str) -> str:
    """Epochs, or seconds, to two digits at least."""
    value = row[column]
    return f"{value:,.{int(value < 10)}f}{' s' if column == 'seconds' else ''}"


def reached(curve: Sequence[Row], column: str, cost: float) -> float:
    """The LDS of a method at a cost, between its rows straight over the logarithm of the cost."""
    points = sorted((row[column], row["lds"]) for row in curve)
    costs, values = zip(*points, strict=True)
    return float(np.interp(math.log(cost), np.log(costs), values))


def nearest_to_trak(rows: Sequence[Row], column: str) -> tuple[Row, float] | None:
    """The row of losses alone that does best beside TRAK at its cost, as far as TRAK was measured, and TRAK's LDS."""
    known = [row for row in rows if row[column] is not None]
    trak = [row for row in known if row["method"] == "trak"]
    range_ = [row[column] for row in trak] or [math.inf]
    pairs = [
        (row, reached(trak, column, row[column]))
        for row in known
        if row["kind"] == "losses" and min(range_) <= row[column] <= 1.05 * max(range_)
    ]
    return max(pairs, key=lambda pair: pair[0]["lds"] - pair[1], default=None)


def losses_against_trak(rows: Sequence[Row]) -> str:
    """The answer to the first question, by epochs and by seconds."""
    losses, trak = (
        [row for row in rows if row["kind"] == "losses"],
        [row for row in rows if row["method"] == "trak"],
    )
    if not losses or not trak:
        return ""
    best = best_of(losses)
    text = f"Of losses alone the best is {named(best)}, against {named(best_of(trak))}"
    if "minus trak" in best:
        low, high = best["minus trak"]["interval"]
        text += f"; with as many runs the difference is {number(best['minus trak']['mean'], True)} "
        text += f"[{number(low, True)}, {number(high, True)}]"
    for column in ("epochs", "seconds"):
        found = nearest_to_trak(rows, column)
        if found is not None:
            row, rival = found
            text += f". At equal {column} losses alone do best as {named(row)} at {cost_of(row, column)}, "
            text += f"where TRAK has {number(rival)}: {'ahead' if row['lds'] > rival else 'behind'}"
    return text + "."


def most_for_its_cost(rows: Sequence[Row], column: str) -> str:
    """The rows that no cheaper one reaches: the cheapest first."""
    front: list[Row] = []
    known = [row for row in rows if row[column] is not None]
    for row in sorted(known, key=lambda row: (row[column], -row["lds"])):
        if not front or row["lds"] > front[-1]["lds"]:
            front.append(row)
    steps = "; ".join(f"{named(row)} at {cost_of(row, column)}" for row in front)
    return f"By {column}, what nothing cheaper reaches: {steps}."


def formulas(sets: Mapping[str, Any]) -> str:
    """What an epoch counts."""
    rows = [row for data in sets.values() for row in data["rows"]]
    own = dict.fromkeys((row["method"], row["formula"]) for row in rows)
    lines = ["## What an epoch counts", ""]
    lines += [
        "A forward pass is a third of a forward and backward pass (as in the paper's Appendix E), an example's",
        "gradient one of them, a product with the Hessian two. N training examples, Q queries, C classes. Per run,",
        "beside its training:",
        "",
        "| method | forward-backward epochs a run |",
        "|---|---|",
    ]
    lines += [f"| {method} | {formula} |" for method, formula in own]
    return "\n".join(lines)
