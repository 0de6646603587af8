"""The HTML page: well formed, everything escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from comove.errors import StorageError
from comove.report import Section, write_page

EVIL = "<script>alert(\"1\")</script> & 'x'"
VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def test_titles_class_names_cells_and_paths_are_escaped_everywhere(tmp_path: Path) -> None:
    section = Section(EVIL, EVIL, [EVIL, "b"], [[EVIL, "1"]], [f'figures/"onerror="alert(1)"{EVIL}.png'])
    page = read(write_page(tmp_path / "index.html", EVIL, [section], EVIL))
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 6
    assert {name for name, _ in page.attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "class",
        "src",
        "alt",
        "loading",
        "tabindex",
        "role",
        "aria-label",
        "scope",
    }
    assert ("src", f'figures/"onerror="alert(1)"{EVIL}.png') in page.attributes


def test_sections_stand_in_order_with_their_tables_and_figures(tmp_path: Path) -> None:
    sections = [
        Section(
            "First part",
            "words",
            ["method", "LDS"],
            [["cld", "0.1"], ["trak", "0.4"]],
            ["figures/a.png", "figures/b.png"],
        ),
        Section("Zwei", "Überprüfung ✓"),
    ]
    page = read(write_page(tmp_path / "index.html", "title", sections, "the very end"))
    assert (page.tags.count("section"), page.tags.count("table"), page.tags.count("img")) == (2, 1, 2)
    assert (page.tags.count("th"), page.tags.count("td")) == (2, 4)
    places = [
        page.text.index(word)
        for word in ("First part", "method", "cld", "trak", "Zwei", "Überprüfung ✓", "the very end")
    ]
    assert places == sorted(places)


def test_numbers_in_a_table_stand_on_the_right_with_a_real_minus_and_names_keep_their_hyphens(tmp_path: Path) -> None:
    rows = [["trak-1", "-0.002", "-0.1 to 1,000.5", "-"], ["-1", "0.3", "-", "a-b"]]
    page = read(write_page(tmp_path / "i.html", "t", [Section("a", "b", ["name", "LDS", "interval", "-2"], rows)], "f"))
    for text in ("trak-1", "\u22120.002", "\u22120.1 to 1,000.5", "a-b"):
        assert text in page.text
    assert [value for name, value in page.attributes if name == "class"].count("number") == 2 * 3


def test_a_page_without_sections_is_a_page(tmp_path: Path) -> None:
    assert "h1" in read(write_page(tmp_path / "index.html", "title", [], "foot")).tags


def test_it_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", "title", [Section("a", "b")], "foot")
    text = (tmp_path / "index.html").read_text()
    assert "http" not in text
    assert "<script" not in text


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Could not write"):
        write_page(tmp_path / "none" / "index.html", "title", [], "foot")
