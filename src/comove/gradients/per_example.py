r"""G[b] = d s(f(x_b), y_b) / d theta: per-example gradients of a scalar of the model's output, chunk by chunk.

Three ways. *Per-sample rules*: one batched forward and one backward that asks for nothing but the gradients g of the
layers' outputs; each layer's per-example gradient then follows from g and the layer's input x (for a linear layer
sum_t g_t x_t', for a convolution one weight-gradient call with groups = batch). *torch.func*: ``vmap(grad)``. *One
example at a time*: plain autograd, which always holds. Which one is taken is checked, not assumed: several examples,
in another order and batch size than the run's, go through a faster way and through plain autograd, and where that
differs, or is refused in a later chunk, the next way takes over and :class:`Paths` says why.

Shape legend: B examples of a chunk, N examples, Q directions, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from comove.data.batches import Batch, batch_size, concatenate, map_tensors, rows_of, tensors_of
from comove.errors import ComoveError, InputError, NonFiniteError, first_line, some
from comove.gradients.batch_norm_folding import Pair, foldable
from comove.gradients.forward_checks import (
    ForwardPass,
    check_deterministic,
    check_evaluating,
    chosen_parameters,
    parameter_uses,
    unsupported,
)
from comove.gradients.inner_products import InnerProducts, flat_rows
from comove.gradients.paths import PerSampleRules, RefusedPathError, by_vmap, one_at_a_time
from comove.gradients.scalars import Objective, Scalar, Values, cross_entropy, flat_outputs, margin, stack_flat
from comove.models import without_fast_path
from comove.tasks import Classification, Task, targets_of

__all__ = [
    "Batches",
    "Part",
    "PerExampleGradients",
    "Scalar",
    "check_finite",
    "cross_entropy",
    "margin",
    "mask_of",
]

MEMORY, MEMORY_ON_GPU = 256 << 20, 2 << 30
"""Bytes that a chunk's gradients may take."""
BATCH = 100
"""Larger chunks gain nothing, smaller ones read the directions of inner products too often."""
CHECKED = 8
"""Examples on which a faster way is compared with plain autograd, where their gradients fit into memory."""

MASK = "attention_mask"
"""What transformers call the entry of a batch that says which positions count."""
LOOKED_AT = 512
"""Examples among which the shortest and the longest are looked for."""

Way: TypeAlias = Literal["per-sample rules", "torch.func", "one example at a time"]
WAYS: tuple[Way, ...] = ("per-sample rules", "torch.func", "one example at a time")
_Chunk: TypeAlias = Iterator[tuple[str, Tensor]]


class Batches(Protocol):
    """Where examples come from; :class:`comove.training.Resident` is one."""

    def __len__(self) -> int:
        """N."""

    def batch(self, positions: slice) -> Batch:
        """The examples at these positions, as the task reads them."""


def ids_of(data: Batches, rows: Sequence[int]) -> list[int]:
    """Return the ids of the examples at ``rows`` where the source knows them, else the rows."""
    if isinstance(data, Part):
        return ids_of(data.whole, [data.start + row for row in rows])
    examples = getattr(data, "examples", None)
    return list(rows) if examples is None else examples.ids[list(rows)].tolist()


@dataclass(frozen=True)
class Part:
    """Examples ``start`` to ``stop`` of a source, floating-point inputs cast to ``dtype`` where one is given."""

    whole: Batches
    start: int
    stop: int
    dtype: torch.dtype | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def batch(self, positions: slice) -> Batch:
        """The examples at these positions of the part."""
        found = self.whole.batch(slice(self.start + positions.start, self.start + positions.stop))
        if self.dtype is None:
            return found
        return map_tensors(lambda part: part.to(self.dtype) if part.is_floating_point() else part, found)


@dataclass(frozen=True)
class _Given:
    """A chunk that was handed over as it is."""

    examples: Batch

    def __len__(self) -> int:
        return batch_size(self.examples)

    def batch(self, positions: slice) -> Batch:
        return rows_of(self.examples, positions)


