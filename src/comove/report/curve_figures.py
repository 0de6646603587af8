"""Coreset curves as pictures: a few methods in one plot, many in a plot each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.evaluation import Curve
from comove.report.drawing import COLOURS, HELP, NEUTRAL, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve_figure"]

TOGETHER = len(COLOURS)
"""Methods of one plot: more could not be told apart."""
COLUMNS = 4


def curve_figure(curve: Curve) -> Figure:
    """Accuracy against coreset size, mean and standard deviation over seeds, the full data dotted, random dashed.

    More than seven methods get a plot each, with random beside them.
    """
    rows = curve.summary()
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "full data"]
    label = f"accuracy on {curve.n_query:,} queries"
    if len(methods) <= TOGETHER:
        figure = new_figure(6.4, 4.2)
        axes = figure.subplots()
        for colour, method in zip(COLOURS, methods, strict=False):
            _draw(axes, rows, method, colour)
        _full_data(axes, rows)
        axes.set(xlabel="share of the training data kept (%)", ylabel=label)
        axes.legend(frameon=False)
        return figure
    return _one_each(rows, [method for method in methods if method != "random"], label)


def _one_each(rows: Sequence[dict[str, Any]], methods: Sequence[str], label: str) -> Figure:
    lines = -(-len(methods) // COLUMNS)
    figure = new_figure(2.5 * COLUMNS, 1.9 * lines + 0.4)
    grid = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(grid.flat, methods, strict=False):
        _draw(axes, rows, "random", NEUTRAL)
        _draw(axes, rows, method, HELP)
        _full_data(axes, rows)
        axes.set_title(literal(method), fontsize=9)
    for axes in grid.flat[len(methods) :]:
        axes.axis("off")
    for axes in grid.flat[max(0, len(methods) - COLUMNS) : len(methods)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    _share_axis(grid[0, 0], rows)
    figure.supxlabel("share of the training data kept (%); random dashed, full data dotted", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def _share_axis(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    shares = sorted({100 * row["budget"] for row in rows if row["method"] != "full data"})
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:g}" for share in shares], fontsize=8)
    axes.minorticks_off()


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], method: str, colour: str) -> None:
    own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["budget"])
    axes.errorbar(
        [100 * row["budget"] for row in own],
        [row["mean"] for row in own],
        yerr=np.nan_to_num([row["std"] for row in own]),
        label=literal(method),
        color=colour,
        linestyle="--" if method == "random" else "-",
        marker="o",
        markersize=4,
        capsize=3,
    )


def _full_data(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if row["method"] == "full data":
            axes.axhline(row["mean"], color="black", linestyle=":", label="full data")
