"""How numbers are written, in every figure and table alike: thousands apart, a real minus, three digits of a score.

The page's ``numbers.js`` writes the same way.
"""

from __future__ import annotations

import math

__all__ = ["MINUS", "NOTHING", "fixed", "percent", "scored", "span"]

MINUS = "\u2212"
NOTHING = "\u2013"
"""Where there is no number."""
DIGITS = 3
SMALLEST, LARGEST = 1e-3, 1e6
"""Scores below the one, or from the other on, are written as powers of ten."""
RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def fixed(value: float, digits: int = DIGITS) -> str:
    """A number with so many decimals, thousands apart: ``1,234.500``; a dash for NaN and infinities."""
    if not math.isfinite(value):
        return NOTHING
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", MINUS)  # + 0.0: no minus before zero


def span(low: float, high: float, digits: int = DIGITS) -> str:
    """An interval: ``0.034 to 0.192``; a dash where there is none."""
    return f"{fixed(low, digits)} to {fixed(high, digits)}" if math.isfinite(low + high) else NOTHING


def percent(share: float) -> str:
    """A share in percent, to three digits and no further than it takes: ``10%``, ``0.25%``."""
    return f"{100 * share:.3g}%"


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
