"""How models are trained: one value for the arguments that every retraining takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from comove.checks import check_seed
from comove.data import Splits
from comove.data.texts import FIRST
from comove.errors import InputError, InputTypeError
from comove.models import TEXT_MODELS, Factory, ModelSpec
from comove.training.recipe import Recipe, as_recipe

__all__ = ["Resolved", "Training", "as_training", "check_early_stop", "default_model"]


class Resolved(NamedTuple):
    """A training with its defaults filled in for some data; ``factory`` is the user's own, where there is one."""

    spec: ModelSpec
    recipe: Recipe
    factory: str | Factory | None


@dataclass(frozen=True)
class Training:
    """How models are trained: network, recipe, and the seed that every model's own seed is derived from.

    Attributes:
        model: a name (:func:`comove.models.model_names`), ``"package.module:factory"`` or a factory; by default the one
            that suits the data.
        recipe: a :class:`Recipe`, its name, a mapping of its entries; by default the model's.
        options: of the model, such as ``{"width": 0.125}``.
        seed: of weights, order and augmentation.
    """

    model: str | Factory | None = None
    recipe: Recipe | str | Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def resolve(self, splits: Splits) -> Resolved:
        """Fill in what the data decides.

        Raises:
            InputError: an unknown model or recipe, options that the model does not take, a bad seed.
        """
        check_seed(self.seed, "training")
        model = default_model(splits) if self.model is None else self.model
        shape = splits.train.input_shape
        options = dict(self.options)
        if model in TEXT_MODELS and "vocabulary" not in options:
            options["vocabulary"] = _tokens(splits)
        spec = ModelSpec.of(model, num_classes=len(splits.classes), input_shape=shape, **options)
        recipe = as_recipe(self.recipe, model=spec.name, n_train=len(splits.train))
        return Resolved(spec, recipe, model if callable(model) or ":" in model else None)


def as_training(given: Training | str | Factory | None) -> Training:
    """Return a training; a model's name or factory alone stands for one with that model's defaults.

    Raises:
        InputTypeError: something else.
    """
    if isinstance(given, Training):
        return given
    if given is None or isinstance(given, str) or callable(given):
        return Training(given)
    raise InputTypeError(f"training must be a Training, a model's name or a factory, got {type(given).__name__}.")


def check_early_stop(recipe: Recipe, splits: Splits) -> None:
    """Refuse to stop early by the loss of validation examples where there are none.

    Raises:
        InputError: the recipe has a patience, the data have no validation examples.
    """
    if recipe.early_stop_patience is not None and splits.validation is None:
        raise InputError(
            f"early_stop_patience={recipe.early_stop_patience} goes by the mean validation loss, and {splits.name!r} "
            "has no validation examples: split off some (split(..., validation=0.1)), or leave the patience out."
        )


def default_model(dataset: Splits) -> str:
    """The model trained when none is named: an MLP for tiny inputs, ResNet-9 for images, a mean of words for texts."""
    if dataset.train.texts is not None:
        return "embedding-bag"
    shape = dataset.train.input_shape
    return "resnet9" if len(shape) == 3 and min(shape[1:]) >= 32 else "mlp"


def _tokens(splits: Splits) -> int:
    """How many tokens a text classifier must know: those of the data's vocabulary, or up to the largest there is.

    Raises:
        InputError: inputs that are no tokens.
    """
    if "vocabulary" in splits.source:
        return FIRST + len(str(splits.source["vocabulary"]).split(" "))
    parts = [part.raw(np.arange(len(part))) for part in splits.parts]
    if any(part.is_floating_point() or bool((part < 0).any()) for part in parts):
        raise InputError(f"A text classifier reads tokens, whole numbers from 0 on; {splits.name!r} has other inputs.")
    return max(int(part.max()) for part in parts) + 1
