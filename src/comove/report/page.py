"""One HTML page of tables and PNG figures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from comove.store import write_bytes

__all__ = ["Section", "write_page"]


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
    html = environment.from_string(template).render(title=title, sections=sections, footer=footer)
    write_bytes(path, html.encode())
    return path
