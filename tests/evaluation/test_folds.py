"""Cross-fitting: every example is ranked once, by the model that was trained without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from comove.data import ExampleSet, Splits, split
from comove.data.builtin import load_dataset
from comove.data.label_noise import flip_labels
from comove.errors import InputError, InputTypeError
from comove.evaluation.label_errors.detection import detect
from comove.evaluation.label_errors.folds import cross_fit, folds_of
from comove.training import Recipe, Run, train


@pytest.fixture(scope="module")
def noisy() -> tuple[Splits, np.ndarray]:
    """Digits with 30 wrong labels among 200 training examples, and their ids."""
    return flip_labels(load_dataset("digits", limit=200, validation=40, queries=40), 0.15)


@pytest.fixture(scope="module")
def run(noisy: tuple[Splits, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(noisy[0], "mlp", Recipe(epochs=8, batch_size=32, lr=0.05), 3, tmp_path_factory.mktemp("folds") / "run")


def test_folds_are_even_in_size_and_in_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 103)
    fold = folds_of(labels, 5, seed=1)
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1
    for label in range(4):
        assert np.ptp(np.bincount(fold[labels == label], minlength=5)) <= 1
    assert np.array_equal(fold, folds_of(labels, 5, seed=1))
    assert not np.array_equal(fold, folds_of(labels, 5, seed=2))


def test_every_value_is_that_of_the_model_without_the_example(
    noisy: tuple[Splits, np.ndarray], run: Run, tmp_path: Path
) -> None:
    found = cross_fit([run], 3, tmp_path)
    whole = ExampleSet.joined(noisy[0].parts)
    assert sorted(found.train_ids) == sorted(whole.ids)
    assert len(found) == 280
    fold = folds_of(whole.labels, 3)
    held_out = whole.ids[fold == 1]
    rest = Splits(whole.subset(whole.ids[fold != 1]), None, whole.subset(held_out))
    mine = train(rest, "mlp", run.recipe, 3)
    places = np.flatnonzero(fold == 1)
    assert not np.isin(held_out, mine.trace.train_ids).any()
    trace = mine.trace
    np.testing.assert_allclose(found.values["loss"][places], trace.query_losses[-1], rtol=1e-6)
    margins = trace.read("query", "margin_logit", rows=list(range(1, 9)))
    np.testing.assert_allclose(found.values["aum"][places], margins.mean(0), rtol=1e-5)
    logits = mine.class_logits(whole.subset(held_out))
    assert logits is not None
    other = torch.from_numpy(whole.labels[places])
    best = logits.scatter(1, other[:, None], -torch.inf).argmax(1)
    assert found.suggested is not None
    assert found.suggested[places].tolist() == best.tolist()


def test_wrong_labels_are_found_among_all_examples(noisy: tuple[Splits, np.ndarray], run: Run, tmp_path: Path) -> None:
    found = cross_fit([run], 5, tmp_path, methods=["loss"])
    assert found.methods == ("loss",)
    assert detect(found, noisy[1]).average_precision("loss").value > 0.4  # 0.11 by chance


def test_sets_are_joined_whatever_they_come_from(noisy: tuple[Splits, np.ndarray]) -> None:
    splits = noisy[0]
    whole = ExampleSet.joined(splits.parts)
    for part in splits.parts:
        again = whole.subset(part.ids)
        assert torch.equal(again.raw(np.arange(len(part))), part.raw(np.arange(len(part))))
        assert again.labels.tolist() == part.labels.tolist()
    items = ExampleSet([{"x": torch.ones(2) * i} for i in range(20)], labels=np.arange(20) % 2)
    parts = split(items).parts
    joined = ExampleSet.joined(parts)
    assert joined.collated(joined.positions([7]))["x"].tolist() == [[7, 7]]
    with pytest.raises(InputError, match="ids"):
        ExampleSet.joined([splits.train, splits.train])


def test_what_cannot_be_cross_fitted_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="aum, loss tell; cld needs training on them"):
        cross_fit([run], 2, tmp_path, methods=["cld"])
    with pytest.raises(InputTypeError, match="not bare traces"):
        cross_fit([run.trace], 2, tmp_path)  # type: ignore[list-item]
    with pytest.raises(InputError, match="at least 2 examples"):
        folds_of(np.array([0, 0, 1]), 2)
    with pytest.raises(InputError, match="folds"):
        folds_of(np.array([0, 0, 1, 1]), 1)
