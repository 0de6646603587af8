"""s(x) = (1/R) sum_r ||grad_x l(x + h v_r) - grad_x l(x)||^2, v_r in {-1, 1}^d at random: keep the lowest.

The loss curves little around examples that generalise; the difference is h times the Hessian in the input along v_r.

Shape legend: N examples, B a batch, d numbers an input, R directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.checks import check_number, check_seed, whole_number
from comove.coreset.base import ScoreSelector
from comove.coreset.input_gradients import BATCH, loss_gradients, trained_network, training_examples
from comove.errors import InputError
from comove.training import Resident, resolve_device
from comove.training.sources import Source

__all__ = ["SloCurv", "curvatures"]

Gradient = Callable[[Tensor, Tensor], Tensor]


def curvatures(
    gradient: Gradient,
    inputs: Callable[[Tensor], Tensor],
    labels_N: Tensor,
    *,
    h: float = 1e-3,
    directions: int = 10,
    seed: int = 0,
    batch: int = BATCH,
) -> npt.NDArray[np.float64]:
    """Return (N,) mean squared changes of the loss gradient between x and x + h v.

    R + 1 gradients an example. Direction r of example i depends on ``seed``, r and i alone, not on ``batch``.

    Args:
        gradient: maps inputs (B, ...) and labels (B,) to each example's loss gradient (B, ...).
        inputs: maps positions (B,) to inputs (B, ...).
        labels_N: (N,) int64, on the device of the inputs.
        h: how far to move, in the inputs' units.
        directions: R.
        seed: of the directions.
        batch: examples at a time.
    """
    generators = [np.random.default_rng([seed, 0xC7, r]) for r in range(directions)]
    found_N = np.zeros(len(labels_N))
    for start in range(0, len(labels_N), batch):
        places = torch.arange(start, min(start + batch, len(labels_N)))
        inputs_B, labels_B = inputs(places), labels_N[start : start + batch]
        clean_B = gradient(inputs_B, labels_B)
        total_B = torch.zeros(len(places), dtype=torch.float64, device=clean_B.device)
        for generator in generators:
            heads_B = torch.from_numpy(generator.random(inputs_B.shape, np.float32) < 0.5).to(inputs_B.device)
            moved_B = torch.where(heads_B, inputs_B + h, inputs_B - h)
            change_B = gradient(moved_B, labels_B).sub_(clean_B)
            total_B += change_B.flatten(1).double().square().sum(1)
        found_N[start : start + len(places)] = (total_B / directions).cpu().numpy()
    return found_N


@dataclass(frozen=True)
class SloCurv(ScoreSelector):
    """Samples with low loss curvature (Garg and Roy, CVPR 2023), class by class; the score is minus the curvature.

    At the run's last checkpoint, in evaluation mode, R + 1 forward and backward passes over the training examples. The
    original also trains with a curvature regulariser, which no recorded run does.

    Args:
        h: length of a step along each input number, in the network's input space (after normalisation); .001 is from
            the authors' later public code, the paper's own is not known.
        directions: R, 10 in the paper.
        seed: of the directions.
    """

    name: ClassVar[str] = "slocurv"
    summary: ClassVar[str] = "lowest curvature of the loss in the input, class by class"
    cost: ClassVar[str] = "(R + 1) forward and backward passes over N"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})
    balanced: ClassVar[bool] = True
    easy_first: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    h: float = 1e-3
    directions: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        check_number(self.h, f"{self.name}: h")
        whole_number(self.directions, f"{self.name}: directions", 1, error=InputError)

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        source, device = sources[0], resolve_device()
        network, examples = trained_network(source, device), training_examples(source, self.name)
        order = np.argsort(examples.ids)  # directions belong to ids, whatever the trace's order
        data = Resident(examples.subset(examples.ids[order]), device)

        def gradient(inputs_B: Tensor, labels_B: Tensor) -> Tensor:
            return loss_gradients(network, inputs_B, labels_B)

        found_N = np.empty(order.size)
        found_N[order] = curvatures(
            gradient, data.inputs, data.labels, h=self.h, directions=self.directions, seed=self.seed
        )
        return (-found_N).astype(np.float32)
