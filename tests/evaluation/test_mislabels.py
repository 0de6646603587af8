"""Hunting for wrong labels: what each method reads, which end is suspicious, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comove.attribution import TracIn
from comove.coreset.aum import AUM
from comove.coreset.cld import CLDCoreset
from comove.data import ExampleSet, Splits
from comove.data.label_noise import flip_labels, known_flips
from comove.errors import CorruptFileError, InputError, InputTypeError, NonFiniteError
from comove.evaluation.label_errors.ranking import flips_of, rank_labels
from comove.evaluation.label_errors.signals import SIGNALS, as_signals
from comove.evaluation.label_errors.suggestions import mean_probabilities
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.trace import Row, Trace
from comove.training import Recipe, Run, predict, train
from comove.training.sources import as_sources

EPOCHS, N, CLASSES = 12, 40, 4


def bare(**changes: Any) -> Trace:
    """A trace of losses alone: examples 3 and 7 rise while their class falls; ids run backwards."""
    generator = np.random.default_rng(0)
    fall = 2 * np.exp(-np.arange(EPOCHS) / 2)[:, None]
    falling = fall + generator.normal(0, 0.02, (EPOCHS, N))
    falling[:, [3, 7]] = 4 - falling[:, [3, 7]]
    labels = np.arange(N) % CLASSES
    given: dict[str, Any] = {
        "train_losses": falling,
        "query_losses": fall + generator.normal(0, 0.02, (EPOCHS, 8)),
        "train_labels": labels,
        "query_labels": np.arange(8) % CLASSES,
        "train_ids": 1000 - np.arange(N),
    }
    return Trace.from_arrays(**(given | changes))


def of_rows(ids: Any, **fields: Any) -> Trace:
    """A trace in memory of statistics (T, N) after epochs 1 to T; nothing of it is checked."""
    arrays = {
        f"train.{name}": np.concatenate([values[:1], values]).astype(np.float32) for name, values in fields.items()
    }
    rows = [Row(index, index, float(index)) for index in range(len(next(iter(arrays.values()))))]
    arrays.setdefault("train.loss", np.zeros((len(rows), len(ids)), np.float32))
    arrays["query.loss"] = np.zeros((len(rows), 1), np.float32)
    examples = {"train_ids": np.array(ids), "train_labels": np.arange(len(ids)) % 3}
    examples |= {"query_ids": np.array([10_000]), "validation_ids": np.array([10_000])}
    return Trace(examples=examples, rows=rows, manifest={"mode": "given"}, folder=None, arrays=arrays)


@pytest.fixture(scope="module")
def noisy(small_digits: Splits) -> Splits:
    """200 digits, 30 of them with a wrong label."""
    return flip_labels(small_digits, 0.15)[0]


@pytest.fixture(scope="module")
def noisy_run(noisy: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on them, all checkpoints kept."""
    return train(noisy, "mlp", Recipe(epochs=10, batch_size=32, lr=0.1), 0, tmp_path_factory.mktemp("noisy") / "run")


@pytest.fixture(scope="module")
def found(noisy_run: Run) -> Suspicion:
    """Every method's ranking of that run."""
    return rank_labels(noisy_run)


# --- what is measured --------------------------------------------------------------------------------------------


def test_each_method_gives_what_the_method_of_its_name_gives(found: Suspicion, noisy_run: Run) -> None:
    trace = noisy_run.trace
    assert found.methods == tuple(SIGNALS)
    assert found.low == ("aum", "cld")
    np.testing.assert_array_equal(found.values["cld"], CLDCoreset().scores(noisy_run))
    np.testing.assert_array_equal(found.values["aum"], AUM(keep="high").scores(noisy_run))
    np.testing.assert_allclose(found.values["tracin"], TracIn().fit(noisy_run).self_influence(), rtol=1e-5)
    np.testing.assert_array_equal(found.values["loss"], trace.train_losses[-1])
    margins_TN = trace.read("train", "margin_logit", rows=range(1, len(trace.rows)))
    np.testing.assert_allclose(found.values["aum"], margins_TN.mean(0), rtol=1e-5)


def test_every_method_but_chance_puts_flipped_labels_first(found: Suspicion, noisy: Splits) -> None:
    wrong = np.isin(found.train_ids, noisy.train.ids[noisy.train.labels != _true_labels(noisy)])
    assert wrong.sum() == 30
    for method in set(found.methods) - {"random"}:
        assert found.ranks(method)[wrong].mean() < 0.6 * found.ranks(method)[~wrong].mean(), method
    assert 0.7 < found.ranks("random")[wrong].mean() / found.ranks("random")[~wrong].mean() < 1.4


