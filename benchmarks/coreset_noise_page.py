"""``docs/coresets-noise.md`` and its pictures, from ``benchmarks/results/coreset-noise-*.json``; nothing is computed.

The conclusions are sentences with figures of the results put in; which of them holds is decided by the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from coreset_noise_summary import FULL, NOISY_VALIDATION, OWN
from measuring import RESULTS

from comove.display import counted, percent
from comove.plots import HELP, HURT, NEUTRAL, save_figure
from comove.plots.drawing import new_figure

__all__ = ["write_page"]

PAGE = Path(__file__).parents[1] / "docs" / "coresets-noise.md"
CLD, STRATA, SPREAD = OWN
COLOURS = {"random": NEUTRAL, CLD: HELP, STRATA: "#009e73", SPREAD: HURT, "ccs": "#cc79a7", NOISY_VALIDATION: HELP}
OTHER = "#882255"
ENDS = ("mean", "low", "high")
LOOKED = 0.3
"""The share at which the kept examples are described."""
RANKS = ("mean loss", "EL2N", "mean margin", "forgetting", "centre distance")
MAIN = [(own, other) for own in OWN for other in ("random", "el2n", "ccs", CLD)] + [(NOISY_VALIDATION, "random")]
"""Pairs of methods whose verdicts are not folded away."""
SHOWN = {"+": "**+**", "-": "−", "0": "0", "?": "?"}
Row = Mapping[str, Any]
Result = Mapping[str, Any]


def write_page(names: Sequence[str]) -> None:
    """Write the pictures and the page, of the data sets there are results of."""
    parts = [INTRODUCTION]
    for name in names:
        path = RESULTS / f"coreset-noise-{name}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            save_figure(shares_picture(result), RESULTS / f"coreset-shares-{name}.png")
            save_figure(kept_picture(result), RESULTS / f"coreset-kept-{name}.png")
            if max(levels(result)) > 0:
                save_figure(noise_picture(result), RESULTS / f"coreset-noise-{name}.png")
            parts.append(section(name, result))
        else:
            parts.append(f"`python benchmarks/coreset_noise.py {name}` is prepared; no cell of it is finished yet.")
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written to {PAGE}")


# --- reading the results -----------------------------------------------------------------------------------------


def found(result: Result, part: str, **wanted: Any) -> list[Row]:
    """The rows of a part of the results that hold these values."""
    return [row for row in result[part] if all(row[name] == value for name, value in wanted.items())]


def one(result: Result, part: str, **wanted: Any) -> Row | None:
    """The row that holds these values, if there is one."""
    rows = found(result, part, **wanted)
    return rows[0] if rows else None


def levels(result: Result) -> list[float]:
    """Shares of wrong labels of which cells are finished."""
    return sorted(float(level) for level, seeds in result["finished"].items() if seeds)


def clean_shares(result: Result) -> list[float]:
    """Shares kept of clean data by every method."""
    return _shares(result, 0.0, result["study"]["shares"], "aum")


def noisy_shares(result: Result) -> list[float]:
    """Shares kept of data with wrong labels."""
    return _shares(result, max(levels(result)), result["study"]["noisy_shares"], CLD)


def _shares(result: Result, noise: float, asked: Sequence[float], method: str) -> list[float]:
    known = {row["share"] for row in found(result, "accuracy", noise=noise, method=method)}
    return [share for share in asked if share in known]


def best_other(result: Result) -> str:
    """The method, none of CLD's, of the highest mean accuracy over the shares of clean data."""
    shares = clean_shares(result)
    means: dict[str, float] = {}
    for row in found(result, "accuracy", noise=0.0):
        if row["method"] not in (*OWN, FULL) and row["share"] in shares:
            means[row["method"]] = means.get(row["method"], 0.0) + row["mean"]
    return max(means, key=lambda method: means[method])


def points(value: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "−")


# --- pictures ----------------------------------------------------------------------------------------------------


