"""``docs/quality.md`` and its pictures, from ``benchmarks/results/quality.json``: nothing is computed here.

What it says of the figures is in ``benchmarks/quality_findings.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import RESULTS
from quality_findings import Row, conclusions, cost_of, number

from comove.plots import Chart, Level, Table, draw, save_figure, styled

__all__ = ["write_page"]

PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
ORDER = ("digits", "cifar10", "words", "sentences", "characters")
DRAWN = ("losses", "gradients", "combined", "baseline")
"""Kinds of methods in the picture; other libraries compute what ours do, and controls cost nothing."""


def write_page(result: Mapping[str, Any]) -> None:
    """Write the pictures and the page."""
    sets = {name: result["data"][name] for name in ORDER if name in result["data"]}
    pending = [f"- `--data {name}` is prepared and not run yet." for name in ORDER if name not in sets]
    parts = ["\n".join([INTRODUCTION, *pending]), conclusions(sets)]
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
  other banks, as the methods' pages say, or variants that only cost less (`chains=`, `steps=`, `draws=`); where that is
  not so, the notes of the tables say it. Early trials of Gauss-Newton, Bayesian influence and whitened CLD had been
  measured on this digits bank before their defaults were chosen elsewhere, and Gauss-Newton's on CIFAR-10 at this ratio
  too (its damping and EK-FAC's share were chosen at others): these tables may flatter them. Both settings of Bayesian
  influence that were tried on CIFAR-10 are shown; the first is taken over to the transformers. Texts had no part in any
  choice of a method's options. TRAK's ridge is its best on another bank of digits too (.03: .422, .1: .461, .3: .476,
  1: .463, 3: .409 with ten runs). Other libraries run with their own defaults.
- **How the texts' models are trained** was chosen by the losses and accuracies of models of other seeds on texts that
  are neither trained on nor queries: of the transformers on 600 other sentences, and on the 200 sequences of the plays
  that follow, on random halves. Sentences: 4 epochs at a rate of .003 (right .664, of three models), against 3 at .01
  (.645) and 6 at .001 (.632); characters: 10 epochs at .01, the cheapest of those tried (2.35 nats; 15 epochs 2.31, at
  .02 2.34). The word vectors' recipe was first chosen by accuracy on the queries of the table. Of the 600 other
  sentences two of its models get .707 right, of rates of .05 and .2 .722 and .720: within the noise of .018, so it was
  kept and its bank not trained anew.
- The transformers are trained by a function of their own, with AdamW (`benchmarks/small_transformer.py`): the bank
  retrains with it (`train=`), the runs are adopted, their losses recorded by `comove.Recorder`. What a run took has the
  recording in it, eight rows an epoch for sentences and four for characters.
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
    short = data["planned"] - data["subsets"] if "planned" in data else 0
    missing = (
        f"Held to the {data['subsets']} of {data.get('planned')} subsets whose models are all trained." if short else ""
    )
    notes = dict.fromkeys(f"- {row['method']}: {row['note']}." for row in data["rows"] if row["note"])
    left = [f"- Not run: {method} ({why})." for method, why in data.get("left out", {}).items()]
    measured = f"Measured on: {here['processor']}, {here['cores']} cores, one thread, other work beside it."
    return "\n\n".join(part for part in (*head, missing, "\n".join([*notes, *left]), measured) if part)


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


# --- costs -----------------------------------------------------------------------------------------------------------


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
