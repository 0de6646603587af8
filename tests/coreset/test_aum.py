"""Areas under the margin: logits and probabilities, low and high."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from comove.coreset import select
from comove.coreset.aum import AUM, area_under_margin
from comove.errors import InputError, NonFiniteError
from comove.ties import tie_order
from comove.trace import Trace
from comove.trace.statistics import statistics

MARGINS = np.array([(2.0, 3, 4), (-1, 0, 1), (-3, -2, -1)]).T
Recorded = Callable[..., Trace]


def of_two_logits(margins: np.ndarray) -> dict[str, np.ndarray]:
    """What recording two logits (m, 0) with label 0 gives."""
    flat = torch.tensor(margins.ravel())
    found, _ = statistics(torch.stack([flat, torch.zeros_like(flat)], 1), torch.zeros(flat.numel(), dtype=torch.int64))
    return {name: found[name].numpy().reshape(margins.shape) for name in ("margin_logit", "margin_prob")}


def test_the_example_of_the_specification_comes_out(recorded: Recorded) -> None:
    trace = recorded(**of_two_logits(MARGINS))
    np.testing.assert_allclose(area_under_margin(MARGINS), [3, 0, -2])
    np.testing.assert_allclose(AUM().scores(trace), [-3, 0, 2])
    probability = AUM(margin="prob", keep="high").scores(trace)
    np.testing.assert_allclose(probability, [0.876923, 0, -0.709620], atol=1e-6)
    np.testing.assert_allclose(3 * probability, [2.630770, 0, -2.128860], atol=2e-6)  # CCS adds up


def test_of_two_classes_the_probability_margin_is_tanh_of_half_the_logit_margin(recorded: Recorded) -> None:
    margins = np.random.default_rng(0).normal(0, 3, (5, 40))
    trace = recorded(**of_two_logits(margins))
    np.testing.assert_allclose(
        AUM(margin="prob", keep="high").scores(trace), np.tanh(margins / 2).mean(0), rtol=1e-5, atol=1e-6
    )


def test_low_keeps_the_hardest_and_high_the_easiest(recorded: Recorded) -> None:
    trace = recorded(margin_logit=MARGINS, ids=[30, 20, 10])
    assert select("aum", trace, 2).ids.tolist() == [10, 20]
    assert select("aum", trace, 2, keep="high").ids.tolist() == [30, 20]


@pytest.mark.parametrize("keep", ["low", "high"])
def test_ties_go_by_the_hash_of_the_id_in_both_directions(keep: str, recorded: Recorded) -> None:
    ids = np.array([8, 2, 6, 4])
    trace = recorded(margin_logit=np.ones((3, 4)), ids=ids)
    assert select("aum", trace, 2, keep=keep).ids.tolist() == ids[tie_order(ids)][:2].tolist()


def test_runs_are_averaged_over_the_epochs_asked_for(recorded: Recorded) -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 6, 12)).astype(np.float32)
    traces = [recorded(margin_logit=a), recorded(margin_logit=b)]
    np.testing.assert_allclose(AUM().scores(traces), -(a.mean(0) + b.mean(0)) / 2, rtol=1e-5)
    np.testing.assert_allclose(AUM(first=2).scores(traces), -(a[:2].mean(0) + b[:2].mean(0)) / 2, rtol=1e-5)


def test_a_broken_margin_names_the_id(recorded: Recorded) -> None:
    margins = MARGINS.copy()
    margins[1, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"aum: 1 scores are NaN or infinite, the first of id 10\."):
        AUM().select(recorded(margin_logit=margins, ids=[30, 20, 10]), 1)


def test_bad_options_are_refused_when_built(recorded: Recorded) -> None:
    with pytest.raises(InputError, match="aum: keep must be one of low, high"):
        AUM(keep="lowest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="aum: margin must be one of logit, prob"):
        AUM(margin="logits")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"aum needs 'margin_prob'.*Recording\(fields="):
        AUM(margin="prob").select(recorded(margin_logit=MARGINS), 1)
