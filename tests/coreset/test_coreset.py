"""The coreset object, its files, and choosing methods by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from comove.coreset import Coreset, highest, select, selector
from comove.errors import CorruptFileError, InputError, StorageError
from comove.training import Run


def made(**changes: Any) -> Coreset:
    plain: dict[str, Any] = {
        "ids": [9, 2, 5],
        "scores": [0.1, 0.1, -1 / 3],
        "weights": [1, 2.5, 1],
        "labels": [1, 0, 1],
        "method": "m",
        "n_candidates": 30,
        "classes": ("a,b", 'say "c"\n<d>'),
        "info": {"seed": 3},
    }
    return Coreset(**{**plain, **changes})


def test_its_arrays_are_typed_and_frozen() -> None:
    coreset = made()
    arrays = (coreset.ids, coreset.scores, coreset.weights, coreset.labels)
    assert [str(array.dtype) for array in arrays if array is not None] == ["int64", "float32", "float32", "int64"]
    for array in arrays:
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        coreset.method = "other"  # type: ignore[misc]


def test_it_counts_by_class() -> None:
    assert made().per_class == {0: 1, 1: 2}
    assert made(labels=None).per_class == {}
    assert len(made()) == 3


def test_balance_is_the_smallest_class_over_an_even_share() -> None:
    assert made().balance == pytest.approx(1 / 1.5)
    assert made(labels=[1, 1, 1]).balance == 0
    assert made(classes=("only",), labels=[0, 0, 0]).balance == 1
    assert made(labels=None).balance is None
    assert made(classes=None).balance is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": [1, 1, 2]}, "coreset ids must be unique"),
        ({"scores": [1.0]}, r"scores of a coreset of 3 must have its size, got \(1,\)"),
        ({"labels": [0]}, "labels of a coreset of 3"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**changes)


def test_the_kept_examples_of_a_data_set_are_a_subset_of_it_the_best_first(run: Run) -> None:
    train = run.data().train
    chosen = select("random", run, budget=5)
    kept = chosen.subset(train)
    assert [label for _, label in (kept[i] for i in range(len(kept)))] == [
        train.labels[train.positions([id_])[0]] for id_ in chosen.ids
    ]
    letters = made().subset(list("abcdefghij"))
    assert [letters[i] for i in range(len(letters))] == ["j", "c", "f"]
    with pytest.raises(InputError, match=r"no positions in a data set of 9: .* run.data\(\).train"):
        made().subset(list("abcdefghi"))


def test_highest_is_stable_in_ids() -> None:
    assert highest(np.array([1.0, 3.0, 3.0, -0.0, 0.0]), np.array([7, 9, 8, 2, 1]), 5).tolist() == [2, 1, 0, 4, 3]


@pytest.mark.parametrize("labels", [[1, 0, 1], None])
def test_both_files_bring_every_number_back(labels: list[int] | None, tmp_path: Path) -> None:
    coreset = made(labels=labels)
    for suffix in ("safetensors", "csv"):
        coreset.save(tmp_path / f"m.{suffix}")
        loaded = Coreset.load(tmp_path / f"m.{suffix}")
        for name in ("ids", "scores", "weights", "labels"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(coreset, name))
    whole = Coreset.load(tmp_path / "m.safetensors")
    assert (whole.method, whole.n_candidates, whole.classes, whole.info) == ("m", 30, coreset.classes, {"seed": 3})


def test_the_table_is_read_by_pandas_class_names_and_all(tmp_path: Path) -> None:
    made().save(tmp_path / "m.csv")
    frame = pd.read_csv(tmp_path / "m.csv")
    assert frame["id"].tolist() == [9, 2, 5]
    assert frame["class"].tolist() == ['say "c"\n<d>', "a,b", 'say "c"\n<d>']
    assert made().to_pandas()["label"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "text", ["", "id,score\n1,2\n", "id,score,weight,label\nx,1,1,0\n", "id,score,weight,label\n1\n"]
)
def test_a_table_that_is_no_coreset_is_refused(text: str, tmp_path: Path) -> None:
    if not text:
        with pytest.raises(CorruptFileError, match=r"m\.csv .*(table|exist)"):
            Coreset.load(tmp_path / "m.csv")
        return
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(CorruptFileError, match=r"m\.csv .*(table|exist)"):
        Coreset.load(tmp_path / "m.csv")


def test_a_truncated_or_foreign_file_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    made().save(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="truncated"):
        Coreset.load(file)
    from comove.attribution import Scores

    Scores(np.zeros((1, 1), np.float32), np.array([1]), np.array([2]), "m").save(file)
    with pytest.raises(CorruptFileError, match="not a comove coreset"):
        Coreset.load(file)


def test_saving_where_no_folder_can_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Cannot make the folder"):
        made().save(tmp_path / "file" / "m.csv")


def test_an_unknown_name_suggests_the_nearest(run: Run) -> None:
    with pytest.raises(InputError, match=r"Unknown coreset method 'randon'\. Did you mean 'random'"):
        select("randon", run)
    with pytest.raises(InputError, match=r"'random' has no option 'sed'\. Did you mean 'seed'\? Its options: seed"):
        selector("random", sed=1)


def test_it_prints_itself() -> None:
    assert repr(made()) == "Coreset(m: 3 of 30, 1 to 2 per class over 2 classes)"
    assert repr(made(labels=None)) == "Coreset(m: 3 of 30)"