def shares_picture(result: Result) -> Any:
    """Difference from random against the share kept, on clean data; methods that are not named are thin."""
    figure = new_figure(7.6, 4.6)
    axes = figure.subplots()
    best, shares = best_other(result), clean_shares(result)
    for method in dict.fromkeys(row["method"] for row in result["accuracy"]):
        if method not in (*OWN, best, "random", FULL):
            x, mean, _, _ = line(result, method, shares)
            axes.plot(x, mean, color="0.85", linewidth=0.9, zorder=0)
    ends = [(0.0, "random", NEUTRAL)]
    for place, method in enumerate((*OWN, best)):
        x, mean, low, high = line(result, method, shares)
        with_intervals(axes, x * 1.02 ** (place - 1.5), (mean, low, high), colour(method))
        ends.append((mean[-1], method, colour(method)))
    bottom = min(-8.0, 1.4 * min(line(result, method, shares)[1].min() for method in (*OWN, best)))
    axes.set_ylim(bottom, None)
    axes.set_xscale("log")
    axes.set_xticks(shares, [percent(share) for share in shares])
    axes.minorticks_off()
    finish(axes, 1.05 * max(shares), ends)
    axes.set_xlabel("share of the training examples kept")
    axes.set_ylabel("accuracy less random's (points)")
    seeds = counted(result["finished"]["0.0"], "seed")
    told = f"{title(result)}, clean labels, {seeds}; bars: 95 % of paired differences; grey: other methods"
    axes.set_title(told, fontsize=8.5, color=NEUTRAL, loc="left")
    return figure


def noise_picture(result: Result) -> Any:
    """Difference from random against the share of wrong labels, a panel a share kept."""
    shares = noisy_shares(result)
    rows, most = (len(shares) + 1) // 2, 100 * max(levels(result))
    figure = new_figure(11, 3.7 * rows)
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, share in zip(grid.flat, shares, strict=False):
        ends = [(0.0, "random", NEUTRAL)]
        for place, method in enumerate((*OWN, "ccs", NOISY_VALIDATION)):
            known = found(result, "differences", method=method, less="random", share=share)
            x = np.array([100 * row["noise"] for row in known]) + 0.4 * (place - 2)
            values = [numbers(known, name) for name in ENDS]
            with_intervals(axes, x, values, colour(method), (3, 2) if method == NOISY_VALIDATION else ())
            ends.append((values[0][-1], method, colour(method)))
        axes.set_xticks([100 * level for level in levels(result)])
        axes.set_title(f"{percent(share)} kept", fontsize=9)
        axes.set_xlabel("wrong labels (%)")
        axes.set_ylabel("accuracy less random's (points)")
        finish(axes, most + 1.5, ends)
    told = f"{title(result)}, {seeds_of(result)}; bars: 95 % of paired differences"
    figure.suptitle(told, fontsize=8.5, color=NEUTRAL)
    return figure


def kept_picture(result: Result) -> Any:
    """Left, how easy the kept examples are; right, how far from them the others lie."""
    figure = new_figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    ends = []
    for method in ("random", CLD, SPREAD, best_other(result)):
        row = one(result, "kept", noise=0.0, method=method, share=LOOKED)
        assert row is not None
        drawn = {"color": colour(method), "marker": "o"}
        left.plot([row[name] for name in RANKS], range(len(RANKS)), linestyle="none", markersize=7, alpha=0.8, **drawn)
        known = sorted(found(result, "kept", noise=0.0, method=method), key=lambda row: row["share"])
        far = [row["distance to the nearest kept"] for row in known]
        right.plot([100 * row["share"] for row in known], far, markersize=4, **drawn)
        ends.append((far[-1], method, colour(method)))
    left.axvline(0.5, color="0.85", linewidth=0.9, zorder=0)
    left.set_yticks(range(len(RANKS)), RANKS)
    left.set_ylim(len(RANKS) - 0.5, -0.5)
    left.set_xlim(0, 1)
    left.set_xlabel(f"mean rank of the {percent(LOOKED)} kept (of all: .5)")
    left.spines[["top", "right"]].set_visible(False)
    right.set_ylim(0, None)
    right.set_xlabel("share kept (%)")
    right.set_ylabel("distance to the nearest kept")
    finish(right, 102 * max(row["share"] for row in found(result, "kept", noise=0.0, method=CLD)), ends, zero=False)
    told = f"{title(result)}, clean labels: what is kept (left), and how far what is left out lies from it (right)"
    figure.suptitle(told, fontsize=8.5, color=NEUTRAL)
    return figure


