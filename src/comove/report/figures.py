"""Figures from results; nothing is computed here but what a picture needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.attribution import Scores
from comove.coreset import Coreset
from comove.data import ExampleSet, Splits, positions_of
from comove.errors import InputError
from comove.report.drawing import HELP, HURT, literal, new_figure
from comove.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["coreset_gallery", "influence_grid", "thumbnail", "trajectories"]

MOST_CLASSES = 20
"""Rows of a gallery: a picture of a thousand classes could not be drawn."""


def thumbnail(examples: ExampleSet, id_: int) -> npt.NDArray[Any]:
    """Return an example's input as an image: (H, W), or (H, W, 3) for colours, in [0, 1].

    Eight-bit inputs are divided by 255; others are stretched from their lowest to their highest value.

    Raises:
        InputError: inputs that are no images.
    """
    raw = examples.raw(examples.positions([id_]))[0].numpy()
    if raw.ndim != 3 or raw.shape[0] not in (1, 3):
        raise InputError(f"Inputs of shape {raw.shape} are no images.")
    low, high = (0.0, 255.0) if raw.dtype == np.uint8 else (float(raw.min()), float(raw.max()))
    raw = (raw.astype(np.float32) - low) / (high - low) if high > low else np.zeros(raw.shape, np.float32)
    return raw[0] if raw.shape[0] == 1 else raw.transpose(1, 2, 0)


def _show(axes: Axes, examples: ExampleSet, id_: int, text: str, colour: str = "black") -> None:
    image = thumbnail(examples, id_)
    if image.ndim == 3:
        axes.imshow(image)
    else:
        axes.imshow(image, cmap="gray_r" if float(image.mean()) < 0.5 else "gray", vmin=0, vmax=1)
    axes.set_title(literal(text), fontsize=7, color=colour)
    axes.axis("off")


def influence_grid(scores: Scores, splits: Splits, queries: Sequence[int], k: int = 5) -> Figure:
    """Each query with the k training examples that help it most and hurt it most.

    Raises:
        InputError: no query, one that is not in the query split or has no scores, k above the number of examples.
    """
    if not len(queries):
        raise InputError("An influence grid needs at least one query.")
    rankings = [(scores.top(k, query=query), scores.bottom(k, query=query)) for query in queries]
    figure = new_figure(1.0 + 1.05 * (2 * k + 1), 1.35 * len(queries) + 0.5)
    grid = figure.subplots(len(queries), 2 * k + 1, squeeze=False)
    names = splits.classes
    for row, query, ranked in zip(grid, queries, rankings, strict=True):
        label = splits.query.labels[splits.query.positions([query])[0]]
        _show(row[0], splits.query, query, f"query {query}\n{names[label]}")
        cells = iter(row[1:])
        for ranking, colour in zip(ranked, (HELP, HURT), strict=True):
            for (id_, score), name in zip(ranking, ranking.class_names(), strict=True):
                _show(next(cells), splits.train, id_, f"{name}  {score:+.3g}\n#{id_}", colour)
    title = f"{scores.method}: training examples that help (blue) and hurt (orange) each query"
    figure.suptitle(literal(title), fontsize=10)
    return figure


def trajectories(trace: Trace, scores: Scores, query: int, k: int = 3) -> Figure:
    """The query's loss along training against those of its k top and k bottom training examples.

    Raises:
        InputError: an unknown query, k above the number of examples.
    """
    figure = new_figure(7.2, 3.8)
    axes = figure.subplots()
    epochs = [row.epoch for row in trace.rows]
    train_TN, query_TQ = (np.maximum(losses, 1e-8) for losses in (trace.train_losses, trace.query_losses))
    place = positions_of([query], trace.query_ids, "query ids")[0]
    for ranking, colour, word in (
        (scores.top(k, query=query), HELP, "helps"),
        (scores.bottom(k, query=query), HURT, "hurts"),
    ):
        columns = positions_of(ranking.ids, trace.train_ids, "train ids")
        for number, column in enumerate(columns):
            axes.plot(epochs, train_TN[:, column], color=colour, alpha=0.7, label=word if number == 0 else None)
    axes.plot(epochs, query_TQ[:, place], color="black", linewidth=2, label=f"query {query}")
    title = f"Losses that co-move with query {query} ({scores.method})"
    axes.set(xlabel="epoch", ylabel="loss (nats)", title=literal(title))
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure


def coreset_gallery(coreset: Coreset, examples: ExampleSet, per_class: int = 8) -> Figure:
    """The first examples kept of each class, best on the left, and how they scored; of many classes, the first 20.

    Raises:
        InputError: an example that is not in ``examples``.
    """
    label_of_kept = examples.labels[examples.positions(coreset.ids)]
    labels = np.unique(label_of_kept)[:MOST_CLASSES]
    figure = new_figure(0.9 * per_class + 0.6, 1.0 * len(labels) + 0.5)
    grid = figure.subplots(len(labels), per_class, squeeze=False)
    for row, label in zip(grid, labels, strict=True):
        kept = np.flatnonzero(label_of_kept == label)[:per_class]
        for axes in row:
            axes.axis("off")
        for axes, place in zip(row, kept, strict=False):
            _show(axes, examples, int(coreset.ids[place]), f"{examples.classes[label]}  {coreset.scores[place]:+.2f}")
    figure.suptitle(literal(f"{coreset.method}: first kept of each class"), fontsize=10)
    return figure
