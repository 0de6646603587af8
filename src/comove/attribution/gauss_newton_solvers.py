r"""(G + lambda I) d = b, G = 1/N A' A the Gauss-Newton matrix of N R rows: four ways to one solution.

*Cholesky*: of G + lambda I (P x P). *Woodbury*: of A A' / N + lambda I (N R x N R), since

    (A' A / N + lambda I)^-1 = (I - A' (A A' / N + lambda I)^-1 A / N) / lambda.

*Conjugate gradients*: products with G, never the matrix. *Sketch*: Cholesky of the matrix of randomly projected rows.

Shape legend: N train, Q queries, R rows an example, M = N R rows of all, P parameter entries, K projected dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import psutil
import torch
from torch import Tensor

from comove.attribution.influence_cg import conjugate_gradients
from comove.errors import InputError
from comove.gradients.ekfac import EKFACFactors
from comove.gradients.gauss_newton import MEMORY, JacobianRows
from comove.gradients.hessian import unflatten
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import Batches, PerExampleGradients
from comove.gradients.projections import Projector

__all__ = [
    "SOLVERS",
    "Cholesky",
    "ConjugateGradients",
    "Damping",
    "Plan",
    "Problem",
    "Sketch",
    "Solver",
    "SolverName",
    "Woodbury",
    "fewest_operations",
    "free_memory",
    "plan",
    "rate_of",
    "shifted_cholesky",
]

SolverName: TypeAlias = Literal["auto", "cholesky", "woodbury", "sketch", "cg", "ekfac-cg"]
SOLVERS: tuple[str, ...] = get_args(SolverName)
Damping: TypeAlias = Callable[[float], float]
"""Gives lambda, from the trace of G."""

DOUBLE_ROWS = 10_000
"""Woodbury matrices of up to so many rows are factorised in float64, larger ones in the parameters' precision."""
MOST_OPERATIONS = 3e14
"""An exact solve of more floating-point operations is not chosen unasked: about an hour on two cores."""


