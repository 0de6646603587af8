"""The texts of ``benchmarks/quality.py`` at tiny sizes: models, the loop of their own, recorded runs, baselines."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comove.attribution import Scores
from comove.store import read_json
from comove.tasks import CausalLM
from tests.test_quality import benchmark_modules

NAMES = ("measuring", "attribution", "ekfac", "peers", "quality_cases", "small_transformer", "quality_texts")
OWN = (*NAMES, "quality_peers", "quality_methods", "quality_page", "quality")


@pytest.fixture(scope="module")
def parts() -> Any:
    """The modules of the benchmark."""
    with benchmark_modules(OWN) as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up texts where the real ones lie."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    drawn = np.random.default_rng(0)
    for name, word in (("neg", "bad"), ("pos", "good")):
        lines = [" ".join(f"w{i}" for i in drawn.integers(0, 60, 5)) + f" {word}" for _ in range(1400)]
        lines[0] = "-"
        (folder / "text" / f"rt-polarity.{name}").write_text("\n".join(lines), encoding="latin-1")
    letters = "".join(drawn.choice(list("abcde fghij"), 32 * 1300))
    (folder / "text" / "tinyshakespeare.txt").write_text(letters, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cases(parts: dict[str, Any], data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both cases, small."""
    folder, texts = tmp_path_factory.mktemp("state"), parts["quality_texts"]
    loop = parts["small_transformer"].Loop(2, 250, 1e-2, noted=2)
    made = {name: getattr(texts, f"{name}_case") for name in ("sentences", "characters")}
    found = {name: make(folder / name, data, loop=loop, width=8) for name, make in made.items()}
    return {name: replace(case, subsets=3, seeds=2, counts=(1,)) for name, case in found.items()}


# --- the model and the loop -------------------------------------------------------------------------------------------


def test_a_causal_model_does_not_see_later_tokens(parts: dict[str, Any]) -> None:
    model = parts["small_transformer"].Transformer(7, 6, 7, 8, causal=True)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = tokens.clone()
    changed[0, 3] = 0
    found, other = model(tokens), model(changed)
    torch.testing.assert_close(found[:, :3], other[:, :3])
    assert not torch.allclose(found[:, 3:], other[:, 3:])


def test_padding_says_nothing_and_an_empty_text_is_a_number(parts: dict[str, Any]) -> None:
    model = parts["small_transformer"].Transformer(7, 6, 2, 8, causal=False)
    padded = model(torch.tensor([[1, 2, 3, 0, 0, 0]]))
    torch.testing.assert_close(padded, model(torch.tensor([[1, 2, 3]])))
    assert torch.isfinite(model(torch.zeros(1, 6, dtype=torch.int64))).all()


def test_the_rate_rises_then_falls_to_nothing(parts: dict[str, Any]) -> None:
    loop = parts["small_transformer"].Loop(1, 1, 2.0)
    assert math.isclose(loop.rate_at(0.05), 1.0)
    assert math.isclose(loop.rate_at(0.1), 2.0)
    assert math.isclose(loop.rate_at(0.55), 1.0)
    assert math.isclose(loop.rate_at(1.0), 0.0, abs_tol=1e-12)


