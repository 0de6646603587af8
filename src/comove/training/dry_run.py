"""Two examples through a model before any work: what would fail, or be silently wrong, is said before it begins.

A copy of the model is run on two training examples in training mode, forwards and backwards, and in evaluation mode.
The model, the caller's random state and the disk are left as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from comove.data import ExampleSet
from comove.errors import ComoveError, InputError, NonFiniteError, first_line, some
from comove.models import last_linear, logits_of, without_fast_path
from comove.models.last_layer import untouched
from comove.models.outputs import described

__all__ = ["check_inputs", "dry_run", "features_layer"]

IN_TRAINING, IN_EVALUATION = "in training mode", "in evaluation mode"


def dry_run(network: nn.Module, examples: ExampleSet, device: torch.device | str = "cpu") -> None:
    """Check that a model can be trained on these examples.

    Args:
        network: the model; a copy of it is run.
        examples: training examples, of which two are used.
        device: where to run the copy.

    Raises:
        InputError: fewer than two examples; no parameters that can be trained; the model cannot be called on a batch
            of two, ``(B, *input_shape)``, in either mode; it does not return floating-point logits (B, C) for the C
            classes; they do not depend on the parameters; it returns something else in evaluation mode than in
            training mode; it changes its inputs in place.
        NonFiniteError: inputs, logits or gradients that are NaN or infinite.
    """
    if len(examples) < 2:
        raise InputError(f"Training needs at least 2 examples, got {len(examples)}.")
    _check_parameters(network)
    inputs, labels = examples.batch(np.arange(2), device)
    check_inputs(examples)
    with untouched(network, device) as trial:
        trial.train()
        outputs = _called(trial, inputs, examples, IN_TRAINING)
        logits = _checked(outputs, examples, IN_TRAINING)
        _check_gradients(trial, logits, labels)
        trial.eval()
        with torch.no_grad(), without_fast_path():
            evaluated = _called(trial, inputs, examples, IN_EVALUATION)
            _check_one(_called(trial, inputs[:1], examples, IN_EVALUATION), examples)
        _check_alike(outputs, logits, evaluated, _checked(evaluated, examples, IN_EVALUATION))


def check_inputs(examples: ExampleSet) -> None:
    """Refuse inputs that are NaN or infinite: all that are held in memory, or the first two of a set that is not.

    Raises:
        NonFiniteError: naming the ids.
    """
    held = examples.held
    raw = examples.raw(np.arange(min(2, len(examples)))) if held is None else held
    if not raw.is_floating_point() or bool(torch.isfinite(raw.sum())):
        return
    bad = np.flatnonzero(~torch.isfinite(raw).flatten(1).all(1).numpy())
    if bad.size:
        raise NonFiniteError(
            f"Inputs must be finite; an input of {examples.name!r} is NaN or infinite in {bad.size} examples, ids "
            f"{some(examples.ids[bad].tolist())}. Mend these examples, or leave them out."
        )


def features_layer(network: nn.Module, examples: ExampleSet, device: torch.device | str = "cpu") -> str:
    """Return the name of the layer whose input are a model's penultimate features, one row an example.

    Raises:
        InputError: no linear layer runs last and gives the logits; or it runs at several positions of an example.
    """
    inputs, _ = examples.batch(np.arange(min(2, len(examples))), device)
    seen: list[Tensor] = []
    with untouched(network, device) as trial:
        trial.eval()
        name, layer = last_linear(trial, inputs)
        handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
        with torch.no_grad():
            logits = logits_of(trial(inputs))
        handle.remove()
    if seen[0].shape != logits.shape:
        raise InputError(
            f"Penultimate features are one row an example, so the last layer must give the logits "
            f"{tuple(logits.shape)}; {name!r} gives {tuple(seen[0].shape)}: take the mean over positions before it."
        )
    return name


def _check_parameters(network: nn.Module) -> None:
    tensors = dict(network.named_parameters())
    for name, tensor in (*tensors.items(), *network.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{name!r} has no shape yet; give lazy layers their sizes, the factory gets input_shape.")
        if tensor.is_meta:
            raise InputError(f"{name!r} is on the meta device and holds no numbers; build the model on the CPU.")
    if not any(tensor.requires_grad for tensor in tensors.values()):
        found = f"all {len(tensors)} are frozen" if tensors else "it has none"
        raise InputError(f"{type(network).__name__} must have parameters that can be trained; {found}.")


def _called(network: nn.Module, inputs: Tensor, examples: ExampleSet, mode: str) -> Any:
    given = inputs.clone()
    try:
        outputs = network(given)
    except ComoveError:
        raise
    except Exception as error:  # whatever a user's model may raise
        number = "one example" if len(inputs) == 1 else "two examples"
        hint = "" if inputs.is_floating_point() else " Whole numbers are token ids and are not scaled."
        raise InputError(
            f"{type(network).__name__} cannot be called {mode} on {number} of {examples.name!r}, a batch "
            f"{tuple(inputs.shape)} of {str(inputs.dtype).removeprefix('torch.')}. {type(error).__name__}: "
            f"{first_line(error)}{hint}"
        ) from error
    if not torch.equal(given.nan_to_num(), inputs.nan_to_num()):
        raise InputError(
            f"{type(network).__name__} changes its inputs in place {mode}, and so would spoil the data; give its first "
            "layer inplace=False, or work on x.clone()."
        )
    return outputs


def _checked(outputs: Any, examples: ExampleSet, mode: str) -> Tensor:
    """The logits of two examples, (2, C) and finite."""
    logits, classes = logits_of(outputs), examples.n_classes
    if logits.layout != torch.strided:
        kind = str(logits.layout).removeprefix("torch.")
        raise InputError(f"A model must return dense logits; {mode} it returned a {kind} tensor. Add .to_dense().")
    if not logits.is_floating_point():
        raise InputError(f"A model must return floating-point logits; {mode} it returned {logits.dtype}.")
    if logits.shape != (2, classes):
        hint = ""
        if logits.shape in ((2,), (2, 1)) and classes == 2:
            hint = " Two classes take two numbers, such as torch.cat([torch.zeros_like(z), z], 1)."
        elif logits.ndim == 2 and len(logits) == 2:
            hint = " The factory gets num_classes; all class names go in classes=."
        elif logits.ndim and len(logits) != 2:
            hint = " The first dimension is the batch, of whatever size it is called with."
        elif logits.ndim > 2:
            hint = " Take the mean over positions, or those of one."
        raise InputError(
            f"A model must return one row of logits for each example and one column for each class, {(2, classes)} for "
            f"two examples of {classes} classes; {mode} it returned {tuple(logits.shape)}.{hint}"
        )
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(f"The logits of the first two examples are NaN or infinite before training, {mode}.")
    return logits


def _check_one(outputs: Any, examples: ExampleSet) -> None:
    """Check the logits of a batch of one, which the last batch may be, and per-example gradients are taken of."""
    shape = tuple(logits_of(outputs).shape)
    if shape != (1, examples.n_classes):
        raise InputError(
            f"For one example a model must return logits {(1, examples.n_classes)}; {IN_EVALUATION} it returned "
            f"{shape}. A squeeze() that names no dimension also removes the batch's: name it, squeeze(1)."
        )


def _check_gradients(network: nn.Module, logits: Tensor, labels: Tensor) -> None:
    trained = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}
    if logits.requires_grad:
        try:
            torch.autograd.backward(F.cross_entropy(logits.float(), labels))  # as training does it
        except RuntimeError as error:
            raise InputError(f"The loss of {type(network).__name__} has no gradient: {first_line(error)}") from error
    if all(tensor.grad is None for tensor in trained.values()):
        raise InputError(
            f"The logits of {type(network).__name__} must depend on its parameters; no gradient reaches any of them. "
            "Look for torch.no_grad, .detach(), .item() or numpy in its forward."
        )
    for name, tensor in trained.items():
        if tensor.grad is not None and not bool(tensor.grad.to_dense().isfinite().all()):
            raise NonFiniteError(f"The gradient of the loss in {name!r} is NaN or infinite before training.")


def _check_alike(outputs: Any, logits: Tensor, evaluated: Any, evaluated_logits: Tensor) -> None:
    """Check that both modes return the same kind of answer."""
    if isinstance(outputs, Tensor) != isinstance(evaluated, Tensor) or _auxiliary(outputs, logits, evaluated):
        raise InputError(
            f"A model must return the same in both modes; {IN_TRAINING} it returned {described(outputs)}, "
            f"{IN_EVALUATION} {described(evaluated)}. Auxiliary outputs have no part in the loss: return the logits "
            f"alone in both (GoogLeNet, Inception: aux_logits=False)."
        )
    if _are_probabilities(evaluated_logits) and not _are_probabilities(logits):
        raise InputError(
            f"A model must return logits in both modes; {IN_EVALUATION} it returned probabilities (rows sum to 1). "
            "Leave the softmax out: comove applies it where it is needed."
        )


def _auxiliary(outputs: Any, logits: Tensor, evaluated: Any) -> bool:
    """Whether training mode alone returns a second answer of the logits' shape."""

    def answers(found: Any) -> int:
        parts = found.values() if hasattr(found, "values") and not isinstance(found, Tensor) else found
        if isinstance(parts, Tensor):
            return 1
        return sum(isinstance(part, Tensor) and part.shape == logits.shape for part in parts)

    try:
        return answers(outputs) > answers(evaluated)
    except TypeError:  # an output object that cannot be looked through
        return False


def _are_probabilities(values: Tensor) -> bool:
    rows = values.detach().double().sum(1)
    return bool((values >= 0).all()) and torch.allclose(rows, torch.ones_like(rows), rtol=0, atol=1e-4)
