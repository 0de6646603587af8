"""One HTML page of tables and PNG figures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from comove.plots.numbers import MINUS
from comove.store import write_bytes

__all__ = ["Section", "write_page"]

NUMBER = re.compile(r"-?[\d.,]+ ?%?( to -?[\d.,]+)?|[-\u2013]")


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, a paragraph, perhaps a table, and figures (paths relative to the page)."""

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[str] = ()


def write_page(path: Path, title: str, sections: Sequence[Section], footer: str) -> Path:
    """Write the page; everything in it is escaped."""
    import jinja2

    template = (resources.files("comove.report") / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(cell=_cell, numeric=_numeric, drawn=lambda figure: Path(figure).stem)
    html = environment.from_string(template).render(title=title, sections=sections, footer=footer)
    write_bytes(path, html.encode())
    return path


def _numeric(section: Section, column: int) -> bool:
    """Whether a column holds numbers, which stand on the right."""
    return column > 0 and all(NUMBER.fullmatch(row[column]) for row in section.rows)


def _cell(text: str) -> str:
    """A cell as it stands; numbers get a real minus."""
    return text.replace("-", MINUS) if len(text) > 1 and NUMBER.fullmatch(text) else text
