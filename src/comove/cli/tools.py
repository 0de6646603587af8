"""``comove methods`` and ``comove doctor``."""

from __future__ import annotations

import os
from typing import Any

from comove.cli.app import command, facts, table
from comove.cli.options import DataDir

__all__ = ["doctor", "methods"]


@command
def methods() -> None:
    """List attribution methods, coreset methods, models, recipes and data sets.

    Example: comove methods
    """
    from comove.attribution import attributors
    from comove.coreset import selectors
    from comove.datasets import dataset_names
    from comove.models import model_names
    from comove.training import RECIPES

    for title, found, what in (
        ("\nAttribution methods", attributors(), "what it measures"),
        ("\nCoreset methods", selectors(), "what it keeps"),
    ):
        table(
            title, ["name", "needs", what, "what it costs", "options"], [_row(cls) for cls in found.values()], plain=5
        )
    recipes = [
        [name, f"{recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g} {recipe.schedule}"]
        for name, recipe in RECIPES.items()
    ]
    table("\nRecipes", ["name", "training"], recipes, plain=2)
    data = f"{', '.join(dataset_names())}, or a folder of images"
    facts("", {"Models": ", ".join(model_names()), "Data sets": data})


def _row(method: Any) -> list[str]:
    import dataclasses

    options = ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(method)) or "-"
    return [method.name, ", ".join(sorted(method.requires)), method.summary, method.cost, options]


@command
def doctor(data_dir: DataDir = None) -> None:
    """Show versions, device, threads and where data was found.

    Example: comove doctor --data-dir DIR
    """
    import shutil

    import torch

    from comove.datasets import data_folders, find_cifar10
    from comove.store import versions

    found = find_cifar10(data_dir)
    looked = ", ".join(str(folder) for folder in data_folders(data_dir))
    found_here = {
        **versions(),
        "CUDA device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "torch threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "digits": "embedded (scikit-learn)",
        "cifar10": f"{found[0]} in {found[1]}" if found else f"not found in {looked}; name its folder with --data-dir",
        "free disk here": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB",
    }
    facts("comove doctor", found_here)
