r"""G[b] of one layer from its input x and the gradient g of its output: per-sample rules.

For a linear layer sum_t g[b, t] x[b, t]', for a convolution one weight-gradient call with the examples as groups, for
batch norm in evaluation mode and layer norm sum_t g[b, t] xhat[b, t], for an embedding g added up by token.

Shape legend: B examples, T positions. Each rule maps (layer, x (B, ...), g (B, ...)) to (B, *parameter.shape).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

__all__ = ["BATCH_NORMS", "CONVOLUTIONS", "RULES", "is_transposed_linear", "patches", "rules_of"]

SMALL_PATCH = 32
"""Convolutions with patches of at most so many inputs waste vector lanes in grouped calls with rows innermost."""


def _linear_weight(layer: nn.Linear, x: Tensor, g: Tensor) -> Tensor:
    if x.ndim == 2:
        return g[:, :, None] * x[:, None, :]
    return torch.bmm(g.flatten(1, -2).mT, x.flatten(1, -2))


def _linear_bias(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    return g if g.ndim == 2 else g.flatten(1, -2).sum(1)


def _conv_weight(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    batch, shape = len(x), layer.weight.shape
    if _by_patches(layer, x):
        seen = patches(layer, x).reshape(batch, shape[1:].numel(), -1)
        return torch.bmm(g.flatten(2), seen.mT).view(batch, *shape)
    x, padding = _padded(layer, x)
    if layer.groups == 1 and x.ndim == 4 and shape[1:].numel() <= SMALL_PATCH:
        x, g = _channels_innermost(x), _channels_innermost(g)
    else:
        x, g = (part.reshape(1, -1, *part.shape[2:]) for part in (x, g))
    # Examples side by side as groups: each meets its own gradient only.
    weight_gradient: Any = {3: conv1d_weight, 4: conv2d_weight, 5: conv3d_weight}[x.ndim]
    size = (batch * shape[0], *shape[1:])
    grouped: Tensor = weight_gradient(x, size, g, layer.stride, padding, layer.dilation, layer.groups * batch)
    return grouped.view(batch, *shape)


def _by_patches(layer: Any, x: Tensor) -> bool:
    """Whether a product with patches is the faster way; cuDNN has no fast kernels for gradients of so many groups."""
    if layer.groups > 1 or x.ndim != 4:
        return False
    return x.device.type == "cuda" or (layer.weight[0].numel() <= SMALL_PATCH and not _has_onednn(x))


def _has_onednn(x: Tensor) -> bool:
    present: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return x.device.type == "cpu" and x.dtype == torch.float32 and present


def _channels_innermost(x: Tensor) -> Tensor:
    """(B, C, H, W) as (1, B C, H, W), in memory position by position: six times as fast for a few channels."""
    return x.permute(2, 3, 0, 1).contiguous().flatten(2)[None].permute(0, 3, 1, 2)


def _padded(layer: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input, and the zeros still to be put around it; other padding is done, as the layer's own forward does it."""
    if not isinstance(layer.padding, str) and layer.padding_mode == "zeros":
        return x, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode), (0,) * (x.ndim - 2)


def patches(layer: Any, x: Tensor) -> Tensor:
    """Return what each position of a convolution's output sees, as a view (B, channels, *kernel, *places).

    Whoever reshapes it copies whole rows of the input, which is twice as fast as ``F.unfold``.

    Args:
        layer: with ``groups`` 1, of any number of dimensions.
        x: its input (B, channels, ...).
    """
    x, padding = _padded(layer, x)
    x = F.pad(x, [side for width in reversed(padding) for side in (width, width)])
    sides = tuple(zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True))
    places = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in sides]
    example, channel, *steps = x.stride()
    inside = [step * dilation for step, (*_, dilation) in zip(steps, sides, strict=True)]
    across = [step * stride for step, (_, _, stride, _) in zip(steps, sides, strict=True)]
    return x.as_strided((*x.shape[:2], *layer.kernel_size, *places), (example, channel, *inside, *across))


def _channel_sum(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    return g if g.ndim == 2 else g.flatten(2).sum(2)


def _batch_norm_weight(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    moment: Tensor = g * x if g.ndim == 2 else (g * x).flatten(2).sum(2)
    rstd: Tensor = torch.rsqrt(layer.running_var + layer.eps)
    centred: Tensor = moment - layer.running_mean * _channel_sum(layer, x, g)
    return centred.mul_(rstd)


def _layer_norm_weight(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> Tensor:
    return _layer_norm_bias(layer, x, g * F.layer_norm(x, layer.normalized_shape, eps=layer.eps))


def _layer_norm_bias(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> Tensor:
    return g.reshape(len(g), -1, *layer.normalized_shape).sum(1)


def _embedding_weight(layer: nn.Embedding, x: Tensor, g: Tensor) -> Tensor:
    index, g = x.flatten(1), g.reshape(len(g), -1, layer.embedding_dim)
    if layer.padding_idx is not None:
        g = g * (index != layer.padding_idx)[:, :, None]
    rows = g.new_zeros(len(g), *layer.weight.shape)
    return rows.scatter_add_(1, index[:, :, None].expand_as(g), g)


def _transposed_linear_weight(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Of transformers' ``Conv1D``, a linear layer whose weight is (inputs, outputs)."""
    if x.ndim == 2:
        return x[:, :, None] * g[:, None, :]
    return torch.bmm(x.flatten(1, -2).mT, g.flatten(1, -2))


def _rms_norm_weight(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    eps = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    shape = tuple(layer.weight.shape)
    normed = F.rms_norm(x.to(g.dtype), shape, eps=torch.finfo(x.dtype).eps if eps is None else eps)
    return (g * normed).reshape(len(g), -1, *shape).sum(1)


Rule: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]
CONVOLUTIONS, BATCH_NORMS = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# By exact type: a subclass may compute something else.
RULES: dict[type[nn.Module], dict[str, Rule]] = {
    nn.Linear: {"weight": _linear_weight, "bias": _linear_bias},
    **{kind: {"weight": _conv_weight, "bias": _channel_sum} for kind in CONVOLUTIONS},
    **{kind: {"weight": _batch_norm_weight, "bias": _channel_sum} for kind in BATCH_NORMS},
    nn.LayerNorm: {"weight": _layer_norm_weight, "bias": _layer_norm_bias},
    nn.Embedding: {"weight": _embedding_weight},
    nn.RMSNorm: {"weight": _rms_norm_weight},
}
_CONV1D: dict[str, Rule] = {"weight": _transposed_linear_weight, "bias": _linear_bias}


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a layer is transformers' ``Conv1D``: a linear layer whose weight is (inputs, outputs)."""
    kind = type(module)
    return kind.__module__.startswith("transformers.") and kind.__name__ == "Conv1D"


def rules_of(module: nn.Module) -> dict[str, Rule]:
    """Return the rules of a layer by the parameter's name; none where there are none.

    The layers of transformers are known by their names, so that it need not be installed: its ``Conv1D``, and the RMS
    norms that every model family has of its own. Whether a rule holds for a layer is checked on the first examples.
    """
    kind = type(module)
    if kind in RULES:
        return RULES[kind]
    if is_transposed_linear(module):
        return _CONV1D
    if kind.__name__.endswith("RMSNorm") and list(dict(module.named_parameters(recurse=False))) == ["weight"]:
        return RULES[nn.RMSNorm]
    return {}
