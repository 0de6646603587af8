r"""R{f}(theta) = d/dr f(theta + r v) at r = 0, applied to forward and backward passes kept once. (Pearlmutter, 1994)

The Hessian's fixed examples meet fixed weights: every layer's input x and output gradient g stay what they are from
product to product. They are kept, and a product is one tangent pass forwards (R{x}) and one backwards (R{g}) with no
autograd graph in between. Of a convolution's products each pair is one call on stacked channels,

    R{y} = R{x} * W + x * V = [R{x}, x] * [W; V],        R{dx} = [R{g}, g] *' [W; V],

V the direction's share in W, and batch norm in evaluation mode is folded into the convolution before it, W and V being
the folded ones. What the model does is recorded from its own forward pass; a step without a rule here is told by
:class:`~comove.gradients.folded_kernels.NoRuleError`, and the caller takes autograd instead.

Shape legend: B examples of a chunk, C channels, H, W places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from comove.gradients.double_backward import Geometry
from comove.gradients.folded_kernels import Kernel, dense

__all__ = [
    "ConvolutionLayer",
    "GateLayer",
    "Geometry",
    "Layer",
    "LinearLayer",
    "ProductLayer",
    "SumLayer",
    "Tape",
    "WeightedLayer",
]

aten: Any = torch.ops.aten


def _by_channel(g: Tensor) -> Tensor:
    return g.sum([dim for dim in range(g.ndim) if dim != 1])


# --- rules ---------------------------------------------------------------------------------------------------------


class Layer(ABC):
    """A recorded step. Values are named by numbers, in the order in which they came about."""

    def __init__(self, inputs: tuple[int, ...], output: int) -> None:
        self.inputs, self.output = inputs, output

    def kept(self) -> tuple[Tensor, ...]:
        """Return what it holds from product to product."""
        return ()

    def first(self, g: Tensor, needed: bool) -> tuple[Tensor | None, ...]:
        """Return the gradients of its inputs (where needed) from that of its output, once; mostly this is ``pull``."""
        return self.pull(g, needed)

    @abstractmethod
    def push(self, *tangents: Tensor | None) -> Tensor | None:
        """Return R{y} from the R{x} of the inputs; None is zero."""

    @abstractmethod
    def pull(self, rg: Tensor, needed: bool) -> tuple[Tensor | None, ...]:
        """Return R{dx} of the inputs (where needed) from the output's R{g}."""


class LinearLayer(Layer):
    """y = f(x), f linear and without parameters, or linear given the values kept (ReLU, max-pooling)."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        output: int,
        forward: Callable[[Tensor], Tensor],
        transposed: Callable[[Tensor], Tensor],
        kept: tuple[Tensor, ...] = (),
    ) -> None:
        super().__init__(inputs, output)
        self._forward, self._transposed, self._kept = forward, transposed, kept

    def kept(self) -> tuple[Tensor, ...]:
        """Return the values on which it depends."""
        return self._kept

    def push(self, *tangents: Tensor | None) -> Tensor | None:
        """R{y} = f(R{x})."""
        return None if tangents[0] is None else self._forward(tangents[0])

    def pull(self, rg: Tensor, needed: bool) -> tuple[Tensor | None, ...]:
        """R{dx} = f'(R{g})."""
        return (self._transposed(rg) if needed else None,)


class GateLayer(LinearLayer):
    """y = max(x, 0)."""


class SumLayer(Layer):
    """y = x_1 + x_2."""

    def push(self, *tangents: Tensor | None) -> Tensor | None:
        """R{y} = R{x_1} + R{x_2}."""
        one, two = tangents
        return two if one is None else one if two is None else one + two

    def pull(self, rg: Tensor, needed: bool) -> tuple[Tensor | None, ...]:
        """R{dx_1} = R{dx_2} = R{g}."""
        return rg, rg


class WeightedLayer(Layer):
    """A step bilinear in its input and its weight: keeps x and g, and R{x} on the way back.

    Args:
        inputs: one name.
        output: a name.
        x: the input.
        parameters: what :meth:`Kernels.get` takes.
    """

    kernel: Kernel

    def __init__(self, inputs: tuple[int, ...], output: int, x: Tensor, parameters: tuple[Any, ...]) -> None:
        super().__init__(inputs, output)
        self.x, self.parameters = x, parameters
        self._g: Tensor | None = None
        self._rx: Tensor | None = None

    def kept(self) -> tuple[Tensor, ...]:
        """Return x and g."""
        return (self.x,) if self._g is None else (self.x, self._g)

    def first(self, g: Tensor, needed: bool) -> tuple[Tensor | None, ...]:
        """Keep g, and add the gradients of weight and bias to the kernel's."""
        self._g = dense(g)
        self.kernel.grad += self._weights(self._g, self.x)
        self.kernel.grad_bias += _by_channel(self._g)
        return (self._down(self._g, self.kernel.value) if needed else None,)

    def push(self, *tangents: Tensor | None) -> Tensor | None:
        """R{y} = R{x} W + x V + R{b}."""
        self._rx = tangents[0]
        return self._up(self._rx)

    def pull(self, rg: Tensor, needed: bool) -> tuple[Tensor | None, ...]:
        """R{dx} = R{g} W' + g V', R{dW} = R{g}' x + g' R{x}, R{db} = sum R{g}."""
        assert self._g is not None
        rg, kernel = dense(rg), self.kernel
        lower = self._down_both(rg, self._g) if needed else None
        kernel.rate += self._weights(rg, self.x)
        kernel.rate_bias += _by_channel(rg)
        if self._rx is not None:
            kernel.rate += self._weights(self._g, self._rx)
        self._rx = None
        return (lower,)

    @abstractmethod
    def _up(self, rx: Tensor | None) -> Tensor:
        """R{y}, R{x} being zero where it is None."""

    @abstractmethod
    def _down(self, g: Tensor, weight: Tensor) -> Tensor:
        """The input's gradient from the output's."""

    @abstractmethod
    def _down_both(self, rg: Tensor, g: Tensor) -> Tensor:
        """R{dx} = R{g} W' + g V'."""

    @abstractmethod
    def _weights(self, g: Tensor, x: Tensor) -> Tensor:
        """The weight's gradient from the output's and the input."""


