"""What a model returns: its logits, alone or inside a larger output, by the path that has gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from comove.data.batches import tensors_of
from comove.errors import InputError

__all__ = ["described", "differentiable_parts", "flat_outputs", "logits_of", "without_fast_path"]


def logits_of(outputs: Any) -> Tensor:
    """Return the logits in what a model returned; every call of a user's model goes through this.

    Understood are a tensor; a mapping with the entry ``"logits"`` or an object with the attribute ``logits`` (the
    outputs of Hugging Face models are both); and a tuple or list that holds one tensor and nothing else. Of several
    outputs none is chosen by its place: which one is the model's answer cannot be seen.

    Args:
        outputs: what ``model(inputs)`` returned.

    Returns:
        The logits, (B, C), unchecked.

    Raises:
        InputError: none of these; the message says what was returned.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(2, 3), "attentions": None}).shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, tuple | list) and len(outputs) == 1:
        found = outputs[0]
    if isinstance(found, Tensor):
        return found
    raise InputError(
        f"A model must return its logits (B, C): a tensor, or an output that has them as .logits or ['logits']; it "
        f"returned {described(outputs)}. Return the logits alone. Auxiliary outputs (GoogLeNet, Inception) are "
        f"switched off with aux_logits=False."
    )


def differentiable_parts(outputs: Any) -> list[Tensor]:
    """Return the tensors of real numbers in a model's outputs, in a fixed order.

    Raises:
        InputError: there are none.
    """
    parts = [part for part in tensors_of(outputs) if part.is_floating_point()]
    if not parts:
        raise InputError("The model's outputs hold no tensor of real numbers.")
    return parts


def flat_outputs(outputs: Any) -> Tensor:
    """Return the numbers of a model's outputs, (B, K), whatever their structure.

    Raises:
        InputError: there are none.
    """
    return torch.cat([part.reshape(len(part), -1) for part in differentiable_parts(outputs)], 1)


def described(outputs: Any) -> str:
    """Say what a model returned, for messages: its type, the shapes of its tensors, the names of its entries."""
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"a {kind} with the entries {', '.join(map(repr, list(outputs)[:8])) or 'none'}"
    if isinstance(outputs, tuple | list):
        parts = ", ".join(described(part) for part in list(outputs)[:8])
        return f"a {kind} of {len(outputs)} ({parts or 'empty'})"
    return f"a {kind}"


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Keep torch's transformer layers from the path that they take in evaluation mode when no gradient is wanted.

    Its numbers differ from those of the path that has gradients, with padding masks by a lot: padded positions are left
    out there and count here. What is recorded and what is differentiated must be one function.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
