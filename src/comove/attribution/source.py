r"""tau(m, q) = -1/N grad f(z_q)' sum_l (prod_{k>l} S_k) F_l grad_l(z_m),  S = exp(-t G),  F = (1 - exp(-t G)) / G.

Approximate unrolling (Bae, Lin, Lorraine, Grosse, "Training Data Attribution via Approximate Unrolled Differentiation",
NeurIPS 2024): training is cut into segments, in each of which the curvature G_l and the gradients grad_l of the
examples' losses are taken as constant, at their means over the segment's checkpoints. A segment of K steps with rate lr
lasts t = lr K (a momentum mu makes it lr K / (1 - mu)); gradient descent then forgets what came before it by S_l and
takes in a change of the loss by F_l, which is t for flat directions and 1 / G for steep ones: damped influence whose
damping, about 1 / t, training itself has set. f is the measured output; the sign makes a positive score one that raises
it.

Shape legend: N train, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.arnoldi import hessian_resident
from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.replay import query_resident, run_of, training_resident
from comove.attribution.tracin import QUERY_BYTES, run_gradients, spread
from comove.checks import check_number
from comove.discovery import check_choice, check_seed
from comove.errors import InputError
from comove.gradients.ekfac import EKFACFactors, mean_factors
from comove.gradients.gauss_newton import JacobianRows
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import Batches, Part, PerExampleGradients
from comove.training import Checkpoint, Resident, Run, resolve_device
from comove.training.loop import batch_bounds
from comove.training.randomness import derived_seed
from comove.training.sources import Source as RunSource

__all__ = ["Segment", "Source", "Spectrum", "decay", "response", "segment_times", "source_scores"]

EXACT = 3_000
"""Parameter entries up to which the whole Gauss-Newton matrix is decomposed: some ten seconds a segment."""
Models: TypeAlias = tuple[Callable[[], PerExampleGradients], ...]
"""What makes the loss gradients at each checkpoint of a segment."""


def decay(eigenvalues: Tensor, time: float) -> Tensor:
    """Return S = exp(-t sigma), what is left of a change of the weights after a segment."""
    return torch.exp(-time * eigenvalues)


def response(eigenvalues: Tensor, time: float) -> Tensor:
    """Return F = (1 - exp(-t sigma)) / sigma, how far a constant force moves the weights; t where sigma is 0."""
    moved = -torch.expm1(-time * eigenvalues)
    flat = eigenvalues.abs() * time < 1e-12
    return torch.where(flat, torch.full_like(moved, time), moved / torch.where(flat, 1.0, eigenvalues))


@dataclass(frozen=True)
class Spectrum:
    """A symmetric positive semi-definite matrix over a model's parameters, by its eigenvectors.

    Attributes:
        values: (P,) eigenvalues.
        vectors: (P, P), in columns.
        shapes: of the parameters, by name, in the order of the entries.
    """

    values: Tensor
    vectors: Tensor
    shapes: Mapping[str, torch.Size]

    left_out: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def of(cls, matrix_PP: Tensor, shapes: Mapping[str, torch.Size]) -> Spectrum:
        """Decompose a matrix, in float64; what rounding has made negative is 0."""
        values, vectors = torch.linalg.eigh(matrix_PP.double())
        return cls(values.clamp_(min=0), vectors, shapes)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(self.shapes)

    def apply(self, directions: Mapping[str, Tensor], function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return function(matrix) v, name -> (Q, parameter shape), as the directions came."""
        flat_QP = torch.cat([flat_rows(directions[name]) for name in self.shapes], 1)
        made_QP = (flat_QP.double() @ self.vectors * function(self.values)) @ self.vectors.mT
        pieces = torch.split(made_QP.to(flat_QP), [shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: piece.reshape(-1, *shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }


@dataclass(frozen=True)
class Segment:
    """A part of training.

    Attributes:
        time: t, learning rates summed over its steps, divided by 1 - momentum.
        factors: of its mean Gauss-Newton matrix.
        models: its checkpoints.
    """

    time: float
    factors: EKFACFactors | Spectrum
    models: Models


def source_scores(
    segments: Sequence[Segment], train: Batches, directions: Mapping[str, Tensor], weight_decay: float = 0.0
) -> Tensor:
    """Return the scores (N, Q), positive = helps.

    Args:
        segments: in the order of training.
        train: N examples.
        directions: gradients of what is measured after training, name -> (Q, parameter shape), of those with factors.
        weight_decay: added to the curvature of every parameter.
    """
    total_NQ: Tensor | None = None
    for segment in reversed(segments):
        forced, left = (partial(_decayed, each, segment.time, weight_decay) for each in (response, decay))
        moved = segment.factors.apply(directions, forced)
        for make in segment.models:
            share_NQ = make().inner_products(train, moved).mul_(-1 / (len(train) * len(segment.models)))
            total_NQ = share_NQ if total_NQ is None else total_NQ.add_(share_NQ)
        directions = segment.factors.apply(directions, left)
    assert total_NQ is not None
    return total_NQ


def _decayed(
    function: Callable[[Tensor, float], Tensor], time: float, weight_decay: float, eigenvalues: Tensor
) -> Tensor:
    return function(eigenvalues + weight_decay, time)


def segment_times(run: Run, checkpoints: Sequence[Checkpoint], momentum: float | None) -> list[float]:
    """Return how long training lasted up to each checkpoint from the one before it: the sum of lr / (1 - momentum).

    Args:
        run: of comove, whose recipe gives the rate of each step; or adopted, whose checkpoints do, with their steps.
        checkpoints: in order of training, none before the first step.
        momentum: of a run trained elsewhere; ``None`` for the recipe's, or 0.

    Raises:
        InputError: a checkpoint of an adopted run without a learning rate or a step, or not after the one before it.
    """
    if run.adopted is None:
        recipe = run.recipe
        count = len(batch_bounds(len(run.data().train), recipe))
        rates = [recipe.lr_at((step + 0.5) / count) for step in range(checkpoints[-1].step)]
        steps = [checkpoint.step for checkpoint in checkpoints]
        mu = recipe.momentum if momentum is None else momentum
        bounds = zip([0, *steps], steps, strict=False)
        return [math.fsum(rates[start:stop]) / (1 - mu) for start, stop in bounds]
    noted = run.manifest["adopted"]["weights"]
    places = [run.checkpoints.index(checkpoint) for checkpoint in checkpoints]
    if any(noted[place][what] is None for place in places for what in ("lr", "step")):
        raise InputError(
            "source needs to know how long training took: give each checkpoint's learning rate and the optimizer steps "
            "until it, Weights(..., lr=.01, step=500)."
        )
    steps = [int(noted[place]["step"]) for place in places]
    counts = np.diff([0, *steps])
    if (counts <= 0).any():
        raise InputError(f"source needs checkpoints in the order of their steps, the first after a step; got {steps}.")
    return [float(n * noted[place]["lr"]) / (1 - (momentum or 0.0)) for n, place in zip(counts, places, strict=True)]


@dataclass(frozen=True)
class Source(Attributor):
    """SOURCE, approximate unrolling by segments of training (Bae et al., NeurIPS 2024).

    For runs trained by SGD, ours or adopted. Where :class:`comove.attribution.Unrolled` follows one run step by step,
    this takes a few checkpoints, holds for what was trained elsewhere, and its smoothing makes it forgiving where
    training is rough. Scores of several runs are averaged.

    Args:
        segments: L, at most the number of checkpoints used.
        checkpoints: ``"all"`` after the first step, or a number of them evenly spread, shared out to the segments.
        curvature: ``"exact"``, eigenvectors of the whole Gauss-Newton matrix, for small models; ``"ekfac"``, as in the
            paper, of its Kronecker factors: linear layers, convolutions (without groups) and transformers' ``Conv1D``
            have these, and what else a model holds is left out of the sum, as ``info["left_out"]`` says; ``"auto"``,
            exact up to 3,000 parameter entries.
        momentum: of SGD; ``None`` for the recipe's, of a run trained elsewhere 0.
        weight_decay: of SGD, likewise.
        factor_examples: ``"all"`` training examples, or a number of them drawn by the seed, that factors are fitted on.
        seed: of that draw and of the pseudo-targets.
        parameters: names or glob patterns (``"head.*"``) of the parameters to differentiate by; by default all
            trainable ones.

    Raises:
        InputError: an option out of range; in ``fit``, fewer checkpoints than segments, a run trained by AdamW, one
            trained elsewhere whose rates and steps are unknown.

    Reference:
        Bae, Lin, Lorraine, Grosse, "Training Data Attribution via Approximate Unrolled Differentiation", NeurIPS 2024.
    """

    name: ClassVar[str] = "source"
    summary: ClassVar[str] = "approximate unrolling: a few segments of training, each with its mean curvature"
    cost: ClassVar[str] = "about 6 epochs of training per checkpoint used"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    segments: int = 3
    checkpoints: Literal["all"] | int = 6
    curvature: Literal["auto", "exact", "ekfac"] = "auto"
    momentum: float | None = None
    weight_decay: float | None = None
    factor_examples: Literal["all"] | int = "all"
    seed: int = 0
    parameters: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        self._check_parameters()
        check_choice(self.curvature, ("auto", "exact", "ekfac"), "curvature", self.name)
        self._check_whole("segments")
        for option in ("checkpoints", "factor_examples"):
            if getattr(self, option) != "all":
                self._check_whole(option, unit="'all' or a whole number")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"{self.name}: momentum must be in [0, 1), got {self.momentum!r}.")
        if self.weight_decay is not None:
            check_number(self.weight_decay, f"{self.name}: weight_decay", zero=True)

    def _fit(self, sources: tuple[RunSource, ...]) -> tuple[_Fitted, ...]:
        device = resolve_device()
        return tuple(
            (source, train := training_resident(source, device), self._segments(source, train)) for source in sources
        )

    def _segments(self, source: RunSource, train: Resident) -> tuple[Segment, ...]:
        run = run_of(source)
        if run.adopted is None and run.recipe.optimizer != "sgd":
            raise InputError(f"source is about gradient descent; {run.path} was trained by {run.recipe.optimizer}.")
        chosen = spread([one for one in run.checkpoints if one.epoch > 0], self.checkpoints)
        if len(chosen) < self.segments:
            raise InputError(
                f"source needs a checkpoint for each of its {self.segments} segments, got {len(chosen)} after the "
                "first step: keep more (checkpoints='all'), or ask for fewer segments."
            )
        times = segment_times(run, chosen, self.momentum)
        number = len(train) if self.factor_examples == "all" else min(len(train), self.factor_examples)
        held = hessian_resident(source, number, self.seed, train.device)
        made = []
        for places in np.array_split(np.arange(len(chosen)), self.segments):
            here = [chosen[place] for place in places]
            factors = self._factors(run, here, held)
            own: Models = tuple(
                partial(run_gradients, run, one, train.device, parameters=factors.parameters, check_on=train)
                for one in here
            )
            made.append(Segment(math.fsum(times[place] for place in places), factors, own))
        return tuple(made)

    def _factors(self, run: Run, checkpoints: Sequence[Checkpoint], held: Resident) -> EKFACFactors | Spectrum:
        """Of the mean Gauss-Newton matrix over a segment's checkpoints."""
        make = partial(run_gradients, run, device=held.device, parameters=self.parameters, check_on=held)
        seed = derived_seed(self.seed, "source", run.manifest["fingerprint"], checkpoints[-1].epoch)
        gradients = make(checkpoints[0])
        if self.curvature == "ekfac" or (self.curvature == "auto" and gradients.size > EXACT):
            return mean_factors([partial(make, one) for one in checkpoints], held, seed=seed)
        total_PP: Tensor | None = None
        for one in checkpoints:
            model = run.load_for_gradients(one, held.device)
            rows = JacobianRows(model, run.task, held, parameters=self.parameters, seed=seed)
            matrix_PP = rows.matrix(held).div_(len(checkpoints))
            total_PP = matrix_PP if total_PP is None else total_PP.add_(matrix_PP)
        assert total_PP is not None
        return Spectrum.of(total_PP, {name: p.shape for name, p in gradients.parameters.items()})

    def _decay(self, run: Run) -> float:
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.0 if run.adopted is not None else run.recipe.weight_decay

    def _scores(self, state: tuple[_Fitted, ...], queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        total_NQ, notes, times = torch.zeros(()), [], []
        for source, train, segments in state:
            run = run_of(source)
            asked = query_resident(source, queries, train.device)
            columns = [
                source_scores(segments, train, directions, self._decay(run)).cpu()
                for directions in _measured(run, segments[-1].models[-1](), train, asked)
            ]
            total_NQ = total_NQ + torch.cat(columns, 1)
            times.append([round(segment.time, 6) for segment in segments])
            left_out = "; ".join(f"{name} ({why})" for name, why in segments[-1].factors.left_out.items())
            exact = isinstance(segments[-1].factors, Spectrum)
            notes.append({"left_out": left_out, "eigenvectors": "exact" if exact else "ekfac"})
        values: npt.NDArray[np.float32] = (total_NQ / len(state)).to(torch.float32).numpy()
        return values, {**said_once(notes), "times": times}


_Fitted: TypeAlias = tuple[RunSource, Resident, tuple[Segment, ...]]


def _measured(run: Run, last: PerExampleGradients, train: Resident, queries: Resident) -> Iterator[dict[str, Tensor]]:
    """Gradients of what is measured at the last checkpoint, of as many queries at a time as fit into memory."""
    measured = PerExampleGradients(
        last.model, "measure", task=run.task, parameters=tuple(last.parameters), check_on=train
    )
    block = max(1, QUERY_BYTES // (measured.size * 4))
    for start in range(0, len(queries), block):
        yield measured.collect(Part(queries, start, min(start + block, len(queries))))
