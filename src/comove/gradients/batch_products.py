r"""g_i' a_q and H a_q of one training batch: what the derivative of a training step asks of the loss.

With weights w on the losses of a batch, g(w) = d/dtheta sum_i w_i l_i(theta) / B. One backward pass through the graph
of g, in the direction a, gives both: its derivative by theta is H a, by w_i it is g_i' a / B. So nothing is computed
example by example, and layers that see the whole batch (batch norm in training mode) are differentiated as they are.
Batch norm is written out in elementary operations, for its running statistics are part of what a step changes: they
are differentiated, too.

The Gauss-Newton matrix J' M J, J the Jacobian of the logits and M the Hessian of the mean cross-entropy in them, can
stand in place of H: it is positive semi-definite, and equal to H for a model linear in its parameters.

Shape legend: B batch, C classes, P parameter entries, Q directions, S entries of running statistics.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from comove.errors import InputError, first_line
from comove.gradients.double_backward import TwiceDifferentiable
from comove.gradients.hessian import CONVOLUTIONS, SMALL_WORK, flatten, unflatten
from comove.models import logits_of, without_fast_path
from comove.training.loop import one_thread

__all__ = ["BatchProducts", "Curvature", "Products", "logit_curvature"]

MEMORY = 512 << 20
"""Bytes that the graphs of directions side by side may take."""
COPIES = 6
"""Times the graph of a forward pass that one direction takes in the second backward pass."""
NORMS = nn.modules.batchnorm._BatchNorm

Curvature: TypeAlias = Literal["hessian", "gauss-newton"]


class Products(NamedTuple):
    """For Q directions a_q: inner products with per-example loss gradients, and what is pulled back to the weights.

    ``inner`` is (B, Q); ``pulled`` (Q, P) is H a_q plus the derivative of the batch's statistics times cotangents.
    """

    inner: Tensor
    pulled: Tensor


class WrittenOutNorm(nn.Module):
    """Batch norm in elementary operations; ``batch_statistics`` (2 C,) are what its running ones move towards."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: NORMS) -> None:
        super().__init__()
        if norm.momentum is None:
            raise InputError("Batch norm with momentum=None averages over all batches, which is not unrolled: set one.")
        self.weight, self.bias, self.eps, self.momentum = norm.weight, norm.bias, norm.eps, norm.momentum
        self.tracks = norm.running_mean is not None
        if self.tracks:
            self.register_buffer("running_mean", norm.running_mean)
            self.register_buffer("running_var", norm.running_var)
            self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.batch_statistics = torch.zeros(0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (B, C, ...) as ``torch.nn.BatchNorm1d`` and its kin do."""
        dims = [0, *range(2, inputs.ndim)]
        shape = [1, -1, *[1] * (inputs.ndim - 2)]
        if self.training or not self.tracks:
            mean, var = inputs.mean(dims), inputs.var(dims, unbiased=False)
            count = inputs.numel() // inputs.shape[1]
            self.batch_statistics = torch.cat([mean, var * (count / (count - 1))]) if count > 1 else mean.new_zeros(0)
        else:
            mean, var = self.running_mean, self.running_var
        normal = (inputs - mean.view(shape)) / (var + self.eps).sqrt().view(shape)
        if self.weight is None:
            return normal
        return normal * self.weight.view(shape) + self.bias.view(shape)


def logit_curvature(probabilities: Tensor, directions: Tensor) -> Tensor:
    """(diag p - p p') u: the Hessian of the cross-entropy in the logits, (..., C), with or without label smoothing."""
    return probabilities * (directions - (probabilities * directions).sum(-1, keepdim=True))


class BatchProducts:
    """Products for one network, at whatever weights and on whatever batch.

    Args:
        model: classifies; a copy of it is used.
        curvature: ``"hessian"``, or ``"gauss-newton"`` in its place.
        smoothing: label smoothing of the loss.
        dtype: of weights, inputs and results.

    Attributes:
        size: P, entries of the trainable parameters.
        statistics: S, entries of running statistics.
        rates: (S,) the share of the new batch's statistics in the next running ones.

    Raises:
        InputError: batch norm without a momentum.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        curvature: Curvature = "hessian",
        smoothing: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.curvature, self.smoothing, self.dtype = curvature, smoothing, dtype
        self.model = _written_out(copy.deepcopy(model).to(dtype))
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.size = sum(p.numel() for p in self.parameters.values())
        self.device = next(iter(self.parameters.values())).device
        self._norms = [m for m in self.model.modules() if isinstance(m, WrittenOutNorm) and m.tracks]
        rates = [torch.full((2 * len(norm.running_mean),), float(norm.momentum)) for norm in self._norms]
        self.rates = torch.cat([*rates, torch.zeros(0)]).to(self.device, dtype)
        self.statistics = len(self.rates)
        self._state = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self._convolves = any(isinstance(module, CONVOLUTIONS) for module in self.model.modules())
        self._one_by_one = self._convolves  # side by side takes longer there

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over parameters and buffers, by name."""
        with torch.no_grad():
            for name, value in state.items():
                self._state[name].copy_(value)

    def __call__(self, inputs: Tensor, labels: Tensor, directions_QP: Tensor, cotangents_QS: Tensor) -> Products:
        """Compute the products at the weights loaded last, in training mode, for the mean loss of a batch.

        Args:
            inputs: (B, ...).
            labels: (B,).
            directions_QP: a.
            cotangents_QS: of the batch's statistics.

        Raises:
            InputError: torch cannot differentiate the model twice.
        """
        self.model.train()
        work = directions_QP.numel() * len(labels)
        small = self.device.type == "cpu" and not self._convolves and work < SMALL_WORK
        with one_thread(small), torch.enable_grad(), ExitStack() as stack:
            for context in (sdpa_kernel(SDPBackend.MATH), without_fast_path(), TwiceDifferentiable()):
                stack.enter_context(context)
            try:
                pull = self._hessian(inputs, labels) if self.curvature == "hessian" else self._newton(inputs, labels)
                return Products(*self._for_each(pull, directions_QP, cotangents_QS, len(labels)))
            except (RuntimeError, NotImplementedError) as error:
                raise InputError(
                    f"Unrolling needs second derivatives, which torch has not for this model: {first_line(error)} "
                    "Replace that layer by one of elementary operations, or use TracIn or TRAK."
                ) from error

    def measure_gradients(
        self, measure: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Differentiate what is measured of each query, in evaluation mode, by parameters (Q, P) and statistics (Q, S).

        Args:
            measure: logits (1, C) and labels (1,) to (1,).
            inputs: (Q, ...).
            labels: (Q,).
        """
        self.model.eval()
        along = [*self.parameters.values()]
        running = [value for norm in self._norms for value in (norm.running_mean, norm.running_var)]
        rows = []
        for value in running:
            value.requires_grad_()
        with torch.enable_grad(), without_fast_path():
            for q in range(len(labels)):
                value = measure(logits_of(self.model(inputs[q : q + 1].to(self.dtype))), labels[q : q + 1]).sum()
                found = torch.autograd.grad(value, [*along, *running], allow_unused=True, materialize_grads=True)
                rows.append(torch.cat([part.reshape(-1) for part in found]))
        for value in running:
            value.requires_grad_(False)
        by_all = torch.stack(rows)
        return by_all[:, : self.size].contiguous(), by_all[:, self.size :].contiguous()

    # --- one batch ---

    def _hessian(self, inputs: Tensor, labels: Tensor) -> _Pull:
        logits, statistics = self._forward(inputs)
        losses_B = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
        weights_B = torch.ones_like(losses_B, requires_grad=True)
        along = [*self.parameters.values()]
        mean = (losses_B * weights_B).sum() / len(labels)
        grads = _grad([mean], along, [torch.ones_like(mean)], create_graph=True)

        def pull(direction_P: Tensor, cotangent_S: Tensor) -> tuple[Tensor, Tensor]:
            given = [*unflatten(direction_P, self.parameters).values(), cotangent_S]
            found = _grad([*grads, statistics], [*along, weights_B], given)
            return found[-1] * len(labels), flatten(found[:-1])

        return pull

    def _newton(self, inputs: Tensor, labels: Tensor) -> _Pull:
        logits, statistics = self._forward(inputs)
        p_BC = logits.detach().softmax(1)
        target_BC = F.one_hot(labels, p_BC.shape[1]).to(p_BC) * (1 - self.smoothing) + self.smoothing / p_BC.shape[1]
        along = [*self.parameters.values()]
        seed = torch.zeros_like(logits, requires_grad=True)  # J' u is linear in u: its derivative by u is J
        turned = _grad([logits], along, [seed], create_graph=True)

        def pull(direction_P: Tensor, cotangent_S: Tensor) -> tuple[Tensor, Tensor]:
            (moved_BC,) = _grad(turned, [seed], [*unflatten(direction_P, self.parameters).values()])
            back = logit_curvature(p_BC, moved_BC) / len(labels)
            pulled = _grad([logits, statistics], along, [back, cotangent_S])
            return ((p_BC - target_BC) * moved_BC).sum(1), flatten(pulled)

        return pull

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C), and the batch's statistics (S,)."""
        logits = logits_of(self.model(inputs.to(self.dtype)))
        found = [norm.batch_statistics for norm in self._norms]
        return logits, torch.cat(found) if found else logits.new_zeros(0)

    def _for_each(self, pull: _Pull, directions_QP: Tensor, cotangents_QS: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        if not self._one_by_one and len(directions_QP) > 1:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    inner_QB, pulled_QP = vmap(pull, chunk_size=self._chunk(batch))(directions_QP, cotangents_QS)
                return inner_QB.T, pulled_QP
            except (RuntimeError, NotImplementedError):  # an operation that takes one direction at a time
                self._one_by_one = True
        found = [pull(*pair) for pair in zip(directions_QP, cotangents_QS, strict=True)]
        inner_QB, pulled_QP = (torch.stack(part) for part in zip(*found, strict=True))
        return inner_QB.T, pulled_QP

    def _chunk(self, batch: int) -> int:
        """Directions side by side, by the memory that the widest layer's activations take."""
        widest = max((p.shape[0] for p in self.parameters.values()), default=1)
        layers = len(self.parameters)
        each = COPIES * self.dtype.itemsize * (batch * widest * layers + self.size)
        return max(1, MEMORY // each)


_Pull: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A direction (P,) and cotangents (S,) to inner products (B,) and the pull-back (P,)."""


def _grad(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], given: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Vector-Jacobian products, zeros where nothing depends on anything; the graph stays."""
    pairs = [(y, v) for y, v in zip(outputs, given, strict=True) if y.requires_grad and y.numel()]
    if not pairs:
        return tuple(torch.zeros_like(x) for x in inputs)
    heads, along = zip(*pairs, strict=True)
    found = torch.autograd.grad(heads, inputs, along, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))


def _written_out(model: nn.Module) -> nn.Module:
    """The model with each batch norm written out; parameters and their order stay."""
    if isinstance(model, NORMS):
        return WrittenOutNorm(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NORMS):
                setattr(parent, name, WrittenOutNorm(child))
    return model
