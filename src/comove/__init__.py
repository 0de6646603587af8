"""comove: which training examples a prediction depends on, and which are worth keeping.

Everything here is imported when first used, so ``import comove`` is quick and pulls in neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from comove.attribution import Scores
    from comove.coreset import Coreset, select
    from comove.data import ExampleSet, Splits, load_dataset, split
    from comove.evaluation import RetrainingBank, linear_datamodeling_score
    from comove.jobs import Compute
    from comove.retraining.own import OwnTraining
    from comove.trace import Recorder, Trace
    from comove.training import Exploration, Recipe, Recording, Run, Training, Weights, adopt, explore, train

_HOME = {
    "Compute": "comove.jobs",
    "Coreset": "comove.coreset",
    "ExampleSet": "comove.data",
    "Exploration": "comove.training",
    "OwnTraining": "comove.retraining.own",
    "Recipe": "comove.training",
    "Recorder": "comove.trace",
    "Recording": "comove.training",
    "RetrainingBank": "comove.evaluation",
    "Run": "comove.training",
    "Scores": "comove.attribution",
    "Splits": "comove.data",
    "Trace": "comove.trace",
    "Training": "comove.training",
    "Weights": "comove.training",
    "adopt": "comove.training",
    "explore": "comove.training",
    "linear_datamodeling_score": "comove.evaluation",
    "load_dataset": "comove.data",
    "select": "comove.coreset",
    "split": "comove.data",
    "train": "comove.training",
}

__all__ = [
    "Compute",
    "Coreset",
    "ExampleSet",
    "Exploration",
    "OwnTraining",
    "Recipe",
    "Recorder",
    "Recording",
    "RetrainingBank",
    "Run",
    "Scores",
    "Splits",
    "Trace",
    "Training",
    "Weights",
    "__version__",
    "adopt",
    "explore",
    "linear_datamodeling_score",
    "load_dataset",
    "select",
    "split",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'comove' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
