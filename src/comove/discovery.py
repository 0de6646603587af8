"""Finding methods: every concrete class of a kind in a sub-package, by name. Adding a method is adding a file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import TypeVar

from comove.errors import InputError, did_you_mean

__all__ = ["discover", "lookup"]

T = TypeVar("T")


def discover(package: str, base: type[T]) -> dict[str, type[T]]:
    """Return every concrete, public subclass of ``base`` defined in a module of ``package``, by its ``name``, sorted."""
    found: dict[str, type[T]] = {}
    folder = importlib.import_module(package)
    for module_info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for value in vars(module).values():
            own = inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
            if own and not inspect.isabstract(value) and not value.__name__.startswith("_"):
                found[str(value.name)] = value  # type: ignore[attr-defined]
    return dict(sorted(found.items()))


def lookup(name: str, among: Mapping[str, T], kind: str) -> T:
    """Return ``among[name]``; an unknown name is an :class:`InputError` that suggests the nearest."""
    if name not in among:
        raise InputError(f"Unknown {kind} {name!r}.{did_you_mean(name, among)} Known: {', '.join(among)}.")
    return among[name]
