"""Results in a notebook: escaped tables that hold the numbers, and figures that exist and show themselves."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import comove
from comove.attribution import Scores
from comove.coreset import Coreset, select
from comove.data import ExampleSet, Splits
from comove.display import counted, html_facts, html_table, whole_percent
from comove.errors import InputError
from comove.evaluation import LDS, Curve, CurvePoint
from comove.evaluation.label_errors.detection import detect
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.training import Run

NASTY = "<script>alert('x')</script>&\"$1$"


def whole(*values: int) -> np.ndarray:
    """Ids or labels."""
    return np.array(values, np.int64)


@pytest.mark.parametrize(("number", "told"), [(0, "0 queries"), (1, "1 query"), (1200, "1,200 queries")])
def test_a_number_comes_with_its_word(number: int, told: str) -> None:
    assert counted(number, "query") == told
    assert counted(number, "model") == told.replace("queries", "models").replace("query", "model")


def real(*values: float) -> np.ndarray:
    """Scores."""
    return np.array(values, np.float32)


class Page(HTMLParser):
    """The tags, and the text of each cell, of a piece of HTML; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs == []
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def shown(result: Any) -> Page:
    """A result as a notebook shows it."""
    page = Page(result._repr_html_())
    assert page.tags <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    return page


@pytest.fixture
def scores() -> Scores:
    """Three training examples, two queries, a class name that is markup."""
    values = np.array([[0.5, -1], [0.25, 3], [-2, 0]], np.float32)
    return Scores(values, whole(7, 8, 9), whole(70, 80), "cld", whole(0, 1, 0), whole(1, 0), ("cat", NASTY))


@pytest.fixture
def coreset() -> Coreset:
    """Three of ten, of two classes."""
    return Coreset(whole(7, 8, 9), real(3, 2, 1), real(1, 1, 1), whole(0, 1, 0), NASTY, 10, ("cat", NASTY))


@pytest.fixture
def suspicion(images: ExampleSet) -> Suspicion:
    """A ranking of 40 images."""
    classes = ("a", NASTY, "c", "d")
    values, ones = {"loss": real(*range(40))}, whole(*[1] * 40)
    return Suspicion(images.ids, images.labels, values, (), classes, ones, ones.astype(np.float32))


@pytest.fixture
def lds() -> LDS:
    """Of five queries, one without a score."""
    per_query = np.array([0.1, 0.2, 0.3, 0.4, np.nan])
    return LDS(per_query, 0.25, (0.2, 0.3), 1, 0, 0.5, 0.7, NASTY, np.arange(5), 20, 2, 0.95, "margin", 0.5)


@pytest.fixture
def curve() -> Curve:
    """Two methods, two budgets, and the full data."""
    points = [
        CurvePoint(m, b, int(100 * b), s, 0.5 + b + 0.01 * s)
        for m in (NASTY, "random")
        for b in (0.1, 0.3)
        for s in (0, 1)
    ]
    return Curve((CurvePoint("full data", 1.0, 100, 0, 0.9), *points), 100, 50, {})


# --- tables ------------------------------------------------------------------------------------------------------


def test_a_table_escapes_everything_and_counts_what_it_leaves_out() -> None:
    page = Page(html_table(NASTY, [NASTY, "b"], [(NASTY, 1.23456789), (None, float("nan")), (3, 12345)], most=2))
    assert page.rows == [[NASTY, "b"], [NASTY, "1.235"], ["–", "–"]]
    assert page.text.startswith(NASTY)
    assert page.text.endswith("1 more rows")
    assert Page(html_facts(NASTY, {NASTY: 12345, "x": NASTY})).rows == [[NASTY, "12,345"], ["x", NASTY]]


def test_scores_show_who_helps_and_hurts_each_query_most(scores: Scores) -> None:
    assert shown(scores).rows[1:] == [
        ["70", "7", "cat", "0.5", "9", "cat", "-2"],
        ["80", "8", NASTY, "3", "7", "cat", "-1"],
    ]
    wide = Scores(np.zeros((3, 30), np.float32), whole(7, 8, 9), np.arange(30), "cld")
    assert len(shown(wide).rows) == 9
    assert "the first 8" in shown(wide).text
    assert shown(scores.top(2, query=80)).rows == [["id", "score", "class"], ["8", "3", NASTY], ["9", "0", "cat"]]


def test_scores_opened_from_a_file_show_themselves_too(scores: Scores, tmp_path: Path) -> None:
    scores.save(tmp_path / "s.safetensors")
    assert shown(Scores.load(tmp_path / "s.safetensors")).rows == shown(scores).rows


