"""Figures and pages: they read results and compute nothing."""

from comove.report.alignment_figure import diagnosis_figure
from comove.report.brittleness_figures import brittleness_figure, counterfactual_figure
from comove.report.drawing import save_figure
from comove.report.figures import coreset_gallery, curve_figure, influence_grid, thumbnail, trajectories
from comove.report.lds_figures import lds_bars, lds_curves, lds_figure
from comove.report.page import Section, write_page

__all__ = [
    "Section",
    "brittleness_figure",
    "coreset_gallery",
    "counterfactual_figure",
    "curve_figure",
    "diagnosis_figure",
    "influence_grid",
    "lds_bars",
    "lds_curves",
    "lds_figure",
    "save_figure",
    "thumbnail",
    "trajectories",
    "write_page",
]
