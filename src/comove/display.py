"""How results are written: numbers as text, in every figure and table alike, and small HTML tables in notebooks.

Thousands apart, a real minus, three digits of a score; the report's ``numbers.js`` writes the same way. Class names and
everything else that comes from data are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "MINUS",
    "NOTHING",
    "are_counts",
    "counted",
    "fixed",
    "html_facts",
    "html_table",
    "percent",
    "plain",
    "plain_score",
    "scored",
    "short",
    "span",
    "whole_percent",
]

MOST_ROWS = 12
MINUS = "\u2212"
NOTHING = "\u2013"
"""Where there is no number."""
DIGITS = 3
SMALLEST, LARGEST = 1e-3, 1e6
"""Scores below the one, or from the other on, are written as powers of ten."""
RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")

# --- numbers -----------------------------------------------------------------------------------------------------


def plain(value: float | None, digits: int = DIGITS) -> str:
    """A number with so many decimals in plain letters, for terminals; a hyphen where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before zero


def fixed(value: float, digits: int = DIGITS) -> str:
    """A number with so many decimals, thousands apart: ``1,234.500``; a dash for NaN and infinities."""
    return plain(value, digits).replace("-", MINUS) if math.isfinite(value) else NOTHING


def span(low: float, high: float, digits: int = DIGITS) -> str:
    """An interval: ``0.034 to 0.192``; a dash where there is none."""
    return f"{fixed(low, digits)} to {fixed(high, digits)}" if math.isfinite(low + high) else NOTHING


def percent(share: float) -> str:
    """A share in percent, to three digits and no further than it takes: ``10%``, ``0.25%``."""
    return f"{100 * share:.3g}%"


def whole_percent(share: float) -> str:
    """A share in whole percent, without a sign at 0: ``62%``, ``0%`` for -0.002."""
    return f"{round(share, 2) + 0.0:.0%}"


def scored(value: float, *, plus: bool = True, counts: bool = False) -> str:
    """A score to three digits, zeros at its end included: ``+0.740``, ``1,234``; ``1.2x10^-5`` beyond 0.001 and 10^6.

    Args:
        value: of any size.
        plus: whether positive ones have a sign.
        counts: whether it is one of whole numbers, such as of forgettings, which have no decimals.
    """
    if not math.isfinite(value) or value == 0:
        return NOTHING if value != 0 else "0"
    sign = MINUS if value < 0 else "+" if plus else ""
    if counts and abs(value) < LARGEST:
        return f"{sign}{abs(value):,.0f}"
    size = float(f"{abs(value):.{DIGITS - 1}e}")
    if SMALLEST <= size < LARGEST:
        whole = math.floor(math.log10(size)) + 1
        return f"{sign}{abs(value) if whole > DIGITS else size:,.{max(0, DIGITS - whole)}f}"
    mantissa, power = f"{abs(value):.1e}".split("e")
    return f"{sign}{mantissa}\u00d710{str(int(power)).translate(RAISED)}"


def plain_score(value: float) -> str:
    """A score to three digits in plain letters, for terminals: ``+0.740``, ``-1,234``, ``+1.2e-05``.

    >>> plain_score(-1234.4), plain_score(0.74), plain_score(1.2e-5)
    ('-1,234', '+0.740', '+1.2e-05')
    """
    text = scored(value)
    return f"{value:+.1e}" if "\u00d7" in text else text.replace(MINUS, "-").replace(NOTHING, "-")


def are_counts(scores: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether scores are whole numbers, such as of forgettings, which :func:`scored` writes without decimals."""
    return bool((scores % 1 == 0).all())  # of infinities and NaN the remainder is NaN


def counted(number: int, one: str) -> str:
    """A number with its word: ``1 model``, ``1,200 models``, ``2 queries``."""
    more = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    return f"{number:,} {one if number == 1 else more}"


def short(text: object, letters: int = 16) -> str:
    """A name that fits over a picture."""
    whole = str(text)
    return whole if len(whole) <= letters else whole[: letters - 1].rstrip() + "\u2026"


# --- tables in notebooks -----------------------------------------------------------------------------------------


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, most: int = MOST_ROWS) -> str:
    """Return an HTML table, everything in it escaped; of more than ``most`` rows the first, and how many there are.

    Floats are shown with four significant digits, ``None`` and NaN as a dash.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows[:most])
    rest = f"<p>{len(rows) - most:,} more rows</p>" if len(rows) > most else ""
    return f"<div><p>{escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}</div>"


def html_facts(title: str, facts: Mapping[str, object]) -> str:
    """Return an HTML table of names and values, escaped."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{_cell(value)}</td></tr>" for name, value in facts.items())
    return f"<div><p>{escape(title)}</p><table><tbody>{body}</tbody></table></div>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if value == value else "&ndash;"
    return "&ndash;" if value is None else escape(f"{value:,}" if type(value) is int else str(value))
