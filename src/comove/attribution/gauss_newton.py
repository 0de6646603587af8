r"""score(i, q) = - grad m_q' (G + lambda I)^-1 grad loss_i, G = 1/N sum_i J_i' H_i J_i, the Gauss-Newton matrix.

A weight on example i that grows by d moves the weights of a minimum by -(G + lambda I)^-1 grad loss_i d, and the
measured output of q by the score times d. G is the Hessian of the mean loss with the model linearised (J_i: Jacobian
of the outputs, H_i: Hessian of the loss in them), so it has no negative eigenvalues (Schraudolph, 2002; Martens, 2020).

*The damping.* By first order, training example i changes its own loss by

    g' (G + lambda I)^-1 g / N  <=  norm(g)^2 / (N lambda),    g = grad loss_i.

The answer to "what if i were gone" is first order only while that is small: the rule is

    lambda = max(3 E norm(g)^2, 0.3 tr G) / N,

with which an average example changes its own loss by at most a third (of a nat, for log likelihoods). The second term
holds where the loss is fitted to nothing, or averages many outputs, whose gradients cancel: 1/N tr G is the curvature
that one average example adds, and a row of that size then has a leverage of at most 1 / 1.3.

Shape legend: N train, Q queries, R rows an example, P parameter entries.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.gauss_newton_solvers import (
    SOLVERS,
    Cholesky,
    ConjugateGradients,
    Plan,
    Problem,
    Sketch,
    Solver,
    SolverName,
    Woodbury,
    fewest_operations,
    free_memory,
    plan,
    rate_of,
    shifted_cholesky,
)
from comove.attribution.replay import query_resident, run_of, training_resident, weights_digest
from comove.checks import check_number
from comove.data import Ids
from comove.data.batches import Batch
from comove.discovery import check_choice, check_seed
from comove.errors import CorruptFileError, InputError
from comove.gradients.ekfac import ekfac_factors
from comove.gradients.gauss_newton import JacobianRows
from comove.gradients.per_example import Batches, Part, PerExampleGradients
from comove.gradients.projections import Sparse
from comove.models import put_channels_last
from comove.store import digest, new_folder, read_checked, set_aside, versions, write_arrays
from comove.training import Checkpoint, Resident, resolve_device
from comove.training.augment import draw_flip_crop, flip_crop
from comove.training.randomness import derived_seed, generator_for
from comove.training.sources import Source

__all__ = ["GaussNewton", "default_damping", "gauss_newton_scores"]

QUERY_BYTES = 1 << 30
"""Queries are taken in blocks whose gradients, solutions and working copies fit in this."""
AUGMENTATIONS = 4
"""Draws where a recipe augments: on CIFAR-10 one run has LDS .322, .357, .378 with 1, 2, 4, and .334 with none."""
OWN_CHANGE, LEAST_CURVATURE = 3.0, 0.3
"""Factors of the default damping, from digits and CIFAR-10; how they were chosen: decision 60."""
EXACT_OPERATIONS = 3e12
"""Beyond so many floating-point operations the leading rows of each example are taken, unless all are asked for."""
LEADING_SHARE = 0.97
"""Share of the curvature in the outputs that they hold: .466 on digits at one run, as all rows; .92 of it: .456."""
HELD_BYTES = 4 << 30
"""The factors of all models are kept between calls where they fit in this."""
FORMAT = 1
"""Of the scores in a cache."""
Block: TypeAlias = tuple[npt.NDArray[np.float32], dict[str, Any]]
"""Scores (N, Q) of some queries, and what to say of them."""
SAID_SECONDS = 60.0
"""A model that takes longer is announced with its estimate before it begins."""


# --- the mathematics --------------------------------------------------------------------------------------------------


def default_damping(trace: float, squared_norm: float, examples: int) -> float:
    """Return lambda = max(3 E norm(grad loss)^2, 0.3 tr G) / N; 1 where both vanish.

    Args:
        trace: of the Gauss-Newton matrix of the mean loss.
        squared_norm: mean over the training examples of the squared norm of their loss's gradient.
        examples: N.
    """
    return max(OWN_CHANGE * squared_norm, LEAST_CURVATURE * trace) / examples or 1.0


def gauss_newton_scores(rows_NRP: Tensor, train_NP: Tensor, query_QP: Tensor, damping: float | None = None) -> Tensor:
    """Return -grad m_q' (1/N sum_i A_i' A_i + lambda I)^-1 grad loss_i, (N, Q) float64, of arrays from anywhere.

    Args:
        rows_NRP: A_i = S_i' J_i of each training example, S_i S_i' the Hessian of its loss in the outputs.
        train_NP: gradients of the training examples' losses.
        query_QP: gradients of the queries' measured outputs.
        damping: lambda; ``None``: by :func:`default_damping`.

    Example:
        >>> rows, losses = torch.ones(2, 1, 1), torch.tensor([[1.0], [-1.0]])
        >>> gauss_newton_scores(rows, losses, torch.tensor([[3.0]]), damping=0.5).round(decimals=3)
        tensor([[-2.],
                [ 2.]], dtype=torch.float64)
    """
    flat_MP = rows_NRP.double().flatten(0, 1)
    matrix_PP = flat_MP.T @ flat_MP / len(rows_NRP)
    squared_norm = float(train_NP.double().square().sum(1).mean())
    usual = default_damping(float(matrix_PP.trace()), squared_norm, len(rows_NRP))
    shift = usual if damping is None else damping
    factor_PP = shifted_cholesky(matrix_PP, shift)
    return -(train_NP.double() @ torch.cholesky_solve(query_QP.double().T, factor_PP))


# --- the method -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaussNewton(Attributor):
    """Damped Gauss-Newton influence, each model's linear systems solved exactly or in a sketch.

    At checkpoints of each run, batch norm in evaluation mode; the scores of all checkpoints of all runs are averaged,
    which matters more than any option: fit on several runs. ``info`` says what was solved and how: ``damping`` (lambda
    of each model), ``plan``, ``curvature``, ``gradients``.

    Args:
        damping: lambda; ``None``: by :func:`default_damping`, of each model.
        solver: ``"cholesky"`` (P x P), ``"woodbury"`` (N R x N R), both exact; ``"cg"``, conjugate gradients, exact up
            to ``tolerance``, and ``"ekfac-cg"``, preconditioned by EK-FAC, for a small lambda; ``"sketch"``, Cholesky
            in ``dimension`` random dimensions; ``"auto"``: the faster exact one where memory holds it, else the sketch.
        dimension: of the sketch.
        share: of the curvature in the outputs that the rows of an example must hold; the fewest leading ones are taken
            (two of nine hold .97 on digits, at the same LDS). 1: all, C - 1 for C classes. ``None``: 1 where an exact
            solve takes at most 3e12 operations, else .97.
        draws: pseudo-gradients an example in the place of rows of the exact Hessian in the outputs; ``None``: for
            outputs of more than 256 rows 8 of them, which is far noisier, else none.
        checkpoints: ``"all"``, or how many of the last ones of each run.
        augmentations: draws of the recipe's augmentation over which each training example's gradient is averaged; 0:
            of the example as it is; ``None``: 4 where the recipe augments, else 0. The matrix is that of the examples
            as they are.
        max_steps: of conjugate gradients, for each query.
        tolerance: relative residual at which they end.
        seed: of the sketch, pseudo-gradients and augmentations; each checkpoint of each run has its own.
        parameters: names or glob patterns of the parameters to differentiate by; by default all trainable ones.
        cache: a folder to keep scores in, by checkpoint and block of queries: what was interrupted goes on there.

    Raises:
        InputError: an option out of range; in ``fit``, a matrix that memory cannot hold, a loss that is not convex in
            the outputs.

    Example:
        >>> scores = GaussNewton().fit(runs).attribute()  # doctest: +SKIP

    References:
        Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", Neural Comput. 2002.
        Bae et al., "If Influence Functions are the Answer, Then What is the Question?", NeurIPS 2022.
    """

    name: ClassVar[str] = "gauss-newton"
    summary: ClassVar[str] = "influence with the damped Gauss-Newton matrix of the loss, solved exactly or in a sketch"
    cost: ClassVar[str] = "as many epochs of training as there are classes, and one factorisation, per run"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    damping: float | None = None
    solver: SolverName = "auto"
    dimension: int = 4096
    share: float | None = None
    draws: int | None = None
    checkpoints: Literal["all"] | int = 1
    augmentations: int | None = None
    max_steps: int = 100
    tolerance: float = 1e-4
    seed: int = 0
    parameters: str | Sequence[str] | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        self._check_parameters()
        check_choice(self.solver, SOLVERS, "solver", self.name)
        if self.damping is not None:
            check_number(self.damping, f"{self.name}: damping")
        check_number(self.tolerance, f"{self.name}: tolerance")
        if self.share is not None:
            share = check_number(self.share, f"{self.name}: share")
            if share > 1:
                raise InputError(f"{self.name}: share must be at most 1, got {share:g}.")
        for option in ("dimension", "max_steps"):
            self._check_whole(option)
        if self.augmentations is not None:
            self._check_whole("augmentations", 0, "None or a whole number")
        if self.draws is not None:
            self._check_whole("draws", unit="None or a whole number")
        if self.checkpoints != "all":
            self._check_whole("checkpoints", unit="'all' or a whole number")
        if self.cache is not None:
            object.__setattr__(self, "cache", str(self.cache))

    def _fit(self, sources: tuple[Source, ...]) -> _State:
        models: list[_Model] = []
        for source in sources:
            kept = run_of(source).checkpoints
            chosen = kept if self.checkpoints == "all" else kept[-int(self.checkpoints) :]
            models += [_Model(self, source, checkpoint) for checkpoint in chosen]
        first = models[0].plan(models[0].problem())  # refuses what does not fit before any work
        return _State(tuple(models), first.bytes * len(models) <= HELD_BYTES, {})

    def _scores(self, state: _State, queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        total_NQ: npt.NDArray[np.float32] | None = None
        blocks: list[dict[str, Any]] = []
        dampings: list[float] = []
        for model in state.models:
            found = list(model.blocks(queries, state))
            term_NQ = np.concatenate([values for values, _ in found], 1)
            total_NQ = term_NQ if total_NQ is None else total_NQ + term_NQ
            blocks += [said for _, said in found]
            dampings.append(found[0][1]["lambda"])
        assert total_NQ is not None
        values: npt.NDArray[np.float32] = total_NQ / np.float32(len(state.models))
        unconverged = sorted({id_ for said in blocks for id_ in said["unconverged"]})
        info = {"used_checkpoints": len(state.models), "lambda": dampings, "unconverged": unconverged}
        return values, {**info, **said_once([said["note"] for said in blocks])}


@dataclass(frozen=True)
class _State:
    """The models to solve; a solver whose matrix is small enough is kept for the next queries."""

    models: tuple[_Model, ...]
    keeps: bool
    kept: dict[int, _Solved]

    def solved(self, model: _Model) -> _Solved:
        """A model's solver, made where it is not kept."""
        found = self.kept.get(id(model)) or model.solved()
        if self.keeps:
            self.kept[id(model)] = found
        return found


