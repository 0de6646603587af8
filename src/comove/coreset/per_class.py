"""S = union over classes c of select(examples of class c, k_c), with sum_c k_c = k: any selector, class-balanced.

Quotas follow the classes' sizes by largest remainder, or are given. (In DeepCore a flag inside each of 13 methods; Guo,
Zhao, Bai, DEXA 2022.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from comove.coreset.base import Picks, Positions, Selector, adopt, as_selector
from comove.training.sources import Source

__all__ = ["PerClass"]


@dataclass(frozen=True)
class PerClass(Selector):
    """A selector applied to each class by itself; scores computed over all examples stay as they are.

    The result is sorted as the selector's own: by score, or, for a greedy one, in order of choice, the classes merged
    at an even pace.

    Args:
        selector: a selector, or its name (``"el2n"``, ``"el2n:first=5"``).

    Raises:
        InputError: an unknown name or option.
    """

    name: ClassVar[str] = "per_class"
    summary: ClassVar[str] = "what another selector keeps, class by class"
    cost: ClassVar[str] = "that of the selector within"
    balanced: ClassVar[bool] = True

    selector: Selector | str = "random"

    def __post_init__(self) -> None:
        inner = as_selector(self.selector, self.name)
        object.__setattr__(self, "selector", inner)
        adopt(self, inner, "requires", "greedy", "one_run")

    @property
    def label(self) -> str:
        """The name with that of the selector within, such as ``per_class(el2n)``."""
        return f"{self.name}({self.selector})"

    @property
    def _inner(self) -> Selector:
        assert isinstance(self.selector, Selector)
        return self.selector

    def _prepare(self, sources: tuple[Source, ...]) -> Any:
        return self._inner._prepare(sources)

    def _pick(self, prepared: Any, candidates: Positions, k: int) -> Picks:
        return self._inner._pick(prepared, candidates, k)
