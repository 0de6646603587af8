"""low <= option <= high: what a selector's numbers must satisfy, checked when it is built, long before it is used."""

from __future__ import annotations

import math

from comove.errors import InputError

__all__ = ["check_number", "check_share", "check_whole"]


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_whole(value: object, option: str, who: str) -> None:
    """Raise an :class:`InputError` unless ``value`` is a whole number from 1 on."""
    if not (_is_number(value, int) and value >= 1):  # type: ignore[operator]
        raise InputError(f"{who}: {option} must be a whole number from 1 on, got {value!r}.")


def check_number(value: object, option: str, who: str, *, zero: bool = False) -> None:
    """Raise an :class:`InputError` unless ``value`` is a finite number above 0, or ``zero`` itself where allowed."""
    fine = _is_number(value, int, float) and math.isfinite(value)  # type: ignore[arg-type]
    if not (fine and (value > 0 or (zero and value == 0))):  # type: ignore[operator]
        raise InputError(
            f"{who}: {option} must be a finite number {'from 0 on' if zero else 'above 0'}, got {value!r}."
        )


def check_share(value: object, option: str, who: str) -> None:
    """Raise an :class:`InputError` unless ``value`` is a share from 0 to below 1."""
    if not (_is_number(value, int, float) and 0 <= value < 1):  # type: ignore[operator]
        raise InputError(f"{who}: {option} must be a share from 0 to below 1, got {value!r}.")
