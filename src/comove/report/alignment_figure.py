"""The figure of a diagnosis: Lemmas 1, 2 and 3, a panel each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comove.errors import InputError
from comove.evaluation.alignment import TRAJECTORIES, Diagnosis
from comove.report.drawing import COLOURS, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["diagnosis_figure"]


def diagnosis_figure(diagnosis: Diagnosis) -> Figure:
    """Cosines with the validation gradient along both trainings (mean, 10th to 90th percentile), and the distance.

    Dashed: the mean cosine with the validation gradient of the example's own class.

    Raises:
        InputError: nothing was measured.
    """
    if not diagnosis.rows:
        raise InputError("There is no diagnosis to draw.")
    figure = new_figure(12.0, 3.9)
    first, second, third = figure.subplots(1, 3)
    for colour, method in zip(COLOURS * len(diagnosis.methods), diagnosis.methods, strict=False):
        for axes, trajectory in zip((first, second), TRAJECTORIES, strict=True):
            rows = diagnosis.of(method, trajectory)
            epochs = [row.epoch for row in rows]
            axes.fill_between(epochs, [r.low for r in rows], [r.high for r in rows], color=colour, alpha=0.12, lw=0)
            axes.plot(epochs, [row.mean for row in rows], color=colour, marker="o", ms=4, label=literal(method))
            axes.plot(epochs, [row.own_class for row in rows], color=colour, linestyle="--", lw=1)
        rows = diagnosis.of(method, "coreset")
        third.plot([r.epoch for r in rows], [r.distance for r in rows], color=colour, marker="o", ms=4)
    first.set(title="Lemma 1: trained on everything", ylabel="cosine with the validation gradient")
    second.set(title="Lemma 2: trained on the coreset")
    third.set(title="Lemma 3: mean over the coreset", ylabel="distance to the validation gradient / its norm")
    for axes in (first, second):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylim(-1.05, 1.05)
    for axes in (first, second, third):
        axes.set_xlabel("epoch")
    third.set_ylim(bottom=0)
    third.axhline(1, color="black", linewidth=0.8, linestyle=":")
    first.plot([], [], color="black", linestyle="--", lw=1, label="with one's own class's")
    first.legend(frameon=False, fontsize=8, loc="lower left")
    return figure
