r"""score(m, q) = (df_q/dz_q) . alpha_m (h_m . h_q + 1), alpha_m = -1/(2 lambda N) dl_m/dz_m.   (Yeh et al., eq. 3)

At a stationary point of the L2-regularised loss of the last layer its weights are a sum over training examples,
W = sum_m alpha_m h_m', so every output is one too: z_q = sum_m alpha_m (h_m . h_q). The last layer is trained on to
such a point, on the features of the trained network; the rest of the network is taken as given.

Shape legend: N train, Q queries, F features (the last layer's inputs), K outputs of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from comove.attribution.base import Attributor, Queries
from comove.attribution.replay import query_resident, run_of, training_resident
from comove.checks import check_number
from comove.data.batches import Batch
from comove.errors import InputError, NonFiniteError
from comove.gradients.scalars import Values, flat_outputs
from comove.models import last_linear, penultimate
from comove.tasks import Task, call_arguments
from comove.trace.evaluation_pass import clean_pass
from comove.training import Resident, resolve_device
from comove.training.sources import Source

__all__ = ["Representer", "fit_last_layer", "representer_scores"]

BATCH = 256
STEPS = 500
"""Iterations of L-BFGS at most."""
SAME, ROUNDINGS = 1e-3, 4
"""How far a model's outputs may be from a multiple of its last layer's, relative to their size: so far, or so many
roundings of the type of number that it computes in, which in bfloat16 are more."""


def representer_scores(
    train_NF: Tensor, train_slopes_NK: Tensor, query_QF: Tensor, query_slopes_QK: Tensor, regularization: float
) -> Tensor:
    """Return each training example's part in the queries' measured outputs, to first order, (N, Q).

    Args:
        train_NF: inputs of the last layer, a column of ones for its bias included.
        train_slopes_NK: d loss / d outputs of the last layer of each training example.
        query_QF: likewise for the queries.
        query_slopes_QK: d measured output / d outputs of the last layer of each query.
        regularization: lambda, of the penalty lambda norm(W)^2 beside the mean loss.
    """
    alpha_NK = train_slopes_NK / (-2 * regularization * len(train_NF))
    return (train_NF @ query_QF.T) * (alpha_NK @ query_slopes_QK.T)


def fit_last_layer(start_KF: Tensor, losses: Callable[[Tensor], Tensor], regularization: float) -> Tensor:
    """Minimise the mean loss of weights plus lambda norm(W)^2 by L-BFGS from ``start_KF``; returns W (K, F) float64.

    Args:
        start_KF: where to begin, the trained layer.
        losses: W -> the mean loss, differentiable.
        regularization: lambda.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    weight_KF = start_KF.double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_KF], max_iter=STEPS, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = losses(weight_KF) + regularization * weight_KF.square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = weight_KF.detach()
    if not bool(torch.isfinite(found).all()):
        raise NonFiniteError("representer: training the last layer on gave weights that are NaN or infinite.")
    return found