def colour(method: str) -> str:
    """The same in every picture."""
    return COLOURS.get(method, OTHER)


def numbers(rows: Sequence[Row], name: str) -> Any:
    """A column in percentage points, NaN where there is none."""
    return 100 * np.array([np.nan if row[name] is None else row[name] for row in rows])


def line(result: Result, method: str, shares: Sequence[float]) -> Any:
    """Shares, and the difference from random in points with the ends of its interval."""
    rows = [one(result, "differences", method=method, less="random", noise=0.0, share=share) for share in shares]
    known = [row for row in rows if row is not None]
    return np.array([row["share"] for row in known]), *(numbers(known, name) for name in ENDS)


def with_intervals(axes: Any, x: Any, values: Sequence[Any], shade: str, dashes: tuple[int, ...] = ()) -> None:
    """A line with its points and intervals."""
    mean, low, high = values
    axes.plot(x, mean, color=shade, marker="o", markersize=4, linewidth=1.8, linestyle=(0, dashes) if dashes else "-")
    axes.vlines(x, low, high, color=shade, linewidth=1.1, alpha=0.7)


def finish(axes: Any, x: float, ends: Sequence[tuple[float, str, str]], *, zero: bool = True) -> None:
    """The line of random, no frame, and every line named behind its last point, apart from each other."""
    if zero:
        axes.hlines(0, axes.get_xlim()[0], x, color=NEUTRAL, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    gap, ordered = 0.055 * (high - low), sorted(ends)
    heights = np.array([y for y, _, _ in ordered])
    for _ in range(100):  # neighbours that are too near push each other apart
        short = np.maximum(gap - np.diff(heights), 0) / 2
        heights[:-1] -= short
        heights[1:] += short
    for height, (_, text, shade) in zip(heights, ordered, strict=True):
        axes.annotate(text, (x, height), fontsize=8, color=shade, va="center", annotation_clip=False)


# --- the page ----------------------------------------------------------------------------------------------------

INTRODUCTION = """# Coresets under wrong labels, and CLD inside other methods

Generated from `benchmarks/results/coreset-noise-*.json` by `python benchmarks/coreset_noise.py DATA`; which sentences
stand here is decided by the figures.

- **A cell** is one share of wrong labels and one seed: labels are flipped (uniform among the other classes), a run is
  recorded on them, every method selects with that run, and one model is trained from scratch on each coreset.
  Differences between methods are paired by cell. Accuracy is on held-out queries with true labels, which no method
  sees.
- **Only training labels are wrong.** Validation labels are clean: they are a tenth as many, and the part that somebody
  can afford to check. CLD and Glister read them, the others do not, so this favours CLD; `cld, noisy validation` is CLD
  with the same share of wrong labels there too.
- **Options are defaults**, those of the papers where known; none was chosen by these figures. CCS drops the hardest
  30 % when 10 % are kept, 10 % when 30 % are, none from 50 % on, whatever the share of wrong labels.
- `ccs:score=cld` is CCS with CLD instead of AUM: the examples of lowest CLD are dropped as the hardest, then all levels
  of CLD are covered. `d2:difficulty=cld` is D2 with CLD instead of forgetting events: the examples of highest CLD
  first, kept apart from each other in feature space.
- **Intervals** are Student's, 95 %, over seeds. A verdict is **+** or − where the interval of the paired differences
  leaves out 0, 0 where it holds it, ? of a single seed. Nothing corrects for the number of verdicts: of twenty that
  should be 0 one is not.
"""


def title(result: Result) -> str:
    """What was trained on what."""
    return {"digits": "digits, MLP", "cifar10": "CIFAR-10 small, ResNet-9 at width .125"}[result["study"]["data"]]


def seeds_of(result: Result) -> str:
    """How many seeds are finished, by share of wrong labels where that differs."""
    seeds = {level: result["finished"][str(level)] for level in levels(result)}
    if len(set(seeds.values())) == 1:
        return counted(next(iter(seeds.values())), "seed")
    return "seeds finished: " + ", ".join(f"{number} at {percent(level)} wrong" for level, number in seeds.items())


KEPT = f"""### What is kept

Mean ranks among all training examples, 0 the lowest and 1 the highest, of {percent(LOOKED)} kept. *Spread*: standard
deviation of the ranks of the mean loss (.29 of all examples). *Nearest*: mean distance of the examples left out to the
nearest kept, in features at the end of the run, as a share of the typical distance between two examples. *Balance*: the
smallest class over an even share."""


def section(name: str, result: Result) -> str:
    """A data set: conclusions, pictures, tables."""
    machine = f"on {result['cores']} cores of {result['processor']}, other work beside it"
    parts = [
        f"## {title(result)}",
        f"{seeds_of(result).capitalize()}. {result['CPU seconds']:,} CPU seconds {machine}.",
        conclusions(result),
        "### Clean labels",
        picture("difference from random by share", f"coreset-shares-{name}"),
        folded("Accuracy of all methods (%), with half the 95 % interval", accuracy_table(result, 0.0)),
        KEPT,
        kept_table(result),
        picture("what is kept", f"coreset-kept-{name}"),
    ]
    return "\n\n".join([*parts, *(noisy_section(name, result) if max(levels(result)) > 0 else [])])


def noisy_section(name: str, result: Result) -> list[str]:
    """Wrong labels: the picture and the tables."""
    marks = ", ".join(percent(level) for level in levels(result))
    order = "in this order; *from*: the lowest share of wrong labels from which on every verdict is +."
    return [
        "### Wrong labels",
        picture("difference from random by wrong labels", f"coreset-noise-{name}"),
        f"Verdicts at {marks} wrong labels, {order}",
        crossing_table(result, [pair for pair in all_pairs(result) if pair in MAIN]),
        folded("Verdicts over every other method", crossing_table(result, all_pairs(result))),
        f"Wrong labels among the kept (%), {percent(LOOKED)} kept:",
        wrong_table(result),
        *(
            folded(f"Accuracy with {percent(level)} wrong labels (%)", accuracy_table(result, level))
            for level in levels(result)
            if level
        ),
    ]


def picture(text: str, name: str) -> str:
    """A picture beside the results."""
    return f"![{text}](../benchmarks/results/{name}.png)"


def folded(head: str, body: str) -> str:
    """Details that a reader opens."""
    return f"<details><summary>{head}</summary>\n\n{body}\n\n</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column on the left."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])


