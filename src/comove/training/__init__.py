"""The training loop, recipes, recorded runs, and engines that train many models with its results."""

from comove.training.adopt import adopt
from comove.training.adopted_folder import open_adopted
from comove.training.configuration import Training, as_training, default_model
from comove.training.exploration import Exploration, explore
from comove.training.loop import Resident, evaluate, fit, predict, resolve_device
from comove.training.many.choice import choose_engine, engines_for
from comove.training.many.engine import Engine, Engines, Trained, train_many
from comove.training.many.stacked import Member
from comove.training.recipe import RECIPES, Recipe, as_recipe, default_recipe
from comove.training.run import Checkpoint, Run
from comove.training.train import Recording, extend, train
from comove.training.weights import Weights

__all__ = [
    "RECIPES",
    "Checkpoint",
    "Engine",
    "Engines",
    "Exploration",
    "Member",
    "Recipe",
    "Recording",
    "Resident",
    "Run",
    "Trained",
    "Training",
    "Weights",
    "adopt",
    "as_recipe",
    "as_training",
    "choose_engine",
    "default_model",
    "default_recipe",
    "engines_for",
    "evaluate",
    "explore",
    "extend",
    "fit",
    "open_adopted",
    "predict",
    "resolve_device",
    "train",
    "train_many",
]
