r"""G[b] = d s(f(x_b), y_b) / d theta: per-example gradients of a scalar of the model's output, chunk by chunk.

Two paths. *Closed forms*: one batched forward and one backward that asks for nothing but the gradients g of the layers'
outputs; each layer's per-example gradient then follows from g and the layer's input x (for a linear layer
sum_t g_t x_t', for a convolution one weight-gradient call with groups = batch). *Fallback*: ``torch.func``'s
``vmap(grad)``, for models with a layer that has no closed form here. Which one is taken is checked, not assumed: the
first two examples go through both, and a model whose layers are used in ways that hooks cannot see (weights read
directly, sequence-first inputs, inputs changed in place) takes the fallback and says why.

Shape legend: B examples of a chunk, N examples, Q directions, P entries of one parameter, C classes, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from comove.attribution.closed_forms import BATCH_NORMS, RULES
from comove.errors import InputError, did_you_mean, some

__all__ = ["Batches", "Part", "Paths", "PerExampleGradients", "Scalar", "cross_entropy", "margin"]

Scalar: TypeAlias = Literal["loss", "margin"] | Callable[[Tensor, Tensor], Tensor]
"""``"loss"``, ``"margin"``, or a function of logits (B, C) and labels (B,) that returns (B,)."""

MEMORY = 256 << 20
"""Bytes that a chunk's gradients and activations may take."""
BATCH = 100
"""Chunks beyond this gain nothing, and their gradients leave the caches."""
SMALL = 2048
"""Parameters of fewer entries are multiplied together: their products are too small to keep a processor busy."""


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


# --- scalars -----------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)[label] (B,) of logits (B, C) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return z_y - logsumexp(other z) (B,), the logit of the correct probability (Park et al., ICML 2023, eq. 8)."""
    target = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    own = torch.where(target, logits, 0).sum(1)
    return own - torch.where(target, -torch.inf, logits).logsumexp(1)


SCALARS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"loss": cross_entropy, "margin": margin}


# --- the stream --------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    x: Tensor
    version: int
    edge: GradientEdge


CONTROL_FLOW = (
    "Per-example gradients need a model without data-dependent control flow (an if or a loop on a tensor's values, "
    ".item(), in-place writes into tensors that have no batch). Write that step with torch.where, or choose parameters "
    "of other layers (parameters=)."
)
PEEKS = (
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.item,
    Tensor.tolist,
    Tensor.nonzero,
)


