"""Class names in letters that matplotlib's own font lacks, and grey pictures the same way round everywhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, image

from comove.data import ExampleSet
from comove.plots import Picture, gallery
from comove.plots.drawing import new_figure
from comove.plots.fonts import fallbacks
from comove.report.thumbnails import pixels

CAT, SAUCER, ARABIC = "\u732b", "\U0001f6f8", "\u0636\u0641\u062f\u0639"


def black_squares(path: Path, name: str, letters: str) -> Path:
    """Write a font in which each of these letters is a black square, and nothing else is drawn."""
    builder = FontBuilder(1000, isTTF=True)
    names = {ord(letter): f"g{ord(letter)}" for letter in letters}
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    empty = TTGlyphPen(None).glyph()
    builder.setupGlyf({".notdef": empty, **dict.fromkeys(names.values(), pen.glyph())})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two fonts of Chinese letters, one of them with an emoji, and a broken one, beside those of matplotlib."""
    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(manager, "ttflist", own)
    for name, letters in (("A Narrow", CAT), ("B Wide", CAT + SAUCER)):
        manager.addfont(black_squares(tmp_path / f"{name}.ttf", name, letters))
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    manager.ttflist.append(font_manager.FontEntry(str(tmp_path / "broken.ttf"), name="Broken", style="normal"))
    fallbacks.cache_clear()
    yield
    fallbacks.cache_clear()


def ink(name: str) -> float:
    """How black a figure is with nothing but this name in it."""
    figure = new_figure(2, 1)
    axes = figure.subplots()
    axes.axis("off")
    axes.text(0.1, 0.5, name)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    picture.seek(0)
    return float((image.imread(picture)[..., :3] < 0.1).mean())


@pytest.mark.usefixtures("installed")
def test_the_font_with_most_of_the_letters_comes_first_and_those_without_any_not_at_all() -> None:
    assert fallbacks(frozenset(CAT + SAUCER)) == ("B Wide",)
    assert fallbacks(frozenset(CAT)) == ("A Narrow",)
    assert fallbacks(frozenset("\u3042")) == ()


@pytest.mark.usefixtures("installed")
def test_letters_that_an_installed_font_has_are_drawn_in_it_without_a_warning() -> None:
    square = ink(CAT)
    assert square > 0.005
    assert ink(CAT + SAUCER) == pytest.approx(2 * square, rel=0.15)
    assert 0 < ink(ARABIC) < square  # DejaVu Sans has these itself


@pytest.mark.usefixtures("installed")
def test_letters_that_no_font_has_are_told_by_matplotlib() -> None:
    with pytest.warns(UserWarning, match="Glyph 12354"):
        ink("\u3042")


def test_dark_and_bright_grey_pictures_are_drawn_the_same_way_round_as_in_the_report() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    examples = ExampleSet.from_arrays(torch.cat([ramp // 8, 255 - ramp // 8, ramp]), [0, 0, 0])
    figure = gallery([[Picture(examples.image(place), "") for place in range(3)]], "")
    for axes, wanted in zip(figure.axes, pixels(examples, examples.ids), strict=True):
        (shown,) = axes.get_images()
        colours = np.asarray(shown.to_rgba(np.asarray(shown.get_array())))[..., :3]
        np.testing.assert_allclose(255 * colours, wanted, atol=1)
