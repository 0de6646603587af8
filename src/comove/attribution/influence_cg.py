r"""tau(m, q) = grad l(z_m)' (H + damping I)^-1 grad l(z_q), H the Hessian of the mean loss.   (Koh, Liang, ICML 2017)

Influence functions without a low-rank approximation: each query's linear system is solved by conjugate gradients, in
float64. The yardstick on small models for methods that approximate it; on large ones its cost, up to ``max_steps``
Hessian-vector products per query, is prohibitive.

Shape legend: N train, Q queries, P parameter entries, B systems solved side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from comove.attribution.arnoldi import hessian_resident
from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.replay import query_resident, run_of, training_resident
from comove.checks import check_number
from comove.discovery import check_seed
from comove.errors import first_line
from comove.gradients.hessian import Hessian, unflatten
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import Batches, Part, PerExampleGradients
from comove.tasks import Task
from comove.training import Resident, resolve_device
from comove.training.sources import Source

__all__ = ["InfluenceCG", "Solution", "conjugate_gradients"]

MEMORY = 1 << 30
"""Bytes that the systems solved side by side may take."""
VECTORS = 8
"""Vectors (P,) that one system needs: right-hand side, solution, residual, direction, product, and spare copies."""


@dataclass(frozen=True)
class Solution:
    """Solutions (B, P) of B systems, and for each (B,) the steps taken, whether it converged, or met x' A x <= 0."""

    vectors: Tensor
    steps: Tensor
    converged: Tensor
    negative_curvature: Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    max_steps: int = 100,
    tolerance: float = 1e-4,
    precondition: Callable[[Tensor], Tensor] = lambda residual: residual,
) -> Solution:
    """Solve A x = b for several b at once, A symmetric; each system goes its own way and leaves when it is done.

    Args:
        product: (B, P) -> A applied to each row.
        targets: b (B, P).
        max_steps: products per system at most.
        tolerance: a system has converged when norm(A x - b) <= tolerance * norm(b).
        precondition: (B, P) -> an approximation of A^-1, positive definite, applied to each row.

    Returns:
        The solutions. A system that meets a direction in which A is not positive stops where it was before.
    """
    solution, residual = torch.zeros_like(targets), targets.clone()
    direction = precondition(targets).clone()
    squares = residual.square().sum(1)
    goal = tolerance**2 * squares
    slopes = (residual * direction).sum(1)
    steps = torch.zeros(len(targets), dtype=torch.int64, device=targets.device)
    negative = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    for _ in range(max_steps):
        active = torch.nonzero((squares > goal) & ~negative)[:, 0]
        if not len(active):
            break
        along = direction[active]
        image = product(along)
        steps[active] += 1
        curvature = (along * image).sum(1)
        bent = curvature <= 0
        negative[active] = bent
        here, along, image = active[~bent], along[~bent], image[~bent]
        rate = (slopes[here] / curvature[~bent])[:, None]
        solution[here] += rate * along
        residual[here] -= rate * image
        squares[here] = residual[here].square().sum(1)
        nearer = precondition(residual[here])
        new = (residual[here] * nearer).sum(1)
        direction[here] = nearer + (new / slopes[here])[:, None] * along
        slopes[here] = new
    return Solution(solution, steps, squares <= goal, negative)


def _in_double(model: nn.Module, task: Task, data: Resident) -> tuple[nn.Module, str]:
    """The model in float64 and that it is; or as it was, where its forward pass casts by itself, and why."""
    try:
        with torch.no_grad():
            task.outputs(model.double(), Part(data, 0, 1, torch.float64).batch(slice(0, 1)))
    except RuntimeError as error:
        return model.float(), f"float32, since the forward pass does not run in float64: {first_line(error)}"
    return model, "float64"


