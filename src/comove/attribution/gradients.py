r"""G[b] = d s(f(x_b), y_b) / d theta: per-example gradients of a scalar of the model's output, chunk by chunk.

Two paths. *Closed forms*: one batched forward and one backward that asks for nothing but the gradients g of the layers'
outputs; each layer's per-example gradient then follows from g and the layer's input x (for a linear layer
sum_t g_t x_t', for a convolution one weight-gradient call with groups = batch). *Fallback*: ``torch.func``'s
``vmap(grad)``, for models with a layer that has no closed form here. Which one is taken is checked, not assumed: the
first two examples go through both, and a model whose layers are used in ways that hooks cannot see (weights read
directly, sequence-first inputs, inputs changed in place) takes the fallback and says why.

Shape legend: B examples of a chunk, N examples, Q directions, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from comove.attribution.folding import foldable
from comove.attribution.gradient_checks import check_evaluating, chosen_parameters, parameter_uses, unsupported
from comove.attribution.gradient_paths import ClosedForms, NoClosedFormError, alone, by_vmap
from comove.attribution.inner_products import InnerProducts
from comove.attribution.scalars import SCALARS, Scalar, cross_entropy, margin
from comove.errors import InputError, some

__all__ = ["Batches", "Part", "Paths", "PerExampleGradients", "Scalar", "cross_entropy", "margin"]

MEMORY, MEMORY_ON_GPU = 256 << 20, 2 << 30
"""Bytes that a chunk's gradients may take."""
BATCH = 100
"""Larger chunks gain nothing, smaller ones read the directions of inner products too often."""


class Batches(Protocol):
    """Where examples come from; :class:`comove.training.Resident` is one."""

    @property
    def labels(self) -> Tensor:
        """Their labels (N,)."""

    def __len__(self) -> int:
        """N."""

    def inputs(self, positions: slice) -> Tensor:
        """The model's inputs at these positions."""