def test_training_is_decided_by_its_seed_and_leaves_torchs_generator(cases: dict[str, Any]) -> None:
    case = cases["characters"]
    ids, before = case.splits.train.ids[:40], torch.get_rng_state()
    first, again, other = (case.function(ids, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["out.weight"], other["out.weight"])


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sentences", "characters"])
def test_the_recorded_losses_are_those_of_the_checkpoints(cases: dict[str, Any], name: str) -> None:
    case = cases[name]
    run = case.run(0)
    assert [row.epoch for row in run.trace.rows] == [0, 0.5, 1, 1.5, 2]
    assert [kept.epoch for kept in run.checkpoints] == [1, 2]
    assert [kept.lr for kept in run.checkpoints] == [case.loop.rate_at(0.5), case.loop.rate_at(1.0)]
    batch = case.splits.query.collated(np.arange(len(case.splits.query)))
    for kept in run.checkpoints:
        with torch.no_grad():
            losses = case.task.loss(case.task.outputs(run.load_model(kept), batch), batch)
        order = np.argsort(run.trace.query_ids)
        np.testing.assert_allclose(run.trace.lazy("query")[kept.row][order], losses.numpy(), atol=1e-5)
    assert set(run.step_factors(run.checkpoints[0])) == {name for name, _ in case.network().named_parameters()}


def test_a_run_cut_off_while_it_was_recorded_is_made_anew(cases: dict[str, Any], tmp_path: Path) -> None:
    case = replace(cases["characters"], folder=tmp_path)
    whole = case.run(0).load_model().state_dict()
    (tmp_path / "trained" / "000" / "finished").unlink()
    again = case.run(0).load_model().state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_recipes_are_chosen_by_texts_that_are_no_queries(cases: dict[str, Any]) -> None:
    for case, size in ((cases["sentences"], 600), (cases["characters"], 200)):
        apart = case.trial
        assert len(apart.query) == size
        np.testing.assert_array_equal(apart.train.ids, case.splits.train.ids)
        assert not np.intersect1d(apart.query.ids, [*case.splits.query.ids, *case.splits.train.ids]).size


def test_losses_by_counts_are_right_on_five_letters(parts: dict[str, Any]) -> None:
    single, pairs = parts["quality_texts"].count_losses(np.array([[0, 0, 1]]), np.array([[0, 1]]))
    assert math.isclose(single, -math.log(1.5 / 4))
    assert math.isclose(pairs, -math.log(1.1 / 2.2))


# --- baselines and other libraries ----------------------------------------------------------------------------------


def test_embeddings_are_what_the_last_layer_sees(parts: dict[str, Any], cases: dict[str, Any]) -> None:
    methods = parts["quality_methods"]
    for case in cases.values():
        run, part = case.run(0), case.splits.query
        found, model = methods.embeddings(run, part), run.load_model()
        assert found.shape == (len(part), 8)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        logits = case.task.outputs(model, part.collated(np.arange(len(part))))
        mean = logits if logits.ndim == 2 else logits.mean(1)  # the last layer is linear, and so is the mean
        direction = torch.from_numpy(found) @ model.out.weight.detach().T
        cosine = torch.cosine_similarity(direction, (mean - model.out.bias).detach(), dim=1)
        torch.testing.assert_close(cosine, torch.ones(len(part)))


def test_similar_texts_help_and_of_another_class_hurt_by_label(parts: dict[str, Any], cases: dict[str, Any]) -> None:
    case, methods = cases["sentences"], parts["quality_methods"]
    plain, signed = (methods.text_similarity(flag)(case, []).values for flag in (False, True))
    same = case.splits.train.labels[:, None] == case.splits.query.labels[None]
    np.testing.assert_array_equal(signed, np.where(same, plain, -plain))
    assert (plain >= 0).all()
    train, queries = cases["characters"].documents()
    assert len(train) == 1000
    assert len(queries[0]) == 30
    assert all(len(group) == 3 for group in queries[0])


def test_other_libraries_are_given_the_same_loss_and_measured_output(
    parts: dict[str, Any], cases: dict[str, Any]
) -> None:
    run = cases["characters"].run(0)
    setting = parts["quality_peers"].OfRun(Path(), None, 0, 0, 100, run)
    model, (x, y) = setting.run.load_model(), setting.query_xy
    batch = run.data().query.collated(np.arange(len(run.data().query)))
    outputs = run.task.outputs(run.load_model(), batch)
    losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none").mean(1)
    torch.testing.assert_close(losses, run.task.loss(outputs, batch))
    margins = torch.stack([parts["peers"].margin(model(x[i : i + 1]), y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(margins, run.task.measure(outputs, batch)[:3])
    state, rate = setting.weights[0]
    model.load_state_dict(state)
    torch.testing.assert_close(model.model.out.weight, run.load_model(run.checkpoints[0]).out.weight)
    assert rate == run.checkpoints[0].lr
    assert len(setting.hessian_xy[1]) == 128


def test_trakers_output_for_texts_is_the_measured_one(parts: dict[str, Any], cases: dict[str, Any]) -> None:
    pytest.importorskip("trak")
    run, made = cases["characters"].run(0), parts["peers"].text_output()
    setting = parts["quality_peers"].OfRun(Path(), None, 0, 0, 100, run)
    model, (x, y) = setting.run.load_model(), setting.query_xy
    weights = dict(model.named_parameters())
    batch = {"input_ids": x[:4]}
    outputs = CausalLM().outputs(model.model, batch)
    found = torch.stack([made.get_output(model, weights, {}, x[i], y[i]) for i in range(4)])
    torch.testing.assert_close(found, CausalLM().measure(outputs, batch))
    weight = made.get_out_to_loss_grad(model, weights, {}, (x[:4], y[:4]))
    torch.testing.assert_close(weight[:, 0], CausalLM().error_probability(outputs, batch))


def test_a_tiny_case_goes_all_the_way_to_its_rows(parts: dict[str, Any], cases: dict[str, Any], tmp_path: Path) -> None:
    quality, case = parts["quality"], cases["characters"]
    measured = quality.Measured(case)
    chosen = [m for m in parts["quality_methods"].methods_of(case) if m.name in ("BM25", "trak", "cld (paper)")]
    quality.compute(measured, chosen, None)
    found = quality.result_of(measured)
    assert [row["method"] for row in found["rows"]] == ["cld (paper)", "trak", "BM25"]
    assert (found["n"], found["q"], found["subsets"], found["planned"], found["seeds"]) == (1000, 100, 3, 3, 2)
    assert "by those of pairs" in found["learnt"]
    trak = found["rows"][1]
    assert math.isclose(trak["epochs"], 2 + 1.1)
    assert -1 <= trak["lds"] <= 1
    quality.export(measured, tmp_path / "scores")
    told = read_json(tmp_path / "scores" / "methods.json")
    assert set(told) == {"cld-paper-1", "trak-1", "BM25-0"}
    assert told["trak-1"]["epochs"] == trak["epochs"]
    saved = Scores.load(tmp_path / "scores" / "trak-1.safetensors")
    np.testing.assert_array_equal(saved.values, measured.scores(chosen[1], 0, 1).values)


def test_methods_are_held_to_the_subsets_whose_models_are_all_there(
    parts: dict[str, Any], cases: dict[str, Any], tmp_path: Path
) -> None:
    case = replace(cases["characters"], folder=tmp_path, subsets=4, seeds=1)
    bank = case.bank(complete=False)
    for job in bank.pending_jobs()[:3]:
        bank.record(job, {name: np.arange(100.0) + job["subset"] for name in ("loss", "measure")})
    truth, _ = parts["quality"].Measured(case, complete=False).truth
    assert truth.predictions(np.ones((1000, 100))).shape == (3, 100)
    assert len(bank.pending_jobs()) == 1
