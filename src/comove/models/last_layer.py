"""The last layer of a network: the linear layer that runs last and gives the logits, found by running it.

In which order layers are registered says nothing of the order in which they run, and a layer that is registered need
not be called at all. So a copy of the model is run on two examples. The layer called last is taken only if

- nothing with parameters comes after it, or leads around it: with its output held fixed, the logits depend on no
  parameter;
- it is a linear map that is used once: the gradients of its weight W and bias b are those of W h + b, the outer product
  of the gradient at its output with its input h, and that gradient itself.

What has no parameters may follow it (a factor, a softmax, a mean over positions).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from comove.errors import InputError, first_line
from comove.models.outputs import logits_of

__all__ = ["Penultimate", "last_linear", "penultimate", "untouched"]

APART = 1e-3
"""How far the gradient in a weight may be from that of a linear map called once, relative to its size, in float32."""

_Call = tuple[nn.Linear, Tensor, Tensor]
"""A linear layer, its input and its output."""


# --- trying a model out ------------------------------------------------------------------------------------------


@contextmanager
def untouched(model: nn.Module, device: torch.device | str = "cpu") -> Iterator[nn.Module]:
    """Give a copy of a model, on ``device``, to try things on, and leave torch's random state as it was.

    A model that cannot be copied is given itself; its weights, buffers and modes come back at the end. So is one whose
    copy has no parameters of its own but tensors computed from the model's, as torch's copies of scripted modules do.
    """
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        try:
            trial = copy.deepcopy(model)
            copied = all(parameter.is_leaf for parameter in trial.parameters())
        except Exception:  # whatever a user's module may raise that holds what cannot be copied
            copied = False
        if not copied:
            with _restored(model):
                yield model.to(where)
            return
        yield trial.to(where)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    held = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(model):
                tensor.copy_(held[name])
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes.items():
            module.training = mode


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


# --- the last layer ----------------------------------------------------------------------------------------------


def last_linear(model: nn.Module, *inputs: Any, **named: Any) -> tuple[str, nn.Linear]:
    """Return the name and the module of the linear layer that runs last and gives the logits.

    Args:
        model: a network; it is run as a copy, in evaluation mode, and left as it is.
        inputs: what it is called with; of tensors the first two examples are used.
        named: likewise, by keyword.

    Returns:
        The layer's name in ``model.named_modules()``, and the layer. The names of its parameters begin with the name
        and a dot.

    Raises:
        InputError: the logits are not given by a linear layer that is called last, once; the message says why.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    with untouched(model, device) as trial:
        try:
            found = _found(trial, *_two(inputs, named))[0]
        except RuntimeError as error:  # such as reentrant checkpointing, which gradients of chosen tensors cannot pass
            raise InputError(
                f"The last layer of {type(model).__name__} cannot be found by running it: {first_line(error)}"
            ) from error
        name = next(name for name, module in trial.named_modules() if module is found)
    layer = dict(model.named_modules())[name]
    assert isinstance(layer, nn.Linear)
    return name, layer


