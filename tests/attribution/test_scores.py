"""Scores and rankings: what stands where, ids kept, and files that refuse to be something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from comove.attribution import Scores
from comove.errors import CorruptFileError, InputError, NonFiniteError, StorageError

VALUES = [[0.5, -1.0], [2.0, 0.0], [0.5, 3.0], [-4.0, 0.0]]


@pytest.fixture
def scores() -> Scores:
    return made()


def made(values: Any = VALUES, **changes: Any) -> Scores:
    plain: dict[str, Any] = {
        "values": np.asarray(values),
        "train_ids": [40, 10, 30, 20],
        "query_ids": [7, 5],
        "method": "m",
        "train_labels": [0, 1, 1, 0],
        "query_labels": [1, 0],
        "classes": ("cat", "dog"),
        "info": {"runs": 2, "note": "x"},
    }
    return Scores(**{**plain, **changes})


def test_a_column_is_the_query_with_that_id(scores: Scores) -> None:
    np.testing.assert_array_equal(scores.column(5), [-1.0, 0.0, 3.0, 0.0])
    np.testing.assert_array_equal(scores.column(7), [0.5, 2.0, 0.5, -4.0])


def test_top_is_the_highest_and_bottom_the_lowest_with_ties_to_the_lower_id(scores: Scores) -> None:
    assert list(scores.top(4, query=7)) == [(10, 2.0), (30, 0.5), (40, 0.5), (20, -4.0)]
    assert list(scores.bottom(4, query=5)) == [(40, -1.0), (10, 0.0), (20, 0.0), (30, 3.0)]
    assert scores.top(2, query=7).class_names() == ["dog", "dog"]
    assert len(scores.top(3, query=5)) == 3


def test_the_query_may_be_left_out_only_when_there_is_one(scores: Scores) -> None:
    assert scores.subset(query_ids=[5]).top(1).ids.tolist() == [30]
    with pytest.raises(InputError, match="Say which query"):
        scores.top(1)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_outside_the_training_examples_is_refused(scores: Scores, k: int) -> None:
    with pytest.raises(InputError, match=f"k must be from 1 to 4, got {k}"):
        scores.top(k, query=7)


def test_an_unknown_query_is_named(scores: Scores) -> None:
    with pytest.raises(InputError, match="Unknown query ids: 99"):
        scores.bottom(1, query=99)


def test_a_subset_keeps_the_order_asked_for(scores: Scores) -> None:
    part = scores.subset(train_ids=[20, 40], query_ids=[5, 7])
    np.testing.assert_array_equal(part.values, [[0.0, -4.0], [-1.0, 0.5]])
    assert part.train_labels is not None
    assert part.query_labels is not None
    assert (part.train_labels.tolist(), part.query_labels.tolist()) == ([0, 0], [0, 1])


def test_the_mean_matches_ids_not_positions(scores: Scores) -> None:
    other = scores.subset(train_ids=[10, 20, 30, 40], query_ids=[5, 7])
    doubled = dataclasses.replace(other, values=3 * other.values)
    mean = Scores.mean([scores, doubled], "ensemble")
    np.testing.assert_array_equal(mean.values, 2 * scores.values)
    np.testing.assert_array_equal(mean.train_ids, scores.train_ids)
    assert (mean.method, mean.info["averaged"]) == ("ensemble", 2)


def test_a_mean_of_nothing_or_of_other_shapes_is_refused(scores: Scores) -> None:
    with pytest.raises(InputError, match="Nothing to average"):
        Scores.mean([])
    with pytest.raises(InputError, match="Cannot average"):
        Scores.mean([scores, scores.subset(query_ids=[5])])


def test_the_object_and_its_arrays_are_frozen(scores: Scores) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.method = "other"  # type: ignore[misc]
    for array in (scores.values, scores.train_ids, scores.query_ids, scores.train_labels, scores.query_labels):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = 0


def test_what_was_passed_in_stays_writeable() -> None:
    values = np.array(VALUES, np.float32)
    made(values)
    values[0, 0] = 9


def test_transposed_values_are_recognised() -> None:
    with pytest.raises(InputError, match=r"\(train, query\) = \(4, 2\), got \(2, 4\)\. They look transposed"):
        made(np.array(VALUES).T)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_named(bad: float) -> None:
    values = np.array(VALUES)
    values[2, 1] = bad
    with pytest.raises(NonFiniteError, match="train id 30 and query id 5"):
        made(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_ids": [1, 1, 2, 3]}, "train_ids must be unique"),
        ({"query_ids": [1.5, 2.5]}, "query_ids must be a 1-D array of integers"),
        ({"train_labels": [0, 1]}, r"train_labels has shape \(2,\) for 4 ids"),
    ],
)
def test_ids_and_labels_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**changes)


def test_save_and_load_give_the_same_object(scores: Scores, tmp_path: Path) -> None:
    for name, original in {"full": scores, "bare": made(train_labels=None, query_labels=None, classes=None)}.items():
        original.save(tmp_path / f"{name}.safetensors")
        loaded = Scores.load(tmp_path / f"{name}.safetensors")
        for field in dataclasses.fields(Scores):
            np.testing.assert_equal(getattr(loaded, field.name), getattr(original, field.name))
        with pytest.raises(ValueError, match="read-only"):
            loaded.values[:] = 0


def test_loading_what_is_missing_truncated_or_foreign_is_refused(scores: Scores, tmp_path: Path) -> None:
    file = tmp_path / "scores.safetensors"
    with pytest.raises(CorruptFileError, match=r"scores\.safetensors"):
        Scores.load(file)
    scores.save(file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CorruptFileError, match="truncated"):
        Scores.load(file)
    from comove.store import write_arrays

    write_arrays(file, {"ids": np.arange(3)}, {"kind": "comove/coreset", "format_version": 1})
    with pytest.raises(CorruptFileError, match="not a comove scores"):
        Scores.load(file)
    write_arrays(file, {"values": np.zeros((1, 1))}, {"kind": "comove/scores", "format_version": 999})
    with pytest.raises(CorruptFileError, match="format version 999"):
        Scores.load(file)


def test_saving_where_no_folder_can_be_is_a_storage_error(scores: Scores, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Cannot make the folder"):
        scores.save(tmp_path / "file" / "scores.safetensors")


def test_frames_carry_ids_and_class_names(scores: Scores) -> None:
    frame = scores.to_pandas()
    assert frame.loc[30, 5] == 3.0
    assert (frame.index.name, frame.columns.name) == ("train_id", "query_id")
    top = scores.top(2, query=5).to_pandas()
    assert top.to_dict("list") == {"id": [30, 10], "score": [3.0, 0.0], "class": ["dog", "dog"]}


def test_they_print_themselves(scores: Scores) -> None:
    assert repr(scores) == 'Scores(m: 4 train x 2 queries, positive = helps; {"runs": 2, "note": "x"})'
    lines = repr(scores.top(1, query=5)).splitlines()
    assert lines[0] == "Ranking for query 5:"
    assert lines[2].split() == ["30", "+3.0000", "dog"]


def test_names_fall_back_to_labels_and_to_nothing() -> None:
    assert made(classes=None).top(1, query=5).class_names() == ["1"]
    assert made(train_labels=None).top(1, query=5).class_names() == [""]


def test_float64_values_become_float32_and_float32_is_not_copied() -> None:
    values: npt.NDArray[np.float32] = np.array(VALUES, np.float32)
    assert np.shares_memory(made(values).values, values)
    assert made(values.astype(np.float64)).values.dtype == np.float32
