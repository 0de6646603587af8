r"""tau(m, q) = d measure_q(theta_T) / d w_m, theta_T the weights after training with w_m times the loss of example m.

The derivative of a whole training run, exact, by reverse accumulation over its steps (Hara, Nitanda, Maehara, "Data
Cleansing for Models Trained with SGD", NeurIPS 2019; Ilyas, Engstrom, "MAGIC: Near-Optimal Data Attribution for Deep
Learning", 2025). A step of SGD on a batch of B examples, with momentum mu and weight decay c, is

    g_t = 1/B sum_i w_i grad l_i(theta_t) + c theta_t,   v_{t+1} = mu v_t + g_t,   theta_{t+1} = theta_t - lr_t v_{t+1}

(Nesterov's: theta_t - lr_t (g_t + mu v_{t+1})). From the last step back, for each query,

    b = lam_v - lr_t lam_theta,  a = b,  tau_i += a' grad l_i(theta_t) / B,  lam_theta += H_t a + c a,  lam_v = mu b

(Nesterov's: b = lam_v - lr_t mu lam_theta, a = b - lr_t lam_theta), from lam_theta = grad measure_q(theta_T) and
lam_v = 0. H_t is the Hessian of the batch's mean loss.

Shape legend: N train, Q queries, B batch, P parameter entries, S entries of running batch-norm statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.base import Attributor, Queries
from comove.attribution.replay import query_resident, run_of
from comove.data import positions_of
from comove.discovery import check_choice
from comove.errors import InputError
from comove.gradients.batch_products import BatchProducts, Curvature
from comove.training import Recipe, Resident, resolve_device
from comove.training.replay import Replay, Step
from comove.training.sources import Source

__all__ = ["Adjoint", "Unrolled", "step_back", "unroll"]

VECTORS = 8
"""Vectors (P,) that one query takes: both adjoints, direction, product, and spare copies."""


class Adjoint(NamedTuple):
    """How what is measured of Q queries depends on the state between two steps.

    ``weights`` (Q, P), ``momentum`` (Q, P) and ``statistics`` (Q, S), batch norm's running ones.
    """

    weights: Tensor
    momentum: Tensor
    statistics: Tensor


def step_back(products: BatchProducts, step: Step, adjoint: Adjoint, recipe: Recipe) -> tuple[Tensor, Adjoint]:
    """Go back over one step of training.

    Args:
        products: of the network.
        step: its state before the step, and its batch of B examples.
        adjoint: after the step.
        recipe: momentum, Nesterov and weight decay.

    Returns:
        (B, Q), the derivative by the weights of the batch's losses in this step; and the adjoint before it.
    """
    batch = step.batch
    lr, mu = batch.lr, recipe.momentum
    if recipe.nesterov:
        velocity_QP = torch.add(adjoint.momentum, adjoint.weights, alpha=-lr * mu)
        direction_QP = torch.add(velocity_QP, adjoint.weights, alpha=-lr)
    else:
        velocity_QP = direction_QP = torch.add(adjoint.momentum, adjoint.weights, alpha=-lr)
    products.load(step.state)
    found = products(batch.inputs, batch.labels, direction_QP, adjoint.statistics * products.rates)
    weights_QP = found.pulled.add_(adjoint.weights)
    if recipe.weight_decay:
        weights_QP.add_(direction_QP, alpha=recipe.weight_decay)
    before = Adjoint(weights_QP, velocity_QP * mu, adjoint.statistics * (1 - products.rates))
    return found.inner / len(batch.labels), before


def unroll(
    products: BatchProducts, steps: Iterable[Step], adjoint: Adjoint, recipe: Recipe, size: int
) -> npt.NDArray[np.float64]:
    """Return d measure_q / d w_i (N, Q), by going back over all steps.

    Args:
        products: of the network.
        steps: the last one first.
        adjoint: after the last step: the gradients of what is measured, and zero momentum.
        recipe: momentum, Nesterov and weight decay.
        size: N; a step's batch has positions below it.
    """
    values_NQ = np.zeros((size, len(adjoint.weights)))
    for step in steps:
        share_BQ, adjoint = step_back(products, step, adjoint, recipe)
        values_NQ[step.batch.positions.numpy()] += share_BQ.double().cpu().numpy()
    return values_NQ


_Fitted: TypeAlias = tuple[Source, Replay]


@dataclass(frozen=True)
class Unrolled(Attributor):
    """The derivative of what is measured by each example's weight in training, through every step of the run.

    It explains the one model that was trained, not an average over seeds: compare it with a bank of ``same_seed=True``
    whose seed is the run's. Several runs' derivatives are averaged. How far it can be trusted depends on how smooth
    training is: where a small change of the weights sends it elsewhere, the derivative is right and says nothing of
    removals. :func:`comove.attribution.metasmoothness` measures that beforehand; smooth activations (tanh, softplus,
    GELU), small learning rates and large batches help.

    The runs must be of :func:`comove.train` with plain SGD (schedules, momentum, weight decay, label smoothing and
    augmentation are understood; AdamW, clipping, averaged weights and dropout are not) and must repeat to the bit.
    With batch norm, which trains on a batch's statistics, the weight is that of the example's loss: its inputs stay in
    the statistics, as in such a bank.

    Args:
        curvature: ``"hessian"``, exact; or ``"gauss-newton"`` in its place, without negative eigenvalues, which damps
            what rough training (ReLU, large rates) amplifies.
        precision: of the reverse pass, ``"float32"`` or ``"float64"``; the replayed weights are the run's own.
        memory: bytes that replayed states may take, and the queries' adjoints; with more queries than fit, blocks of
            them are unrolled one after another.

    Reference:
        Ilyas, Engstrom, "MAGIC: Near-Optimal Data Attribution for Deep Learning", arXiv 2504.16430, 2025.
    """

    name: ClassVar[str] = "unrolled"
    summary: ClassVar[str] = "the derivative through every step of training; for one model, where training is smooth"
    cost: ClassVar[str] = (
        "two more trainings per run, and about three passes over the training data per epoch and query"
    )
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    curvature: Curvature = "hessian"
    precision: Literal["float32", "float64"] = "float32"
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        check_choice(self.curvature, ("hessian", "gauss-newton"), "curvature", self.name)
        check_choice(self.precision, ("float32", "float64"), "precision", self.name)
        self._check_whole("memory", unit="a whole number of bytes")

    def _fit(self, sources: tuple[Source, ...]) -> tuple[_Fitted, ...]:
        return tuple((source, _replay(source, self.memory)) for source in sources)

    def _scores(self, state: tuple[_Fitted, ...], queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        terms = [self._one_run(source, replay, queries) for source, replay in state]
        values: npt.NDArray[np.float32] = np.mean(terms, axis=0).astype(np.float32)
        return values, {"steps": state[0][1].steps}

    def _one_run(self, source: Source, replay: Replay, queries: Queries) -> npt.NDArray[np.float64]:
        run, dtype = run_of(source), torch.float64 if self.precision == "float64" else torch.float32
        products = BatchProducts(
            replay.model, curvature=self.curvature, smoothing=replay.recipe.label_smoothing, dtype=dtype
        )
        asked = query_resident(source, queries, replay.train.device)
        products.load(replay.final)
        inputs, labels = asked.batch(slice(0, len(asked)))

        def measure(logits: Tensor, labels: Tensor) -> Tensor:
            return run.task.measure(logits, (inputs, labels))

        weights_QP, statistics_QS = products.measure_gradients(measure, inputs, labels)
        block = max(1, self.memory // (VECTORS * dtype.itemsize * products.size))
        columns = []
        for start in range(0, len(asked), block):
            here = slice(start, start + block)
            start_QP = weights_QP[here]
            adjoint = Adjoint(start_QP, torch.zeros_like(start_QP), statistics_QS[here])
            columns.append(unroll(products, replay.backwards(), adjoint, replay.recipe, len(replay.train)))
        rows = positions_of(source.train_ids, replay.train.examples.ids, "training ids")
        values_NQ: npt.NDArray[np.float64] = np.concatenate(columns, 1)[rows]
        return values_NQ


def _replay(source: Source, memory: int) -> Replay:
    run = run_of(source)
    device = "cpu" if run.adopted is not None else str(run.result["device"])
    try:
        where = resolve_device(device)
    except InputError as error:
        raise InputError(f"{run.path} was trained on {device!r}, and unrolling repeats its steps. {error}") from error
    return Replay(run, Resident(run.data().train, where), memory=memory)