@dataclass(frozen=True)
class InfluenceCG(Attributor):
    """Influence functions by conjugate gradients (Koh and Liang, ICML 2017): the yardstick on small models.

    At the last checkpoint of each run, batch norm in evaluation mode, everything in float64 (in the model's own
    precision where it casts by itself, as ``info["precision"]`` says). A network's Hessian has
    negative eigenvalues; with ``damping`` below their size a query can meet one, and its solve stops there.
    ``info`` lists these queries (``negative_curvature``) and those out of steps (``unconverged``), by id, and the
    largest number of steps taken.

    Args:
        damping: added to the Hessian's diagonal. At 0 a singular Hessian gives the pseudo-inverse where it can.
        max_steps: Hessian-vector products per query at most.
        tolerance: relative residual at which a query is solved.
        hessian_examples: ``"all"`` training examples, or a number of them drawn by the seed.
        seed: of that draw.
        parameters: names or glob patterns of the parameters to differentiate by; by default all trainable ones.

    Reference:
        Koh, Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017.
    """

    name: ClassVar[str] = "influence-cg"
    summary: ClassVar[str] = "influence functions, each query solved by conjugate gradients; for small models"
    cost: ClassVar[str] = "a pass over the Hessian's examples per step and query; for small models"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    damping: float = 0.01
    max_steps: int = 100
    tolerance: float = 1e-4
    hessian_examples: Literal["all"] | int = "all"
    seed: int = 0
    parameters: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        self._check_parameters()
        for option in ("damping", "tolerance"):
            check_number(getattr(self, option), f"{self.name}: {option}", zero=True)
        self._check_whole("max_steps")
        if self.hessian_examples != "all":
            self._check_whole("hessian_examples", unit="'all' or a whole number")

    def _fit(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return sources

    def _scores(self, state: tuple[Source, ...], queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        terms = []
        troubled: dict[str, set[int]] = {"unconverged": set(), "negative_curvature": set()}
        steps, notes = 0, []
        for source in state:
            term_NQ, solved, note = self._one_run(source, queries)
            terms.append(term_NQ)
            notes.append(note)
            bent = torch.cat([part.negative_curvature for part in solved]).cpu().numpy()
            done = torch.cat([part.converged for part in solved]).cpu().numpy()
            troubled["negative_curvature"].update(queries.ids[bent].tolist())
            troubled["unconverged"].update(queries.ids[~done & ~bent].tolist())
            steps = max(steps, *(int(part.steps.max()) for part in solved))
        values: npt.NDArray[np.float32] = torch.stack(terms).mean(0).to("cpu", torch.float32).numpy()
        found = {name: sorted(ids) for name, ids in troubled.items()}
        return values, {**found, "steps": steps, **said_once(notes)}

    def _one_run(self, source: Source, queries: Queries) -> tuple[Tensor, list[Solution], dict[str, str]]:
        device, run = resolve_device(), run_of(source)
        resident = training_resident(source, device)
        model, precision = _in_double(run.load_model(device=device), run.task, resident)
        dtype = next(model.parameters()).dtype
        train = Part(resident, 0, len(resident), dtype)
        gradients = PerExampleGradients(model, task=run.task, parameters=self.parameters, check_on=train)
        number = len(train) if self.hessian_examples == "all" else int(self.hessian_examples)
        held = hessian_resident(source, number, self.seed, device)
        hessian = Hessian(gradients, Part(held, 0, len(held), dtype))
        asked = query_resident(source, queries, device)
        block = max(1, MEMORY // (VECTORS * 8 * gradients.size))
        columns, solved = [], []
        for start in range(0, len(asked), block):
            solution = self._solve(hessian, gradients, Part(asked, start, min(start + block, len(asked)), dtype))
            directions = unflatten(solution.vectors, gradients.parameters)
            columns.append(gradients.inner_products(train, directions).cpu())
            solved.append(solution)
        note = {"gradients": str(gradients.paths), "products": hessian.path, "precision": precision}
        return torch.cat(columns, 1), solved, note

    def _solve(self, hessian: Hessian, gradients: PerExampleGradients, asked: Batches) -> Solution:
        targets_BP = torch.cat([flat_rows(part) for part in gradients.collect(asked).values()], 1)
        return conjugate_gradients(
            lambda vectors: hessian(vectors).add_(vectors, alpha=self.damping),
            targets_BP,
            max_steps=self.max_steps,
            tolerance=self.tolerance,
        )
