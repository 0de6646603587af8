"""Figures of a hunt for wrong labels: the most suspicious examples, and how many of them are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from comove.data import ExampleSet, Ids
from comove.errors import InputError
from comove.evaluation.label_errors.detection import Detection
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.plots.drawing import HURT, NEUTRAL, broken, legend_beside, literal, new_figure, short
from comove.plots.examples import thumbnail
from comove.plots.lines import styles_with_random

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["detection_figure", "suspicion_gallery"]

MOST_COLUMNS = 10


def suspicion_gallery(
    suspicion: Suspicion,
    examples: ExampleSet,
    k: int = 10,
    methods: Sequence[str] | None = None,
    wrong_ids: Ids | None = None,
) -> Figure:
    """The k most suspicious examples of each method, the worst on the left, a row a method (one method: several rows).

    Over each picture: its label, the other class that the networks suggest, its id. Labels known to be
    wrong are orange, others black; grey where nothing is known.

    Raises:
        InputError: no method, k above the number of labels, an example that is not in ``examples`` or is no image.
    """
    shown = list(suspicion.methods if methods is None else methods)
    if not shown:
        raise InputError("A gallery of suspicious labels needs at least one method.")
    columns = min(k, MOST_COLUMNS)
    rows = [
        (method if start == 0 else "", ids[start : start + columns])
        for method in shown
        for ids in [suspicion.most(k, method)]
        for start in range(0, k, columns)
    ]
    figure = new_figure(0.9 + 1.0 * columns, 1.35 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for cells, (method, ids) in zip(grid, rows, strict=True):
        for axes in cells:
            axes.axis("off")
        side = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 8, "transform": cells[0].transAxes}
        cells[0].text(-0.1, 0.5, broken(method), **side)
        for axes, id_ in zip(cells, ids.tolist(), strict=False):
            _cell(axes, suspicion, examples, id_, wrong_ids)
    figure.suptitle(_title(wrong_ids), fontsize=9)
    return figure


def _title(wrong_ids: Ids | None) -> str:
    head = "Most suspicious labels (\u2192 the other class that the networks suggest)"
    return head if wrong_ids is None else f"{head}; orange: flipped on purpose"


def _cell(axes: Axes, suspicion: Suspicion, examples: ExampleSet, id_: int, wrong_ids: Ids | None) -> None:
    image = thumbnail(examples, id_)
    if image.ndim == 3:
        axes.imshow(image)
    else:
        axes.imshow(image, cmap="gray_r" if float(image.mean()) < 0.5 else "gray", vmin=0, vmax=1)
    label = suspicion.class_name(int(suspicion.labels[suspicion.train_ids == id_][0]))
    other = suspicion.suggestion(id_)
    lines = [short(label), *([] if other is None else [f"\u2192 {short(other)}"]), f"#{id_}"]
    known = NEUTRAL if wrong_ids is None else HURT if id_ in wrong_ids else "black"
    axes.set_title("\n".join(lines), fontsize=7, color=known, pad=2)


def detection_figure(detection: Detection) -> Figure:
    """Precision against recall; recall against labels looked at, with intervals as bands; average precision.

    The dashed black lines are what a perfect ranking would find; ``random`` is grey.
    """
    figure = new_figure(13.0, 4.2)
    precise, found, areas = figure.subplots(1, 3)
    styles = styles_with_random(detection.methods)
    k = np.arange(1, detection.n + 1)
    for method in detection.methods:
        style = {name: value for name, value in styles[method].items() if not name.startswith("marker")}
        recall = detection.hits(method) / detection.wrong
        precise.plot(100 * recall, 100 * detection.hits(method) / k, **style)
        found.plot(100 * k / detection.n, 100 * recall, label=literal(method), **style)
        low, high = 100 * detection.bands(method) / detection.wrong
        found.fill_between(100 * detection.grid / detection.n, low, high, color=style["color"], alpha=0.12, linewidth=0)
    share = 100 * detection.wrong / detection.n
    dashed = {"color": "black", "linestyle": (0, (5, 4)), "linewidth": 1}
    precise.plot([0, 100, 100], [100, 100, share], **dashed)
    found.plot([0, share, 100], [0, 100, 100], label="perfect", **dashed)
    precise.set(xlabel="wrong labels found (%)", ylabel="of those looked at, wrong (%)", xlim=(0, 102), ylim=(0, 102))
    looked = min(100, 5 * share)  # what matters happens where about as many are looked at as are wrong
    found.set(xlabel="labels looked at (%)", ylabel="wrong labels found (%)", xlim=(0, looked), ylim=(0, 102))
    legend_beside(found)
    _bars(areas, detection)
    for axes in (precise, found, areas):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{detection.wrong:,} of {detection.n:,} labels are wrong; bands and bars: {detection.confidence:.0%} "
        "intervals over examples",
        fontsize=9,
        color=NEUTRAL,
    )
    return figure


def _bars(axes: Axes, detection: Detection) -> None:
    styles = styles_with_random(detection.methods)
    areas = [detection.average_precision(method) for method in detection.methods]
    places = np.arange(len(areas))[::-1]
    values, low, high = np.array(areas).T
    axes.barh(places, values, color=[styles[method]["color"] for method in detection.methods], height=0.65)
    ends = np.maximum([values - low, high - values], 0)
    axes.errorbar(values, places, xerr=ends, fmt="none", ecolor="black", capsize=3)
    axes.set_yticks(places, [broken(method) for method in detection.methods], fontsize=8)
    axes.axvline(detection.wrong / detection.n, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="average precision (dotted: by chance)", xlim=(0, 1.02))
