"""The one training loop, recipes, and recorded runs."""

from comove.training.choice import choose_engine
from comove.training.engine import Engine, Trained, train_many
from comove.training.loop import Resident, evaluate, fit, predict, resolve_device
from comove.training.recipe import RECIPES, Recipe, as_recipe, default_recipe
from comove.training.run import Checkpoint, Run
from comove.training.stacked import Member
from comove.training.train import Recording, default_model, train

__all__ = [
    "RECIPES",
    "Checkpoint",
    "Engine",
    "Member",
    "Recipe",
    "Recording",
    "Resident",
    "Run",
    "Trained",
    "as_recipe",
    "choose_engine",
    "default_model",
    "default_recipe",
    "evaluate",
    "fit",
    "predict",
    "resolve_device",
    "train",
    "train_many",
]
