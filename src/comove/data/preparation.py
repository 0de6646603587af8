"""New examples made as a run's own were: the same colours, size, scale and normalisation.

What a run does to an example before its model sees it is a :class:`Preprocessing`: the shape of an input, what its
numbers are, and the normalisation. Scores of an example that is prepared otherwise say nothing: a picture scaled to
[0, 1] but not normalised is another picture to the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from comove.data.builtin import IMAGE_ENDINGS, as_rgb, open_image
from comove.data.examples import ExampleSet, Normalization, as_input
from comove.errors import CorruptFileError, InputError, InputTypeError, some

__all__ = ["Picture", "Preprocessing", "image_files", "prepared"]

Kind = Literal["pixels", "unit", "real", "tokens", "flags"]
"""8-bit pixels; images of real numbers in [0, 1]; other real numbers; whole numbers; true and false."""

Picture: TypeAlias = Any
"""A PIL image, a path, an array or a tensor."""

COLOURS = {1: "L", 3: "RGB", 4: "RGBA"}
"""The mode of a PIL image by its number of channels."""
SLACK = 1e-6
"""How far a real number may be from [0, 1] by rounding."""


@dataclass(frozen=True)
class Preprocessing:
    """What a run does to an example before its model sees it.

    Attributes:
        shape: of one input.
        kind: what its numbers are before the normalisation.
        normalization: per channel, of numbers in [0, 1]; or ``None``.
    """

    shape: tuple[int, ...]
    kind: Kind
    normalization: Normalization | None

    @classmethod
    def of(cls, examples: ExampleSet) -> Preprocessing:
        """Return that of a set; whether real numbers are images in [0, 1] is seen from 64 of them, or all held ones."""
        return cls(examples.input_shape, _kind(examples), examples.normalization)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of JSON values, for a manifest."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: object) -> Preprocessing:
        """Return what :meth:`to_json` wrote.

        Raises:
            CorruptFileError: something else.
        """
        try:
            if not isinstance(document, Mapping) or document["kind"] not in get_args(Kind):
                raise TypeError("no object with a kind")
            shape = tuple(size for size in document["shape"] if isinstance(size, int))
            found = document["normalization"]
            normalization = None if found is None else Normalization(tuple(found["mean"]), tuple(found["std"]))
            if not shape or len(shape) != len(document["shape"]):
                raise ValueError("no shape")
            return cls(shape, document["kind"], normalization)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"A run's preprocessing is a shape, a kind and a normalization; got {document!r:.200}."
            ) from error

    def obstacle(self, examples: ExampleSet) -> str | None:
        """What must hold of examples that a model is asked about and does not of these; ``None`` when all does."""
        other = Preprocessing.of(examples)
        if other.shape != self.shape:
            return f"must have inputs {self.shape}, as the run's own; got {other.shape}"
        if other.normalization != self.normalization:
            return (
                f"must be preprocessed as the run's own were: their normalization is {other.normalization}, "
                f"the run's is {self.normalization}"
            )
        if other.kind in ALIKE[self.kind]:
            return None
        return (
            f"must be preprocessed as the run's own were: they are {_WORDS[other.kind]}, the run's are "
            f"{_WORDS[self.kind]}"
        )


ALIKE: dict[Kind, tuple[Kind, ...]] = {
    "pixels": ("pixels", "unit"),  # both are scaled to [0, 1]
    "unit": ("pixels", "unit"),
    "real": ("real", "unit"),  # a few numbers may all happen to be in [0, 1]
    "tokens": ("tokens",),
    "flags": ("flags",),
}
_WORDS: dict[Kind, str] = {
    "pixels": "8-bit images",
    "unit": "images of numbers in [0, 1]",
    "real": "real numbers, not all in [0, 1]",
    "tokens": "whole numbers",
    "flags": "true and false",
}


def _kind(examples: ExampleSet) -> Kind:
    first = examples.raw(np.array([0]))
    if first.dtype == torch.uint8:
        return "pixels"
    if first.dtype == torch.bool:
        return "flags"
    if not first.is_floating_point():
        return "tokens"
    places = np.unique(np.linspace(0, len(examples) - 1, 64).astype(np.int64))
    held = examples.held
    raw = examples.raw(places) if held is None else held
    in_unit = (raw >= -SLACK) & (raw <= 1 + SLACK) | ~raw.isfinite()  # NaN has no scale, and is named elsewhere
    is_unit = raw.ndim == 4 and raw.shape[1] in COLOURS and bool(in_unit.all())
    return "unit" if is_unit else "real"


# --- new examples ------------------------------------------------------------------------------------------------


def image_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """Return image files: those named, and those in a folder and below it, in the order of their names.

    Raises:
        InputError: no such file or folder, a folder without images, a file named twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"There is no picture {path}.")
        inside = sorted(path.rglob("*")) if path.is_dir() else []
        images = [file for file in inside if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".")]
        if path.is_dir() and not images:
            raise InputError(f"{path} holds no picture ({', '.join(IMAGE_ENDINGS)}).")
        found += images or [path]
    if twice := sorted({str(file) for file in found if found.count(file) > 1}):
        raise InputError(f"A picture is named twice: {some(twice)}.")
    return tuple(found)


