"""Figures of what removing examples does: flips against k (the paper's figure 8b), and flips by budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from comove.display import counted
from comove.evaluation import Brittleness, Counterfactual
from comove.evaluation.prediction_brittleness.flips import Estimate
from comove.plots.drawing import NEUTRAL, broken, legend_beside, literal, new_figure
from comove.plots.lines import line_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["brittleness_figure", "counterfactual_figure"]

NOTHING = "nothing removed (k = 0)"
WIDE = 8
"""From this ratio of the largest to the smallest k on, the axis is logarithmic."""
MOST_TICKS = 10


def brittleness_figure(result: Brittleness) -> Figure:
    """The share of flipped predictions against the number of examples removed, one line a method, intervals as bands.

    Controls are grey; the dashed black level, with its band, is that of nothing removed (k = 0). Hollow marks: for some
    query every example of its class was removed, so that its prediction must flip. The legend has the order of the
    lines at the largest k.
    """
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    lines = {name: [result.rate(name, k) for k in result.ks] for name in result.methods}
    _lines(axes, result.ks, lines, result.controls)
    _hollow(axes, result, lines)
    value, low, high = (100 * bound for bound in result.noise)
    axes.axhline(value, color="black", linestyle=(0, (5, 4)), linewidth=1, label=NOTHING)
    axes.axhspan(low, high, color="black", alpha=0.07, linewidth=0)
    axes.set_xlabel("training examples removed for each query, k")
    axes.set_ylabel("predictions flipped (%)")
    count, models = len(result.query_ids), result.predicted.shape[-1]
    bands = f"{result.confidence:.0%} intervals over queries"
    _finish(axes, result.ks, f"{counted(count, 'query')}, {counted(models, 'model')} a removed set, {bands}")
    return figure


def counterfactual_figure(result: Counterfactual) -> Figure:
    """The share of queries whose prediction at most k removals flip, one stair a method, intervals as bands.

    Controls are grey; the dashed black level is what merely training again flips. What a stair lacks of 100 % on the
    right was not flipped within the largest removal.
    """
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    grid = result.grid.tolist()
    lines = {name: [result.share(name, k) for k in grid] for name in result.methods}
    _lines(axes, grid, lines, result.controls, stairs=True)
    axes.axhline(100 * result.noise, color="black", linestyle=(0, (5, 4)), linewidth=1, label=NOTHING)
    axes.set_xlabel("budget: training examples removed for each query, k")
    axes.set_ylabel("queries flipped within the budget (%)")
    wrong, asked = result.contradictions
    size = f"{counted(len(result.query_ids), 'query')}, majority of {counted(result.seeds, 'model')} a removed set"
    _finish(axes, grid, f"{size}; bisection, which {wrong:,} of {asked:,} checks contradict")
    return figure


def _lines(
    axes: Axes, ks: Sequence[int], lines: dict[str, list[Estimate]], controls: Sequence[str], stairs: bool = False
) -> None:
    """Draw the methods' lines and bands, the highest at the largest k first."""
    labels = {name: f"{name} (control)" if name in controls else name for name in lines}
    styles = line_styles(list(labels.values()))
    drawn: dict[str, Any] = {"clip_on": False, **({"drawstyle": "steps-post"} if stairs else {})}
    for name, line in sorted(lines.items(), key=lambda item: -item[1][-1].value):
        style = styles[labels[name]]
        values, low, high = ([100 * estimate[i] for estimate in line] for i in range(3))
        axes.plot(ks, values, label=broken(labels[name]) if name not in controls else labels[name], **style, **drawn)
        band = {"color": style["color"], "alpha": 0.07 if name in controls else 0.14, "linewidth": 0}
        axes.fill_between(ks, low, high, step="post" if stairs else None, **band)


def _hollow(axes: Axes, result: Brittleness, lines: dict[str, list[Estimate]]) -> None:
    """Mark where a class was removed whole."""
    points = [
        (k, 100 * line[i].value)
        for m, line in enumerate(lines.values())
        for i, k in enumerate(result.ks)
        if result.class_emptied[m, :, i].any()
    ]
    if points:
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": "white", "linestyle": "none"}
        told = "hollow: a query's whole class is gone"
        axes.plot(*zip(*points, strict=True), zorder=3, clip_on=False, color=NEUTRAL, label=told, **style)


def _finish(axes: Axes, ks: Sequence[int], title: str) -> None:
    if max(ks) >= WIDE * min(ks):
        axes.set_xscale("log")
        axes.set_xlabel(f"{axes.get_xlabel()} (log scale)")
    shown = list(ks)[:: -len(ks) // MOST_TICKS][::-1]  # the largest in any case
    axes.set_xticks(shown, [f"{k:,}" for k in shown])
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(literal(title), fontsize=9, color=NEUTRAL)
    legend_beside(axes)
