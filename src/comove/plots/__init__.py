"""Figures with matplotlib: they draw plain values and compute nothing.

The module stands below all results in the order of imports: a result's ``.plot()`` passes its arrays here.
"""

from comove.plots.alignment import diagnosis_figure
from comove.plots.chart import Chart, Level, Series, Table, is_wide, styled
from comove.plots.draw import draw
from comove.plots.drawing import HELP, HURT, NEUTRAL, save_figure
from comove.plots.label_errors import detection_figure
from comove.plots.pictures import Picture, gallery, thumbnail
from comove.plots.results import coreset_bars, lds_histogram, loss_trajectories, losses_figure, ranking_bars

__all__ = [
    "HELP",
    "HURT",
    "NEUTRAL",
    "Chart",
    "Level",
    "Picture",
    "Series",
    "Table",
    "coreset_bars",
    "detection_figure",
    "diagnosis_figure",
    "draw",
    "gallery",
    "is_wide",
    "lds_histogram",
    "loss_trajectories",
    "losses_figure",
    "ranking_bars",
    "save_figure",
    "styled",
    "thumbnail",
]
