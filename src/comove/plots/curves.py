"""Coreset curves as pictures: a few methods in one plot, many in a plot each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.evaluation import Curve
from comove.plots.drawing import HELP, NEUTRAL, broken, legend_beside, literal, new_figure
from comove.plots.lines import styles_with_random

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve_figure"]

TOGETHER = 7
"""Methods of one plot: more could not be told apart."""
COLUMNS = 4
WIDE = 8
"""From this ratio of the largest to the smallest share on, the axis is logarithmic."""
SHARE = "share of the training data kept (%"
"""Without its closing bracket, before which the scale is told."""


def curve_figure(curve: Curve) -> Figure:
    """Accuracy against coreset size, mean and standard deviation over seeds, the full data dotted, random dashed.

    More than seven methods get a plot each, with random beside them.
    """
    rows = curve.summary()
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "full data"]
    label = f"accuracy on {curve.n_query:,} queries (%)" if curve.n_query else "accuracy on held-out queries (%)"
    if len(methods) <= TOGETHER:
        figure = new_figure(7.6, 4.2)
        axes = figure.subplots()
        for method, style in styles_with_random(methods).items():
            _draw(axes, rows, method, style)
        _full_data(axes, rows)
        axes.set(xlabel=f"{SHARE}{_share_axis(axes, rows, 0.05)})", ylabel=label)
        seeds = max((row["seeds"] for row in rows), default=0)
        if seeds > 1:
            axes.set_title(f"bars: standard deviation over {seeds:,} seeds", fontsize=9, color=NEUTRAL)
        axes.spines[["top", "right"]].set_visible(False)
        legend_beside(axes)
        return figure
    return _one_each(rows, [method for method in methods if method != "random"], label)


def _one_each(rows: Sequence[dict[str, Any]], methods: Sequence[str], label: str) -> Figure:
    lines = -(-len(methods) // COLUMNS)
    figure = new_figure(2.5 * COLUMNS, 1.9 * lines + 0.4)
    grid = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(grid.flat, methods, strict=False):
        _draw(axes, rows, "random", {"color": NEUTRAL, "linestyle": "--", "marker": ".", "linewidth": 1.5})
        _draw(axes, rows, method, {"color": HELP, "marker": "o", "markersize": 4})
        _full_data(axes, rows)
        axes.set_title(literal(method), fontsize=9)
        axes.tick_params(labelsize=8)
    for axes in grid.flat[len(methods) :]:
        axes.axis("off")
    for axes in grid.flat[max(0, len(methods) - COLUMNS) : len(methods)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    scale = _share_axis(grid[0, 0], rows, 0.11)
    figure.supxlabel(f"{SHARE}{scale}); random dashed, full data dotted", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def _share_axis(axes: Axes, rows: Sequence[dict[str, Any]], gap: float) -> str:
    """Ticks at the shares, at least a gap apart; logarithmic where they span much, which is returned in words."""
    shares = sorted({round(100 * row["budget"], 6) for row in rows if row["method"] != "full data"})
    if not shares:
        return ""
    wide = WIDE * shares[0] <= shares[-1]
    if wide:
        axes.set_xscale("log")
    places = np.log(shares) if wide else np.array(shares)
    kept: list[int] = []
    for i in range(len(shares))[::-1]:  # the largest in any case
        if not kept or places[kept[-1]] - places[i] >= gap * (places[-1] - places[0]):
            kept.append(i)
    axes.set_xticks([shares[i] for i in kept], [f"{shares[i]:.3g}" for i in kept])
    axes.minorticks_off()
    return ", log scale" if wide else ""


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], method: str, style: dict[str, Any]) -> None:
    own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["budget"])
    axes.errorbar(
        [100 * row["budget"] for row in own],
        [100 * row["mean"] for row in own],
        yerr=100 * np.nan_to_num([row["std"] for row in own]),
        label=broken(method),
        capsize=3,
        **style,
    )


def _full_data(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if row["method"] == "full data":
            axes.axhline(100 * row["mean"], color="black", linestyle=":", label="full data")
