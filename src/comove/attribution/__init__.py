"""Attribution methods behind one interface: ``CLD().fit(runs).attribute(queries)`` gives :class:`Scores`.

Methods are discovered: each concrete :class:`Attributor` in a module of this package can be imported from here, and
:func:`attributors` lists them by name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from comove.attribution.base import Attributor, Queries
from comove.attribution.scores import Ranking, Rankings, Scores
from comove.attribution.smoothness import Metasmoothness, metasmoothness
from comove.discovery import build, discover

__all__ = [
    "Attributor",
    "Metasmoothness",
    "Queries",
    "Ranking",
    "Rankings",
    "Scores",
    "attributor",
    "attributors",
    "metasmoothness",
]


@cache
def attributors() -> dict[str, type[Attributor]]:
    """Every attribution method by name."""
    return discover(__name__, Attributor)  # type: ignore[type-abstract]


def attributor(name: str, **options: Any) -> Attributor:
    """Build the method called ``name`` with these options.

    Raises:
        InputError: an unknown name (the nearest are suggested) or option.
    """
    return build(name, attributors(), "attribution method", options)


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for method in attributors().values():
            if method.__name__ == name:
                return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(method.__name__ for method in attributors().values())])
