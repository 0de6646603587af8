"""The CIFAR-10 study at its size ``tiny``: every step, in slices, and a page whose verdicts follow from the data."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from comove.attribution import Scores, Unrolled
from comove.errors import FingerprintError
from comove.evaluation import RetrainingBank, brittleness, linear_datamodeling_score, subsets
from comove.jobs import Compute, Serial
from comove.lds.charts import lds_figure
from comove.store import write_json
from comove.training import Run
from comove.training.loop import one_thread

FOLDER = Path(__file__).parents[1] / "benchmarks" / "cifar10"
MODULES = (
    "study", "declared", "steps", "slices", "digests", "removing", "published", "claims", "page", "flops", "speed",
    "scoring", "machine", "compute_cost", "words", "claim_figure", "same_seed",
)  # fmt: skip


class _Parts:
    """The modules of the study, which is a script beside the package."""

    def __init__(self) -> None:
        for name in MODULES:
            setattr(self, name, importlib.import_module(name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.fixture(scope="module")
def parts() -> Iterator[_Parts]:
    taken = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        with one_thread():
            yield _Parts()
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(taken)


@pytest.fixture(scope="module")
def finished(parts: _Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study, with what was published of it, and the page."""
    folder = tmp_path_factory.mktemp("study")
    assert _study(parts, folder, "all") == 0
    assert _study(parts, folder, "publish") == 0
    parts.page.write_page(folder / "results", folder / "study.md", ("paper", "tiny"), bootstrap=50)
    return folder


def _study(parts: _Parts, folder: Path, step: str, *more: str) -> int:
    asked = ["--size", "tiny", "--folder", str(folder), "--step", step, "--executor", "serial", "--device", "cpu"]
    code: int = parts.study.main([*asked, *more], folder / "results", folder / "page.md")
    return code


def _session(parts: _Parts, folder: Path, left: float = float("inf")) -> Any:
    clock = parts.slices.Clock()
    clock.left = lambda: left
    return parts.steps.Session(parts.declared.TINY, folder / "state", folder / "scratch", clock, "cpu", Serial())


# --- the whole of it ---


def test_the_page_shows_every_part_of_what_was_run_and_the_command_of_what_was_not(finished: Path) -> None:
    paper, tiny = (finished / "study.md").read_text().split("## At the size `tiny`")
    assert "Not run at this size" in paper
    assert "study.py --size paper --minutes 9 --folder" in paper
    assert "Not run" not in tiny
    for shown in ("tiny-lds.png", "tiny-brittleness.png", "tiny-curves.png"):
        assert f"study/{shown}" in tiny
        assert (finished / "study" / shown).stat().st_size > 5_000
    for cell in ("| `cld(rows=epochs)` |", "| noise ceiling |", "| `random removal` |", "| captured |"):
        assert cell in tiny
    assert "random-0.5 16 of 16" in tiny
    assert str(finished) not in tiny


def test_a_study_under_way_is_published_as_far_as_it_is(parts: _Parts, tmp_path: Path) -> None:
    assert _session(parts, tmp_path).splits.train.ids.size == 200
    assert _study(parts, tmp_path, "publish") == 0
    parts.page.write_page(tmp_path / "results", tmp_path / "study.md", ("tiny",))
    page = (tmp_path / "study.md").read_text()
    for step in ("scores", "bank", "brittleness", "curves", "speed"):
        assert (
            f"Not run at this size: `python benchmarks/cifar10/study.py --size tiny --step {step} --folder DIR`" in page
        )
    assert page.count("**not measured**") == 9


def test_the_goal_of_the_trainer_is_judged_by_what_was_measured(parts: _Parts, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "results" / "tiny", tmp_path / "paper")
    entry = {"seconds at alpha 0.5": 4.0, "images a second": 160_000.0, "share of the limit": 0.35, "accuracy": 0.93}
    for seconds, verdict in ((7.5, "met: 7.5 s, 93.00%"), (9.0, "not met: 9.0 s, 93.00%")):
        measured = {"one-by-one": {**entry, "seconds": 20.0}, "captured": {**entry, "seconds": seconds}}
        write_json(tmp_path / "paper" / "speed.json", {**measured, "compiled": {"refused": "no compiler"}})
        parts.page.write_page(tmp_path, tmp_path / "study.md", ("paper",), bootstrap=20)
        page = (tmp_path / "study.md").read_text()
        assert f"is {verdict}." in page
        assert "| captured | " in page
        assert "35.0%" in page
        assert "refused: no compiler" in page


