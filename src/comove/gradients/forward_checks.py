"""What per-example gradients ask of a model, and what its forward pass does with the values of its inputs."""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comove.errors import InputError, did_you_mean
from comove.gradients.per_sample_rules import rules_of
from comove.trace.evaluation_pass import clean_pass

__all__ = [
    "ForwardPass",
    "Uses",
    "check_deterministic",
    "check_evaluating",
    "chosen_parameters",
    "expandable",
    "parameter_uses",
    "unsupported",
]

Uses: TypeAlias = dict[str, list[tuple[str, nn.Module, str]]]
"""Where each parameter is held: (module's name, module, the parameter's name there); several when it is shared."""

READS = {"_local_scalar_dense", "equal", "is_nonzero"}
"""Operations that hand a tensor's values to Python, which may branch on them."""
READS_OF_TENSORS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr}
"""The same, of operations that torch's dispatcher does not see."""
REORDERS = {
    "argsort",
    "gather",
    "index",
    "index_add",
    "index_copy",
    "index_put",
    "index_put_",
    "index_select",
    "kthvalue",
    "masked_select",
    "nonzero",
    "scatter",
    "scatter_",
    "scatter_add",
    "scatter_reduce",
    "searchsorted",
    "sort",
    "take",
    "topk",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
}
"""Operations that can move examples to other rows, depending on the inputs' values."""


