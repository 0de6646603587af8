"""Letters that matplotlib's own font lacks, such as Chinese class names, from whatever fonts are installed.

Before a figure is laid out, every text with letters that DejaVu Sans lacks gets the installed fonts that have them
as fallbacks; nothing global is set, and no font is shipped. Letters that no font has stay boxes, and matplotlib warns.
"""

from __future__ import annotations

from collections.abc import Set
from functools import cache
from typing import TYPE_CHECKING

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine, LayoutEngine
from matplotlib.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["WideCoverage", "add_fallbacks", "fallbacks"]

PLAIN = "DejaVu Sans"
BOXES = ("Last Resort", "LastResort", ".LastResort")
"""Fonts that have every letter, as a box."""
FAVOURED = "Noto Sans"
"""Fonts whose names begin so come first among those that have equally many of the letters."""


class WideCoverage(LayoutEngine):
    """The constrained layout, of texts in fonts that have their letters."""

    _adjust_compatible = False
    _colorbar_gridspec = False

    def __init__(self) -> None:
        super().__init__()
        self._layout = ConstrainedLayoutEngine()

    def execute(self, fig: Figure) -> None:
        """Choose fonts, then place everything; matplotlib calls this before it draws."""
        add_fallbacks(fig)
        self._layout.execute(fig)


def add_fallbacks(figure: Figure) -> None:
    """Give every text of a figure the fonts that its letters need."""
    texts = [one for one in figure.findobj(Text) if isinstance(one, Text)]
    for text in texts:
        if lacking := frozenset(_lacking(text.get_text(), PLAIN)):
            text.set_fontfamily([*text.get_fontfamily(), *fallbacks(lacking)])


def _lacking(letters: str, family: str) -> Set[str]:
    found = {letter for letter in letters if ord(letter) > 127 and not letter.isspace()}
    return found - _covered(frozenset(found), font_manager.findfont(family)) if found else found


@cache
def fallbacks(letters: frozenset[str]) -> tuple[str, ...]:
    """Return the names of installed fonts that together have these letters, as far as any has: the widest first."""
    upright = [entry for entry in font_manager.fontManager.ttflist if entry.style == "normal"]
    known = {entry.name: entry.fname for entry in upright if not entry.name.startswith(BOXES)}
    left, chosen = letters, []
    covered = {name: _covered(letters, path) for name, path in known.items()} if letters else {}
    while left and covered:
        best = min(covered, key=lambda name: (-len(covered[name] & left), not name.startswith(FAVOURED), name))
        if not covered[best] & left:
            break
        chosen.append(best)
        left -= covered[best]
    return tuple(chosen)


@cache
def _covered(letters: frozenset[str], path: str) -> frozenset[str]:
    """Which of these letters a font draws; none where it holds bitmaps alone, or cannot be read."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(letter for letter in letters if font.scalable and font.get_char_index(ord(letter)))
