"""The report as a file: what it holds, what it escapes, what it refuses."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import comove
from comove.attribution import CLD, RandomControl, Scores
from comove.coreset import select
from comove.data import ExampleSet, Splits, spread_over_classes
from comove.errors import CorruptFileError, FingerprintError, InputError, InputTypeError
from comove.evaluation import LDS, Curve
from comove.report import Evidence, Origin, Provenance, ReportSize, Suspects, write_report
from comove.report.lists import NO_MEMBER, top_lists
from comove.report.packing import json_for_script, json_ids
from comove.report.queries import query_facts
from comove.report.saved_results import read_brittleness, read_curves, read_lds, read_suspects, read_texts
from comove.report.thumbnails import PER_SHEET, pixels, sheets_of
from comove.report.trajectories import trajectories_of
from comove.trace import Trace
from comove.training import Run
from comove.training.sources import as_sources


def payload(path: Path) -> dict[str, Any]:
    """What the page says."""
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', path.read_text(), re.S)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def block(path: Path, name: str, kind: str) -> npt.NDArray[Any]:
    """One of the page's arrays."""
    found = re.search(rf'id="block-{name}">([^<]*)</script>', path.read_text())
    assert found
    return np.frombuffer(base64.b64decode(found[1]), kind)


def sheet(path: Path, number: int) -> npt.NDArray[np.uint8]:
    """One of the page's sprites, (H, W, 3)."""
    found = re.search(rf'id="sheet-{number}">([^<]*)</script>', path.read_text())
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB"))


@pytest.fixture(scope="module")
def scores(runs: tuple[Run, ...]) -> tuple[Scores, ...]:
    """Two methods for all 40 queries."""
    return tuple(method.fit(runs).attribute() for method in (CLD(), RandomControl()))


# --- what it holds -----------------------------------------------------------------------------------------------


def test_the_lists_in_the_page_are_the_tops_and_bottoms_of_the_scores(
    runs: tuple[Run, ...], scores: tuple[Scores, ...], tmp_path: Path
) -> None:
    page = write_report(tmp_path / "r.html", runs, scores, top=3)
    content = payload(page)
    members, values = (block(page, name, kind) for name, kind in (("members", "<i4"), ("scores", "<f4")))
    assert content["shape"] == [2, 40, 2, 3]
    ids = np.array(content["train"]["ids"])
    for m, one in enumerate(scores):
        for q, query in enumerate(content["query"]["ids"]):
            for side, ranking in enumerate((one.top(3, query=query), one.bottom(3, query=query))):
                assert ids[members.reshape(content["shape"])[m, q, side]].tolist() == ranking.ids.tolist()
                np.testing.assert_array_equal(values.reshape(content["shape"])[m, q, side], ranking.scores)


def test_only_training_examples_in_some_list_are_embedded(
    runs: tuple[Run, ...], scores: tuple[Scores, ...], tmp_path: Path
) -> None:
    content = payload(write_report(tmp_path / "r.html", runs, scores[:1], top=1))
    shown = {int(scores[0].top(1, query=q).ids[0]) for q in scores[0].query_ids}
    shown |= {int(scores[0].bottom(1, query=q).ids[0]) for q in scores[0].query_ids}
    assert set(content["train"]["ids"]) == shown
    assert scores[0].train_labels is not None
    labels = dict(zip(scores[0].train_ids.tolist(), scores[0].train_labels.tolist(), strict=True))
    assert content["train"]["labels"] == [labels[id_] for id_ in content["train"]["ids"]]


def test_wrong_queries_stand_first_and_high_losses_before_low_ones(
    runs: tuple[Run, ...], scores: tuple[Scores, ...], tmp_path: Path
) -> None:
    query = payload(write_report(tmp_path / "r.html", runs, scores))["query"]
    assert 0 in query["correct"]
    assert query["correct"] == sorted(query["correct"])
    wrong = query["correct"].count(0)
    for part in (query["loss"][:wrong], query["loss"][wrong:]):
        assert part == sorted(part, reverse=True)
    same = [a == b for a, b in zip(query["labels"], query["predicted"], strict=True)]
    assert [int(flag) for flag in same] == query["correct"]


