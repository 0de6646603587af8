"""Charts drawn by matplotlib: bars, lines and steps, one panel a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.display import fixed
from comove.plots.chart import Chart, Series, Style
from comove.plots.drawing import HELP, NEUTRAL, broken, legend_beside, line_of, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

COLUMNS = 4
TALL = 4.0
"""Inches that the plot of all lines is high, where each has one of its own below."""
LABEL_GAP = 0.055
"""Names beside a plot stand at least this share of its height apart."""
GAP = 0.11
"""Ticks stand at least this share of the axis apart."""


def draw(*charts: Chart) -> Figure:
    """Draw charts of one kind, a panel each.

    Bars: controls are grey, levels dashed. Lines: controls are grey and dashed, intervals are bands, levels dashed; the
    legend has the order of the lines on the right. Of many methods (:attr:`Chart.crowded`) the lines stand together
    without bands, each named at its end, and below each alone with its own band, beside the controls.
    """
    first = charts[0]
    if first.kind == "bars":
        return _bars(charts)
    if first.crowded and len(charts) == 1:
        return _together_and_each(first)
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
        _hollow(axes, chart, chart.hollow)
        _levels(axes, chart)
        _axes(axes, chart)
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


def _hollow(axes: Axes, chart: Chart, points: Sequence[tuple[float, float]]) -> None:
    marks: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": "white", "linestyle": "none"}
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, zorder=3, clip_on=False, color=NEUTRAL, label=chart.hollow_name, **marks)


def _line(axes: Axes, chart: Chart, series: Series, style: Style, *, band: bool = True) -> None:
    drawn, steps = line_of(style), chart.kind == "steps"
    x, y, low, high = np.array(series.points).T
    axes.plot(x, y, label=broken(series.name), drawstyle="steps-post" if steps else "default", clip_on=False, **drawn)
    if not band:
        return
    if np.isfinite(low).sum() == 1:  # a band would have no width
        axes.vlines(x, low, high, color=drawn["color"], linewidth=1.2)
    elif np.isfinite(low).any():
        look: dict[str, Any] = {"alpha": 0.07 if series.control else 0.14, "linewidth": 0}
        axes.fill_between(x, low, high, step="post" if steps else None, color=drawn["color"], **look)


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
    axes.grid(axis="y", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)


def _apart(xs: Sequence[float], log: bool) -> list[float]:
    """Of ascending values those that have room for a tick, the largest in any case."""
    places = np.log(xs) if log else np.array(xs)
    kept: list[int] = []
    for i in range(len(xs))[::-1]:
        if not kept or places[kept[-1]] - places[i] >= GAP * (places[-1] - places[0]):
            kept.append(i)
    return [xs[i] for i in kept[::-1]]


def _together_and_each(chart: Chart) -> Figure:
    """All lines, each named at its end; below, a small plot per method with its interval, beside the controls."""
    methods = chart.methods
    columns = 3 if len(methods) in (5, 6, 9) else COLUMNS
    rows = -(-len(methods) // columns)
    chart = replace(chart, limits=_limits(chart))
    figure = new_figure(10.5, TALL + 1.6 * rows)
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=[TALL, 1.6 * rows]))
    axes = above.subplots()
    for one in chart.series:
        _line(axes, chart, one, one.style, band=False)
    _hollow(axes, chart, chart.hollow)
    _levels(axes, chart)
    _axes(axes, chart)
    axes.set(xlabel=literal(chart.x), ylabel=literal(chart.y))
    axes.set_title(literal(", ".join(filter(None, (chart.panel, chart.caption)))), fontsize=9, color=NEUTRAL)
    if chart.hollow:
        axes.legend(handles=axes.get_lines()[len(chart.series) :][:1], frameon=False, fontsize=8, loc="upper left")
    _name_lines(axes, chart)
    grid = below.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, method in zip(grid.flat, methods, strict=False):
        _alone(place, chart, method)
    for place in grid.flat[len(methods) :]:
        place.axis("off")
    for place in grid.flat[max(0, len(methods) - columns) : len(methods)]:  # the lowest of each column
        place.tick_params(labelbottom=True)
    return figure


def _limits(chart: Chart) -> tuple[float, float]:
    """Of y, for all values and the ends of their intervals."""
    values = [value for one in chart.series for point in one.points for value in point[1:]]
    values += [value for level in chart.levels for value in (level.at, level.low, level.high)]
    ends = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.04 * (ends[1] - ends[0] or 1)
    low, high = chart.limits
    return ends[0] - room if low is None else low, ends[1] + room if high is None else high


def _alone(axes: Axes, chart: Chart, method: Series) -> None:
    """One method with its interval, beside the controls."""
    for one in chart.series:
        if one is method or one.style.colour in ("control", "level"):
            _line(axes, chart, one, one.style, band=one is method)
    own = {point[:2] for point in method.points}
    _hollow(axes, chart, [point for point in chart.hollow if tuple(point) in own])
    _levels(axes, chart)
    _axes(axes, chart)
    axes.set_title(literal(method.name), fontsize=8.5, loc="left")
    axes.tick_params(labelsize=8)


def _name_lines(axes: Axes, chart: Chart) -> None:
    """The name of each line on the right of the plot, as near to its end as the others allow."""
    ends = [(one.last, one.name, one.style) for one in chart.series]
    ends += [(level.at, level.name, level.style) for level in chart.levels]
    named = sorted((end for end in ends if np.isfinite(end[0])), key=lambda end: end[0])
    low, high = axes.get_ylim()
    heights = [(end - low) / (high - low) for end, _, _ in named]
    within: Any = "axes fraction"
    beside: dict[str, Any] = {"xycoords": within, "textcoords": within, "va": "center", "fontsize": 8}
    for (_, name, style), height, at in zip(named, heights, spread(heights, LABEL_GAP), strict=True):
        colour = line_of(style)["color"]
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(literal(name), (1.0, height), (1.03, at), color=colour, arrowprops=leader, **beside)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights moved so that each is ``gap`` above the one before, within 0 and 1 if that can be.

    >>> spread([0.5, 0.5, 0.9], 0.1)
    [0.5, 0.6, 0.9]
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap if moved else 0.0))
    top = max(1.0, gap * (len(moved) - 1))
    for place in range(len(moved))[::-1]:
        moved[place] = min(moved[place], top)
        top = moved[place] - gap
    return moved
