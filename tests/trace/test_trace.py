"""A trace gives back what was recorded, from memory and from disk, and refuses what is damaged or of other data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import comove
from comove import Trace
from comove.data import Splits
from comove.errors import CorruptFileError, FingerprintError, InputError, NonFiniteError, StorageError
from comove.store import read_arrays, read_header, read_json, write_arrays, write_json
from comove.trace import FIELDS, Row
from comove.training import Run

Losses = npt.NDArray[np.float32]


def losses(rows: int = 5, examples: int = 7, seed: int = 0) -> Losses:
    return np.random.default_rng(seed).random((rows, examples), dtype=np.float32)


def in_memory(**changes: Any) -> Trace:
    given: dict[str, Any] = {
        "train_losses": losses(),
        "query_losses": losses(5, 4, 1),
        "train_labels": [0, 1, 2, 0, 1, 2, 0],
        "query_labels": [2, 1, 0, 0],
        "train_ids": [70, 10, 20, 30, 40, 50, 60],
        "query_ids": [5, 3, 8, 6],
        "validation_ids": [8, 5],
    }
    return Trace.from_arrays(**{**given, **changes})


def assert_same(a: Trace, b: Trace) -> None:
    assert a.rows == b.rows
    assert a.fields == b.fields
    assert a.mode == b.mode
    assert a.anchors == b.anchors
    assert a.examples.keys() == b.examples.keys()
    for name, value in a.examples.items():
        np.testing.assert_array_equal(value, b.examples[name], err_msg=name)
    for side in ("train", "query"):
        for field in a.fields:
            np.testing.assert_array_equal(a.read(side, field), b.read(side, field), err_msg=f"{side}.{field}")
        for row in a.anchors:
            np.testing.assert_array_equal(a.features(side, row), b.features(side, row))
            np.testing.assert_array_equal(a.probabilities(side, row), b.probabilities(side, row))


# --- from arrays -------------------------------------------------------------------------------------------------


def test_from_arrays_gives_back_what_it_was_given() -> None:
    trace = in_memory()
    np.testing.assert_array_equal(trace.train_losses, losses())
    np.testing.assert_array_equal(trace.query_losses, losses(5, 4, 1))
    assert trace.train_ids.tolist() == [70, 10, 20, 30, 40, 50, 60]
    assert trace.train_labels is not None
    assert trace.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [row.epoch for row in trace.rows] == [0, 1, 2, 3, 4]
    assert (trace.mode, trace.fields, trace.anchors, trace.path) == ("given", ("loss",), (), None)
    assert repr(trace) == "Trace(5 rows, 7 train, 2 validation, 2 query, mode given, fields loss)"


def test_ids_default_to_positions_and_validation_to_all_queries() -> None:
    trace = Trace.from_arrays(train_losses=losses(), query_losses=losses(5, 4))
    assert trace.train_ids.tolist() == list(range(7))
    assert trace.validation_ids.tolist() == trace.query_ids.tolist() == [0, 1, 2, 3]
    assert trace.train_labels is None
    assert set(trace.examples) == {"train_ids", "query_ids", "validation_ids"}


def test_lists_tensors_and_float64_are_taken() -> None:
    expected = losses()
    tensor = torch.from_numpy(expected)
    for given in (expected.tolist(), tensor, tensor.clone().requires_grad_(), expected.astype(np.float64)):
        trace = Trace.from_arrays(train_losses=given, query_losses=given)
        assert trace.train_losses.dtype == np.float32
        np.testing.assert_array_equal(trace.train_losses, expected)


def test_inputs_are_neither_kept_nor_changed() -> None:
    matrix, ids, labels = losses(), np.arange(7), np.zeros(7, np.int64)
    trace = Trace.from_arrays(
        train_losses=matrix, query_losses=matrix, train_ids=ids, train_labels=labels, query_ids=ids, validation_ids=ids
    )
    for array in (matrix, ids, labels):
        assert array.flags.writeable
        array[...] = 9
    assert trace.train_ids.tolist() == list(range(7))
    assert trace.train_losses.max() < 1


def test_the_arrays_of_a_trace_are_read_only() -> None:
    trace = in_memory()
    for array in trace.examples.values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    trace.train_losses[:] = 0  # a copy
    np.testing.assert_array_equal(trace.train_losses, losses())


def test_explained_ids_are_the_queries_without_validation() -> None:
    assert in_memory().explained_ids.tolist() == [3, 6]
    assert in_memory(validation_ids=None).explained_ids.tolist() == [5, 3, 8, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_losses": losses()[0]}, r"train_losses must be \(rows, examples\), got shape \(7,\)"),
        ({"query_losses": np.zeros((5, 0))}, r"query_losses .*\(5, 0\)"),
        ({"train_losses": losses(6)}, "train_losses has 6 rows and query_losses 5"),
        ({"train_ids": [1, 2]}, "train_ids has 2 entries for 7 columns of train_losses"),
        ({"train_ids": [1, 1, 2, 3, 4, 5, 6]}, r"train_ids must be unique; 1 are repeated, among them \[1\]"),
        ({"query_ids": [1.0, 2.0, 3.0, 4.0]}, "query_ids must be a 1-D array of integers"),
        ({"train_labels": [0, 1]}, "train_labels has 2 entries for 7 examples"),
        ({"query_labels": [0, 1, 2, 0.5]}, "query_labels must be a 1-D array of integers"),
        ({"query_labels": [0, 1, 2, -1]}, "class indices from 0 on: 1 are out of range, .* label -1"),
        ({"validation_ids": [5, 9]}, r"Unknown validation_ids \(they must be among query_ids\): 9"),
        ({"validation_ids": [5, 5]}, "validation_ids must be unique"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        in_memory(**changes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["train", "query"])
def test_a_loss_that_is_not_finite_names_row_and_id(side: str, value: float) -> None:
    broken = losses() if side == "train" else losses(5, 4, 1)
    broken[3, 2] = value
    expected = {"train": 20, "query": 8}[side]
    with pytest.raises(NonFiniteError, match=rf"first in row 3 for the {side} example with id {expected} \({value}\)"):
        in_memory(**{f"{side}_losses": broken})


# --- saving and loading ------------------------------------------------------------------------------------------


def test_a_saved_trace_loads_the_same(tmp_path: Path) -> None:
    trace = in_memory()
    trace.save(tmp_path / "t")
    loaded = Trace.load(tmp_path / "t")
    assert_same(trace, loaded)
    assert loaded.validation_ids.tolist() == [8, 5]
    assert loaded.path == tmp_path / "t"
    loaded.save(tmp_path / "again")
    assert_same(trace, Trace.load(tmp_path / "again"))


def test_a_recorded_trace_is_copied_with_fields_labels_anchors_and_origin(trace: Trace, tmp_path: Path) -> None:
    assert set(trace.fields) == set(FIELDS)
    assert trace.anchors == (6,)
    trace.save(tmp_path / "copy")
    copy = Trace.load(tmp_path / "copy")
    assert_same(trace, copy)
    assert copy.validation_ids.size < copy.query_ids.size
    assert copy.manifest["data_fingerprint"] == trace.manifest["data_fingerprint"]
    assert copy.features("train").shape == (200, trace.features("train").shape[1])
    np.testing.assert_allclose(copy.probabilities("query").sum(1), 1, atol=1e-5)


def test_a_filled_row_stays_counted_through_save(tmp_path: Path) -> None:
    recorder = comove.Recorder(tmp_path / "a", train_ids=[0, 1], query_ids=[7], missing="previous")
    recorder.observe([0, 1, 7], loss=[1.0, 2.0, 3.0])
    recorder.end_epoch()
    recorder.observe([0], loss=[0.5])
    recorder.end_epoch()
    recorder.finish().save(tmp_path / "b")
    assert Trace.load(tmp_path / "b").rows == (Row(0, 0, 0.0, 0), Row(1, 1, 1.0, 2))


def test_save_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    trace = in_memory()
    trace.save(tmp_path / "t")
    with pytest.raises(InputError, match=r"not empty; a trace is frozen.*new folder"):
        trace.save(tmp_path / "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        trace.save(tmp_path / "file" / "t")


def test_save_without_its_end_is_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr("comove.trace.trace.write_manifest", full)
    with pytest.raises(StorageError):
        in_memory().save(tmp_path / "t")
    with pytest.raises(CorruptFileError, match="does not exist"):
        Trace.load(tmp_path / "t")


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Trace:
    """The same trace in memory and on disk."""
    trace = in_memory()
    if request.param == "memory":
        return trace
    trace.save(tmp_path / "t")
    return Trace.load(tmp_path / "t")


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_reading_in_blocks_of_columns_equals_reading_whole(either: Trace, block: int) -> None:
    parts = [either.read("train", columns=slice(start, start + block)) for start in range(0, 7, block)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), losses())


def test_a_lazy_matrix_is_what_read_reads(either: Trace, trace: Trace) -> None:
    for made, field in [(either, "loss"), *((trace, field) for field in FIELDS)]:
        for side in ("train", "query"):
            whole, lazy = made.read(side, field), made.lazy(side, field)
            assert (lazy.shape, lazy.dtype) == (whole.shape, whole.dtype)
            np.testing.assert_array_equal(lazy[:, 2:9], whole[:, 2:9])
            np.testing.assert_array_equal(np.asarray(lazy), whole)
    np.testing.assert_array_equal(either.lazy("train", rows=[3, 1])[:], either.read("train", rows=[3, 1]))
    with pytest.raises(InputError, match="must be in 0"):
        either.lazy("train", rows=[99])


def test_rows_are_read_in_the_order_asked_for(either: Trace) -> None:
    np.testing.assert_array_equal(either.read("query", rows=[3, 0, 3]), losses(5, 4, 1)[[3, 0, 3]])
    np.testing.assert_array_equal(either.read("query", rows=[2], columns=slice(1, 3)), losses(5, 4, 1)[[2], 1:3])


@pytest.mark.parametrize("rows", [[], [5], [-1]])
def test_rows_that_do_not_exist_are_refused(either: Trace, rows: list[int]) -> None:
    with pytest.raises(InputError, match=r"must be in 0 \.\.\. 4, got"):
        either.read("train", rows=rows)


def test_a_field_not_recorded_says_how_to_record_it(either: Trace) -> None:
    with pytest.raises(InputError, match=r"no 'el2n' of the train examples; it holds loss\. .*logits= and labels="):
        either.read("train", "el2n")
    with pytest.raises(InputError, match="side must be"):
        either.read("test")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"No features were kept.*anchors="):
        either.features("train")


def test_kd_has_no_first_row(trace: Trace) -> None:
    assert trace.read("train", "kd").shape == (6, 200)
    assert trace.read("train", "loss").shape == (7, 200)
    with pytest.raises(InputError, match=r"rows of 'kd' must be in 1 \.\.\. 6"):
        trace.read("train", "kd", rows=[0])


def test_only_the_columns_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory().save(tmp_path / "t")
    trace = Trace.load(tmp_path / "t")
    asked: list[tuple[list[str] | None, slice | None]] = []

    def spy(path: Path, names: list[str] | None = None, columns: slice | None = None) -> dict[str, npt.NDArray[Any]]:
        asked.append((names, columns))
        return read_arrays(path, names, columns)

    monkeypatch.setattr("comove.trace.trace.read_arrays", spy)
    trace.read("train", rows=[1, 2], columns=slice(2, 4))
    assert asked == [(["train.loss"], slice(2, 4))] * 2


def test_correct_is_8_bit_and_the_rest_float32(trace: Trace) -> None:
    kinds = {field: trace.read("query", field).dtype for field in trace.fields}
    assert kinds.pop("correct") == np.uint8
    assert set(kinds.values()) == {np.dtype(np.float32)}


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    in_memory().save(tmp_path / "t")
    return tmp_path / "t"


def test_a_row_a_file(saved: Path) -> None:
    assert sorted(file.name for file in (saved / "rows").iterdir()) == [f"00000{t}.safetensors" for t in range(5)]
    names, header = read_header(saved / "rows" / "000003.safetensors")
    assert set(names) == {"train.loss", "query.loss"}
    assert {name: header[name] for name in ("row", "step", "epoch", "filled")} == {
        "row": 3,
        "step": 3,
        "epoch": 3.0,
        "filled": 0,
    }


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_row_is_named_when_the_trace_is_opened(saved: Path, keep: int) -> None:
    file = saved / "rows" / "000002.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=re.escape(str(file)) + r" \(\d+ bytes\) is truncated"):
        Trace.load(saved)


def test_a_row_truncated_after_opening_is_named_when_it_is_read(saved: Path) -> None:
    trace = Trace.load(saved)
    file = saved / "rows" / "000002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=re.escape(str(file))):
        _ = trace.train_losses
    assert trace.read("train", rows=[0, 1, 3, 4]).shape == (4, 7)


def test_a_row_missing_in_the_middle_is_named(saved: Path) -> None:
    (saved / "rows" / "000002.safetensors").unlink()
    with pytest.raises(CorruptFileError, match=r"Row 2 of the trace is missing.*goes on with 000003"):
        Trace.load(saved)


def test_a_row_missing_at_the_end_is_counted(saved: Path) -> None:
    (saved / "rows" / "000004.safetensors").unlink()
    with pytest.raises(CorruptFileError, match="should hold 5 rows, found 4"):
        Trace.load(saved)


def test_a_row_in_the_place_of_another_is_refused(saved: Path) -> None:
    rows = saved / "rows"
    (rows / "000002.safetensors").write_bytes((rows / "000003.safetensors").read_bytes())
    with pytest.raises(CorruptFileError, match="holds row 3, not row 2"):
        Trace.load(saved)


def test_a_row_of_other_examples_is_refused_when_read(saved: Path) -> None:
    file = saved / "rows" / "000004.safetensors"
    write_arrays(
        file, {"train.loss": np.ones(1, np.float32), "query.loss": np.ones(4, np.float32)}, read_header(file)[1]
    )
    with pytest.raises(CorruptFileError, match=r"holds 1 values of train\.loss for 7 examples"):
        _ = Trace.load(saved).train_losses


def test_foreign_folders_and_manifests_are_refused(saved: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="is not a folder"):
        Trace.load(tmp_path / "nowhere")
    with pytest.raises(CorruptFileError, match="'comove/run', not a comove trace"):
        Trace.load(run.path)
    manifest = read_json(saved / "manifest.json")
    write_json(saved / "manifest.json", {**manifest, "format_version": 99})
    with pytest.raises(CorruptFileError, match="format version 99"):
        Trace.load(saved)


def test_examples_without_ids_are_refused(saved: Path) -> None:
    own = {"trace": read_json(saved / "manifest.json")["id"]}
    write_arrays(saved / "examples.safetensors", {"train_ids": np.arange(7)}, own)
    with pytest.raises(CorruptFileError, match="lacks query_ids, validation_ids"):
        Trace.load(saved)


# --- belonging to a data set -------------------------------------------------------------------------------------


def test_a_trace_opens_with_its_own_data_set_and_no_other(run: Run, small_digits: Splits, digits: Splits) -> None:
    path = run.path / "trace"
    assert len(Trace.load(path, dataset=small_digits).rows) == 7
    with pytest.raises(FingerprintError) as caught:
        Trace.load(path, dataset=digits)
    assert small_digits.fingerprint in str(caught.value)
    assert digits.fingerprint in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_trace_of_unknown_data_is_refused_for_a_data_set(saved: Path, small_digits: Splits) -> None:
    with pytest.raises(FingerprintError, match=rf"unknown.*{small_digits.fingerprint}"):
        Trace.load(saved, dataset=small_digits)


@pytest.mark.parametrize(
    ("ids", "stored"),
    [([0, 32_767], "int16"), ([-32_769, 0], "int32"), ([2**31, 5], "int64"), ([-(2**63), 2**63 - 1], "int64")],
)
def test_ids_are_stored_narrow_and_read_whole(tmp_path: Path, ids: list[int], stored: str) -> None:
    matrix = losses()[:, :2]
    Trace.from_arrays(train_losses=matrix, query_losses=matrix, train_ids=ids, train_labels=[0, 999]).save(
        tmp_path / "t"
    )
    on_disk = read_arrays(tmp_path / "t" / "examples.safetensors")
    assert [str(on_disk[name].dtype) for name in ("train_ids", "train_labels")] == [stored, "int16"]
    loaded = Trace.load(tmp_path / "t")
    assert loaded.train_ids.dtype == np.int64
    assert loaded.train_ids.tolist() == ids


def test_a_long_trace_takes_hardly_more_room_than_its_losses(tmp_path: Path) -> None:
    rows, n = 91, 20_000
    matrix = np.random.default_rng(0).random((rows, n), np.float32)
    labels = np.arange(n) % 1000
    Trace.from_arrays(train_losses=matrix, query_losses=matrix[:, :10], train_labels=labels).save(tmp_path / "t")
    size = sum(file.stat().st_size for file in (tmp_path / "t").rglob("*.safetensors"))
    assert size < 1.02 * matrix.nbytes


def test_a_row_truncated_after_opening_is_named_by_a_lazy_matrix(saved: Path) -> None:
    trace = Trace.load(saved)
    file = saved / "rows" / "000001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=re.escape(str(file))):
        trace.lazy("train")