@dataclass(frozen=True)
class Paths:
    """How gradients are computed.

    Attributes:
        way: ``"per-sample rules"``, ``"torch.func"``, or ``"one example at a time"`` (plain autograd).
        modules: names of the modules that hold the parameters.
        refused: the faster ways that do not hold for this model, and why.
    """

    way: Way
    modules: tuple[str, ...]
    refused: tuple[tuple[Way, str], ...] = ()

    @property
    def reason(self) -> str:
        """Why the faster ways were not taken (empty when there are none)."""
        return "; ".join(f"not by {way}: {why}" for way, why in self.refused)

    def __str__(self) -> str:
        name = "autograd, one example at a time," if self.way == WAYS[-1] else self.way
        reason = f" ({self.reason})" if self.refused else ""
        return f"{name} for {len(self.modules)} modules{reason}"


class PerExampleGradients:
    """Streams per-example gradients of a scalar of the model's output over chosen parameters.

    Args:
        model: any module that treats the examples of a batch independently of each other, in evaluation mode. It is
            left as it was, also when something fails.
        scalar: ``"loss"``, ``"measure"`` (what the task measures; ``"margin"`` is the same), or a function of outputs
            and labels (B,) that returns (B,).
        task: what batches and outputs mean; by default classification, with batches (inputs, labels).
        parameters: names as in ``model.named_parameters()``, or glob patterns such as ``"head.*"``; by default every
            trainable one.
        memory: bytes that a chunk's gradients may take; by default 256 MiB, 2 GiB on a GPU.
        batch: the largest chunk.
        check_on: the examples among which those are that the faster ways are checked on, best the training examples;
            by default those of the first call.

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
        (torch.Size([4, 2, 3]), 'per-sample rules for 1 modules')
    """

    def __init__(
        self,
        model: nn.Module,
        scalar: Scalar = "loss",
        *,
        task: Task | None = None,
        parameters: str | Collection[str] | None = None,
        memory: int | None = None,
        batch: int = BATCH,
        check_on: Batches | None = None,
    ) -> None:
        self.objective = Objective(task or Classification(), scalar)
        self.parameters = chosen_parameters(model, parameters)
        on_gpu = any(parameter.is_cuda for parameter in self.parameters.values())
        memory = (MEMORY_ON_GPU if on_gpu else MEMORY) if memory is None else memory
        if memory < 1 or batch < 1:
            raise InputError(f"memory and batch must be at least 1, got {memory} and {batch}.")
        check_evaluating(model)
        self.model, self.memory, self.batch = model, memory, batch
        self._built_in = isinstance(scalar, str) and self.objective.classifies
        self._check_on = check_on
        self._uses = parameter_uses(model, self.parameters)
        modules = tuple(dict.fromkeys(name for places in self._uses.values() for name, _, _ in places))
        self._paths = Paths(WAYS[0], modules)
        self._rules = PerSampleRules(model, self.parameters, self._uses)
        self._classes = 0
        self._checked = False
        self.batches_matter = False
        """Whether an example's outputs depend on the batch it is in; known once the first chunk has been computed."""
        self.reads_values = False
        """Whether the forward pass reads values of its inputs, so that other batches may be treated otherwise."""
        problems = [problem for places in self._uses.values() for place in places if (problem := unsupported(*place))]
        if problems:
            self._refuse(f"no per-sample rule for {some(dict.fromkeys(problems))}")

    @property
    def paths(self) -> Paths:
        """How gradients are computed; known once the first chunk has been, and said anew where a later one differs."""
        return self._paths

    @property
    def folded(self) -> tuple[Pair, ...]:
        """The batch norms computed as one with the layer before them; known once the first chunk has been computed."""
        return self._rules.pairs if self._paths.way == WAYS[0] else ()

    @property
    def size(self) -> int:
        """The number of entries of one example's gradient."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def __call__(self, batch: Batch, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the gradients of one chunk, name -> (B, parameter shape).

        Args:
            batch: as the task reads it; or the inputs (B, ...) of a classifier, with their labels.
            labels: (B,).

        Raises:
            InputError: labels outside the classes, outputs or scalars of another shape; a model that draws random
                numbers, or has no backward pass.
            NonFiniteError: a gradient is NaN or infinite.
        """
        examples = batch if labels is None else (batch, labels)
        found = dict(self.one_by_one(examples))
        check_finite(found, _Given(examples))
        return found

    def one_by_one(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, (B, parameter shape)) one parameter after another, so that one is held at a time.

        Raises:
            InputError: as calling it.
        """
        self.check(_Given(batch))
        yield from self._chunk(batch)

    def stream(self, data: Batches) -> Iterator[tuple[slice, Iterator[tuple[str, Tensor]]]]:
        """Yield (positions, gradients) chunk by chunk; gradients yields (name, (B, parameter shape)).

        Nothing but one chunk is ever held; ``dict(gradients)`` has a whole chunk at once.

        Raises:
            InputError: as calling it.
        """
        for part in self._slices(data):
            yield part, self._chunk(data.batch(part))

    @property
    def chunk_size(self) -> int:
        """Examples per chunk, by the memory limit (at least 1)."""
        return max(1, min(self.batch, self.memory // max(1, self._bytes)))

    def collect(self, data: Batches) -> dict[str, Tensor]:
        """Return all gradients, name -> (N, parameter shape): N x parameters in memory, meant for queries.

        Raises:
            InputError: as calling it.
            NonFiniteError: a gradient is NaN or infinite; its example's id is named.
        """
        whole = {name: p.new_empty(len(data), *p.shape).detach() for name, p in self.parameters.items()}
        for part, gradients in self.stream(data):
            for name, gradient in gradients:
                whole[name][part] = gradient
        check_finite(whole, data)
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
            NonFiniteError: a gradient is NaN or infinite; its example's id is named.
        """
        for name, matrix in directions.items():
            if not bool(torch.isfinite(flat_rows(matrix).sum(1)).all()):
                raise NonFiniteError(
                    f"What gradients are multiplied with, such as a query's gradient or what was solved from it, is "
                    f"NaN or infinite in {name!r}: check the losses, or use a model of a wider dtype or more damping."
                )
        shapes = {name: tuple(matrix.shape[1:]) for name, matrix in directions.items()}
        if shapes != {name: tuple(p.shape) for name, p in self.parameters.items()}:
            raise InputError(f"directions must hold (Q, *shape) for each of {some(self.parameters)}; got {shapes}.")
        first, sums = next(iter(directions.values())), InnerProducts(directions)
        products_NQ = first.new_zeros(len(data), len(first))
        for part, gradients in self.stream(data):
            noted = gradients if squared_norms is None else _noted(gradients, squared_norms[part])
            sums.add(products_NQ[part], noted)
        check_finite({"gradient": products_NQ}, data)
        return products_NQ

    def squared_norms(self, data: Batches) -> Tensor:
        """Return the squared norm of each example's gradient, (N,).

        Raises:
            InputError: as calling it.
            NonFiniteError: a gradient is NaN or infinite; its example's id is named.
        """
        norms_N = next(iter(self.parameters.values())).detach().new_zeros(len(data))
        for part, gradients in self.stream(data):
            for _, gradient in gradients:
                norms_N[part] += _squares(gradient)
        check_finite({"gradient": norms_N}, data)
        return norms_N

    def layer_calls(
        self, batch: Batch, values: Values
    ) -> Iterator[tuple[slice, dict[nn.Module, list[tuple[Tensor, Tensor]]]]]:
        """Yield (rows of a chunk, layer -> [(input, gradient of its output)] of its calls).

        All examples come together where hooks see them row by row (:attr:`paths`), else one after another; the rows of
        one example's inputs are then all its own.

        Args:
            batch: a chunk of data that was checked (:meth:`check`).
            values: what is differentiated, of outputs and batch, (B,).

        Raises:
            InputError: a layer is used in a way that hooks cannot see.
        """
        rules = PerSampleRules(self.model, self.parameters, self._uses)
        rules.check_rows, size = self._rules.check_rows, batch_size(batch)
        self._check_labels(batch)
        if self._paths.way == WAYS[0]:
            try:
                with _as_refusal():
                    found = rules.layer_calls(batch, self.objective, values)
                yield slice(0, size), found
                return
            except RefusedPathError as refusal:
                self._refuse(str(refusal))
        for row in (slice(row, row + 1) for row in range(size)):
            try:
                with _as_refusal():
                    found = rules.layer_calls(rows_of(batch, row), self.objective, values)
            except RefusedPathError as refusal:
                raise InputError(f"The inputs of the model's layers cannot be observed: {refusal}.") from refusal
            yield row, found

    def evaluate(self, batch: Batch, function: Values) -> Tensor:
        """Return ``function(outputs, batch)`` (B, ...), detached, of the outputs that the gradients are of."""
        size = batch_size(batch)
        rows = [rows_of(batch, slice(row, row + 1)) for row in range(size)] if self.batches_matter else [batch]
        with torch.no_grad(), without_fast_path():
            return stack_flat(
                [function(self.objective.outputs(self.model, row), row).reshape(batch_size(row), -1) for row in rows]
            )

    def _close(self, one: Tensor, other: Tensor) -> bool:
        """Whether outputs of two batches are the same; they differ by less rounding than gradients do."""
        if one.shape != other.shape:
            return False
        tolerance = _tolerance(one, self.objective.task.precision) / 10
        scale = torch.maximum(one.abs().amax(), other.abs().amax()) + 1e-30
        return bool(((one - other).abs() <= tolerance * scale).all())

    def _flat(self, batch: Batch) -> Tensor:
        return self.evaluate(batch, lambda outputs, _: flat_outputs(outputs))

    # --- the three ways ---

    @property
    def _bytes(self) -> int:
        return self.size * next(iter(self.parameters.values())).element_size()

    def _slices(self, data: Batches) -> list[slice]:
        self.check(data)
        chunk = self.chunk_size
        return [slice(start, min(start + chunk, len(data))) for start in range(0, len(data), chunk)]

    def _chunk(self, batch: Batch) -> _Chunk:
        """The gradients of a chunk; where a way is refused on the way, the next one gives what is missing."""
        self._check_labels(batch)
        given: set[str] = set()
        while True:
            try:
                for name, gradient in self._by(self._paths.way, batch, self._checked_values):
                    if name not in given:
                        given.add(name)
                        yield name, gradient
                return
            except RefusedPathError as refusal:
                self._refuse(str(refusal))

    def _by(self, way: Way, batch: Batch, values: Values) -> _Chunk:
        """The gradients of a chunk by one of the ways.

        Raises:
            RefusedPathError: it does not hold; of the last way an :class:`InputError` says so.
        """
        if way == WAYS[0]:
            with _as_refusal():
                yield from self._rules.gradients(batch, self.objective, values)
        elif way == WAYS[1]:
            yield from by_vmap(self.model, self.parameters, batch, self.objective, values).items()
        else:
            yield from self._one_at_a_time(batch, values)[0].items()

    def _one_at_a_time(self, batch: Batch, values: Values) -> tuple[dict[str, Tensor], Tensor]:
        try:
            return one_at_a_time(self.model, self.parameters, batch, self.objective, values)
        except ComoveError:
            raise
        except Exception as error:
            raise InputError(
                f"The model has no gradient, not even of one example by plain autograd. {type(error).__name__}: "
                f"{first_line(error)} Check that loss.backward() runs on a batch of one in evaluation mode."
            ) from error

    def _check_labels(self, batch: Batch) -> None:
        labels = targets_of(batch) if self._built_in else None
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise InputError(
                f"Labels must be in 0 ... {self._classes - 1} (the model has {self._classes} outputs), found "
                f"{int(labels.min())} ... {int(labels.max())}."
            )

    def _checked_values(self, outputs: Any, batch: Batch) -> Tensor:
        values, size = self.objective.values(outputs, batch), batch_size(batch)
        if not isinstance(values, Tensor) or values.shape != (size,):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"scalar must return one value per example, ({size},); got {found}.")
        return values

    def _refuse(self, reason: str) -> None:
        """Go on with the next way."""
        refused = self._paths.way
        following = WAYS[WAYS.index(refused) + 1]
        self._paths = replace(self._paths, way=following, refused=(*self._paths.refused, (refused, reason)))

    # --- the check ---

    def check(self, data: Batches) -> None:
        """Find the fastest way that gives what plain autograd gives, unless that is done; the first call does it.

        Raises:
            InputError: as calling it.
            NonFiniteError: a gradient is NaN or infinite.
        """
        if self._checked:
            return
        data = data if self._check_on is None else self._check_on
        rows = self._rows_to_check(data)
        batch = concatenate([data.batch(slice(row, row + 1)) for row in rows])
        with without_fast_path():
            watch = self._check_outputs(batch)
        truth, outputs = self._one_at_a_time(batch, _probe)
        check_finite(truth, data, rows)
        self.reads_values = bool(watch.reads)
        self.batches_matter = not self._close(self._flat(batch), outputs) or self._mixes(data)
        self._rules.check_rows = bool(watch.reorders)
        why = ""
        if watch.reads:
            why = f"the forward pass reads values that depend on its inputs ({some(sorted(watch.reads))})"
        elif self.batches_matter:
            why = "an example's outputs depend on the batch it is in"
        while self._paths.way != WAYS[-1]:
            problem = why or self._problem(self._paths.way, batch, truth)
            if not problem:
                break
            self._refuse(problem)
        self._checked = True

    def _rows_to_check(self, data: Batches) -> list[int]:
        """Positions spread over the data, in an order of their own; at least two, one of them twice if need be.

        Of padded batches the shortest and the longest example are among them.
        """
        size = len(data)
        if size < 1:
            raise InputError("There are no examples to take gradients of.")
        count = max(2, min(CHECKED, self.memory // (4 * self._bytes)))
        rows = torch.linspace(0, size - 1, min(count, max(2, size))).round().long()
        mask = mask_of(data.batch(slice(0, min(size, LOOKED_AT))))
        if mask is not None and count > 3:
            lengths = mask.flatten(1).sum(1)
            rows[1], rows[2] = int(lengths.argmin()), int(lengths.argmax())
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))].tolist()

    def _mixes(self, data: Batches) -> bool:
        """Whether outputs of a full chunk differ from those of its parts: what happens in large batches alone."""
        count = min(self.chunk_size, len(data))
        if count <= CHECKED:
            return False
        batch = rows_of(data.batch(slice(0, count)), torch.arange(count - 1, -1, -1))
        return not self._close(self._flat(batch), self._outputs_of_parts(batch, CHECKED))

    def _outputs_of_parts(self, batch: Batch, size: int) -> Tensor:
        starts = range(0, batch_size(batch), size)
        return stack_flat([self._flat(rows_of(batch, slice(at, at + size))) for at in starts])

    def same_alone(self, batch: Batch) -> bool:
        """Whether a batch's outputs are those of its examples one by one."""
        return self._close(self._flat(batch), self._outputs_of_parts(batch, 1))

    def _check_outputs(self, batch: Batch) -> ForwardPass:
        """Check the outputs' shape and that they are not drawn at random; return what the forward pass does."""
        size = batch_size(batch)
        outputs = check_deterministic(self.model, lambda: self.objective.outputs(self.model, batch))
        for part in tensors_of(outputs):
            if part.ndim < 1 or len(part) != size or (self.objective.classifies and part.ndim != 2):
                found = tuple(part.shape)
                raise InputError(f"The model must map ({size}, ...) inputs to outputs (B, C), got {found}.")
        self._classes = flat_outputs(outputs).shape[1]
        # Which positions a mask leaves out is what it is for: models may read it, and both kinds of rows are checked.
        watch = ForwardPass({n: v for n, v in batch.items() if n != MASK} if isinstance(batch, Mapping) else batch)
        with torch.no_grad(), watch:
            self.objective.outputs(self.model, batch)
        return watch

    def _problem(self, way: Way, batch: Batch, truth: Mapping[str, Tensor]) -> str:
        """Why a way does not hold for this model; nothing where it gives what plain autograd gave."""
        if way == WAYS[1]:
            return self._difference(way, batch, truth)
        with without_fast_path():
            pairs = foldable(self.model, lambda: self.objective.outputs(self.model, batch))
        check_rows, problem = self._rules.check_rows, ""
        for kept in (pairs, ()) if pairs else ((),):  # what detection missed is computed unfolded
            self._rules = PerSampleRules(self.model, self.parameters, self._uses, kept)
            self._rules.check_rows = check_rows
            # All of them, and a part of them the other way round: what holds must not depend on the batch.
            some_rows = torch.arange(batch_size(batch) - 1, -1, -2)
            part = {name: true[some_rows.to(true.device)] for name, true in truth.items()}
            problem = self._difference(way, batch, truth) or self._difference(way, rows_of(batch, some_rows), part)
            if not problem:
                break
        return problem

    def _difference(self, way: Way, batch: Batch, truth: Mapping[str, Tensor]) -> str:
        try:
            ours = dict(self._by(way, batch, _probe))
        except RefusedPathError as refusal:
            return str(refusal)
        tolerance = _tolerance(next(iter(truth.values())), self.objective.task.precision)
        whole_B = sum(_squares(true) for true in truth.values())
        assert isinstance(whole_B, Tensor)
        # Of a parameter whose gradient vanishes, such as a bias of attention's keys, only rounding is left.
        least_B = 1e-2 * whole_B.sqrt() + 1e-30
        wrong = [
            name
            for name, true in truth.items()
            if not bool(
                (_squares(ours[name] - true).sqrt() <= tolerance * torch.maximum(_squares(true).sqrt(), least_B)).all()
            )
        ]
        return f"other gradients of {some(wrong)} than one example at a time gives" if wrong else ""


