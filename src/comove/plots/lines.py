"""How the lines of several methods are told apart: by colour, by mark and by dashes, so that grey print does too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from comove.plots.drawing import COLOURS, NEUTRAL

__all__ = ["is_control", "line_styles", "styles_with_random"]

MARKERS = "osD^vP*"
CONTROL_STYLES = ("--", ":", "-.", (0, (10, 3)), (0, (5, 2, 1, 2, 1, 2)))


def is_control(method: object) -> bool:
    """Whether a method is there to be surpassed."""
    return "control" in str(method)


def line_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each method's line is drawn, in the order of the legend: coloured ones first, then grey, dashed controls."""
    styles: dict[str, dict[str, Any]] = {}
    real, controls = ([name for name in methods if is_control(name) == wanted] for wanted in (False, True))
    for place, (name, colour, marker) in enumerate(zip(real, cycle(COLOURS), cycle(MARKERS), strict=False)):
        dashes = "-" if place < len(COLOURS) else (0, (7, 1.5))
        styles[name] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.8, "linestyle": dashes}
    for name, gaps in zip(controls, cycle(CONTROL_STYLES), strict=False):
        styles[name] = {"color": NEUTRAL, "linestyle": gaps, "marker": ".", "linewidth": 1.5}
    return styles


def styles_with_random(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Lines as everywhere, in the order given; a random choice is drawn as a control is."""
    marked = {method: f"{method} control" if method.startswith("random") else method for method in methods}
    styles = line_styles(list(marked.values()))
    return {method: styles[name] for method, name in marked.items()}
