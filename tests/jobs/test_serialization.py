"""What is unpacked equals what was packed, and arrays travel beside the pickle, not in it."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from comove.errors import MissingExamplesError
from comove.jobs.job_result import Outcome, attempt, collect, packed
from comove.jobs.serialization import chunks, from_bytes, pack, split, to_bytes, unpack

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(20)[::3],
    np.array(7, np.int64),
    np.empty((0, 4), np.float32),
    np.array(["a", "bc"]),
]
TENSORS = [
    torch.arange(6, dtype=torch.uint8).reshape(2, 3),
    torch.arange(6.0).reshape(2, 3).T,
    torch.ones(3, dtype=torch.bfloat16),
    torch.tensor(True),
    torch.empty(0, 4),
    torch.ones(3, requires_grad=True),
    torch.view_as_complex(torch.ones(2, 2)).conj(),
]


def through(value: Any) -> Any:
    """Send as one block, as to another process."""
    return from_bytes(to_bytes(pack(value)))


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_arrive_equal_and_writable(array: np.ndarray[Any, Any]) -> None:
    back = through({"x": array})["x"]
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    back[...] = back  # a read-only array raises


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}")
def test_tensors_arrive_equal(tensor: torch.Tensor) -> None:
    back = through((tensor,))[0]
    assert torch.equal(back, tensor)
    assert (back.dtype, back.requires_grad) == (tensor.dtype, tensor.requires_grad)
    with torch.no_grad():
        back.zero_()


def test_memory_arrives_aligned_as_torch_aligns_its_own() -> None:
    for one in through([np.ones(3, np.uint8), torch.ones(5, 5), np.ones(1), torch.ones(7)]):
        address = one.data_ptr() if isinstance(one, torch.Tensor) else one.ctypes.data
        assert address % 64 == 0


def test_large_arrays_are_not_copied_and_a_view_sends_only_what_it_shows() -> None:
    whole = torch.zeros(1000, 1000)
    parts = pack({"part": whole[:10], "array": np.zeros(10_000)})
    assert sorted(part.nbytes for part in parts[1:]) == [40_000, 80_000]
    assert parts[0].nbytes < 1_000
    whole[0, 0] = 7  # the same memory
    assert unpack(parts)["part"][0, 0] == 7


def test_local_functions_and_classes_travel_by_value_and_classes_come_back_as_themselves() -> None:
    class LocalError(Exception):
        pass

    assert through(lambda x: x + len(ARRAYS))(1) == 1 + len(ARRAYS)
    assert type(through(LocalError("x"))) is LocalError


def test_an_array_of_bytes_is_read_as_bytes_are() -> None:
    value = {"x": np.arange(5), "y": "text"}
    back = from_bytes(np.frombuffer(to_bytes(pack(value)), np.uint8))
    np.testing.assert_array_equal(back["x"], value["x"])
    assert back["y"] == "text"


def test_parts_are_split_where_they_lie_and_aligned() -> None:
    parts = [memoryview(bytes(size)) for size in (0, 1, 64, 65)]
    data = b"".join(chunks(parts))
    found = split(memoryview(data))
    assert [part.nbytes for part in found] == [0, 1, 64, 65]
    first = np.frombuffer(data, np.uint8).ctypes.data
    assert all((np.frombuffer(part, np.uint8).ctypes.data - first) % 64 == 0 for part in found[1:])


# --- outcomes ------------------------------------------------------------------------------------------------------


def outcome_of(do: Any) -> Outcome:
    outcome = unpack(packed(attempt(do)))
    assert isinstance(outcome, Outcome)
    return outcome


class _UnbuildableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def _raise(error: BaseException) -> Any:
    raise error


def test_an_error_keeps_its_type_its_words_and_its_traceback() -> None:
    with pytest.raises(MissingExamplesError, match="3 is missing") as raised:
        collect(outcome_of(lambda: _raise(MissingExamplesError("3 is missing"))), "seven", set())
    assert str(raised.value) == "3 is missing"
    assert "job seven" in raised.value.__notes__[0]
    assert "in _raise" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda: _raise(_UnbuildableError(1, 2)), "_UnbuildableError: 1 and 2"),
        (lambda: _raise(SystemExit(3)), "SystemExit: 3"),
        (threading.Lock, "TypeError: cannot pickle"),
    ],
)
def test_what_cannot_be_sent_becomes_an_error_that_says_so(do: Any, words: str) -> None:
    with pytest.raises(RuntimeError, match=words) as raised:
        collect(outcome_of(do), 0, set())
    assert "Traceback" in raised.value.__notes__[0]


def test_a_warning_is_passed_on_once_a_run() -> None:
    def warn() -> int:
        for _ in range(3):
            warnings.warn("odd", UserWarning, stacklevel=1)
        return 5

    warned: set[Any] = set()
    with pytest.warns(UserWarning, match="odd") as seen:
        assert [collect(outcome_of(warn), job, warned) for job in range(4)] == [5] * 4
    assert len(seen) == 1
    assert seen[0].filename == __file__
