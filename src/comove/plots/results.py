"""What a single result looks like: the figures of ``.plot()`` that have no other home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.attribution import Scores
from comove.coreset import Coreset
from comove.errors import InputError
from comove.evaluation import LDS
from comove.plots.drawing import HELP, HURT, NEUTRAL, legend_beside, literal, new_figure, short
from comove.plots.numbers import fixed
from comove.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["coreset_bars", "lds_histogram", "losses_figure", "ranking_bars"]

MOST_CLASSES = 40


def ranking_bars(scores: Scores, query: int | None = None, k: int = 10) -> Figure:
    """The scores of the k training examples that help a query most (blue) and of the k that hurt it most (orange).

    Raises:
        InputError: no such query, or several and none named; k above the number of examples.
    """
    rankings = [scores.top(k, query=query), scores.bottom(k, query=query)]
    figure = new_figure(7.2, 1.0 + 0.22 * 2 * k)
    axes = figure.subplots()
    labels, place = [], 0
    for ranking, colour in zip(rankings, (HELP, HURT), strict=True):
        ordered = list(zip(ranking, ranking.class_names(), strict=True))
        for (id_, score), name in ordered if colour == HELP else ordered[::-1]:  # the worst at the bottom
            axes.barh(place, score, color=colour, height=0.7)
            labels.append(f"#{id_} {short(name, 24)}".strip())
            place -= 1
    axes.set_yticks(range(0, place, -1), labels, fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(literal(f"{scores.method} score (positive helps)"))
    axes.ticklabel_format(axis="x", useMathText=True)
    axes.set_ylabel("training example: id, class")
    axes.set_title(f"query {rankings[0].query}: training examples that help (blue) and hurt (orange) most", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def coreset_bars(coreset: Coreset) -> Figure:
    """How many examples of each class were kept (of many classes, the first 40), and how the kept ones scored."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.0, 3.6)
    counts, scores = figure.subplots(1, 2)
    kept = list(coreset.per_class.items())[:MOST_CLASSES]
    names = [str(label) if coreset.classes is None else coreset.classes[label] for label, _ in kept]
    counts.bar(range(len(kept)), [count for _, count in kept], color=HELP)
    counts.set_xticks(range(len(kept)), [short(name, 20) for name in names], **_slanted(names))
    counts.set(xlabel="class", ylabel="examples kept" if kept else "labels are unknown")
    scores.hist(coreset.scores, bins=30, color=NEUTRAL)
    scores.set(xlabel=literal(f"{coreset.method} score of the examples kept"), ylabel="examples")
    scores.ticklabel_format(axis="x", useMathText=True)
    for axes in (counts, scores):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(literal(f"{coreset.method}: {len(coreset):,} of {coreset.n_candidates:,} examples"), fontsize=10)
    return figure


def _slanted(names: Sequence[object]) -> dict[str, Any]:
    """How class names stand below bars: level if they are short."""
    if len(names) * max((len(str(name)) for name in names), default=0) <= 40:
        return {"fontsize": 8}
    return {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}


def lds_histogram(result: LDS) -> Figure:
    """The LDS of the queries; their mean with its interval as a line and a band, the noise ceiling dashed.

    Raises:
        InputError: no query has one.
    """
    per_query = result.per_query[np.isfinite(result.per_query)]
    if not per_query.size:
        raise InputError("No query has a linear datamodeling score: its ground truth is constant over the subsets.")
    figure = new_figure(7.6, 3.8)
    axes = figure.subplots()
    axes.hist(per_query, bins=np.linspace(-1, 1, 41).tolist(), color=HELP, alpha=0.7)
    axes.axvline(result.mean, color="black", linewidth=1.5, label=f"mean {fixed(result.mean)}")
    if result.interval is not None:
        told = f"{result.confidence:.0%} interval of the mean"
        axes.axvspan(*result.interval, color="black", alpha=0.15, linewidth=0, label=told)
    if result.noise_ceiling is not None and np.isfinite(result.noise_ceiling):
        told = f"noise ceiling {fixed(result.noise_ceiling)}"
        axes.axvline(result.noise_ceiling, color="black", linestyle="--", linewidth=1, label=told)
    axes.set(xlabel="linear datamodeling score of a query", ylabel="queries", xlim=(-1, 1))
    axes.set_title(literal(str(result.method or "")), fontsize=10)
    legend_beside(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def losses_figure(trace: Trace) -> Figure:
    """Losses by epoch of training and held-out examples: medians, and 10th to 90th percentiles as bands."""
    figure = new_figure(7.6, 3.8)
    axes = figure.subplots()
    epochs = [row.epoch for row in trace.rows]
    for losses_TN, colour, name in (
        (trace.train_losses, HELP, f"{trace.train_ids.size:,} training examples"),
        (trace.query_losses, HURT, f"{trace.query_ids.size:,} held-out examples"),
    ):
        low, middle, high = np.maximum(np.quantile(losses_TN, (0.1, 0.5, 0.9), axis=1), 1e-8)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(epochs, middle, color=colour, label=name)
    axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="loss (nats, log scale)")
    axes.set_title("medians; bands: 10th to 90th percentile", fontsize=9, color=NEUTRAL)
    legend_beside(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
