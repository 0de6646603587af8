"""Dynamic uncertainty against its worked example and against numpy, window by window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from comove.coreset import select, selector
from comove.coreset.dyn_unc import DynUnc, dynamic_uncertainty, windows
from comove.errors import InputError
from comove.trace import Trace

P = np.array([[0.5], [0.6], [0.8], [0.9]])
Recorded = Callable[..., Trace]


def test_the_example_of_the_specification_comes_out(recorded: Recorded) -> None:
    deviations = [deviation[0] for _, deviation in windows(P, 2)]
    np.testing.assert_allclose(deviations, [0.070711, 0.141421, 0.070711], atol=1e-6)
    assert dynamic_uncertainty(P, 2) == pytest.approx([0.094281], abs=1e-6)
    trace = recorded(target_probability=P)
    assert DynUnc(window=2).scores(trace) == pytest.approx([0.094281], abs=1e-6)
    assert DynUnc(window=2, variant="official").scores(trace) == pytest.approx([0.106066], abs=1e-6)


@pytest.mark.parametrize(("window", "first"), [(2, None), (10, None), (5, 9), (25, None)])
def test_scores_are_mean_sample_deviations_of_windows(window: int, first: int | None, recorded: Recorded) -> None:
    p = np.random.default_rng(window).random((25, 30)).astype(np.float32)
    used = p[:first].astype(float)
    deviations = [used[start : start + window].std(0, ddof=1) for start in range(len(used) - window + 1)]
    trace = recorded(target_probability=p)
    np.testing.assert_allclose(DynUnc(window, first).scores(trace), np.mean(deviations, 0), rtol=1e-5)
    assert select("dyn_unc", trace, 4, window=window, first=first).ids.tolist() == (
        np.argsort(-np.mean(deviations, 0))[:4].tolist()
    )


def test_the_official_variant_never_reads_the_last_epoch(recorded: Recorded) -> None:
    p = np.random.default_rng(0).random((12, 8))
    moved = p.copy()
    moved[-1] = 0.5
    official = DynUnc(4, variant="official")
    before, after = (recorded(target_probability=values) for values in (p, moved))
    np.testing.assert_array_equal(official.scores(before), official.scores(after))
    assert not np.array_equal(DynUnc(4).scores(before), DynUnc(4).scores(after))


@pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, 0.999999, 1.0])
def test_a_probability_that_never_changes_scores_exactly_zero(level: float, recorded: Recorded) -> None:
    assert DynUnc().scores(recorded(target_probability=np.full((30, 3), level))).tolist() == [0, 0, 0]


def test_runs_are_averaged(recorded: Recorded) -> None:
    a, b = np.random.default_rng(4).random((2, 12, 9)).astype(np.float32)
    found = DynUnc(3).scores([recorded(target_probability=a), recorded(target_probability=b)])
    np.testing.assert_allclose(found, (dynamic_uncertainty(a, 3) + dynamic_uncertainty(b, 3)) / 2, rtol=1e-5)


def test_fewer_epochs_than_the_window_are_told_with_both_numbers(recorded: Recorded) -> None:
    trace = recorded(target_probability=np.random.default_rng(0).random((10, 5)))
    assert len(DynUnc().select(trace, 2)) == 2
    with pytest.raises(InputError, match="dyn_unc needs at least 11 recorded epochs, found 10"):
        DynUnc(variant="official").select(trace, 2)
    with pytest.raises(InputError, match="dyn_unc needs at least 12 recorded epochs, found 10"):
        DynUnc(12).select(trace, 2)
    with pytest.raises(InputError, match="A window of 3 epochs does not fit into 2"):
        dynamic_uncertainty(np.ones((2, 4)), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "dyn_unc: window must be a number of epochs from 2 on, got 1"),
        ({"first": 5}, "a window of 10 epochs does not fit into the first 5"),
        ({"variant": "offical"}, "dyn_unc: variant must be one of all, official"),
    ],
)
def test_bad_options_are_refused_when_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        selector("dyn_unc", **options)