class _Head:
    """The examples as the last layer sees them, and a model's outputs as a function of that layer's."""

    def __init__(self, model: nn.Module, task: Task, data: Resident) -> None:
        self.task, self.data = task, data
        first = data.batch(slice(0, 2))
        args, named = call_arguments(model, first)
        self.name, layer = last_linear(model, *args, **named)
        bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.weight.shape[0])
        self.biased = layer.bias is not None
        self.start_KF = self._widened(layer.weight.detach(), bias.detach()[:, None])
        self.features_NF, outputs_NK, rounding = self._pass(model)
        self.scale = self._factor(outputs_NK, max(SAME, ROUNDINGS * rounding))

    def _widened(self, matrix: Tensor, last: Tensor) -> Tensor:
        return torch.cat([matrix, last], 1).double() if self.biased else matrix.double()

    def _pass(self, model: nn.Module) -> tuple[Tensor, Tensor, float]:
        """The last layer's inputs (N, F), and the model's outputs (N, K), both float64; and their rounding."""
        rows, outputs, rounding = [], [], 0.0
        with clean_pass(model), penultimate(model, self.name) as last:
            for _, batch in self.batches():
                found = flat_outputs(self.task.outputs(model, batch)).detach()
                outputs.append(found.double())
                rows.append(last.features.detach())
                rounding = max(torch.finfo(one.dtype).eps for one in (found, rows[-1]))
        features_NF = torch.cat(rows).double()
        if features_NF.ndim != 2:
            raise InputError(
                f"representer reads one row of features an example, and the last layer's input is "
                f"{tuple(features_NF.shape)}: it explains classifiers and regressions, not sequences of outputs."
            )
        return self._widened(features_NF, features_NF.new_ones(len(features_NF), 1)), torch.cat(outputs), rounding

    def _factor(self, outputs_NK: Tensor, same: float) -> float:
        """The number that the model multiplies its last layer's outputs with (0.2 in ResNet-9), the same for all."""
        own_NK = self.features_NF @ self.start_KF.T
        if own_NK.shape == outputs_NK.shape:
            size = float(own_NK.square().sum())
            factor = float((own_NK * outputs_NK).sum()) / size if size > 0 else 1.0
            if (factor * own_NK - outputs_NK).abs().max() <= same * outputs_NK.abs().max() + 1e-12:
                return factor
        raise InputError(
            "representer needs outputs that are a fixed multiple of the last linear layer's; this model does something "
            "else after it."
        )

    def batches(self) -> Iterator[tuple[slice, Batch]]:
        """All examples, batch by batch."""
        for start in range(0, len(self.data), BATCH):
            part = slice(start, min(start + BATCH, len(self.data)))
            yield part, self.data.batch(part)

    def mean_loss(self, weight_KF: Tensor) -> Tensor:
        """The mean loss of the last layer's weights."""
        parts = [
            self.task.loss(self.scale * self.features_NF[part] @ weight_KF.T, batch).sum()
            for part, batch in self.batches()
        ]
        return torch.stack(parts).sum() / len(self.data)

    def slopes(self, weight_KF: Tensor, values: Values) -> Tensor:
        """The gradients (N, K) of a scalar of each example by the last layer's outputs."""
        found = []
        with torch.enable_grad():
            for part, batch in self.batches():
                outputs = (self.features_NF[part] @ weight_KF.T).requires_grad_()
                found.append(torch.autograd.grad(values(self.scale * outputs, batch).sum(), outputs)[0])
        return torch.cat(found)


@dataclass(frozen=True)
class Representer(Attributor):
    """Representer points: outputs as a sum over training examples (Yeh, Kim, Yen, Ravikumar, NeurIPS 2018).

    At the last checkpoint of each run the last linear layer is trained on with an L2 penalty, to a point where its
    weights are a sum over training examples. It explains that layer and takes the features as given: what an example
    did to them is not seen.

    Args:
        regularization: lambda of the penalty lambda norm(W)^2, the bias included; the authors use 0.003 and more. A
            small one leaves the layer nearer to the trained one, and takes longer to fit.

    Raises:
        InputError: in ``fit``, a model whose outputs are not a multiple of its last linear layer's.

    Reference:
        Yeh, Kim, Yen, Ravikumar, "Representer Point Selection for Explaining Deep Neural Networks", NeurIPS 2018.
    """

    name: ClassVar[str] = "representer"
    summary: ClassVar[str] = "each training example's part in the outputs of a regularised last layer"
    cost: ClassVar[str] = "one evaluation pass, and training the last layer on"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    regularization: float = 0.003

    def __post_init__(self) -> None:
        check_number(self.regularization, f"{self.name}: regularization")

    def _fit(self, sources: tuple[Source, ...]) -> list[tuple[Source, Tensor, Tensor, Tensor]]:
        return [(source, *self._last_layer(source)) for source in sources]

    def _last_layer(self, source: Source) -> tuple[Tensor, Tensor, Tensor]:
        """The fitted layer (K, F), the training features (N, F) and slopes (N, K)."""
        run = run_of(source)
        train = training_resident(source, resolve_device())
        head = _Head(run.load_model(device=train.device), run.task, train)
        weight_KF = fit_last_layer(head.start_KF, head.mean_loss, self.regularization)
        return weight_KF, head.features_NF, head.slopes(weight_KF, run.task.loss)

    def _scores(
        self, state: list[tuple[Source, Tensor, Tensor, Tensor]], queries: Queries
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        terms = []
        for source, weight_KF, train_NF, slopes_NK in state:
            run = run_of(source)
            asked = _Head(
                run.load_model(device=weight_KF.device), run.task, query_resident(source, queries, weight_KF.device)
            )
            own_QK = asked.slopes(weight_KF, run.task.measure)
            terms.append(representer_scores(train_NF, slopes_NK, asked.features_NF, own_QK, self.regularization))
        values: npt.NDArray[np.float32] = torch.stack(terms).mean(0).to("cpu", torch.float32).numpy()
        return values, {}
