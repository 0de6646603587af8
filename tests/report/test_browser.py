"""The report as people meet it: in a real, headless Chromium, opened from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comove.attribution import CLD, RandomControl, SameClassControl, Scores
from comove.coreset import select
from comove.data import Splits
from comove.display import scored
from comove.evaluation import LDS, Curve
from comove.report import Suspects, write_report
from comove.report.lists import top_lists
from comove.report.thumbnails import pixels
from comove.trace import Trace
from comove.training import Run

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def scores(runs: tuple[Run, ...]) -> tuple[Scores, ...]:
    """Three methods for all 40 queries."""
    return tuple(method.fit(runs).attribute() for method in (CLD(), SameClassControl(), RandomControl()))


@pytest.fixture(scope="module")
def report(
    runs: tuple[Run, ...],
    scores: tuple[Scores, ...],
    lds: Callable[..., LDS],
    curve: Curve,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A report of digits with every page but brittleness."""
    suspects = [Suspects(name, runs[0].trace.train_ids[:7], np.arange(7.0)) for name in ("aum", "loss")]
    results = [lds(), lds(method="other"), curve, select("cld", runs[0], 50), *suspects]
    return write_report(tmp_path_factory.mktemp("report") / "report.html", runs, scores, results, top=5)


def drawn(page: Any, selector: str) -> None:
    """Wait until every picture there is drawn."""
    page.wait_for_function(
        """(selector) => {
          const painted = (one) => one.getContext("2d").getImageData(0, 0, one.width, one.height).data.some((v) => v);
          const all = [...document.querySelectorAll(selector)];
          return all.length && all.every(painted);
        }""",
        arg=selector,
    )


def shown_query(page: Any) -> int:
    """The id of the query on the right."""
    return int(page.locator("#query-title").inner_text().split()[1])


# --- queries -----------------------------------------------------------------------------------------------------


def test_every_query_has_a_card_wrong_ones_first_and_the_first_is_shown(
    visit: Open, report: Path, scores: tuple[Scores, ...]
) -> None:
    page = visit(report)
    assert page.locator(".card").count() == scores[0].query_ids.size
    wrong = page.locator(".card").evaluate_all("(cards) => cards.map((card) => card.classList.contains('wrong'))")
    assert any(wrong)
    assert wrong == sorted(wrong, reverse=True)
    assert page.locator(".verdict").inner_text() == "\u2717 wrong"
    drawn(page, ".example canvas")


def test_choosing_a_query_shows_its_tops_and_bottoms_by_each_method_with_scores(
    visit: Open, report: Path, scores: tuple[Scores, ...]
) -> None:
    page = visit(report)
    card = page.locator(".card").nth(6)
    card.click()
    query = shown_query(page)
    assert f"query {query}," in card.get_attribute("aria-label")
    assert page.locator(".method h3").all_inner_texts() == [one.method for one in scores]
    told = page.locator(".method").first.locator(".example").evaluate_all("(all) => all.map((one) => one.title)")
    rankings = [*scores[0].top(5, query=query), *scores[0].bottom(5, query=query)]
    for text, (id_, score) in zip(told, rankings, strict=True):
        assert f"id {id_}, score {scored(score)}" in text  # written as in every figure
    drawn(page, ".example canvas")


def test_every_picture_is_that_of_its_example(visit: Open, report: Path, small_digits: Splits) -> None:
    page = visit(report)
    page.locator(".card").nth(30).click()
    drawn(page, ".example canvas")
    found = page.locator(".example").evaluate_all(
        """(all) => all.map((one) => {
          const canvas = one.querySelector("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return [Number(one.title.match(/id (\\d+),/)[1]), Array.from(data)];
        })"""
    )
    assert len(found) == 30
    for id_, values in found:
        wanted = pixels(small_digits.train, np.array([id_]))[0]
        np.testing.assert_array_equal(np.array(values).reshape(8, 8, 4)[..., :3], wanted)


