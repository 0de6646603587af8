"""Classes given by name or by index."""

from __future__ import annotations

import pytest

from comove.data.class_names import class_index, class_indices
from comove.errors import InputError

CLASSES = ["cat", "dog", "0"]


def test_a_name_comes_before_an_index() -> None:
    assert [class_index(word, CLASSES) for word in ("dog", "1", "0")] == [1, 1, 2]


def test_one_label_is_for_all_examples() -> None:
    assert class_indices("dog", CLASSES, 3).tolist() == [1, 1, 1]
    assert class_indices(["dog", "cat"], CLASSES, 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        ("dg", 1, "Unknown class 'dg'; the classes are cat, dog, 0. Did you mean 'dog'"),
        ("3", 1, "Unknown class '3'"),
        (["cat", "dog"], 3, "one label for all examples, or one each: got 2 for 3"),
        ([], 3, "got 0 for 3"),
    ],
)
def test_what_is_no_class_is_refused(labels: str | list[str], count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_indices(labels, CLASSES, count)
