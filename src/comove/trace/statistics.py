"""What is recorded of one batch, as plain functions of logits and labels.

Shape legend: B examples, C classes. Symbols as in the literature: P softmax, e = P - onehot(y).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from comove.errors import InputError

__all__ = ["KD_EPSILON", "kd", "statistics"]

KD_EPSILON = 1e-8
"""Added to both probabilities inside the logarithm of :func:`kd`, as in the TDDS authors' code."""


def statistics(logits: torch.Tensor, labels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the per-example statistics of a batch, and its class probabilities.

    Args:
        logits: (B, C) of any float type; taken to float32 first.
        labels: (B,) integer class indices.

    Returns:
        A dict of (B,) float32 tensors: ``loss`` (cross-entropy, nats), ``target_probability``, ``margin_logit``
        (z_y - max of the others; Pleiss et al., 2020), ``margin_prob`` (the same of probabilities), ``el2n``
        (norm of P - onehot; Paul et al., 2021), ``correct`` (uint8); and P (B, C) float32.

    Raises:
        InputError: shapes that do not fit, fewer than two classes, labels that are no integers or out of range. On a
            GPU, where a look would stall the queue, an example with a label out of range gets a NaN loss instead.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.shape[1] < 2:
        raise InputError(
            f"logits must be (B, C) with C >= 2 and labels (B,), got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"labels must be integer class indices, got {labels.dtype}.")
    labels = labels.to(logits.device, torch.int64)
    outside = (labels < 0) | (labels >= logits.shape[1])
    if logits.device.type == "cpu" and bool(outside.any()):
        raise InputError(
            f"labels must be in 0 ... {logits.shape[1] - 1} (C = {logits.shape[1]}), "
            f"found {int(labels.min())} ... {int(labels.max())}."
        )
    labels = labels.masked_fill(outside, 0)
    logits_BC = logits.detach().to(torch.float32)
    probabilities_BC = logits_BC.softmax(1)
    target = labels[:, None]
    is_target = torch.zeros_like(logits_BC, dtype=torch.bool).scatter_(1, target, True)
    target_probability = probabilities_BC.gather(1, target)[:, 0]
    others_logit = logits_BC.masked_fill(is_target, -torch.inf).amax(1)
    others_prob = probabilities_BC.masked_fill(is_target, -torch.inf).amax(1)
    margin_logit = logits_BC.gather(1, target)[:, 0] - others_logit
    return {
        "loss": F.cross_entropy(logits_BC, labels, reduction="none").masked_fill(outside, torch.nan),
        "target_probability": target_probability,
        "margin_logit": margin_logit,
        "margin_prob": target_probability - others_prob,
        "el2n": (probabilities_BC - is_target.to(torch.float32)).norm(dim=1),
        "correct": (logits_BC.argmax(1) == labels).to(torch.uint8),
    }, probabilities_BC


def kd(probabilities_BC: torch.Tensor, previous_BC: torch.Tensor) -> torch.Tensor:
    """Return (B,) sum over classes of abs(P_t * ln(P_t / P_{t-1})), the scalar TDDS needs (Zhang et al., CVPR 2024).

    The absolute value stands inside the sum: this is not the absolute Kullback-Leibler divergence.

    >>> kd(torch.tensor([[0.6, 0.4]]), torch.tensor([[0.5, 0.5]])).round(decimals=3)
    tensor([0.1990])
    """
    ratio = (probabilities_BC + KD_EPSILON) / (previous_BC + KD_EPSILON)
    return (probabilities_BC * ratio.log()).abs().sum(1)
