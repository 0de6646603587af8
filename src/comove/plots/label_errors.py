"""How many wrong labels rankings find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.plots.chart import styled
from comove.plots.draw import draw_bars
from comove.plots.drawing import NEUTRAL, legend_beside, line_of, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["detection_figure"]

Floats = npt.NDArray[np.floating[Any]]


def detection_figure(
    hits_N: Mapping[str, Floats],
    bands_2K: Mapping[str, Floats],
    grid_K: npt.NDArray[np.int64],
    areas: Mapping[str, tuple[float, float, float]],
    *,
    wrong: int,
    confidence: float,
) -> Figure:
    """Precision against recall; recall against labels looked at, with intervals as bands; average precision.

    The dashed black lines are what a perfect ranking would find; ``random`` is grey.

    Args:
        hits_N: method -> (N,) how many wrong labels are among the k most suspicious.
        bands_2K: method -> (2, K) its bounds at the numbers in ``grid_K``.
        grid_K: (K,) numbers of labels looked at.
        areas: method -> average precision with its bounds.
        wrong: number of wrong labels.
        confidence: level of the intervals.
    """
    figure = new_figure(13.0, 4.2)
    precise, found, bars = figure.subplots(1, 3)
    series = styled({method: [(0, *area)] for method, area in areas.items()}, controls=["random"])
    n = len(next(iter(hits_N.values())))
    k = np.arange(1, n + 1)
    for one in series:
        style = {key: value for key, value in line_of(one.style).items() if not key.startswith("marker")}
        recall = hits_N[one.name] / wrong
        precise.plot(100 * recall, 100 * hits_N[one.name] / k, **style)
        found.plot(100 * k / n, 100 * recall, label=literal(one.name), **style)
        low, high = 100 * bands_2K[one.name] / wrong
        found.fill_between(100 * grid_K / n, low, high, color=style["color"], alpha=0.12, linewidth=0)
    share = 100 * wrong / n
    dashed: dict[str, Any] = {"color": "black", "linestyle": (0, (5, 4)), "linewidth": 1}
    precise.plot([0, 100, 100], [100, 100, share], **dashed)
    found.plot([0, share, 100], [0, 100, 100], label="perfect", **dashed)
    precise.set(xlabel="recall: wrong labels found (%)", ylabel="precision (%)", xlim=(0, 102), ylim=(0, 102))
    looked = min(100, 5 * share)  # what matters happens where about as many are looked at as are wrong
    found.set(xlabel="labels inspected (%)", ylabel="wrong labels found (%)", xlim=(0, looked), ylim=(0, 102))
    legend_beside(found)
    draw_bars(bars, series)
    bars.axvline(wrong / n, color="black", linewidth=0.8, linestyle=":")
    bars.set(xlabel="average precision (dotted: by chance)", xlim=(0, 1.02))
    for axes in (precise, found, bars):
        axes.spines[["top", "right"]].set_visible(False)
    title = f"{wrong:,} of {n:,} labels are wrong; bands and bars: {confidence:.0%} intervals over examples"
    figure.suptitle(title, fontsize=9, color=NEUTRAL)
    return figure
