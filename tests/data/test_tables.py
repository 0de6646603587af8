"""Losses in a table, long or wide, in a file or in memory, are the trace of the same arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from comove import Trace
from comove.attribution import CLD
from comove.errors import CorruptFileError, InputError, InputTypeError, MissingExamplesError, NonFiniteError

TRAIN_IDS, QUERY_IDS = np.array([40, 10, 30, 2**53 + 1]), np.array([7, 9, 8])
TRAIN_LABELS, QUERY_LABELS = np.array([0, 1, 2, 1]), np.array([2, 0, 1])
EPOCHS = [0.0, 1.0, 2.5]
GENERATOR = np.random.default_rng(0)
TRAIN_LOSSES = GENERATOR.random((3, 4)).astype(np.float32)
QUERY_LOSSES = GENERATOR.random((3, 3)).astype(np.float32)
ARRAYS: dict[str, Any] = {
    "train_losses": TRAIN_LOSSES,
    "query_losses": QUERY_LOSSES,
    "train_labels": TRAIN_LABELS,
    "query_labels": QUERY_LABELS,
    "train_ids": TRAIN_IDS,
    "query_ids": QUERY_IDS,
}


def wide(side: str, split: bool) -> pd.DataFrame:
    losses, ids, labels = (ARRAYS[f"{side}_{what}"] for what in ("losses", "ids", "labels"))
    table = pd.DataFrame({"id": ids, "label": labels})
    if split:
        table["split"] = side
    for row, epoch in enumerate(EPOCHS):
        table[f"{epoch:g}"] = losses[row]
    return table


def long(side: str, split: bool) -> pd.DataFrame:
    names = ["id", "label", "split"] if split else ["id", "label"]
    melted = wide(side, split).melt(names, var_name="epoch", value_name="loss")
    return melted.assign(epoch=melted["epoch"].astype(float))


SHAPES = {"wide": wide, "long": long}


def assert_is_the_trace_of_the_arrays(trace: Trace, epochs: list[float] = EPOCHS) -> None:
    expected = Trace.from_arrays(**ARRAYS)
    assert [row.epoch for row in trace.rows] == epochs
    for name, value in expected.examples.items():
        np.testing.assert_array_equal(trace.examples[name], value, err_msg=name)
        assert trace.examples[name].dtype == np.int64
    np.testing.assert_array_equal(trace.train_losses, TRAIN_LOSSES)
    np.testing.assert_array_equal(trace.query_losses, QUERY_LOSSES)


# --- the identity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["csv", "parquet", "pandas"])
@pytest.mark.parametrize("files", [1, 2])
def test_every_way_in_gives_the_trace_of_the_arrays(shape: str, kind: str, files: int, tmp_path: Path) -> None:
    tables = [SHAPES[shape](side, split=files == 1) for side in ("train", "query")]
    if files == 1:
        tables = [pd.concat(tables, ignore_index=True)]
    if kind == "pandas":
        assert_is_the_trace_of_the_arrays(Trace.from_pandas(*tables))
        return
    paths = [tmp_path / f"{number}.{kind}" for number in range(files)]
    for table, path in zip(tables, paths, strict=True):
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    assert_is_the_trace_of_the_arrays(Trace.from_csv(*paths) if kind == "csv" else Trace.from_parquet(*paths))


def test_lines_and_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    table = pd.concat([long("train", True), long("query", True)])
    mixed = table.sample(frac=1, random_state=0)[["loss", "split", "id", "epoch", "label"]]
    trace = Trace.from_pandas(mixed)
    order = [list(trace.train_ids).index(one) for one in TRAIN_IDS]
    np.testing.assert_array_equal(trace.train_losses[:, order], TRAIN_LOSSES)
    turned = wide("train", False)[["2.5", "id", "0", "label", "1"]]
    assert_is_the_trace_of_the_arrays(Trace.from_pandas(turned, wide("query", False)))


@pytest.mark.parametrize("prefix", ["", "epoch_", "row_"])
def test_headings_of_rows_may_have_a_prefix_and_be_numbers(prefix: str) -> None:
    def renamed(side: str) -> pd.DataFrame:
        whole = {f"{epoch:g}": f"{prefix}{row}" for row, epoch in enumerate(EPOCHS)}
        table = wide(side, False).rename(columns=whole)
        return table if prefix else table.rename(columns={str(row): row for row in range(3)})

    assert_is_the_trace_of_the_arrays(Trace.from_pandas(renamed("train"), renamed("query")), [0, 1, 2])


def test_rows_are_in_order_of_their_numbers_not_of_their_names() -> None:
    table = pd.DataFrame({"id": [1, 2], "10": [0.1, 0.2], "9": [0.3, 0.4], "split": ["train", "query"]})
    assert Trace.from_pandas(table).train_losses[:, 0].tolist() == pytest.approx([0.3, 0.1])


def test_validation_examples_are_the_queries_that_coresets_aim_at() -> None:
    table = pd.concat([wide("train", True), wide("query", True)])
    table.loc[table["id"].isin([9, 8]), "split"] = "validation"
    trace = Trace.from_pandas(table)
    assert trace.query_ids.tolist() == [7, 9, 8]
    assert trace.validation_ids.tolist() == [9, 8]
    assert trace.explained_ids.tolist() == [7]


def test_labels_may_be_left_out_and_the_trace_attributes_and_saves(tmp_path: Path) -> None:
    tables = [wide(side, False).drop(columns="label") for side in ("train", "query")]
    trace = Trace.from_pandas(*tables)
    assert trace.train_labels is None
    trace.save(tmp_path / "t")
    again = Trace.load(tmp_path / "t")
    assert [row.epoch for row in again.rows] == EPOCHS
    np.testing.assert_array_equal(
        CLD().fit(again).attribute().values, CLD().fit(Trace.from_arrays(**ARRAYS)).attribute().values
    )


# --- bad input ---------------------------------------------------------------------------------------------------


def changed(name: str, line: int, value: Any) -> pd.DataFrame:
    """The long table of both sides with one cell changed; line 1 is id 10 at epoch 0."""
    table = pd.concat([long("train", True), long("query", True)], ignore_index=True).astype({name: object})
    table.loc[line, name] = value
    return table


BAD = {
    "a loss that is a word": (
        changed("loss", 1, "low"),
        InputError,
        r"'loss' of the table must hold numbers.*line 2 with 'low'",
    ),
    "an empty loss": (changed("loss", 1, None), NonFiniteError, r"row 0 for the train example with id 10 \(nan\)"),
    "an infinite loss": (changed("loss", 1, np.inf), NonFiniteError, r"row 0 for the train example with id 10 \(inf\)"),
    "a true loss": (changed("loss", 1, 0.5).assign(loss=True), InputError, "'loss' of the table must hold numbers"),
    "an id with a fraction": (
        changed("id", 1, 10.5),
        InputError,
        r"'id' of the table must hold integers.*line 2 with 10.5",
    ),
    "an id that is a word": (changed("id", 1, "ten"), InputError, r"'id' of the table must hold numbers.*'ten'"),
    "an empty id": (changed("id", 1, None), InputError, r"'id' of the table must hold integers"),
    "a label that changes": (
        changed("label", 1, 0),
        InputError,
        r"one label: it changes between rows for 1 train ids, 10",
    ),
    "an empty label": (changed("label", 1, None), InputError, "'label' of the table must hold integers"),
    "an unknown split": (
        changed("split", 1, "test"),
        InputError,
        r"'split' of the table must say train, validation, query.*'test'",
    ),
    "an empty epoch": (changed("epoch", 1, None), InputError, r"'epoch' of the table must be a number from 0 on"),
    "a cell twice": (
        changed("epoch", 1, 1.0),
        InputError,
        r"1 cells of the train table are given twice, the first for id 10 in row 1\.",
    ),
    "a cell missing": (
        changed("loss", 1, 0.5).drop(index=1),
        MissingExamplesError,
        r"1 cells of the train table are missing, the first for id 10 in row 0\.",
    ),
    "no id": (
        changed("loss", 1, 0.5).rename(columns={"id": "Id"}),
        InputError,
        r"needs a column 'id'.*Did you mean 'Id'",
    ),
    "no row": (
        changed("loss", 1, 0.5).drop(columns="epoch"),
        InputError,
        "needs one column 'row' or 'epoch' beside it",
    ),
    "row and epoch": (changed("loss", 1, 0.5).assign(row=0), InputError, "needs one column 'row' or 'epoch' beside it"),
    "an unknown column": (changed("loss", 1, 0.5).assign(steps=0), InputError, "columns that mean nothing here: steps"),
    "no split": (changed("loss", 1, 0.5).drop(columns="split"), InputError, r"needs a column 'split'.*as query="),
    "no query": (
        changed("loss", 1, 0.5).assign(split="train"),
        InputError,
        "No line of the table has split query or validation",
    ),
    "no lines": (changed("loss", 1, 0.5).iloc[:0], InputError, "the table has no lines"),
    "no losses": (pd.DataFrame({"id": [1], "label": [0]}), InputError, "must have a column 'loss'"),
    "a heading twice": (pd.DataFrame([[1, 2.0, 3.0]], columns=["id", "0", "0"]), InputError, "heading twice: 0"),
    "a row twice": (pd.DataFrame({"id": [1], "1": [1.0], "epoch_1": [1.0]}), InputError, "names a row twice"),
    "an array": (np.zeros((2, 2)), InputTypeError, "must be a pandas DataFrame, got ndarray"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_table_is_refused_with_the_place(what: str) -> None:
    table, error, message = BAD[what]
    with pytest.raises(error, match=message):
        Trace.from_pandas(table)  # type: ignore[arg-type]


def test_sides_recorded_at_different_moments_are_refused() -> None:
    with pytest.raises(InputError, match=r"same moments: the train table has rows 0.0, 1.0, 2.5, the query"):
        Trace.from_pandas(wide("train", False), wide("query", False).drop(columns="1"))
    with pytest.raises(InputError, match="pass one table, or drop the column"):
        Trace.from_pandas(wide("train", True), wide("query", False))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    for read in (Trace.from_csv, Trace.from_parquet):
        with pytest.raises(CorruptFileError, match="does not exist"):
            read(tmp_path / "none")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(CorruptFileError, match="not readable as a table"):
        Trace.from_csv(tmp_path / "empty")
    with pytest.raises(CorruptFileError, match="not readable as a table"):
        Trace.from_parquet(tmp_path / "text")


def test_ids_past_what_a_float_holds_come_through_a_file(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": [2**62 + 1, 2**62 + 3], "split": ["train", "query"], "0": [1.0, 2.0], "1": [0.5, 0.7]})
    table.to_csv(tmp_path / "t.csv", index=False)
    assert Trace.from_csv(tmp_path / "t.csv").train_ids.tolist() == [2**62 + 1]
    with pytest.raises(InputError, match="must hold integers"):
        Trace.from_pandas(table.astype({"id": float}))


def test_a_heading_twice_in_a_file_is_no_new_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,split,0,0\n1,train,1.0,2.0\n2,query,1.0,2.0\n")
    with pytest.raises(InputError, match=r"t\.csv has a heading twice: 0"):
        Trace.from_csv(tmp_path / "t.csv")
