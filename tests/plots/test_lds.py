"""Figures of the LDS: bars at one sampling ratio, lines over several, each with its interval and the noise ceiling."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from comove.errors import InputError
from comove.evaluation import LDS, linear_datamodeling_score
from comove.lds.charts import lds_figure
from comove.plots.chart import line_styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ink(figure: Figure) -> float:
    """The share of pixels that are not white."""
    from matplotlib import image

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=50)
    picture.seek(0)
    return float((image.imread(picture)[..., :3] < 0.98).any(-1).mean())


def texts(figure: Figure) -> str:
    """Everything written in a figure."""
    from matplotlib.text import Text

    return "\n".join(item.get_text() for item in figure.findobj(Text) if isinstance(item, Text))


def lds(seeds: int = 2, *, bootstrap: int = 50, method: str = "cld", constant: bool = False, **labels: Any) -> LDS:
    rng = np.random.default_rng(0)
    outputs = np.ones((6, seeds, 3)) if constant else rng.random((6, seeds, 3))
    masks = rng.permuted(np.tile([True, False] * 5, (6, 1)), axis=1)
    found = linear_datamodeling_score(rng.normal(size=(10, 3)), masks, outputs, bootstrap=bootstrap, method=method)
    return dataclasses.replace(found, **labels)


def several(**changes: Any) -> list[LDS]:
    """Three methods at three ratios (not in order) for two outputs; means, intervals and ceilings all differ."""
    results = []
    for place, alpha in enumerate((0.9, 0.3, 0.5)):
        for step, output in enumerate(("margin", "correct")):
            for number, method in enumerate(("cld", "trak(seed=1, dim=2)", "random-control")):
                mean = 0.1 * number + 0.02 * place + 0.01 * step
                labels = {"mean": mean, "interval": (mean - 0.02, mean + 0.03), "noise_ceiling": 0.8 + 0.02 * place}
                results.append(lds(method=method, alpha=alpha, output=output, **{**labels, **changes}))
    return results


# --- bars ---------------------------------------------------------------------------------------------------------


def test_bars_have_the_lengths_of_the_means_and_the_ceiling_is_dashed() -> None:
    results = [lds(), lds(method="random-control")]
    figure = lds_figure(results)
    axes: Any = figure.axes[0]
    assert [patch.get_width() for patch in axes.patches] == [result.mean for result in results]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()  # controls stand apart
    assert "noise ceiling" in texts(figure)
    assert ink(figure) > 0.02


def test_one_seed_has_no_ceiling_and_no_bootstrap_no_interval() -> None:
    single = lds(seeds=1, bootstrap=0)
    assert single.interval is None
    assert single.noise_ceiling is None
    figure = lds_figure([single])
    assert "noise ceiling" not in texts(figure)
    assert ink(figure) > 0.02


def test_an_undefined_lds_leaves_an_empty_row() -> None:
    undefined = lds(constant=True)
    assert math.isnan(undefined.mean)
    assert ink(lds_figure([undefined])) > 0.01
    assert ink(lds_figure([lds(), undefined])) > 0.02


def test_an_interval_beside_its_mean_is_drawn_to_the_mean() -> None:
    assert ink(lds_figure([dataclasses.replace(lds(), mean=0.5, interval=(0.6, 0.7))])) > 0.02


def test_no_result_is_refused() -> None:
    with pytest.raises(InputError, match="no LDS to draw"):
        lds_figure([])


def test_bars_of_several_outputs_have_a_panel_each_on_one_scale() -> None:
    results = [result for result in several() if result.alpha == 0.5]
    figure = lds_figure(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["margin", "correct"]
    for axes, output in zip(figure.axes, ("margin", "correct"), strict=True):
        lengths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
        assert lengths == [result.mean for result in results if result.output == output]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


# --- lines --------------------------------------------------------------------------------------------------------


def test_a_line_a_method_goes_through_its_means_from_the_lowest_ratio_on_in_a_panel_an_output() -> None:
    results = several()
    figure = lds_figure(results)
    assert len(figure.axes) == 2
    for axes, output in zip(figure.axes, ("margin", "correct"), strict=True):
        drawn = {str(line.get_label()): np.asarray(line.get_xydata(), float) for line in axes.get_lines()}
        for method, label in (("cld", "cld"), ("trak(seed=1, dim=2)", "trak\nseed=1\ndim=2")):
            own = {r.alpha: r.mean for r in results if (r.method, r.output) == (method, output)}
            np.testing.assert_allclose(drawn[label], sorted(own.items()))
        np.testing.assert_allclose(drawn["noise ceiling"], [[0.3, 0.82], [0.5, 0.84], [0.9, 0.8]])


def test_bands_are_the_intervals() -> None:
    results = [result for result in several() if result.method == "cld" and result.output == "margin"]
    (band,) = lds_figure(results).axes[0].collections
    corners = np.asarray(band.get_paths()[0].vertices)
    for result in results:
        heights = [height for alpha, height in corners.tolist() if math.isclose(alpha, result.alpha or 0)]
        np.testing.assert_allclose([min(heights), max(heights)], list(result.interval or ()))


def test_the_legend_has_the_order_of_the_lines_and_the_ceiling_first() -> None:
    legend = lds_figure(several()).axes[-1].get_legend()
    assert legend is not None
    names = [text.get_text().split("\n")[0] for text in legend.get_texts()]
    assert names == ["noise ceiling", "random-control", "trak", "cld"]


def test_ticks_are_the_ratios_and_the_last_ratio_is_named_by_what_it_leaves_out() -> None:
    results = [lds(alpha=alpha, output="margin") for alpha in (0.5, 0.9, 0.95, 1 - 1 / 1400)]
    labels = lds_figure(results).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["0.5", "0.9", "0.95", "1\u22121/1,400"]
    assert {label.get_rotation() for label in labels} == {40}  # crowded
    roomy = lds_figure(results[:2]).axes[0].get_xticklabels()
    assert {label.get_rotation() for label in roomy} == {0}


def test_one_seed_no_interval_and_an_undefined_point_are_drawn() -> None:
    results = [
        lds(seeds=1, bootstrap=0, alpha=0.3),
        lds(seeds=1, bootstrap=0, alpha=0.5, constant=True),
        lds(seeds=1, bootstrap=0, alpha=0.7),
    ]
    figure = lds_figure(results)
    assert "noise ceiling" not in texts(figure)
    assert "intervals" not in texts(figure)
    assert ink(figure) > 0.01


def test_the_title_says_how_many_subsets_and_seeds_also_where_they_differ() -> None:
    results = several()
    assert "3 queries, 6 subsets \u00d7 2 seeds at each ratio, 95% intervals" in texts(lds_figure(results))
    mixed = [dataclasses.replace(results[0], subsets=9), *results[1:]]
    assert "6 to 9 subsets \u00d7 2 seeds" in texts(lds_figure(mixed))


def test_names_are_text_and_no_formulas() -> None:
    assert ink(lds_figure([lds(method=r"$\frac{$"), lds(method="a$b$")])) > 0.02
    assert ink(lds_figure([lds(method=r"$\frac{$", alpha=alpha, output="$x$") for alpha in (0.3, 0.5)])) > 0.01


def test_every_method_of_twenty_has_a_look_of_its_own_and_controls_are_grey() -> None:
    styles = line_styles([*(f"method {n}" for n in range(20)), "random-control", "same-class-control"])
    assert len(set(styles.values())) == 22
    assert len({styles[f"method {n}"].colour for n in range(8)}) == 8
    assert [styles[f"method {n}"].dash == () for n in range(10)] == [True] * 8 + [False] * 2
    assert styles["random-control"].colour == styles["same-class-control"].colour == "control"


def test_one_ratio_is_bars_and_several_are_lines() -> None:
    assert len(lds_figure([lds(alpha=0.5)]).axes[0].patches) == 1
    assert len(lds_figure([lds(alpha=0.5), lds(alpha=0.7)]).axes[0].patches) == 0
    assert math.isclose(lds().mean, lds(alpha=0.5).mean)
