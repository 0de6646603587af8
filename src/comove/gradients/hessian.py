r"""H v = d/dr grad L(theta + r v) at r = 0, L the mean loss over a fixed batch: exact Hessian-vector products.

The gradient is computed once, with its graph, and a product is one backward pass through that graph (double backward:
H is symmetric, so v' H is H v). Several vectors go through it together (``vmap``), unless the model has convolutions,
which then take longer than one vector at a time. What torch computes is checked, not assumed: a product over a few
examples must be that of a symmetric matrix.

Shape legend: P parameter entries, K vectors, N examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comove.data.batches import Batch, map_tensors
from comove.errors import InputError, NonFiniteError, first_line
from comove.gradients.batch_norm_folding import folded
from comove.gradients.double_backward import TwiceDifferentiable
from comove.gradients.per_example import Batches, PerExampleGradients
from comove.gradients.scalars import Values, flat_outputs
from comove.models import without_fast_path
from comove.training.loop import one_thread

__all__ = ["Hessian", "flatten", "unflatten"]

MEMORY = 1 << 30
"""Bytes of graphs kept between products; beyond this they are built again for each product, chunk by chunk."""
CHUNK = 128
"""Examples per graph on a CPU; fewer spend more of the time on calls, more leave the caches."""
SMALL_WORK = 100_000_000
"""Examples times entries of the vectors below which a product without convolutions runs on one thread, as training
does: sharing out its tiny operations costs more than it saves."""
CHECKED = 4
"""Examples over which a product is checked."""
ROUNDED = 1e-2
"""How far a product may be off, relative to its size, in float32 or where the forward pass casts to less."""
CONVOLUTIONS = nn.modules.conv._ConvNd
"""Layers that are slower for several vectors at once: 1.5 times, with eight vectors on ResNet-9."""


def flatten(parts: Collection[Tensor]) -> Tensor:
    """Return the entries (P,) of tensors shaped like the parameters."""
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(vectors: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return flat vectors (..., P) as name -> (..., parameter shape), views where possible."""
    sizes = [parameter.numel() for parameter in parameters.values()]
    pieces = zip(parameters.items(), torch.split(vectors, sizes, dim=-1), strict=True)
    return {name: piece.reshape((*vectors.shape[:-1], *parameter.shape)) for (name, parameter), piece in pieces}


