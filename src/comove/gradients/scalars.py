"""s(f(x), y): the scalars of a model's output that are differentiated.

Shape legend: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SCALARS", "Function", "Scalar", "cross_entropy", "margin"]

Function: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A function of logits (B, C) and labels (B,) that returns (B,)."""
Scalar: TypeAlias = Literal["loss", "margin"] | Function
"""``"loss"``, ``"margin"``, or a function of logits (B, C) and labels (B,) that returns (B,)."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)[label] (B,) of logits (B, C) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return z_y - logsumexp(other z) (B,), the logit of the correct probability (Park et al., ICML 2023, eq. 8)."""
    target = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    own = torch.where(target, logits, 0).sum(1)
    return own - torch.where(target, -torch.inf, logits).logsumexp(1)


SCALARS: dict[str, Function] = {"loss": cross_entropy, "margin": margin}