# --- which solver, and what it takes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What the solve of one model takes.

    Attributes:
        solver: its name.
        bytes: of memory, for the matrix and its factorisation.
        operations: floating-point operations of the linear algebra.
        passes: over the rows of all training examples, each R backward passes an example; with ``cg`` for each step.
    """

    solver: str
    bytes: int
    operations: float
    passes: float

    @property
    def size(self) -> str:
        """The memory in words."""
        return f"{self.bytes / 2**30:.2g} GiB" if self.bytes >= 1 << 27 else f"{self.bytes / 2**20:.2g} MiB"

    def seconds(self, rate: float, each: float) -> float:
        """How long it takes at ``rate`` operations a second and ``each`` seconds a pass (with ``cg``, a step of it)."""
        return self.operations / rate + self.passes * each


def plan(
    examples: int,
    rows: int,
    parameters: int,
    *,
    solver: str = "auto",
    dimension: int = 4096,
    itemsize: int = 4,
    memory: int | None = None,
) -> Plan:
    """Return the solver that sizes ask for, or what the one that is asked for takes.

    ``"auto"`` takes Cholesky or Woodbury, whichever needs fewer operations of those that fit into memory; the sketch
    where neither fits, or where they take more than 3e14 operations.

    Args:
        examples: N.
        rows: R.
        parameters: P.
        solver: ``"auto"``, ``"cholesky"``, ``"woodbury"``, ``"sketch"``, ``"cg"`` or ``"ekfac-cg"``.
        dimension: K of the sketch.
        itemsize: bytes of a parameter's entry.
        memory: bytes that may be used; by default what is free on this machine.

    Raises:
        InputError: memory does not hold what the solver needs; the message names one that fits.

    Example:
        >>> plan(2500, 9, 36168, memory=8 << 30).solver
        'woodbury'
    """
    memory = psutil.virtual_memory().available if memory is None else memory
    found = {each.solver: each for each in _plans(examples * rows, parameters, dimension, itemsize)}
    exact = [
        each
        for each in (found["cholesky"], found["woodbury"])
        if each.bytes <= memory and each.operations <= MOST_OPERATIONS
    ]
    best = min(exact, key=lambda each: each.operations, default=found["sketch"])
    chosen = best if solver == "auto" else found[solver]
    if chosen.bytes > memory:
        fitting = best if best.bytes <= memory else found["cg"]
        remedy = f"solver={fitting.solver!r} takes {fitting.size}"
        raise InputError(
            f"gauss-newton: solver={chosen.solver!r} needs {chosen.size} for {examples:,} examples of "
            f"{rows} rows and {parameters:,} parameters, and {memory / 2**30:.3g} GiB may be used: {remedy}; or choose "
            "fewer parameters, as parameters='head.*'."
        )
    return chosen


def fewest_operations(examples: int, rows: int, parameters: int) -> float:
    """Return the floating-point operations of the cheaper exact solver."""
    return min(each.operations for each in _plans(examples * rows, parameters, 1, 4)[:2])


def _plans(rows: int, parameters: int, dimension: int, itemsize: int) -> list[Plan]:
    """What each solver takes, of so many rows; a symmetric product is half a product, float64 counts twice."""
    kept = min(dimension, parameters)
    copies = itemsize + 8 if itemsize < 8 else 8  # the sum, and its factor in float64
    held = min(MEMORY, rows * parameters * itemsize)
    blocks = -(-rows * parameters * itemsize // MEMORY)
    double = copies if rows <= DOUBLE_ROWS else itemsize
    return [
        Plan("cholesky", copies * parameters**2, rows * parameters**2 + 2 * parameters**3 / 3, 1),
        Plan("woodbury", double * rows**2 + held, rows**2 * parameters + rows**3 / 3, (blocks + 1) / 2 + 2),
        Plan("sketch", 16 * kept**2, 2 * rows * kept**2 + 2 * kept**3 / 3, 1),
        Plan("cg", 0, 0, 1),
        Plan("ekfac-cg", 0, 0, 1),
    ]


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def rate_of(like: Tensor) -> float:
    """Return the floating-point operations a second of a matrix product, measured."""
    matrix = torch.ones(768, 768, dtype=like.dtype, device=like.device)
    (matrix @ matrix).sum().item()
    start = time.perf_counter()
    (matrix @ matrix).sum().item()
    return 2 * len(matrix) ** 3 / max(1e-9, time.perf_counter() - start)


# --- the solvers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One model: the rows of its Gauss-Newton matrix, and the gradients on either side of the inverse.

    Attributes:
        rows: of the matrix.
        losses: gradients of the loss, of training examples.
        measures: gradients of the measured output, of queries.
        train: the training examples.
        views: what the loss gradients are averaged over: the training examples, or augmentations of them.
    """

    rows: JacobianRows
    losses: PerExampleGradients
    measures: PerExampleGradients
    train: Batches
    views: Sequence[Batches]

    @property
    def weight(self) -> Tensor:
        """One of the parameters, for its precision and place."""
        return next(iter(self.losses.parameters.values())).detach()

    def targets(self, asked: Batches) -> Tensor:
        """Gradients of the measured output, (Q, P)."""
        return torch.cat([flat_rows(part) for part in self.measures.collect(asked).values()], 1)

    def scores(self, directions_QP: Tensor) -> Tensor:
        """Return -<grad loss_i, d_q>, (N, Q)."""
        directions = unflatten(directions_QP, self.losses.parameters)
        terms = (self.losses.inner_products(view, directions) for view in self.views)
        total_NQ = next(terms)
        for term in terms:
            total_NQ += term
        return total_NQ.div_(-len(self.views))


class Solver(Protocol):
    """What solves for queries of one model."""

    damping: float

    def scores(self, asked: Batches) -> Tensor:
        """Return the scores (N, Q)."""


def shifted_cholesky(matrix: Tensor, damping: float) -> Tensor:
    """Return L with L L' = matrix + lambda I; the matrix is overwritten.

    Raises:
        InputError: the sum is not positive definite in its precision: lambda is too small.
    """
    matrix.diagonal().add_(damping)
    failed = torch.empty(0, dtype=torch.int32, device=matrix.device)
    _, failed = torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
    if int(failed):
        raise InputError(f"gauss-newton: damping={damping:.3g} is too small for {matrix.dtype}: use ten times as much.")
    return matrix


class Cholesky:
    """By the Cholesky factor of G + lambda I, (P, P) in float64."""

    def __init__(self, problem: Problem, damping: Damping) -> None:
        self._problem = problem
        matrix_PP = problem.rows.matrix(problem.train).double()
        self.damping = damping(float(matrix_PP.diagonal().sum()))
        self._factor_PP = shifted_cholesky(matrix_PP, self.damping)

    def scores(self, asked: Batches) -> Tensor:
        """Return the scores (N, Q)."""
        targets_QP = self._problem.targets(asked)
        solved_PQ = torch.cholesky_solve(targets_QP.double().T, self._factor_PP)
        return self._problem.scores(solved_PQ.T.to(targets_QP))


