"""What a model does to its inputs, written down from its own forward pass as layers of the R-operator.

A forward pass runs under a function mode that looks at every call on a tensor made from the inputs: one that has a rule
becomes a layer (batch norm joins the convolution before it), one that has none ends the recording with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from comove.gradients.double_backward import pair, picked
from comove.gradients.folded_kernels import Kernels, NoRuleError
from comove.gradients.r_operator import (
    ConvolutionLayer,
    GateLayer,
    Layer,
    LinearLayer,
    ProductLayer,
    SumLayer,
    Tape,
    WeightedLayer,
)

__all__ = ["record"]

aten: Any = torch.ops.aten
ATTRIBUTES: tuple[Any, ...] = (Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device)
QUESTIONS = {Tensor.size, Tensor.dim, Tensor.__len__, *(attribute.__get__ for attribute in ATTRIBUTES)}
"""What may be asked of a tensor without a rule: nothing that depends on its values."""


def record(model: nn.Module, inputs: Tensor, total: Callable[[Tensor], Tensor], kernels: Kernels) -> Tape:
    """Run a model in evaluation mode forwards and backwards on a chunk, and keep what its Hessian needs.

    Args:
        model: the model.
        inputs: (B, ...).
        total: the model's output -> the scalar whose Hessian is meant.
        kernels: of the model, shared by all chunks; their gradients grow by the chunk's.

    Raises:
        NoRuleError: a step without a rule.
    """
    recorder = _Recorder(inputs, kernels)
    with torch.no_grad(), recorder:
        logits = model(inputs)
    return Tape(recorder.finished(logits), logits, total)


class _Recorder(TorchFunctionMode):
    def __init__(self, inputs: Tensor, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.layers: list[Layer] = []
        self.held = [inputs]  # so that identities stay their own
        self.names = {id(inputs): 0}
        self.kept: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        parts = [
            part for arg in (*args, *given.values()) for part in (arg if isinstance(arg, list | tuple) else (arg,))
        ]
        if not any(id(part) in self.names for part in parts if isinstance(part, Tensor)):
            return func(*args, **given)
        rule = RULES.get(func)
        if rule is not None:
            return rule(self, *args, **given)
        if func not in QUESTIONS:
            raise NoRuleError(f"no rule for {resolve_name(func) or func}")
        return func(*args, **given)

    def finished(self, logits: Tensor) -> list[Layer]:
        """The layers, the last of which gives the logits."""
        if any(tensor._version != version for tensor, version in self.kept):
            raise NoRuleError("a value that the backward pass needs is changed in place")
        if not self.layers or self.names.get(id(logits)) != self.layers[-1].output:
            raise NoRuleError("the output is not what the last step gives")
        for layer in self.layers:
            if isinstance(layer, WeightedLayer):
                layer.kernel = self.kernels.get(*layer.parameters)
        return self.layers

    def name(self, x: Tensor) -> int:
        """The name of a value that is about to be used."""
        if id(x) not in self.names:
            raise NoRuleError("a tensor that is not made from the inputs is added or multiplied")
        return self.names[id(x)]

    def keep(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Watch over what must not change."""
        self.kept += [(tensor, tensor._version) for tensor in tensors]
        return tensors

    def write(self, out: Tensor, make: Callable[[int], Layer]) -> Tensor:
        """Write down the step that gave ``out``."""
        name = len(self.held)
        self.held.append(out)
        self.names[id(out)] = name
        self.layers.append(make(name))
        return out

    def linear(
        self,
        x: Tensor,
        out: Tensor,
        forward: Callable[[Tensor], Tensor],
        transposed: Callable[[Tensor], Tensor],
        *kept: Tensor,
    ) -> Tensor:
        """Write down a step that is linear given what it keeps."""
        inputs = (self.name(x),)
        return self.write(out, lambda name: LinearLayer(inputs, name, forward, transposed, self.keep(*kept)))


