"""Finding methods: every concrete class of a kind in a sub-package, by name. Adding a method is adding a file."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from comove.errors import InputError, did_you_mean

__all__ = ["build", "check_choice", "check_seed", "discover", "label_of", "lookup", "parse_method"]

T = TypeVar("T")


def discover(package: str, base: type[T]) -> dict[str, type[T]]:
    """Return every concrete, public subclass of ``base`` defined in a module of ``package``, by its ``name``."""
    found: dict[str, type[T]] = {}
    folder = importlib.import_module(package)
    for module_info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for value in vars(module).values():
            own = inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
            if own and not inspect.isabstract(value) and not value.__name__.startswith("_"):
                found[str(value.name)] = value
    return dict(sorted(found.items()))


def lookup(name: str, among: Mapping[str, T], kind: str) -> T:
    """Return ``among[name]``; an unknown name is an :class:`InputError` that suggests the nearest."""
    if name not in among:
        raise InputError(f"Unknown {kind} {name!r}.{did_you_mean(name, among)} Known: {', '.join(among)}.")
    return among[name]


def build(name: str, among: Mapping[str, type[T]], kind: str, options: Mapping[str, Any]) -> T:
    """Build the method called ``name``; an unknown name or option is an :class:`InputError`."""
    method = lookup(name, among, kind)
    known = [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise InputError(
                f"The {kind} {name!r} has no option {option!r}.{did_you_mean(option, known)} "
                f"Its options: {', '.join(known) or 'none'}."
            )
    return method(**options)


def check_choice(value: object, choices: Sequence[str], option: str, who: str) -> None:
    """Check a method's option against its choices when the method is built, long before it is used.

    Raises:
        InputError: another value; the nearest choices are suggested.
    """
    if value not in choices:
        raise InputError(
            f"{who}: {option} must be one of {', '.join(choices)}, got {value!r}.{did_you_mean(str(value), choices)}"
        )


def check_seed(seed: object, who: str) -> None:
    """Check a method's ``seed``, as :func:`comove.checks.check_seed`; that needs NumPy, which naming methods does not.

    Raises:
        InputError: not a whole number from 0 on.
    """
    from comove.checks import check_seed as check

    check(seed, who)


def label_of(method: Any) -> str:
    """A method's name, with the options that differ from their defaults, such as ``cld(correlation=spearman)``."""
    changed = [
        f"{field.name}={getattr(method, field.name)}"
        for field in dataclasses.fields(method)
        if field.repr and getattr(method, field.name) != field.default  # repr=False: where and how fast, not what
    ]
    return f"{method.name}({', '.join(changed)})" if changed else str(method.name)


def parse_method(text: str, among: Mapping[str, type[T]], kind: str, options: Mapping[str, Any] | None = None) -> T:
    """Build a method from text such as ``cld`` or ``cld:correlation=spearman:common_mode=remove``.

    A method that is the value of an option is named likewise, in parentheses where it has options of its own:
    ``ccs:score=cld``, ``ccs:score=(el2n:first=5):beta=0.1``.

    Args:
        text: the name and its options.
        among: methods by name.
        kind: what they are, for messages.
        options: further ones, which count before those in the text.

    Raises:
        InputError: an unknown name or option, or a value that is not ``option=value``.
    """
    name, *pairs = re.split(r":(?![^(]*\))", text.strip())
    named: dict[str, Any] = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"Options follow a method's name as name:option=value:option=value, got {text!r}.")
        named[option] = _value(value)
    return build(name, among, kind, {**named, **(options or {})})


def _value(text: str) -> Any:
    if text.startswith("(") and text.endswith(")"):
        return text[1:-1]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
