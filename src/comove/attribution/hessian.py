r"""H v = d/dr grad L(theta + r v) at r = 0, L the mean loss over a fixed batch: exact products with its Hessian.

Two ways (Pearlmutter, 1994). The *R-operator*: forward and backward pass kept once, a product pushes the direction
forwards and pulls it backwards through them layer by layer (:mod:`comove.attribution.r_operator`). *Autograd*: the
gradient's graph is built once, and each product is one backward pass through it; for dense networks, which take several
directions at once, and for models with a step that the R-operator has no rule for. Which one is taken is checked, not
assumed: a product over two examples is computed both ways first.

Shape legend: P parameter entries, K vectors, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from comove.attribution.double_backward import TwiceDifferentiable
from comove.attribution.folded_kernels import Kernels, NoRuleError
from comove.attribution.gradients import Batches, PerExampleGradients
from comove.attribution.r_operator import Tape
from comove.attribution.recording import record
from comove.errors import InputError, NonFiniteError

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


def flatten(parts: Collection[Tensor]) -> Tensor:
    """Return the entries (P,) of tensors shaped like the parameters."""
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(vectors: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return flat vectors (..., P) as name -> (..., *parameter.shape), views where possible."""
    sizes = [parameter.numel() for parameter in parameters.values()]
    pieces = zip(parameters.items(), torch.split(vectors, sizes, dim=-1), strict=True)
    return {name: piece.reshape(*vectors.shape[:-1], *parameter.shape) for (name, parameter), piece in pieces}


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
        InputError: a module in training mode, or a limit below 1.

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
        layers = [module for module in gradients.model.modules() if not any(module.children())]
        self._batched = all(isinstance(layer, BATCHED) for layer in layers)
        reason = "a dense network" if self._batched else self._refusal()
        self.path = f"autograd: {reason}" if reason else "R-operator"
        each = self._bytes_an_example(not reason)
        limit = CHUNK if self._parameters[0].device.type == "cpu" else len(data)
        count = max(1, min(limit, memory // each))
        self._chunks = [slice(start, min(start + count, len(data))) for start in range(0, len(data), count)]
        keep = len(data) * each <= memory
        self._kept = [self._graph(part) for part in self._chunks] if keep and reason else None
        self._taped = [self._tapes(self._chunks)] if keep and not reason else None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return H v of a flat vector (P,), or of several (K, P).

        Raises:
            NonFiniteError: a product is NaN or infinite.
        """
        if vectors.ndim == 2 and not self._batched:
            return torch.stack([self(vector) for vector in vectors])
        total = self._by_tapes(vectors) if self.path == "R-operator" else self._by_graphs(vectors)
        if not torch.isfinite(total).all():
            raise NonFiniteError("A Hessian-vector product is NaN or infinite: check the checkpoint and its losses.")
        return total

    def _refusal(self) -> str:
        """Why the R-operator does not do for this model, seen from a scalar that is well-conditioned; else nothing."""
        first = slice(0, min(2, len(self._data)))

        def probe(outputs: Tensor, labels: Tensor) -> Tensor:
            weights = torch.linspace(1, 2, outputs[0].numel(), dtype=outputs.dtype, device=outputs.device)
            return outputs.flatten(1).square() @ weights

        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(self.size, generator=generator).to(self._parameters[0])
        try:
            ours = self._along(*self._tapes([first], probe), direction)
        except NoRuleError as error:
            return str(error)
        with torch.enable_grad():  # one scalar: torch loads sympy, for seconds, when it is handed vectors
            along = flatten(self._graph(first, probe)) @ direction
        true = torch.zeros_like(direction)
        if along.requires_grad:
            true = flatten(torch.autograd.grad(along, self._parameters, allow_unused=True, materialize_grads=True))
        difference = torch.linalg.vector_norm(ours - true)
        tolerance = 1e-6 if direction.dtype == torch.float64 else 1e-2
        fits = bool(difference <= tolerance * torch.linalg.vector_norm(true))
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
        with _threads(1 if small else torch.get_num_threads()):
            for grads in self._kept if self._kept is not None else map(self._graph, self._chunks):
                total += self._product(grads, directions, vectors.ndim == 2)
        return total

    def _product(self, grads: tuple[Tensor, ...], directions: list[Tensor], batched: bool) -> Tensor:
        pairs = [(g, v) for g, v in zip(grads, directions, strict=True) if g.requires_grad]
        if not pairs:  # a loss linear in the parameters
            return torch.zeros_like(torch.cat([v.flatten(int(batched)) for v in directions], -1))
        found = torch.autograd.grad(
            [g for g, _ in pairs],
            self._parameters,
            [v for _, v in pairs],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
        filled = [torch.zeros_like(v) if h is None else h for h, v in zip(found, directions, strict=True)]
        return torch.cat([h.flatten(int(batched)) for h in filled], -1)

    def _graph(self, part: slice, scalar: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """The gradient of the chunk's share of the mean loss, with its graph."""
        inputs, total = self._inputs(part), self._total(part, scalar)
        with torch.enable_grad(), TwiceDifferentiable():
            found = torch.autograd.grad(
                total(self._gradients.model(inputs)), self._parameters, create_graph=True, allow_unused=True
            )
        return tuple(
            p.detach().new_zeros(p.shape) if g is None else g for p, g in zip(self._parameters, found, strict=True)
        )

    # --- both ---

    def _inputs(self, part: slice) -> Tensor:
        inputs = self._data.inputs(part)
        if inputs.ndim == 4 and inputs.is_floating_point():
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


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
