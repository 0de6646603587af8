r"""H v = d/dr grad L(theta + r v) at r = 0, L the mean loss over a fixed batch: exact products with its Hessian.

Two ways (Pearlmutter, 1994). The *R-operator*: forward and backward pass kept once, a product pushes the direction
forwards and pulls it backwards through them layer by layer (:mod:`comove.gradients.r_operator`). *Autograd*: the
gradient's graph is built once, and each product is one backward pass through it; for dense networks, which take several
directions at once, and for models with a step that the R-operator has no rule for. Which one is taken is checked, not
assumed: a product over a few examples is computed both ways first, and must be that of a symmetric matrix.

Shape legend: P parameter entries, K vectors, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comove.errors import InputError, NonFiniteError, first_line
from comove.gradients.double_backward import TwiceDifferentiable
from comove.gradients.folded_kernels import Kernels, NoRuleError
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import Batches, PerExampleGradients
from comove.gradients.r_operator import Tape
from comove.gradients.recording import record
from comove.jobs.base import torch_threads
from comove.models import logits_of, without_fast_path

__all__ = ["Hessian", "flatten", "unflatten"]

MEMORY = 1 << 30
"""Bytes kept between products; beyond this passes or graphs are built again for each product, chunk by chunk."""
CHUNK = 128
"""Examples a pass or graph on a CPU; fewer spend more of the time on calls, more leave the caches."""
SMALL_WORK = 100_000_000
"""Examples times parameters times vectors below which a dense network's product runs on one thread, as training does:
sharing out its tiny operations costs more than it saves."""
BATCHED = (nn.Linear, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Flatten, nn.Identity, nn.Dropout, nn.LayerNorm)
"""Models of these layers alone take several vectors at once: their products are too small to keep a processor busy."""
CHECKED = 4
"""Examples over which a product is checked."""
ROUNDED = 1e-2
"""How far a product may be off, relative to its size, in float32 or where the forward pass casts to less."""


def flatten(parts: Collection[Tensor]) -> Tensor:
    """Return the entries (P,) of tensors shaped like the parameters."""
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(vectors: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return flat vectors (..., P) as name -> (..., *parameter.shape), views where possible."""
    sizes = [parameter.numel() for parameter in parameters.values()]
    pieces = zip(parameters.items(), torch.split(vectors, sizes, dim=-1), strict=True)
    return {name: piece.reshape((*vectors.shape[:-1], *parameter.shape)) for (name, parameter), piece in pieces}


