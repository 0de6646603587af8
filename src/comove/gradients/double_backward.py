"""y = f(x), x' = f'(x) y': layers whose backward pass is itself cheap to differentiate, for Hessian products.

Inside :class:`TwiceDifferentiable` convolutions, max-pooling and ReLU get a backward of their own whose derivative is
made of the same fast kernels: torch's turns weight gradients into convolutions with huge kernels, adds zeros for ReLU
and pooling, and loses the channels-last layout. Batch norm in evaluation mode is folded into the convolution before
it. Values and derivatives are those of autograd up to rounding; whatever is not listed here is left to autograd.

Two operations are written out because torch's own second derivative of them is wrong (weight normalisation) or missing
(embedding bags).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Geometry", "TwiceDifferentiable", "pair", "picked"]

aten: Any = torch.ops.aten
CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}

Geometry: TypeAlias = tuple[Any, Any, Any, bool, list[int], int]
"""What aten's convolutions ask for: stride, padding, dilation, transposed, output padding, groups."""


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
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
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: tuple[bool, ...]) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return aten.convolution_backward(g, x, weight, [len(weight)], *geometry, mask)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None) -> Any:
        """With weight' = dw and x' = dx as tangents: g' = conv(dx, w) + conv(x, dw) + db, and the two cross terms."""
        g, x, weight = ctx.saved_tensors
        g_grad = x_grad = w_grad = None
        if dx is not None and dw is not None and ctx.geometry[-1] == 1:  # one call on stacked channels
            g_grad = aten.convolution(torch.cat([dx, x], 1), torch.cat([weight, dw], 1), db, *ctx.geometry)
        elif dx is not None or dw is not None:
            terms = [(dx, weight)] * (dx is not None) + [(x, dw)] * (dw is not None)
            g_grad = sum(aten.convolution(a, b, None, *ctx.geometry) for a, b in terms)
        if db is not None and (dx is None or dw is None or ctx.geometry[-1] != 1):
            shift = db.view(-1, *(1,) * (g.ndim - 2))
            g_grad = shift.expand_as(g) if g_grad is None else g_grad + shift
        mask = (dw is not None and ctx.needs_input_grad[1], dx is not None and ctx.needs_input_grad[2], False)
        if any(mask):
            crossed = (x if dx is None else dx, weight if dw is None else dw)
            x_grad, w_grad, _ = aten.convolution_backward(g, *crossed, None, *ctx.geometry, mask)
        return g_grad, x_grad, w_grad, None, None


class _Selection(torch.autograd.Function):
    """The backward of a layer that only picks entries of its input: linear in g, indifferent to the input."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, spread: Callable[[Tensor], Tensor], pick: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.pick = pick
        return spread(g)

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> Any:
        return ctx.pick(gg), None, None


def _selected(g: Tensor, spread: Callable[[Tensor], Tensor], pick: Callable[[Tensor], Tensor]) -> Tensor:
    if not torch.is_grad_enabled():  # the second time round
        return spread(g)
    lower: Tensor = _Selection.apply(g, spread, pick)
    return lower


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp_min(0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        y = ctx.saved_tensors[0].detach()

        def gate(upper: Tensor) -> Tensor:
            gated: Tensor = aten.threshold_backward(upper, y, 0)
            return gated

        return _selected(g, gate, gate)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: Any, unpool: Any) -> Tensor:
        y, index = pool(x)
        ctx.save_for_backward(x, index)
        ctx.unpool = unpool
        kept: Tensor = y
        return kept

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, index = ctx.saved_tensors
        x, unpool = x.detach(), ctx.unpool

        def spread(upper: Tensor) -> Tensor:
            lower: Tensor = unpool(upper, x, index)
            return lower

        return _selected(g, spread, lambda lower: picked(lower, index)), None, None


def picked(x: Tensor, index: Tensor) -> Tensor:
    """Return the entries of x (B, C, H, W) at ``index`` (B, C, h, w) into its flat positions, laid out like it."""
    if index.is_contiguous():
        return x.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    rows = x.permute(0, 2, 3, 1).flatten(1, 2).gather(1, index.permute(0, 2, 3, 1).flatten(1, 2))
    return rows.view(len(x), *index.shape[2:], index.shape[1]).permute(0, 3, 1, 2)


def pair(value: Any) -> list[int]:
    """Both sides of a size given as one number or as two."""
    return [value, value] if isinstance(value, int) else list(value)


class TwiceDifferentiable(TorchFunctionMode):
    """While it is entered, the layers above are computed so that differentiating them twice is fast."""

    def __init__(self) -> None:
        super().__init__()
        # By the identity of the output, which is held so that the identity stays its own.
        self._convolutions: dict[int, tuple[Tensor, int, tuple[Any, ...]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = self._replacement(func)
        return (replacement or func)(*args, **(kwargs or {}))

    def _replacement(self, func: Any) -> Callable[..., Any] | None:
        if func in CONVOLUTIONS:
            return lambda *args, **kwargs: self._convolution(func, *args, **kwargs)
        own: dict[Any, Callable[..., Any]] = {
            F.batch_norm: self._batch_norm,
            F.relu: _relu,
            F.max_pool2d: _max_pool,
            F.adaptive_max_pool2d: _adaptive_max_pool,
            F.embedding_bag: _embedding_bag,
            torch._weight_norm: _weight_norm,
        }
        return own.get(func)

    def _convolution(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        sides = CONVOLUTIONS[func]
        if isinstance(padding, str) or input.ndim != sides + 2:
            plain: Tensor = func(input, weight, bias, stride, padding, dilation, groups)
            return plain
        sizes = [[size] * sides if isinstance(size, int) else list(size) for size in (stride, padding, dilation)]
        geometry = (*sizes, False, [0] * sides, groups)
        out: Tensor = _Convolution.apply(input, weight, bias, geometry)
        self._convolutions[id(out)] = (out, out._version, (input, input._version, weight, bias, geometry))
        return out

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        scale = torch.rsqrt(running_var + eps)
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        out, version, before = self._convolutions.get(id(input), (None, 0, ()))
        if out is not None and out._version == version and before[0]._version == before[1]:
            x, _, kernel, offset, geometry = before
            shift = shift if offset is None else shift + offset * scale
            folded: Tensor = _Convolution.apply(x, kernel * scale.view(-1, *(1,) * (kernel.ndim - 1)), shift, geometry)
            return folded
        shape = (-1, *(1,) * (input.ndim - 2))
        return torch.addcmul(shift.view(shape), input, scale.view(shape))


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    if inplace:
        return F.relu(input, inplace=True)
    y: Tensor = _ReLU.apply(input)
    return y


def _max_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or input.ndim != 4:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices)  # type: ignore[call-overload]
    window = (*map(pair, (kernel_size, stride or kernel_size, padding, dilation)), ceil_mode)
    return _MaxPool.apply(
        input,
        lambda x: aten.max_pool2d_with_indices(x, *window),
        lambda g, x, index: aten.max_pool2d_with_indices_backward(g, x, *window, index),
    )


def _adaptive_max_pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    sizes = pair(output_size)
    if return_indices or input.ndim != 4 or None in sizes:
        return F.adaptive_max_pool2d(input, output_size, return_indices=return_indices)  # type: ignore[call-overload]
    return _MaxPool.apply(input, lambda x: aten.adaptive_max_pool2d(x, sizes), aten.adaptive_max_pool2d_backward)


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
