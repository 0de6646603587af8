"""Classes given by name or by index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from comove.data.examples import Ids
from comove.errors import InputError, did_you_mean, some

__all__ = ["class_index", "class_indices"]


def class_index(word: str, classes: Sequence[str]) -> int:
    """Return the index of a class that is given by its name, or by the index in digits.

    >>> class_index("frog", ["cat", "frog"]), class_index("0", ["cat", "frog"])
    (1, 0)

    Raises:
        InputError: no such class.
    """
    if word in classes:
        return list(classes).index(word)
    if word.isdecimal() and int(word) < len(classes):
        return int(word)
    raise InputError(f"Unknown class {word!r}; the classes are {some(classes)}.{did_you_mean(word, classes)}")


def class_indices(labels: str | Iterable[str], classes: Sequence[str], count: int) -> Ids:
    """Return the indices (count,) of classes given as of :func:`class_index`: one for all examples, or one each.

    >>> class_indices("frog", ["cat", "frog"], 3).tolist()
    [1, 1, 1]

    Raises:
        InputError: no such class; neither one label nor ``count``.
    """
    words = [labels] if isinstance(labels, str) else list(labels)
    if len(words) not in (1, count):
        raise InputError(f"Give one label for all examples, or one each: got {len(words)} for {count} examples.")
    return np.array([class_index(word, classes) for word in words] * (count if len(words) == 1 else 1), np.int64)
