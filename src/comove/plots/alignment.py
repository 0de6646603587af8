"""The figure of a diagnosis: Lemmas 1, 2 and 3, a panel each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from comove.errors import InputError
from comove.plots.chart import line_styles
from comove.plots.drawing import line_of, literal, new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["diagnosis_figure"]

MOST_TICKS = 10
DODGE = 0.4
"""The methods of a checkpoint stand side by side within this share of the shortest way between two checkpoints."""


def diagnosis_figure(rows: Sequence[Mapping[str, Any]], budget: float) -> Figure:
    """Cosines with the validation gradient along both trainings (mean, 10th to 90th percentile), and the distance.

    Dotted: the mean cosine with the validation gradient of the example's own class.

    Args:
        rows: one per method, trajectory (``"full data"`` or ``"coreset"``) and epoch, with ``mean``, ``low``, ``high``,
            ``own_class`` and ``distance``.
        budget: share of the training examples in the coresets.

    Raises:
        InputError: nothing was measured.
    """
    if not rows:
        raise InputError("There is no diagnosis to draw.")
    figure = new_figure(13.0, 4.9)
    panels = first, second, third = figure.subplots(1, 3)
    epochs = sorted({row["epoch"] for row in rows})
    styles = line_styles(list(dict.fromkeys(row["method"] for row in rows)), controls=["random"])
    shifts = DODGE * min(np.diff(epochs), default=1) * (np.arange(len(styles)) / len(styles) - 0.5 + 0.5 / len(styles))
    for (method, style), shift in zip(styles.items(), shifts.tolist(), strict=True):
        for axes, trajectory in ((first, "full data"), (second, "coreset")):
            own = [row for row in rows if (row["method"], row["trajectory"]) == (method, trajectory)]
            _cosines(axes, own, shift, {**line_of(style), "label": literal(method)})
        third.plot([row["epoch"] for row in own], [row["distance"] for row in own], **line_of(style))
    second.sharey(first)
    first.set(ylabel="cosine with the validation gradient", ylim=(-1.05, 1.05))
    third.set(ylabel="distance / norm of that gradient", ylim=(0, None))
    third.axhline(1, color="black", linewidth=0.8, linestyle="-.", label="as far as no gradient at all")
    for axes, title in zip(panels, _titles(budget), strict=True):
        _finish(axes, epochs, title)
    _legend(figure, first, third)
    return figure


def _cosines(axes: Axes, rows: Sequence[Mapping[str, Any]], shift: float, style: dict[str, Any]) -> None:
    """One coreset: means as a line, percentiles as bars, the own class's dotted."""
    epochs = [row["epoch"] + shift for row in rows]
    mean, low, high, own = ([row[name] for row in rows] for name in ("mean", "low", "high", "own_class"))
    axes.plot(epochs, mean, **style)
    axes.vlines(epochs, low, high, color=style["color"], alpha=0.45, lw=2.2)
    axes.plot(epochs, own, color=style["color"], linestyle=":", lw=1.5)


def _titles(budget: float) -> tuple[str, str, str]:
    kept = f"{100 * budget:.3g}%"
    return (
        f"Lemma 1: examples of the coreset ({kept}),\nmodel trained on everything",
        "Lemma 2: examples of the coreset,\nmodel trained on the coreset",
        "Lemma 3: mean gradient of the coreset,\nits distance to the validation gradient",
    )


def _finish(axes: Axes, epochs: Sequence[int], title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    if len(epochs) <= MOST_TICKS:
        axes.set_xticks(list(epochs))
    axes.axhline(0, color="black", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, cosines: Axes, distances: Axes) -> None:
    """One for all panels, below them, where it covers nothing."""
    cosines.plot([], [], color="black", linestyle=":", lw=1.5, label="mean cosine with the own class's gradient")
    cosines.vlines([], [], [], color="black", alpha=0.45, lw=2.2, label="10th to 90th percentile")
    handles, labels = cosines.get_legend_handles_labels()
    further, names = distances.get_legend_handles_labels()
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "ncols": min(6, len(labels) + 1)}
    figure.legend([*handles, *further], [*labels, *names], loc="outside lower center", **style)
