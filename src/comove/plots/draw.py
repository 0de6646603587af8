"""Charts drawn by matplotlib: bars, lines and steps, one panel a chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.display import fixed
from comove.plots.chart import Chart, Series, Style
from comove.plots.drawing import HELP, NEUTRAL, broken, legend_beside, line_of, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

TOGETHER = 7
"""Methods of one plot, where a chart may be drawn in several."""
COLUMNS = 4
GAP = 0.11
"""Ticks stand at least this share of the axis apart."""


def draw(*charts: Chart) -> Figure:
    """Draw charts of one kind, a panel each.

    Bars: controls are grey, levels dashed. Lines: controls are grey and dashed, intervals are bands, levels dashed; the
    legend has the order of the lines on the right.
    """
    first = charts[0]
    if first.kind == "bars":
        return _bars(charts)
    if first.apart and len(first.series) > TOGETHER:
        return _one_each(first)
    return _lines(charts)


# --- bars --------------------------------------------------------------------------------------------------------


def _bars(charts: Sequence[Chart]) -> Figure:
    width = 7.2 if len(charts) == 1 else 2.0 + 3.2 * len(charts)
    figure = new_figure(width, 0.9 + 0.42 * len(charts[0].series))
    grid = figure.subplots(1, len(charts), squeeze=False, sharex=True, sharey=True)[0]
    for axes, chart in zip(grid, charts, strict=True):
        draw_bars(axes, chart.series)
        for level in chart.levels:
            axes.axvline(level.at, **line_of(level.style))
            above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "bottom"}
            axes.text(level.at, 1.01, literal(f"{level.name} {fixed(level.at, 2)}"), fontsize=8, **above)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if len(charts) > 1:
            axes.set_title(literal(chart.panel), fontsize=9, loc="left")
    figure.supxlabel(literal(charts[0].x), fontsize=9)
    return figure


def draw_bars(axes: Axes, series: Sequence[Series]) -> None:
    """A bar a series, from the top down, with its interval; controls are grey."""
    means, low, high = np.array([[y, *ends] for one in series for _, y, *ends in one.points]).T
    places = np.arange(len(series))[::-1]
    axes.barh(places, means, color=[NEUTRAL if one.control else HELP for one in series], height=0.65)
    ends = np.maximum(np.nan_to_num([means - low, high - means]), 0)
    axes.errorbar(means, places, xerr=ends, fmt="none", ecolor="black", capsize=3)
    axes.set_yticks(places, [broken(one.name) for one in series], fontsize=8)


# --- lines -------------------------------------------------------------------------------------------------------


def _lines(charts: Sequence[Chart]) -> Figure:
    several, names = len(charts) > 1, {one.name for chart in charts for one in chart.series}
    figure = new_figure(4.0 + 3.6 * len(charts), 0.6 + max(3.6, 0.3 * (len(names) + 1)))
    grid = figure.subplots(1, len(charts), squeeze=False, sharey=several)[0]
    for axes, chart in zip(grid, charts, strict=True):
        for one in sorted(chart.series, key=lambda one: (one.style.colour != "level", -_height(charts, one.name))):
            _line(axes, chart, one, one.style)
        if chart.hollow:
            marks: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": "white", "linestyle": "none"}
            axes.plot(
                *zip(*chart.hollow, strict=True),
                zorder=3,
                clip_on=False,
                color=NEUTRAL,
                label=chart.hollow_name,
                **marks,
            )
        _levels(axes, chart)
        _axes(axes, chart)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel(literal(chart.x))
        caption = chart.panel if several else ", ".join(filter(None, (chart.panel, chart.caption)))
        axes.set_title(literal(caption), fontsize=9, color="black" if several else NEUTRAL)
    grid[0].set_ylabel(literal(charts[0].y))
    legend_beside(grid[-1])
    if several:
        figure.suptitle(literal(charts[0].caption), fontsize=9, color=NEUTRAL)
    return figure


def _height(charts: Sequence[Chart], name: str) -> float:
    """Where a method's lines end on the right, over all panels."""
    return float(np.mean([one.last for chart in charts for one in chart.series if one.name == name]))


def _line(axes: Axes, chart: Chart, series: Series, style: Style) -> None:
    drawn, steps = line_of(style), chart.kind == "steps"
    x, y, low, high = np.array(series.points).T
    axes.plot(x, y, label=broken(series.name), drawstyle="steps-post" if steps else "default", clip_on=False, **drawn)
    if np.isfinite(low).sum() == 1:  # a band would have no width
        axes.vlines(x, low, high, color=drawn["color"], linewidth=1.2)
    elif np.isfinite(low).any():
        band: dict[str, Any] = {"alpha": 0.07 if series.control else 0.14, "linewidth": 0}
        axes.fill_between(x, low, high, step="post" if steps else None, color=drawn["color"], **band)


def _levels(axes: Axes, chart: Chart) -> None:
    for level in chart.levels:
        axes.axhline(level.at, label=literal(level.name), **line_of(level.style))
        if np.isfinite([level.low, level.high]).all():
            axes.axhspan(level.low, level.high, color="black", alpha=0.07, linewidth=0)
    if chart.zero:
        axes.axhline(0, color="black", linewidth=0.8, zorder=0)


def _axes(axes: Axes, chart: Chart) -> None:
    """Scale, limits and ticks."""
    xs = sorted({point[0] for series in chart.series for point in series.points})
    if chart.log:
        axes.set_xscale("log")
    if chart.named:
        crowded = bool((np.diff(xs) < 0.1 * (xs[-1] - xs[0])).any())
        axes.set_xticks(*zip(*chart.named, strict=True), fontsize=8, rotation=40 if crowded else 0)
    elif xs:
        shown = _apart(xs, chart.log)
        axes.set_xticks(shown, [f"{x:,.0f}" if x == round(x) else f"{x:.3g}" for x in shown])
    axes.minorticks_off()
    axes.set_ylim(*chart.limits)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(xs: Sequence[float], log: bool) -> list[float]:
    """Of ascending values those that have room for a tick, the largest in any case."""
    places = np.log(xs) if log else np.array(xs)
    kept: list[int] = []
    for i in range(len(xs))[::-1]:
        if not kept or places[kept[-1]] - places[i] >= GAP * (places[-1] - places[0]):
            kept.append(i)
    return [xs[i] for i in kept[::-1]]


def _one_each(chart: Chart) -> Figure:
    """A plot per method, with the controls beside it."""
    controls = [one for one in chart.series if one.control]
    methods = [one for one in chart.series if not one.control]
    rows = -(-len(methods) // COLUMNS)
    figure = new_figure(2.5 * COLUMNS, 1.9 * rows + 0.4)
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(grid.flat, methods, strict=False):
        for one in (*controls, method):
            _line(axes, chart, one, one.style if one.control else Style("c0", "circle"))
        _levels(axes, chart)
        _axes(axes, chart)
        axes.set_title(literal(method.name), fontsize=9)
        axes.tick_params(labelsize=8)
    for axes in grid.flat[len(methods) :]:
        axes.axis("off")
    for axes in grid.flat[max(0, len(methods) - COLUMNS) : len(methods)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    beside = [f"{one.name} dashed" for one in controls] + [f"{level.name} dotted" for level in chart.levels]
    figure.supxlabel(literal("; ".join([chart.x, ", ".join(beside)])), fontsize=9)
    figure.supylabel(literal(chart.y), fontsize=9)
    return figure
