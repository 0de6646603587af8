"""Examples as pictures, in rows with a few words over each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.errors import InputError
from comove.plots.drawing import broken, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "gallery", "thumbnail"]


@dataclass(frozen=True)
class Picture:
    """An example's input as it is, (1 or 3, H, W), what is written over it, and in which colour."""

    raw: npt.NDArray[Any]
    text: str
    colour: str = "black"


def thumbnail(raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an input (1 or 3, H, W) as an image: (H, W), or (H, W, 3) for colours, in [0, 1].

    Eight-bit inputs are divided by 255; others are stretched from their lowest to their highest value.

    Raises:
        InputError: inputs that are no images.
    """
    if raw.ndim != 3 or raw.shape[0] not in (1, 3):
        raise InputError(f"Inputs of shape {raw.shape} are no images.")
    low, high = (0.0, 255.0) if raw.dtype == np.uint8 else (float(raw.min()), float(raw.max()))
    raw = (raw.astype(np.float32) - low) / (high - low) if high > low else np.zeros(raw.shape, np.float32)
    return raw[0] if raw.shape[0] == 1 else raw.transpose(1, 2, 0)


def gallery(rows: Sequence[Sequence[Picture]], title: str, *, columns: int = 0, sides: Sequence[str] = ()) -> Figure:
    """Rows of pictures.

    Args:
        rows: the pictures.
        title: over all of them.
        columns: at least so many; further ones stay empty.
        sides: what is written beside each row.

    Raises:
        InputError: no row, or inputs that are no images.
    """
    if not rows:
        raise InputError("There is no picture to draw.")
    columns = max(columns, *map(len, rows))
    figure = new_figure(0.8 + 1.0 * columns, 1.32 * len(rows) + 0.5)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for cells, pictures in zip(grid, rows, strict=True):
        for axes in cells:
            axes.axis("off")
        for axes, picture in zip(cells, pictures, strict=False):
            _show(axes, picture)
    for cells, side in zip(grid, sides, strict=False):
        beside: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "transform": cells[0].transAxes}
        cells[0].text(-0.1, 0.5, broken(side), fontsize=8, **beside)
    figure.suptitle(literal(title), fontsize=10)
    return figure


def _show(axes: Axes, picture: Picture) -> None:
    image = thumbnail(picture.raw)
    if image.ndim == 3:
        axes.imshow(image)
    else:
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)  # as in the report: 0 is black, whatever the picture
    axes.set_title(literal(picture.text), fontsize=7, color=picture.colour, pad=2)
