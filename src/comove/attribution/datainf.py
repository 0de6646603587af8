r"""score(m, q) = -sum_l grad_l f_q' [ 1/N sum_i (g_il g_il' + lambda_l I)^-1 ] g_ml.   (Kwon et al., ICLR 2024, eq. 5)

DataInf swaps the order of averaging and inverting, which is wrong but closed: each inverse is that of a matrix of rank
one plus a multiple of the identity (Sherman and Morrison), so nothing is solved. The authors bound the error by the
square of a layer's size and use it on small adapters (LoRA).

Shape legend: N train, Q queries; l runs over the parameters, g_il is the gradient of the loss of i by the l-th.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.replay import query_resident, run_of, training_resident
from comove.attribution.tracin import run_gradients
from comove.checks import check_number
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import Batches, Part, PerExampleGradients
from comove.training import resolve_device
from comove.training.sources import Source

__all__ = ["DataInf", "damping_of", "datainf_solve"]

ROUNDING = 8
"""Gradients of a parameter that are smaller than so many roundings of the largest parameter's are taken as 0."""
FLOAT32 = torch.finfo(torch.float32).eps
BLOCK_BYTES = 1 << 30
"""Queries are taken in blocks whose gradients fit in this."""


def damping_of(gradients: PerExampleGradients, train: Batches, share: float) -> dict[str, float]:
    """Return lambda of each parameter: ``share`` of the mean squared entry of its gradients over the examples.

    0 where these vanish beside those of other parameters but for rounding, as of a bias before instance norm: divided
    by a share of itself, rounding would count like a gradient.
    """
    sums = dict.fromkeys(gradients.parameters, 0.0)
    for _, chunk in gradients.stream(train):
        for name, gradient in chunk:
            sums[name] += float(gradient.double().square().sum())
    sizes = {name: parameter.numel() for name, parameter in gradients.parameters.items()}
    means = {name: total / (len(train) * sizes[name]) for name, total in sums.items()}
    rounding = [ROUNDING * min(torch.finfo(one.dtype).eps, FLOAT32) for one in gradients.parameters.values()]
    least = max(means.values()) * max(rounding) ** 2
    return {name: share * mean if mean > least else 0.0 for name, mean in means.items()}


def datainf_solve(
    gradients: PerExampleGradients, train: Batches, directions: Mapping[str, Tensor], damping: Mapping[str, float]
) -> dict[str, Tensor]:
    r"""Return 1/N sum_i (g_i g_i' + lambda I)^-1 v for each parameter by itself.

    (g g' + lambda I)^-1 v = (v - g (g'v) / (lambda + norm(g)^2)) / lambda.

    Args:
        gradients: of the training loss.
        train: N examples.
        directions: name -> v (Q, parameter shape).
        damping: name -> lambda; a parameter with lambda 0, whose gradients all vanish, gives 0.

    Returns:
        name -> (Q, parameter shape).
    """
    corrections = {name: torch.zeros_like(flat_rows(matrix)) for name, matrix in directions.items()}
    for _, chunk in gradients.stream(train):
        for name, gradient in chunk:
            flat_BP = flat_rows(gradient)
            norms_B = flat_BP.square().sum(1) + damping[name]
            along_BQ = flat_BP @ flat_rows(directions[name]).T
            weights_BQ = torch.where(norms_B > 0, 1 / norms_B, 0)[:, None] * along_BQ
            corrections[name].addmm_(weights_BQ.T, flat_BP, alpha=1 / len(train))
    return {
        name: (matrix - corrections[name].reshape(matrix.shape)) / damping[name]
        if damping[name]
        else torch.zeros_like(matrix)
        for name, matrix in directions.items()
    }


@dataclass(frozen=True)
class DataInf(Attributor):
    """Influence with averaged inverses, in closed form (Kwon, Wu, Wu, Zou, "DataInf", ICLR 2024).

    At the last checkpoint of each run; three passes over the training gradients for a block of queries, one for the
    damping of a run. Cheap, and meant for few parameters a layer: the error grows with a layer's size.

    Args:
        damping: lambda of a parameter as a share of the mean squared entry of its gradients; 0.1 is the authors'.
        parameters: names or glob patterns of the parameters to differentiate by; by default all trainable ones.

    Reference:
        Kwon, Wu, Wu, Zou, "DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and Diffusion Models",
        ICLR 2024.
    """

    name: ClassVar[str] = "datainf"
    summary: ClassVar[str] = "influence with averaged inverses of rank-one matrices, in closed form"
    cost: ClassVar[str] = "about 4 epochs of training"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    damping: float = 0.1
    parameters: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._check_parameters()
        check_number(self.damping, f"{self.name}: damping")

    def _fit(self, sources: tuple[Source, ...]) -> tuple[tuple[Source, dict[str, float]], ...]:
        return tuple((source, self._damping(source)) for source in sources)

    def _damping(self, source: Source) -> dict[str, float]:
        train = training_resident(source, resolve_device())
        return damping_of(self._gradients(source, train), train, self.damping)

    def _gradients(self, source: Source, train: Any) -> PerExampleGradients:
        run = run_of(source)
        return run_gradients(run, run.checkpoints[-1], train.device, parameters=self.parameters, check_on=train)

    def _scores(
        self, state: tuple[tuple[Source, dict[str, float]], ...], queries: Queries
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        terms, notes = [], []
        for source, damping in state:
            train = training_resident(source, resolve_device())
            asked = query_resident(source, queries, train.device)
            losses = self._gradients(source, train)
            measures = PerExampleGradients(
                losses.model, "measure", task=run_of(source).task, parameters=self.parameters, check_on=train
            )
            block = max(1, BLOCK_BYTES // (8 * losses.size))
            columns = []
            for start in range(0, len(asked), block):
                wanted = measures.collect(Part(asked, start, min(start + block, len(asked))))
                solved = datainf_solve(losses, train, wanted, damping)
                columns.append(-losses.inner_products(train, solved).cpu())
            terms.append(torch.cat(columns, 1))
            notes.append({"gradients": str(losses.paths)})
        values: npt.NDArray[np.float32] = torch.stack(terms).mean(0).to(torch.float32).numpy()
        return values, said_once(notes)