def test_a_coreset_shows_its_classes_or_its_ids(coreset: Coreset) -> None:
    assert shown(coreset).rows[1:] == [["cat", "2", "2"], [NASTY, "1", "2"]]
    bare = Coreset(whole(7, 8), real(3, 2), real(1, 1), None, "x", 10)
    assert shown(bare).rows == [["id", "score"], ["7", "3"], ["8", "2"]]


def test_an_lds_shows_its_mean_interval_and_ceiling(lds: LDS) -> None:
    facts = dict(shown(lds).rows)
    assert (facts["mean"], facts["low"], facts["high"], facts["noise ceiling"]) == ("0.25", "0.2", "0.3", "0.7")
    assert NASTY in shown(lds).text


def test_a_curve_a_ranking_and_a_detection_show_their_rows(curve: Curve, suspicion: Suspicion) -> None:
    assert [NASTY, "0.1", "10", "0.605", "0.007071", "2"] in shown(curve).rows
    assert shown(suspicion).rows[1][:4] == ["1,039", "3", "d", NASTY]
    found = detect(suspicion, [1039, 1038], bootstrap=10)
    assert shown(found).rows[1][:2] == ["loss", "1"]


def test_a_run_and_its_trace_show_what_they_hold(run: Run) -> None:
    facts = dict(shown(run.trace).rows)
    assert (facts["rows"], facts["last epoch"], facts["train"]) == ("7", "6", "200")
    told = dict(shown(run).rows)
    assert (told["model"], told["finished"]) == ("mlp", "True")
    assert float(told["query accuracy"]) == pytest.approx(run.result["query_accuracy"], rel=1e-3)


# --- figures -----------------------------------------------------------------------------------------------------


def test_every_result_plots_and_its_figure_shows_itself_as_png(
    scores: Scores, coreset: Coreset, lds: LDS, curve: Curve, suspicion: Suspicion, images: ExampleSet, run: Run
) -> None:
    found = detect(suspicion, [1039, 1038], bootstrap=10)
    drawn = [scores.plot(80, k=2), coreset.plot(), lds.plot(), curve.plot(), suspicion.plot(images, 3), found.plot()]
    for one in [*drawn, run.trace.plot()]:
        assert isinstance(one, Figure)
        assert one._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]


def test_bars_of_a_ranking_go_from_who_helps_most_to_who_hurts_most(scores: Scores) -> None:
    (axes,) = scores.plot(70, k=2).axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25, 0.25, -2]  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_yticklabels()][3] == "#9 cat"
    with pytest.raises(InputError, match="Say which query"):
        scores.plot()
    with pytest.raises(InputError, match="k must be a whole number from 1 to 3"):
        scores.plot(70)


def test_with_the_data_pictures_are_drawn(run: Run, small_digits: Splits) -> None:
    found = comove.attribution.CLD().fit(run).attribute(small_digits.query.ids[:2])
    grid = found.plot(int(found.query_ids[1]), k=2, splits=small_digits)
    assert len(grid.axes) == 5
    chosen = select("cld", run, 30)
    assert sum(bool(axes.images) for axes in chosen.plot(small_digits.train, per_class=2).axes) == 20


def test_bars_of_a_coreset_count_its_classes_and_a_histogram_its_scores(coreset: Coreset) -> None:
    counts, histogram = coreset.plot().axes
    assert [bar.get_height() for bar in counts.patches] == [2, 1]  # type: ignore[attr-defined]
    assert sum(bar.get_height() for bar in histogram.patches) == 3  # type: ignore[attr-defined]


def test_the_histogram_of_an_lds_counts_the_defined_queries(lds: LDS) -> None:
    (axes,) = lds.plot().axes
    heights = [bar.get_height() for bar in axes.patches if bar.get_width() < 0.06]  # type: ignore[attr-defined]
    assert sum(heights) == 4
    nothing = LDS(np.full(2, np.nan), np.nan, None, 2, 0, None, None, None, np.arange(2), 5, 1, 0.95)
    with pytest.raises(InputError, match="No query has"):
        nothing.plot()


def test_the_losses_of_a_trace_are_medians(run: Run) -> None:
    (axes,) = run.trace.plot().axes
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), np.median(run.trace.train_losses, axis=1))
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata()), np.median(run.trace.query_losses, axis=1))


@pytest.mark.parametrize(("share", "shown"), [(0.617, "62%"), (-0.002, "0%"), (-0.3, "-30%"), (1.0, "100%")])
def test_a_share_in_whole_percent_has_no_sign_at_zero(share: float, shown: str) -> None:
    assert whole_percent(share) == shown
