"""Error norms early in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from comove.coreset import select, selector
from comove.coreset.el2n import EL2N, error_norms
from comove.errors import InputError
from comove.trace import Trace

Recorded = Callable[..., Trace]


def test_the_example_of_the_specification_comes_out(recorded: Recorded) -> None:
    norms = error_norms([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], [0, 0])
    np.testing.assert_allclose(norms, [0.374166, 1.122497], atol=1e-6)
    assert EL2N().scores(recorded(el2n=norms[:, None])) == pytest.approx([0.748331], abs=1e-6)


def test_norms_range_from_zero_to_the_root_of_two() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.full(5, 0.1), 500)
    norms = error_norms(probabilities, np.arange(500) % 5)
    assert 0 <= norms.min() < norms.max() <= np.sqrt(2)
    np.testing.assert_allclose(error_norms(np.eye(3), [0, 1, 0]), [0, 0, np.sqrt(2)])


def test_norms_do_not_change_the_probabilities_given() -> None:
    probabilities = np.full((2, 2), 0.5)
    error_norms(probabilities, [0, 1])
    np.testing.assert_array_equal(probabilities, 0.5)


def test_what_is_recorded_is_the_norm_of_the_recorded_probabilities(trace: Trace) -> None:
    last = trace.anchors[-1]
    assert trace.train_labels is not None
    expected = error_norms(trace.probabilities("train"), trace.train_labels)
    np.testing.assert_allclose(EL2N(epoch=6).scores(trace), expected, atol=1e-6)
    np.testing.assert_allclose(trace.read("train", "el2n", rows=[last])[0], expected, atol=1e-6)


def test_the_default_is_the_mean_over_the_first_ten_epochs(recorded: Recorded) -> None:
    values = np.random.default_rng(1).random((15, 30)).astype(np.float32)
    trace = recorded(el2n=values)
    np.testing.assert_allclose(EL2N().scores(trace), values[:10].mean(0), rtol=1e-6)
    np.testing.assert_allclose(EL2N(first=None).scores(trace), values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(EL2N(first=3).scores(trace), values[:3].mean(0), rtol=1e-6)
    np.testing.assert_allclose(EL2N(epoch=12).scores(trace), values[11], rtol=1e-6)
    assert select("el2n", trace, 5).ids.tolist() == np.argsort(-values[:10].mean(0))[:5].tolist()


def test_a_shorter_run_is_read_whole_and_the_coreset_says_so(recorded: Recorded) -> None:
    values = np.random.default_rng(1).random((4, 30)).astype(np.float32)
    coreset = EL2N().select(recorded(el2n=values), 3)
    np.testing.assert_allclose(coreset.scores, np.sort(values.mean(0))[::-1][:3], rtol=1e-6)
    assert coreset.info["epochs"] == [4]


def test_runs_are_averaged(recorded: Recorded) -> None:
    runs = np.random.default_rng(2).random((3, 10, 20)).astype(np.float32)
    found = EL2N().scores([recorded(el2n=values) for values in runs])
    np.testing.assert_allclose(found, runs.mean((0, 1)), rtol=1e-6)


@pytest.mark.parametrize("option", [{"first": 0}, {"epoch": 0}, {"epoch": 2.0}])
def test_bad_options_are_refused_when_built(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"el2n: {next(iter(option))} must be a number of epochs from 1 on"):
        selector("el2n", **option)


def test_an_epoch_that_was_not_recorded_is_an_error(recorded: Recorded) -> None:
    with pytest.raises(InputError, match="el2n: epoch 20 was not recorded; the last is 4"):
        EL2N(epoch=20).select(recorded(el2n=np.ones((4, 3))), 1)