@dataclass(frozen=True)
class Part:
    """Examples ``start`` to ``stop`` of a source, floating-point inputs cast to ``dtype`` where one is given."""

    whole: Batches
    start: int
    stop: int
    dtype: torch.dtype | None = None

    @property
    def labels(self) -> Tensor:
        """Their labels."""
        return self.whole.labels[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start

    def inputs(self, positions: slice) -> Tensor:
        """The model's inputs at these positions of the part."""
        inputs = self.whole.inputs(slice(self.start + positions.start, self.start + positions.stop))
        return inputs.to(self.dtype) if self.dtype is not None and inputs.is_floating_point() else inputs


@dataclass(frozen=True)
class Paths:
    """Which modules' gradients are computed how.

    Attributes:
        closed_form: modules by name.
        fallback: modules by name; all of them, when one of them needs it.
        reason: why the fallback is taken (empty when it is not).
    """

    closed_form: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.fallback:
            return f"torch.func fallback for {len(self.fallback)} modules: {self.reason}"
        return f"closed forms for {len(self.closed_form)} modules"


class PerExampleGradients:
    """Streams per-example gradients of a scalar of the model's output over chosen parameters.

    Args:
        model: any module without data-dependent control flow that maps inputs (B, ...) to outputs (B, C), examples
            independent of each other, in evaluation mode. It is left as it was, also when something fails.
        scalar: ``"loss"`` (cross-entropy), ``"margin"`` (z_y - logsumexp of the others), or a function of
            (outputs (B, C), labels (B,)) that returns (B,).
        parameters: names as in ``model.named_parameters()``; by default every trainable one.
        memory: bytes that a chunk's gradients may take; by default 256 MiB, 2 GiB on a GPU.
        batch: the largest chunk.

    Attributes:
        parameters: name -> parameter, in the model's order.

    Raises:
        InputError: a module in training mode or normalising over the batch; unknown or no parameters; a limit below 1.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2).eval()
        >>> stream = PerExampleGradients(model, "margin")
        >>> gradients = stream(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> gradients["weight"].shape, str(stream.paths)
        (torch.Size([4, 2, 3]), 'closed forms for 1 modules')
    """

    def __init__(
        self,
        model: nn.Module,
        scalar: Scalar = "loss",
        *,
        parameters: Collection[str] | None = None,
        memory: int | None = None,
        batch: int = BATCH,
    ) -> None:
        if isinstance(scalar, str) and scalar not in SCALARS:
            raise InputError(f"scalar must be 'loss', 'margin' or a function, got {scalar!r}.")
        self.parameters = chosen_parameters(model, parameters)
        on_gpu = any(parameter.is_cuda for parameter in self.parameters.values())
        memory = (MEMORY_ON_GPU if on_gpu else MEMORY) if memory is None else memory
        if memory < 1 or batch < 1:
            raise InputError(f"memory and batch must be at least 1, got {memory} and {batch}.")
        check_evaluating(model)
        self.model, self.memory, self.batch = model, memory, batch
        self.scalar = SCALARS[scalar] if isinstance(scalar, str) else scalar
        self._built_in = isinstance(scalar, str)
        uses = parameter_uses(model, self.parameters)
        modules = tuple(dict.fromkeys(name for places in uses.values() for name, _, _ in places))
        problems = [problem for places in uses.values() for place in places if (problem := unsupported(*place))]
        reason = f"no closed form for {some(dict.fromkeys(problems))}" if problems else ""
        self._paths = Paths(fallback=modules, reason=reason) if problems else Paths(closed_form=modules)
        self._closed = ClosedForms(model, self.parameters, uses)
        self._uses = uses
        self._bytes: int | None = None

    @property
    def paths(self) -> Paths:
        """Which modules take which path; final once the first chunk has been computed."""
        return self._paths

    @property
    def size(self) -> int:
        """The number of entries of one example's gradient."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the gradients of one chunk, name -> (B, parameter shape).

        Raises:
            InputError: labels outside the classes, outputs or scalars of another shape, unsupported control flow.
        """
        return dict(self.one_by_one(inputs, labels))

    def one_by_one(self, inputs: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, (B, parameter shape)) one parameter after another, so that one is held at a time.

        Raises:
            InputError: as calling it.
        """
        if self._bytes is None:
            self._prepare(inputs[:2], labels[:2])
        yield from self._chunk(inputs, labels)

    def stream(self, data: Batches) -> Iterator[tuple[slice, Iterator[tuple[str, Tensor]]]]:
        """Yield (positions, gradients) chunk by chunk; gradients yields (name, (B, parameter shape)).

        Nothing but one chunk is ever held; ``dict(gradients)`` has a whole chunk at once.

        Raises:
            InputError: as calling it.
        """
        for part in self._slices(data):
            yield part, self._chunk(data.inputs(part), data.labels[part])

    @property
    def chunk_size(self) -> int:
        """Examples a chunk, by the memory limit (at least 1); known once the first examples have been seen."""
        return max(1, min(self.batch, self.memory // max(1, self._bytes or 1)))

    def collect(self, data: Batches) -> dict[str, Tensor]:
        """Return all gradients, name -> (N, parameter shape): N x parameters in memory, meant for queries.

        Raises:
            InputError: as calling it.
        """
        whole = {name: p.new_empty(len(data), *p.shape).detach() for name, p in self.parameters.items()}
        for part, gradients in self.stream(data):
            for name, gradient in gradients:
                whole[name][part] = gradient
        return whole

    def inner_products(
        self, data: Batches, directions: Mapping[str, Tensor], *, squared_norms: Tensor | None = None
    ) -> Tensor:
        """Return <gradient_n, direction_q>.

        Args:
            data: N examples.
            directions: name -> (Q, parameter shape) for every parameter.
            squared_norms: (N,), to which the squared norms of the gradients are added in the same pass.

        Returns:
            (N, Q) in the parameters' precision.

        Raises:
            InputError: directions of other parameters or shapes; as calling it.
        """
        shapes = {name: tuple(matrix.shape[1:]) for name, matrix in directions.items()}
        if shapes != {name: tuple(p.shape) for name, p in self.parameters.items()}:
            raise InputError(f"directions must hold (Q, *shape) for each of {some(self.parameters)}; got {shapes}.")
        first = next(iter(directions.values()))
        products_NQ = first.new_zeros(len(data), len(first))
        parts = self._slices(data)
        # In the folded weights' coordinates fewer gradients are to be computed; norms are those of the parameters' own.
        raw = squared_norms is None and not self._paths.fallback
        sums = InnerProducts(self._closed.directions(directions) if raw else directions)
        for part in parts:
            gradients = self._chunk(data.inputs(part), data.labels[part], raw=raw)
            sums.add(products_NQ[part], gradients if squared_norms is None else _noted(gradients, squared_norms[part]))
        return products_NQ

    def squared_norms(self, data: Batches) -> Tensor:
        """Return the squared norm of each example's gradient, (N,).

        Raises:
            InputError: as calling it.
        """
        norms_N = next(iter(self.parameters.values())).detach().new_zeros(len(data))
        for part, gradients in self.stream(data):
            for _, gradient in gradients:
                norms_N[part] += _squares(gradient)
        return norms_N

    # --- the two paths ---

    def _slices(self, data: Batches) -> list[slice]:
        if self._bytes is None:
            first = slice(0, min(2, len(data)))
            self._prepare(data.inputs(first), data.labels[first])
        chunk = self.chunk_size
        return [slice(start, min(start + chunk, len(data))) for start in range(0, len(data), chunk)]

    def _chunk(self, inputs: Tensor, labels: Tensor, *, raw: bool = False) -> Iterator[tuple[str, Tensor]]:
        if self._built_in and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise InputError(
                f"Labels must be in 0 ... {self._classes - 1} (the model has {self._classes} outputs), found "
                f"{int(labels.min())} ... {int(labels.max())}."
            )
        if self._paths.fallback:
            yield from by_vmap(self.model, self.parameters, inputs, labels, self._checked_scalar).items()
        else:
            path = self._closed.raw if raw else self._closed.whole
            yield from path(inputs, labels, self._checked_scalar)

    def _checked_scalar(self, outputs: Tensor, labels: Tensor) -> Tensor:
        values = self.scalar(outputs, labels)
        if values.shape != labels.shape:
            raise InputError(f"scalar must return one value an example, {tuple(labels.shape)}; got {values.shape}.")
        return values

    def _prepare(self, inputs: Tensor, labels: Tensor) -> None:
        """Check outputs and the fast path against the fallback on one or two examples; measure bytes an example."""
        with torch.no_grad():
            outputs = self.model(inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(f"The model must map ({len(inputs)}, ...) inputs to outputs (B, C), got {found}.")
        self._classes = outputs.shape[1]
        self._bytes = self.size * next(iter(self.parameters.values())).element_size()
        if self._paths.fallback:
            return
        pairs = foldable(self.model, inputs)
        problem = ""
        for kept in (pairs, ()) if pairs else ((),):  # what detection missed is computed unfolded
            self._closed = ClosedForms(self.model, self.parameters, self._uses, kept)
            problem = self._problem(inputs, labels)
            if not problem:
                return
        self._paths = Paths(fallback=self._paths.closed_form, reason=problem)

    def _problem(self, inputs: Tensor, labels: Tensor) -> str:
        """Why closed forms do not hold for this model, by a well-conditioned scalar that sees every output."""

        def probe(outputs: Tensor, labels: Tensor) -> Tensor:
            return outputs @ torch.linspace(1, 2, outputs.shape[1], dtype=outputs.dtype, device=outputs.device)

        try:
            ours = dict(self._closed.whole(inputs, labels, probe))
        except NoClosedFormError as error:
            return str(error)
        truth = alone(self.model, self.parameters, inputs[:1], labels[:1], probe)
        tolerance = 1e-6 if inputs.dtype == torch.float64 else 1e-2
        wrong = [
            name for name, true in truth.items() if not (ours[name][0] - true).norm() <= tolerance * true.norm() + 1e-30
        ]
        return f"{some(wrong)} used otherwise than by calling the layer on (B, ...) inputs" if wrong else ""


def _noted(gradients: Iterator[tuple[str, Tensor]], norms_B: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same gradients, whose squared norms are added to ``norms_B`` as they pass."""
    for name, gradient in gradients:
        norms_B += _squares(gradient)
        yield name, gradient


def _squares(gradient: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return norms.square_()
