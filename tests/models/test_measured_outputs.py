"""Outputs of retrained models against float64 written out, at ordinary and at extreme logits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from comove.errors import InputError
from comove.evaluation import OUTPUTS, output_of
from comove.models.measured_outputs import check_measurable

C, R, Q, K = 3, 2, 5, 4


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_every_output_agrees_with_its_definition(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(C, R, Q, K))).astype(np.float32)
    labels = rng.integers(0, K, Q)
    log_p = special.log_softmax(logits.astype(np.float64), axis=-1)
    outputs = {kind: output_of(logits, labels, kind) for kind in OUTPUTS}
    for kind, values in outputs.items():
        assert (values.shape, str(values.dtype)) == ((C, R, Q), "float64"), kind
    for c, r, q in np.ndindex(C, R, Q):
        z, y = logits[c, r, q].astype(np.float64), labels[q]
        assert outputs["margin"][c, r, q] == pytest.approx(z[y] - special.logsumexp(np.delete(z, y)), rel=1e-12)
        assert outputs["loss"][c, r, q] == pytest.approx(-log_p[c, r, q, y], rel=1e-9, abs=1e-15)
        assert outputs["probability"][c, r, q] == pytest.approx(np.exp(log_p[c, r, q, y]), rel=1e-9)
        assert outputs["predicted"][c, r, q] == z.argmax()
        assert outputs["correct"][c, r, q] == (z.argmax() == y)


@pytest.mark.parametrize("size", [100.0, 1e4, 3e38])
def test_extreme_logits_neither_overflow_nor_saturate(size: float) -> None:
    logits = np.array([[size, -size, 0.0], [size, -size, 0.0], [size, size, size], [0.0, -size, -size]], np.float32)
    labels = np.array([0, 1, 2, 0])
    top = float(np.float32(size))
    np.testing.assert_allclose(
        output_of(logits, labels, "margin"), [top, -2 * top, -np.log(2), top - np.log(2)], rtol=1e-12
    )
    np.testing.assert_allclose(
        output_of(logits, labels, "loss"), [np.exp(-top), 2 * top, np.log(3), 2 * np.exp(-top)], rtol=1e-12, atol=1e-300
    )
    probability = output_of(logits, labels, "probability")
    np.testing.assert_allclose(probability, [1, np.exp(-2 * top), 1 / 3, 1], rtol=1e-12)


def test_a_loss_tells_certain_predictions_apart_where_the_probability_rounds_to_one() -> None:
    logits = np.array([[60.0, 0.0], [80.0, 0.0]], np.float32)
    labels = np.zeros(2, np.int64)
    assert (output_of(logits, labels, "probability") == 1).all()
    np.testing.assert_allclose(output_of(logits, labels, "loss"), np.exp([-60.0, -80.0]), rtol=1e-12)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_pending_model_is_nan_and_leaves_others_alone(kind: str) -> None:
    logits = np.random.default_rng(1).normal(size=(C, R, Q, K)).astype(np.float32)
    labels = np.arange(Q) % K
    whole = output_of(logits, labels, kind)
    logits[1, 0] = np.nan
    part = output_of(logits, labels, kind)
    assert np.isnan(part[1, 0]).all()
    part[1, 0] = whole[1, 0]
    np.testing.assert_array_equal(part, whole)


def test_the_inputs_are_not_changed() -> None:
    logits = np.random.default_rng(1).normal(size=(Q, K)).astype(np.float32)
    before = logits.copy()
    for kind in OUTPUTS:
        output_of(logits, np.arange(Q) % K, kind)
    np.testing.assert_array_equal(logits, before)


def test_an_unknown_output_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"Unknown output 'margins'\. Did you mean 'margin'"):
        output_of(np.zeros((1, 2), np.float32), np.zeros(1, np.int64), "margins")


def test_a_predicted_class_is_no_amount_to_hold_an_attribution_to() -> None:
    for kind in ("margin", "correct", "loss", "probability"):
        check_measurable(kind)
    with pytest.raises(InputError, match="one of margin, correct, loss, probability, got 'predicted'"):
        check_measurable("predicted")
    with pytest.raises(InputError, match="Did you mean 'loss'"):
        check_measurable("los")