@dataclass(frozen=True)
class _Solved:
    """The solver of one model, what it solves, and what to say of it."""

    problem: Problem
    solver: Solver
    note: dict[str, str]

    def block(self, asked: Batches, ids: Ids) -> Block:
        """The scores (N, Q) of some queries, and what to say of them."""
        scores_NQ: npt.NDArray[np.float32] = self.solver.scores(asked).to("cpu", torch.float32).numpy()
        open_ids: list[int] = []
        if isinstance(self.solver, ConjugateGradients):
            open_ids = ids[~self.solver.converged.cpu().numpy()].tolist()
        return scores_NQ, {"lambda": self.solver.damping, "unconverged": open_ids, "note": self.note}


@dataclass(frozen=True)
class _Augmented:
    """Training examples, each flipped and shifted by its own draw."""

    whole: Resident
    draws: Tensor
    padding: int

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, positions: slice) -> Batch:
        inputs, labels = self.whole.batch(positions)
        return flip_crop(inputs, self.draws[positions], self.padding), labels


@dataclass(frozen=True)
class _Model:
    """One checkpoint of a run, and the options."""

    options: GaussNewton
    source: Source
    checkpoint: Checkpoint

    def problem(self) -> Problem:
        """Its rows and gradients."""
        options, device, run = self.options, resolve_device(), run_of(self.source)
        train = training_resident(self.source, device)
        model = run.load_for_gradients(self.checkpoint, device)
        put_channels_last(model)  # convolutions run fastest on this
        names = options.parameters
        rows = JacobianRows(model, run.task, train, parameters=names, draws=options.draws, seed=self._seed("draws"))
        rows = rows.leading(train, self._share(rows, len(train)))
        losses, measures = (
            PerExampleGradients(model, scalar, task=run.task, parameters=names, check_on=train)
            for scalar in ("loss", "measure")
        )
        return Problem(rows, losses, measures, train, self._views(train))

    def _share(self, rows: JacobianRows, examples: int) -> float:
        if self.options.share is not None:
            return self.options.share
        small = fewest_operations(examples, rows.count, rows.size) <= EXACT_OPERATIONS
        return 1.0 if small else LEADING_SHARE

    def _views(self, train: Resident) -> tuple[Batches, ...]:
        run, count = run_of(self.source), self.options.augmentations
        augments = run.adopted is None and run.recipe.augment != "none"
        if count and not augments:
            raise InputError(
                f"gauss-newton: augmentations={count} needs runs of comove.train whose recipe augments, and {run.path} "
                "is none (augment='none', or trained elsewhere). Leave augmentations at 0."
            )
        if not augments or count == 0:
            return (train,)
        padding = run.recipe.crop_padding
        generator = generator_for(self._seed("augmentations"))
        draws = (draw_flip_crop(len(train), padding, generator) for _ in range(count or AUGMENTATIONS))
        return tuple(_Augmented(train, each.to(train.device), padding) for each in draws)

    def blocks(self, queries: Queries, state: _State) -> Iterator[Block]:
        """Yield the scores of the queries block by block; those on disk are read, the others written there."""
        asked = query_resident(self.source, queries, resolve_device())
        size = sum(p.numel() for p in run_of(self.source).load_model(self.checkpoint).parameters())
        block = max(1, QUERY_BYTES // (32 * size))
        solved: _Solved | None = None
        for start in range(0, len(asked), block):
            ids = queries.ids[start : start + block]
            file = self._file(asked, ids)
            if file is not None and (kept := _read(file)) is not None:
                yield kept
                continue
            solved = solved or state.solved(self)
            scores_NQ, said = solved.block(Part(asked, start, start + len(ids)), ids)
            if file is not None:
                write_arrays(file, {"scores": scores_NQ}, said)
            yield scores_NQ, said

    def _file(self, asked: Resident, ids: Ids) -> Path | None:
        """Where the scores of these queries are kept: its name is a digest of all that they depend on."""
        if self.options.cache is None:
            return None
        run = run_of(self.source)
        content = {
            "format": FORMAT,
            "run": run.manifest["fingerprint"],
            "epoch": self.checkpoint.epoch,
            "weights": weights_digest(run, self.checkpoint),
            "options": {**self.options.options, "cache": None, "checkpoints": None},
            "queries": asked.examples.fingerprint,
            "versions": versions(),
        }
        return new_folder(self.options.cache) / f"{digest(content, self.source.train_ids, ids)}.safetensors"

    def plan(self, problem: Problem) -> Plan:
        """Which solver, and what it takes.

        Raises:
            InputError: memory does not hold it.
        """
        rows, weight = problem.rows, problem.weight
        return plan(
            len(problem.train),
            rows.count,
            rows.size,
            solver=self.options.solver,
            dimension=self.options.dimension,
            itemsize=weight.element_size(),
            memory=free_memory(weight.device),
        )

    def solved(self) -> _Solved:
        """Its solver; a long solve is announced before it begins."""
        problem = self.problem()
        chosen = self.plan(problem)
        took = chosen.seconds(rate_of(problem.weight), problem.rows.seconds_per_pass(problem.train))
        if took > SAID_SECONDS:
            unit = "step" if chosen.solver.endswith("cg") else "model"
            warnings.warn(
                f"gauss-newton: solver={chosen.solver!r} takes {chosen.size} and about {took:.0f} s a {unit}.",
                RuntimeWarning,
                stacklevel=5,
            )
        solver = self._solver(chosen.solver, problem)
        note = {
            "plan": f"{chosen.solver}, {chosen.size}",
            "curvature": problem.rows.factors,
            "gradients": str(problem.rows.paths),
        }
        return _Solved(problem, solver, note)

    def _solver(self, name: str, problem: Problem) -> Solver:
        options = self.options

        def damping(trace: float) -> float:
            if options.damping is not None:
                return options.damping
            squared_norms = problem.losses.squared_norms(problem.train)
            return default_damping(trace, float(squared_norms.double().mean()), len(problem.train))

        if name == "cholesky":
            return Cholesky(problem, damping)
        if name == "woodbury":
            return Woodbury(problem, damping)
        if name in ("cg", "ekfac-cg"):
            factors = None
            if name == "ekfac-cg":
                factors = ekfac_factors(problem.losses, problem.train, seed=self._seed("preconditioner"))
            steps, tolerance = options.max_steps, options.tolerance
            return ConjugateGradients(problem, damping, max_steps=steps, tolerance=tolerance, factors=factors)
        sizes = {name: parameter.numel() for name, parameter in problem.losses.parameters.items()}
        kept = min(options.dimension, problem.rows.size)
        return Sketch(problem, damping, Sparse(sizes, kept, self._seed("sketch"), device=problem.weight.device))

    def _seed(self, what: str) -> int:
        """A seed of this checkpoint's own, so that averaging models averages what is drawn too."""
        return derived_seed(self.options.seed, what, run_of(self.source).manifest["fingerprint"], self.checkpoint.epoch)


def _read(file: Path) -> Block | None:
    """A block of scores that lies on disk; a damaged one is set aside."""
    if not file.exists():
        return None
    try:
        arrays, said = read_checked(file, ["scores"])
    except CorruptFileError as error:
        warnings.warn(f"{error} It is set aside as {set_aside(file)}, and computed again.", stacklevel=2)
        return None
    return arrays["scores"], said
