"""Weights of models that comove did not train: read without unpickling, and loaded with every name accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comove.checks import real_number, whole_number
from comove.errors import CorruptFileError, InputError, InputTypeError, first_line, some
from comove.store import read_json

__all__ = ["StateDict", "Weights", "build", "digest_of", "load_into", "load_plain", "read_state_dict"]

StateDict = Mapping[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "ema_state_dict")
"""Entries under which training loops keep a model's weights beside other things (Lightning, torchvision, ...)."""


@dataclass(frozen=True)
class Weights:
    """Weights of a model at one moment of its training.

    Attributes:
        source: a state dict; or a file (``.safetensors``, or ``.pt``/``.pth``/``.ckpt``/``.bin``, read with
            ``weights_only=True``), or a folder as transformers writes it.
        epoch: passes over the data until then; by default its place in the list, from 1 on.
        lr: the learning rate there, which TracIn weighs by.
        step: optimizer steps until then, where known.
        optimizer_state: the ``state_dict()`` of an optimizer of Adam's kin at that moment, or a file of it (read with
            ``weights_only=True``): for ``TracIn(optimizer_state=True)``.

    Raises:
        InputError: a negative epoch, step or rate, or one that is no number.
    """

    source: str | Path | StateDict
    epoch: float | None = None
    lr: float | None = None
    step: int | None = None
    optimizer_state: str | Path | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for value, name in ((self.epoch, "epoch"), (self.lr, "lr")):
            if value is not None and real_number(value, f"Weights: {name}") < 0:
                raise InputError(f"Weights: {name} must not be negative, got {value}.")
        if self.step is not None:
            whole_number(self.step, "Weights: step", 0)
        if not isinstance(self.source, str | Path | Mapping):
            kind = type(self.source).__name__
            raise InputTypeError(f"Weights are a path or a state dict, got {kind}; of a module give .state_dict().")
        state = self.optimizer_state
        if state is not None and not isinstance(state, str | Path | Mapping):
            kind = type(state).__name__
            raise InputTypeError(f"Weights: optimizer_state is a path or the optimizer's .state_dict(), got {kind}.")


def build(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return the module, or what the factory makes.

    Raises:
        InputTypeError: neither.
    """
    made = model if isinstance(model, nn.Module) else model() if callable(model) else None
    if not isinstance(made, nn.Module):
        found = type(model).__name__ if made is None else f"a factory that returns {type(made).__name__}"
        raise InputTypeError(f"model must be a torch.nn.Module, or a function that returns one; got {found}.")
    return made


def files_of(path: Path) -> list[Path]:
    """Return the files that hold the weights at ``path``: itself, or the shards of a transformers folder.

    Raises:
        CorruptFileError: nothing there, or a folder without weights.
    """
    if not path.exists():
        raise CorruptFileError(f"{path} does not exist: give the path of saved weights.")
    if path.is_file():
        return [path]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / f"{name}.index.json").exists():
            shards = read_json(path / f"{name}.index.json").get("weight_map", {})
            return [path / shard for shard in sorted(set(map(str, shards.values())))]
        if (path / name).exists():
            return [path / name]
    raise CorruptFileError(
        f"{path} holds neither model.safetensors nor pytorch_model.bin, as transformers writes them."
    )


def digest_of(path: Path) -> str:
    """Return a SHA-256 of the weights' files."""
    whole = hashlib.sha256()
    for file in files_of(path):
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read saved weights; nothing is unpickled.

    Raises:
        CorruptFileError: missing, damaged, without tensors; or it can only be read by unpickling, which could run code.
    """
    found: dict[str, Tensor] = {}
    for file in files_of(path):
        found |= _read(file)
    return found


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(file))
        except (SafetensorError, OSError) as error:
            raise CorruptFileError(f"{file} cannot be read: {first_line(error)}") from error
    return _unwrapped(load_plain(file), file)


def load_plain(file: Path) -> Any:
    """Return what ``torch.save`` wrote, of tensors and plain values; nothing is unpickled.

    Raises:
        CorruptFileError: missing, damaged, or readable only by unpickling.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch meets in a file of any origin
        if (
            type(error).__name__ == "UnpicklingError" and file.read_bytes()[:2] == b"PK"
        ):  # the archive that torch writes
            raise CorruptFileError(
                f"{file} holds more than tensors and plain values, and reading it would run code: it was saved as a "
                "whole model or with its own classes. Save the model's state_dict() alone."
            ) from error
        raise CorruptFileError(f"{file} cannot be read: {first_line(error)}") from error


def _unwrapped(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a saved object: itself, or under one of the usual names."""
    if isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
        for name in WRAPPERS:
            inner = content.get(name)
            if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
                return dict(inner)
    what = f"entries {some(list(content))}" if isinstance(content, Mapping) else type(content).__name__
    raise CorruptFileError(f"{file} holds {what}, and no state dict (names with tensors), nor one under 'state_dict'.")


def load_into(model: nn.Module, state: StateDict, where: object) -> None:
    """Load weights into a model, all of them and no others.

    Names that a wrapper puts before every other (``module.``, ``_orig_mod.``, ``model.``) are taken off where the rest
    fits. A missing name whose tensor is tied to one that is there (an output layer that shares the embedding) is none.

    Raises:
        InputError: missing or unexpected names, other shapes.
    """
    own = {*dict(model.named_parameters(remove_duplicate=False)), *model.state_dict()}
    state = _without_prefix(state, own)
    try:
        outcome = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise InputError(f"{where} does not fit the model: {lines[0] if lines else first_line(error)}") from error
    ignored = [str(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    unexpected = [name for name in outcome.unexpected_keys if not any(fnmatch(name, p) or p in name for p in ignored)]
    missing = [name for name in outcome.missing_keys if not _tied(model, name, state)]
    if missing or unexpected:
        parts = [f"it lacks {some(missing)}"] * bool(missing) + [f"it has {some(unexpected)} besides"] * bool(
            unexpected
        )
        raise InputError(f"{where} does not fit the model: {' and '.join(parts)}. Give the model it was saved from.")


def _without_prefix(state: StateDict, own: set[str]) -> StateDict:
    for prefix in ("module.", "_orig_mod.", "model."):
        if state and all(name.startswith(prefix) for name in state) and not set(state) <= own:
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _tied(model: nn.Module, name: str, state: StateDict) -> bool:
    """Whether a tensor that is missing is the same as one that is there, under another name."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    tensor = tensors.get(name)
    return tensor is not None and any(other is tensor for key, other in tensors.items() if key in state)
