"""grad_x CE(x, y) = sigmoid(m) grad_x m, m = logsumexp_{c != y} z_c - z_y: input gradients of a run's trained network.

The cross-entropy is softplus(m) and sigmoid(m) is 1 - P_y. Differentiating the margin m and multiplying in float64
keeps the digits of examples that the network is sure of: their 1 - P_y is below what float32 can tell from 0, and a
backward pass in numbers that small takes processors many times as long.

Shape legend: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.data import ExampleSet
from comove.errors import InputError
from comove.models import logits_of, put_channels_last
from comove.training import resolve_device
from comove.training.sources import Source

__all__ = [
    "BATCH",
    "PixelSpace",
    "loss_gradients",
    "margin_gradients",
    "margins",
    "trained_network",
    "training_examples",
]

BATCH = 256
"""Examples a batch: of bounded memory, and large enough to be fast."""


def margins(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return (B,) m = logsumexp_{c != y} z_c - z_y, of which the cross-entropy is the softplus."""
    target = F.one_hot(labels_B, logits_BC.shape[1]).bool()
    others_B = logits_BC.masked_fill(target, -torch.inf).logsumexp(1)
    return others_B - logits_BC.gather(1, labels_B[:, None])[:, 0]


def margin_gradients(
    network: Callable[[Tensor], Tensor], inputs_B: Tensor, labels_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each example's gradient of m in its input (B, ...), m itself (B,), and logits (B, C).

    The gradient of the loss has the same direction; this one never vanishes.

    Args:
        network: maps inputs to logits; in evaluation mode, lest the examples of a batch mix.
        inputs_B: (B, ...) floats.
        labels_B: (B,) int64.
    """
    with torch.enable_grad():
        inputs = inputs_B.detach().requires_grad_()
        logits_BC = logits_of(network(inputs))
        margins_B = margins(logits_BC, labels_B)
        (gradients_B,) = torch.autograd.grad(margins_B.sum(), inputs)
    return gradients_B, margins_B.detach(), logits_BC.detach()


def loss_gradients(network: Callable[[Tensor], Tensor], inputs_B: Tensor, labels_B: Tensor) -> Tensor:
    """Return each example's gradient of the cross-entropy in its input, (B, ...) float64.

    Args:
        network: as for :func:`margin_gradients`.
        inputs_B: (B, ...) floats.
        labels_B: (B,) int64.
    """
    gradients_B, margins_B, _ = margin_gradients(network, inputs_B, labels_B)
    missing_B = margins_B.double().sigmoid()
    return gradients_B.double().mul_(missing_B.view(-1, *(1,) * (inputs_B.ndim - 1)))


def trained_network(source: Source, device: torch.device | str = "auto") -> nn.Module:
    """Return the run's network with its last weights, in evaluation mode, its parameters not to be differentiated.

    Raises:
        InputError: no checkpoint was kept, or the user's own factory must be passed to ``Run.load`` again.
        CorruptFileError: a truncated file.
    """
    assert source.run is not None
    network = source.run.load_model(device=resolve_device(device)).requires_grad_(False)
    return put_channels_last(network)  # convolutions run fastest on this


def training_examples(source: Source, who: str) -> ExampleSet:
    """Return the run's training examples in the order of the trace's ids.

    Raises:
        InputError: the run's data is not at hand (pass it to ``Run.load``); inputs that cannot be moved by small steps.
    """
    assert source.run is not None
    examples = source.run.data().train.subset(source.trace.train_ids)
    kind = examples.raw(np.array([0])).dtype
    if kind != torch.uint8 and not kind.is_floating_point:
        raise InputError(f"{who} moves inputs by small steps and needs images or real numbers, got {kind} inputs.")
    return examples


@dataclass(frozen=True)
class PixelSpace:
    """Examples before normalisation: 8-bit images in [0, 1], other inputs in the range they have.

    Attributes:
        examples: whose inputs.
        low: the least an input may be.
        high: the most.
    """

    examples: ExampleSet
    low: float
    high: float

    @classmethod
    def of(cls, examples: ExampleSet) -> PixelSpace:
        """Find the range of the inputs.

        Raises:
            InputError: inputs that are all the same number.
        """
        if examples.raw(np.array([0])).dtype == torch.uint8:
            return cls(examples, 0.0, 1.0)
        parts = (
            examples.raw(places) for places in np.array_split(np.arange(len(examples)), -(-len(examples) // BATCH))
        )
        bounds = torch.stack([torch.stack([part.min(), part.max()]) for part in parts])
        low, high = float(bounds[:, 0].min()), float(bounds[:, 1].max())
        if not low < high:
            raise InputError(f"Small steps in the input need inputs that differ; all are {low:g}.")
        return cls(examples, low, high)

    def at(self, positions: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        """Return inputs (B, ...) as floats within the range."""
        raw = self.examples.raw(positions).to(device)
        return raw.to(torch.float32) / 255 if raw.dtype == torch.uint8 else raw.to(torch.float32)