def _conv2d(
    at: _Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != 4 or groups != 1:
        raise NoRuleError("a convolution with groups, padding by name or inputs without a batch")
    geometry = (pair(stride), pair(padding), pair(dilation), False, [0, 0], 1)
    out = torch.conv2d(input, weight, bias, *geometry[:3])
    inputs = (at.name(input),)

    def made(name: int) -> Layer:
        layer = ConvolutionLayer(inputs, name, at.keep(input)[0], (weight, bias))
        layer.geometry = geometry
        return layer

    return at.write(out, made)


def _batch_norm(
    at: _Recorder,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    name, last = at.name(input), at.layers[-1] if at.layers else None
    if training or running_mean is None or running_var is None:
        raise NoRuleError("batch norm over the batch")
    if not isinstance(last, ConvolutionLayer) or last.output != name or len(last.parameters) > 2:
        raise NoRuleError("batch norm that does not follow a convolution")
    out = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    last.parameters = (*last.parameters, (weight, bias, running_mean, running_var, eps))
    del at.names[id(input)]  # whoever uses the convolution's own output after this is refused
    at.held.append(out)
    at.names[id(out)] = name
    return out


def _product(at: _Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.ndim != 2:
        raise NoRuleError("a linear layer on more than one position an example")
    inputs = (at.name(input),)
    out = F.linear(input, weight, bias)
    return at.write(out, lambda name: ProductLayer(inputs, name, at.keep(input)[0], (weight, bias)))


def _relu(at: _Recorder, input: Tensor, inplace: bool = False) -> Tensor:
    return _gated(at, (at.name(input),), input.relu_() if inplace else torch.relu(input))


def _gated(at: _Recorder, inputs: tuple[int, ...], y: Tensor) -> Tensor:
    def gate(upper: Tensor) -> Tensor:
        gated: Tensor = aten.threshold_backward(upper, y, 0)
        return gated

    return at.write(y, lambda name: GateLayer(inputs, name, gate, gate, at.keep(y)))


def _max_pool(
    at: _Recorder,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if return_indices or input.ndim != 4:
        raise NoRuleError("max-pooling that returns indices, or inputs without a batch")
    window = (*map(pair, (kernel_size, stride or kernel_size, padding, dilation)), ceil_mode)
    out, index = aten.max_pool2d_with_indices(input, *window)
    return _selected(at, input, out, index, lambda g: aten.max_pool2d_with_indices_backward(g, input, *window, index))


def _adaptive_max_pool(at: _Recorder, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    sizes = pair(output_size)
    if return_indices or input.ndim != 4 or None in sizes:
        raise NoRuleError("max-pooling that returns indices, or inputs without a batch")
    out, index = aten.adaptive_max_pool2d(input, sizes)
    return _selected(at, input, out, index, lambda g: aten.adaptive_max_pool2d_backward(g, input, index))


def _selected(at: _Recorder, input: Tensor, out: Tensor, index: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
    inputs: tuple[int, ...] = (at.name(input),)
    last = at.layers[-1] if at.layers else None
    gate = last if isinstance(last, GateLayer) and last.output == inputs[0] else None
    if gate is not None:  # the largest of what ReLU gives is ReLU of the largest: fewer entries to gate
        at.layers.pop()
        del at.names[id(input)]  # whoever uses ReLU's own output after this is refused
        inputs = gate.inputs
    kept = at.keep(input, index)
    pooled = at.write(out, lambda name: LinearLayer(inputs, name, lambda rx: picked(rx, index), spread, kept))
    return pooled if gate is None else _gated(at, (at.name(pooled),), pooled)


def _avg_pool(at: _Recorder, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _smoothed(at, input, lambda x: F.avg_pool2d(x, *args, **kwargs))


def _adaptive_avg_pool(at: _Recorder, input: Tensor, output_size: Any) -> Tensor:
    return _smoothed(at, input, lambda x: F.adaptive_avg_pool2d(x, output_size))


def _smoothed(at: _Recorder, input: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """A step linear in its input, transposed by autograd."""

    def transposed(g: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros_like(input, requires_grad=True)
            (back,) = torch.autograd.grad((pool(x) * g).sum(), x)
        return back

    return at.linear(input, pool(input), pool, transposed)


def _dropout(at: _Recorder, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training:
        raise NoRuleError("dropout in training mode")
    return input


def _reshaped(at: _Recorder, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out = torch.flatten(input, *args, **kwargs)
    if len(out) != len(input):
        raise NoRuleError("a reshape that mixes examples")
    before, after = input.shape, out.shape[1:]
    return at.linear(input, out, lambda x: x.reshape(len(x), *after), lambda g: g.reshape(before))


def _added(at: _Recorder, input: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    if not isinstance(other, Tensor) or input.shape != other.shape or alpha != 1:
        raise NoRuleError("a sum of anything but two tensors of one shape")
    inputs = (at.name(input), at.name(other))
    return at.write(input + other, lambda name: SumLayer(inputs, name))


def _added_in_place(at: _Recorder, input: Tensor, other: Any) -> Tensor:
    if not isinstance(other, Tensor) or input.shape != other.shape:
        raise NoRuleError("a sum of anything but two tensors of one shape")
    inputs = (at.name(input), at.name(other))
    return at.write(input.add_(other), lambda name: SumLayer(inputs, name))


def _scaled(at: _Recorder, input: Tensor, factor: Any) -> Tensor:
    if not isinstance(factor, int | float):
        raise NoRuleError("a product of anything but a tensor and a number")
    return at.linear(input, input * factor, lambda x: x * factor, lambda g: g * factor)


RULES: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.linear: _product,
    F.max_pool2d: _max_pool,
    F.adaptive_max_pool2d: _adaptive_max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    F.dropout: _dropout,
    **dict.fromkeys((F.relu, torch.relu), _relu),
    **dict.fromkeys((torch.flatten, Tensor.flatten), _reshaped),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), _added),
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), _added_in_place),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _scaled),
}
