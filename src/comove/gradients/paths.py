"""G[b] = d s(f(x_b), y_b) / d theta for one chunk: by per-sample rules, by ``torch.func``, or one example at a time.

*Per-sample rules*: one batched forward and one backward that asks for nothing but the gradients g of the layers'
outputs; each layer's per-example gradient then follows from g and the layer's input, which hooks keep. Where batch norm
is folded into the layer before it, the gradients of its parameters follow from those of the folded weights W' and b'.

Shape legend: B examples of a chunk, C output channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from comove.data.batches import Batch, batch_size, map_tensors, rows_of, tensors_of
from comove.errors import InputError, first_line
from comove.gradients.batch_norm_folding import Pair, folded, scale_and_shift
from comove.gradients.forward_checks import Uses, expandable
from comove.gradients.per_sample_rules import BATCH_NORMS, rules_of
from comove.gradients.scalars import Objective, Values, flat_outputs, stack_flat
from comove.models import without_fast_path
from comove.tasks import TaskForward

__all__ = ["PerSampleRules", "RefusedPathError", "by_vmap", "one_at_a_time"]


class RefusedPathError(Exception):
    """A way of computing gradients does not hold for the model; the message says why."""


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    x: Tensor
    version: int
    edge: GradientEdge


REDUCED = (torch.bfloat16, torch.float16)
"""Types that autocast computes in."""
_Seen: TypeAlias = dict[int, list[tuple[_Call, Tensor]]]
"""Each module's calls with the gradients of their outputs, by the module's identity."""


@dataclass(frozen=True)
class _Fold:
    """A pair whose parameters are asked for under these names, by what they are to the pair ("layer_weight", ...)."""

    pair: Pair
    names: Mapping[str, str]

    def _folded_weights(self, seen: _Seen, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of W' (B, ...) and of b' (B, C), each where a parameter that is asked for depends on it."""
        layer, calls = self.pair.layer, seen.get(id(self.pair.layer))
        weight: Tensor = layer.weight.detach()

        def gradient(kind: str, shape: torch.Size) -> Tensor:
            if not calls:
                return weight.new_zeros(batch, *shape)
            ((call, g),) = calls
            return rules_of(layer)[kind](layer, call.x, g)

        dweight = gradient("weight", weight.shape) if "layer_weight" in self.names else None
        dbias = gradient("bias", weight.shape[:1]) if set(self.names) != {"layer_weight"} else None
        return dweight, dbias

    def gradients(self, seen: _Seen, batch: int) -> dict[str, Tensor]:
        """The gradients (B, ...) of the parameters by name."""
        (dweight, dbias), found = self._folded_weights(seen, batch), {}
        if dbias is not None:
            if dweight is not None and "norm_weight" in self.names:
                found["norm_weight"] = self.pair.norm_weight(dweight, dbias)
            found["layer_bias"], found["norm_bias"] = self.pair.layer_bias(dbias), self.pair.norm_bias(dbias)
        if dweight is not None:
            found["layer_weight"] = self.pair.layer_weight(dweight, out=dweight)
        return {name: found[what] for what, name in self.names.items()}


def _fold(pair: Pair, uses: Uses) -> _Fold | None:
    """How a pair's parameters are asked for; nothing where folding would not help: shared ones, gamma without W."""
    names: dict[str, str] = {}
    for name, places in uses.items():
        for _, module, kind in places:
            if module is pair.layer or module is pair.norm:
                if len(places) > 1:
                    return None
                names[f"{'layer' if module is pair.layer else 'norm'}_{kind}"] = name
    return None if "norm_weight" in names and "layer_weight" not in names else _Fold(pair, names)


