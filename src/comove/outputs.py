"""What a model returns: its logits, alone or inside a larger output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from comove.errors import InputError

__all__ = ["described", "logits_of"]


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
        f"returned {described(outputs)}. Return the logits alone. Auxiliary outputs (GoogLeNet, Inception) are switched "
        f"off with aux_logits=False."
    )


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
