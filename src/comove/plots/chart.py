"""A chart of measured methods as plain values: drawn by matplotlib (:mod:`comove.plots.draw`) and by the HTML report.

A result says what is drawn (series, levels, labels, styles, the table beside it); how is up to the two that draw it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any, Literal

__all__ = ["Chart", "Level", "Series", "Style", "Table", "is_control", "is_wide", "line_styles", "styled"]

Dash = tuple[float, ...]
MARKS = ("circle", "square", "diamond", "triangle", "down", "plus", "cross")
COLOURS = 8
"""Together with the marks 56 looks before one comes again; the colours themselves belong to those that draw."""
CONTROL_DASHES: tuple[Dash, ...] = ((3.7, 1.6), (1, 1.65), (6.4, 1.6, 1, 1.6), (10, 3), (5, 2, 1, 2, 1, 2))
MANY = 3
"""The intervals of more methods than these, drawn as bands in one plot, would cover each other."""
WIDE = 8
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""


@dataclass(frozen=True)
class Style:
    """How a line is drawn, so that methods differ in grey print too.

    Attributes:
        colour: ``"c0"`` to ``"c7"``, ``"control"`` (grey) or ``"level"`` (black).
        mark: at each point: one of :data:`MARKS`, ``"dot"``, or none.
        dash: lengths of strokes and gaps in line widths; empty for a solid line.
    """

    colour: str = "c0"
    mark: str = ""
    dash: Dash = ()


LEVEL = Style("level", dash=(5, 4))


@dataclass(frozen=True)
class Series:
    """One method: points (x, y, low, high), NaN where a value is unknown."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    control: bool = False
    style: Style = field(default_factory=Style)

    @property
    def last(self) -> float:
        """The last y that is known; minus infinity if none is."""
        known = [point[1] for point in self.points if point[1] == point[1]]
        return known[-1] if known else -math.inf


@dataclass(frozen=True)
class Level:
    """What all methods are compared with: a line across the chart, with an interval where one is known."""

    name: str
    at: float
    low: float = math.nan
    high: float = math.nan
    style: Style = LEVEL


@dataclass(frozen=True)
class Table:
    """The numbers of a chart, as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes:
        kind: bars along x (one point a series), lines over x, or steps.
        title: heading in the report.
        x: title of the axis.
        y: likewise.
        series: the methods; see :func:`styled`.
        levels: horizontal lines (of bars: vertical ones).
        panel: what this chart is of among others beside it, such as the output measured.
        caption: what was measured, in a line.
        log: whether x is logarithmic.
        limits: of y; ``None`` for what the values need.
        zero: whether y = 0 is shown.
        named: (x, text) of the ticks, where they are more than numbers.
        hollow: points (x, y) drawn hollow, and ``hollow_name``, what that means.
        table: the numbers.
        notes: what a reader should know, a sentence each.
    """

    kind: Literal["bars", "lines", "steps"]
    title: str
    x: str
    y: str
    series: Sequence[Series]
    table: Table
    levels: Sequence[Level] = ()
    panel: str = ""
    caption: str = ""
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    zero: bool = False
    named: Sequence[tuple[float, str]] = ()
    hollow: Sequence[tuple[float, float]] = ()
    hollow_name: str = ""
    notes: Sequence[str] = ()

    @property
    def methods(self) -> list[Series]:
        """The series that are neither controls nor a ceiling."""
        return [one for one in self.series if one.style.colour not in ("control", "level")]

    @property
    def crowded(self) -> bool:
        """Whether lines are drawn together without their intervals, and then each alone with its own."""
        has_intervals = any(low == low for one in self.methods for _, _, low, _ in one.points)
        return self.kind != "bars" and len(self.methods) > MANY and has_intervals

    def to_json(self) -> dict[str, Any]:
        """As a JSON object for the report."""
        return {**asdict(self), "crowded": self.crowded}


def is_control(method: object) -> bool:
    """Whether a method is there to be surpassed."""
    return "control" in str(method)


def is_wide(values: Sequence[float]) -> bool:
    """Whether an axis over these values should be logarithmic."""
    return bool(values) and 0 < WIDE * min(values) <= max(values)


def line_styles(methods: Sequence[str], controls: Sequence[str] = ()) -> dict[str, Style]:
    """How each method's line is drawn: solid and coloured, or dashed and grey for controls.

    Args:
        methods: names, each once.
        controls: those that are controls though their name does not say so.
    """
    grey = [name for name in methods if is_control(name) or name in controls]
    coloured = [name for name in methods if name not in grey]
    styles = {
        name: Style(f"c{number % COLOURS}", mark, () if number < COLOURS else (7, 1.5))
        for number, (name, mark) in enumerate(zip(coloured, cycle(MARKS), strict=False))
    }
    styles |= {name: Style("control", "dot", dash) for name, dash in zip(grey, cycle(CONTROL_DASHES), strict=False)}
    return {name: styles[name] for name in methods}


def styled(lines: Mapping[str, Sequence[Sequence[float]]], controls: Sequence[str] = ()) -> list[Series]:
    """Series from points (x, y) or (x, y, low, high) by method, each with a style of its own."""
    return [
        Series(name, [_point(*point) for point in lines[name]], style.colour == "control", style)
        for name, style in line_styles(list(lines), controls).items()
    ]


def _point(x: float, y: float, low: float = math.nan, high: float = math.nan) -> tuple[float, float, float, float]:
    return x, y, low, high