def test_sprites_hold_the_images_pixel_by_pixel(
    run: Run, scores: tuple[Scores, ...], small_digits: Splits, tmp_path: Path
) -> None:
    page = write_report(tmp_path / "r.html", run, scores[0])
    content = payload(page)
    assert content["sheets"]["quality"] is None
    for number, side, part in ((0, "query", small_digits.query), (1, "train", small_digits.train)):
        picture = sheet(page, number)
        for place in (0, 17, 39):
            top, left = 8 * (place // 16), 8 * (place % 16)
            wanted = pixels(part, np.array([content[side]["ids"][place]]))[0]
            np.testing.assert_array_equal(picture[top : top + 8, left : left + 8], wanted)


def test_losses_in_the_page_are_those_recorded(run: Run, scores: tuple[Scores, ...], tmp_path: Path) -> None:
    page = write_report(tmp_path / "r.html", run, scores[0])
    content, trace = payload(page), run.trace
    losses = content["losses"]
    assert losses["epochs"] == [row.epoch for row in trace.rows]
    steps = block(page, "losses", "<u2").reshape(-1, len(losses["epochs"])).astype(np.float64)
    found = losses["low"] * (losses["high"] / losses["low"]) ** (steps / 65535)
    ids = {"query": trace.query_ids.tolist(), "train": trace.train_ids.tolist()}
    columns = [trace.query_losses[:, ids["query"].index(i)] for i in content["query"]["ids"]]
    columns += [trace.train_losses[:, ids["train"].index(i)] for i in content["train"]["ids"]]
    np.testing.assert_allclose(found, np.maximum(columns, 1e-6), rtol=1e-3)


def test_the_same_inputs_give_the_same_bytes(run: Run, scores: tuple[Scores, ...], tmp_path: Path) -> None:
    first, second = (write_report(tmp_path / name, run, scores).read_bytes() for name in "ab")
    assert first == second


def test_a_method_that_scored_other_queries_has_empty_lists_there(tmp_path: Path, small_trace: Trace) -> None:
    trace = small_trace
    whole = CLD().fit(trace).attribute()
    part = replace(whole.subset(query_ids=[8]), method="other")
    lists = top_lists({"cld": whole, "other": part}, trace.query_ids, 20)
    assert (lists.members[1, [0, 2, 3]] == NO_MEMBER).all()
    assert (lists.members[0, :, :, 12:] == NO_MEMBER).all()  # only 12 training examples
    assert sorted(lists.train_ids[lists.members[1, 1, 0, :12]].tolist()) == trace.train_ids.tolist()
    write_report(tmp_path / "r.html", trace, [whole, part], top=20)


def test_parts_that_were_not_given_have_no_page(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path, lds: Callable[..., LDS], curve: Curve
) -> None:
    bare = payload(write_report(tmp_path / "a.html", run, scores[0]))
    assert (bare["pages"], bare["suspects"]) == ([], None)
    full = payload(write_report(tmp_path / "b.html", run, scores[0], [lds(), curve, suspects(run)]))
    assert [page["id"] for page in full["pages"]] == ["lds", "curves"]
    assert [entry["method"] for entry in full["suspects"]["lists"]] == ["aum"]


def suspects(run: Run) -> Suspects:
    """Suspects from nowhere."""
    return Suspects("aum", run.trace.train_ids[:5], np.arange(5.0), known=np.arange(5) == 2)


def test_lds_at_one_ratio_are_bars_and_over_several_lines_with_the_ceiling(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path, lds: Callable[..., LDS]
) -> None:
    one = payload(write_report(tmp_path / "a.html", run, scores[0], [lds()]))["pages"][0]["figures"]
    assert [figure["kind"] for figure in one] == ["bars"]
    assert [(level["name"], level["at"]) for level in one[0]["levels"]] == [("noise ceiling", 0.7)]
    several = [lds(alpha=0.3, mean=float("nan"), interval=None), lds(), lds(output="correct")]
    figures = payload(write_report(tmp_path / "b.html", run, scores[0], several))["pages"][0]["figures"]
    assert [figure["kind"] for figure in figures] == ["lines", "bars"]
    assert figures[0]["series"][0]["points"][0] == [0.3, None, None, None]  # NaN is no JSON
    ceiling = figures[0]["series"][-1]
    assert (ceiling["name"], ceiling["style"]["colour"]) == ("noise ceiling", "level")
    assert [point[:2] for point in ceiling["points"]] == [[0.3, 0.7], [0.5, 0.7]]


def test_the_noise_ceiling_is_drawn_from_the_lowest_ratio_on_whatever_the_order_of_the_results(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path, lds: Callable[..., LDS]
) -> None:
    several = [lds(alpha=alpha, method=name) for alpha in (0.9, 0.3, 0.5) for name in ("cld", "trak")]
    (figure,) = payload(write_report(tmp_path / "r.html", run, scores[0], several))["pages"][0]["figures"]
    assert [point[0] for series in figure["series"] for point in series["points"]] == [0.3, 0.5, 0.9] * 3


def test_a_coreset_shows_what_it_keeps_first_of_each_class(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path
) -> None:
    coreset = select("cld", run, 50)
    content = payload(write_report(tmp_path / "r.html", run, scores[0], [coreset]))
    (page,) = content["pages"]
    assert (page["id"], page["figures"]) == ("curves", [])
    (kept,) = page["kept"]["lists"]
    shown = np.array(content["train"]["ids"])[kept["members"]]
    assert sorted(shown.tolist()) == sorted(coreset.ids.tolist())
    assert coreset.labels is not None
    best = [int(coreset.ids[coreset.labels == label][0]) for label in range(10)]
    assert shown[:10].tolist() == best
    assert "50 of 200 examples" in kept["note"]
    with pytest.raises(FingerprintError, match="coreset of cld must be of the training examples"):
        write_report(tmp_path / "r.html", run, scores[0], [replace(coreset, ids=coreset.ids + 100_000)])


def test_provenance_names_command_seed_versions_and_fingerprint(
    runs: tuple[Run, ...], scores: tuple[Scores, ...], tmp_path: Path
) -> None:
    page = write_report(tmp_path / "r.html", runs, scores, origin=Origin("comove report a b", {"cld": "s/cld"}))
    report, first, second, *methods = payload(page)["made"]
    fingerprint = runs[0].manifest["dataset"]["fingerprint"]
    assert report["command"] == "comove report a b"
    assert {entry["fingerprint"] for entry in (report, first, second, *methods)} == {fingerprint}
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["versions"]["torch"] == runs[0].manifest["versions"]["torch"]
    assert (methods[0]["source"], methods[1]["source"]) == ("s/cld", "scores in memory")
    assert str(runs[0].path.parent.parent) not in page.read_text()  # nothing of the machine


# --- predictions -------------------------------------------------------------------------------------------------


def test_predictions_from_kept_probabilities_and_from_the_last_checkpoint_agree(
    runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = as_sources(list(runs), frozenset(), "test")
    ids = sources[0].trace.query_ids[[3, 100, 200, 7]]  # of the validation and of the query set
    kept = query_facts(sources, ids)
    monkeypatch.setattr(Trace, "anchors", ())
    asked = query_facts(sources, ids)
    assert kept.predicted.tolist() == asked.predicted.tolist()
    np.testing.assert_allclose(kept.confidence, asked.confidence, atol=1e-5)


def test_with_flags_alone_the_majority_counts_and_the_wrong_class_is_unknown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trace, "anchors", ())
    trace = run.trace
    found = query_facts(as_sources([trace], frozenset(), "test"), trace.query_ids)
    flags = trace.read("query", "correct")[-1]
    assert found.correct.tolist() == flags.tolist()
    assert (found.predicted[flags == 0] == -1).all()
    assert trace.query_labels is not None
    assert found.predicted[flags == 1].tolist() == trace.query_labels[flags == 1].tolist()


def test_losses_alone_tell_nothing_of_predictions(tmp_path: Path, small_trace: Trace) -> None:
    trace = small_trace
    content = payload(write_report(tmp_path / "r.html", trace, CLD().fit(trace).attribute()))
    assert set(content["query"]["correct"]) == {-1}
    assert content["sheets"] is None
    assert "not known" in content["query"]["how"]


def test_more_queries_than_asked_for_are_spread_over_classes() -> None:
    ids, labels = np.arange(30), np.repeat([0, 1, 2], [20, 8, 2])
    chosen = spread_over_classes(ids, labels, 8)
    assert np.bincount(labels[chosen]).tolist() == [3, 3, 2]
    assert spread_over_classes(ids, None, 30).tolist() == ids.tolist()


# --- escaping ----------------------------------------------------------------------------------------------------


def test_markup_in_labels_texts_and_names_ends_no_script_and_stays_what_it_was(evil_report: Path, evil: str) -> None:
    page = evil_report
    text = page.read_text(encoding="utf-8")
    assert "alert('1')</script>" not in text
    assert "<script>alert" not in text
    assert "\u2028" not in "".join(re.findall(r"<script.*?</script>", text, re.S))
    assert text.count("<script") == text.count("</script>")
    content = payload(page)
    assert content["title"] == evil
    assert content["classes"][0] == evil
    assert content["texts"]["query"][0].startswith(evil)
    assert content["methods"][0]["name"] == evil


def test_the_page_may_ask_nothing_of_any_network(run: Run, scores: tuple[Scores, ...], tmp_path: Path) -> None:
    text = write_report(tmp_path / "r.html", run, scores).read_text()
    assert "default-src 'none'" in text
    assert "http://www.w3.org/2000/svg" in text  # a name, not an address
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|import)\s*\(", text)
    assert "innerHTML" not in text


def test_json_escapes_what_could_end_a_script_and_writes_no_nan(evil: str) -> None:
    value = {"a": [evil, float("nan"), np.float32(0.5)], "\ud800": 1}
    text = json_for_script(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text)["a"] == [evil, None, 0.5]


def test_ids_that_javascript_cannot_count_to_become_text() -> None:
    assert json_ids(np.array([1, 2**53 - 1])) == [1, 2**53 - 1]
    assert json_ids(np.array([1, 2**60 + 1])) == ["1", str(2**60 + 1)]


# --- size --------------------------------------------------------------------------------------------------------


def noise_images(count: int, side: int) -> ExampleSet:
    """Images that no compression makes small."""
    pixels_ = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return ExampleSet.from_arrays(pixels_, np.zeros(count, np.int64))


@pytest.mark.parametrize("room", [1 << 19, 1 << 17, 1 << 15])
def test_sheets_stay_within_their_room_by_losing_quality_then_size(room: int) -> None:
    images = noise_images(PER_SHEET + 40, 32)
    found = sheets_of([(images, images.ids)], room)
    assert sum(map(len, found.encoded)) <= room
    assert len(found.encoded) == 2
    assert found.quality is not None
    assert (found.height, found.width) == (found.height, found.height)
    assert found.height == 32 or room < 1 << 19


def test_large_images_become_thumbnails_of_64_pixels() -> None:
    images = noise_images(3, 200)
    assert (sheets_of([(images, images.ids)], 1 << 20).height, images.input_shape) == (64, (3, 200, 200))


def test_a_trajectory_keeps_its_ends_when_rows_are_left_out() -> None:
    losses = np.exp(-np.linspace(0, 3, 200))[:, None] * np.ones((200, 4))
    trace = Trace.from_arrays(train_losses=losses, query_losses=losses)
    found = trajectories_of(trace, trace.query_ids, trace.train_ids, room=160)
    assert found.stored.nbytes <= 160
    assert (found.epochs[0], found.epochs[-1], found.recorded) == (0, 199, 200)
    assert (found.stored[:, 0] == 65535).all()
    assert (found.stored[:, -1] == 0).all()


def test_a_report_of_long_texts_stays_below_its_limit(tmp_path: Path, small_trace: Trace) -> None:
    trace = small_trace
    texts = {int(id_): "w\u00f6rter " * 2000 for id_ in (*trace.train_ids, *trace.query_ids)}
    page = write_report(
        tmp_path / "r.html", trace, CLD().fit(trace).attribute(), texts=texts, size=ReportSize(bytes=250_000)
    )
    assert page.stat().st_size < 250_000
    assert all(text.endswith("\u2026") and len(text) <= 500 for text in payload(page)["texts"]["train"])


# --- what it refuses ---------------------------------------------------------------------------------------------


def test_scores_of_other_examples_are_refused(run: Run, scores: tuple[Scores, ...], tmp_path: Path) -> None:
    foreign = replace(scores[0], train_ids=scores[0].train_ids + 100_000)
    with pytest.raises(FingerprintError, match="scores of cld must be of the training examples that"):
        write_report(tmp_path / "r.html", run, foreign)


def test_scores_with_other_labels_are_refused_with_both_fingerprints(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path
) -> None:
    assert scores[0].train_labels is not None
    foreign = replace(scores[0], train_labels=(scores[0].train_labels + 1) % 10)
    with pytest.raises(FingerprintError, match=r"fingerprint is [0-9a-f]{32}, this data set has [0-9a-f]{32}"):
        write_report(tmp_path / "r.html", run, foreign)
    assert not (tmp_path / "r.html").exists()


def test_scores_that_carry_another_fingerprint_are_refused(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path
) -> None:
    foreign = replace(scores[0], info={**scores[0].info, "data_fingerprint": "f" * 32})
    with pytest.raises(FingerprintError, match=r"scores of cld was made with another data set"):
        write_report(tmp_path / "r.html", run, foreign)


def test_measurements_of_other_data_are_refused(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path, lds: Callable[..., LDS]
) -> None:
    foreign = Evidence((lds(),), Provenance(source="lds", fingerprint="f" * 32))
    with pytest.raises(FingerprintError, match="lds was made with another data set"):
        write_report(tmp_path / "r.html", run, scores[0], [foreign])
    with pytest.raises(FingerprintError, match="suspects of aum must be of the training examples"):
        write_report(tmp_path / "r.html", run, scores[0], [Suspects("aum", np.array([9_999]), np.ones(1))])


def test_other_data_than_the_runs_is_refused(
    run: Run, scores: tuple[Scores, ...], digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(FingerprintError, match="was made with another data set"):
        write_report(tmp_path / "r.html", run, scores[0], dataset=digits)


@pytest.mark.parametrize(
    ("changes", "told"), [({"top": 0}, "must be at least 1"), ({"size": ReportSize(queries=0)}, "must be at least 1")]
)
def test_no_place_for_anything_is_refused(
    run: Run, scores: tuple[Scores, ...], tmp_path: Path, changes: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        write_report(tmp_path / "r.html", run, scores[0], **changes)


def test_scores_without_queries_are_refused(run: Run, scores: tuple[Scores, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scores of at least one query; these have none"):
        write_report(tmp_path / "r.html", run, scores[0].subset(query_ids=np.zeros(0, np.int64)))


def test_a_result_without_a_page_is_refused(run: Run, scores: tuple[Scores, ...], tmp_path: Path) -> None:
    with pytest.raises(InputTypeError, match=r"A report shows LDS, .*; got dict"):
        write_report(tmp_path / "r.html", run, scores[0], [{}])


def test_suspects_must_fit_their_ids() -> None:
    with pytest.raises(InputError, match=r"scores of 2 suspects must have their number, got \(3,\)"):
        Suspects("aum", np.array([1, 2]), np.ones(3))


# --- files of other commands -------------------------------------------------------------------------------------


def test_an_lds_file_is_read_back_with_the_fingerprint_of_its_bank(tmp_path: Path, lds: Callable[..., LDS]) -> None:
    bank = {"dataset": {"name": "digits", "fingerprint": "abc"}, "seed": 3, "versions": {"torch": "2"}}
    results = [lds().to_json() | {"runs": 3}, lds(mean=float("nan"), interval=None).to_json()]
    (tmp_path / "lds.json").write_text(json.dumps({"results": results, "bank": bank}))
    found = read_lds(tmp_path)
    assert isinstance(found.result, tuple)
    np.testing.assert_array_equal(found.result[0].per_query, lds().per_query)
    assert (found.result[0].interval, found.result[1].interval) == ((0.0, 0.2), None)
    assert np.isnan(found.result[1].mean)
    assert (found.provenance.fingerprint, found.provenance.seed) == ("abc", 3)


def test_a_table_of_curves_has_a_curve_a_target(tmp_path: Path) -> None:
    lines = ["target,method,budget,size,seed,accuracy", "mlp,full data,1.0,100,0,0.9", "mlp,cld,0.1,10,0,0.5"]
    (tmp_path / "curve.csv").write_text("\n".join([*lines, "cnn,full data,1.0,100,0,0.8"]))
    first, second = read_curves(tmp_path)
    assert isinstance(first.result, Curve)
    assert (first.name, second.name, first.result.mean("cld", 0.1)) == ("mlp", "cnn", 0.5)


def test_a_table_of_suspects_keeps_the_order_of_its_rows(tmp_path: Path) -> None:
    (tmp_path / "suspects.csv").write_text(
        "method,id,score,note,suggested,known_wrong\naum,5,-2,low,3,1\naum,2,-1,low,,0\nloss,7,9,high,1,0\n"
    )
    first, second = read_suspects(tmp_path).result  # type: ignore[misc]
    assert isinstance(first, Suspects)
    assert (first.ids.tolist(), first.note, second.method) == ([5, 2], "low", "loss")
    assert first.suggested is not None
    assert first.known is not None
    assert (first.suggested.tolist(), first.known.tolist()) == ([3, -1], [True, False])


@pytest.mark.parametrize(
    ("text", "told"),
    [("id,text\nx,hello\n", "ids must be whole numbers"), ("id\n1\n", "it lacks text"), ("", "it lacks id, text")],
)
def test_a_table_of_texts_that_is_none_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CorruptFileError, match=told):
        read_texts(tmp_path / "t.csv")


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_lds, read_curves, read_suspects, read_texts):
        with pytest.raises(CorruptFileError, match="nowhere"):
            read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (read_lds, "lds.json"),
        (read_curves, "curve.csv"),
        (read_suspects, "suspects.csv"),
        (read_brittleness, "brittleness.safetensors"),
    ],
)
def test_a_folder_of_something_else_is_refused_with_what_it_lacks(
    read: Callable[[Path], object], name: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=f"holds no {name}; give the folder that comove"):
        read(tmp_path)


def test_the_package_offers_the_report() -> None:
    from comove import report

    assert report.write_report is write_report
    assert comove.Trace is Trace