def _true_labels(noisy: Splits) -> np.ndarray:
    from comove.data.builtin import load_dataset

    clean = load_dataset("digits", limit=200, queries=40).train
    return clean.labels[clean.positions(noisy.train.ids)]


def test_the_most_suspicious_have_the_lowest_cld_and_aum_and_the_highest_of_the_rest(found: Suspicion) -> None:
    for method in found.methods:
        values = found.values[method]
        first = values[found.train_ids == found.most(1, method)[0]][0]
        assert first == (values.min() if method in found.low else values.max())


def test_losses_alone_rank_by_cld_and_final_loss_and_say_what_the_others_lack() -> None:
    found = rank_labels(bare())
    assert found.methods == ("loss", "cld")  # random only where wrong labels are known
    assert set(found.most(2, "cld").tolist()) == set(found.most(2, "loss").tolist()) == {997, 993}
    assert found.suggested is None
    assert "margin_logit" in found.skipped["aum"]
    assert "checkpoints='all'" in found.skipped["tracin"]
    assert "correct" in found.skipped["forgetting"]


def test_several_runs_are_averaged() -> None:
    other = bare(train_losses=np.random.default_rng(5).gamma(1, size=(EPOCHS, N)))
    both = rank_labels([bare(), other], ["cld", "loss"])
    each = [rank_labels(trace, ["cld", "loss"]).values for trace in (bare(), other)]
    for method in ("cld", "loss"):
        np.testing.assert_allclose(both.values[method], (each[0][method] + each[1][method]) / 2, rtol=1e-5, atol=1e-7)


def test_rankings_belong_to_the_ids_whatever_the_order_of_the_examples() -> None:
    trace, order = bare(), np.random.default_rng(1).permutation(N)
    turned = bare(
        train_losses=trace.train_losses[:, order],
        train_labels=trace.train_labels[order],  # type: ignore[index]
        train_ids=trace.train_ids[order],
    )
    for method in ("cld", "loss", "random"):
        assert rank_labels(trace, [method]).most(N).tolist() == rank_labels(turned, [method]).most(N).tolist()


def test_options_follow_a_name_and_objects_may_be_given() -> None:
    margins = np.random.default_rng(0).normal(size=(6, 9))
    trace = of_rows(range(9), margin_logit=margins, margin_prob=np.tanh(margins))
    found = rank_labels(trace, ["aum:margin=prob", AUM(first=2), "random:seed=3"])
    assert found.methods == ("aum(margin=prob)", "aum(first=2)", "random(seed=3)")
    assert found.low == ("aum(margin=prob)", "aum(first=2)")
    np.testing.assert_allclose(found.values["aum(first=2)"], margins[:2].mean(0), rtol=1e-5)
    assert not np.array_equal(found.values["random(seed=3)"], rank_labels(trace, ["random"]).values["random"])


def test_a_class_of_one_example_and_data_of_one_class_are_ranked_too() -> None:
    lonely = np.where(np.arange(N) == 3, 1, 0)
    found = rank_labels(bare(train_labels=lonely, query_labels=np.arange(8) % 2), ["cld"])
    assert set(found.most(2).tolist()) == {997, 993}
    single = rank_labels(bare(train_labels=np.zeros(N, int), query_labels=np.zeros(8, int)), ["cld"])
    assert set(single.most(2).tolist()) == {997, 993}


# --- the suggested class -----------------------------------------------------------------------------------------


def test_the_suggested_class_is_the_other_one_of_the_highest_mean_probability_over_checkpoints(noisy_run: Run) -> None:
    found = rank_labels(noisy_run, ["loss"])
    data = noisy_run.data().train
    kept = [predict(noisy_run.load_model(one), data).softmax(1) for one in noisy_run.checkpoints if one.epoch > 0]
    mean_NC = torch.stack(kept).mean(0)
    first, second = mean_NC.topk(2).indices.T.numpy()
    expected = np.where(first == data.labels, second, first)
    np.testing.assert_array_equal(found.suggested, expected)
    np.testing.assert_allclose(found.confidence, mean_NC.numpy()[range(200), expected], rtol=1e-5)  # type: ignore[arg-type]
    assert not (expected == data.labels).any()


def test_suggestions_give_the_true_class_of_most_flipped_labels(found: Suspicion, noisy: Splits) -> None:
    truth = _true_labels(noisy)
    wrong = noisy.train.labels != truth
    assert found.suggested is not None
    assert (found.suggested[wrong] == truth[wrong]).mean() > 0.6
    assert rank_labels(bare(), ["loss"]).suggested is None