def accuracy_table(result: Result, noise: float) -> str:
    """Accuracy by method and share, best mean first."""
    rows = [row for row in found(result, "accuracy", noise=noise) if row["method"] != FULL]
    shares = sorted({row["share"] for row in rows})
    cells: dict[str, dict[float, Row]] = {}
    for row in rows:
        cells.setdefault(row["method"], {})[row["share"]] = row
    common = [share for share in shares if all(share in own for own in cells.values())]

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        half = "" if row["high"] is None else f" ± {100 * (row['high'] - row['mean']):.1f}"
        return f"{100 * row['mean']:.1f}{half}"

    order = sorted(cells, key=lambda method: -sum(cells[method][share]["mean"] for share in common))
    body = [[f"`{method}`", *(cell(cells[method].get(share)) for share in shares)] for method in order]
    whole = one(result, "accuracy", noise=noise, method=FULL)
    return f"All of the data: {cell(whole)}.\n\n" + table(["method", *map(percent, shares)], body)


def kept_table(result: Result) -> str:
    """Random, CLD, its compositions and the best other method."""
    columns = [*RANKS, "spread of the loss", "distance to the nearest kept", "balance"]
    heads = ["kept by", "accuracy less random's", *RANKS, "spread", "nearest", "balance"]
    rows = []
    for method in ("random", *OWN, best_other(result)):
        row = one(result, "kept", noise=0.0, method=method, share=LOOKED)
        less = one(result, "differences", noise=0.0, method=method, less="random", share=LOOKED)
        assert row is not None
        values = (f"{row[name]:.2f}".replace("0.", ".", 1) for name in columns)
        rows.append([f"`{method}`", "" if less is None else ranged(less), *values])
    return table(heads, rows)