def test_examples_in_the_lists_of_several_methods_are_marked_with_how_many(
    visit: Open, report: Path, scores: tuple[Scores, ...]
) -> None:
    page = visit(report)
    page.locator(".card").nth(3).click()
    query = shown_query(page)
    helps = [one.top(5, query=query).ids.tolist() for one in scores]
    wanted = [sum(id_ in other for other in helps) for own in helps for id_ in own]
    found = page.locator(".helps .example").evaluate_all(
        "(all) => all.map((one) => Number(one.querySelector('.badge')?.textContent ?? 1))"
    )
    assert found == wanted


def test_the_overlap_is_the_share_of_common_examples_of_one_query_and_of_all(
    visit: Open, report: Path, scores: tuple[Scores, ...]
) -> None:
    page = visit(report)
    query = shown_query(page)
    names = [one.method for one in scores]
    members = top_lists(dict(zip(names, scores, strict=True)), scores[0].query_ids, 5).members[:, :, 0]

    def cells() -> list[int]:
        return [int(text.rstrip("%")) for text in page.locator(".overlap tbody td").all_inner_texts()]

    def share(a: int, b: int, q: int) -> float:
        return len(set(members[a, q].tolist()) & set(members[b, q].tolist())) / 5

    place = scores[0].query_ids.tolist().index(query)
    assert cells() == [round(100 * share(a, b, place)) for a in range(3) for b in range(3)]
    page.select_option("#overlap-of", "all")
    mean = [100 * np.mean([share(a, b, q) for q in range(40)]) for a in range(3) for b in range(3)]
    np.testing.assert_allclose(cells(), mean, atol=0.51)


def test_a_chosen_example_is_placed_by_every_method_and_joins_the_losses(visit: Open, report: Path) -> None:
    page = visit(report)
    page.wait_for_selector(".trajectory polyline")
    before = page.locator(".chart .trajectory").count()
    page.locator(".example").nth(1).click()
    assert page.locator(".inspector tbody tr").count() == 3
    assert "helps, place 2" in page.locator(".inspector tbody").inner_text()
    page.wait_for_selector(".chart .trajectory.chosen polyline")
    assert page.locator(".chart .trajectory").count() == before + 1
    page.locator(".example").nth(1).click()  # again: nothing is chosen
    assert page.locator(".inspector table").count() == 0


def test_the_query_s_line_is_its_recorded_loss(visit: Open, report: Path, runs: tuple[Run, ...]) -> None:
    page = visit(report)
    points = page.wait_for_selector(".chart .trajectory.query polyline").get_attribute("points")
    heights = np.array([float(pair.split(",")[1]) for pair in points.split()])
    trace = runs[0].trace
    losses = np.log(trace.query_losses[:, trace.query_ids.tolist().index(shown_query(page))])
    np.testing.assert_allclose(np.corrcoef(heights, losses)[0, 1], -1, atol=1e-4)
    page.select_option("#line-kind", "change")
    page.wait_for_function(
        """(count) => {
          const line = document.querySelector(".trajectory.query polyline");
          return line !== null && line.getAttribute("points").split(" ").length === count;
        }""",
        arg=len(losses) - 1,
    )


def test_the_losses_say_that_their_scale_is_logarithmic_and_the_changes_that_theirs_is_not(
    visit: Open, report: Path
) -> None:
    page = visit(report)
    panel = page.locator(".panel:has(#line-kind)")
    page.wait_for_selector(".trajectory polyline")
    assert "loss (nats, log scale)" in panel.inner_text()
    assert "The scale is logarithmic" in panel.inner_text()
    page.select_option("#line-kind", "change")
    panel.get_by_text("change of the loss (nats)").wait_for()
    assert "as CLD correlates them, from each recorded row to the next. The scale is linear." in panel.inner_text()


@pytest.mark.parametrize("width", [360, 1200])
def test_rows_and_columns_of_the_overlap_bear_the_names_of_the_methods(
    visit: Open, report: Path, scores: tuple[Scores, ...], width: int
) -> None:
    page = visit(report, width=width)
    names = [one.method for one in scores]
    for scope in ("col", "row"):
        heads = page.locator(f".overlap th[scope={scope}]")
        assert heads.evaluate_all("(all) => all.map((one) => one.textContent)") == names
    clipped = page.locator(".overlap th").evaluate_all(
        "(all) => all.filter((one) => one.scrollWidth > one.clientWidth)"
    )
    assert clipped == []


