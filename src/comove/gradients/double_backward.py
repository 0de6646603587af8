"""Operations whose second derivative torch computes slowly, wrongly or not at all, for Hessian-vector products.

Inside :class:`TwiceDifferentiable` convolutions get a backward of their own, whose derivative is made of the same fast
kernels: torch's turns weight gradients into convolutions with huge kernels (ResNet-9 takes 1.4 to 1.5 times as long).
Weight normalisation is written out because torch's own second derivative of it is wrong, embedding bags because theirs
is missing. Values and derivatives are those of autograd up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["TwiceDifferentiable"]

aten: Any = torch.ops.aten

_Geometry: TypeAlias = tuple[Any, Any, Any, bool, list[int], int]
"""What aten's convolutions ask for: stride, padding, dilation, transposed, output padding, groups."""


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        y: Tensor = aten.convolution(x, weight, bias, *geometry)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():  # the second time round
            return (*aten.convolution_backward(g, x, weight, [len(weight)], *ctx.geometry, mask), None)
        return (*_ConvolutionBackward.apply(g, x, weight, ctx.geometry, mask), None)


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, mask: tuple[bool, ...]) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return aten.convolution_backward(g, x, weight, [len(weight)], *geometry, mask)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None) -> Any:
        """The gradient of g, conv(dx, w) + conv(x, dw) + db, and the two cross terms."""
        g, x, weight = ctx.saved_tensors
        g_grad: Any = 0 if db is None else db.view(-1, *(1,) * (g.ndim - 2)).expand_as(g)
        x_grad = w_grad = None
        if dx is not None:
            g_grad = g_grad + aten.convolution(dx, weight, None, *ctx.geometry)
            w_grad = aten.convolution_backward(g, dx, weight, None, *ctx.geometry, (False, True, False))[1]
        if dw is not None:
            g_grad = g_grad + aten.convolution(x, dw, None, *ctx.geometry)
            if ctx.needs_input_grad[1]:  # not of the images
                x_grad = aten.convolution_backward(g, x, dw, None, *ctx.geometry, (True, False, False))[0]
        return g_grad, x_grad, w_grad, None, None


class TwiceDifferentiable(TorchFunctionMode):
    """While it is entered, the operations above are computed so that differentiating them twice is fast and right."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


def _convolution(
    sides: int,
    plain: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != sides + 2:
        return plain(input, weight, bias, stride, padding, dilation, groups)
    sizes = [[size] * sides if isinstance(size, int) else list(size) for size in (stride, padding, dilation)]
    out: Tensor = _Convolution.apply(input, weight, bias, (*sizes, False, [0] * sides, groups))
    return out


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weight g v / |v|, norms over all dimensions but ``dim``; torch's kernel has a wrong second derivative."""
    norm: Tensor = torch.norm_except_dim(v, 2, dim)
    return v * (g / norm)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima of embeddings (B, F) over bags; torch's own has no second derivative.

    Bags are the rows of (B, T), or parts of (N,) that begin at ``offsets``.
    """
    if max_norm is not None or not input.numel() or (input.ndim == 1) != (offsets is not None):
        return F.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    counted_BT1 = torch.ones_like(input, dtype=torch.bool)[..., None]
    if offsets is not None:
        where_BT, counted_BT1 = _bags(offsets, len(input), include_last_offset)
        input = input[where_BT]
        per_sample_weights = None if per_sample_weights is None else per_sample_weights[where_BT]
    rows_BTF = F.embedding(input, weight)
    if padding_idx is not None:
        counted_BT1 = counted_BT1 & (input != padding_idx % len(weight))[:, :, None]
    if mode == "max":
        empty_B1 = ~counted_BT1.any(1)
        return rows_BTF.masked_fill(~counted_BT1, -torch.inf).amax(1).masked_fill(empty_B1, 0)
    if per_sample_weights is not None:
        rows_BTF = rows_BTF * per_sample_weights[:, :, None]
    summed_BF = rows_BTF.masked_fill(~counted_BT1, 0).sum(1)
    return summed_BF if mode == "sum" else summed_BF / counted_BT1.sum(1).clamp(min=1)


def _bags(offsets: Tensor, size: int, include_last_offset: bool) -> tuple[Tensor, Tensor]:
    """Where each bag's entries stand among ``size`` of them, (B, T) up to the longest; which count, (B, T, 1)."""
    starts_B = offsets[:-1] if include_last_offset else offsets
    ends_B = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([size])])
    lengths_B = ends_B - starts_B
    steps_T = torch.arange(max(1, int(lengths_B.max())), device=offsets.device)
    where_BT = (starts_B[:, None] + steps_T).clamp(max=size - 1)
    return where_BT, (steps_T < lengths_B[:, None])[:, :, None]


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: partial(_convolution, 1, torch.conv1d),
    torch.conv2d: partial(_convolution, 2, torch.conv2d),
    torch.conv3d: partial(_convolution, 3, torch.conv3d),
    F.embedding_bag: _embedding_bag,
    torch._weight_norm: _weight_norm,
}
