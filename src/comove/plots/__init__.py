"""Figures with matplotlib: they draw results and compute nothing."""

from comove.plots.alignment import diagnosis_figure
from comove.plots.brittleness import brittleness_figure, counterfactual_figure
from comove.plots.curves import curve_figure
from comove.plots.drawing import save_figure
from comove.plots.examples import coreset_gallery, influence_grid, thumbnail, trajectories
from comove.plots.label_errors import detection_figure, suspicion_gallery
from comove.plots.lds import lds_bars, lds_curves, lds_figure
from comove.plots.results import coreset_bars, lds_histogram, losses_figure, ranking_bars

__all__ = [
    "brittleness_figure",
    "coreset_bars",
    "coreset_gallery",
    "counterfactual_figure",
    "curve_figure",
    "detection_figure",
    "diagnosis_figure",
    "influence_grid",
    "lds_bars",
    "lds_curves",
    "lds_figure",
    "lds_histogram",
    "losses_figure",
    "ranking_bars",
    "save_figure",
    "suspicion_gallery",
    "thumbnail",
    "trajectories",
]
