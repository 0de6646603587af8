"""Figures from results; nothing is computed here but what a picture needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.attribution import Ranking, Scores
from comove.coreset import Coreset
from comove.data import ExampleSet, Splits, positions_of
from comove.errors import InputError
from comove.plots.drawing import HELP, HURT, legend_beside, literal, new_figure, short
from comove.plots.numbers import scored
from comove.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["coreset_gallery", "influence_grid", "thumbnail", "trajectories"]

MOST_CLASSES = 20
"""Rows of a gallery: a picture of a thousand classes could not be drawn."""
LOWEST = 1e-8
"""The loss in nats that a logarithmic axis ends at."""


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
    axes.set_title(text, fontsize=7, color=colour)
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
    names, counts = splits.classes, _are_counts(scores.values)
    for row, query, ranked in zip(grid, queries, rankings, strict=True):
        label = splits.query.labels[splits.query.positions([query])[0]]
        _show(row[0], splits.query, query, f"query {query}\n{short(names[label])}")
        cells = iter(row[1:])
        for ranking, colour in zip(ranked, (HELP, HURT), strict=True):
            for (id_, score), name in zip(ranking, ranking.class_names(), strict=True):
                _show(next(cells), splits.train, id_, f"{short(name)}\n#{id_}  {scored(score, counts=counts)}", colour)
    title = f"{scores.method}: training examples that help (blue) and hurt (orange) each query"
    figure.suptitle(literal(title), fontsize=10)
    return figure


def trajectories(trace: Trace, scores: Scores, query: int, k: int = 3) -> Figure:
    """The query's loss along training against those of its k top and k bottom training examples.

    On the left the losses, on a logarithmic axis: else nothing of late training could be seen. On the right their
    changes from row to row, which is what CLD correlates; they are not logarithmic.

    Raises:
        InputError: an unknown query, k above the number of examples.
    """
    figure = new_figure(11.0, 3.9)
    place = positions_of([query], trace.query_ids, "query ids")[0]
    lines = [("helps", column) for column in _columns(trace, scores.top(k, query=query))]
    lines += [("hurts", column) for column in _columns(trace, scores.bottom(k, query=query))]
    drawn = [(word, trace.train_losses[:, column]) for word, column in lines]
    drawn += [(f"query {query}", trace.query_losses[:, place])]
    epochs = [row.epoch for row in trace.rows]
    left, right = figure.subplots(1, 2)
    for word, losses_T in drawn:
        style, new = _line(word), word not in left.get_legend_handles_labels()[1]
        left.plot(epochs, np.maximum(losses_T, LOWEST), label=word if new else None, **style)
        right.plot(epochs[1:], np.diff(losses_T), label=word if new else None, **style)
    left.set_yscale("log")
    left.set(xlabel="epoch", ylabel="loss (nats, log scale)")
    left.set_title("losses", fontsize=10)
    right.axhline(0, color="black", linewidth=0.6, zorder=0)
    right.set(xlabel="epoch", ylabel="change of the loss from row to row (nats)")
    right.set_title("their changes, which CLD correlates (linear scale)", fontsize=10)
    legend_beside(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    runs = scores.info.get("runs", 1)
    of_one = f"; scores of {runs:,} runs, losses of one" if isinstance(runs, int) and runs > 1 else ""
    title = f"Training examples that help and hurt query {query} most ({scores.method}{of_one})"
    figure.suptitle(literal(title), fontsize=11)
    return figure


def _columns(trace: Trace, ranking: Ranking) -> list[int]:
    return [int(column) for column in positions_of(ranking.ids, trace.train_ids, "train ids")]


def _line(word: str) -> dict[str, Any]:
    """Helpful ones are blue and solid, hurtful ones orange and dashed, the query is black and thick."""
    if word == "helps":
        return {"color": HELP, "alpha": 0.8, "linewidth": 1.3}
    if word == "hurts":
        return {"color": HURT, "alpha": 0.8, "linewidth": 1.3, "linestyle": "--"}
    return {"color": "black", "linewidth": 3, "alpha": 0.75, "zorder": 1}  # below: lines that co-move lie on it


def _are_counts(values: npt.NDArray[Any]) -> bool:
    """Whether scores are whole numbers, such as of forgettings."""
    return bool(np.isfinite(values).all() and (values == np.round(values)).all())


def coreset_gallery(coreset: Coreset, examples: ExampleSet, per_class: int = 8) -> Figure:
    """The first examples kept of each class, best on the left, and how they scored; of many classes, the first 20.

    Raises:
        InputError: an example that is not in ``examples``.
    """
    label_of_kept = examples.labels[examples.positions(coreset.ids)]
    labels = np.unique(label_of_kept)[:MOST_CLASSES]
    figure = new_figure(0.9 * per_class + 0.6, 1.15 * len(labels) + 0.5)
    counts = _are_counts(coreset.scores)
    grid = figure.subplots(len(labels), per_class, squeeze=False)
    for row, label in zip(grid, labels, strict=True):
        kept = np.flatnonzero(label_of_kept == label)[:per_class]
        for axes in row:
            axes.axis("off")
        for axes, place in zip(row, kept, strict=False):
            told = scored(float(coreset.scores[place]), plus=False, counts=counts)
            _show(axes, examples, int(coreset.ids[place]), f"{short(examples.classes[label])}\nscore {told}")
    figure.suptitle(literal(f"{coreset.method}: first kept of each class"), fontsize=10)
    return figure
