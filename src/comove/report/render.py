"""The page put together: template, styles and scripts, and the data they show.

A content security policy in the page allows its own style and script, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comove.report.packing import json_for_script

__all__ = ["render"]

STYLES = ("base.css", "queries.css", "pages.css")
SCRIPTS = (
    "data.js",
    "numbers.js",
    "dom.js",
    "terms.js",
    "charts.js",
    "grid.js",
    "agreement.js",
    "detail.js",
    "pages.js",
    "main.js",
)


def render(payload: Mapping[str, Any], blocks: Mapping[str, str], sheets: Sequence[str]) -> str:
    """Return the page.

    Args:
        payload: a JSON object.
        blocks: base64 of arrays by name, read before the page is drawn.
        sheets: base64 of sprites, read behind it.
    """
    import jinja2

    folder = Path(__file__).parent / "parts"
    style, script = (
        "".join((folder / name).read_text(encoding="utf-8") for name in names) for names in (STYLES, SCRIPTS)
    )
    script = f'(() => {{\n"use strict";\n{script}\n}})();\n'
    style = "\n" + style
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    return template.render(
        title=payload["title"],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        payload=json_for_script(payload),
        blocks=blocks,
        sheets=sheets,
        terms=payload["terms"],
    )


def _hash(text: str) -> str:
    """What a content security policy knows an inline element by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