class _NoPeeking(TorchFunctionMode):
    """Refuses code that looks at the values of tensors other than the model's own."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PEEKS and id(args[0]) not in self.known:
            raise InputError(f"{CONTROL_FLOW} The model's forward pass calls Tensor.{func.__name__}.")
        return func(*args, **(kwargs or {}))


class _NoClosedFormError(Exception):
    """The hooks met something that the closed forms do not cover."""


class PerExampleGradients:
    """Streams per-example gradients of a scalar of the model's output over chosen parameters.

    Args:
        model: any module without data-dependent control flow that maps inputs (B, ...) to outputs (B, C), examples
            independent of each other, in evaluation mode. It is left as it was, also when something fails.
        scalar: ``"loss"`` (cross-entropy), ``"margin"`` (z_y - logsumexp of the others), or a function of
            (outputs (B, C), labels (B,)) that returns (B,).
        parameters: names as in ``model.named_parameters()``; by default every trainable one.
        memory: bytes that a chunk's gradients and activations may take; sets the chunk size.
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
        memory: int = MEMORY,
        batch: int = BATCH,
    ) -> None:
        if isinstance(scalar, str) and scalar not in SCALARS:
            raise InputError(f"scalar must be 'loss', 'margin' or a function, got {scalar!r}.")
        if memory < 1 or batch < 1:
            raise InputError(f"memory and batch must be at least 1, got {memory} and {batch}.")
        _check_evaluating(model)
        self.model, self.memory, self.batch = model, memory, batch
        self.scalar = SCALARS[scalar] if isinstance(scalar, str) else scalar
        self._built_in = isinstance(scalar, str)
        self.parameters = _chosen(model, parameters)
        self._uses = _uses(model, self.parameters)
        modules = tuple(dict.fromkeys(name for uses in self._uses.values() for name, _, _ in uses))
        unsupported = [problem for uses in self._uses.values() for use in uses if (problem := _unsupported(*use))]
        reason = f"no closed form for {some(dict.fromkeys(unsupported))}" if unsupported else ""
        self._paths = Paths(fallback=modules, reason=reason) if unsupported else Paths(closed_form=modules)
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
        if self._built_in and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise InputError(
                f"Labels must be in 0 ... {self._classes - 1} (the model has {self._classes} outputs), found "
                f"{int(labels.min())} ... {int(labels.max())}."
            )
        if self._paths.fallback:
            yield from self._by_vmap(inputs, labels, self._checked_scalar).items()
        else:
            yield from self._by_hooks(inputs, labels, self._checked_scalar)

    def stream(self, data: Batches) -> Iterator[tuple[slice, Iterator[tuple[str, Tensor]]]]:
        """Yield (positions, gradients) chunk by chunk; gradients yields (name, (B, parameter shape)).

        Nothing but one chunk is ever held; ``dict(gradients)`` has a whole chunk at once.

        Raises:
            InputError: as calling it.
        """
        if self._bytes is None:
            first = slice(0, min(2, len(data)))
            self._prepare(data.inputs(first), data.labels[first])
        chunk = self.chunk_size
        for start in range(0, len(data), chunk):
            part = slice(start, min(start + chunk, len(data)))
            yield part, self.one_by_one(data.inputs(part), data.labels[part])

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

        One matrix product a parameter, accumulated in place: no flat vector is ever made (these are six times slower).

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
        large = {name: matrix.flatten(1) for name, matrix in directions.items() if matrix[0].numel() >= SMALL}
        small = [matrix.flatten(1) for name, matrix in directions.items() if name not in large]
        add = {name: _accumulator(matrix_QP) for name, matrix_QP in large.items()}
        add_small = _accumulator(torch.cat(small, 1)) if small else None
        for part, gradients in self.stream(data):
            kept = []
            for name, gradient in gradients:
                if name in add:
                    add[name](products_NQ[part], gradient.flatten(1))
                else:
                    kept.append(gradient.flatten(1))
                if squared_norms is not None:
                    squared_norms[part] += _squares(gradient)
            if add_small is not None:
                add_small(products_NQ[part], torch.cat(kept, 1))
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
        problem = self._problem(inputs, labels)
        if problem:
            modules = self._paths.closed_form
            self._paths = Paths(fallback=modules, reason=problem)

    def _problem(self, inputs: Tensor, labels: Tensor) -> str:
        """Why closed forms do not hold for this model, by a well-conditioned scalar that sees every output."""

        def probe(outputs: Tensor, labels: Tensor) -> Tensor:
            return outputs @ torch.linspace(1, 2, outputs.shape[1], dtype=outputs.dtype, device=outputs.device)

        try:
            ours = dict(self._by_hooks(inputs, labels, probe))
        except _NoClosedFormError as error:
            return str(error)
        truth = self._alone(inputs[:1], labels[:1], probe)
        tolerance = 1e-6 if inputs.dtype == torch.float64 else 1e-2
        wrong = [
            name for name, true in truth.items() if not (ours[name][0] - true).norm() <= tolerance * true.norm() + 1e-30
        ]
        return f"{some(wrong)} used otherwise than by calling the layer on (B, ...) inputs" if wrong else ""

    def _alone(self, inputs: Tensor, labels: Tensor, scalar: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        """One example's gradients by plain autograd; a forward pass that looks at tensors' values is refused."""
        own = {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}
        known = {id(tensor) for tensor in (*own.values(), *self.model.parameters(), *self.model.buffers())}
        with torch.enable_grad():
            with _NoPeeking(known):
                outputs = functional_call(self.model, own, (inputs,))
            total = scalar(outputs, labels).sum()
            if not total.requires_grad:
                return {name: torch.zeros_like(parameter) for name, parameter in own.items()}
            found = torch.autograd.grad(total, list(own.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(own, found, strict=True))

    def _by_hooks(
        self, inputs: Tensor, labels: Tensor, scalar: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        seen = self._backward(inputs, labels, scalar)
        for name, uses in self._uses.items():
            summed: Tensor | None = None
            for _, module, kind in uses:
                for call, g in seen.get(id(module), ()):
                    with torch.no_grad():
                        term = RULES[type(module)][kind](module, call.x, g)
                        summed = term if summed is None else summed + term
            parameter = self.parameters[name]
            yield name, parameter.new_zeros(len(inputs), *parameter.shape).detach() if summed is None else summed

    def _backward(
        self, inputs: Tensor, labels: Tensor, scalar: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[int, list[tuple[_Call, Tensor]]]:
        """Each module's calls with the gradients of their outputs, by the module's identity."""
        calls: list[_Call] = []
        modules = {id(module): module for uses in self._uses.values() for _, module, _ in uses}
        with ExitStack() as stack, torch.enable_grad():
            for module in modules.values():
                handle = module.register_forward_hook(partial(_record, calls), with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(_affine_batch_norms(self.model))
            total = scalar(self.model(inputs), labels).sum()
            edges = [call.edge for call in calls]
            gradients = torch.autograd.grad(total, edges, allow_unused=True) if edges and total.requires_grad else ()
        seen: dict[int, list[tuple[_Call, Tensor]]] = {}
        for call, g in zip(calls, gradients, strict=bool(gradients)):
            if len(call.x) != len(inputs) or call.x._version != call.version:
                what = "changed in place" if len(call.x) == len(inputs) else f"{tuple(call.x.shape)}, not (B, ...)"
                raise _NoClosedFormError(f"the input of a {type(call.module).__name__} is {what}")
            if g is not None:
                seen.setdefault(id(call.module), []).append((call, g))
        return seen

    def _by_vmap(self, inputs: Tensor, labels: Tensor, scalar: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        fixed = {name: value.detach() for name, value in (*self.model.named_parameters(), *self.model.named_buffers())}

        def single(chosen: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(self.model, {**fixed, **chosen}, (x[None],))
            return scalar(outputs, y[None])[0]

        chosen = {name: parameter.detach() for name, parameter in self.parameters.items()}
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no batching rule
                found: dict[str, Tensor] = vmap(grad(single), (None, 0, 0))(chosen, inputs, labels)
        except RuntimeError as error:
            raise InputError(f"{CONTROL_FLOW} torch.func says: {error}") from error
        return found


def _squares(gradient: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return norms.square_()


def _accumulator(matrix_QP: Tensor) -> Callable[[Tensor, Tensor], object]:
    """A function that adds flat (B, P) times matrix' to a (B, Q) sum."""
    rows, columns = matrix_QP.shape
    if rows >= 16 and columns >= SMALL and _has_packed(matrix_QP):
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix_QP.contiguous(), BATCH)
        multiply = torch.ops.mkldnn._linear_pointwise
        return lambda sum_BQ, flat_BP: sum_BQ.add_(multiply(flat_BP, packed, None, "none", [], ""))
    return lambda sum_BQ, flat_BP: sum_BQ.addmm_(flat_BP, matrix_QP.mT)


def _has_packed(matrix: Tensor) -> bool:
    """Whether oneDNN multiplies by it prepacked, up to twice as fast as MKL on processors not Intel's.

    torch makes no promise of these operators, which its own compiler uses: they are asked for, never assumed.
    """
    present = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return present and matrix.device.type == "cpu" and matrix.dtype == torch.float32


def _check_evaluating(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if module.training:
            raise InputError(
                f"Per-example gradients need the model in evaluation mode, {where} is in training mode: dropout would "
                "draw and batch norm would mix examples. Call model.eval() first."
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{where} keeps no running statistics and mixes the examples of a batch, so it has no per-example "
                "gradients. Build it with track_running_stats=True, or use LayerNorm or GroupNorm."
            )


def _chosen(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    known = dict(model.named_parameters())
    if names is None:
        chosen = {name: parameter for name, parameter in known.items() if parameter.requires_grad}
    else:
        for name in names:
            if name not in known:
                raise InputError(f"The model has no parameter {name!r}.{did_you_mean(name, known)}")
        chosen = {name: parameter for name, parameter in known.items() if name in set(names)}
    if not chosen:
        raise InputError("There are no parameters to take gradients of: all are frozen, or parameters= is empty.")
    return chosen


def _uses(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> dict[str, list[tuple[str, nn.Module, str]]]:
    """Where each parameter is held: (module name, module, the parameter's name there); several when it is shared."""
    names = {id(parameter): name for name, parameter in chosen.items()}
    uses: dict[str, list[tuple[str, nn.Module, str]]] = {name: [] for name in chosen}
    for path, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if id(parameter) in names:
                uses[names[id(parameter)]].append((path, module, kind))
    return uses


def _unsupported(path: str, module: nn.Module, kind: str) -> str:
    """The module, when its gradients have no closed form here; else nothing."""
    plain = kind in RULES.get(type(module), ())
    if plain and isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return "" if plain else f"{path or 'the model'} ({type(module).__name__})"


def _record(
    calls: list[_Call], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Tensor | None:
    x = args[0] if args else next(iter(kwargs.values()))
    x = x.detach()
    # The edge is that of the output as the layer made it, whatever is done to the tensor in place afterwards.
    if output.requires_grad:
        calls.append(_Call(module, x, x._version, get_gradient_edge(output)))
        return None
    output.requires_grad_()  # nothing before it is trainable
    calls.append(_Call(module, x, x._version, get_gradient_edge(output)))
    return output.clone()  # a leaf may not be written to in place, its copy may


@contextmanager
def _affine_batch_norms(model: nn.Module) -> Iterator[None]:
    """In evaluation mode batch norm is x * scale + shift, whose backward is four times faster than batch norm's."""
    changed = [module for module in model.modules() if type(module) in BATCH_NORMS and "forward" not in vars(module)]
    try:
        for module in changed:
            vars(module)["forward"] = partial(_affine, module)
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def _affine(layer: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(layer.running_var + layer.eps)
    if layer.weight is not None:
        scale = scale * layer.weight.detach()
    shift = -layer.running_mean * scale if layer.bias is None else layer.bias.detach() - layer.running_mean * scale
    shape = (-1, *(1,) * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))
