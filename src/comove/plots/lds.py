"""Figures of the linear datamodeling score: bars at one sampling ratio, lines over several (the paper's figure 8a)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.errors import InputError
from comove.evaluation import LDS
from comove.evaluation.lds_benchmark.result import alpha_name
from comove.plots.drawing import HELP, NEUTRAL, broken, legend_beside, literal, new_figure
from comove.plots.lines import is_control, line_styles
from comove.plots.numbers import MINUS, fixed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["lds_bars", "lds_curves", "lds_figure"]


def lds_figure(results: Sequence[LDS]) -> Figure:
    """Draw the LDS of several methods: bars if there is one sampling ratio, else lines over it; a panel an output.

    Raises:
        InputError: no result.
    """
    return lds_bars(results) if len({result.alpha for result in results}) <= 1 else lds_curves(results)


def lds_bars(results: Sequence[LDS]) -> Figure:
    """LDS of each method with its interval, the noise ceiling dashed; a panel an output.

    Raises:
        InputError: no result.
    """
    panels = _by_output(results)
    rows = len(next(iter(panels.values())))
    figure = new_figure(7.2 if len(panels) == 1 else 2.0 + 3.2 * len(panels), 0.9 + 0.42 * rows)
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (output, own) in zip(grid, panels.items(), strict=True):
        _bars(axes, own)
        if len(panels) > 1:
            axes.set_title(literal(output), fontsize=9, loc="left")
    figure.supxlabel(_scale(results[0]), fontsize=9)
    return figure


def _scale(result: LDS) -> str:
    bars = f"; bars: {result.confidence:.0%} intervals" if result.interval is not None else ""
    return f"linear datamodeling score, mean over {result.per_query.size:,} queries{bars}"


def _bars(axes: Axes, results: Sequence[LDS]) -> None:
    means, (low, high) = np.array([result.mean for result in results]), _ends(results)
    places = np.arange(len(results))[::-1]
    colours = [NEUTRAL if is_control(result.method) else HELP for result in results]
    axes.barh(places, means, color=colours, height=0.65)
    axes.errorbar(means, places, xerr=np.maximum([means - low, high - means], 0), fmt="none", ecolor="black", capsize=3)
    ceiling = results[0].noise_ceiling
    if ceiling is not None and np.isfinite(ceiling):
        axes.axvline(ceiling, color="black", linestyle="--", linewidth=1)
        above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 8}
        axes.text(ceiling, 1.01, f"noise ceiling {fixed(ceiling, 2)}", **above)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, [broken(str(result.method)) for result in results], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def lds_curves(results: Sequence[LDS]) -> Figure:
    """LDS against the share of the training data in each subset, one line a method, intervals as bands.

    Controls are grey; the dashed black line is the noise ceiling. One panel an output; the legend has the order of the
    lines.

    Raises:
        InputError: no result.
    """
    panels = _by_output(results)
    styles = line_styles(list(dict.fromkeys(str(result.method) for result in results)))
    figure = new_figure(3.4 + 3.6 * len(panels), 0.6 + max(3.6, 0.3 * (len(styles) + 1)))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (output, own) in zip(grid, panels.items(), strict=True):
        _ceiling(axes, own)
        for method in sorted(styles, key=lambda name: -_height(results, name)):
            line = sorted((result for result in own if str(result.method) == method), key=_alpha)
            alphas, style = [_alpha(result) for result in line], styles[method]
            axes.plot(alphas, [result.mean for result in line], label=broken(method), **style)
            axes.fill_between(alphas, *_ends(line), color=style["color"], alpha=0.13, linewidth=0)
        _finish(axes, sorted({_alpha(result) for result in own}), output if len(panels) > 1 else "")
    grid[0].set_ylabel("linear datamodeling score")
    legend_beside(grid[-1])
    figure.suptitle(literal(_measured(results, panels)), fontsize=9)
    return figure


def _ceiling(axes: Axes, results: Sequence[LDS]) -> None:
    levels = {_alpha(result): result.noise_ceiling for result in results if result.noise_ceiling is not None}
    if levels:
        alphas, dashes = sorted(levels), (0, (5, 4))
        heights = [levels[alpha] for alpha in alphas]
        axes.plot(alphas, heights, color="black", linestyle=dashes, linewidth=1, label="noise ceiling")


def _height(results: Sequence[LDS], method: str) -> float:
    """Where a line lies, on average."""
    means = [result.mean for result in results if str(result.method) == method and np.isfinite(result.mean)]
    return float(np.mean(means)) if means else -np.inf


def _finish(axes: Axes, alphas: Sequence[float], title: str) -> None:
    crowded = bool((np.diff(alphas) < 0.1 * (alphas[-1] - alphas[0])).any())
    axes.set_xticks(
        alphas, [alpha_name(alpha).replace("-", MINUS) for alpha in alphas], fontsize=8, rotation=40 if crowded else 0
    )
    axes.axhline(0, color="black", linewidth=0.8, zorder=0)
    axes.grid(axis="y", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(r"share of the training data in each subset, $\alpha$")
    axes.set_title(literal(title), fontsize=9)


def _measured(results: Sequence[LDS], panels: dict[str, list[LDS]]) -> str:
    """What the figure is about, in a line."""
    first, output = results[0], f"{next(iter(panels))}, " if len(panels) == 1 else ""
    subsets, seeds = (_range([getattr(result, name) for result in results]) for name in ("subsets", "seeds"))
    bands = f", {first.confidence:.0%} intervals" if first.interval is not None else ""
    models = f"{subsets} subsets \u00d7 {seeds} {'seed' if seeds == '1' else 'seeds'}"
    return f"{output}{first.per_query.size:,} queries, {models} at each ratio{bands}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _by_output(results: Sequence[LDS]) -> dict[str, list[LDS]]:
    if not results:
        raise InputError("There is no LDS to draw.")
    panels: dict[str, list[LDS]] = {}
    for result in results:
        panels.setdefault(result.output or "output", []).append(result)
    return panels


def _alpha(result: LDS) -> float:
    return float("nan") if result.alpha is None else result.alpha


def _ends(results: Sequence[LDS]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the intervals; the mean itself where there is none."""
    spans = [result.interval if result.interval is not None else (result.mean, result.mean) for result in results]
    low, high = np.array(spans).T
    return low, high
