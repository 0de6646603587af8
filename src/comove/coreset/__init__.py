"""Coreset methods behind one interface: ``select("cld", run, budget=0.1)`` gives a :class:`Coreset`.

Methods are discovered: each concrete :class:`Selector` in a module of this package; :func:`selectors` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from comove.coreset.base import Coreset, Picks, ScoreSelector, Selector, highest
from comove.coreset.budget import Budget, resolve_budget
from comove.discovery import build, discover
from comove.sources import SourceLike

__all__ = [
    "Budget",
    "Coreset",
    "Picks",
    "ScoreSelector",
    "Selector",
    "highest",
    "resolve_budget",
    "select",
    "selector",
    "selectors",
]


@cache
def selectors() -> dict[str, type[Selector]]:
    """Every coreset method by name."""
    return discover(__name__, Selector)  # type: ignore[type-abstract]


def selector(name: str, **options: Any) -> Selector:
    """Build the method called ``name`` with these options.

    Raises:
        InputError: an unknown name (the nearest are suggested) or option.
    """
    return build(name, selectors(), "coreset method", options)


def select(
    method: str | Selector,
    source: SourceLike | Sequence[SourceLike],
    budget: float | int | Sequence[int] | Mapping[int, int] = 0.1,
    **options: Any,
) -> Coreset:
    """Choose a coreset by a method's name, or by a selector already built.

    Args:
        method: a name of :func:`selectors`, or a :class:`Selector`.
        source: a run or a trace, or several of the same training examples.
        budget: a share (float), a number (int), or the number for each class.
        options: of the method named.

    Raises:
        InputError: as :meth:`Selector.select`; an unknown name or option.
    """
    chosen = selector(method, **options) if isinstance(method, str) else method
    return chosen.select(source, budget)
