"""Networks by name, what their outputs are, and where their last linear layer is."""

from comove.models.last_layer import Penultimate, last_linear, penultimate
from comove.models.networks import (
    TEXT_MODELS,
    Factory,
    ModelSpec,
    build_model,
    model_names,
    parameter_count,
    put_channels_last,
)
from comove.models.outputs import logits_of, without_fast_path

__all__ = [
    "TEXT_MODELS",
    "Factory",
    "ModelSpec",
    "Penultimate",
    "build_model",
    "last_linear",
    "logits_of",
    "model_names",
    "parameter_count",
    "penultimate",
    "put_channels_last",
    "without_fast_path",
]
