"""``comove methods`` and ``comove doctor``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from comove.cli.app import command, computes_nothing, facts, fits, say, show, table
from comove.cli.options import DataDir
from comove.discovery import lookup

__all__ = ["doctor", "methods"]


@command
@computes_nothing
def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method to describe in full.", show_default="all are listed")
    ] = None,
) -> None:
    """List methods, models, recipes and data sets; or describe one method.

    On a narrow terminal costs and options are left out; comove methods | less -S shows them.

    Example: comove methods

    Example: comove methods cld
    """
    from comove.attribution import attributors
    from comove.coreset import selectors
    from comove.data.builtin import dataset_names
    from comove.models import model_names
    from comove.training import RECIPES

    known: dict[str, Mapping[str, Any]] = {"attribution": attributors(), "coreset": selectors()}
    if name is not None:
        _tell(name, known)
        return
    whole = _list("Attribution methods", known["attribution"], "what it measures")
    whole &= _list("Coreset methods", known["coreset"], "what it keeps")
    recipes = [
        [name, f"{recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g} {recipe.schedule}"]
        for name, recipe in RECIPES.items()
    ]
    table("\nRecipes", ["name", "training"], recipes, plain=2, name="recipes")
    data = f"{', '.join(dataset_names())}, a folder of images, or a table of texts"
    facts("", {"Models": ", ".join(model_names()), "Data sets": data}, name="known")
    if not whole:
        say("\ncomove methods NAME shows the cost and options of a method; comove methods | less -S those of all.")


def _list(title: str, found: Mapping[str, Any], what: str) -> bool:
    """Print a table of methods, and tell whether the terminal is wide enough for all there is to say."""
    head = ["name", "needs", what, "what it costs", "options"]
    rows = [[m.name, ", ".join(sorted(m.requires)), m.summary, m.cost, _options(m)] for m in found.values()]
    if whole := fits(head, rows):
        table(f"\n{title}", head, rows, plain=5, name=title.lower().replace(" ", "_"))
    else:
        short = [[m.name, ", ".join(sorted(m.requires - {"trace"})) or "trace", m.summary] for m in found.values()]
        table(f"\n{title}", head[:3], short, plain=3, name=title.lower().replace(" ", "_"))
    return whole


def _options(method: Any) -> str:
    import dataclasses

    return ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(method)) or "-"


def _tell(name: str, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Everything of the methods called ``name``: one may be of both kinds."""
    import inspect

    lookup(name, {name: kind for kind, among in known.items() for name in among}, "method")
    for kind, among in known.items():
        if (method := among.get(name)) is not None:
            summary = {
                "needs": ", ".join(sorted(method.requires)),
                "measures" if kind == "attribution" else "keeps": method.summary,
                "costs": method.cost,
                "options": _options(method),
                "in Python": f"{method.__module__.rpartition('.')[0]}.{method.__name__}",
            }
            facts(f"\n{name}, {'an' if kind == 'attribution' else 'a'} {kind} method", summary, name=f"{kind}_method")
            show(f"\n{inspect.getdoc(method)}")


@command
@computes_nothing
def doctor(data_dir: DataDir = None) -> None:
    """Show versions, device, threads and the folders in which data was found.

    Example: comove doctor --data-dir DIR
    """
    import shutil

    import torch

    from comove.data.builtin import data_folders, find_cifar10
    from comove.store import versions

    found = find_cifar10(data_dir)
    looked = ", ".join(str(folder) for folder in data_folders(data_dir))
    found_here = {
        **versions(),
        "CUDA device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "torch threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "digits": "built in (from scikit-learn)",
        "cifar10": f"{found[0]} in {found[1]}" if found else f"not found in {looked}; give its folder with --data-dir",
        "free disk here": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB",
    }
    facts("comove doctor", found_here, name="doctor")
