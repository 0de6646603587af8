"""The figure of a claim: its estimates, a line each, with their intervals, and the value that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from claims import PAPER_CLD, Shown

from comove.plots.drawing import HELP, HURT, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["claim_figure"]


def claim_figure(shown: Shown) -> Figure:
    """Draw what is shown; what is of the paper's CLD-inf in another colour."""
    figure = new_figure(7.0, 0.9 + 0.28 * len(shown.rows))
    axes = figure.subplots()
    for place, (name, (value, low, high)) in enumerate(shown.rows):
        colour = HURT if name == PAPER_CLD else HELP
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o", color=colour, markersize=5)
    axes.axvline(shown.line, color="0.3", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(shown.rows)), [literal(name) for name, _ in shown.rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(shown.axis, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
