"""Figures and pages: they read results and compute nothing."""

from comove.report.figures import (
    coreset_gallery,
    curve_figure,
    influence_grid,
    lds_bars,
    save_figure,
    thumbnail,
    trajectories,
)
from comove.report.page import Section, write_page

__all__ = [
    "Section",
    "coreset_gallery",
    "curve_figure",
    "influence_grid",
    "lds_bars",
    "save_figure",
    "thumbnail",
    "trajectories",
    "write_page",
]
