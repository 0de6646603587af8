"""Budgets: how many examples a coreset holds, in all and of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from comove.checks import whole_number
from comove.data import Ids, largest_remainder
from comove.errors import InputError, InputTypeError

__all__ = ["Budget", "resolve_budget"]


@dataclass(frozen=True)
class Budget:
    """How many examples to pick: in all, and of each class (``None`` where classes do not matter)."""

    total: int
    per_class: dict[int, int] | None

    @property
    def left_out(self) -> tuple[int, ...]:
        """The classes of which nothing is picked."""
        return tuple(label for label, count in (self.per_class or {}).items() if count == 0)


def resolve_budget(
    budget: float | int | Sequence[int] | Mapping[int, int],
    labels: Ids | None,
    n: int,
    balanced: bool,
    who: str,
) -> Budget:
    """Turn what the user gave into numbers.

    Args:
        budget: a share (float in (0, 1]), a number (int), or the number for each class.
        labels: (N,) class indices, or ``None``.
        n: N.
        balanced: whether the method picks class by class; a total is then shared in proportion to the classes' sizes,
            by largest remainder (ties by a hash of the class).
        who: the method's name, for messages.

    Raises:
        InputError: 0 or less, more than there is, an unknown class, labels missing.
        InputTypeError: something else than a number, a sequence or a mapping.
    """
    if isinstance(budget, Mapping | Sequence | np.ndarray) and not isinstance(budget, str | bytes):
        return _class_budget(budget, labels, balanced, who)
    total = _total(budget, n)
    if not balanced:
        return Budget(total, None)
    classes, counts = _class_counts(labels, who)
    shares = largest_remainder(counts, total, ties=classes)
    return Budget(total, dict(zip(classes.tolist(), shares.tolist(), strict=True)))


def _total(budget: object, n: int) -> int:
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.integer | np.floating):
        raise InputTypeError(f"A budget is a share, a number, or a number for each class; got {budget!r}.")
    if isinstance(budget, float | np.floating):  # NaN is outside of (0, 1] too
        if not 0 < budget <= 1:
            raise InputError(f"A budget given as a share must be in (0, 1], got {budget}; give a number as an integer.")
        total = round(float(budget) * n)
        if total == 0:
            raise InputError(f"A budget of {budget} of {n} examples is less than one example.")
        return total
    if not 1 <= budget <= n:
        raise InputError(f"A budget must be from 1 to the {n} training examples, got {budget}.")
    return int(budget)


def _class_counts(labels: Ids | None, who: str) -> tuple[Ids, Ids]:
    if labels is None:
        raise InputError(f"{who} picks class by class and needs training labels; pass train_labels= when recording.")
    classes, counts = np.unique(labels, return_counts=True)
    return classes, counts.astype(np.int64)


def _class_budget(budget: Sequence[int] | Mapping[int, int], labels: Ids | None, balanced: bool, who: str) -> Budget:
    if not balanced:
        raise InputError(f"{who} does not pick class by class; give it one share or total.")
    classes, counts = _class_counts(labels, who)
    held = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    asked = dict(budget) if isinstance(budget, Mapping) else dict(enumerate(budget))
    if not isinstance(budget, Mapping) and len(asked) <= classes[-1]:
        raise InputError(
            f"A list of class budgets must have a number for each class 0 ... {classes[-1]}, got {len(asked)} numbers; "
            "use a mapping from class to number to name only some."
        )
    for label, count in asked.items():
        whole_number(label, "A class in a budget", error=InputError)
        whole_number(count, f"The budget of class {label}", error=InputError)
        if count > held.get(label, 0):
            raise InputError(f"The budget of class {label} is {count}, but it holds {held.get(label, 0)} examples.")
    total = sum(asked.values())
    if total == 0:
        raise InputError("The class budgets add up to 0; keep at least one example.")
    return Budget(int(total), {int(label): int(count) for label, count in asked.items()})