# --- measurements and suspects -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 360, 1440])
@pytest.mark.parametrize("anchor", ["", "#lds", "#curves"])
def test_no_words_of_a_chart_overlap_or_are_cut_off(visit: Open, report: Path, width: int, anchor: str) -> None:
    page = visit(report, anchor, width=width)
    page.wait_for_selector(".chart svg text:visible")
    faults = page.evaluate(
        """() => [...document.querySelectorAll(".chart svg")].filter((svg) => svg.checkVisibility()).flatMap((svg) => {
          const frame = svg.getBoundingClientRect(), found = [];
          const boxes = [...svg.querySelectorAll("text")].filter((one) => one.textContent)
            .map((one) => [one.textContent, one.getBBox()]);
          for (const [text, box] of boxes)
            if (box.x < -0.5 || box.x + box.width > frame.width + 0.5) found.push("cut off: " + text);
          boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
            if (a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height - 2 && b.y < a.y + a.height - 2)
              found.push(text + " over " + other);
          }));
          return found;
        })"""
    )
    assert faults == []


def test_the_table_of_the_lds_fits_a_telephone(visit: Open, report: Path) -> None:
    page = visit(report, "#lds", width=360)
    sizes = page.locator("#panel-lds .scroll").evaluate_all(
        "(all) => all.map((one) => [one.scrollWidth, one.clientWidth])"
    )
    assert sizes
    assert all(whole <= seen for whole, seen in sizes)


def test_what_a_coreset_keeps_first_stands_below_the_curves_with_its_pictures(
    visit: Open, report: Path, runs: tuple[Run, ...]
) -> None:
    page = visit(report, "#curves")
    drawn(page, "#panel-curves section .suspect canvas")
    coreset = select("cld", runs[0], 50)
    section = page.locator("#panel-curves section")
    assert section.locator("h3").inner_text() == "Kept first by cld"
    ids = section.locator(".suspect").evaluate_all("(all) => all.map((one) => one.querySelector('.file').textContent)")
    shown = [text.removeprefix("#") for text in ids]
    assert sorted(map(int, shown)) == sorted(coreset.ids.tolist())