class PerSampleRules:
    """Per-example gradients of chunks, of a model whose parameters all have a rule.

    Args:
        model: in evaluation mode.
        parameters: name -> parameter.
        uses: where they are held.
        pairs: what may be folded.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], uses: Uses, pairs: Collection[Pair] = ()
    ) -> None:
        self._model, self._parameters, self._uses = model, parameters, uses
        self._folds = [fold for pair in pairs if (fold := _fold(pair, uses)) is not None]
        self._expanded = {
            name: (places[0][1], places[0][2])
            for name, places in uses.items()
            if len(places) == 1 and expandable(places[0][1], places[0][2])
        }
        self._of = {name: fold for fold in self._folds for name in fold.names.values()}
        self.check_rows = False
        """Whether each chunk is checked for layers that see the examples in another order than the batch's."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Those that are folded."""
        return tuple(fold.pair for fold in self._folds)

    def gradients(self, batch: Batch, objective: Objective, values: Values) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, (B, *parameter.shape)) in the parameters' order.

        Raises:
            RefusedPathError: a layer is used in a way that hooks cannot see.
        """
        (seen, copies), size = self._backward(batch, objective, values), batch_size(batch)
        waiting: dict[str, Tensor] = {}
        for name in self._uses:
            fold = self._of.get(name)
            if name in copies:
                yield name, copies[name]
                continue
            if fold is None:
                yield name, self._plain(name, seen, size)
                continue
            if name not in waiting:
                with torch.no_grad():
                    waiting |= fold.gradients(seen, size)
            yield name, waiting.pop(name)

    def layer_calls(
        self, batch: Batch, objective: Objective, values: Values
    ) -> dict[nn.Module, list[tuple[Tensor, Tensor]]]:
        """Return by layer, for each of its calls, its input and the gradient of its output, as the layer has them.

        Their rows are the batch's examples; of a batch of one they may be anything, positions say, all of this example.
        Layers that the values do not depend on are not in it.

        Raises:
            RefusedPathError: a layer is used in a way that hooks cannot see.
        """
        seen, _ = self._backward(batch, objective, values, alone=batch_size(batch) == 1)
        return {calls[0][0].module: [(call.x, g) for call, g in calls] for calls in seen.values()}

    def _plain(self, name: str, seen: _Seen, batch: int) -> Tensor:
        summed: Tensor | None = None
        for _, module, kind in self._uses[name]:
            for call, g in seen.get(id(module), ()):
                with torch.no_grad():
                    term = rules_of(module)[kind](module, call.x, g)
                    summed = term if summed is None else summed + term
        parameter = self._parameters[name]
        return parameter.new_zeros(batch, *parameter.shape).detach() if summed is None else summed

    def _modules(self) -> dict[int, nn.Module]:
        found = [
            self._of[name].pair.layer if name in self._of else module
            for name, places in self._uses.items()
            for _, module, _ in places
            if name not in self._expanded
        ]
        return {id(module): module for module in found}

    def _backward(
        self, batch: Batch, objective: Objective, values: Values, *, alone: bool = False
    ) -> tuple[_Seen, dict[str, Tensor]]:
        calls: list[_Call] = []
        size = batch_size(batch)
        with ExitStack() as stack, torch.enable_grad(), without_fast_path():
            for module in self._modules().values():
                handle = module.register_forward_hook(partial(_record, calls, size), with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(folded([fold.pair for fold in self._folds]))
            stack.enter_context(_affine_batch_norms(self._model))
            copies = stack.enter_context(_one_copy_per_example(self._expanded, size))
            values_B = values(objective.outputs(self._model, batch), batch)
            seen_calls = tuple(calls)  # gradient checkpointing calls the layers again, on the way back
            edges = [call.edge for call in seen_calls] + [get_gradient_edge(each) for each in copies.values()]
            differentiable = bool(edges) and values_B.requires_grad
            gradients = _gradients(values_B, edges, retain_graph=self.check_rows) if differentiable else ()
            if self.check_rows and differentiable:
                weights_B = _distinct_weights(values_B)
                _check_rows(gradients, _gradients(values_B * weights_B, edges), weights_B)
        seen: _Seen = {}
        found = {
            name: torch.zeros_like(each)[:, None] if g is None else g[:, None]
            for (name, each), g in zip(
                copies.items(), gradients[len(seen_calls) :] or [None] * len(copies), strict=True
            )
        }
        for call, g in zip(seen_calls, gradients[: len(seen_calls)], strict=bool(gradients)):
            if (len(call.x) != size and not alone) or call.x._version != call.version:
                what = "changed in place" if len(call.x) == size else f"{tuple(call.x.shape)}, not (B, ...)"
                raise RefusedPathError(f"the input of a {type(call.module).__name__} is {what}")
            if g is not None:
                seen.setdefault(id(call.module), []).append(_in_precision(call, g))
        return seen, found


@contextmanager
def _one_copy_per_example(expanded: Mapping[str, tuple[nn.Module, str]], size: int) -> Iterator[dict[str, Tensor]]:
    """Put copies (B, ...) in the place of parameters (1, ...) broadcast over the batch; yields them by name."""
    copies: dict[str, Tensor] = {}
    before = {id(module): (module, dict(module._parameters)) for module, _ in expanded.values()}
    try:
        for name, (module, kind) in expanded.items():
            parameter = module._parameters.pop(kind)
            assert parameter is not None
            copies[name] = parameter.detach().expand(size, *parameter.shape[1:]).clone().requires_grad_()
            setattr(module, kind, copies[name])
        yield copies
    finally:
        for module, kind in expanded.values():
            vars(module).pop(kind, None)
        for module, parameters in before.values():
            module._parameters.clear()
            module._parameters.update(parameters)


def _gradients(
    values_B: Tensor, edges: Sequence[GradientEdge], *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(values_B.sum(), edges, allow_unused=True, retain_graph=retain_graph)


def _distinct_weights(values_B: Tensor) -> Tensor:
    """A weight from 1 to 2 for each example, in an order of no meaning."""
    order = torch.randperm(len(values_B), generator=torch.Generator().manual_seed(0))
    return (1 + order / max(1, len(order) - 1)).to(values_B)


def _check_rows(gradients: Sequence[Tensor | None], weighted: Sequence[Tensor | None], weights_B: Tensor) -> None:
    """Refuse layers whose row b is not example b's: with a weight on each example, row b must have its weight.

    Raises:
        RefusedPathError: another row has it, or several.
    """
    tolerance = 1e-6 if weights_B.dtype == torch.float64 else 1e-3 / max(1, len(weights_B) / 100)
    for g, weighted_g in zip(gradients, weighted, strict=True):
        if g is None or weighted_g is None or len(g) != len(weights_B):
            continue
        expected = g.flatten(1) * weights_B[:, None]
        slack = max(tolerance, 2e-2) if g.dtype in REDUCED else tolerance
        difference_B = torch.linalg.vector_norm(weighted_g.flatten(1) - expected, dim=1)
        if bool((difference_B > slack * torch.linalg.vector_norm(expected, dim=1)).any()):
            raise RefusedPathError("a layer sees the examples in another order than the batch's")


def _record(
    calls: list[_Call], size: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Tensor | None:
    x = args[0] if args else next(iter(kwargs.values()))
    x = x.detach()
    if size > 1 and len(x) == 1 and len(output) == 1:
        # One row for all examples, broadcast later (embeddings of positions): written out, each has its own gradient.
        x = x.expand(size, *x.shape[1:])
        output = output.expand(size, *output.shape[1:]).clone()
        if not output.requires_grad:
            output.requires_grad_()
        calls.append(_Call(module, x, x._version, get_gradient_edge(output)))
        return output
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


def _in_precision(call: _Call, g: Tensor) -> tuple[_Call, Tensor]:
    """A layer's input and its output's gradient in the precision of its weights, which autocast may not compute in.

    The input is rounded first to what the layer's product was computed in.
    """
    x, wanted = call.x, next(call.module.parameters()).dtype
    if g.dtype == wanted and (x.dtype == wanted or not x.is_floating_point()):
        return call, g
    if x.is_floating_point():
        x = (x.to(g.dtype) if g.dtype in REDUCED else x).to(wanted)
    return replace(call, x=x), g.to(wanted)


def _affine(layer: Any, x: Tensor) -> Tensor:
    scale, shift = (part.detach() for part in scale_and_shift(layer))
    shape = (-1, *(1,) * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x.to(shift.dtype), scale.view(shape)).to(x.dtype)


@contextmanager
def _collecting(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Only these parameters collect gradients within the block; afterwards all is as before."""
    chosen = {id(parameter) for parameter in parameters.values()}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, *_ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, required, collected in before:
            parameter.requires_grad_(required)
            parameter.grad = collected