def prepared(examples: Picture | Iterable[Picture], to: Preprocessing) -> Tensor:
    """Return new examples ``(N, *shape)`` as the run's raw inputs are, before the normalisation.

    Where the run's examples are images (8-bit, or numbers in [0, 1] with 1, 3 or 4 channels):

    - a PIL image, or the path of one, or of a folder of them (taken in the order of their names), is brought to the
      run's colours (grey, RGB or RGBA) and size: the shorter side is resized, the centre cut out, as for folders of
      images;
    - an array or tensor of 8-bit numbers, or of real numbers in [0, 1], is one image (C, H, W), (H, W, C) or, with one
      channel, (H, W); or N of them, (N, C, H, W), (N, H, W, C) or, with one channel, (N, H, W). It needs the run's
      channels; another size is resized likewise.

    Elsewhere: an array of the run's shape, or ``(N, *shape)``, with numbers of the run's kind, taken as they are.

    Args:
        examples: one of these, or several.
        to: the run's preprocessing.

    Raises:
        InputError: numbers out of range, other channels or another shape, a file that is no image, none at all.
        InputTypeError: something else.
    """
    images = to.kind in ("pixels", "unit") and len(to.shape) == 3 and to.shape[0] in COLOURS
    one = _images if images else _plain
    if isinstance(examples, str | Path | np.ndarray | Tensor) or hasattr(examples, "getbands"):
        parts = [one(examples, to)]
    elif isinstance(examples, Iterable) and not isinstance(examples, Mapping):
        parts = [one(example, to) for example in examples]
    else:
        raise InputTypeError(f"New examples must be images, paths, arrays or tensors; got {type(examples).__name__}.")
    if not sum(map(len, parts)):
        raise InputError("There must be at least one new example; got none.")
    kinds = {part.dtype for part in parts}
    return torch.cat(parts if len(kinds) == 1 else [_real(part) for part in parts])


def _real(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images


def _plain(example: Picture, to: Preprocessing) -> Tensor:
    if not isinstance(example, np.ndarray | Tensor):
        raise InputTypeError(
            f"This run's examples are arrays {to.shape} of {_WORDS[to.kind]}; give such arrays, not "
            f"{type(example).__name__}."
        )
    found = as_input(example)
    if tuple(found.shape) == to.shape:
        found = found[None]
    kinds = {"real": found.is_floating_point(), "unit": found.is_floating_point(), "flags": found.dtype == torch.bool}
    kinds |= {"pixels": found.dtype == torch.uint8, "tokens": found.dtype in (torch.int32, torch.int64)}
    right = kinds[to.kind]
    if tuple(found.shape[1:]) != to.shape or not right:
        raise InputError(
            f"This run's examples are {_WORDS[to.kind]} {to.shape}; got {found.dtype} of shape {tuple(found.shape)}. "
            "Give them as the run's own were given."
        )
    return found.to(torch.float32) if found.is_floating_point() else found


def _images(picture: Picture, to: Preprocessing) -> Tensor:
    if isinstance(picture, str | Path):
        return torch.cat([_from_file(file, to) for file in image_files([picture])])
    if hasattr(picture, "getbands"):
        return _from_pil(picture, to)
    if isinstance(picture, np.ndarray | Tensor):
        return _from_array(as_input(picture).cpu(), to)
    raise InputTypeError(
        f"A new image must be a PIL image, a path, an array or a tensor; got {type(picture).__name__}."
    )


def _from_file(file: Path, to: Preprocessing) -> Tensor:
    with open_image(file) as opened:
        return _from_pil(opened, to)


def _from_pil(picture: Any, to: Preprocessing) -> Tensor:
    try:
        coloured = as_rgb(picture) if to.shape[0] == 3 or picture.mode.startswith(("I", "F")) else picture
    except ValueError as error:
        raise InputError(f"A picture must have 8 or 16 bits a channel: {error}.") from error
    pixels = np.asarray(_fitted(coloured.convert(COLOURS[to.shape[0]]), to))
    return torch.from_numpy(pixels.copy()).reshape(1, *to.shape[1:], to.shape[0]).permute(0, 3, 1, 2).contiguous()


def _fitted(picture: Any, to: Preprocessing) -> Any:
    from PIL import ImageOps

    return ImageOps.fit(picture, (to.shape[2], to.shape[1]))


def _from_array(array: Tensor, to: Preprocessing) -> Tensor:
    images = _channels_first(array, to)
    if images.is_floating_point():
        images = images.to(torch.float32)
        low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 1.0)
        if not -SLACK <= low <= high <= 1 + SLACK:
            raise InputError(
                f"Images of real numbers must be in [0, 1]; found {low:g} to {high:g}. Divide by the scale."
            )
    elif images.dtype != torch.uint8:
        raise InputError(f"Images must be 8-bit (uint8) or real numbers in [0, 1]; got {images.dtype}.")
    if images.shape[2:] == to.shape[1:] or not images.numel():
        return images.contiguous()
    return torch.stack([torch.stack([_resized(channel, to) for channel in image]) for image in images])


def _resized(channel: Tensor, to: Preprocessing) -> Tensor:
    from PIL import Image

    fitted = torch.from_numpy(np.array(_fitted(Image.fromarray(channel.numpy()), to)))
    return fitted.clamp(0, 1) if fitted.is_floating_point() else fitted  # cubic resizing overshoots


def _channels_first(array: Tensor, to: Preprocessing) -> Tensor:
    """(N, C, H, W) with the run's channels."""
    channels, shape = to.shape[0], tuple(array.shape)
    if array.ndim == 2 and channels == 1:
        return array[None, None]
    if array.ndim == 3 and channels == 1 and 1 not in (shape[0], shape[2]):
        return array[:, None]
    one = array[None] if array.ndim == 3 else array
    if one.ndim == 4:
        first, last = one.shape[1] == channels, one.shape[3] == channels
        if first and last and tuple(one.shape[1:]) != to.shape:
            raise InputError(
                f"Where the channels of {shape} are cannot be seen; put them first, (N, {channels}, H, W)."
            )
        if first:
            return one
        if last:
            return one.permute(0, 3, 1, 2)
    raise InputError(
        f"This run's images have {channels} channels; arrays must be ({channels}, H, W), (H, W, {channels}), or N of "
        f"these; got {shape}. PIL images are brought to the run's colours."
    )
