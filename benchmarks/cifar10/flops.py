"""Counting the FLOPs of matrix products and convolutions as they are done, those with groups rightly.

torch's own formula for the backward pass of a convolution takes no account of groups, and per-example gradients are
convolutions with a group an example: it says thirty times too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["counted_flops"]


def _backward(grad_out: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """Each of the two gradients takes as many as the forward pass: 2 a multiply-add."""
    transposed, mask = rest[4], rest[7]
    positions = math.prod(x) if transposed else math.prod(grad_out)
    return 2 * positions * math.prod(weight[1:]) * (bool(mask[0]) + bool(mask[1]))


def counted_flops(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do the work, and return its FLOPs and what it returns."""
    from torch.utils.flop_counter import FlopCounterMode

    own = {torch.ops.aten.convolution_backward: _backward}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        found = work()
    return int(counter.get_total_flops()), found
