"""What per-example gradients ask of a model: evaluation mode, known parameters, no look at tensors' values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from comove.attribution.closed_forms import RULES
from comove.errors import InputError, did_you_mean

__all__ = [
    "CONTROL_FLOW",
    "NoPeeking",
    "Uses",
    "check_evaluating",
    "chosen_parameters",
    "parameter_uses",
    "unsupported",
]

Uses: TypeAlias = dict[str, list[tuple[str, nn.Module, str]]]
"""Where each parameter is held: (module's name, module, the parameter's name there); several when it is shared."""

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


class NoPeeking(TorchFunctionMode):
    """Refuses code that looks at the values of tensors other than the model's own."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PEEKS and id(args[0]) not in self.known:
            raise InputError(f"{CONTROL_FLOW} The model's forward pass calls Tensor.{func.__name__}.")
        return func(*args, **(kwargs or {}))


def check_evaluating(model: nn.Module) -> None:
    """Refuse training mode and batch norm that mixes examples.

    Raises:
        InputError: a module is in either.
    """
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


def chosen_parameters(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    """Return these parameters, by default the trainable ones, in the model's order.

    Raises:
        InputError: unknown names, or none.
    """
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


def parameter_uses(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> Uses:
    """Return where each parameter is held."""
    names = {id(parameter): name for name, parameter in chosen.items()}
    uses: Uses = {name: [] for name in chosen}
    for path, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if id(parameter) in names:
                uses[names[id(parameter)]].append((path, module, kind))
    return uses


def unsupported(path: str, module: nn.Module, kind: str) -> str:
    """Return the module, when its gradients have no closed form here; else nothing."""
    plain = kind in RULES.get(type(module), ())
    if plain and isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return "" if plain else f"{path or 'the model'} ({type(module).__name__})"
