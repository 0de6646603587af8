"""Pictures of examples as sprites: sheets of 256 small images, which the page decodes when it shows one of them.

A sheet of neighbours in WebP takes a third of what single files do, and the page opens without decoding any. Quality,
then size, give way until all sheets fit into the room there is.

Shape suffixes: P examples, B of one sheet, H x W pixels of one image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.data import ExampleSet, Ids
from comove.report.packing import base64_of

__all__ = ["PER_SHEET", "Sheets", "is_image", "pixels", "sheets_of"]

COLUMNS = 16
PER_SHEET = COLUMNS * COLUMNS
SIDE = 64
"""The longest side of a thumbnail; smaller images keep their size."""
CRISP = 48
"""Images up to this side are enlarged pixel by pixel; larger ones smoothly."""
LOSSLESS_ROOM = 2 << 20
"""Without loss only where all sheets together stay below this: a heavier page serves none."""
SAMPLES = 3
Pixels = npt.NDArray[np.uint8]


class Level(NamedTuple):
    """How sheets are written: quality (``None``: without loss), and the share of the side that is kept."""

    quality: int | None
    scale: float


LEVELS = (
    Level(None, 1.0),
    Level(88, 1.0),
    Level(75, 1.0),
    Level(60, 1.0),
    Level(45, 1.0),
    Level(60, 0.7),
    Level(45, 0.5),
    Level(40, 0.35),
    Level(30, 0.2),
)


@dataclass(frozen=True)
class Sheets:
    """Sprites of P images.

    Attributes:
        encoded: base64 of one file a sheet.
        mime: their type.
        height: of one image, in pixels.
        width: likewise.
        quality: of the compression; ``None`` without loss.
        full_size: (height, width) of the inputs themselves.
    """

    encoded: tuple[str, ...]
    mime: str
    height: int
    width: int
    quality: int | None
    full_size: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        own = {name: getattr(self, name) for name in ("mime", "height", "width", "quality")}
        crisp = max(self.full_size) <= CRISP
        return {**own, "full": list(self.full_size), "columns": COLUMNS, "per": PER_SHEET, "crisp": crisp}


def is_image(examples: ExampleSet) -> bool:
    """Whether the inputs are images: (1, H, W) or (3, H, W)."""
    if examples.structured:
        return False
    shape = examples.input_shape
    return len(shape) == 3 and shape[0] in (1, 3)


def pixels(examples: ExampleSet, ids: Ids) -> Pixels:
    """Return images as (B, H, W, 3) 8-bit; inputs that are not 8-bit are stretched from their lowest to their highest.

    Args:
        examples: images.
        ids: (B,) int64.
    """
    raw_BCHW = examples.raw(examples.positions(ids)).numpy()
    if raw_BCHW.dtype != np.uint8:
        values = raw_BCHW.astype(np.float32)
        low, high = (end(values, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
        raw_BCHW = (255 * (values - low) / np.where(high > low, high - low, 1)).round().astype(np.uint8)
    if raw_BCHW.shape[1] == 1:
        raw_BCHW = raw_BCHW.repeat(3, axis=1)
    return raw_BCHW.transpose(0, 2, 3, 1)


def sheets_of(parts: Sequence[tuple[ExampleSet, Ids]], room: int) -> Sheets:
    """Draw the sheets of these examples, one part after another, within ``room`` bytes of base64 where that can be.

    Args:
        parts: example sets of images, and the ids of them that are shown.
        room: bytes for all sheets together.
    """
    _, height, width = parts[0][0].input_shape
    places = _places(parts)
    for number, level in enumerate(LEVELS):
        size = _scaled(height, width, level.scale)
        allowed = min(room, LOSSLESS_ROOM) if level.quality is None else room
        if number < len(LEVELS) - 1 and _estimate(parts, places, size, level.quality) > allowed:
            continue
        files, mime = _encode_all(parts, places, size, level.quality)
        if sum(map(len, files)) <= allowed:
            break
    return Sheets(tuple(files), mime, *size, level.quality, (height, width))


def _places(parts: Sequence[tuple[ExampleSet, Ids]]) -> list[tuple[int, Ids]]:
    """(which part, ids) of each sheet; a part begins on a sheet of its own."""
    return [
        (number, ids[start : start + PER_SHEET])
        for number, (_, ids) in enumerate(parts)
        for start in range(0, ids.size, PER_SHEET)
    ]


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    ratio = min(1.0, SIDE / max(height, width))
    if max(height, width) * ratio * scale < 8:  # nothing would be seen
        scale = min(1.0, 8 / (max(height, width) * ratio))
    return max(1, round(height * ratio * scale)), max(1, round(width * ratio * scale))


def _estimate(
    parts: Sequence[tuple[ExampleSet, Ids]], places: Sequence[tuple[int, Ids]], size: tuple[int, int], q: int | None
) -> float:
    """Bytes of base64 that all sheets would take, from a few of them."""
    chosen = np.unique(np.linspace(0, len(places) - 1, min(SAMPLES, len(places))).round().astype(int))
    sample = [places[i] for i in chosen]
    files, _ = _encode_all(parts, sample, size, q)
    share = sum(ids.size for _, ids in places) / sum(ids.size for _, ids in sample)
    return float(sum(map(len, files)) * share)


def _encode_all(
    parts: Sequence[tuple[ExampleSet, Ids]], places: Sequence[tuple[int, Ids]], size: tuple[int, int], q: int | None
) -> tuple[list[str], str]:
    mime = ""
    files = []
    for number, ids in places:
        content, mime = _encode(_compose(_resized(pixels(parts[number][0], ids), size)), q)
        files.append(base64_of(content))
    return files, mime


def _resized(images_BHWc: Pixels, size: tuple[int, int]) -> Iterator[Pixels]:
    from PIL import Image

    for image in images_BHWc:
        if image.shape[:2] == size:
            yield image
        else:
            yield np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def _compose(images: Iterator[Pixels]) -> Pixels:
    """One sheet, row by row; it is as large as its images need."""
    tiles = list(images)
    height, width = tiles[0].shape[:2]
    columns = min(COLUMNS, len(tiles))
    sheet = np.zeros((math.ceil(len(tiles) / COLUMNS) * height, columns * width, 3), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // COLUMNS * height, i % COLUMNS * width
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _encode(sheet: Pixels, quality: int | None) -> tuple[bytes, str]:
    from PIL import Image, features

    image, file = Image.fromarray(sheet), io.BytesIO()
    if features.check("webp"):
        options: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality, "method": 4}
        image.save(file, "WEBP", **options)
        return file.getvalue(), "image/webp"
    if quality is None:
        image.save(file, "PNG", optimize=True)
        return file.getvalue(), "image/png"
    image.save(file, "JPEG", quality=quality)
    return file.getvalue(), "image/jpeg"