def test_many_suspects_are_folded_and_unfold_by_key_and_for_print(visit: Open, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trace = Trace.from_arrays(train_losses=rng.uniform(size=(4, 50)), query_losses=rng.uniform(size=(4, 2)))
    lists = [
        Suspects("aum", trace.train_ids[:40], np.arange(40.0)),
        Suspects("loss", trace.train_ids[:20], np.ones(20)),
    ]
    page = visit(write_report(tmp_path / "r.html", trace, CLD().fit(trace).attribute(), lists), "#suspects")
    shown = page.locator("#panel-suspects section:first-of-type .suspect:visible")
    assert (shown.count(), page.locator("#panel-suspects .suspect").count()) == (16, 60)
    assert page.locator("#panel-suspects .fold").count() == 1  # twenty are not worth a fold
    summary = page.locator("#panel-suspects .fold summary")
    assert summary.inner_text() == "The other 24"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.count() == 40
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown.count() == 16
    summary.focus()
    page.keyboard.press("Enter")
    assert shown.count() == 40
    page.locator(".jumps button").nth(1).click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "loss"


def test_a_dark_page_is_printed_in_the_colours_of_a_light_one(visit: Open, report: Path) -> None:
    page = visit(report, "#lds", color_scheme="dark")
    colour = "getComputedStyle(document.querySelector('.c0')).color"
    page.wait_for_selector(".chart .c0")
    dark = page.evaluate(colour)
    page.emulate_media(media="print", color_scheme="dark")
    printed = page.evaluate(colour)
    page.emulate_media(media="screen", color_scheme="light")
    assert printed == page.evaluate(colour) != dark


# --- the way around ----------------------------------------------------------------------------------------------


def test_filters_and_search_leave_what_was_asked_for(visit: Open, report: Path, scores: tuple[Scores, ...]) -> None:
    page = visit(report)
    labels = np.asarray(scores[0].query_labels)
    page.select_option("#true-class", "3")
    assert page.locator(".card:visible").count() == int((labels == 3).sum())
    page.check("#wrong-only")
    assert page.locator(".card:visible").count() == page.locator(".card.wrong:visible").count()
    page.uncheck("#wrong-only")
    page.select_option("#true-class", "")
    wanted = int(scores[0].query_ids[11])
    page.fill("#search", f"#{wanted}")
    page.press("#search", "Enter")
    assert shown_query(page) == wanted
    page.fill("#search", "no such id")
    assert page.locator("#found").inner_text() == "No query is like this."


# --- keyboard, addresses, widths, themes -------------------------------------------------------------------------


def test_arrow_keys_walk_the_grid_and_show_each_query(visit: Open, report: Path) -> None:
    page = visit(report)
    ids = page.locator(".card").evaluate_all("(all) => all.map((one) => Number(one.title.split(/[ ,]/)[1]))")
    page.locator(".card").first.focus()
    row = page.evaluate(
        "[...document.querySelectorAll('.card')].filter((c, _, all) => c.offsetTop === all[0].offsetTop).length"
    )
    for key, place in (("ArrowRight", 1), ("ArrowDown", 1 + row), ("ArrowLeft", row), ("ArrowUp", 0), ("End", 39)):
        page.keyboard.press(key)
        assert shown_query(page) == ids[place]
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    assert page.locator(".card[tabindex='0']").count() == 1
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_tabs_are_walked_with_arrow_keys_and_the_address_follows(visit: Open, report: Path) -> None:
    page = visit(report)
    assert page.locator("[role=tab]").all_inner_texts() == ["Queries", "LDS", "Coresets", "Suspects", "Provenance"]
    page.locator("#tab-queries").focus()
    for name in ("lds", "curves", "suspects", "provenance"):
        page.keyboard.press("ArrowRight")
        assert page.url.endswith("#" + name)
        assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "panel-" + name
    assert "1a" in page.locator("#panel-provenance").inner_text()


def test_an_address_opens_its_query_and_an_unknown_one_the_first(
    visit: Open, report: Path, scores: tuple[Scores, ...]
) -> None:
    wanted = int(scores[0].query_ids[20])
    assert shown_query(visit(report, f"#queries/{wanted}")) == wanted
    first = visit(report)
    assert shown_query(visit(report, "#%3Cb%3E/nothing")) == shown_query(first)


@pytest.mark.parametrize("width", [320, 360, 768, 1440])
@pytest.mark.parametrize("anchor", ["", "#lds", "#curves", "#suspects", "#provenance"])
def test_no_width_needs_sideways_scrolling(visit: Open, report: Path, width: int, anchor: str) -> None:
    page = visit(report, anchor, width=width, height=700)
    page.wait_for_selector("[role=tabpanel]:visible >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_light_and_dark_have_readable_text(visit: Open, report: Path) -> None:
    """Contrast of body and quiet text at least 4.5 (WCAG 2.1, 1.4.3)."""
    shades = {}
    for scheme in ("light", "dark"):
        page = visit(report, color_scheme=scheme)
        colours = page.evaluate(
            """() => {
              const of = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
              const found = { paper: of("body", "backgroundColor"), panel: of(".method", "backgroundColor") };
              for (const name of [".quiet", ".helps .score", ".hurts .score", "body"]) found[name] = of(name, "color");
              const numbers = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
              return Object.fromEntries(Object.entries(found).map(([name, text]) => [name, numbers(text)]));
            }"""
        )
        shades[scheme] = colours["paper"]
        for name in (".quiet", ".helps .score", ".hurts .score", "body"):
            for ground in ("paper", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (scheme, name, ground)
    assert sum(shades["light"]) > sum(shades["dark"])


def contrast(one: list[float], other: list[float]) -> float:
    """Contrast ratio of two sRGB colours (WCAG 2.1)."""

    def luminance(colour: list[float]) -> float:
        parts = np.array(colour) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_control_has_a_name_and_every_id_is_one(visit: Open, report: Path) -> None:
    page = visit(report)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [role=option], [role=img]")].filter((one) =>
        !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim())).length"""
    )
    ids = page.locator("[id]").evaluate_all("(all) => all.map((one) => one.id)")
    assert nameless == 0
    assert len(ids) == len(set(ids)) > 10


def test_it_prints_the_chosen_query_with_its_pictures(visit: Open, report: Path) -> None:
    page = visit(report)
    drawn(page, ".example canvas")
    assert len(page.pdf(format="A4")) > 20_000
    page.emulate_media(media="print")
    assert not page.locator("#grid").is_visible()
    assert page.locator(".method").first.is_visible()


# --- texts, markup, small and large ------------------------------------------------------------------------------


def test_markup_in_names_and_texts_is_shown_and_never_run(visit: Open, evil_report: Path, evil: str) -> None:
    page = visit(evil_report)
    dialogs: list[Any] = []
    page.on("dialog", lambda dialog: dialogs.extend([dialog.message]))
    scripts = page.locator("script").count()
    for tab in page.locator("[role=tab]").all():
        tab.click()
    assert dialogs == []
    assert page.locator("script").count() == scripts
    assert page.locator("main script, main b").count() == 0
    assert evil.split(" <!--")[0] in page.title()
    page.locator("#tab-queries").click()
    for selector in (".card .truth", ".example .text", ".method h3", ".query-head blockquote", "#panel-suspects h3"):
        texts = page.locator(selector).evaluate_all("(all) => all.map((one) => one.textContent)")
        assert any(evil in text for text in texts), selector


def test_a_single_method_and_nothing_else_makes_a_page(visit: Open, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trace = Trace.from_arrays(train_losses=rng.uniform(size=(4, 9)), query_losses=rng.uniform(size=(4, 2)))
    page = visit(write_report(tmp_path / "r.html", trace, CLD().fit(trace).attribute(), top=20))
    assert page.locator("[role=tab]").all_inner_texts() == ["Queries", "Provenance"]
    assert page.locator(".example").count() == 18
    assert page.locator(".overlap").count() == 0
    assert page.locator("canvas").count() == 0


def test_a_thousand_queries_by_six_methods_stay_below_20_megabytes_and_show_themselves(
    visit: Open, cifar_folder: Path, tmp_path: Path
) -> None:
    from comove.data.builtin import load_dataset

    splits = load_dataset("cifar10", data_dir=cifar_folder, limit=3000, queries=1000)
    page = visit(write_report(tmp_path / "r.html", *thousand(splits), dataset=splits))
    assert (tmp_path / "r.html").stat().st_size < 20_000_000
    assert page.locator(".card").count() == 1000
    drawn(page, ".example canvas")
    page.keyboard.press("Tab")
    page.locator(".card").nth(999).click()
    drawn(page, ".example canvas")


def thousand(splits: Splits) -> tuple[Trace, list[Scores]]:
    """Losses and scores by six methods from nowhere, so even that almost every example is in some list."""
    rng = np.random.default_rng(0)
    ids = {"train_ids": splits.train.ids, "query_ids": splits.query.ids}
    labels = {"train_labels": splits.train.labels, "query_labels": splits.query.labels}
    shapes = [(31, len(splits.train)), (31, len(splits.query))]
    losses = [rng.lognormal(size=shape).astype(np.float32) for shape in shapes]
    trace = Trace.from_arrays(train_losses=losses[0], query_losses=losses[1], **ids, **labels)
    values = rng.normal(size=(6, shapes[0][1], shapes[1][1])).astype(np.float32)
    own: dict[str, Any] = {**ids, **labels}
    return trace, [Scores(part, method=f"method {m}", **own) for m, part in enumerate(values)]
