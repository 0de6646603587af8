"""How results show themselves: a small table in a notebook, and a figure when one is asked for.

Class names and everything else that comes from data are escaped. Figures are drawn in ``comove.report``, which stands
above all results in the order of imports; a result names the figure, and it is looked up when somebody plots.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["counted", "figure", "html_facts", "html_table"]

MOST_ROWS = 12


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


def counted(number: int, one: str) -> str:
    """A number with its word: ``1 model``, ``1,200 models``, ``2 queries``."""
    more = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    return f"{number:,} {one if number == 1 else more}"


def figure(name: str, *arguments: Any) -> Figure:
    """Draw the figure called ``name`` of ``comove.report``; it shows itself in notebooks, and ``savefig`` keeps it."""
    drawn: Figure = getattr(importlib.import_module("comove.report"), name)(*arguments)
    drawn.__dict__["_repr_png_"] = partial(_png, drawn)  # made without pyplot, no notebook would show it
    return drawn


def _png(drawn: Figure) -> bytes:
    picture = io.BytesIO()
    drawn.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
