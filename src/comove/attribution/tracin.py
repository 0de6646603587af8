r"""tau(m, q) = sum_i lr_i <grad l(theta_i, z_m), grad l(theta_i, z_q)>.   (Pruthi et al., NeurIPS 2020, TracInCP)

A step on z_m at checkpoint i lowers the loss of z_q, to first order, by the learning rate times the inner product of
their gradients; the score adds this up over checkpoints. That is a step of plain gradient descent. Adam multiplies each
entry of a gradient with its own lr / (sqrt(v_hat) + eps); where the optimizer's state was kept, its step is

    tau(m, q) = sum_i <grad l(theta_i, z_m), P_i grad l(theta_i, z_q)>,   P_i = diag(lr_i / (sqrt(v_hat_i) + eps)).

Grad-Dot is one checkpoint, the last, with rate 1; Grad-Cos is
its cosine.

Shape legend: N train, Q queries, K projected dimensions, P entries of one parameter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.replay import query_resident, run_of, training_resident
from comove.discovery import check_choice, check_seed
from comove.errors import InputError
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import Batches, Part, PerExampleGradients, check_finite
from comove.gradients.projections import Sparse
from comove.models import last_linear, put_channels_last
from comove.tasks import call_arguments
from comove.training import Checkpoint, Resident, Run, resolve_device
from comove.training.sources import Source

__all__ = ["GradCos", "GradDot", "TracIn", "projected", "run_gradients", "similarity", "spread"]

QUERY_BYTES = 2 << 30
"""Queries are taken in blocks whose gradients fit in this; each block is one more pass over the training examples."""


def spread(kept: Sequence[Checkpoint], number: Literal["all"] | int) -> tuple[Checkpoint, ...]:
    """Return all checkpoints, or ``number`` of them evenly spread in order, the last always among them."""
    if isinstance(number, str) or number >= len(kept):
        return tuple(kept)
    return tuple(kept[(index + 1) * len(kept) // number - 1] for index in range(number))


def run_gradients(
    run: Run,
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    *,
    last_layer: bool = False,
    parameters: str | Collection[str] | None = None,
    check_on: Batches | None = None,
) -> PerExampleGradients:
    """Return the stream of loss gradients of a run's network at one of its checkpoints.

    Args:
        run: with checkpoints.
        checkpoint: one of them.
        device: where to compute.
        last_layer: only the parameters of the linear layer that runs last (:func:`comove.models.last_layer`).
        parameters: names or glob patterns of those to differentiate by; by default all trainable ones.
        check_on: as of :class:`PerExampleGradients`; best the training examples.

    Raises:
        CorruptFileError: the checkpoint holds another network's weights.
        InputError: ``last_layer``, and no linear layer gives the logits.
    """
    model = run.load_for_gradients(checkpoint, device)
    put_channels_last(model)  # convolutions run fastest on this
    chosen = parameters
    if last_layer:
        examples = Resident(run.data().train, torch.device(device)) if check_on is None else check_on
        args, named = call_arguments(model, examples.batch(slice(0, 2)))
        own = set(map(id, last_linear(model, *args, **named)[1].parameters()))
        chosen = [name for name, parameter in model.named_parameters() if id(parameter) in own]
    return PerExampleGradients(model, "loss", task=run.task, parameters=chosen, check_on=check_on)


def similarity(
    gradients: PerExampleGradients,
    train: Batches,
    queries: Batches,
    *,
    cosine: bool = False,
    factors: Factors | None = None,
) -> Tensor:
    """Return <gradient_n, gradient_q> (N, Q), or their cosines (0 where a gradient vanishes).

    Query gradients are computed once; of the training examples one chunk is held at a time.

    Args:
        gradients: the stream.
        train: N examples.
        queries: Q examples.
        cosine: divide by both norms.
        factors: name -> (parameter shape), what each entry of the queries' gradients is multiplied with.
    """
    block = max(1, QUERY_BYTES // (gradients.size * 4))
    columns: list[Tensor] = []
    for start in range(0, len(queries), block):
        directions = gradients.collect(Part(queries, start, min(start + block, len(queries))))
        if factors is not None:
            directions = {name: matrix.mul_(factors[name].to(matrix)) for name, matrix in directions.items()}
        norms_N = next(iter(directions.values())).new_zeros(len(train)) if cosine else None
        products_NQ = gradients.inner_products(train, directions, squared_norms=norms_N)
        if norms_N is not None:
            norms_Q = sum(flat_rows(matrix).square().sum(1) for matrix in directions.values())
            products_NQ = _cosines(products_NQ, norms_N, torch.as_tensor(norms_Q))
        columns.append(products_NQ)
    return torch.cat(columns, 1)


def projected(
    gradients: PerExampleGradients, data: Batches, dimension: int, seed: int, factors: Factors | None = None
) -> Tensor:
    """Return sparse random projections (N, K) of the gradients, whose inner products are theirs on average.

    With ``factors``, of the gradients whose entries are multiplied with these.

    The standard deviation of one inner product is about ``|g||h| / sqrt(K)``. The same seed gives the same projection.
    """
    first = next(iter(gradients.parameters.values())).detach()
    sizes = {name: parameter.numel() for name, parameter in gradients.parameters.items()}
    projector = Sparse(sizes, dimension, seed, device=first.device)
    features_NK = first.new_zeros(len(data), dimension)
    for part, chunk in gradients.stream(data):
        features_NK[part] = projector.project(chunk if factors is None else _scaled(chunk, factors))
    check_finite({"gradient": features_NK}, data)
    return features_NK


def _squared_norms(gradients: PerExampleGradients, data: Batches, factors: Factors | None) -> Tensor:
    """<gradient, factors * gradient> of each example, (N,)."""
    if factors is None:
        return gradients.squared_norms(data)
    norms_N = next(iter(gradients.parameters.values())).detach().new_zeros(len(data))
    for part, chunk in gradients.stream(data):
        for name, gradient in chunk:
            norms_N[part] += flat_rows(gradient.square() * factors[name].to(gradient)).sum(1)
    check_finite({"gradient": norms_N}, data)
    return norms_N


def _scaled(chunk: Iterable[tuple[str, Tensor]], factors: Factors) -> Iterator[tuple[str, Tensor]]:
    """The gradients of a chunk, name -> (B, parameter shape), each entry multiplied with its factor."""
    for name, gradient in chunk:
        yield name, gradient * factors[name].to(gradient)


def _cosines(products_NQ: Tensor, norms_N: Tensor, norms_Q: Tensor) -> Tensor:
    scale = (norms_N.sqrt()[:, None] * norms_Q.sqrt()).clamp_min_(torch.finfo(products_NQ.dtype).tiny)
    return products_NQ / scale


Factors: TypeAlias = Mapping[str, Tensor]
"""Name -> (parameter shape)."""
_Fitted: TypeAlias = tuple[Source, Resident, tuple[Tensor, ...]]
"""A run, its training examples, and their projected gradients at each checkpoint (none without a projection)."""


@dataclass(frozen=True)
class _GradientSimilarity(Attributor):
    """What the three methods share: weighted similarities of loss gradients at checkpoints, averaged over runs."""

    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})
    cosine: ClassVar[bool] = False

    projection: int = 0
    last_layer: bool = False
    seed: int = 0
    parameters: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._check_parameters()
        check_seed(self.seed, self.name)
        self._check_whole("projection", 0)

    @abstractmethod
    def _weights(self, run: Run) -> list[tuple[Checkpoint, float]]:
        """The checkpoints used, and the factor of each."""

    def _step_factors(self, run: Run, checkpoint: Checkpoint) -> Factors | None:
        """What the optimizer multiplied each entry of a gradient with, beside the checkpoint's factor; by default 1."""
        return None

    def _at(self, source: Source, train: Resident) -> Iterator[tuple[float, Factors | None, PerExampleGradients]]:
        run, last = run_of(source), self.last_layer
        for checkpoint, weight in self._weights(run):
            factors = self._step_factors(run, checkpoint)
            gradients = run_gradients(
                run, checkpoint, train.device, last_layer=last, parameters=self.parameters, check_on=train
            )
            yield weight, factors, gradients

    def _fit(self, sources: tuple[Source, ...]) -> tuple[_Fitted, ...]:
        return tuple(
            (source, train := training_resident(source, resolve_device()), self._features(source, train))
            for source in sources
        )

    def _features(self, source: Source, train: Resident) -> tuple[Tensor, ...]:
        """With a projection, that of the training gradients at each checkpoint: fitted once, for any queries."""
        if not self.projection:
            return ()
        return tuple(
            projected(gradients, train, self.projection, self.seed) for _, _, gradients in self._at(source, train)
        )

    def _scores(self, state: tuple[_Fitted, ...], queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        total_NQ = torch.zeros(())
        used, notes = 0, []
        for source, train, features in state:
            asked = query_resident(source, queries, train.device)
            for index, (weight, factors, gradients) in enumerate(self._at(source, train)):
                if features:
                    train_NK = features[index]
                    query_QK = projected(gradients, asked, self.projection, self.seed, factors)
                    term_NQ = train_NK @ query_QK.T
                    if self.cosine:
                        term_NQ = _cosines(term_NQ, train_NK.square().sum(1), query_QK.square().sum(1))
                else:
                    term_NQ = similarity(gradients, train, asked, cosine=self.cosine, factors=factors)
                total_NQ = total_NQ + term_NQ.mul_(weight).cpu()
                used = index + 1
                notes.append({"gradients": str(gradients.paths)})
        return (total_NQ / len(state)).to(torch.float32).numpy(), {**said_once(notes), "used_checkpoints": used}

    def _self_influence(self, state: tuple[_Fitted, ...]) -> npt.NDArray[np.float32] | None:
        """sum_i lr_i |grad l(theta_i, z_m)|^2, exact whatever the projection; cosines with itself say nothing."""
        if self.cosine:
            return None
        total_N = torch.zeros(())
        for source, train, _ in state:
            for weight, factors, gradients in self._at(source, train):
                total_N = total_N + _squared_norms(gradients, train, factors).mul_(weight).cpu()
        return (total_N / len(state)).to(torch.float32).numpy()


@dataclass(frozen=True)
class TracIn(_GradientSimilarity):
    """Gradient inner products summed over checkpoints, each times its learning rate (Pruthi et al., NeurIPS 2020).

    Args:
        projection: 0 for exact inner products; K > 0 for those of random projections to K dimensions, an approximation
            whose training side is computed in :meth:`fit` once and for all queries to come (N x K kept per checkpoint).
        last_layer: gradients of the last layer only. A cheap approximation that ranks poorly: its Spearman correlation
            with the scores of all layers was .29 on CIFAR-10 with ResNet-9.
        seed: of the projection.
        parameters: names or glob patterns (``"head.*"``) of the parameters to differentiate by; by default all
            trainable ones.
        rate: ``"last"``, the optimizer's learning rate at the checkpoint (near 0 at the end of a triangular schedule);
            or ``"mean"``, over the epoch that ended there.
        checkpoints: ``"all"``, or a number of them evenly spread, always with the last.
        optimizer_state: take Adam's own step, which divides each entry of a gradient by sqrt(v_hat) + eps, instead of
            plain gradient descent's; for runs of :func:`comove.adopt` whose weights have their optimizer's state,
            ``Weights(..., optimizer_state=)``. Without it, scores of a model trained by Adam or AdamW are similarities
            of raw gradients along training, not the effect of steps that it took.
    """

    name: ClassVar[str] = "tracin"
    summary: ClassVar[str] = "inner products of loss gradients, summed over checkpoints with their learning rates"
    cost: ClassVar[str] = "about 1.5 epochs of training per checkpoint"

    rate: Literal["last", "mean"] = "last"
    checkpoints: Literal["all"] | int = "all"
    optimizer_state: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.rate, ("last", "mean"), "rate", self.name)
        if self.checkpoints != "all":
            self._check_whole("checkpoints", unit="'all' or a whole number")
        if not isinstance(self.optimizer_state, bool):
            raise InputError(f"{self.name}: optimizer_state must be true or false, got {self.optimizer_state!r}.")

    def _step_factors(self, run: Run, checkpoint: Checkpoint) -> Factors | None:
        return run.step_factors(checkpoint) if self.optimizer_state else None

    def _weights(self, run: Run) -> list[tuple[Checkpoint, float]]:
        chosen = spread(run.checkpoints, self.checkpoints)
        if self.optimizer_state:  # the factors hold the learning rates
            return [(checkpoint, 1.0) for checkpoint in chosen]
        if any(checkpoint.lr != checkpoint.lr for checkpoint in chosen):
            raise InputError(f"{self.name} weighs checkpoints by their learning rates: give them, Weights(..., lr=).")
        return [(checkpoint, checkpoint.lr if self.rate == "last" else checkpoint.mean_lr) for checkpoint in chosen]


