"""A clean pass: a look at the model that training does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from comove.models import without_fast_path

__all__ = ["clean_pass"]


@contextmanager
def clean_pass(model: nn.Module) -> Iterator[None]:
    """Evaluate without leaving a trace: evaluation mode, no gradients, and afterwards every generator as before.

    torch's fast path for transformer layers is off, so that what is recorded is what has a gradient.

    Data loaders draw from the global generators even when they do not shuffle, so a pass in between would otherwise
    change the batches that training sees next.

    Args:
        model: its modules come back to the mode each was in.
    """
    modes = {module: module.training for module in model.modules()}
    # Users' augmentation may draw from Python's and NumPy's global generators.
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices), torch.no_grad(), without_fast_path():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