def test_the_page_draws_and_judges_ratios_by_as_many_seeds_at_each(
    parts: _Parts, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, drawn = [], []

    def claims(results: Any, *rest: Any, alike: Any = None, **more: Any) -> Any:
        judged.append(({one.seeds for one in results}, {one.seeds for one in alike or results}))
        return parts.claims.claims_of(results, *rest, alike=alike, **more)

    def figure(results: Any) -> Any:
        drawn.append({one.seeds for one in results})
        return lds_figure(results)

    monkeypatch.setattr(parts.page, "claims_of", claims)
    monkeypatch.setattr(parts.page, "lds_figure", figure)
    parts.page.write_page(finished / "results", tmp_path / "study.md", ("tiny",), bootstrap=20)
    assert (judged, drawn) == ([({1, 2}, {1})] * 2, [{1}])
    assert "The figure shows R = 1 at every ratio" in (tmp_path / "study.md").read_text()


def test_the_table_says_how_good_the_models_are(parts: _Parts, finished: Path) -> None:
    published = parts.published.Published(finished / "results" / "tiny")
    accuracy = [f"{bank.outputs('correct').mean():.1%}" for bank in published.banks]
    assert f"| accuracy of the models | {' | '.join(accuracy)} |" in (finished / "study.md").read_text()


def test_each_claim_has_its_verdict_on_a_line_its_figure_and_its_reasons_folded(finished: Path) -> None:
    page = (finished / "study.md").read_text()
    for place in (1, 2, 3, 5):
        (line,) = (line for line in page.splitlines() if line.startswith(f"**{place}.** "))
        assert re.search(r"\*\*(holds|does not hold|undecided|not measured)\*\* \(by margin\), ", line)
    assert re.search(r"^\*\*4\.\*\* .*\(by flips\)\.$", page, re.M)
    drawn = re.findall(r"\(study/(tiny-claim-\d\.png)\)", page)
    assert "tiny-claim-1.png" not in drawn or (finished / "study" / "tiny-claim-1.png").stat().st_size > 5_000
    assert len(drawn) >= 3
    assert page.count("<details>") == page.count("</details>") >= 4 + len(drawn)


def test_models_of_one_seed_are_predicted_by_unrolling(parts: _Parts, finished: Path) -> None:
    page = (finished / "study.md").read_text()
    found = parts.published.Published(finished / "results" / "tiny").json("same-seed.json")
    assert set(found["methods"]) == {method.label for method in parts.same_seed.METHODS}
    assert f"| `unrolled` | {found['methods']['unrolled']['lds']:.3f} [" in page
    assert "8 models without 5% of the data each, of one seed" in page
    splits = parts.declared.TINY.splits()
    run = Run.load(finished / "scratch" / "runs" / "000", dataset=splits)
    scores = Unrolled().fit(run).attribute(splits.query.ids[:5])
    bank = RetrainingBank.load(finished / "state" / "same-seed-bank")
    assert bank.lds(scores).mean == pytest.approx(found["methods"]["unrolled"]["lds"], abs=1e-6)


def test_the_bank_of_one_seed_goes_on_with_the_methods_that_are_missing(
    parts: _Parts, finished: Path, tmp_path: Path
) -> None:
    at = _copied(parts, finished, tmp_path / "again")
    file = at.folder / "same-seed.json"
    before = parts.published.read_json(file)
    kept = {label: entry for label, entry in before["methods"].items() if label not in ("trak", "unrolled")}
    write_json(file, {**before, "methods": kept})
    parts.same_seed.measure_same_seed(at)
    found = parts.published.read_json(file)
    assert found["metasmoothness"] == before["metasmoothness"]
    for label, entry in before["methods"].items():
        assert found["methods"][label]["lds"] == pytest.approx(entry["lds"], abs=1e-6)
        assert label not in kept or found["methods"][label] == entry  # with its seconds: not measured again


def test_a_method_that_tells_no_subsets_apart_is_named_and_nothing_is_best_at_a_ceiling_of_0(
    parts: _Parts, finished: Path, tmp_path: Path
) -> None:
    published = parts.published.Published(finished / "results" / "tiny")
    section = parts.page._Section(published, parts.declared.TINY, tmp_path, 20)
    first, *others = [replace(r, constant_predictions=0) for r in published.lds("margin", 20)]
    shown = section._lds_table([replace(first, constant_predictions=3), *others])
    assert f"which counts as 0: `{first.method}` for 3 queries." in shown
    assert "counts as 0" not in section._lds_table([first, *others])
    column = [r for r in others if r.alpha == first.alpha] + [first]
    best = max(column, key=lambda r: r.mean)
    assert parts.words.cell(replace(best, noise_ceiling=0.5), column).endswith(" *")
    assert not parts.words.cell(replace(best, noise_ceiling=0.0), column).endswith(" *")


def test_what_is_published_holds_no_path(finished: Path) -> None:
    for file in (finished / "results" / "tiny").iterdir():
        content = file.read_bytes()
        assert str(finished).encode() not in content, file
        commands = re.findall(rb'"command\\?": \\?"([^"\\]*)', content)
        assert set(commands) <= {b"study.py --size tiny"}, file
    assert b"command" in (finished / "results" / "tiny" / "ranks.safetensors").read_bytes()


def test_the_published_lds_is_that_of_the_full_scores(parts: _Parts, finished: Path) -> None:
    at = _session(parts, finished)
    queries, run_folder = at.splits.query.ids, finished / "scratch" / "runs"
    runs = [Run.load(path, dataset=at.splits) for path in sorted(run_folder.iterdir())]
    found = {
        (result.alpha, result.method): result
        for result in parts.published.Published(finished / "results" / "tiny").lds("correct", 0)
    }
    for method in at.study.methods[:3]:
        scores = method.fit(runs).attribute(queries)
        for plan, seeds in parts.steps.truth_plans(at.study, at.splits):
            bank = at.bank("bank", plan, seeds)
            wanted = bank.lds(scores, "correct", bootstrap=0)
            np.testing.assert_allclose(found[wanted.alpha, method.label].per_query, wanted.per_query, atol=1e-9)


def test_slices_of_one_job_end_with_the_same_bits_as_one_session(parts: _Parts, tmp_path: Path) -> None:
    sessions, plan = 0, subsets.random(0.5, 18, seed=5)  # two groups
    made = _session(parts, tmp_path, left=1e-9).bank("bank", plan, 1)
    while made.pending:
        sessions += 1
        try:
            parts.steps.train_bank(_session(parts, tmp_path, left=1e-9), made, plan.name)
        except parts.slices.SliceEndedError:
            assert made.pending
    assert sessions > 1
    whole = _session(parts, tmp_path / "whole").bank("bank", plan, 1)
    whole.run()
    assert np.array_equal(made.logits(), whole.logits())


def test_a_slice_without_time_does_nothing_and_says_so(parts: _Parts, tmp_path: Path) -> None:
    assert _study(parts, tmp_path, "runs", "--minutes", "0") == parts.study.UNFINISHED
    assert not (tmp_path / "scratch").exists()


def test_a_finished_study_is_finished_at_once(parts: _Parts, finished: Path) -> None:
    before = (finished / "state" / "costs.json").read_bytes()
    assert _study(parts, finished, "all", "--minutes", "0") == 0
    assert (finished / "state" / "costs.json").read_bytes() == before


def test_what_was_published_is_continued_in_a_new_folder(parts: _Parts, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "results", tmp_path / "results")
    assert _study(parts, tmp_path, "restore") == 0
    assert _study(parts, tmp_path, "all", "--minutes", "0") == 0  # nothing is left to do
    assert _study(parts, tmp_path, "publish") == 0
    before, again = (parts.published.Published(folder / "results" / "tiny") for folder in (finished, tmp_path))
    for one, two in zip(before.lds("margin", 0), again.lds("margin", 0), strict=True):
        np.testing.assert_allclose(two.per_query, one.per_query, atol=0.03)  # logits are published as float16
    for name, array in before.ranks[0].items():
        np.testing.assert_array_equal(again.ranks[0][name], array)
    assert again.content["costs"] == before.content["costs"]
    at = _session(parts, tmp_path)
    with pytest.raises(SystemExit, match="another recipe or other data"):
        parts.published.restore(replace(at, study=replace(at.study, width=0.25)), tmp_path / "results" / "tiny")
    with pytest.raises(SystemExit, match="Nothing of the size tiny is published"):
        parts.published.restore(at, tmp_path / "elsewhere")


def test_a_folder_of_another_study_is_refused(parts: _Parts, finished: Path) -> None:
    at = _session(parts, finished)
    with pytest.raises(FingerprintError, match="width"):
        _ = replace(at, study=replace(at.study, width=0.125)).splits


def _copied(parts: _Parts, finished: Path, folder: Path, left: float = float("inf")) -> Any:
    """A session at a copy of the finished study's state, without its runs."""
    if not folder.exists():
        shutil.copytree(finished / "state", folder / "state")
    return _session(parts, folder, left)


def _digest(parts: _Parts, folder: Path, label: str) -> Path:
    return Path(parts.digests.file_of(folder / "state" / "scores", label))


def test_scores_made_run_by_run_are_those_of_all_runs_and_need_only_those_to_go(
    parts: _Parts, finished: Path, tmp_path: Path
) -> None:
    at = _copied(parts, finished, tmp_path / "a")
    runs = [Run.load(path, dataset=at.splits) for path in sorted((finished / "scratch" / "runs").iterdir())]
    for method in at.study.methods:
        if not isinstance(method, parts.scoring.MEANS):
            continue
        _digest(parts, tmp_path / "a", method.label).unlink()
        partial = parts.scoring._partial(at, method.label)
        first = replace(at, study=replace(at.study, runs=1), scratch=finished / "scratch")
        parts.scoring._mean_over_runs(first, method)  # as far as a first slice came
        assert Scores.load(partial).info["summed"] == 1
        (at.scratch / "runs").mkdir(parents=True, exist_ok=True)
        if not (at.scratch / "runs" / "001").exists():
            (at.scratch / "runs" / "001").symlink_to(finished / "scratch" / "runs" / "001")
        found = parts.scoring._scored(at, method)
        wanted = method.fit(runs).attribute(at.splits.query.ids)
        np.testing.assert_allclose(found.values, wanted.values, rtol=1e-3, atol=1e-5 * np.abs(wanted.values).max())
        assert not (at.scratch / "runs" / "000").exists()
        parts.scoring.score(at)
        kept, before = (parts.digests.Digest.load(_digest(parts, f, method.label)) for f in (tmp_path / "a", finished))
        for plan, sums in before.sums.items():
            np.testing.assert_allclose(kept.sums[plan], sums, rtol=1e-3, atol=1e-4 * np.abs(sums).max())
        assert kept.info == before.info
        assert not partial.exists()


def test_runs_are_not_trained_again_for_scores_that_are_there(parts: _Parts, finished: Path, tmp_path: Path) -> None:
    at = _copied(parts, finished, tmp_path / "a")
    parts.scoring.do_runs(at)
    parts.scoring.score(at)
    assert not at.scratch.exists()


def test_scores_of_a_bank_are_made_some_queries_at_a_time(
    parts: _Parts, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.scoring, "QUERIES", 8)
    at = _copied(parts, finished, tmp_path / "a")
    for method in at.study.bank_methods:
        _digest(parts, tmp_path / "a", method.label).unlink()
    made = parts.scoring._of_bank

    def cut(at: Any, method: Any, bank: Any, digest: Any) -> Any:
        made(at, method, bank, digest)
        parts.scoring._partial(at, f"{method.label}-8").unlink()
        raise parts.slices.SliceEndedError

    monkeypatch.setattr(parts.scoring, "_of_bank", cut)
    with pytest.raises(parts.slices.SliceEndedError):
        parts.scoring.score(at)
    monkeypatch.setattr(parts.scoring, "_of_bank", made)
    parts.scoring.score(at)
    for method in at.study.bank_methods:
        kept, before = (parts.digests.Digest.load(_digest(parts, f, method.label)) for f in (tmp_path / "a", finished))
        assert kept.query_ids.tolist() == before.query_ids.tolist()
        if method.label == "fz":  # no iterations: the same to the last order
            assert kept.top.tolist() == before.top.tolist()
        for plan, sums in before.sums.items():
            np.testing.assert_allclose(kept.sums[plan], sums, rtol=1e-4, atol=1e-4 * np.abs(sums).max())
    assert not list((at.folder / "partial").iterdir())


def test_a_bank_keeps_the_engine_it_began_with(
    parts: _Parts, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(RetrainingBank, "run", lambda bank, **options: given.append(options["engine"]))
    monkeypatch.setattr(parts.steps.Session, "engine", "the captured one")
    for folder in (finished, tmp_path):
        at = _session(parts, folder)
        plan, seeds = parts.steps.truth_plans(at.study, at.splits)[0]
        at.train(at.bank("bank", plan, seeds))
    assert given == [None, "the captured one"]


def test_what_took_longer_than_is_left_is_not_begun_but_as_the_first_of_a_slice(parts: _Parts, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    at = _session(parts, tmp_path, left=5.0)
    at.book.note("longest", long=6.0, short=1.0)
    for name in ("long", "short"):
        with at.unit(name):
            pass
    assert at.book.entries["longest"]["long"] == 6.0
    with pytest.raises(parts.slices.SliceEndedError), at.unit("long"):
        pytest.fail("begun")


def test_setting_up_does_not_count_as_the_length_of_a_job(parts: _Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(parts.slices.time, "monotonic", lambda: now[0])

    class Slow(Serial):
        def results(self, work: Any) -> Generator[tuple[int, Any], None, None]:
            for place in range(20):
                now[0] += 50.0 if place == 0 else 5.0
                yield place, None

    executor = parts.slices.Until(parts.slices.Clock(2.0, started=0.0), Slow())
    assert [place for place, _ in executor.results(None)] == list(range(14))  # at 115 s no further 5 s fit


@pytest.mark.parametrize(
    ("device", "captured", "kind"),
    [("cuda", {"seconds": 5.0}, "captured"), ("cuda", {"seconds": 25.0}, None), ("cuda", {"refused": "wrong"}, None),
     ("cpu", {"seconds": 5.0}, None)],
)  # fmt: skip
def test_banks_train_by_what_the_step_speed_has_found(
    parts: _Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, captured: dict[str, Any], kind: str
) -> None:
    monkeypatch.setattr(parts.steps, "resolve_device", lambda _: torch.device(device))
    at = _session(parts, tmp_path)
    assert at.engine is None
    (tmp_path / "state").mkdir()
    write_json(tmp_path / "state" / "speed.json", {"one-by-one": {"seconds": 20.0}, "captured": captured})
    assert getattr(at.engine, "kind", None) == kind


def test_brittleness_query_by_query_is_that_of_the_library(parts: _Parts, finished: Path, tmp_path: Path) -> None:
    at = _session(parts, finished)
    found, study = parts.removing.brittleness_of(at), at.study.removals
    scores = {
        label: parts.digests.as_scores(
            parts.digests.Digest.load(parts.digests.file_of(finished / "state" / "scores", label)), at.splits.train.ids
        )
        for label in study.methods
    }
    wanted = brittleness(
        scores,
        study.ks,
        dataset=at.splits,
        out=tmp_path,
        seeds=study.seeds,
        base_seeds=study.base_seeds,
        queries=found.query_ids,
        training=at.training,
        compute=Compute("serial", device="cpu"),
    )
    assert found.methods == wanted.methods
    np.testing.assert_allclose(found.margins, wanted.margins, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.full.voting_margins, wanted.full.voting_margins, rtol=1e-3, atol=1e-4)


def test_brittleness_goes_on_with_more_numbers_and_methods(parts: _Parts, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "state", tmp_path / "state")
    at = _session(parts, tmp_path)
    before, methods = parts.removing.brittleness_of(at), at.study.removals.methods
    assert len(parts.removing._finished(at).query_ids) == 3
    removals = replace(at.study.removals, ks=(5, 10, 15), methods=(*methods, "tracin"))
    at = replace(at, study=replace(at.study, removals=removals))
    assert parts.removing._finished(at) is None
    trained = len(list((tmp_path / "state" / "removal-bank" / "results").iterdir()))
    parts.removing.remove(at)
    found = parts.removing.brittleness_of(at)
    assert (found.methods[:3], found.ks) == ((*methods, "tracin"), (5, 10, 15))
    rows = [found.methods.index(name) for name in before.methods]
    np.testing.assert_array_equal(found.margins[rows][:, :, [0, 2]], before.margins)
    fresh = len(list((tmp_path / "state" / "removal-bank" / "results").iterdir())) - trained
    assert 0 < fresh <= 3 * 2 * (len(before.methods) + 3)  # of three queries, two models of each new set


# --- its parts ---


def test_a_digest_keeps_sums_and_order(parts: _Parts, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(100)[:30]
    scores = Scores(rng.integers(0, 9, (30, 4)).astype(np.float32), ids, np.array([7, 5, 6, 8]), "trak(a=1)")
    plan = subsets.random(0.5, 6)
    file = parts.digests.digest_scores(scores, [plan], 30).save(tmp_path)
    found = parts.digests.Digest.load(file)
    ordered = scores.subset(train_ids=np.sort(ids))
    np.testing.assert_allclose(found.sums[plan.name], plan.masks_for(np.sort(ids)).astype(float) @ ordered.values)
    again = parts.digests.as_scores(found, ids)
    for query in (5, 8):
        assert np.array_equal(again.top(30, query=query).ids, scores.top(30, query=query).ids)


def test_ranks_give_the_lds_of_the_sums(parts: _Parts) -> None:
    rng = np.random.default_rng(0)
    scores, masks = rng.normal(size=(40, 5)), rng.random((60, 40)) < 0.5
    outputs = masks @ scores + rng.normal(size=(60, 5))
    wanted = linear_datamodeling_score(scores, masks, outputs, bootstrap=0)
    ranks = rankdata(masks @ scores, axis=0).astype(np.float16).astype(float)
    truth = parts.published.GroundTruth(masks, outputs, bootstrap=0)
    np.testing.assert_allclose(truth.lds([ranks], ["x"])[0].per_query, wanted.per_query, atol=1e-12)


def test_finished_takes_whole_seeds_and_else_enough_subsets(parts: _Parts) -> None:
    outputs = np.zeros((30, 3, 2))
    rows, seeds = parts.published.finished(outputs)
    assert (rows.size, seeds) == (30, 3)
    outputs[5, 1] = np.nan
    rows, seeds = parts.published.finished(outputs)
    assert (rows.size, seeds) == (30, 1)
    outputs[22:, 0] = np.nan
    rows, seeds = parts.published.finished(outputs)
    assert (rows.tolist(), seeds) == (list(range(22)), 1)
    outputs[10:, 0] = np.nan
    assert parts.published.finished(outputs) is None


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_flops_of_a_convolution_are_three_times_its_forward_pass(parts: _Parts, groups: int) -> None:
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    weight = torch.randn(16, 8 // groups, 3, 3, requires_grad=True)

    def work() -> None:
        torch.autograd.backward(torch.nn.functional.conv2d(x, weight, padding=1, groups=groups).sum())

    assert parts.flops.counted_flops(work)[0] == 3 * 2 * (4 * 16 * 6 * 6) * (8 // groups) * 9


def test_the_paper_size_is_the_papers_protocol(parts: _Parts) -> None:
    paper = parts.declared.PAPER
    assert paper.shrunk == ()
    assert (paper.subsets, paper.runs, paper.data["queries"], paper.width) == (100, 10, 200, 1.0)
    assert paper.truths == ((0.5, 10), (0.3, 10), (0.7, 10), (0.9, 10), ("loo", 10))
    assert (paper.removals.queries, paper.removals.seeds, max(paper.removals.ks)) == (200, 5, 800)
    assert (paper.recipe.epochs, paper.recipe.batch_size, paper.recipe.lr) == (24, 512, 0.4)
    for study in parts.declared.STUDIES.values():
        assert set(study.removals.methods) <= set(study.labels)
        assert parts.claims.PAPER_CLD in study.labels


# --- claims ---


def _results(parts: _Parts, noise: dict[tuple[str, float], float]) -> list[Any]:
    """The LDS of methods whose scores are the truth's and so much noise, at each ratio."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 30))
    results = []
    for alpha in dict.fromkeys(alpha for _, alpha in noise):
        members = round(alpha * 200)
        masks = np.argsort(rng.random((80, 200)), axis=1) < members
        ground = parts.published.GroundTruth(masks, masks @ truth, output="margin", alpha=alpha, bootstrap=200)
        own = {name: amount for (name, ratio), amount in noise.items() if ratio == alpha}
        made = [ground.predictions(truth + amount * rng.normal(size=truth.shape)) for amount in own.values()]
        results += ground.lds(made, list(own))
    return results


def _verdicts(parts: _Parts, noise: dict[tuple[str, float], float]) -> list[str]:
    return [claim.verdict for claim in parts.claims.claims_of(_results(parts, noise), None, 200)]


def test_claims_that_are_true_of_the_data_hold(parts: _Parts) -> None:
    cld, names = parts.claims.PAPER_CLD, (parts.claims.PAPER_CLD, "trak", "tracin")
    noise = {(name, alpha): 0.05 for name in names for alpha in (0.3, 0.9)} | {(name, 0.995): 40.0 for name in names}
    assert _verdicts(parts, noise) == ["holds", "undecided", "holds", "not measured", "not measured"]
    assert _verdicts(parts, noise | {(cld, 0.3): 8.0})[:2] == ["undecided", "holds"]


def test_claims_that_are_false_of_the_data_do_not_hold(parts: _Parts) -> None:
    cld = parts.claims.PAPER_CLD
    noise = {(name, alpha): 0.5 for name in ("trak", "tracin") for alpha in (0.3, 0.9, 0.995)}
    noise |= {(cld, 0.3): 2.0, (cld, 0.9): 20.0, (cld, 0.995): 20.0}
    assert _verdicts(parts, noise)[:3] == ["does not hold", "does not hold", "does not hold"]


def test_a_method_below_cld_has_no_gap_to_narrow_and_decides_nothing(parts: _Parts) -> None:
    cld = parts.claims.PAPER_CLD
    noise = {("trak", 0.3): 0.05, (cld, 0.3): 8.0, ("tracin", 0.3): 60.0}
    noise |= {(name, 0.9): 0.05 for name in ("trak", cld, "tracin")}
    claim = parts.claims.claims_of(_results(parts, noise), None, 200)[1]
    assert claim.verdict == "holds"
    assert ["No gap to narrow." in told for told in claim.because] == [False, True]


def test_what_noise_alone_explains_is_said(parts: _Parts) -> None:
    cld = parts.claims.PAPER_CLD
    noise = {("trak", 0.3): 0.05, (cld, 0.3): 8.0, ("trak", 0.9): 0.05, (cld, 0.9): 0.05, ("trak", 0.995): 40.0}
    ceilings = {0.3: 0.8, 0.9: 0.5, 0.995: 0.01}
    results = [replace(r, noise_ceiling=ceilings[r.alpha]) for r in _results(parts, noise)]
    _, narrows, drops, *_ = parts.claims.claims_of(results, None, 200)
    gaps = [float(re.search(rf"{gap} \[", narrows.because[0]).group(1)) for gap in (r"trak: (\S+)", r"0.3, (\S+)")]  # type: ignore[union-attr]
    shares = f"{gaps[0] / 0.8:+.2f} and {gaps[1] / 0.5:+.2f}"
    assert f"As a share of the noise ceiling: {shares}." in narrows.because[0]
    told = "The noise ceiling falls from 0.500 to 0.010"
    assert drops.because[-1] == f"{told}: what one example changes is hidden by the noise of training."
    one_seed = [replace(r, noise_ceiling=None) for r in results]
    assert "ceiling" not in " ".join(s for c in parts.claims.claims_of(one_seed, None, 200) for s in c.because)


def test_what_cld_says_beyond_the_class_is_its_partial_correlation(parts: _Parts, finished: Path) -> None:
    published = parts.published.Published(finished / "results" / "tiny")
    label, control = parts.claims.PAPER_CLD, "same-class-control"
    found = published.given(label, control, "margin")
    assert set(found) == {result.alpha for result in published.lds("margin", 0)}
    bank = next(bank for bank in published.banks if bank.masks.mean() == 0.5)
    digests = [parts.digests.Digest.load(_digest(parts, finished, name)) for name in (label, control)]
    truth = bank.outputs("margin").mean(1)
    expected = []
    for query in range(truth.shape[1]):
        x, z, y = (rankdata(c[:, query]) for c in (*(d.sums[bank.plans[0]] for d in digests), truth))
        left = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
        expected.append(np.corrcoef(*left)[0, 1])
    assert found[0.5].value == pytest.approx(np.mean(expected), abs=1e-6)
    claim = parts.claims.claims_of(published.lds("margin", 20), None, 200, given_class=found)[4]
    assert f"Given the control: {found[0.5].value:+.3f} [{found[0.5].low:+.3f}" in claim.because[0]


def test_flops_of_recording_are_those_of_the_rows_that_are_read(parts: _Parts, finished: Path) -> None:
    published = parts.published.Published(finished / "results" / "tiny")
    labels = ("cld(correlation=spearman)", parts.claims.PAPER_CLD)
    dense, paper = (parts.compute_cost.cost_of(published, label)[1] for label in labels)
    entry = published.costs["runs"]
    trained, recorded = (entry[f"flops {name}"] / entry["count"] * 2 for name in ("training", "recording"))
    assert dense == pytest.approx(trained + recorded, rel=1e-3)
    rows = 7 / 13  # 6 epochs of 10 steps: a row each and before, and every 5 steps
    assert paper == pytest.approx(trained + rows * recorded, rel=1e-3)


def test_ratios_are_compared_with_as_many_seeds_at_each(parts: _Parts, finished: Path) -> None:
    published = parts.published.Published(finished / "results" / "tiny")
    assert {result.seeds for result in published.lds("margin", 20)} == {1, 2}
    assert {result.seeds for result in published.lds("margin", 20, most_seeds=1)} == {1}
    noise = {("trak", 0.3): 0.05, ("trak", 0.9): 0.05, ("trak", 0.995): 40.0}
    more, fewer = _results(parts, dict.fromkeys(noise, 0.05)), _results(parts, noise)
    claims = parts.claims.claims_of(more, None, 200, alike=fewer)
    assert [claims[2].verdict, parts.claims.claims_of(more, None, 200)[2].verdict] == ["holds", "does not hold"]


@pytest.mark.parametrize(("control", "verdict"), [(8.0, "holds"), (0.5, "does not hold"), (0.52, "does not hold")])
def test_what_the_class_alone_says_is_the_least_that_cld_is_held_to(
    parts: _Parts, control: float, verdict: str
) -> None:
    noise = {(parts.claims.PAPER_CLD, alpha): 0.5 for alpha in (0.3, 0.9)}
    noise |= {("same-class-control", alpha): control for alpha in (0.3, 0.9)}
    assert _verdicts(parts, noise)[4] == verdict


def test_too_few_data_decide_nothing(parts: _Parts, finished: Path) -> None:
    results = parts.published.Published(finished / "results" / "tiny").lds("margin", 100)
    assert "holds" not in {claim.verdict for claim in parts.claims.claims_of(results, None, 200)[:2]}


def test_nothing_measured_gives_no_verdict(parts: _Parts) -> None:
    assert {claim.verdict for claim in parts.claims.claims_of([], None, 200)} == {"not measured"}


def test_flips_are_judged_by_the_interval_at_the_papers_share(parts: _Parts, finished: Path) -> None:
    few = parts.removing.brittleness_of(_session(parts, finished))
    of_full = {name: np.tile(getattr(few.full, name), 12) for name in vars(few.full)}
    wide = {name: np.repeat(getattr(few, name), 12, axis=1) for name in ("predicted", "margins", "class_emptied")}
    labels = np.tile(few.query_labels, 12)
    labels[:12] = (labels[:12] + 5) % 10  # whose queries then were wrong before anything was removed
    found = replace(few, **wide, full=replace(few.full, **of_full), query_ids=np.arange(36), query_labels=labels)
    row = found.methods.index(parts.claims.PAPER_CLD)
    for flipped, verdict in ((0, "does not hold"), (1, "holds")):
        predicted = np.array(found.predicted)
        predicted[row] = (found.prediction[:, None, None] + flipped) % 10
        changed, k = replace(found, predicted=predicted), min(found.ks)
        claim = parts.claims.claims_of([], changed, 200)[3]
        assert claim.verdict == verdict
        assert f"k = {k}" in claim.because[0]
        points = 100 * changed.difference(parts.claims.PAPER_CLD, "random removal", k).value
        assert any(f"CLD-inf minus random removal, k = {k}: {points:+.0f} points [" in told for told in claim.because)
        right = changed.query_ids[~changed.wrong]
        assert 1 < right.size < 36
        rate = changed.only(right).rate(parts.claims.PAPER_CLD, k).value
        told = f"Of the {right.size} queries that were right before, k = {k}: {parts.claims.PAPER_CLD} {rate:.0%} ["
        assert claim.because[-1].startswith(told)