@dataclass(frozen=True)
class GradDot(_GradientSimilarity):
    """Inner products of loss gradients at the last checkpoint (Charpiat et al., NeurIPS 2019).

    Args:
        projection: as for :class:`TracIn`.
        last_layer: as for :class:`TracIn`.
        seed: of the projection.
        parameters: as for :class:`TracIn`.
    """

    name: ClassVar[str] = "grad-dot"
    summary: ClassVar[str] = "inner products of loss gradients at the last checkpoint"
    cost: ClassVar[str] = "about 1.5 epochs of training"

    def _weights(self, run: Run) -> list[tuple[Checkpoint, float]]:
        return [(run.checkpoints[-1], 1.0)]


@dataclass(frozen=True)
class GradCos(_GradientSimilarity):
    """Cosines of loss gradients at the last checkpoint (Charpiat et al., NeurIPS 2019); 0 where a gradient vanishes.

    Args:
        projection: as for :class:`TracIn`.
        last_layer: as for :class:`TracIn`.
        seed: of the projection.
        parameters: as for :class:`TracIn`.
    """

    name: ClassVar[str] = "grad-cos"
    summary: ClassVar[str] = "cosines of loss gradients at the last checkpoint"
    cost: ClassVar[str] = "about 1.5 epochs of training"
    cosine: ClassVar[bool] = True

    def _weights(self, run: Run) -> list[tuple[Checkpoint, float]]:
        return [(run.checkpoints[-1], 1.0)]
