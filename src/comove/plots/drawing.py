"""What every figure is drawn with: a canvas without a display or global state, colours, and text as it stands."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comove.plots.chart import Style
from comove.store import new_folder, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "HELP",
    "HURT",
    "NEUTRAL",
    "broken",
    "legend_beside",
    "line_of",
    "literal",
    "new_figure",
    "save_figure",
]

HELP, HURT, NEUTRAL = "#0072b2", "#d55e00", "#555555"  # distinguishable with every kind of colour blindness
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
PALETTE = {"control": NEUTRAL, "level": "black", **{f"c{number}": colour for number, colour in enumerate(COLOURS)}}
WIDTHS = {"control": 1.5, "level": 1.2}
MARKERS = dict(
    zip(("circle", "square", "diamond", "triangle", "down", "plus", "cross", "dot"), "osD^vPX.", strict=True)
)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, which shows itself in notebooks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from comove.plots.fonts import WideCoverage

    figure = Figure(figsize=(width, height), layout=WideCoverage())
    FigureCanvasAgg(figure)
    figure.__dict__["_repr_png_"] = partial(_png, figure, dpi=100)  # made without pyplot, no notebook would show it
    return figure


def _png(figure: Figure, dpi: int) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    return picture.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically, and return its path.

    Raises:
        StorageError: it cannot be written.
    """
    picture = _png(figure, dpi=130)
    new_folder(path.parent)
    write_bytes(path, picture)
    return path


def line_of(style: Style) -> dict[str, Any]:
    """A style as matplotlib takes it."""
    drawn: dict[str, Any] = {"color": PALETTE[style.colour], "linewidth": WIDTHS.get(style.colour, 1.8)}
    drawn["linestyle"] = (0, style.dash) if style.dash else "-"
    return drawn | ({"marker": MARKERS[style.mark], "markersize": 5} if style.mark else {})


def literal(text: object) -> str:
    """Text as it stands: a dollar sign in a class name starts no formula."""
    return str(text).replace("$", r"\$")


def legend_beside(axes: Axes) -> None:
    """Put the legend on the right of the plot, where it covers nothing."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)


def broken(method: str) -> str:
    """A label whose options, in brackets right behind a name, stand on lines of their own."""
    name, opened, options = method.removesuffix(")").partition("(")
    if not opened or name.endswith(" "):
        return literal(method)
    return literal("\n".join([name, *options.split(", ")]))
