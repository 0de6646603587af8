"""Forgetting events by hand, one presentation at a time, and through the selector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from comove.coreset import select
from comove.coreset.forgetting import Forgetting, forgetting_events, forgetting_scores
from comove.errors import InputError
from comove.ties import tie_order
from comove.trace import Trace

EXAMPLE = np.array([[int(bit) for bit in row] for row in ("11111", "01010", "00000", "10011")]).T
Recorded = Callable[..., Trace]


def one_at_a_time(row: list[int], never: int) -> int:
    events, before = 0, None
    for now in row:
        events += before == 1 and now == 0
        before = now
    return events if 1 in row else never


def test_the_example_of_the_specification_comes_out(recorded: Recorded) -> None:
    assert forgetting_events(EXAMPLE).tolist() == [0, 2, 0, 1]
    assert forgetting_scores(EXAMPLE).tolist() == [0, 2, 5, 1]
    assert forgetting_scores(EXAMPLE, never_learned=0).tolist() == [0, 2, 0, 1]
    trace = recorded(correct=EXAMPLE)
    assert select("forgetting", trace, 2).ids.tolist() == [2, 1]
    assert select("forgetting", trace, 2, variant="deepcore").ids.tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_one_presentation_at_a_time(seed: int, recorded: Recorded) -> None:
    correct = (np.random.default_rng(seed).random((9, 200)) < 0.2).astype(int)
    rows = correct.T.tolist()
    assert any(1 not in row for row in rows)
    assert forgetting_scores(correct).tolist() == [one_at_a_time(row, 9) for row in rows]
    trace = recorded(correct=correct)
    assert Forgetting().scores(trace).tolist() == [one_at_a_time(row, 9) for row in rows]
    assert Forgetting(first=4).scores(trace).tolist() == [one_at_a_time(row[:4], 4) for row in rows]
    assert Forgetting(variant="deepcore").scores(trace).tolist() == [one_at_a_time(row, 0) for row in rows]


def test_neither_the_row_before_training_nor_rows_within_epochs_count(recorded: Recorded) -> None:
    """Row 0 holds 1 everywhere: counted, each example wrong at first would have been forgotten once more."""
    dense = np.repeat(EXAMPLE, 2, axis=0)
    dense[::2] = 1 - dense[::2]
    trace = recorded(correct=dense, epochs=[0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5])
    assert Forgetting().scores(trace).tolist() == [0, 2, 5, 1]


def test_scores_of_several_runs_are_added(recorded: Recorded) -> None:
    other = EXAMPLE[:, ::-1]
    traces = [recorded(correct=EXAMPLE), recorded(correct=other)]
    assert Forgetting().scores(traces).tolist() == [0 + 1, 2 + 5, 5 + 2, 1 + 0]
    coreset = Forgetting().select(traces, 3)
    ties = tie_order(np.arange(4)).tolist()
    assert coreset.ids.tolist() == [*sorted([1, 2], key=ties.index), *sorted([0, 3], key=ties.index)[:1]]
    assert coreset.info["epochs"] == [5, 5]


def test_all_equal_scores_keep_ids_by_their_hash(recorded: Recorded) -> None:
    ids = np.array([9, 4, 8, 2, 6])
    trace = recorded(correct=np.ones((4, 5)), ids=ids)
    assert Forgetting().select(trace, 3).ids.tolist() == ids[tie_order(ids)][:3].tolist()
    assert sorted(Forgetting().select(trace, 5).ids.tolist()) == [2, 4, 6, 8, 9]


def test_one_epoch_forgets_nothing_and_is_refused(recorded: Recorded) -> None:
    with pytest.raises(InputError, match="forgetting needs at least 2 recorded epochs, found 1"):
        Forgetting().select(recorded(correct=np.ones((1, 5))), 2)
    with pytest.raises(InputError, match=r"at least 2 recorded epochs, found 1 \(first=1\)"):
        Forgetting(first=1).select(recorded(correct=np.ones((4, 5))), 2)


def test_bad_options_are_refused_when_built() -> None:
    with pytest.raises(InputError, match="forgetting: variant must be one of toneva, deepcore"):
        Forgetting(variant="deep")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="forgetting: first must be"):
        Forgetting(first=0)
