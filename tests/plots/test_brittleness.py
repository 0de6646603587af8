"""Figures of removals: what is drawn are the result's own numbers, controls apart from methods."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.text import Text

from comove.evaluation import Brittleness, Counterfactual
from comove.evaluation.prediction_brittleness.models import FullData
from comove.evaluation.prediction_brittleness.removal import CONTROLS
from comove.plots import save_figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Q, R = 12, 3
METHODS = ("trak", "cld(correlation=covariance, $x)")


def full(again: float = 0.1) -> FullData:
    rng = np.random.default_rng(0)
    noisy = (rng.random((5, Q)) < again).astype(np.int32)
    zeros, margins = np.zeros((5, Q), np.int32), np.ones((5, Q), np.float32)
    return FullData(zeros, margins, noisy, margins)


def brittle(ks: tuple[int, ...] = (10, 50, 100, 400), *, controls: bool = True, queries: int = Q) -> Brittleness:
    names = METHODS + (CONTROLS if controls else ())
    rng = np.random.default_rng(1)
    share_MK = np.linspace(0.9, 0.1, len(names))[:, None] * np.linspace(0.3, 1, len(ks))
    flipped = rng.random((len(names), Q, len(ks), R)) < share_MK[:, None, :, None]
    return Brittleness(
        methods=names,
        controls=CONTROLS if controls else (),
        ks=ks,
        predicted=flipped.astype(np.int32),
        margins=rng.normal(size=flipped.shape).astype(np.float32),
        full=full(),
        class_emptied=np.zeros(flipped.shape[:3], bool),
        query_ids=np.arange(Q),
        query_labels=np.zeros(Q, np.int64),
    ).only(np.arange(queries))


def counter(points: int = 6) -> Counterfactual:
    grid = np.unique(np.geomspace(1, 500, points).round().astype(int))
    names = METHODS + CONTROLS
    tried = np.full((len(names), Q, grid.size), -1, np.int8)
    at = np.random.default_rng(2).integers(grid.size + 1, size=tried.shape[:2])
    tried[np.arange(grid.size) >= at[..., None]] = 1
    audited = np.where(tried == -1, 0, -1).astype(np.int8)
    return Counterfactual(names, CONTROLS, grid, tried, audited, full(), R, np.arange(Q), np.zeros(Q, np.int64))


def lines(figure: Figure) -> dict[str, Line2D]:
    axes = figure.axes[0]
    return {str(line.get_label()): line for line in axes.get_lines()}


def points(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_xydata(), dtype=np.float64)


def drawn(figure: Figure) -> Any:
    from matplotlib import image

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=50)
    picture.seek(0)
    return image.imread(picture)


def test_every_line_of_figure_8b_holds_the_rates_of_its_method_in_percent() -> None:
    result = brittle()
    found = lines(result.plot())
    assert len(found) == 5
    shown = {"trak": "trak", METHODS[1]: "cld\ncorrelation=covariance\n\\$x"}
    for name in result.methods:
        line = found[shown.get(name, f"{name} (control)")]
        heights = np.array([100 * result.rate(name, k).value for k in result.ks])
        np.testing.assert_allclose(points(line), np.stack([np.array(result.ks, float), heights], 1))
    np.testing.assert_allclose(points(found["nothing removed (k = 0)"])[:, 1], 100 * result.noise.value)


def test_bands_are_the_intervals() -> None:
    result = brittle(controls=False)
    bands = result.plot().axes[0].collections
    spans = [band.get_paths()[0].get_extents() for band in bands]
    for span, name in zip(spans, sorted(METHODS, key=lambda name: -result.rate(name, 400).value), strict=True):
        bounds = np.array([result.rate(name, k)[1:] for k in result.ks]) * 100
        np.testing.assert_allclose([span.y0, span.y1], [bounds.min(), bounds.max()])


def test_controls_are_grey_and_dashed_and_methods_differ_in_colour_and_mark() -> None:
    found = lines(brittle().plot())
    controls = [found[f"{name} (control)"] for name in CONTROLS]
    assert {line.get_color() for line in controls} == {"#555555"}
    dashes = {str(line._dash_pattern) for line in controls}  # type: ignore[attr-defined]
    assert len(dashes | {str((0, None))}) == 3
    methods = [line for name, line in found.items() if "control" not in name and "nothing" not in name]
    assert len({line.get_color() for line in methods}) == len({line.get_marker() for line in methods}) == 2


def test_marks_are_hollow_where_a_class_was_removed_whole() -> None:
    plain = brittle()
    assert "hollow" not in " ".join(lines(plain.plot()))
    emptied_MQK = plain.class_emptied.copy()
    emptied_MQK[1, 3, 2:] = emptied_MQK[3, 0, 3] = True
    axes = replace(plain, class_emptied=emptied_MQK).plot().axes[0]
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    own = {(k, 100 * plain.rate(plain.methods[m], k).value) for m, k in ((1, 100), (1, 400), (3, 400))}
    assert {(x, y) for line in hollow for x, y in points(line)} == own
    assert sum("hollow" in str(line.get_label()) for line in hollow) == 1


def test_the_legend_has_the_order_of_the_lines_on_the_right() -> None:
    result = brittle()
    legend = result.plot().axes[0].get_legend()
    assert legend is not None
    named = [text.get_text().split("\n")[0].removesuffix(" (control)") for text in legend.get_texts()][:-1]
    ends = {name.split("(")[0]: result.rate(name, 400).value for name in result.methods}
    assert [ends[name] for name in named] == sorted(ends.values(), reverse=True)


def many() -> Brittleness:
    """Six methods and two controls."""
    few = brittle()
    names = (*(f"m{number}" for number in range(6)), *CONTROLS)
    order = np.array([0, 0, 1, 1, 0, 1, 2, 3])
    parts = {name: getattr(few, name)[order] for name in ("predicted", "margins", "class_emptied")}
    return replace(few, methods=names, **parts)


def test_of_many_methods_the_lines_stand_together_without_bands_and_each_alone_with_its_interval() -> None:
    result = many()
    together, *alone = result.plot().axes
    assert len(together.collections) == 0
    assert len(lines(result.plot())) == 9  # and the level of nothing removed
    for axes, name in zip(alone, result.methods, strict=False):
        assert axes.get_title(loc="left") == name
        (band,) = axes.collections
        span = band.get_paths()[0].get_extents()
        bounds = np.array([result.rate(name, k)[1:] for k in result.ks]) * 100
        np.testing.assert_allclose([span.y0, span.y1], [bounds.min(), bounds.max()])
        assert axes.get_ylim() == together.get_ylim()
        assert axes.get_ylim()[1] > bounds.max()


def test_every_line_of_many_bears_its_name_and_no_two_names_overlap() -> None:
    figure = many().plot()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    named = [text for text in axes.texts if text.get_text()]
    assert len(named) == 9
    boxes = sorted((Text.get_window_extent(text) for text in named), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


@pytest.mark.parametrize(("ks", "scale"), [((10, 400), "log"), ((10, 50), "linear"), ((5, 6), "linear")])
def test_the_axis_is_logarithmic_where_ks_span_much(ks: tuple[int, ...], scale: str) -> None:
    figure = brittle(ks).plot()
    assert figure.axes[0].get_xscale() == scale
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [str(k) for k in ks]
    assert drawn(figure).std() > 0.02


def test_a_single_query_is_drawn_without_bands() -> None:
    assert drawn(brittle(queries=1).plot()).std() > 0.02


@pytest.mark.parametrize("points", [2, 6, 25])
def test_stairs_rise_to_the_share_flipped_within_the_largest_removal(points: int, tmp_path: Path) -> None:
    result = counter(points)
    figure = result.plot()
    found = lines(figure)
    line = found["trak"]
    assert line.get_drawstyle() == "steps-post"
    heights = np.asarray(line.get_ydata(), float)
    assert (np.diff(heights) >= 0).all()
    assert heights[-1] == pytest.approx(100 * (1 - result.not_flipped["trak"] / Q))
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert len(ticks) <= 10
    assert "500" in ticks
    wrong, asked = result.contradictions
    assert f"{wrong} of {asked} checks contradict" in figure.axes[0].get_title()
    assert save_figure(figure, tmp_path / "c.png").stat().st_size > 5000


def test_of_a_single_k_flips_and_margin_drops_are_bars() -> None:
    one = brittle((50,))
    flips, drops = one.charts()
    assert [chart.kind for chart in (flips, drops)] == ["bars", "bars"]
    k = one.ks[0]
    for series in flips.series:
        assert series.points[0][1] == pytest.approx(100 * one.rate(series.name, k).value)
        assert series.control == (series.name in one.controls)
    for series in drops.series:
        assert series.points[0][1:] == pytest.approx(one.margin_drop(series.name, k))
    assert len(drops.table.rows) == 1 + len(one.methods)
    assert all(chart.kind == "lines" for chart in brittle().charts())
