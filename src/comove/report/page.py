"""One HTML page of tables and PNG figures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comove.store import write_bytes

__all__ = ["Section", "write_page"]

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; background: white; border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #8886; text-align: left; }
footer { margin-top: 3rem; font-size: .85rem; opacity: .8; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ title }}</h1>
{% for section in sections %}<section>
<h2>{{ section.title }}</h2>
<p>{{ section.text }}</p>
{% if section.rows %}<div class="scroll"><table><thead><tr>{% for name in section.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}
{% for figure in section.figures %}<p><img src="{{ figure }}" alt="{{ section.title }}: {{ figure }}" loading="lazy"></p>
{% endfor %}</section>
{% endfor %}<footer>{{ footer }}</footer>
</body></html>
"""


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

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(_TEMPLATE).render(title=title, sections=sections, footer=footer)
    write_bytes(path, html.encode())
    return path
