"""What helps to read a report: definitions, files, addresses, what stays in sight, figures of many methods."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from comove.attribution import CLD, Scores
from comove.data import Splits
from comove.evaluation import LDS, Brittleness, Curve
from comove.evaluation.prediction_brittleness.models import FullData
from comove.report import Suspects, write_report
from comove.report.glossary import terms
from comove.trace import Trace
from comove.training import Run

Open = Callable[..., Any]
NAMES = ("cld", "trak(dim=2)", "tracin", "gauss-newton(share=0.9)", "arnoldi", "a method with a very long name indeed")
CONTROLS = ("random removal", "same-class removal")
KS = (5, 10, 20, 50, 100)


def removals() -> Brittleness:
    """Six methods and two controls from nowhere."""
    rng = np.random.default_rng(0)
    names, queries, models = NAMES + CONTROLS, 30, 3
    share_MK = np.linspace(0.9, 0.1, len(names))[:, None] * np.linspace(0.2, 1, len(KS))
    flips = rng.random((len(names), queries, len(KS), models)) < share_MK[:, None, :, None]
    zeros, ones = np.zeros((5, queries), np.int32), np.ones((5, queries), np.float32)
    emptied = np.zeros(flips.shape[:3], bool)
    emptied[1, 0, -1] = True
    margins = rng.normal(size=flips.shape).astype(np.float32)
    full, ids = FullData(zeros, ones, zeros, ones), np.arange(queries)
    return Brittleness(names, CONTROLS, KS, flips.astype(np.int32), margins, full, emptied, ids, zeros[0].astype(int))


@pytest.fixture(scope="module")
def files(small_digits: Splits) -> Splits:
    """The digits as if they came from files with names that mean something in addresses."""
    parts = {}
    for name in ("train", "validation", "query"):
        part = getattr(small_digits, name)
        if part is not None:
            parts[name] = part.with_sources([f"a b/50% #{id_}?/\u00fc&{id_}.png" for id_ in part.ids.tolist()])
    return replace(small_digits, **parts)


@pytest.fixture(scope="module")
def scores(runs: tuple[Run, ...]) -> tuple[Scores, ...]:
    """One method for all queries, and another that one example hurts always."""
    cld = CLD().fit(runs).attribute()
    values = np.array(cld.values)
    values[5] = -9
    hurt = Scores(values, cld.train_ids, cld.query_ids, "trak", cld.train_labels, cld.query_labels, cld.classes)
    return cld, hurt


@pytest.fixture(scope="module")
def report(
    runs: tuple[Run, ...],
    scores: tuple[Scores, ...],
    files: Splits,
    lds: Callable[..., LDS],
    curve: Curve,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A report of files with every page; of one method the LDS is known."""
    results = [lds(method="cld", mean=0.1), removals(), curve, Suspects("aum", runs[0].trace.train_ids[:7], np.ones(7))]
    return write_report(tmp_path_factory.mktemp("r") / "report.html", runs, scores, results, dataset=files, top=4)


# --- definitions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1300])
def test_a_term_shows_its_definition_by_keyboard_and_gives_the_focus_back(
    visit: Open, report: Path, width: int
) -> None:
    page = visit(report, "#lds", width=width)
    term = page.locator("#panel-lds .term", has_text="noise ceiling").first
    term.focus()
    page.keyboard.press("Enter")
    box = page.locator("#definition")
    (own,) = (one for one in terms() if one.name == "noise ceiling")
    assert own.meaning in box.inner_text()
    edges = box.bounding_box()
    assert edges["x"] >= 0
    assert edges["x"] + edges["width"] <= width
    assert edges["y"] + edges["height"] <= 900
    page.keyboard.press("Escape")
    assert not box.is_visible()
    assert page.evaluate("document.activeElement.textContent") == "noise ceiling"


def test_a_term_within_a_definition_shows_its_own(visit: Open, report: Path) -> None:
    page = visit(report, "#lds")
    page.locator("#panel-lds th .term", has_text="of the ceiling").click()
    page.locator("#definition .term", has_text="LDS").click()
    assert page.locator("#definition h3").inner_text() == "linear datamodeling score (LDS)"
    page.locator("#definition button", has_text="All terms").click()
    assert page.locator("#terms dl").is_visible()


