"""Recipes: everything about training but the data, the model and the seed, in one frozen object."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from comove.errors import InputError, InputTypeError, did_you_mean
from comove.models import TEXT_MODELS
from comove.store import digest

__all__ = ["RECIPES", "Recipe", "as_recipe", "default_recipe"]

SCHEDULES = ("constant", "triangular", "multistep", "cosine")
LASTING = ("constant", "multistep")
"""Schedules whose learning rates do not depend on how many epochs there are."""
LAST_BATCHES = ("even", "short")
ADDED = {
    "optimizer": "sgd",
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "clip_norm": None,
    "warmup_epochs": 0.0,
    "early_stop_patience": None,
    "ema": None,
    "last_batch": "short",
}
"""Entries that recipes of earlier versions lack, with what these did. At these values they are left out of JSON, so
that manifests and fingerprints of runs and banks made before stay as they are."""
OPTIMIZERS = ("sgd", "adamw")
_OPTIONAL = ("clip_norm", "early_stop_patience", "ema")
_NUMBERS = (
    "lr",
    "momentum",
    "weight_decay",
    "peak_epoch",
    "gamma",
    "crop_padding",
    "label_smoothing",
    "eps",
    "warmup_epochs",
)
_LARGEST = 1e300


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: an optimizer with a schedule, augmentation, precision and when to stop.

    Args:
        epochs: passes over the training data.
        batch_size: examples a step, at most; see ``last_batch``.
        lr: peak learning rate.
        momentum: of SGD.
        nesterov: Nesterov's momentum, of SGD.
        weight_decay: of all parameters alike, as in the papers reproduced here. SGD adds it, times the parameter, to
            the gradient; AdamW shrinks the parameter by ``lr * weight_decay`` instead.
        schedule: ``constant``; ``triangular`` (0 to ``lr`` at ``peak_epoch``, then to 0; per step); ``multistep``
            (times ``gamma`` at each of ``milestones``, in epochs); ``cosine`` (to 0, from the end of warm-up; per
            step).
        peak_epoch: of the triangular schedule.
        milestones: of the multistep schedule.
        gamma: of the multistep schedule.
        augment: ``none`` or ``flip_crop`` (horizontal flip, shift by up to ``crop_padding`` pixels), on the device.
        crop_padding: pixels.
        precision: ``float32``, ``float16`` or ``bfloat16`` autocast; half precision is used on a GPU only.
        channels_last: memory format of convolutional inputs and weights.
        label_smoothing: of the training loss (recorded losses are never smoothed).
        optimizer: ``sgd`` or ``adamw`` (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019).
        betas: decay rates of AdamW's averages of the gradient and of its square.
        eps: of AdamW, added to the root of the second average.
        clip_norm: the gradient of all parameters together is scaled down to this norm where it is longer (Pascanu,
            Mikolov and Bengio, ICML 2013); ``None`` leaves gradients as they are.
        warmup_epochs: over these first epochs the learning rate rises linearly from 0, per step (Goyal et al.,
            "Accurate, Large Minibatch SGD", 2017). The triangular schedule has a rise of its own: with
            ``peak_epoch`` as the length of warm-up it is the linear schedule of transformers.
        early_stop_patience: training ends when the mean validation loss, after each epoch, has not been below its
            least value before for so many epochs; the weights stay as they are then (Prechelt, "Early Stopping: But
            When?", 1998). ``None`` trains for all ``epochs``. Schedules are those of all ``epochs`` in any case.
        ema: decay of an exponential moving average of the weights over steps (Polyak and Juditsky, 1992), which is
            then what is recorded, kept and evaluated; see :mod:`comove.training.ema`. ``None`` keeps the weights.
        last_batch: where ``batch_size`` does not divide the examples: ``even`` makes all batches of an epoch equally
            large but for one example; ``short`` leaves what is left to the last one, as earlier versions did and
            most loaders do. Batch norm learns badly from a few examples (docs/decisions/0090-even-batches.md).

    Raises:
        InputError: a value out of its range.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    peak_epoch: float = 5.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    augment: str = "none"
    crop_padding: int = 4
    precision: str = "float32"
    channels_last: bool = False
    label_smoothing: float = 0.0
    optimizer: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    warmup_epochs: float = 0.0
    early_stop_patience: int | None = None
    ema: float | None = None
    last_batch: str = "even"

    def __post_init__(self) -> None:
        for name in ("milestones", "betas"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
                raise InputError(f"Recipe: {name} must be a sequence of finite numbers, got {value!r}.")
            object.__setattr__(self, name, tuple(value))
        for name in (*_NUMBERS, *_OPTIONAL):
            value = getattr(self, name)
            if not _is_number(value) and not (value is None and name in _OPTIONAL):
                or_none = " or None" if name in _OPTIONAL else ""
                raise InputError(f"Recipe: {name} must be a finite number{or_none}, got {value!r}.")
        for name in ("nesterov", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"Recipe: {name} must be true or false, got {getattr(self, name)!r}.")
        for name, ok, must in self._requirements():
            if not ok:
                must += ", below 2**63" if must.startswith("a whole number") else ""
                raise InputError(f"Recipe: {name} must be {must}, got {getattr(self, name)!r}.")

    def _requirements(self) -> Iterator[tuple[str, bool, str]]:
        """Each entry's name, whether its value is in range, and a description of the range."""
        yield from (
            ("epochs", _is_whole(self.epochs) and self.epochs >= 1, "a whole number from 1 on"),
            (
                "batch_size",
                _is_whole(self.batch_size) and self.batch_size >= 2,
                "a whole number from 2 on",
            ),
            ("lr", self.lr > 0, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("nesterov", not (self.nesterov and self.momentum == 0), "false without momentum"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("augment", self.augment in ("none", "flip_crop"), "none or flip_crop"),
            ("precision", self.precision in ("float32", "float16", "bfloat16"), "float32, float16 or bfloat16"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            (
                "crop_padding",
                _is_whole(self.crop_padding) and self.crop_padding >= 0,
                "a whole number from 0 on",
            ),
        )
        patience = self.early_stop_patience
        yield from (
            ("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            ("nesterov", not (self.nesterov and self.optimizer == "adamw"), "false with AdamW"),
            ("betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            ("eps", self.eps > 0, "above 0"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0 or None"),
            (
                "warmup_epochs",
                0 <= self.warmup_epochs <= self.epochs,
                f"from 0 to epochs ({self.epochs}): warm-up must end with training at the latest",
            ),
            (
                "warmup_epochs",
                self.warmup_epochs == 0 or self.schedule != "triangular",
                "0 with the triangular schedule, whose rise is peak_epoch",
            ),
            (
                "early_stop_patience",
                patience is None or (_is_whole(patience) and patience >= 1),
                "a whole number of epochs from 1 on or None",
            ),
            ("ema", self.ema is None or 0 < self.ema < 1, "above 0 and below 1, or None"),
            ("last_batch", self.last_batch in LAST_BATCHES, " or ".join(LAST_BATCHES)),
        )

    def lr_at(self, epoch: float) -> float:
        """The learning rate after ``epoch`` (fractional) passes over the data.

        >>> Recipe(lr=0.4, schedule="triangular", epochs=24, peak_epoch=5).lr_at(5.0)
        0.4
        """
        rise = min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return rise * self._scheduled(epoch)

    def _scheduled(self, epoch: float) -> float:
        if self.schedule == "triangular":
            peak = min(self.peak_epoch, self.epochs)
            rising = epoch / peak if peak > 0 else 1.0
            falling = (self.epochs - epoch) / (self.epochs - peak) if self.epochs > peak else 1.0
            return self.lr * max(0.0, min(rising, falling, 1.0))
        if self.schedule == "multistep":
            return self.lr * float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))
        if self.schedule == "cosine":
            falling = self.epochs - self.warmup_epochs
            done = max(0.0, epoch - self.warmup_epochs) / falling if falling else 0.0
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.lr

    def to_json(self) -> dict[str, Any]:
        """A JSON object for manifests; of the entries in :data:`ADDED`, those that are not what is named there."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in ADDED or value != ADDED[name]
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_json` wrote, also before an entry was added; an unknown one is an :class:`InputError`."""
        known = {entry.name for entry in fields(cls)}
        unknown = set(content) - known
        if unknown:
            name = sorted(unknown)[0]
            raise InputError(f"Recipe has no {name!r}.{did_you_mean(name, known)} It has {', '.join(sorted(known))}.")
        return cls(**{**ADDED, **content})

    def with_changes(self, **changes: Any) -> Recipe:
        """A copy with some entries changed (``None`` leaves an entry as it is)."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def extended(self, epochs: int) -> Recipe:
        """The same for more epochs, of which the first are trained as before.

        >>> Recipe(epochs=30, lr=0.05).extended(40).epochs
        40

        Raises:
            InputError: not more epochs; a schedule whose learning rates depend on how many epochs there are.
        """
        if self.schedule not in LASTING:
            raise InputError(
                f"The learning rates of a {self.schedule} schedule depend on the number of epochs ({self.epochs}): "
                f"train a new run of {epochs} epochs. Runs with "
                f"schedule={' or '.join(map(repr, LASTING))} can be extended."
            )
        if epochs <= self.epochs:
            raise InputError(f"To be extended, a run must get more than its {self.epochs} epochs; got {epochs}.")
        return replace(self, epochs=epochs)

    @property
    def extendable(self) -> bool:
        """Whether more epochs leave the first ones as they are."""
        return self.schedule in LASTING

    def shortened(self, epochs: int) -> Recipe:
        """The same for a trial of so many epochs, which nothing may end earlier."""
        warmup = min(self.warmup_epochs, epochs)
        return replace(self, epochs=epochs, warmup_epochs=warmup, early_stop_patience=None)

    @property
    def fingerprint(self) -> str:
        """A fingerprint of every entry."""
        return digest(self.to_json())


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and _is_number(value) and abs(value) < 2**63  # as manifests hold them


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


RECIPES: dict[str, Recipe] = {
    # our own: reaches about 97 % on held-out digits
    "digits-mlp": Recipe(epochs=30, batch_size=64, lr=0.05, momentum=0.9),
    # our own, for a few thousand images on a CPU
    "resnet9-small": Recipe(
        epochs=15,
        batch_size=64,
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="triangular",
        peak_epoch=3,
        augment="flip_crop",
        crop_padding=2,
    ),
    # Park et al., "TRAK", ICML 2023: their ResNet-9 on CIFAR-10
    "trak-resnet9": Recipe(
        epochs=24,
        batch_size=512,
        lr=0.4,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="triangular",
        peak_epoch=5,
        augment="flip_crop",
        crop_padding=2,
        precision="float16",
        channels_last=True,
    ),
    # the CLD paper, appendix C: CIFAR-100
    "cifar-164": Recipe(
        epochs=164,
        batch_size=128,
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="multistep",
        milestones=(81, 121),
        augment="flip_crop",
    ),
    # our own: what small transformers and MLPs are usually trained with
    "adamw": Recipe(
        optimizer="adamw",
        epochs=30,
        batch_size=64,
        lr=1e-3,
        weight_decay=0.01,
        schedule="cosine",
        warmup_epochs=2,
        clip_norm=1.0,
    ),
    # our own, for a few thousand sentences
    "texts": Recipe(
        optimizer="adamw",
        epochs=10,
        batch_size=64,
        lr=3e-3,
        weight_decay=0.01,
        schedule="cosine",
        warmup_epochs=1,
        clip_norm=1.0,
    ),
}


def default_recipe(model: str, n_train: int) -> str:
    """The name of the recipe used when none is asked for, by model and number of training examples."""
    if (
        model in ("mlp", "cnn-small") or ":" in model
    ):  # a factory of the user's own may not take images: no augmentation
        return "digits-mlp"
    if model in TEXT_MODELS:
        return "texts"
    if model == "resnet9" and n_train >= 20_000:
        return "trak-resnet9"
    return "resnet9-small" if model == "resnet9" or n_train < 20_000 else "cifar-164"


def as_recipe(recipe: Recipe | str | Mapping[str, Any] | None, *, model: str, n_train: int) -> Recipe:
    """Take a recipe, its name, a mapping of entries, or ``None`` for the default of this model and data size.

    Raises:
        InputError: an unknown name or entry, a value out of range.
        InputTypeError: something else.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_json({"last_batch": LAST_BATCHES[0], **recipe})
    if not isinstance(recipe, str | None):
        raise InputTypeError(f"A recipe is a Recipe, a name or a mapping of entries, got {type(recipe).__name__}.")
    name = default_recipe(model, n_train) if recipe is None else recipe
    if name not in RECIPES:
        raise InputError(f"Unknown recipe {name!r}; known: {', '.join(RECIPES)}.{did_you_mean(name, RECIPES)}")
    return RECIPES[name]