def one_at_a_time(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Batch, objective: Objective, values: Values
) -> tuple[dict[str, Tensor], Tensor]:
    """Return gradients, name -> (B, *parameter.shape), and outputs (B, K), by plain autograd on batches of one.

    It asks nothing of the model but that its backward pass runs; by ``backward``, since reentrant checkpointing has
    no other way.
    """
    size = batch_size(batch)
    found = {name: p.detach().new_zeros(size, *p.shape) for name, p in parameters.items()}
    outputs: list[Tensor] = []
    with _collecting(model, parameters), torch.enable_grad(), without_fast_path():
        for row in range(size):
            for parameter in model.parameters():
                parameter.grad = None
            one = rows_of(batch, slice(row, row + 1))
            output = objective.outputs(model, one)
            _check_batch_of_one(output, objective)
            value = values(output, one).sum()
            if value.requires_grad:
                torch.autograd.backward(value)
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    found[name][row] = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            outputs.append(flat_outputs(output).detach())
    return found, stack_flat(outputs)


def _check_batch_of_one(output: Any, objective: Objective) -> None:
    shapes = [tuple(part.shape) for part in tensors_of(output)]
    wrong = [shape for shape in shapes if not shape or shape[0] != 1 or (objective.classifies and len(shape) != 2)]
    if wrong:
        expected = "logits (1, C)" if objective.classifies else "tensors (1, ...)"
        raise InputError(
            f"For one example a model must return {expected}; it returned {wrong[0]}. A squeeze() that names no "
            "dimension also removes the batch's: name it, squeeze(1)."
        )


def by_vmap(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Batch, objective: Objective, values: Values
) -> dict[str, Tensor]:
    """Return gradients, name -> (B, *parameter.shape), by ``torch.func``.

    Raises:
        RefusedPathError: it cannot follow the model.
    """
    call = TaskForward(model, objective.task)
    fixed = {name: value.detach() for name, value in (*call.named_parameters(), *call.named_buffers())}

    def single(chosen: dict[str, Tensor], row: tuple[Tensor, ...]) -> Tensor:
        rest = iter(row)
        one = map_tensors(lambda _: next(rest)[None], batch)
        outputs = functional_call(call, {**fixed, **{f"model.{name}": p for name, p in chosen.items()}}, (one,))
        return values(outputs, one)[0]

    chosen = {name: parameter.detach() for name, parameter in parameters.items()}
    try:
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused attention kernels have no batching rule
            stack.enter_context(without_fast_path())
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "There is a performance drop")  # true, and nothing to do about
            found: dict[str, Tensor] = vmap(grad(single), (None, 0))(chosen, tuple(tensors_of(batch)))
    except Exception as error:  # whatever a model's own code meets when it is traced
        raise RefusedPathError(f"torch.func says: {first_line(error)}") from error
    return found