@pytest.mark.parametrize("anchor", ["", "#lds", "#brittleness", "#curves", "#suspects"])
def test_every_term_in_our_own_text_can_be_asked_for_on_its_page(visit: Open, report: Path, anchor: str) -> None:
    page = visit(report, anchor)
    panel = page.locator("[role=tabpanel]:visible")
    texts = panel.locator("p.about, figcaption + * ~ p.quiet, thead th, svg .title").all_text_contents()
    offered = {text.lower() for text in panel.locator(".term").all_text_contents()}
    by_word = {word.lower(): term.name for term in terms() for word in term.words}
    reached = {by_word.get(word) for word in offered}
    pattern = "|".join(sorted(map(re.escape, by_word), key=len, reverse=True))
    spoken = {word.lower() for text in texts for word in re.findall(rf"(?<![\w-])(?:{pattern})(?![\w-])", text, re.I)}
    assert [word for word in spoken if by_word[word] not in reached] == []
    assert reached - {None}


def test_a_methods_name_tells_what_it_does(visit: Open, report: Path) -> None:
    page = visit(report)
    page.locator(".method h3 .term").first.click()
    assert CLD.summary in page.locator("#definition").inner_text()


def test_definitions_can_be_read_without_javascript(visit: Open, report: Path) -> None:
    page = visit(report, java_script_enabled=False)
    page.locator("#terms summary").click()
    told = page.locator("#terms dl").inner_text()
    assert all(term.name in told for term in terms() if term.words)


# --- ids and files ------------------------------------------------------------------------------------------------


def test_every_tile_and_tooltip_names_id_and_file(visit: Open, report: Path, files: Splits) -> None:
    page = visit(report)
    page.locator("#tab-suspects").click()
    page.locator("#tab-queries").click()
    for kind, count in ((".card", 40), (".example", 16), (".suspect", 7)):
        tiles = page.locator(kind).evaluate_all(
            """(all) => all.map((one) =>
              [one.title, ...[...one.querySelectorAll(".file")].map((tag) => tag.textContent)])"""
        )
        assert len(tiles) == count
        for title, id_, file in tiles:
            number = int(id_.removeprefix("#"))
            assert file == files.sources[number]
            assert file in title
            assert re.search(rf"\b{number}\b", title)


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("by", ["id", "encoded", "as typed"])
def test_an_address_by_id_or_file_selects_its_query_and_scrolls_to_it(
    visit: Open, report: Path, files: Splits, width: int, by: str
) -> None:
    page = visit(report, width=width, height=500)
    (wanted,) = page.locator(".card").last.evaluate_all("([card]) => [card.title.match(/query (\\d+),/)[1]]")
    file = files.sources[int(wanted)]
    anchor = {"id": wanted, "encoded": quote(file, safe=""), "as typed": file}[by]
    page.evaluate("(anchor) => { location.hash = '#queries/' + anchor; }", anchor)
    for shown in (page, visit(report, f"#queries/{anchor}", width=width, height=500)):
        shown.wait_for_function(
            """(id) => {
              const card = document.querySelector(".card[aria-selected=true]");
              const grid = document.getElementById("grid").getBoundingClientRect(), own = card.getBoundingClientRect();
              const seen = own.top >= Math.max(0, grid.top) - 1 && own.bottom <= Math.min(innerHeight, grid.bottom) + 1;
              return card.title.includes("query " + id + ",") && seen;
            }""",
            arg=wanted,
        )
        assert shown.locator("#query-title").inner_text().split()[1] == wanted
        assert shown.url.endswith(f"#queries/{wanted}")


def test_a_lone_percent_sign_in_an_address_is_no_fault(visit: Open, report: Path) -> None:
    assert visit(report, "#queries/100%").locator("#query-title").is_visible()


# --- what stays in sight ------------------------------------------------------------------------------------------