class Woodbury:
    """By the Cholesky factor of A A' / N + lambda I, (M, M)."""

    def __init__(self, problem: Problem, damping: Damping) -> None:
        self._problem = problem
        gram_MM = problem.rows.gram(problem.train)
        if len(gram_MM) <= DOUBLE_ROWS:
            gram_MM = gram_MM.double()
        elif gram_MM.element_size() < 4:
            gram_MM = gram_MM.float()
        self.damping = damping(float(gram_MM.diagonal().sum(dtype=torch.float64)))
        self._factor_MM = shifted_cholesky(gram_MM, self.damping)

    def scores(self, asked: Batches) -> Tensor:
        """Return the scores (N, Q)."""
        rows, train = self._problem.rows, self._problem.train
        targets_QP = self._problem.targets(asked)
        images_MQ = torch.cat([rows_MP @ targets_QP.T for _, rows_MP in rows.chunks(train)])
        solved_MQ = torch.cholesky_solve(images_MQ.to(self._factor_MM), self._factor_MM).to(targets_QP) / len(train)
        for part, rows_MP in rows.chunks(train):
            targets_QP -= solved_MQ[part.start * rows.count : part.stop * rows.count].T @ rows_MP
        return self._problem.scores(targets_QP / self.damping)


class ConjugateGradients:
    """By products with G, each a pass over the rows of all training examples; nothing large is held.

    Args:
        problem: of one model.
        damping: lambda, from the trace.
        max_steps: of each query.
        tolerance: relative residual at which a query is solved.
        factors: whose inverse, with the same damping, preconditions (Wang et al., 2025, ASTRA, arXiv 2507.14740).
    """

    def __init__(
        self,
        problem: Problem,
        damping: Damping,
        *,
        max_steps: int,
        tolerance: float,
        factors: EKFACFactors | None = None,
    ) -> None:
        self._problem, self._max_steps, self._tolerance, self._factors = problem, max_steps, tolerance, factors
        trace = sum(float(rows.square().sum(dtype=torch.float64)) for _, rows in problem.rows.chunks(problem.train))
        self.damping = damping(trace / len(problem.train))
        self.converged = torch.ones(0, dtype=torch.bool)
        self.steps = 0
        """Of each query solved for last, and the most that one took."""

    def scores(self, asked: Batches) -> Tensor:
        """Return the scores (N, Q)."""
        solution = conjugate_gradients(
            self._product,
            self._problem.targets(asked),
            max_steps=self._max_steps,
            tolerance=self._tolerance,
            precondition=self._precondition,
        )
        self.converged, self.steps = solution.converged, int(solution.steps.max())
        return self._problem.scores(solution.vectors)

    def _precondition(self, vectors_QP: Tensor) -> Tensor:
        if self._factors is None:
            return vectors_QP
        solved = self._factors.solve(unflatten(vectors_QP, self._problem.losses.parameters), self.damping)
        return torch.cat([flat_rows(part) for part in solved.values()], 1)

    def _product(self, vectors_QP: Tensor) -> Tensor:
        """(G + lambda I) applied to each row."""
        total_QP = self.damping * len(self._problem.train) * vectors_QP
        for _, rows_MP in self._problem.rows.chunks(self._problem.train):
            total_QP += (vectors_QP @ rows_MP.T) @ rows_MP
        return total_QP / len(self._problem.train)


class Sketch:
    """By the Cholesky factor of G + lambda I projected to K dimensions, in float64."""

    def __init__(self, problem: Problem, damping: Damping, projector: Projector) -> None:
        self._problem, self._projector = problem, projector
        matrix_KK = problem.weight.new_zeros(projector.proj_dim, projector.proj_dim, dtype=torch.float64)
        for _, rows in problem.rows.stream(problem.train):
            for row in rows:
                features_BK = projector.project(row).to(matrix_KK)
                matrix_KK.addmm_(features_BK.T, features_BK, alpha=1 / len(problem.train))
        self.damping = damping(float(matrix_KK.diagonal().sum()))
        self._factor_KK = shifted_cholesky(matrix_KK, self.damping)

    def scores(self, asked: Batches) -> Tensor:
        """Return the scores (N, Q)."""
        queries_KQ = torch.cat(list(self._features(self._problem.measures, asked))).T
        solved_KQ = torch.cholesky_solve(queries_KQ, self._factor_KK).div_(-len(self._problem.views))
        total_NQ = solved_KQ.new_zeros(len(self._problem.train), len(queries_KQ.T))
        for view in self._problem.views:
            total_NQ += torch.cat([part @ solved_KQ for part in self._features(self._problem.losses, view)])
        return total_NQ

    def _features(self, gradients: PerExampleGradients, data: Batches) -> Iterator[Tensor]:
        """Yield the projected gradients (B, K) chunk by chunk, in float64."""
        for _, chunk in gradients.stream(data):
            yield self._projector.project(chunk).to(self._factor_KK)
