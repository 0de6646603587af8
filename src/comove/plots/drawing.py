"""What every figure is drawn with: a canvas without a display or global state, colours, and text as it stands."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from comove.store import new_folder, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "HELP",
    "HURT",
    "NEUTRAL",
    "broken",
    "legend_beside",
    "literal",
    "new_figure",
    "save_figure",
    "short",
]

HELP, HURT, NEUTRAL = "#0072b2", "#d55e00", "#555555"  # distinguishable with every kind of colour blindness
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically, and return its path.

    Raises:
        StorageError: it cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    new_folder(path.parent)
    write_bytes(path, picture.getvalue())
    return path


def literal(text: object) -> str:
    """Text as it stands: a dollar sign in a class name starts no formula."""
    return str(text).replace("$", r"\$")


def short(text: object, letters: int = 16) -> str:
    """A class name that fits over a picture, as it stands."""
    whole = str(text)
    return literal(whole if len(whole) <= letters else whole[: letters - 1].rstrip() + "\u2026")


def legend_beside(axes: Axes) -> None:
    """Put the legend on the right of the plot, where it covers nothing."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)


def broken(method: str) -> str:
    """A label whose options stand on lines of their own."""
    name, opened, options = method.removesuffix(")").partition("(")
    return literal("\n".join([name, *(options.split(", ") if opened else [])]))
