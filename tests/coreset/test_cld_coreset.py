"""The CLD coreset against Algorithm 1 written out, and against what the paper's public code gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from comove.coreset import select
from comove.coreset.cld import CLDCoreset
from comove.errors import InputError
from comove.trace import Trace
from comove.training import Run

Floats = npt.NDArray[np.float64]


def algorithm_1(trace: Trace, quota: dict[int, int]) -> tuple[list[float], set[int]]:
    """Lines 7 to 18, one number at a time in float64: the scores, and the ids kept."""
    assert trace.train_labels is not None
    assert trace.query_labels is not None
    train, query = trace.train_losses.astype(float).tolist(), trace.query_losses.astype(float).tolist()
    steps = range(1, len(train))
    scores = []
    for m, label in enumerate(trace.train_labels.tolist()):
        own = [train[t][m] - train[t - 1][m] for t in steps]
        columns = [
            j
            for j, id_ in enumerate(trace.query_ids.tolist())
            if trace.query_labels[j] == label and id_ in trace.validation_ids
        ]
        mean = [sum(query[t][j] - query[t - 1][j] for j in columns) / len(columns) for t in steps]
        a, b = (np.array(values) - sum(values) / len(values) for values in (own, mean))
        length = float(np.sqrt((a * a).sum() * (b * b).sum()))
        scores.append(float((a * b).sum()) / length if length > 0 else 0.0)
    kept: set[int] = set()
    for label, k in quota.items():
        members = [m for m, own_label in enumerate(trace.train_labels.tolist()) if own_label == label]
        members.sort(key=lambda m: (-scores[m], trace.train_ids[m]))
        kept |= {int(trace.train_ids[m]) for m in members[:k]}
    return scores, kept


def random_trace(seed: int, *, rows: int = 9, n: int = 60, q: int = 24, classes: int = 4, **changes: Any) -> Trace:
    """Shuffled, non-contiguous ids; labels in no order; two thirds of the queries are validation examples."""
    rng = np.random.default_rng(seed)
    query_ids = rng.permutation(10_000)[:q]
    plain: dict[str, Any] = {
        "train_losses": rng.random((rows, n)),
        "query_losses": rng.random((rows, q)),
        "train_labels": rng.permutation(np.arange(n) % classes),
        "query_labels": np.arange(q) % classes,
        "train_ids": rng.permutation(5 * n)[:n] + 20_000,
        "query_ids": query_ids,
        "validation_ids": rng.permutation(query_ids[: 2 * q // 3]),
    }
    return Trace.from_arrays(**{**plain, **changes})


def test_the_example_of_the_specification_comes_out() -> None:
    columns = {30: [2, 1.5, 1.2, 1.1], 10: [2, 1.9, 1.6, 1.1], 20: [0.7] * 4, 5: [1, 0.5, 0.5, 0.6]}
    trace = Trace.from_arrays(
        train_losses=np.array(list(columns.values())).T,
        query_losses=np.array([[2, 1.4, 1, 0.8]]).T,
        train_ids=list(columns),
        train_labels=[0, 0, 0, 0],
        query_labels=[0],
    )
    np.testing.assert_allclose(CLDCoreset().scores(trace), [1.0, -1.0, 0.0, 0.933257], atol=1e-6)
    top = CLDCoreset().select(trace, 2)
    assert top.ids.tolist() == [30, 5]
    np.testing.assert_allclose(top.scores, [1.0, 0.933257], atol=1e-6)
    assert CLDCoreset().select(trace, 4).ids.tolist() == [30, 5, 20, 10]


@pytest.mark.parametrize("seed", range(4))
def test_algorithm_1_line_by_line(seed: int) -> None:
    trace = random_trace(seed)
    quota = {0: 5, 1: 1, 2: 15, 3: 0}
    scores, kept = algorithm_1(trace, quota)
    np.testing.assert_allclose(CLDCoreset().scores(trace), scores, atol=1e-5)
    coreset = CLDCoreset().select(trace, quota)
    assert set(coreset.ids.tolist()) == kept
    assert coreset.per_class == {0: 5, 1: 1, 2: 15}


def test_algorithm_1_on_a_real_run(run: Run) -> None:
    trace = run.trace
    coreset = select("cld", run, budget=0.3)
    scores, kept = algorithm_1(trace, coreset.per_class)
    np.testing.assert_allclose(CLDCoreset().scores(run), scores, atol=1e-5)
    assert set(coreset.ids.tolist()) == kept


def test_several_runs_are_averaged_before_choosing() -> None:
    rng, first = np.random.default_rng(7), random_trace(0)
    assert first.train_labels is not None
    assert first.query_labels is not None
    labels_ids = {**first.examples, "train_losses": rng.random((9, 60)), "query_losses": rng.random((9, 24))}
    second = Trace.from_arrays(**labels_ids)
    mean = (CLDCoreset().scores(first).astype(float) + CLDCoreset().scores(second)) / 2
    np.testing.assert_allclose(CLDCoreset().scores([first, second]), mean, atol=1e-6)


def test_queries_that_are_no_validation_examples_change_nothing() -> None:
    trace = random_trace(1)
    before = CLDCoreset().select(trace, 0.5)
    losses = trace.query_losses.copy()
    others = ~np.isin(trace.query_ids, trace.validation_ids)
    assert others.any()
    losses[:, others] = np.random.default_rng(2).random((9, int(others.sum()))) * 100
    labels_moved = Trace.from_arrays(**{**trace.examples, "train_losses": trace.train_losses, "query_losses": losses})
    after = CLDCoreset().select(labels_moved, 0.5)
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_validation_examples_do_change_the_choice() -> None:
    trace = random_trace(1)
    losses = trace.query_losses.copy()
    chosen = np.isin(trace.query_ids, trace.validation_ids)
    losses[:, chosen] = np.random.default_rng(2).random((9, int(chosen.sum())))
    moved = Trace.from_arrays(**{**trace.examples, "train_losses": trace.train_losses, "query_losses": losses})
    assert set(CLDCoreset().select(trace, 0.5).ids.tolist()) != set(CLDCoreset().select(moved, 0.5).ids.tolist())


def test_ids_are_kept_where_positions_would_pick_the_wrong_class() -> None:
    """Class 0 has ids 4 to 7 at positions 0 to 3, class 1 the ids 0 to 3: positions used as ids swap the classes."""
    down, up = [3.0, 2.0, 1.5, 1.0], [1.0, 1.5, 2.0, 3.0]
    trace = Trace.from_arrays(
        train_losses=np.array([down, down, up, up, up, up, down, down]).T,
        query_losses=np.array([down, up]).T,
        train_ids=[7, 6, 5, 4, 3, 2, 1, 0],
        train_labels=[0, 0, 0, 0, 1, 1, 1, 1],
        query_labels=[0, 1],
    )
    coreset = CLDCoreset().select(trace, 4)
    assert sorted(coreset.ids.tolist()) == [2, 3, 6, 7]
    assert dict(zip(coreset.ids.tolist(), coreset.labels.tolist(), strict=True)) == {6: 0, 7: 0, 2: 1, 3: 1}  # type: ignore[union-attr]
    np.testing.assert_allclose(coreset.scores, 1, atol=1e-6)


def test_a_training_class_without_validation_examples_is_named() -> None:
    trace = random_trace(0)
    assert trace.query_labels is not None
    keep = trace.query_ids[(trace.query_labels != 2) & np.isin(trace.query_ids, trace.validation_ids)]
    losses = {"train_losses": trace.train_losses, "query_losses": trace.query_losses}
    without = Trace.from_arrays(**{**trace.examples, **losses, "validation_ids": keep})
    with pytest.raises(InputError, match=r"none of 1 of 4 classes: 2 \(15 for training\)"):
        CLDCoreset().select(without, 8)


def test_validation_labels_are_asked_for() -> None:
    with pytest.raises(InputError, match="cld needs the validation labels"):
        CLDCoreset().select(random_trace(0, query_labels=None), 8)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "got 0"),
        (61, "got 61"),
        ({0: 16}, "class 0 is 16, but it holds 15"),
        ({9: 1}, "class 9 is 1, but it holds 0"),
    ],
)
def test_impossible_budgets_are_refused(budget: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CLDCoreset().select(random_trace(0), budget)
