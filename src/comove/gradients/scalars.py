"""s(f(x), y): the scalars of a model's output that are differentiated, as a task defines them.

Shape legend: B examples, C classes, K entries of an example's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.data.batches import Batch
from comove.errors import InputError
from comove.models.outputs import flat_outputs
from comove.tasks import Classification, Task, cross_entropy, margin, targets_of

__all__ = ["Function", "Objective", "Scalar", "Values", "cross_entropy", "flat_outputs", "margin", "stack_flat"]

Function: TypeAlias = Callable[[Any, Tensor], Tensor]
"""A function of outputs and labels (B,) that returns (B,)."""
Values: TypeAlias = Callable[[Any, Batch], Tensor]
"""A function of outputs and the batch that returns (B,)."""
Scalar: TypeAlias = Literal["loss", "measure", "margin"] | Function
"""``"loss"``, ``"measure"`` (what the task measures; ``"margin"`` is the same), or a function."""


@dataclass(frozen=True)
class Objective:
    """Which scalar of a task's outputs is differentiated.

    Raises:
        InputError: neither ``"loss"``, ``"measure"`` nor a function.
    """

    task: Task
    scalar: Scalar

    def __post_init__(self) -> None:
        if not callable(self.scalar) and self.scalar not in ("loss", "measure", "margin"):
            raise InputError(f"scalar must be 'loss', 'measure' or a function, got {self.scalar!r}.")

    @property
    def classifies(self) -> bool:
        """Whether outputs are logits (B, C) and labels must be below C."""
        return isinstance(self.task, Classification)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """One forward pass."""
        return self.task.outputs(model, batch)

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        """The scalar of each example, (B,)."""
        if callable(self.scalar):
            return self.scalar(outputs, targets_of(batch))
        return self.task.loss(outputs, batch) if self.scalar == "loss" else self.task.measure(outputs, batch)


def stack_flat(parts: Sequence[Tensor]) -> Tensor:
    """Join flat outputs (B_i, K_i) of several batches; where a model cuts padding off, K_i differ and zeros fill up."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])
