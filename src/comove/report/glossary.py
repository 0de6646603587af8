"""What the terms in a report mean: read from ``parts/glossary.md``, of which ``docs/glossary.md`` is written as well.

``make glossary`` writes that page; a test holds it to the list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Term", "glossary_page", "terms"]

LIST = Path(__file__).parent / "parts" / "glossary.md"
HEAD = """# Glossary

The terms that comove uses, each with its source. Code, messages and pages use these words and no others for these
things, and a [report](report.md) explains them one click away.

| term | meaning | source |
|---|---|---|
"""


@dataclass(frozen=True)
class Term:
    """One term.

    Attributes:
        name: or names, the most usual first.
        meaning: in a sentence.
        source: who introduced it, as Markdown; empty for what is in every textbook.
        words: under which a report finds it in its own text; none for what no report speaks of.
    """

    name: str
    meaning: str
    source: str
    words: tuple[str, ...]

    def to_json(self) -> dict[str, str | list[str]]:
        """For the page: without the addresses of links, and without Markdown."""
        told = {"name": self.name, "meaning": _plain(self.meaning), "source": _plain(self.source)}
        return {**told, "words": list(self.words)}


def _plain(text: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def terms() -> list[Term]:
    """All terms, by name."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    return [
        Term(name, meaning, source, tuple(filter(None, words.split(", ")))) for name, meaning, source, words in rows
    ]


def glossary_page() -> str:
    """Return ``docs/glossary.md``."""
    return HEAD + "".join(f"| {one.name} | {one.meaning} |{f' {one.source} '.replace('  ', ' ')}|\n" for one in terms())
