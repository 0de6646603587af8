r"""W' = s W, b' = beta + (b - mean) s, s = gamma rstd: batch norm in evaluation mode, folded into the layer before it.

A convolution or linear layer (W, b) followed by batch norm (gamma, beta, running mean, rstd = 1 / sqrt(running variance
+ eps)) is one affine map. Computed as one it spares a pass over every activation forward and backward, and more when
differentiated twice. Gradients of the original parameters follow exactly from those of the folded ones,

    dW = s dW',  db = s db',  dbeta = db',  dgamma = rstd (<dW', W> over a channel's fan-in + (b - mean) db'),

without a division: gamma may be 0. Inside :func:`folded` autograd takes the same steps, any number of times.

Shape legend: C output channels; ``...`` leading dimensions, such as examples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Pair", "foldable", "folded", "scale_and_shift"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LOOKS = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.__len__,
    Tensor.untyped_storage,
}
"""What looks at a tensor, not at its values; the last of them is our own look."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer and the batch norm that alone takes its output; what it computes is read anew at every call.

    Attributes:
        layer: a convolution or linear layer with weight W (C, ...) and bias b (C,) or none.
        norm: batch norm over its C outputs, with gamma and beta (C,) or neither.
    """

    layer: Any
    norm: Any

    @property
    def rstd(self) -> Tensor:
        """1 / sqrt(running variance + eps), (C,)."""
        found: Tensor = torch.rsqrt(self.norm.running_var + self.norm.eps)
        return found

    @property
    def scale(self) -> Tensor:
        """Gamma rstd, the s of the equations, (C,)."""
        return scale_and_shift(self.norm)[0]

    @property
    def centre(self) -> Tensor:
        """The difference b - mean, (C,)."""
        mean: Tensor = self.norm.running_mean
        found: Tensor = -mean if self.layer.bias is None else self.layer.bias - mean
        return found

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return W' (shaped like W) and b' (C,), which autograd follows back to W, b, gamma and beta."""
        scale, shift = scale_and_shift(self.norm)
        bias = self.layer.bias
        return self.layer.weight * _over_fan_in(
            scale, self.layer.weight
        ), shift if bias is None else shift + bias * scale

    def layer_weight(self, dweight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return dW (..., *W.shape) from dW' (..., *W.shape), written to ``out`` where one is given."""
        return torch.mul(dweight, _over_fan_in(self.scale, self.layer.weight).detach(), out=out)

    def layer_bias(self, dbias: Tensor) -> Tensor:
        """Return db (..., C) from db' (..., C)."""
        return dbias * self.scale.detach()

    def norm_weight(self, dweight: Tensor, dbias: Tensor) -> Tensor:
        """Return dgamma (..., C) from dW' (..., *W.shape) and db' (..., C)."""
        weight = self.layer.weight.detach()
        fan_in = tuple(range(1 - weight.ndim, 0))
        found: Tensor = ((dweight * weight).sum(fan_in) + self.centre.detach() * dbias) * self.rstd
        return found

    def norm_bias(self, dbias: Tensor) -> Tensor:
        """Return dbeta (..., C) from db' (..., C): they are the same."""
        return dbias


def _over_fan_in(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *(1,) * (weight.ndim - 1))


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return s and beta - mean s, (C,) each: what batch norm in evaluation mode multiplies by and adds."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    shift = norm.running_mean * scale
    return scale, -shift if norm.bias is None else norm.bias - shift


def foldable(model: nn.Module, forward: Callable[[], Any]) -> tuple[Pair, ...]:
    """Return the layers whose output one batch norm takes, and nothing else does, in a forward pass.

    Both are called once in it, without hooks on them, in evaluation mode and with running statistics. What their
    output goes through is watched operation by operation, so a model that also pools it or changes it in place keeps
    the layer as it is.

    Args:
        model: without data-dependent control flow, so that one pass stands for all.
        forward: one forward pass, over as few examples as one.
    """
    layers = [module for module in model.modules() if type(module) in LAYERS and _plain(module)]
    norms = [module for module in model.modules() if type(module) in NORMS and _plain(module) and _fixed(module)]
    if not layers or not norms:
        return ()
    watch = _Watch()
    with ExitStack() as stack, torch.no_grad():
        for module in layers:
            stack.callback(module.register_forward_hook(watch.left).remove)
        for module in norms:
            stack.callback(module.register_forward_pre_hook(watch.entered).remove)
            stack.callback(module.register_forward_hook(watch.after).remove)
        with watch:
            watch.read(tree_leaves(forward()))  # an output of the whole model goes somewhere else
    return watch.pairs()


def _plain(module: Any) -> bool:
    """Whether the class says what it computes."""
    return "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in HOOKS)


def _fixed(norm: Any) -> bool:
    return not norm.training and norm.running_mean is not None


class _Watch(TorchFunctionMode):
    """Follows the memory of layers' outputs through the operations of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[int, tuple[Any, Tensor, int]] = {}  # by storage; held, so that no other takes its place
        self._calls: list[nn.Module] = []
        self._inside: tuple[Any, int] | None = None
        self._taken: dict[int, Any] = {}
        self._elsewhere: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in LOOKS and func.__name__ != "__get__":  # what x.T gives has its memory, and is seen when used
            self.read(tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))

    def read(self, values: Collection[Any]) -> None:
        """Note the outputs among what an operation takes, outside the norm that has them as its input."""
        own = self._inside[1] if self._inside else None
        for value in values:
            if isinstance(value, Tensor) and (place := _place(value)) in self._outputs and place != own:
                self._elsewhere.add(place)

    def left(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        """A layer has computed its output."""
        self._calls.append(layer)
        self._outputs[_place(output)] = (layer, output, output._version)

    def entered(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """A batch norm is handed its input."""
        self._calls.append(norm)
        x = args[0] if args else None
        layer, output, version = self._outputs.get(_place(x), (None, None, 0)) if isinstance(x, Tensor) else (None,) * 3
        if x is output and x is not None and x._version == version and _fits(layer, norm, x):
            self._inside = (norm, _place(x))
            self._elsewhere |= {_place(x)} & set(self._taken)
            self._taken[_place(x)] = norm

    def after(self, norm: nn.Module, args: Any, output: Any) -> None:
        """A batch norm has computed its output."""
        self._inside = None

    def pairs(self) -> tuple[Pair, ...]:
        """What the pass showed to be foldable."""
        found = [(self._outputs[place][0], norm, place) for place, norm in self._taken.items()]
        once = {id(module) for module in self._calls if sum(call is module for call in self._calls) == 1}
        return tuple(
            Pair(layer, norm)
            for layer, norm, place in found
            if place not in self._elsewhere and {id(layer), id(norm)} <= once
        )


def _place(tensor: Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place


def _fits(layer: Any, norm: Any, x: Tensor) -> bool:
    """Whether the norm's channels are the layer's outputs (of a longer input they would be positions)."""
    return bool(x.ndim == layer.weight.ndim and layer.weight.dtype == norm.running_var.dtype)


@contextmanager
def folded(pairs: Collection[Pair]) -> Iterator[None]:
    """While it is entered, each pair's layer computes with W' and b', and its norm hands its input on.

    Autograd follows W' and b' to the four parameters, as often as it is asked to. Hooks on a layer see the output of
    the norm; the gradient of that output is what dW' and db' come from.
    """
    try:
        for pair in pairs:
            vars(pair.layer)["forward"] = partial(_forward, pair)
            vars(pair.norm)["forward"] = _identity
        yield
    finally:
        for pair in pairs:
            for module in (pair.layer, pair.norm):
                vars(module).pop("forward", None)


def _forward(pair: Pair, input: Tensor) -> Tensor:
    weight, bias = pair.weight_and_bias()
    if isinstance(pair.layer, nn.Linear):
        return F.linear(input, weight, bias)
    compute: Callable[..., Tensor] = pair.layer._conv_forward
    return compute(input, weight, bias)


def _identity(input: Tensor) -> Tensor:
    return input
