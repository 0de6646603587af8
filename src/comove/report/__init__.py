"""Figures and pages: they read results and compute nothing."""

from comove.report.alignment_figure import diagnosis_figure
from comove.report.brittleness_figures import brittleness_figure, counterfactual_figure
from comove.report.curve_figures import curve_figure
from comove.report.drawing import save_figure
from comove.report.figures import coreset_gallery, influence_grid, thumbnail, trajectories
from comove.report.html import Evidence, Provenance, Suspects, write_report
from comove.report.lds_figures import lds_bars, lds_curves, lds_figure
from comove.report.mislabel_figures import detection_figure, suspicion_gallery
from comove.report.page import Section, write_page
from comove.report.result_figures import coreset_bars, lds_histogram, losses_figure, ranking_bars

__all__ = [
    "Evidence",
    "Provenance",
    "Section",
    "Suspects",
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
    "write_page",
    "write_report",
]