def mask_of(batch: Batch) -> Tensor | None:
    """Return which positions of a batch of transformers count, (B, T), where it says so."""
    found = batch.get(MASK) if isinstance(batch, Mapping) else None
    return found if isinstance(found, Tensor) and found.ndim > 1 else None


def _probe(outputs: Any, batch: Batch) -> Tensor:
    """A well-conditioned scalar that sees every output, (B,)."""
    flat = flat_outputs(outputs)
    return flat @ torch.linspace(1, 2, flat.shape[1], dtype=flat.dtype, device=flat.device)


def _tolerance(values: Tensor, precision: torch.dtype | None) -> float:
    """How far two ways may be apart by rounding alone; a GPU's float32 may be TensorFloat-32."""
    single = 1e-3 if values.device.type == "cpu" else 1e-2
    kind = values.dtype if precision is None or values.dtype == torch.float64 else precision
    return {torch.float64: 1e-6, torch.float32: single}.get(kind, 1e-1)


@contextmanager
def _as_refusal() -> Iterator[None]:
    """Turn what goes wrong within the block into a refusal, except for errors that are meant for users."""
    try:
        yield
    except (ComoveError, RefusedPathError):
        raise
    except Exception as error:  # whatever a layer's hooks or rules meet in a model that they were not made for
        raise RefusedPathError(f"{type(error).__name__}: {first_line(error)}") from error


def check_finite(found: Mapping[str, Tensor], data: Batches, rows: Sequence[int] | None = None) -> None:
    """Refuse gradients that are NaN or infinite.

    Args:
        found: what -> (N, ...) of each example.
        data: the examples.
        rows: where the N stand among them, if they are not all.

    Raises:
        NonFiniteError: naming the examples' ids.
    """
    for name, gradient_N in found.items():
        bad = (~torch.isfinite(flat_rows(gradient_N).sum(1))).nonzero()[:, 0]
        if len(bad):
            places = [int(row) if rows is None else rows[int(row)] for row in bad]
            raise NonFiniteError(
                f"The gradients of {len(places)} examples are NaN or infinite ({name}), of ids "
                f"{some(ids_of(data, places))}. Look at these inputs; else the run diverged (use an earlier "
                "checkpoint, or a smaller learning rate), or the model has no derivative there (a square root at 0)."
            )


def _noted(gradients: _Chunk, norms_B: Tensor) -> _Chunk:
    """The same gradients, whose squared norms are added to ``norms_B`` as they pass."""
    for name, gradient in gradients:
        norms_B += _squares(gradient)
        yield name, gradient


def _squares(gradient: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(flat_rows(gradient), dim=1)
    return norms.square_()
