"""Numbers, cells and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from comove.evaluation import LDS, Brittleness, paired_difference

__all__ = ["amount", "cell", "drop", "folded", "number", "share", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def folded(title: str, text: str) -> list[str]:
    """Markdown under a title that a click unfolds."""
    return [f"<details>\n<summary>{title}</summary>\n", text, "</details>\n"]


def number(value: float | None) -> str:
    """Three digits; nothing for what is not known."""
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def amount(value: float | None, unit: float, form: str) -> str:
    """A value in a unit; nothing for what is not known."""
    return "" if value is None or math.isnan(value) else form.format(value / unit)


def cell(result: LDS, column: Sequence[LDS]) -> str:
    """An LDS with its interval, and a star where nothing in its column is decidedly better."""
    if math.isnan(result.mean):
        return ""
    low, high = (round(bound, 2) + 0.0 for bound in result.interval or (math.nan, math.nan))  # + 0.0: no "-0.00"
    text = f"{round(result.mean, 3) + 0.0:.3f} [{low:.2f}, {high:.2f}]"
    if not column or result.noise_ceiling == 0:  # where nothing can be told apart, nothing is best
        return text
    best = max(column, key=lambda other: -math.inf if math.isnan(other.mean) else other.mean)
    gap = paired_difference(best, result)
    return text if gap.interval[0] > 0 else f"{text} *"


def drop(estimate: tuple[float, float, float]) -> str:
    """A mean with its interval."""
    value, low, high = (round(bound, 2) + 0.0 for bound in estimate)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if not math.isnan(low) else f"{value:.2f}"


def share(found: Brittleness, method: str, k: int) -> str:
    """The share of predictions that a method's k removals flip, with its interval."""
    value, low, high = found.rate(method, k)
    return f"{value:.0%} [{low:.0%}, {high:.0%}]" if not math.isnan(low) else f"{value:.0%}"
