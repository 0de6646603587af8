"""The one training loop, recipes, and recorded runs."""

from comove.training.loop import Resident, evaluate, fit, predict, resolve_device
from comove.training.recipe import RECIPES, Recipe, as_recipe, default_recipe
from comove.training.run import Checkpoint, Run
from comove.training.train import Recording, default_model, train

__all__ = [
    "RECIPES",
    "Checkpoint",
    "Recipe",
    "Recording",
    "Resident",
    "Run",
    "as_recipe",
    "default_model",
    "default_recipe",
    "evaluate",
    "fit",
    "predict",
    "resolve_device",
    "train",
]