class ConvolutionLayer(WeightedLayer):
    """y = x * W + b; ``geometry`` is what aten's convolutions ask for."""

    geometry: Geometry

    def _up(self, rx: Tensor | None) -> Tensor:
        kernel = self.kernel
        x, weight = (self.x, kernel.tangent) if rx is None else (torch.cat([rx, self.x], 1), kernel.beside)
        pushed: Tensor = aten.convolution(x, weight, kernel.shift, *self.geometry)
        return pushed

    def _down(self, g: Tensor, weight: Tensor) -> Tensor:
        mask = [True, False, False]
        lower: Tensor = aten.convolution_backward(g, self.x, weight, None, *self.geometry, mask)[0]
        return lower

    def _down_both(self, rg: Tensor, g: Tensor) -> Tensor:
        return self._down(torch.cat([rg, g], 1), self.kernel.below)

    def _weights(self, g: Tensor, x: Tensor) -> Tensor:
        mask = [False, True, False]
        found: Tensor = aten.convolution_backward(g, x, self.kernel.value, None, *self.geometry, mask)[1]
        return found


class ProductLayer(WeightedLayer):
    """y = x W' + b of x (B, inputs) and W (outputs, inputs)."""

    def _up(self, rx: Tensor | None) -> Tensor:
        pushed = torch.addmm(self.kernel.shift, self.x, self.kernel.tangent.mT)
        return pushed if rx is None else pushed.addmm_(rx, self.kernel.value.mT)

    def _down(self, g: Tensor, weight: Tensor) -> Tensor:
        return g @ weight

    def _down_both(self, rg: Tensor, g: Tensor) -> Tensor:
        return torch.addmm(rg @ self.kernel.value, g, self.kernel.tangent)

    def _weights(self, g: Tensor, x: Tensor) -> Tensor:
        return g.mT @ x


# --- a chunk's passes ----------------------------------------------------------------------------------------------


class Tape:
    """The forward and backward pass of a chunk, kept."""

    def __init__(self, layers: list[Layer], logits: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        self._layers = layers
        moving = {layer.output for layer in layers if isinstance(layer, WeightedLayer)}
        for layer in layers:
            if moving.intersection(layer.inputs):
                moving.add(layer.output)
        self._moving = moving
        with torch.enable_grad():
            self._leaf = logits.detach().requires_grad_()
            (self._slope,) = torch.autograd.grad(total(self._leaf), self._leaf, create_graph=True)
        self._backwards(self._slope.detach(), lambda layer: layer.first)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        kept = {tensor.data_ptr(): tensor.nbytes for layer in self._layers for tensor in layer.kept()}
        return sum(kept.values())

    def add(self) -> None:
        """Add what this chunk has to say of the direction that the kernels have been set to."""
        tangents: dict[int, Tensor | None] = {}
        for layer in self._layers:
            tangents[layer.output] = layer.push(*(tangents.get(name) for name in layer.inputs))
        rate = tangents[self._layers[-1].output]
        curved = torch.zeros_like(self._leaf)
        if rate is not None and self._slope.requires_grad:
            with torch.enable_grad():
                along = (self._slope * rate).sum()  # torch loads sympy, for seconds, when it is handed vectors
            (curved,) = torch.autograd.grad(along, self._leaf, retain_graph=True)
        del tangents
        self._backwards(curved, lambda layer: layer.pull)

    def _backwards(self, last: Tensor, step: Callable[[Layer], Callable[..., tuple[Tensor | None, ...]]]) -> None:
        meant = {self._layers[-1].output: last}
        for layer in reversed(self._layers):
            arrived = meant.pop(layer.output, None)
            if arrived is None:
                continue
            needed = any(name in self._moving for name in layer.inputs)
            for name, part in zip(layer.inputs, step(layer)(arrived, needed), strict=True):
                if part is not None and name in self._moving:
                    meant[name] = meant[name] + part if name in meant else part
