r"""W s, beta + (b - mean) s with s = gamma rstd: a layer's weights with the batch norm behind it, and their tangents.

In evaluation mode a convolution or linear layer and the batch norm after it are one affine map. Its weights are
bilinear in (W, gamma) and (b, gamma): the tangent of a direction (dW, db, dgamma, dbeta) is dW s + W rstd dgamma and
dbeta + db s + (b - mean) rstd dgamma, and the Hessian's product with it follows from the folded weights' gradient
(fixed) and its tangent by the chain rule. Nothing is divided by gamma.

Shape legend: C output channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Kernel", "Kernels", "NoRuleError", "dense"]


class NoRuleError(Exception):
    """The forward pass does something that has no rule here; the message says what."""


def dense(tensor: Tensor) -> Tensor:
    """Return it with channels last, on which convolutions run fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()


def _rows(one: Tensor, two: Tensor) -> Tensor:
    """Inner products channel by channel."""
    return (one * two).flatten(1).sum(1)


class Kernel:
    """The weight W s and bias beta + (b - mean) s of a convolution or linear layer with the batch norm behind it.

    s = gamma rstd; no batch norm is s = 1. Holds the direction's tangents of both, and sums over the chunks of their
    gradients (``grad``, fixed) and of the gradients' tangents (``rate``).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.own, self.own_bias = weight, bias
        self.gamma: Tensor | None = None
        self.beta: Tensor | None = None
        self.mean, self.rstd = self.weight.new_zeros(len(weight)), self.weight.new_ones(len(weight))
        self._fold()

    def normalise(self, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor, eps: float) -> None:
        """Put batch norm behind it."""
        self.gamma, self.beta, self.mean, self.rstd = gamma, beta, mean, torch.rsqrt(variance + eps)
        self._fold()

    def _fold(self) -> None:
        self.scale = self.rstd if self.gamma is None else self.rstd * self.gamma.detach()
        self.value = dense(self.weight * self._tall(self.scale))
        self.grad, self.grad_bias = torch.zeros_like(self.value), torch.zeros_like(self.scale)
        self.rate, self.rate_bias = torch.zeros_like(self.value), torch.zeros_like(self.scale)

    def _tall(self, vector_C: Tensor) -> Tensor:
        return vector_C.view(-1, *(1,) * (self.weight.ndim - 1))

    def _centre(self) -> Tensor:
        return -self.mean if self.bias is None else self.bias - self.mean

    def aim(self, directions: Mapping[int, Tensor]) -> None:
        """Take the tangents from directions by the parameters' identities; of parameters not there they are zero."""
        weight, bias, gamma, beta = (
            None if p is None else directions.get(id(p)) for p in (self.own, self.own_bias, self.gamma, self.beta)
        )
        tangent = torch.zeros_like(self.weight) if weight is None else weight * self._tall(self.scale)
        shift = torch.zeros_like(self.scale) if bias is None else bias * self.scale
        if gamma is not None:
            slope = self.rstd * gamma
            tangent, shift = tangent + self.weight * self._tall(slope), shift + self._centre() * slope
        self.tangent, self.shift = dense(tangent), shift if beta is None else shift + beta
        self.beside, self.below = torch.cat([self.value, self.tangent], 1), torch.cat([self.value, self.tangent])
        self.rate.zero_()
        self.rate_bias.zero_()

    def found(self, directions: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(parameter, its share of the product): the chain rule through the folding, and the folding's curvature."""
        bent = None if self.gamma is None else directions.get(id(self.gamma))
        slope = None if bent is None else self.rstd * bent
        weight, bias = self.rate * self._tall(self.scale), self.rate_bias * self.scale
        if slope is not None:
            weight, bias = weight + self.grad * self._tall(slope), bias + self.grad_bias * slope
        pairs = [(self.own, weight)] + ([] if self.own_bias is None else [(self.own_bias, bias)])
        if self.beta is not None:
            pairs.append((self.beta, self.rate_bias))
        if self.gamma is not None:
            moment = _rows(self.rate, self.weight) + self._centre() * self.rate_bias
            turned = directions.get(id(self.own))
            moment = moment if turned is None else moment + _rows(self.grad, turned)
            moved = None if self.own_bias is None else directions.get(id(self.own_bias))
            moment = moment if moved is None else moment + moved * self.grad_bias
            pairs.append((self.gamma, self.rstd * moment))
        return pairs


class Kernels:
    """The layers' weights of all chunks, and a direction's way through them."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {id(parameter) for parameter in model.parameters()}
        self._kernels: dict[tuple[int, ...], Kernel] = {}

    def __len__(self) -> int:
        return len(self._kernels)

    def get(self, weight: Tensor, bias: Tensor | None, norm: tuple[Any, ...] = ()) -> Kernel:
        """The kernel of these parameters.

        Raises:
            NoRuleError: one of them is no parameter of the model, but made from some.
        """
        held = [weight, bias, *norm[:2]]
        if any(part is not None and id(part) not in self._known for part in held):
            raise NoRuleError("a layer whose weights are computed from other parameters")
        key = tuple(id(part) for part in (weight, bias, *norm[:4]))
        if key not in self._kernels:
            self._kernels[key] = Kernel(weight, bias)
            if norm:
                self._kernels[key].normalise(*norm)
        return self._kernels[key]

    def aim(self, directions: Mapping[int, Tensor]) -> None:
        """Set out in a direction, given by the parameters' identities."""
        for kernel in self._kernels.values():
            kernel.aim(directions)

    def found(self, directions: Mapping[int, Tensor], into: Mapping[int, Tensor]) -> None:
        """Add the product's parts to ``into``, by the parameters' identities."""
        for kernel in self._kernels.values():
            for parameter, part in kernel.found(directions):
                if id(parameter) in into:
                    into[id(parameter)] += part
