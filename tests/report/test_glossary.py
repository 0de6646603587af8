"""Definitions stand in one list: a page of the documentation is written from it, reports find terms by its words."""

from __future__ import annotations

from pathlib import Path

from comove.report.glossary import glossary_page, terms

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_the_documentation_is_written_from_the_list() -> None:
    written = (DOCS / "glossary.md").read_text(encoding="utf-8")
    assert written == glossary_page(), "docs/glossary.md is not that of the list; run: make glossary"


def test_every_word_leads_to_one_term_and_every_term_says_something() -> None:
    words = [word.lower() for term in terms() for word in term.words]
    assert len(words) == len(set(words)) > 40
    assert all(term.meaning and term.name for term in terms())


def test_terms_are_in_the_order_of_the_alphabet() -> None:
    names = [term.name.lower() for term in terms()]
    assert names == sorted(names)


def test_a_report_gets_sources_without_addresses_and_without_markdown() -> None:
    told = {term.name: term.to_json() for term in terms()}
    assert told["noise ceiling"]["source"] == "ours, decision 7; Spearman, 1904"
    assert "`" not in str(told["fixed-seed bank"]["meaning"])
