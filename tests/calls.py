"""Arguments of evaluations, written flat in parametrised tests and grouped as the functions take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comove.evaluation import FitSubsets
from comove.jobs import Compute
from comove.training import Training

TRAINING = {"model": "model", "recipe": "recipe", "model_options": "options", "seed": "seed"}
COMPUTE = ("executor", "device", "progress")


def grouped(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``model``, ``recipe``, ``model_options`` and ``seed`` as ``training``; ``executor``, ... as ``compute``."""
    found = {name: value for name, value in flat.items() if name not in TRAINING and name not in COMPUTE}
    training = {TRAINING[name]: value for name, value in flat.items() if name in TRAINING}
    compute = {name: value for name, value in flat.items() if name in COMPUTE}
    fit = {name.removeprefix("fit_"): found.pop(name) for name in ("fit_subsets", "fit_alpha") if name in found}
    if "subsets" in fit:
        fit["count"] = fit.pop("subsets")
    return {
        **found,
        **({"fit": FitSubsets(**fit)} if fit else {}),
        **({"training": Training(**training)} if training else {}),
        **({"compute": Compute(**compute)} if compute else {}),
    }
