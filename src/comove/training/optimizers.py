"""Stochastic gradient descent and AdamW: the bits of ``torch.optim.SGD``, and ``torch.optim.AdamW`` to rounding.

Ours because constructing any ``torch.optim`` optimizer imports torch's compiler, five seconds for every command, and
because the many-models engine needs the same updates for G models side by side. Both are elementwise, so nothing but
clipping, whose norm is each model's own, knows of members.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from comove.training.recipe import Recipe

__all__ = ["SGD", "AdamW", "Optimizer", "adamw_update", "clip_gradients", "optimizer_for", "sgd_update"]


def sgd_update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
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


def adamw_update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    steps: Sequence[int],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update ``parameters`` and both moving averages in place; ``steps`` count this step, for each parameter.

    p <- p - lr * weight_decay * p;  m <- b1 * m + (1 - b1) * g;  v <- b2 * v + (1 - b2) * g^2;
    p <- p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). Loshchilov and Hutter, ICLR 2019, algorithm 2.
    """
    first, second = betas
    torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    torch._foreach_lerp_(averages, gradients, 1 - first)
    torch._foreach_mul_(squares, second)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [math.sqrt(1 - second**step) for step in steps])
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(parameters, averages, roots, [-lr / (1 - first**step) for step in steps])


def clip_gradients(gradients: Sequence[Tensor], norm: float, members: int = 1) -> None:
    """Scale gradients in place so that the norm of all together is at most ``norm``, for each member by itself.

    ``g <- g * min(1, norm / (|g| + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_``. Pascanu et al., ICML 2013.

    Args:
        gradients: of all parameters; with several members, the members' one after another along dimension 0.
        norm: the largest that is left alone.
        members: models side by side.
    """
    parts = [g.view(members, -1, *g.shape[1:]) if members > 1 else g[None, None] for g in gradients]
    norms = [torch.linalg.vector_norm(part, dim=tuple(range(1, part.ndim))) for part in parts]
    factors_G = (norm / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + 1e-6)).clamp(max=1.0)
    for part in parts:
        part.mul_(factors_G.view(-1, *[1] * (part.ndim - 1)))


class Optimizer(ABC):
    """Holds a model's trained parameters; has what ``torch.amp.GradScaler`` asks of an optimizer.

    Args:
        model: the network, or several side by side.
        recipe: how to train.
        members: models side by side.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, members: int = 1) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.recipe, self.lr, self.members = recipe, recipe.lr, members
        self.names, self.parameters = list(named), list(named.values())
        self.param_groups: list[dict[str, Any]] = [{"params": self.parameters}]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step with the learning rate in ``lr``; parameters without a gradient stay as they are."""
        used = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        gradients = [gradient for index in used if (gradient := self.parameters[index].grad) is not None]
        if self.recipe.clip_norm is not None and gradients:
            clip_gradients(gradients, self.recipe.clip_norm, self.members)
        self._update(used, [self.parameters[index] for index in used], gradients)

    @abstractmethod
    def _update(self, used: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Move these parameters, whose places among all are ``used``."""

    @abstractmethod
    def momentum(self) -> dict[str, Tensor]:
        """What a step leaves to the next one, by parameter name; given back, training goes on to the same bits."""

    def _kept(self, kept: Mapping[str, Tensor], prefix: str = "") -> list[Tensor]:
        """What was left of each parameter under this prefix, zeros where there is nothing."""
        named = zip(self.names, self.parameters, strict=True)
        found = [(kept.get(prefix + name), p) for name, p in named]
        return [torch.zeros_like(p) if value is None else value.to(p.device).clone() for value, p in found]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; see :func:`sgd_update`."""

    def __init__(self, model: nn.Module, recipe: Recipe, momentum: Mapping[str, Tensor], members: int = 1) -> None:
        super().__init__(model, recipe, members)
        self.buffers = self._kept(momentum)

    def _update(self, used: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        recipe = self.recipe
        sgd_update(
            parameters,
            gradients,
            [self.buffers[index] for index in used],
            lr=self.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )

    def momentum(self) -> dict[str, Tensor]:
        """The momentum buffers by parameter name (none without momentum)."""
        return dict(zip(self.names, self.buffers, strict=True)) if self.recipe.momentum else {}


class AdamW(Optimizer):
    """Adam with decoupled weight decay; see :func:`adamw_update`."""

    def __init__(self, model: nn.Module, recipe: Recipe, momentum: Mapping[str, Tensor], members: int = 1) -> None:
        super().__init__(model, recipe, members)
        self.averages, self.squares = self._kept(momentum, "average."), self._kept(momentum, "square.")
        self.steps = [int(momentum.get(f"steps.{name}", 0)) for name in self.names]

    def _update(self, used: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        recipe = self.recipe
        for index in used:
            self.steps[index] += 1
        adamw_update(
            parameters,
            gradients,
            [self.averages[index] for index in used],
            [self.squares[index] for index in used],
            [self.steps[index] for index in used],
            lr=self.lr,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
        )

    def momentum(self) -> dict[str, Tensor]:
        """Both averages and the count of steps, as ``average.NAME``, ``square.NAME`` and ``steps.NAME``."""
        found: dict[str, Tensor] = {}
        for name, average, square, steps in zip(self.names, self.averages, self.squares, self.steps, strict=True):
            found |= {f"average.{name}": average, f"square.{name}": square, f"steps.{name}": torch.tensor(steps)}
        return found


def optimizer_for(model: nn.Module, recipe: Recipe, momentum: Mapping[str, Tensor], members: int = 1) -> Optimizer:
    """The recipe's optimizer, going on from ``momentum`` (nothing: from the start)."""
    return (AdamW if recipe.optimizer == "adamw" else SGD)(model, recipe, momentum, members)