class Hessian:
    """The Hessian of the mean of a scalar of the model's output over fixed examples, as an operator on flat vectors.

    Args:
        gradients: of the model, scalar and parameters meant.
        data: N examples.
        memory: bytes kept between products: passes, or graphs.

    Attributes:
        size: P.
        path: how products are computed, and why.

    Raises:
        InputError: a module in training mode, or a limit below 1; a model that torch cannot differentiate twice, or
            does wrongly, which shows in a matrix that is not symmetric.

    Example:
        >>> gradients = PerExampleGradients(nn.Linear(3, 2).eval())
        >>> from comove.data import ExampleSet
        >>> from comove.training import Resident
        >>> data = Resident(ExampleSet.from_arrays(torch.eye(3), [0, 1, 0]), torch.device("cpu"))
        >>> Hessian(gradients, data)(torch.ones(8)).abs().max() < 1e-6  # adding 1 to every logit changes nothing
        tensor(True)
    """

    def __init__(self, gradients: PerExampleGradients, data: Batches, *, memory: int = MEMORY) -> None:
        if memory < 1:
            raise InputError(f"memory must be at least 1 byte, got {memory}.")
        if any(module.training for module in gradients.model.modules()):
            raise InputError("A Hessian needs the model in evaluation mode. Call model.eval() first.")
        self._gradients, self._data = gradients, data
        self._parameters = list(gradients.parameters.values())
        self.size = gradients.size
        gradients.check(data)
        layers = [module for module in gradients.model.modules() if not any(module.children())]
        self._batched = all(isinstance(layer, BATCHED) for layer in layers)
        alone = gradients.batches_matter or not self._checked_batches()
        self._few = slice(0, 1 if alone else min(CHECKED, len(data)))
        by_graph = self._checked_product()
        reason = "a dense network" if self._batched else self._refusal(by_graph)
        self.path = f"autograd: {reason}" if reason else "R-operator"
        each = self._bytes_an_example(not reason)
        limit = CHUNK if self._parameters[0].device.type == "cpu" else len(data)
        count = 1 if alone else max(1, min(limit, memory // each))
        self._chunks = [slice(start, min(start + count, len(data))) for start in range(0, len(data), count)]
        keep = len(data) * each <= memory
        self._kept = [self._graph(part) for part in self._chunks] if keep and reason else None
        self._taped = [self._tapes(self._chunks)] if keep and not reason else None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return H v of a flat vector (P,), or of several (K, P).

        Raises:
            NonFiniteError: a product is NaN or infinite.
        """
        if vectors.ndim == 2 and self._batched:
            try:
                total = self._by_graphs(vectors)
            except InputError:  # an operation between the layers takes one direction at a time
                self._batched = False
        if vectors.ndim == 2 and not self._batched:
            return torch.stack([self(vector) for vector in vectors]) if len(vectors) else vectors.clone()
        if vectors.ndim == 1:
            total = self._by_tapes(vectors) if self.path == "R-operator" else self._by_graphs(vectors)
        if not torch.isfinite(total).all():
            self._gradients.squared_norms(self._data)  # an error that names the examples, where theirs are the reason
            raise NonFiniteError("A Hessian-vector product is NaN or infinite: check the checkpoint and its losses.")
        return total

    def _checked_batches(self) -> bool:
        """Whether batches may be formed: outputs are compared where the forward pass reads values of its inputs."""
        starts = range(0, len(self._data), CHUNK) if self._gradients.reads_values else ()
        parts = (slice(start, min(start + CHUNK, len(self._data))) for start in starts)
        return all(self._gradients.same_alone(self._inputs(part)) for part in parts)

    def _probe(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """A scalar whose Hessian is well-conditioned and sees every output."""
        weights = torch.linspace(1, 2, outputs[0].numel(), dtype=outputs.dtype, device=outputs.device)
        return outputs.flatten(1).square() @ weights

    def _direction(self) -> Tensor:
        """A direction in which every parameter moves as far as any other."""
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randn(p.shape, generator=generator).to(p.detach()) for p in self._parameters]
        return flatten([part / torch.linalg.vector_norm(part) for part in parts])

    def _checked_product(self) -> Tensor:
        """The product of autograd over a few examples with a direction, after a look at what autograd does.

        Raises:
            InputError: the matrix is not symmetric.
        """
        direction, grads = self._direction(), self._graph(self._few, self._probe)

        def product(vector: Tensor) -> Tensor:
            return self._product(grads, list(unflatten(vector, self._gradients.parameters).values()), False)

        found = product(direction)
        norm = torch.linalg.vector_norm(found)
        if norm > 0 and torch.isfinite(norm):
            # With u = Hv / |Hv| the two sides of u'Hv = v'Hu are as large as they can be.
            back = product(found / norm) @ direction
            tolerance = self._tolerance
            if tolerance < ROUNDED and self._computes_in_less():
                tolerance = ROUNDED
            if not bool((back - norm).abs() <= tolerance * norm):
                suspects = [
                    name
                    for name, module in self._gradients.model.named_modules()
                    if hasattr(module, "parametrizations")
                ]
                where = f" Look at the parametrised {', '.join(suspects[:4])}." if suspects else ""
                raise InputError(
                    f"The Hessian that torch computes for this model is not symmetric (u'Hv is {float(norm):.6g}, v'Hu "
                    f"{float(back):.6g}): the second derivative of one of its operations is wrong.{where} Write that "
                    "operation out in elementary ones, or use a method without second derivatives (TRAK, TracIn)."
                )
        return found

    @property
    def _tolerance(self) -> float:
        return 1e-6 if self._parameters[0].dtype == torch.float64 else ROUNDED

    def _computes_in_less(self) -> bool:
        """Whether the forward pass casts to a precision below that of the parameters."""
        watch = _Precisions()
        with torch.no_grad(), watch, self._differentiable():
            self._gradients.model(self._inputs(self._few))
        eps = torch.finfo(self._parameters[0].dtype).eps
        return any(torch.finfo(dtype).eps > eps for dtype in watch.seen)

    def _refusal(self, true: Tensor) -> str:
        """Why the R-operator does not do for this model, seen from the product of autograd; else nothing."""
        try:
            ours = self._along(*self._tapes([self._few], self._probe), self._direction())
        except NoRuleError as error:
            return str(error)
        except Exception as error:  # whatever a model's own code meets while it is recorded
            return f"the R-operator cannot follow the forward pass ({type(error).__name__})"
        difference = torch.linalg.vector_norm(ours - true)
        fits = bool(difference <= self._tolerance * torch.linalg.vector_norm(true))
        return "" if fits else "the R-operator gives another product for this model"

    # --- the R-operator ---

    def _by_tapes(self, vector: Tensor) -> Tensor:
        groups = self._taped if self._taped is not None else (self._tapes([part]) for part in self._chunks)
        total = torch.zeros_like(vector)
        for kernels, tapes in groups:
            total += self._along(kernels, tapes, vector)
        return total

    def _along(self, kernels: Kernels, tapes: list[Tape], vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        directions, into = (
            dict(zip(map(id, self._parameters), unflatten(flat, self._gradients.parameters).values(), strict=True))
            for flat in (vector, total)
        )
        with torch.no_grad():
            kernels.aim(directions)
            for tape in tapes:
                tape.add()
            kernels.found(directions, into)
        return total

    def _tapes(
        self, parts: list[slice], scalar: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Kernels, list[Tape]]:
        kernels = Kernels(self._gradients.model)
        return kernels, [
            record(self._gradients.model, self._inputs(part), self._total(part, scalar), kernels) for part in parts
        ]

    # --- autograd ---

    def _by_graphs(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        directions = list(unflatten(vectors, self._gradients.parameters).values())
        small = self._batched and vectors.device.type == "cpu" and len(self._data) * vectors.numel() < SMALL_WORK
        with torch_threads(1 if small else torch.get_num_threads()):
            for grads in self._kept if self._kept is not None else map(self._graph, self._chunks):
                total += self._product(grads, directions, vectors.ndim == 2)
        return total

    def _product(self, grads: tuple[Tensor, ...], directions: list[Tensor], batched: bool) -> Tensor:
        pairs = [(g, v) for g, v in zip(grads, directions, strict=True) if g.requires_grad]
        if not pairs:  # a loss linear in the parameters
            return torch.zeros_like(_joined(directions, batched))
        try:
            found = torch.autograd.grad(
                [g for g, _ in pairs],
                self._parameters,
                [v for _, v in pairs],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        except (RuntimeError, NotImplementedError) as error:
            raise _no_second_derivative(error) from error
        filled = [torch.zeros_like(v) if h is None else h for h, v in zip(found, directions, strict=True)]
        return _joined(filled, batched)

    def _graph(self, part: slice, scalar: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """The gradient of the chunk's share of the mean loss, with its graph."""
        inputs, total = self._inputs(part), self._total(part, scalar)
        try:
            with torch.enable_grad(), self._differentiable(), TwiceDifferentiable():
                value = total(logits_of(self._gradients.model(inputs)))
                found = (
                    torch.autograd.grad(value, self._parameters, create_graph=True, allow_unused=True)
                    if value.requires_grad
                    else [None] * len(self._parameters)
                )
        except (RuntimeError, NotImplementedError) as error:
            raise _no_second_derivative(error) from error
        return tuple(
            p.detach().new_zeros(p.shape) if g is None else g for p, g in zip(self._parameters, found, strict=True)
        )

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Keep to kernels that have a second derivative: not fused attention, not cuDNN's recurrent layers."""
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(without_fast_path())
            if any(isinstance(module, nn.RNNBase) for module in self._gradients.model.modules()):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield

    # --- both ---

    def _inputs(self, part: slice) -> Tensor:
        inputs = self._data.inputs(part)
        if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point():
            inputs = inputs.contiguous(memory_format=torch.channels_last)  # convolutions run fastest on this
        return inputs

    def _total(self, part: slice, scalar: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
        meant, labels = scalar or self._gradients.scalar, self._data.labels[part]
        return lambda outputs: meant(outputs, labels).sum() / len(self._data)

    def _bytes_an_example(self, taped: bool) -> int:
        if taped:
            first = slice(0, min(2, len(self._data)))
            return max(1, sum(tape.nbytes for tape in self._tapes([first])[1]) // first.stop)
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output that a node holds on to would otherwise keep the node alive

        sizes = []
        for count in (1, 2):  # the difference leaves out what does not grow with the batch
            seen.clear()
            with saved_tensors_hooks(note, lambda tensor: tensor):
                held = self._graph(slice(0, min(count, len(self._data))))
            sizes.append(sum(seen.values()))
            del held
        return max(1, sizes[1] - sizes[0])


class _Precisions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for these classes
    """Notes the floating-point types that operations give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.seen |= {leaf.dtype for leaf in leaves if leaf.is_floating_point()}
        return made


def _joined(parts: Collection[Tensor], batched: bool) -> Tensor:
    """Flat vectors (P,), or (K, P) of parts that are batched."""
    return torch.cat([flat_rows(part) if batched else part.reshape(-1) for part in parts], -1)


def _no_second_derivative(error: Exception) -> InputError:
    return InputError(
        f"Influence by the Hessian needs second derivatives, which torch has not for this model: {first_line(error)} "
        "Replace that layer by one of elementary operations (gradient checkpointing: switch it off, or "
        "use_reentrant=False), or use a method without second derivatives (TRAK, TracIn, Grad-Dot)."
    )
