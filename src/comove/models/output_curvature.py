r"""H = S S', H the Hessian of an example's loss in the model's outputs: factors S, and draws u with E[u u'] = H.

Of cross-entropy H is diag(p) - p p', whatever the label; it is the covariance of p - e_y with y drawn from p, which is
where the draws come from (Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR 2020).

Shape legend: B examples, T predictions of an example (tokens, pixels), C classes, K entries of an example's outputs,
R columns of a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from comove.data.batches import Batch
from comove.errors import InputError
from comove.models.outputs import differentiable_parts

__all__ = ["hessian_factors", "output_hessians", "softmax_draws", "softmax_factors", "uniform"]

ROUNDED = {torch.float64: 1e-9}
"""A negative eigenvalue of this share of the largest one is rounding; in lower precisions ``ROUNDED_SINGLE``."""
ROUNDED_SINGLE = 1e-4


def softmax_factors(logits_BTC: Tensor) -> Tensor:
    """Return S (B, T, C, C - 1) with S S' = diag(p) - p p', p the softmax of each prediction's logits.

    diag(sqrt p) - p sqrt(p)' has one column too many: it maps sqrt(p) to 0. Here it is taken on an orthonormal basis of
    what is orthogonal to sqrt(p), that of a Householder reflection.
    """
    root_BTC = logits_BTC.softmax(-1).sqrt()
    rest_BTR = root_BTC[..., 1:]
    classes = root_BTC.shape[-1]
    reflected = root_BTC + F.one_hot(torch.tensor(0), classes).to(root_BTC)
    basis = torch.eye(classes)[:, 1:].to(root_BTC) - (
        reflected[..., :, None] * (rest_BTR / (1 + root_BTC[..., :1]))[..., None, :]
    )
    return root_BTC[..., None] * basis


def uniform(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return numbers in [0, 1) drawn where the generator is, on the device of ``like``: the same on every device."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(like.device)


def softmax_draws(logits_BTC: Tensor, generator: torch.Generator) -> Tensor:
    """Return p - e_y (B, T, C), y drawn from p independently for each prediction: E[u u'] = diag(p) - p p'."""
    p_BTC = logits_BTC.softmax(-1)
    drawn = uniform(p_BTC.shape[:-1], generator, p_BTC)[..., None]
    label_BT = (p_BTC.double().cumsum(-1) <= drawn).sum(-1).clamp(max=p_BTC.shape[-1] - 1)
    return p_BTC - F.one_hot(label_BT, p_BTC.shape[-1]).to(p_BTC)


def output_hessians(loss: Callable[[Any, Batch], Tensor], outputs: Any, batch: Batch) -> Tensor:
    """Return the Hessian of each example's loss in its outputs, (B, K, K), by autograd: K backward passes.

    Args:
        loss: of outputs and batch, (B,), each example's of its own outputs alone.
        outputs: what one forward pass gave.
        batch: as the loss reads it.
    """
    parts = differentiable_parts(outputs)
    changed = [part for part in parts if not part.requires_grad]
    try:
        for part in changed:
            part.requires_grad_()
        with torch.enable_grad():
            slope_BK = _in_parts(loss(outputs, batch), parts)
            rows = [_in_parts(slope_BK[:, k], parts).detach() for k in range(slope_BK.shape[1])]
    finally:
        for part in changed:
            part.requires_grad_(False)
    hessian_BKK = torch.stack(rows, 1)
    return (hessian_BKK + hessian_BKK.mT) / 2


def _in_parts(values_B: Tensor, parts: list[Tensor]) -> Tensor:
    """The derivative (B, K) of each value in its example's outputs."""
    size = len(parts[0])
    if not values_B.requires_grad:
        return torch.cat([torch.zeros_like(part).reshape(size, -1) for part in parts], 1)
    found = torch.autograd.grad(values_B.sum(), parts, create_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(size, -1) for part in found], 1)


def hessian_factors(hessian_BKK: Tensor, name: str) -> Tensor:
    """Return S (B, K, K) with S S' = H of symmetric matrices.

    Raises:
        InputError: an eigenvalue is negative beyond rounding; ``name`` says whose loss it is.
    """
    values_BK, vectors_BKK = torch.linalg.eigh(hessian_BKK)
    lowest, largest = float(values_BK.min()), float(values_BK.abs().max())
    if lowest < -ROUNDED.get(hessian_BKK.dtype, ROUNDED_SINGLE) * largest:
        row = int(values_BK.amin(1).argmin())
        raise InputError(
            f"{name}: the loss must be convex in the model's outputs for Gauss-Newton and EK-FAC; its Hessian has the "
            f"eigenvalue {lowest:.3g} (the largest is {largest:.3g}; row {row} of its batch). Use a method of the "
            "Hessian (influence-cg, arnoldi) or one without second derivatives (trak, tracin)."
        )
    factors: Tensor = vectors_BKK * values_BK.clamp(min=0).sqrt()[:, None, :]
    return factors