class Hessian:
    """The Hessian of the mean of a scalar of the model's output over fixed examples, as an operator on flat vectors.

    Args:
        gradients: of the model, scalar and parameters meant.
        data: N examples.
        memory: bytes of graphs kept between products.

    Attributes:
        size: P.

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
        alone = gradients.batches_matter or not self._checked_batches()
        self._few = slice(0, 1 if alone else min(CHECKED, len(data)))
        self._check_symmetric()
        each = self._bytes_per_example()
        limit = CHUNK if self._parameters[0].device.type == "cpu" else len(data)
        count = 1 if alone else max(1, min(limit, memory // each))
        self._chunks = [slice(start, min(start + count, len(data))) for start in range(0, len(data), count)]
        self._kept = [self._graph(part) for part in self._chunks] if len(data) * each <= memory else None
        self._at_once = max(1, memory // (count * each))
        self._convolves = any(isinstance(module, CONVOLUTIONS) for module in gradients.model.modules())
        self._one_by_one = "the model has convolutions" if self._convolves else ""

    @property
    def path(self) -> str:
        """How products are computed, and why."""
        many = f"one vector at a time ({self._one_by_one})" if self._one_by_one else "several vectors at once"
        return f"double backward, {many}"

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return H v of a flat vector (P,), or of several (K, P).

        Raises:
            NonFiniteError: a product is NaN or infinite.
        """
        total = torch.zeros_like(vectors)
        work = vectors.numel() * len(self._data)
        with one_thread(vectors.device.type == "cpu" and not self._convolves and work < SMALL_WORK):
            for grads in self._kept if self._kept is not None else map(self._graph, self._chunks):
                total += self._products(grads, vectors)
        if not torch.isfinite(total).all():
            self._gradients.squared_norms(self._data)  # an error that names the examples, where theirs are the reason
            raise NonFiniteError("A Hessian-vector product is NaN or infinite: check the checkpoint and its losses.")
        return total

    def _checked_batches(self) -> bool:
        """Whether batches may be formed: outputs are compared where the forward pass reads values of its inputs."""
        starts = range(0, len(self._data), CHUNK) if self._gradients.reads_values else ()
        parts = (slice(start, min(start + CHUNK, len(self._data))) for start in starts)
        return all(self._gradients.same_alone(self._batch(part)) for part in parts)

    def _probe(self, outputs: Any, batch: Batch) -> Tensor:
        """A scalar whose Hessian is well-conditioned and sees every output."""
        flat = flat_outputs(outputs)
        return flat.square() @ torch.linspace(1, 2, flat.shape[1], dtype=flat.dtype, device=flat.device)

    def _direction(self) -> Tensor:
        """A direction in which every parameter moves as far as any other."""
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randn(p.shape, generator=generator).to(p.detach()) for p in self._parameters]
        return flatten([part / torch.linalg.vector_norm(part) for part in parts])

    def _check_symmetric(self) -> None:
        """Compare u'Hv with v'Hu over a few examples, and see that torch can differentiate the model twice.

        Raises:
            InputError: it cannot, or the two differ.
        """
        direction, grads = self._direction(), self._graph(self._few, self._probe)
        found = self._product(grads, direction)
        norm = torch.linalg.vector_norm(found)
        if not (norm > 0 and torch.isfinite(norm)):
            return
        # With u = Hv / |Hv| the two sides are as large as they can be.
        back = self._product(grads, found / norm) @ direction
        exact = self._parameters[0].dtype == torch.float64 and not self._computes_in_less()
        if (back - norm).abs() <= (1e-6 if exact else ROUNDED) * norm:
            return
        suspects = [
            name for name, module in self._gradients.model.named_modules() if hasattr(module, "parametrizations")
        ]
        where = f" Look at the parametrised {', '.join(suspects[:4])}." if suspects else ""
        raise InputError(
            f"The Hessian that torch computes for this model is not symmetric (u'Hv is {float(norm):.6g}, v'Hu "
            f"{float(back):.6g}): the second derivative of one of its operations is wrong.{where} Write that "
            "operation out in elementary ones, or use a method without second derivatives (TRAK, TracIn)."
        )

    def _computes_in_less(self) -> bool:
        """Whether the forward pass casts to a precision below that of the parameters."""
        watch = _Precisions()
        with torch.no_grad(), watch, self._differentiable():
            self._gradients.objective.outputs(self._gradients.model, self._batch(self._few))
        eps = torch.finfo(self._parameters[0].dtype).eps
        return any(torch.finfo(dtype).eps > eps for dtype in watch.seen)

    # --- double backward ---

    def _products(self, grads: tuple[Tensor, ...], vectors: Tensor) -> Tensor:
        """The products (P,) or (K, P) of a chunk, from its gradient's graph."""
        if vectors.ndim == 1:
            return self._product(grads, vectors)
        if not self._one_by_one and len(vectors):
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # true, and nothing to do about
                    return vmap(lambda vector: self._product(grads, vector), chunk_size=self._at_once)(vectors)
            except InputError:
                self._one_by_one = "an operation takes no more"
        return torch.stack([self._product(grads, vector) for vector in vectors]) if len(vectors) else vectors.clone()

    def _product(self, grads: tuple[Tensor, ...], vector: Tensor) -> Tensor:
        directions = unflatten(vector, self._gradients.parameters).values()
        pairs = [(g, v) for g, v in zip(grads, directions, strict=True) if g.requires_grad]
        if not pairs:  # a loss linear in the parameters
            return torch.zeros_like(vector)
        outputs, along = zip(*pairs, strict=True)
        try:
            found = torch.autograd.grad(outputs, self._parameters, along, retain_graph=True, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise _no_second_derivative(error) from error
        return flatten([torch.zeros_like(p) if h is None else h for h, p in zip(found, self._parameters, strict=True)])

    def _graph(self, part: slice, values: Values | None = None) -> tuple[Tensor, ...]:
        """The gradient of the chunk's share of the mean loss, with its graph."""
        objective, batch = self._gradients.objective, self._batch(part)
        meant = values or objective.values
        try:
            with torch.enable_grad(), self._differentiable(), folded(self._gradients.folded), TwiceDifferentiable():
                value = meant(objective.outputs(self._gradients.model, batch), batch).sum() / len(self._data)
                found = (
                    torch.autograd.grad(value, self._parameters, create_graph=True, allow_unused=True)
                    if value.requires_grad
                    else [None] * len(self._parameters)
                )
        except (RuntimeError, NotImplementedError) as error:
            raise _no_second_derivative(error) from error
        return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(self._parameters, found, strict=True))

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Keep to kernels that have a second derivative: not fused attention, not cuDNN's recurrent layers."""
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(without_fast_path())
            if any(isinstance(module, nn.RNNBase) for module in self._gradients.model.modules()):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield

    def _batch(self, part: slice) -> Batch:
        def innermost(tensor: Tensor) -> Tensor:
            image = tensor.ndim == 4 and tensor.is_floating_point()
            return tensor.contiguous(memory_format=torch.channels_last) if image else tensor  # convolutions' fastest

        return map_tensors(innermost, self._data.batch(part))

    def _bytes_per_example(self) -> int:
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


def _no_second_derivative(error: Exception) -> InputError:
    return InputError(
        f"Influence by the Hessian needs second derivatives, which torch has not for this model: {first_line(error)} "
        "Replace that layer by one of elementary operations (gradient checkpointing: switch it off, or "
        "use_reentrant=False), or use a method without second derivatives (TRAK, TracIn, Grad-Dot)."
    )
