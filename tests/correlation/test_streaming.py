"""Streaming CLD: after every row what ``per_class`` gives on all rows so far, whatever the losses look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comove.correlation import per_class
from comove.correlation.streaming import StreamingCLD
from comove.errors import InputError, NonFiniteError


def _made(rows: int, n: int, seed: int, scale: float = 1.0, tail: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    train, query = (np.abs(generator.standard_normal((rows, size)).cumsum(0) * scale) for size in (n, 12))
    if tail:
        train[-tail:] = train[-tail - 1] * (1 + 1e-9 * generator.standard_normal((tail, n)))
    return train, query


TRAIN, QUERY = np.arange(40) % 4, np.arange(12) % 4


@given(
    rows=st.integers(3, 60), seed=st.integers(0, 99), scale=st.sampled_from([1e-7, 1.0, 1e4]), tail=st.integers(0, 2)
)
@settings(max_examples=60, deadline=None)
def test_after_every_row_it_equals_the_stored_trajectory(rows: int, seed: int, scale: float, tail: int) -> None:
    train, query = _made(rows, 40, seed, scale, min(tail, rows - 2))
    stream = StreamingCLD(TRAIN, QUERY)
    for t in range(rows):
        stream.update(train[t], query[t])
        if t >= 2:
            stored = per_class(train[: t + 1], TRAIN, query[: t + 1], QUERY)
            np.testing.assert_allclose(stream.scores(), stored, atol=1e-6)


def test_ten_thousand_rows_lose_nothing() -> None:
    train, query = _made(10_000, 40, 5)
    stream = StreamingCLD(TRAIN, QUERY)
    for t in range(10_000):
        stream.update(train[t], query[t])
    np.testing.assert_allclose(stream.scores(), per_class(train, TRAIN, query, QUERY), atol=1e-6)


def test_constant_columns_and_classes_score_zero() -> None:
    train, query = _made(20, 40, 1)
    train[:, 3] = np.linspace(2.0, 1.0, 20)  # falls at an even pace: its differences do not vary
    query[:, QUERY == 2] = 0.25
    stream = StreamingCLD(TRAIN, QUERY)
    for t in range(20):
        stream.update(train[t], query[t])
    scores = stream.scores()
    assert scores[3] == 0
    assert (scores[TRAIN == 2] == 0).all()
    assert (scores[TRAIN == 1] != 0).all()


def test_an_interrupted_stream_goes_on_to_the_same_bits() -> None:
    train, query = _made(30, 40, 2)
    whole, first = StreamingCLD(TRAIN, QUERY), StreamingCLD(TRAIN, QUERY)
    for t in range(30):
        whole.update(train[t], query[t])
        if t < 11:
            first.update(train[t], query[t])
    second = StreamingCLD(TRAIN, QUERY)
    second.load_state_dict(first.state_dict())
    for t in range(11, 30):
        second.update(train[t], query[t])
    np.testing.assert_array_equal(second.scores(), whole.scores())
    with pytest.raises(InputError, match="not of these examples"):
        StreamingCLD(TRAIN[:20], QUERY).load_state_dict(first.state_dict())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_torch_rows_of_any_precision_are_taken(kind: torch.dtype) -> None:
    train, query = _made(8, 40, 3)
    stream, half = StreamingCLD(TRAIN, QUERY), StreamingCLD(torch.tensor(TRAIN), torch.tensor(QUERY))
    for t in range(8):
        rows = [torch.tensor(row[t]).to(kind) for row in (train, query)]
        half.update(*rows)
        stream.update(*(row.float().numpy() for row in rows))
    np.testing.assert_array_equal(half.scores(), stream.scores())


def test_bad_rows_are_refused_and_leave_everything_as_it_was() -> None:
    train, query = _made(5, 40, 4)
    stream = StreamingCLD(TRAIN, QUERY, train_ids=np.arange(100, 140))
    for t in range(4):
        stream.update(train[t], query[t])
    before = stream.scores()
    broken = train[4].copy()
    broken[6] = np.nan
    with pytest.raises(NonFiniteError, match="1 train losses are NaN or infinite, the first at id 106"):
        stream.update(broken, query[4])
    with pytest.raises(InputError, match=r"must have the shape \(40,\)"):
        stream.update(train[4][:3], query[4])
    np.testing.assert_array_equal(stream.scores(), before)
    assert "4 rows so far" in repr(stream)


def test_bad_labels_and_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="found none for the classes 3"):
        StreamingCLD(TRAIN, QUERY % 3)
    with pytest.raises(InputError, match="must be"):
        StreamingCLD(TRAIN.astype(float), QUERY)
    with pytest.raises(InputError, match="40 train labels but 3 train_ids"):
        StreamingCLD(TRAIN, QUERY, train_ids=[1, 2, 3])
    stream = StreamingCLD(TRAIN, QUERY)
    stream.update(np.ones(40), np.ones(12))
    with pytest.raises(InputError, match="at least 3 rows"):
        stream.scores()