class ForwardPass:
    """Watches what one forward pass does with values that depend on its inputs; enter it around the call.

    Args:
        inputs: the model's inputs: a tensor, or any structure of tensors.

    Attributes:
        reads: names of the operations that read such values into Python: an ``if`` or a loop may follow, so a batch may
            be treated otherwise than its examples one by one.
        reorders: names of the operations that can move examples to other rows of the batch.
    """

    def __init__(self, inputs: object) -> None:
        self.reads: set[str] = set()
        self.reorders: set[str] = set()
        self._held: dict[int, Tensor] = {}  # by storage; held, so that no other takes its place
        self._stack = ExitStack()
        self.hold(inputs)

    def __enter__(self) -> ForwardPass:
        self._stack.enter_context(_Calls(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hold(self, values: object) -> None:
        """Note tensors that depend on the inputs."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self._held[_storage(value)] = value

    def depends(self, values: object) -> bool:
        """Whether any of these depends on the inputs."""
        return any(isinstance(value, Tensor) and _storage(value) in self._held for value in tree_leaves(values))


def _storage(tensor: Tensor) -> int:
    try:
        storage: int = tensor.untyped_storage()._cdata
        return storage
    except NotImplementedError:  # sparse tensors, and those of functorch, have none
        return id(tensor)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for these classes
    def __init__(self, watch: ForwardPass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        depends = self._watch.depends(given)
        if depends:
            name = func.overloadpacket.__name__
            if name in READS:
                self._watch.reads.add({"_local_scalar_dense": "item"}.get(name, name))
            # An index that does not depend on the inputs moves every batch alike, which a few examples show.
            if name in REORDERS and (not name.startswith("index") or self._watch.depends(args[1:])):
                self._watch.reorders.add(name)
        made = func(*args, **(kwargs or {}))
        if depends:
            self._watch.hold(made)
            if func._schema.is_mutable:
                self._watch.hold(given)
        return made


class _Calls(TorchFunctionMode):
    def __init__(self, watch: ForwardPass) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS_OF_TENSORS and self._watch.depends(args[:1]):
            self._watch.reads.add(func.__name__)
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


def check_deterministic(model: nn.Module, forward: Callable[[], Any]) -> Any:
    """Call a model twice on the same inputs, and return what it gives.

    Args:
        model: in evaluation mode.
        forward: one forward pass of it.

    Raises:
        InputError: the two differ; the module that draws random numbers is named.
    """
    outputs, again = (_traced(model, forward, seed, [])[1] for seed in (1, 2))
    pairs = zip(tree_leaves(outputs), tree_leaves(again), strict=True)
    if all(_same(one, other) for one, other in pairs if isinstance(one, Tensor)):
        return outputs
    (calls, _), (others, _) = (_traced(model, forward, seed, list(model.named_modules())) for seed in (1, 2))
    for (name, given, made), (_, given_again, made_again) in zip(calls, others, strict=False):
        if all(map(_same, given, given_again)) and not all(map(_same, made, made_again)):
            where = name
            break
    else:
        where = "the model"
    raise InputError(
        f"Called twice on the same inputs in evaluation mode, the model gives different outputs, and {where} is where "
        "they come to differ: it draws random numbers (dropout applied by hand? use nn.Dropout, or "
        "F.dropout(..., training=self.training)) or keeps a state. Scores would be chance; switch that off in "
        "evaluation mode."
    )


_Traced: TypeAlias = list[tuple[str, list[Tensor], list[Tensor]]]


def _traced(
    model: nn.Module, forward: Callable[[], Any], seed: int, modules: Collection[tuple[str, nn.Module]]
) -> tuple[_Traced, Any]:
    """The inputs and outputs of these modules in the order in which they end, and the outputs of the whole."""
    calls: _Traced = []
    names = {module: f"{name or 'the model'} ({type(module).__name__})" for name, module in modules}

    def note(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        calls.append((names[module], _copies((args, kwargs)), _copies(made)))

    with ExitStack() as stack, clean_pass(model):  # which brings all generators back
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - a forward pass may draw from it
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
        for module in names:
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        return calls, forward()


def _copies(values: object) -> list[Tensor]:
    return [value.clone() for value in tree_leaves(values) if isinstance(value, Tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.device.type == "cpu" or not one.is_floating_point():
        return bool(((one == other) | ((one != one) & (other != other))).all())
    return torch.allclose(one, other, rtol=1e-3, atol=1e-6, equal_nan=True)  # sums on a GPU come in any order


def chosen_parameters(model: nn.Module, names: str | Collection[str] | None) -> dict[str, nn.Parameter]:
    """Return these parameters (names, or glob patterns), by default the trainable ones, in the model's order.

    Those of no numbers, as of a layer without outputs, have no gradient and are left out.

    Raises:
        InputError: unknown names, or none.
    """
    known = dict(model.named_parameters())
    if names is None:
        chosen = {name: parameter for name, parameter in known.items() if parameter.requires_grad}
    else:
        patterns = [names] if isinstance(names, str) else list(names)
        for pattern in patterns:
            if pattern not in known and not fnmatch.filter(known, pattern):
                raise InputError(f"The model has no parameter {pattern!r}.{did_you_mean(pattern, known)}")
        chosen = {
            name: parameter
            for name, parameter in known.items()
            if any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }
    chosen = {name: parameter for name, parameter in chosen.items() if parameter.numel()}
    if not chosen:
        raise InputError(
            "There are no parameters to take gradients of: all are frozen or empty, or parameters= names none."
        )
    for name, parameter in chosen.items():
        if parameter.is_complex():
            raise InputError(
                f"Gradients are taken of real parameters; {name!r} is {parameter.dtype}. Hold it as a real parameter "
                "(..., 2) and use torch.view_as_complex(parameter) in the forward pass, which is the same model."
            )
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


def expandable(module: nn.Module, kind: str) -> bool:
    """Whether a parameter of a module without rules has a leading axis of one, as learned positions and tokens have.

    Such a parameter is broadcast over the batch, so that one copy per example can take its place.
    """
    parameter = module._parameters.get(kind)
    return not rules_of(module) and parameter is not None and parameter.ndim > 1 and parameter.shape[0] == 1


def unsupported(path: str, module: nn.Module, kind: str) -> str:
    """Return the module, when its gradients have no per-sample rule; else nothing."""
    plain = kind in rules_of(module) or expandable(module, kind)
    if plain and isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return "" if plain else f"{path or 'the model'} ({type(module).__name__})"
