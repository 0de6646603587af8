"""An exponential moving average of a model's weights over the steps of training (EMA).

After step t = 1, 2, ...:  a <- a + (1 - d_t) * (w - a),  d_t = min(decay, (1 + t) / (10 + t)),  from a = w before
training. The smaller decay of the first steps quickly reduces the influence of the initial weights, as in
TensorFlow's moving averages. Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.

Trained parameters and the running statistics of normalisation layers are averaged; other buffers are left unchanged.
The model holds the average whenever it is evaluated, recorded or saved; training continues from the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]

STATISTICS = ("running_mean", "running_var")


class EMA:
    """The average of a model's weights; while the model holds the average, this holds the weights.

    Args:
        model: with its weights; or, to resume, with their average.
        decay: of the average.
        weights: to resume, the weights by name, as :attr:`other` held them within :meth:`in_model`.
    """

    def __init__(self, model: nn.Module, decay: float, weights: Mapping[str, Tensor] | None = None) -> None:
        named = [*model.named_parameters(), *model.named_buffers()]  # each once, where layers share them
        self.live = {n: t.detach() for n, t in named if t.requires_grad or n.endswith(STATISTICS)}
        self.decay = decay
        self.other = {name: (weights or self.live)[name].to(value.device).clone() for name, value in self.live.items()}
        if weights:
            self.swap()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.other.values()), list(self.live.values()), 1 - decay)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Put the average into the model within the block; :attr:`other` are the weights then."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange what the model holds and :attr:`other`."""
        for name, value in self.live.items():  # in place: compiled networks read weights where they were
            held = value.clone()
            value.copy_(self.other[name])
            self.other[name].copy_(held)
