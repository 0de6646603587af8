"""What ``docs/quality.md`` says of the figures: every sentence and every figure in it is made from the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from comove.display import counted

__all__ = ["Row", "conclusions", "cost_of", "most_for_its_cost", "nearest_to_trak", "number"]

Row = Mapping[str, Any]
Sets = Mapping[str, Any]
LEVEL = 0.01
"""Differences of LDS up to this are said to be none."""
SHORT = {
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "words": "word vectors",
    "sentences": "sentences",
    "characters": "characters",
}
"""Names of the data sets within a sentence."""


def conclusions(sets: Sets) -> str:
    """What the figures say, over all data sets and then of each."""
    findings = (losses_alone, of_one_run, without_factors, averaging, two_together, without_a_model, to_the_ceiling)
    said = [HEAD, "\n".join(f"- {line}" for line in (finding(sets) for finding in findings) if line), TAIL]
    for data in sets.values():
        rows = [row for row in data["rows"] if row["kind"] != "control" and row["runs"]]
        lines = [losses_against_trak(rows), *(most_for_its_cost(rows, column) for column in ("epochs", "seconds"))]
        said.append("\n".join([f"**{data['title']}**", "", *(f"- {line}" for line in lines if line)]))
    return "\n\n".join(said)


HEAD = """## What it says

Does a method that sees only losses beat TRAK at equal cost? Which method gives most for its cost? All lines of this
section are made from the tables."""

TAIL = """Data set by data set. At equal cost, a row is compared with TRAK's curve, straight over the logarithm of the
cost between its numbers of runs, as far as these go."""


# --- over all data sets -------------------------------------------------------------------------------------------


def measured(rows: Sequence[Row]) -> list[Row]:
    """Rows of methods that are no controls, other libraries' or similarities, with runs."""
    return [row for row in rows if row["kind"] in ("losses", "gradients") and row["runs"]]


def listed(sets: Sets, say: Callable[[Sequence[Row]], str | None]) -> str:
    """One thing said of every data set of which there is something to say."""
    parts = ((SHORT[name], say(data["rows"])) for name, data in sets.items())
    return ", ".join(f"{name} {text}" for name, text in parts if text)


def at(rows: Sequence[Row], method: str, runs: int) -> Row | None:
    """A method's row, by the beginning of its name."""
    return next((row for row in rows if row["method"].split("(")[0] == method and row["runs"] == runs), None)


def losses_alone(sets: Sets) -> str:
    """Whether losses alone beat TRAK, by epochs and by seconds."""
    text = []
    for column in ("epochs", "seconds"):
        verdicts: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
        for name, data in sets.items():
            found = nearest_to_trak(measured(data["rows"]), column)
            if found is not None:
                gap = found[0]["lds"] - found[1]
                place = "level" if abs(gap) <= LEVEL else "ahead" if gap > 0 else "behind"
                verdicts[place].append(f"{SHORT[name]} ({number(found[0]['lds'])} against {number(found[1])})")
        parts = [f"{place} on {', '.join(where)}" for place, where in verdicts.items() if where]
        text.append(f"by {column} the best of them beside TRAK is {'; '.join(parts)}")
    return f"**Losses alone against TRAK at equal cost**: {'; '.join(text)}."


def of_one_run(sets: Sets) -> str:
    """The best method from a single run."""

    def say(rows: Sequence[Row]) -> str | None:
        one, trak = [row for row in measured(rows) if row["runs"] == 1], at(rows, "trak", 1)
        if not one or trak is None:
            return None
        best = best_of(one)
        return f"{best['method'].split('(')[0]} {number(best['lds'])} (TRAK {number(trak['lds'])})"

    return f"**Most from one run**: {listed(sets, say)}."


def without_factors(sets: Sets) -> str:
    """EK-FAC beside the whole Gauss-Newton matrix: it leaves out embeddings."""

    def say(rows: Sequence[Row]) -> str | None:
        whole, factors = at(rows, "gauss-newton", 1), at(rows, "ekfac", 1)
        return None if whole is None or factors is None else f"{number(factors['lds'])} of {number(whole['lds'])}"

    return (
        f"**EK-FAC beside the Gauss-Newton solve**, one run: {listed(sets, say)}. It leaves out embeddings, which are "
        "most of the models of words."
    )


def averaging(sets: Sets) -> str:
    """What three runs add to one, method by method: the median over data sets."""
    gains: dict[str, list[float]] = {}
    for data in sets.values():
        for row in measured(data["rows"]):
            three = at(data["rows"], row["method"].split("(")[0], 3)
            if row["runs"] == 1 and "(" not in row["method"] and three is not None:
                gains.setdefault(row["method"], []).append(three["lds"] - row["lds"])
    known = {method: float(np.median(values)) for method, values in gains.items() if len(values) > 1}
    ranked = sorted(known, key=lambda method: -known[method])
    return (
        "**Three runs instead of one** add, in the median of the data sets: "
        + ", ".join(f"{method} {number(known[method], True)}" for method in ranked)
        + "."
    )


def two_together(sets: Sets) -> str:
    """What the mean of two methods' standardized scores adds to the better of the two."""

    def say(rows: Sequence[Row]) -> str | None:
        both = [row for row in rows if row["kind"] == "combined"]
        if not both:
            return None
        best = best_of(both)
        gain = best["minus the better part"]
        ends = ", ".join(number(end, True) for end in gain["interval"])
        return f"{named(best)}, {number(gain['mean'], True)} [{ends}]"

    said = listed(sets, say)
    return f"**Two methods together**, minus the better one alone: {said}." if said else ""


def without_a_model(sets: Sets) -> str:
    """What knows no model, and the methods whose best row is below it."""
    lines = []
    for name, data in sets.items():
        free = [row for row in data["rows"] if row["kind"] in ("control", "baseline")]
        if not free:
            continue
        rival, best = best_of(free), {}
        for row in measured(data["rows"]):
            best[row["method"]] = max(best.get(row["method"], -1.0), row["lds"])
        below = [method.split("(chains")[0] for method, lds in best.items() if lds < rival["lds"]]
        text = f"above {', '.join(dict.fromkeys(below))}" if below else "below all methods"
        lines.append(f"on {SHORT[name]} {rival['method']} ({number(rival['lds'])}) is {text}")
    return f"**Rankings by class or similarity** keep one modest: {'; '.join(lines)}."


def to_the_ceiling(sets: Sets) -> str:
    """The largest share of the noise ceiling, by one method or two together."""

    def say(rows: Sequence[Row]) -> str:
        best = best_of([*measured(rows), *(row for row in rows if row["kind"] == "combined")])
        return f"{best['share']:.0%} ({best['method'].split('(')[0]}, {counted(best['runs'], 'run')})"

    return f"**Of the noise ceiling** the best has: {listed(sets, say)}."


# --- of one data set ----------------------------------------------------------------------------------------------


def number(value: float | None, plus: bool = False) -> str:
    """.473, with a sign where asked for."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:+.3f}" if plus else f"{value:.3f}"
    return text.replace("0.", ".", 1)


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
