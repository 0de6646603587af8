"""Coreset methods behind one interface: ``select("cld", run, budget=0.1)`` gives a :class:`Coreset`.

Methods are discovered: each concrete :class:`Selector` in a module of this package can be imported from here, and
:func:`selectors` lists them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comove.coreset.base import Picks, Scored, ScoreSelector, Selector, register, selectors
from comove.coreset.budget import Budget, resolve_budget
from comove.coreset.coreset import Coreset
from comove.discovery import discover, parse_method
from comove.ties import highest
from comove.training.sources import SourceLike

__all__ = [
    "Budget",
    "Coreset",
    "Picks",
    "ScoreSelector",
    "Scored",
    "Selector",
    "highest",
    "resolve_budget",
    "select",
    "selector",
    "selectors",
]


def selector(name: str, **options: Any) -> Selector:
    """Build the method called ``name`` with these options; the name can hold options too (``"ccs:score=cld"``).

    Raises:
        InputError: an unknown name (the nearest are suggested) or option.
    """
    return parse_method(name, selectors(), "coreset method", options)


def select(
    method: str | Selector,
    source: SourceLike | Sequence[SourceLike],
    budget: float | int | Sequence[int] | Mapping[int, int] = 0.1,
    **options: Any,
) -> Coreset:
    """Choose a coreset by a method's name, or by a selector already built.

    Args:
        method: a name of :func:`selectors`, with options or without (``"ccs:score=cld"``), or a :class:`Selector`.
        source: a run or a trace, or several of the same training examples.
        budget: a share (float), a number (int), or the number for each class.
        options: of the method named.

    Raises:
        InputError: as :meth:`Selector.select`; an unknown name or option.
    """
    chosen = selector(method, **options) if isinstance(method, str) else method
    return chosen.select(source, budget)


register(discover(__name__, Selector))  # type: ignore[type-abstract]


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for method in selectors().values():
            if method.__name__ == name:
                return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(method.__name__ for method in selectors().values())])
