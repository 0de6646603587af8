"""TDDS against its worked example and against the sums written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from comove.coreset import select, selector
from comove.coreset.tdds import TDDS, tdds
from comove.errors import InputError
from comove.trace import Trace
from comove.trace.statistics import kd

P = np.array([0.5, 0.6, 0.8, 0.9])
Recorded = Callable[..., Trace]


def moves(p_TN: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """kd of two classes, (T - 1, N)."""
    both = torch.tensor(np.stack([p_TN, 1 - p_TN], -1))
    return np.stack([kd(now, before).numpy() for before, now in itertools.pairwise(both)])


def written_out(kd_rows: list[list[float]], window: int, decay: float) -> list[float]:
    scores = []
    for column in zip(*kd_rows, strict=True):
        epochs = len(column) + 1
        last = epochs - window
        total = 0.0
        for k in range(last + 1):
            part = column[k : k + window - 1]
            mean = sum(part) / len(part)
            total += decay * (1 - decay) ** (last - k) * sum((value - mean) ** 2 for value in part) ** 0.5
        scores.append(total)
    return scores


def test_the_example_of_the_specification_comes_out(recorded: Recorded) -> None:
    found = moves(P[:, None])
    np.testing.assert_allclose(found[:, 0], [0.198650, 0.368775, 0.175319], atol=1e-6)
    assert tdds(found[:2], 3, decay=1) == pytest.approx([0.120296], abs=1e-6)
    assert tdds(found, 3, decay=1) == pytest.approx([0.136794], abs=1e-6)
    assert tdds(found, 3) == pytest.approx([0.133941], abs=1e-6)
    trace = recorded(kd=found)
    assert TDDS(window=3).scores(trace) == pytest.approx([0.133941], abs=1e-6)


def test_the_absolute_value_stands_inside_the_sum_over_classes() -> None:
    before, now = P[:-1], P[1:]
    signed = now * np.log(now / before) + (1 - now) * np.log((1 - now) / (1 - before))
    np.testing.assert_allclose(signed, [0.020136, 0.091516, 0.036690], atol=1e-6)
    assert (moves(P[:, None])[:, 0] > signed).all()


@pytest.mark.parametrize(("window", "decay"), [(3, 0.9), (10, 0.9), (4, 0.5), (12, 0.9)])
def test_scores_are_the_sums_written_out(window: int, decay: float, recorded: Recorded) -> None:
    given = np.random.default_rng(0).random((11, 40)).astype(np.float32)
    expected = written_out(given.astype(float).tolist(), window, decay)
    np.testing.assert_allclose(tdds(given, window, decay=decay), expected, rtol=1e-6)
    trace = recorded(kd=given)
    np.testing.assert_allclose(TDDS(window=window, decay=decay).scores(trace), expected, rtol=1e-5)
    expected = written_out(given[:-2].astype(float).tolist(), 3, decay)
    np.testing.assert_allclose(TDDS(first=10, window=3, decay=decay).scores(trace), expected, rtol=1e-5)


def test_moves_are_read_as_recorded_between_epochs(trace: Trace) -> None:
    """On a real run: T epochs have T - 1 moves, those of epochs 2 to T; the move from before training is left out."""
    given = trace.read("train", "kd", rows=range(2, 7)).astype(float).tolist()
    np.testing.assert_allclose(TDDS(window=4).scores(trace), written_out(given, 4, 0.9), rtol=1e-5)


def test_runs_are_averaged_and_the_highest_kept(recorded: Recorded) -> None:
    a, b = np.random.default_rng(3).random((2, 5, 30)).astype(np.float32)
    traces = [recorded(kd=a), recorded(kd=b)]
    mean = (tdds(a, 4) + tdds(b, 4)) / 2
    np.testing.assert_allclose(TDDS(window=4).scores(traces), mean, rtol=1e-5)
    coreset = select("tdds", traces, 6, window=4)
    assert coreset.ids.tolist() == np.argsort(-mean)[:6].tolist()
    assert coreset.info["epochs"] == [6, 6]


def test_rows_within_epochs_are_refused(recorded: Recorded) -> None:
    trace = recorded(kd=np.ones((5, 3)), epochs=[0.5, 1, 1.5, 2, 2.5, 3])
    with pytest.raises(InputError, match=r"tdds reads how far predictions moved from epoch to epoch.*without every="):
        TDDS(window=3).select(trace, 1)


def test_fewer_epochs_than_the_window_are_told_with_both_numbers(recorded: Recorded, trace: Trace) -> None:
    with pytest.raises(InputError, match="tdds needs at least 10 recorded epochs, found 6"):
        TDDS().select(trace, 5)
    with pytest.raises(InputError, match="a window of 5 epochs needs 4 moves between epochs, got 3"):
        tdds(np.ones((3, 2)), 5)


def test_kd_that_was_not_recorded_is_asked_for(recorded: Recorded) -> None:
    with pytest.raises(InputError, match=r"tdds needs 'kd'.*Recording\(fields=\('loss', 'kd'\)\)"):
        TDDS(window=3).select(recorded(el2n=np.ones((4, 3))), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2}, "tdds: window must be a number of epochs from 3 on, got 2"),
        ({"window": 31}, "a window of 31 epochs does not fit into the first 30"),
        ({"decay": 0}, r"tdds: decay must be in \(0, 1\], got 0"),
        ({"decay": 1.5}, "got 1.5"),
    ],
)
def test_bad_options_are_refused_when_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        selector("tdds", **options)
