"""What a run cost, counted and weighed: equal to hand counts on a network whose products can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from comove.data import Splits
from comove.evaluation.costs.measured import flops_of, measured_cost
from comove.models import build_model
from comove.training import Recording, Run, train


def test_flops_of_an_mlp_are_two_a_multiply_add_forward_and_no_input_gradient_backward(small_digits: Splits) -> None:
    model = build_model("mlp", num_classes=10, input_shape=small_digits.train.input_shape, seed=0)
    forward, both = flops_of(model, small_digits.train)
    products = np.array([64 * 64, 64 * 64, 64 * 10])
    assert forward == 2 * products.sum()
    assert both == 2 * (3 * products.sum() - products[0])  # the input needs no gradient


@pytest.mark.parametrize("mode", ["sweep", "in_pass"])
def test_recording_costs_its_passes(small_digits: Splits, mode: str) -> None:
    run = train(small_digits, "mlp", {"epochs": 3}, recording=Recording(mode=mode))  # type: ignore[arg-type]
    found = measured_cost(run)
    n, held_out = len(small_digits.train), run.trace.query_ids.size
    assert found.flops["training"] == 3 * n * found.step_flops
    passes = 4 if mode == "sweep" else 1  # row 0 is a clean pass in both
    assert found.flops["recording"] == found.forward_flops * (passes * n + 4 * held_out)
    assert found.bytes_on_disk["trace"] > 4 * 4 * n
    assert found.bytes_on_disk["checkpoints"] > 4 * 4 * found.parameters
    assert found.facts()["parameters"] == f"{found.parameters:,}"


def test_a_run_notes_its_peak_memory(run: Run) -> None:
    assert 50e6 < (measured_cost(run).peak_memory or 0) < 24e9