def test_the_query_stays_above_its_examples_and_the_chosen_example_below_them(visit: Open, report: Path) -> None:
    page = visit(report, width=400, height=700)
    top, bottom = page.locator(".pinned > .go").first, page.locator(".pinned.bottom")
    assert not top.is_visible()
    last = page.locator(".method").last.locator(".example").first
    last.scroll_into_view_if_needed()
    top.wait_for(state="visible")
    query = page.locator("#query-title").inner_text().split()[1]
    assert f"Query {query}" in top.inner_text()
    assert top.bounding_box()["y"] == 0
    last.click()
    bottom.wait_for(state="visible")
    member = re.search(r"id (\d+),", last.get_attribute("title"))
    assert member
    assert member[1] in bottom.inner_text()
    assert bottom.bounding_box()["y"] + bottom.bounding_box()["height"] <= 700
    bottom.locator(".go").click()  # leads to what is known of it
    bottom.wait_for(state="hidden")
    assert page.locator(".inspector table").is_visible()
    top.click()
    top.wait_for(state="hidden")


# --- mean influence and trust -------------------------------------------------------------------------------------


def test_an_example_that_hurts_everybody_is_marked_as_typical_with_its_mean(
    visit: Open, report: Path, scores: tuple[Scores, ...]
) -> None:
    page = visit(report)
    cards = page.locator(".method")
    outlier = cards.nth(1).locator(".hurts .example").first
    id_ = int(scores[0].train_ids[5])
    assert f"id {id_}," in outlier.get_attribute("title")
    assert "typical for this model: hurts 40 of 40 queries most" in outlier.get_attribute("title")
    assert outlier.locator(".typical").inner_text().endswith("typical")
    assert outlier.locator(".mean").inner_text() == "mean \u22129.0"
    assert "\u201cTypical for this model\u201d" in page.locator("article").inner_text()
    outlier.click()
    row = page.locator(".inspector tbody tr").nth(1).locator("td").all_inner_texts()
    assert row == ["hurts, place 1", "\u22129.00", "\u22129.00", "0 / 40"]


def test_beside_what_helps_most_stands_the_lds_or_how_to_measure_it(visit: Open, report: Path) -> None:
    page = visit(report)
    known, unknown = page.locator(".method .trust").all()
    assert known.inner_text().startswith("LDS on these data: 0.100 (0.000 to 0.200), 14% of the ceiling.")
    known.locator(".link").click()
    assert page.locator("#panel-lds").is_visible()
    page.locator("#tab-queries").click()
    unknown.locator("summary").click()
    told = " ".join(unknown.inner_text().split())
    assert "LDS on these data: not measured" in told
    assert "comove lds --dataset digits --model mlp --methods trak --out lds/" in told


# --- figures of many methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 400, 760, 1300])
def test_six_methods_have_names_that_do_not_cross_and_a_small_chart_each(visit: Open, report: Path, width: int) -> None:
    page = visit(report, "#brittleness", width=width)
    page.wait_for_selector(".multiples svg")
    charts = page.locator("#panel-brittleness .chart svg").evaluate_all(
        """(all) => all.map((svg) => {
          const frame = svg.getBoundingClientRect(), bands = svg.querySelectorAll("polygon.band").length;
          const boxes = [...svg.querySelectorAll("text")].filter((one) => one.textContent).map((one) => one.getBBox());
          const out = boxes.filter((box) => box.x < -0.5 || box.x + box.width > frame.width + 0.5).length;
          const overlap = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width
            && a.y < b.y + b.height - 2 && b.y < a.y + a.height - 2;
          const crossed = boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => overlap(a, b))).length;
          return [bands, out, crossed, svg.querySelectorAll("text.name").length];
        })"""
    )
    labelled = len(NAMES) + 3 if width >= 760 else 0
    assert charts == [[0, 0, 0, labelled], *[[1, 0, 0, 0]] * len(NAMES)]
    assert page.locator(".legend li:visible").count() == (1 if labelled else len(NAMES) + 4)
    named = page.locator(".multiples p").all_text_contents()
    assert named == list(NAMES)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_of_texts_shows_the_text_of_the_query_where_it_stays(visit: Open, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trace = Trace.from_arrays(train_losses=rng.uniform(size=(4, 30)), query_losses=rng.uniform(size=(4, 2)))
    texts = {int(id_): f"sentence {id_} " * 9 for id_ in range(60)}
    written = write_report(tmp_path / "r.html", trace, CLD().fit(trace).attribute(), texts=texts, top=9)
    page = visit(written, width=400, height=600)
    page.locator(".example").last.scroll_into_view_if_needed()
    page.locator(".pinned .text").first.wait_for(state="visible")
    assert "sentence" in page.locator(".pinned").first.inner_text()