def _two(inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def first(value: Any) -> Any:
        return value.detach()[:2].clone() if isinstance(value, Tensor) and value.ndim else value

    return tuple(map(first, inputs)), {name: first(value) for name, value in named.items()}


def _found(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> _Call:
    """The last layer of a model that may be changed, with its input and output."""
    _require_linear(model)
    model.eval()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    with torch.enable_grad(), nn.utils.parametrize.cached():
        calls, logits = _watched(model, inputs, named)
        for call in reversed(calls):
            slopes = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
            at_output, obstacle = _fixed(model, inputs, named, call[0], slopes)
            if at_output is None and obstacle is None:
                continue  # what this layer gives is no part of the logits
            obstacle = obstacle or _not_linear(model, calls, call, logits, slopes, at_output)
            if obstacle is None:
                return call
            break
        else:
            obstacle = "no torch.nn.Linear that is called leads to them"
    raise InputError(
        f"The last layer of {type(model).__name__} must be a torch.nn.Linear that is called once and whose output "
        f"gives the logits; {obstacle}."
    )


def _require_linear(model: nn.Module) -> list[nn.Linear]:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(
            f"Penultimate features are the input of a model's last torch.nn.Linear; {type(model).__name__} has none."
        )
    return linear


def _watched(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[list[_Call], Tensor]:
    """Run the model; return the calls of its linear layers in order, and the logits."""
    calls: list[_Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, _input(args, kwargs), output))

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in _require_linear(model)]
    try:
        logits = logits_of(model(*inputs, **named))
    finally:
        for handle in handles:
            handle.remove()
    return calls, logits


def _fixed(
    model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], layer: nn.Linear, slopes: Tensor
) -> tuple[Tensor | None, str | None]:
    """Run the model with the layer's output held fixed; return the gradient there, and what else the logits need."""
    held: list[Tensor] = []

    def hold(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        held.append(output.detach().requires_grad_())
        return held[-1].clone()  # what follows may work in place

    handle = layer.register_forward_hook(hold)
    try:
        logits = logits_of(model(*inputs, **named))
    finally:
        handle.remove()
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not logits.requires_grad:
        return None, None
    found = torch.autograd.grad((logits * slopes).sum(), [*held, *parameters.values()], allow_unused=True)
    at_output, rest = found[len(held) - 1], found[len(held) :]
    if at_output is None:
        return None, None
    used = [name for name, gradient in zip(parameters, rest, strict=True) if gradient is not None]
    name = next(name for name, module in model.named_modules() if module is layer)
    return at_output, f"beside {name!r} they also depend on {used[0]!r}, after or around it" if used else None


def _not_linear(
    model: nn.Module, calls: list[_Call], call: _Call, logits: Tensor, slopes: Tensor, at_output: Tensor | None
) -> str | None:
    """Why the layer is not y = W h + b, used once; ``None`` when it is."""
    layer, features, _ = call
    assert at_output is not None
    name = next(name for name, module in model.named_modules() if module is layer)
    if sum(module is layer for module, _, _ in calls) > 1:
        return f"{name!r} is called {sum(module is layer for module, _, _ in calls)} times"
    tensors = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    own = {id(tensor) for tensor in tensors}
    sharing = [
        other
        for other, module in model.named_modules()
        if module is not layer and any(id(each) in own for each in module.parameters(recurse=False))
    ]
    if sharing:
        return f"{name!r} shares its weight with {sharing[0] or 'the model itself'!r}"
    errors, rows = at_output.flatten(0, -2), features.detach().flatten(0, -2)
    wanted = [errors.T @ rows.to(errors.dtype), errors.sum(0)]
    found = torch.autograd.grad((logits * slopes).sum(), tensors, allow_unused=True, retain_graph=True)
    for gradient, expected in zip(found, wanted, strict=False):
        if gradient is None or not (gradient - expected).norm() <= APART * expected.norm() + 1e-30:
            return f"{name!r} is used in another way than as a linear map of its input"
    return None


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a linear layer was called with: ``layer(x)`` or ``layer(input=x)``."""
    found: Tensor = args[0] if args else kwargs["input"]
    return found


# --- its features ------------------------------------------------------------------------------------------------


class Penultimate:
    """What fed the last linear layer in the latest forward call; made by :func:`penultimate`."""

    def __init__(self) -> None:
        self._features: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """The features of the latest batch: (B, F), float32, detached."""
        if self._features is None:
            raise InputError("There are no features yet: call the model on a batch first, inside the with block.")
        return self._features

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy, so that nothing the model does next in place can change it.
        self._features = _input(args, kwargs).detach().to(torch.float32, copy=True).flatten(1)


@contextmanager
def penultimate(model: nn.Module, layer: str | None = None) -> Iterator[Penultimate]:
    """Record the penultimate features of ``model`` while the block runs.

    The penultimate features are the input of the linear layer that runs last (:func:`last_linear`). The model is
    unchanged afterwards, also when the block raises.

    Args:
        model: A network whose head is a linear layer.
        layer: The head's name, where it is known; by default it is found in the first forward call, by running a copy
            of the model on the first two examples of that batch.

    Returns:
        A context manager; its value holds ``.features`` (B, F), float32 and detached, after each forward call; what a
        layer gets at several positions of an example is one row.

    Raises:
        InputError: The model has no linear layer, or (in the first forward call) none that runs last and gives the
            logits; or ``.features`` is read before a forward call.

    Example:
        >>> from comove.models.networks import build_model, penultimate
        >>> net = build_model("mlp", num_classes=10, input_shape=(4,))
        >>> with penultimate(net) as last:
        ...     logits = net(torch.zeros(3, 4))
        >>> last.features.shape
        torch.Size([3, 64])
    """
    _require_linear(model)
    record = Penultimate()
    handles: list[Any] = []

    def watch(module: nn.Module) -> None:
        handles.append(module.register_forward_pre_hook(record._keep, with_kwargs=True))

    def find(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handles.pop().remove()  # first, so that the copy that is run does not look for itself
        found = last_linear(model, *args, **kwargs)[1]
        watch(found)
        if found is model:  # whose hooks of this call are being run already
            record._keep(model, args, kwargs)

    if layer is None:
        handles.append(model.register_forward_pre_hook(find, with_kwargs=True))
    else:
        watch(dict(model.named_modules())[layer])
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
