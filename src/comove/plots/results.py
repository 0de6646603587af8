"""What a single result looks like: bars, histograms and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.display import fixed, short
from comove.errors import InputError
from comove.plots.drawing import HELP, HURT, NEUTRAL, legend_beside, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["coreset_bars", "lds_histogram", "loss_trajectories", "losses_figure", "ranking_bars"]

Floats = npt.NDArray[np.floating[Any]]
MOST_CLASSES = 40
LOWEST = 1e-8
"""The loss in nats that a logarithmic axis ends at."""


def ranking_bars(
    helps: Sequence[tuple[str, float]], hurts: Sequence[tuple[str, float]], *, method: str, query: int
) -> Figure:
    """Training examples (name, score) that help a query most (blue), and that hurt it most (orange)."""
    bars = [(*bar, HELP) for bar in helps] + [(*bar, HURT) for bar in reversed(hurts)]  # the worst at the bottom
    figure = new_figure(7.2, 1.0 + 0.22 * len(bars))
    axes = figure.subplots()
    names, scores, colours = zip(*bars, strict=True)
    places = -np.arange(len(bars))
    axes.barh(places, scores, color=colours, height=0.7)
    axes.set_yticks(places, [literal(short(name, 32)) for name in names], fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(literal(f"{method} score (positive helps)"))
    axes.ticklabel_format(axis="x", useMathText=True)
    axes.set_ylabel("training example: id, class")
    axes.set_title(f"query {query}: training examples that help (blue) and hurt (orange) most", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def coreset_bars(kept: Mapping[str, int], scores_k: Floats, *, method: str, candidates: int) -> Figure:
    """How many examples of each class were kept (of many classes, the first 40), and how the kept ones scored."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.0, 3.6)
    counts, scores = figure.subplots(1, 2)
    names = list(kept)[:MOST_CLASSES]
    counts.bar(range(len(names)), [kept[name] for name in names], color=HELP)
    counts.set_xticks(range(len(names)), [literal(short(name, 20)) for name in names], **_slanted(names))
    counts.set(xlabel="class", ylabel="examples kept" if kept else "labels are unknown")
    scores.hist(scores_k, bins=30, color=NEUTRAL)
    scores.set(xlabel=literal(f"{method} score of the examples kept"), ylabel="examples")
    scores.ticklabel_format(axis="x", useMathText=True)
    for axes in (counts, scores):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(literal(f"{method}: {scores_k.size:,} of {candidates:,} examples"), fontsize=10)
    return figure


def _slanted(names: Sequence[str]) -> dict[str, Any]:
    """How class names stand below bars: level if they are short."""
    if len(names) * max(map(len, names), default=0) <= 40:
        return {"fontsize": 8}
    return {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}


def lds_histogram(
    per_query: Floats,
    mean: float,
    *,
    interval: tuple[float, float] | None = None,
    confidence: float = 0.95,
    ceiling: float | None = None,
    title: str = "",
) -> Figure:
    """The LDS of the queries; their mean with its interval as a line and a band, the noise ceiling dashed.

    Raises:
        InputError: no query has one.
    """
    per_query = per_query[np.isfinite(per_query)]
    if not per_query.size:
        raise InputError("No query has a linear datamodeling score: its ground truth is constant over the subsets.")
    figure = new_figure(7.6, 3.8)
    axes = figure.subplots()
    axes.hist(per_query, bins=np.linspace(-1, 1, 41).tolist(), color=HELP, alpha=0.7)
    axes.axvline(mean, color="black", linewidth=1.5, label=f"mean {fixed(mean)}")
    if interval is not None:
        of_mean = f"{confidence:.0%} interval of the mean"
        axes.axvspan(*interval, color="black", alpha=0.15, linewidth=0, label=of_mean)
    if ceiling is not None and np.isfinite(ceiling):
        axes.axvline(ceiling, color="black", linestyle="--", linewidth=1, label=f"noise ceiling {fixed(ceiling)}")
    axes.set(xlabel="linear datamodeling score of a query", ylabel="queries", xlim=(-1, 1))
    axes.set_title(literal(title), fontsize=10)
    legend_beside(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def losses_figure(epochs_T: Sequence[float], train_TN: Floats, query_TQ: Floats) -> Figure:
    """Losses by epoch of training and held-out examples: medians, and 10th to 90th percentiles as bands."""
    figure = new_figure(7.6, 3.8)
    axes = figure.subplots()
    for losses_TN, colour, name in ((train_TN, HELP, "training examples"), (query_TQ, HURT, "held-out examples")):
        low, middle, high = np.maximum(np.quantile(losses_TN, (0.1, 0.5, 0.9), axis=1), LOWEST)
        axes.fill_between(epochs_T, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(epochs_T, middle, color=colour, label=f"{losses_TN.shape[1]:,} {name}")
    _log_losses(axes)
    axes.set_title("medians; bands: 10th to 90th percentile", fontsize=9, color=NEUTRAL)
    legend_beside(axes)
    return figure


def loss_trajectories(
    epochs_T: Sequence[float], query_T: Floats, helps_Tk: Floats, hurts_Tk: Floats, *, query: int, title: str
) -> Figure:
    """A query's loss along training (black) and those of examples that help it (blue) and hurt it (orange).

    On the left the losses, on a logarithmic axis: else nothing of late training could be seen. On the right their
    changes from row to row, which is what CLD correlates; they are not logarithmic.
    """
    figure = new_figure(11.0, 3.9)
    left, right = figure.subplots(1, 2)
    thin: dict[str, Any] = {"alpha": 0.8, "linewidth": 1.3}
    black = {"color": "black", "linewidth": 3, "alpha": 0.75, "zorder": 1}  # below: lines that co-move lie on it
    for losses_Tk, name, style in (
        (helps_Tk, "helps", {**thin, "color": HELP}),
        (hurts_Tk, "hurts", {**thin, "color": HURT, "linestyle": "--"}),
        (query_T[:, None], f"query {query}", black),
    ):
        labels = [name, *[None] * (losses_Tk.shape[1] - 1)]  # one entry of the legend
        left.plot(epochs_T, np.maximum(losses_Tk, LOWEST), label=labels, **style)
        right.plot(epochs_T[1:], np.diff(losses_Tk, axis=0), label=labels, **style)
    _log_losses(left)
    left.set_title("losses", fontsize=10)
    right.axhline(0, color="black", linewidth=0.6, zorder=0)
    right.set(xlabel="epoch", ylabel="change of the loss from row to row (nats)")
    right.set_title("their changes, which CLD correlates (linear scale)", fontsize=10)
    right.spines[["top", "right"]].set_visible(False)
    legend_beside(right)
    figure.suptitle(literal(title), fontsize=11)
    return figure


def _log_losses(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="loss (nats, log scale)")
    axes.spines[["top", "right"]].set_visible(False)