def ranged(row: Row) -> str:
    """A difference with its interval, in points."""
    ends = "" if row["low"] is None else f" [{points(row['low'])}, {points(row['high'])}]"
    return f"{points(row['mean'])}{ends}"


def wrong_table(result: Result) -> str:
    """The share of wrong labels among the kept."""
    noisy = [level for level in levels(result) if level]
    methods = dict.fromkeys(row["method"] for row in found(result, "kept", noise=noisy[0], share=LOOKED))
    rows = []
    for method in methods:
        rates = (one(result, "kept", noise=level, method=method, share=LOOKED) for level in noisy)
        rows.append([f"`{method}`", *("" if row is None else f"{100 * row['wrong labels']:.1f}" for row in rates)])
    return table(["kept by", *(f"{percent(level)} wrong" for level in noisy)], rows)


def crossing_table(result: Result, pairs: Sequence[tuple[str, str]]) -> str:
    """Verdicts by share kept."""
    shares = noisy_shares(result)
    rows = [
        [f"`{own}` over `{other}`", *(verdicts(result, own, other, share) for share in shares)] for own, other in pairs
    ]
    return table(["", *(f"{percent(share)} kept" for share in shares)], rows)


def all_pairs(result: Result) -> list[tuple[str, str]]:
    """Methods and what they are compared with."""
    return list(dict.fromkeys((row["method"], row["over"]) for row in result["crossings"]))


def verdicts(result: Result, method: str, rival: str, share: float) -> str:
    """The verdicts by share of wrong labels, and from where on they are +."""
    by_noise = sorted(
        found(result, "differences", method=method, less=rival, share=share), key=lambda row: row["noise"]
    )
    known = {row["noise"]: SHOWN[row["verdict"]] for row in by_noise}
    start = one(result, "crossings", method=method, over=rival, share=share)
    text = " ".join(known.get(level, "·") for level in levels(result))
    return text if start is None or start["from"] is None else f"{text}, from {percent(start['from'])}"


# --- conclusions -------------------------------------------------------------------------------------------------


def conclusions(result: Result) -> str:
    """What the figures say, a line each."""
    lines = [against_random(result, method) for method in OWN]
    lines += [over_cld(result, method) for method in OWN[1:]]
    lines += [typical(result)]
    if max(levels(result)) > 0:
        lines += [crossings(result, method) for method in OWN]
        lines += [validation(result), crossings(result, NOISY_VALIDATION)]
    return "\n".join(f"- {line}" for line in lines if line)


def split(rows: Sequence[Row], by: str) -> dict[str, list[Row]]:
    """Rows by verdict, in the order of a column."""
    ordered = sorted(rows, key=lambda row: row[by])
    return {mark: [row for row in ordered if row["verdict"] == mark] for mark in "+-0?"}


def told(rows: Sequence[Row], by: str = "share") -> str:
    """Where, and by how much: 10 % (+1.2 points), 30 % (...)."""
    return ", ".join(f"{percent(row[by])} ({points(row['mean'])})" for row in rows)