def test_without_the_data_the_probabilities_kept_at_anchors_are_used(noisy_run: Run) -> None:
    trace = noisy_run.trace
    found = mean_probabilities(as_sources(trace, frozenset(), "test"))
    np.testing.assert_allclose(found, trace.probabilities("train"), rtol=1e-6)  # type: ignore[arg-type]
    assert rank_labels(trace, ["loss"], suggest=False).suggested is None


def test_a_damaged_checkpoint_is_no_reason_for_silence(noisy: Splits, tmp_path: Path) -> None:
    run = train(noisy, "mlp", Recipe(epochs=2, batch_size=32, lr=0.1), 0, tmp_path / "run")
    run.checkpoints[-1].path.write_bytes(b"no weights")
    with pytest.raises(CorruptFileError, match="safetensors"):
        rank_labels(run, ["loss"])


# --- the result --------------------------------------------------------------------------------------------------


def hand_made(**changes: Any) -> Suspicion:
    """Four labels; 30 and 10 tie in ``high``."""
    given: dict[str, Any] = {
        "train_ids": [30, 20, 10, 40],
        "labels": [0, 1, 0, 1],
        "values": {"high": [5.0, 1, 5, 2], "low": [0.5, -1, 0.2, 0.1]},
        "low": ("low",),
        "classes": ("cat", "<b>dog</b>"),
        "suggested": [1, 1, 0, 0],
        "confidence": [0.9, 0.8, 0.7, 0.6],
    }
    return Suspicion(**(given | changes))


def test_ranks_start_at_one_with_the_most_suspicious_and_ties_go_to_the_lower_id() -> None:
    found = hand_made()
    assert found.ranks("high").tolist() == [2, 4, 1, 3]
    assert found.ranks("low").tolist() == [4, 1, 3, 2]
    assert found.most(3).tolist() == [10, 30, 40]
    assert found.most(2, "low").tolist() == [20, 40]


def test_the_table_is_sorted_by_the_method_asked_for_and_names_everything(tmp_path: Path) -> None:
    import pandas as pd

    frame = hand_made().to_pandas("low")
    names = ["id", "label", "class", "suggested", "confidence", "high", "high_rank", "low", "low_rank"]
    assert list(frame.columns) == names
    assert frame["id"].tolist() == [20, 40, 10, 30]
    assert frame["low_rank"].tolist() == [1, 2, 3, 4]
    assert frame["class"].tolist() == ["<b>dog</b>", "<b>dog</b>", "cat", "cat"]
    assert frame["suggested"].tolist() == ["<b>dog</b>", "cat", "cat", "<b>dog</b>"]
    read = pd.read_csv(hand_made().to_csv(tmp_path / "s.csv", "low"))
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)


