"""Input gradients against autograd in float64, where float32 cross-entropy has long been 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from comove.coreset.input_gradients import PixelSpace, loss_gradients, margin_gradients, margins
from comove.data import ExampleSet, Normalization
from comove.errors import InputError


def test_the_loss_is_the_cross_entropy_and_its_gradient_parallel_to_the_margins() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.arange(9) % 4
    loss, margin = F.cross_entropy(logits, labels, reduction="none"), margins(logits, labels)
    torch.testing.assert_close(loss, F.softplus(margin))
    (of_loss,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (of_margin,) = torch.autograd.grad(margin.sum(), logits)
    missing = 1 - logits.softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(of_loss, missing * of_margin)


def test_gradients_of_a_network_are_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((12, 7), (7, 4)))

    def network(inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.flatten(1) @ first).tanh() @ second

    x = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.arange(6) % 4
    (truth,) = torch.autograd.grad(F.cross_entropy(network(x), labels, reduction="sum"), x)
    torch.testing.assert_close(loss_gradients(network, x, labels), truth)
    gradients, margin, logits = margin_gradients(network, x, labels)
    torch.testing.assert_close(margin, margins(network(x), labels).detach())
    torch.testing.assert_close(logits, network(x).detach())
    torch.testing.assert_close(gradients.sign(), truth.sign())


@pytest.mark.parametrize("gap", [5.0, 30.0, 80.0, 250.0])
def test_gradients_of_sure_predictions_keep_their_digits_in_float32(gap: float) -> None:
    """The plain form subtracts a P_y from 1 that float32 cannot tell from 1 at gaps beyond 17."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.5, -0.5]])
    x = torch.tensor([[gap, 0.0]])
    found = loss_gradients(lambda inputs: inputs @ weight.T, x, torch.tensor([0]))
    wide_CF = weight.double()
    odds_C = torch.exp((x.double() @ (wide_CF - wide_CF[0]).T)[0])  # P_c / P_y
    truth_F = (odds_C[:, None] * (wide_CF - wide_CF[0])).sum(0) / odds_C.sum()
    torch.testing.assert_close(found[0], truth_F, rtol=1e-5, atol=0)
    inputs = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(inputs @ weight.T, torch.tensor([0])), inputs)
    assert torch.allclose(plain[0].double(), truth_F, rtol=1e-3, atol=0) == (gap < 17)


def test_pixels_are_what_prepare_normalises(images: ExampleSet) -> None:
    normed = ExampleSet.from_arrays(
        images.raw(np.arange(40)), images.labels, normalization=Normalization((0.5,) * 3, (0.2,) * 3)
    )
    space = PixelSpace.of(normed)
    assert (space.low, space.high) == (0, 1)
    places = np.array([3, 1, 7])
    pixels = space.at(places, torch.device("cpu"))
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    torch.testing.assert_close(normed.prepare(pixels), normed.batch(places)[0])


def test_inputs_that_are_no_images_keep_their_own_range() -> None:
    values = np.random.default_rng(0).standard_normal((600, 5)).astype(np.float32)
    space = PixelSpace.of(ExampleSet.from_arrays(values, np.arange(600) % 2))
    assert (space.low, space.high) == (values.min(), values.max())


def test_inputs_that_are_all_alike_are_refused() -> None:
    with pytest.raises(InputError, match="inputs that differ; all are 3"):
        PixelSpace.of(ExampleSet.from_arrays(np.full((4, 2), 3.0), [0, 1, 0, 1]))