def compared(rows: Sequence[Row], better: str, worse: str, same: str, unknown: str, by: str = "share") -> str:
    """One phrase a verdict that occurs."""
    groups = split(rows, by)
    phrases = zip((better, worse, same, unknown), "+-0?", strict=True)
    return "; ".join(f"{phrase} {told(groups[mark], by)}" for phrase, mark in phrases if groups[mark])


def against_random(result: Result, method: str) -> str:
    """On clean labels, at every share."""
    rows = found(result, "differences", method=method, less="random", noise=0.0)
    words = ("above random at", "below random at", "not told apart from random at", "one seed only at")
    return f"Clean labels, `{method}`: {compared(rows, *words)} kept (points)."


def over_cld(result: Result, method: str) -> str:
    """A composition against CLD alone, clean."""
    rows = found(result, "differences", method=method, less=CLD, noise=0.0)
    words = ("better than CLD alone at", "worse at", "not told apart at", "one seed only at")
    return f"Clean labels, `{method}`: {compared(rows, *words)} kept."


def typical(result: Result) -> str:
    """Whether what CLD keeps is easy, narrow or leaves parts out."""
    cld, random, spread = (
        one(result, "kept", noise=0.0, method=method, share=LOOKED) or {} for method in (CLD, "random", SPREAD)
    )
    ease = random["mean loss"] - cld["mean loss"]
    easy = "easier than" if ease > 0.05 else "harder than" if ease < -0.05 else "as hard as"
    near = random["centre distance"] - cld["centre distance"]
    centre = "nearer to" if near > 0.05 else "farther from" if near < -0.05 else "as far from"
    far, other = (
        row["distance to the nearest kept"] / random["distance to the nearest kept"] - 1 for row in (cld, spread)
    )
    return (
        f"Why ({percent(LOOKED)} kept): what CLD keeps is {easy} what random keeps (mean rank of the loss "
        f"{cld['mean loss']:.2f} against {random['mean loss']:.2f}) and {centre} the class centres "
        f"({cld['centre distance']:.2f} against {random['centre distance']:.2f}). The examples that it leaves out lie "
        f"{distance(far)} the nearest kept one than those that random leaves out; with `{SPREAD}` {distance(other)} it."
    )


def distance(ratio: float) -> str:
    """16 % farther from."""
    return f"{abs(ratio):.0%} {'farther from' if ratio > 0 else 'nearer to'}"


def crossings(result: Result, method: str) -> str:
    """From which share of wrong labels on a method beats the others."""
    shares, phrases = noisy_shares(result), []
    for rival in ("random", "el2n", "ccs"):
        phrases.append(f"`{rival}` {' / '.join(start(result, method, rival, share) for share in shares)}")
    kept = " / ".join(map(percent, shares))
    return (
        f"`{method}` decidedly beats (from which share of wrong labels on, with {kept} kept; – nowhere, ? too few "
        f"seeds): {'; '.join(phrases)}."
    )


def start(result: Result, method: str, rival: str, share: float) -> str:
    """The crossing: a share of wrong labels, – where there is none, ? where seeds are too few to tell."""
    row = one(result, "crossings", method=method, over=rival, share=share)
    if row is not None and row["from"] is not None:
        return percent(row["from"])
    last = one(result, "differences", method=method, less=rival, share=share, noise=max(levels(result)))
    return "?" if last is None or last["verdict"] == "?" else "–"


def validation(result: Result) -> str:
    """What clean validation labels are worth to CLD."""
    rows = [row for row in found(result, "differences", method=NOISY_VALIDATION, less=CLD) if row["noise"]]
    parts = []
    for share in sorted({row["share"] for row in rows}):
        own = [row for row in rows if row["share"] == share]
        changes = ", ".join(f"{points(row['mean'])} at {percent(row['noise'])} wrong" for row in own)
        parts.append(f"{percent(share)} kept: {changes}")
    return (
        f"With as many wrong validation labels CLD's accuracy changes by (points) {'; '.join(parts)}." if rows else ""
    )