def test_a_saved_ranking_comes_back_bit_for_bit(found: Suspicion, tmp_path: Path) -> None:
    for number, one in enumerate((found, hand_made(suggested=None, confidence=None, skipped={"x": "why"}))):
        one.save(tmp_path / f"{number}.safetensors")
        again = Suspicion.load(tmp_path / f"{number}.safetensors")
        assert (again.methods, again.low, again.classes) == (one.methods, one.low, one.classes)
        assert (dict(again.skipped), dict(again.info)) == (dict(one.skipped), dict(one.info))
        assert (again.suggested is None) == (one.suggested is None)
        for method in one.methods:
            np.testing.assert_array_equal(again.values[method], one.values[method])
        assert again.to_pandas().equals(one.to_pandas())
    (tmp_path / "0.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError):
        Suspicion.load(tmp_path / "0.safetensors")


def test_results_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        hand_made().values["high"][0] = 0
    with pytest.raises(ValueError, match="read-only"):
        hand_made().labels[0] = 3


# --- clean, then train again -------------------------------------------------------------------------------------


def test_suspicious_examples_are_left_out_or_relabelled_by_id(noisy: Splits, found: Suspicion) -> None:
    suspicious = found.most(20, "aum")
    kept = noisy.without(suspicious)
    assert len(kept.train) == 180
    assert not np.isin(suspicious, kept.train.ids).any()
    assert (kept.query, kept.validation) == (noisy.query, noisy.validation)
    np.testing.assert_array_equal(known_flips(kept), np.setdiff1d(known_flips(noisy), suspicious))  # type: ignore[arg-type]
    changed = noisy.relabelled({int(suspicious[0]): 3, int(suspicious[1]): 4})
    differs = changed.train.labels != noisy.train.labels
    assert set(changed.train.ids[differs]) <= set(suspicious[:2].tolist())
    assert changed.train.labels[changed.train.positions(suspicious[:2])].tolist() == [3, 4]
    assert changed.fingerprint != noisy.fingerprint
    with pytest.raises(InputError, match="Unknown ids"):
        noisy.without([10**9])
    with pytest.raises(InputError, match="Labels of 'digits' must be in 0"):
        noisy.relabelled({int(suspicious[0]): 10})


def test_flips_are_known_from_a_run_of_noisy_data_alone(noisy_run: Run, run: Run) -> None:
    wrong = flips_of([bare(), noisy_run])
    assert wrong is not None
    differs = noisy_run.data().train.labels != _true_labels(noisy_run.data())
    np.testing.assert_array_equal(wrong, np.sort(noisy_run.data().train.ids[differs]))
    assert flips_of([run]) is None
    assert flips_of([bare()]) is None


# --- bad input ---------------------------------------------------------------------------------------------------


def test_a_method_named_that_the_trace_has_nothing_for_is_refused_with_what_to_record() -> None:
    with pytest.raises(InputError, match=r"aum needs 'margin_logit'.*Record"):
        rank_labels(bare(), ["cld", "aum"])
    with pytest.raises(InputError, match=r"tracin needs checkpoints.*checkpoints='all'"):
        rank_labels(bare(), ["tracin"])


def test_a_class_without_validation_examples_is_refused() -> None:
    with pytest.raises(InputError, match=r"class"):
        rank_labels(bare(query_labels=np.zeros(8, int)), ["cld"])
    with pytest.raises(InputError, match="validation labels"):
        rank_labels(bare(query_labels=None), ["cld"])


def test_labels_are_needed() -> None:
    with pytest.raises(InputError, match="rank_labels needs training labels"):
        rank_labels(bare(train_labels=None))


def test_a_nan_is_refused_by_name_even_where_methods_may_be_left_out() -> None:
    loss = np.ones((4, 6))
    loss[3, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"loss: 1 scores .* id 50"):
        rank_labels(of_rows([70, 60, 50, 40, 30, 20], loss=loss), ["loss"])
    margins = np.where(np.arange(6) == 4, np.nan, 1.0) * np.ones((4, 1))
    with pytest.raises(NonFiniteError, match=r"aum: 1 scores .* id 30"):
        rank_labels(of_rows([70, 60, 50, 40, 30, 20], margin_logit=margins))
    with pytest.raises(NonFiniteError, match="high: values must be finite; that of id 20"):
        hand_made(values={"high": [1, np.nan, 1, 1]}, low=())


def test_runs_of_other_examples_or_other_labels_are_refused() -> None:
    with pytest.raises(InputError, match="same training examples"):
        rank_labels([bare(), bare(train_ids=np.arange(N))])
    with pytest.raises(InputError, match="different labels"):
        rank_labels([bare(), bare(train_labels=np.zeros(N, int))])


def test_unknown_names_and_foreign_methods_are_refused() -> None:
    with pytest.raises(InputError, match=r"Unknown way to suspect labels 'ama'\. Did you mean 'aum'"):
        rank_labels(bare(), ["ama"])
    with pytest.raises(InputError, match="has no option 'frist'"):
        as_signals(["aum:frist=3"])
    with pytest.raises(InputTypeError, match="Labels are suspected by"):
        rank_labels(bare(), [3])
    with pytest.raises(InputError, match="at least one method"):
        rank_labels(bare(), [])


def test_bad_questions_to_a_ranking_are_refused() -> None:
    found = hand_made()
    for k in (0, 5, True, 2.0):
        with pytest.raises(InputError, match="from 1 to 4"):
            found.most(k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Unknown method here 'lo'.*Did you mean 'low'"):
        found.ranks("lo")
    with pytest.raises(InputError, match="Unknown train ids"):
        found.suggestion(99)
    with pytest.raises(InputError, match="labels has shape"):
        hand_made(labels=[0, 1])
    with pytest.raises(InputError, match="must be unique"):
        hand_made(train_ids=[1, 1, 2, 3])


def test_a_run_whose_data_is_gone_still_has_the_rankings_of_its_trace(noisy: Splits, tmp_path: Path) -> None:
    arrays = ExampleSet.from_arrays(noisy.train.held, noisy.train.labels, ids=noisy.train.ids, classes=noisy.classes)
    own = replace(noisy, train=arrays, source={}, name="mine")
    train(own, "mlp", Recipe(epochs=3, batch_size=32, lr=0.1), 0, tmp_path / "run")
    found = rank_labels(Run.load(tmp_path / "run"))
    assert "tracin" in found.skipped
    assert {"cld", "aum", "forgetting", "loss"} <= set(found.methods)
    assert found.suggested is not None  # of the anchor
