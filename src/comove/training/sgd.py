"""Stochastic gradient descent, the same bits as ``torch.optim.SGD``.

Ours because constructing any ``torch.optim`` optimizer imports torch's compiler, five seconds for every command, and
because the many-models engine needs the same update as a plain function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from comove.training.recipe import Recipe

__all__ = ["SGD", "sgd_update"]


def sgd_update(
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    buffers: list[torch.Tensor],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """Update ``parameters`` and momentum ``buffers`` in place, all tensors at once.

    g <- g + weight_decay * p;  b <- momentum * b + g;  p <- p - lr * (g + momentum * b if nesterov else b).
    A zero buffer gives the first step of ``torch.optim.SGD`` (no dampening). Sutskever et al., ICML 2013.
    """
    if weight_decay:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=weight_decay))
    if momentum:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        gradients = list(torch._foreach_add(gradients, buffers, alpha=momentum)) if nesterov else buffers
    torch._foreach_add_(parameters, gradients, alpha=-lr)


class SGD:
    """Holds a model's parameters and momentum; has what ``torch.amp.GradScaler`` asks of an optimizer."""

    def __init__(self, model: nn.Module, recipe: Recipe, momentum: Mapping[str, torch.Tensor]) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.recipe, self.lr = recipe, recipe.lr
        self.names, self.parameters = list(named), list(named.values())
        self.param_groups: list[dict[str, Any]] = [{"params": self.parameters}]
        self.buffers = [
            momentum[name].to(p.device).clone() if name in momentum else torch.zeros_like(p)
            for name, p in named.items()
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step with the learning rate in ``lr``; parameters without a gradient stay as they are."""
        used = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        recipe = self.recipe
        sgd_update(
            [self.parameters[index] for index in used],
            [gradient for index in used if (gradient := self.parameters[index].grad) is not None],
            [self.buffers[index] for index in used],
            lr=self.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )

    def momentum(self) -> dict[str, torch.Tensor]:
        """The momentum buffers by parameter name (none without momentum)."""
        return dict(zip(self.names, self.buffers, strict=True)) if self.recipe.momentum else {}
