"""Tables of texts: read, numbered, split and read again; on real movie reviews where they lie."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from comove.data.builtin import load_dataset, reload_splits
from comove.data.hashed_ids import hashed_ids
from comove.data.texts import Columns, encode, read_texts_table, vocabulary_of, words_of
from comove.errors import InputError
from comove.training import Training, default_model, train

REVIEWS = Path(os.environ.get("COMOVE_DATA") or Path(__file__).parents[3] / "shared" / "data") / "text"
ROWS = [(f"a {'good' if i % 2 else 'bad'} film , number {i}", "yes" if i % 2 else "no") for i in range(40)]


def written(path: Path, rows: Sequence[Sequence[str]] = ROWS, head: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([head, *rows])
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_texts_of_every_kind_of_table_are_the_same_but_for_their_lines(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"films{ending}"
    if ending == ".parquet":
        pq.write_table(pa.table({"text": [t for t, _ in ROWS], "label": [label for _, label in ROWS]}), path)
    else:
        written(path)
    splits = load_dataset(str(path))
    assert splits.validation is not None
    assert [len(part) for part in splits.parts] == [32, 4, 4]
    assert splits.classes == ("no", "yes")
    first = 1 if ending == ".parquet" else 2  # of a CSV the first line holds the headings
    for part in splits.parts:
        assert part.texts is not None
        assert part.sources is not None
        for id_, label, text, source in zip(part.ids, part.labels, part.texts, part.sources, strict=True):
            row = [text for text, _ in ROWS].index(text)
            assert source == f"films{ending}:{row + first}"
            assert splits.classes[label] == ROWS[row][1]
            assert hashed_ids([text])[0] == id_
    assert default_model(splits) == "embedding-bag"


def test_lines_are_counted_through_quoted_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [("one\ntwo", "x"), ("three", "y"), ("four\n\nfive", "x"), ("six", "y")])
    assert list(read_texts_table(path, Columns()).lines) == [2, 4, 5, 8]


def test_words_are_those_of_the_training_texts_and_rare_ones_are_unknown() -> None:
    assert words_of("Isn't it\u2019s\tfine\u2026 no?") == ["isn't", "it\u2019s", "fine", "\u2026", "no", "?"]
    assert vocabulary_of(["b a a", "c b a"]) == ["a", "b", "c"]
    assert vocabulary_of(["b a a", "c b a"], 2) == ["a", "b"]
    assert encode(["a c b", "z", "b b b b"], ["a", "b"], 3).tolist() == [[2, 1, 3], [1, 0, 0], [3, 3, 3]]


def test_the_vocabulary_is_of_training_texts_alone_and_reloads(tmp_path: Path) -> None:
    path = written(tmp_path / "films.csv")
    splits = load_dataset(str(path), seed=4, limit=20)
    assert len(splits.train) == 20
    assert splits.train.texts is not None
    vocabulary = splits.source["vocabulary"].split(" ")
    assert set(vocabulary) == {word for text in splits.train.texts for word in words_of(text)}
    assert bool((splits.query.raw(np.arange(4)) == 1).any())  # the number of a film that training has not seen
    again = reload_splits(json.loads(json.dumps(splits.describe())), "runs/a")
    assert again.fingerprint == splits.fingerprint
    assert again.texts == splits.texts
    assert Training().resolve(splits).spec.options == (("vocabulary", len(vocabulary) + 2),)


def test_ids_of_texts_survive_lines_that_come_and_go_and_equal_texts_differ(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    before = load_dataset(str(written(path, [*ROWS, ROWS[3]]))).texts
    after = load_dataset(str(written(path, [("a new one", "yes"), *ROWS[5:], *ROWS[:4]]))).texts
    assert len(before) == 41
    assert {before[id_] for id_ in set(before) - set(after)} == {ROWS[3][0], ROWS[4][0]}
    assert all(before[id_] == after[id_] for id_ in set(before) & set(after))


@pytest.mark.parametrize("model", ["embedding-bag", "text-transformer"])
def test_a_small_model_learns_to_tell_texts_apart(tmp_path: Path, model: str) -> None:
    splits = load_dataset(str(written(tmp_path / "films.csv")))
    changes: dict[str, Any] = {"epochs": 8, "batch_size": 8, "lr": 0.02, "optimizer": "adamw"}
    run = train(splits, model, changes, model_options={"width": 8})
    assert run.result["query_accuracy"] == 1


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        (ROWS, ("review", "label"), r"no column 'text'; it has review, label\. Name the right one: --text-column"),
        (ROWS, ("text", "labels"), r"no column 'label'.*--label-column NAME\. Did you mean 'labels'"),
        ([*ROWS, (" ", "yes")], ("text", "label"), r"Column 'text' .* in 1 of 41 rows, line 42\. Fill in"),
        ([*ROWS, (" ", "yes"), ("", "yes")], ("text", "label"), r"in 2 of 42 rows, lines 42, 43\. Fill in"),
        ([*ROWS, ("fine", "")], ("text", "label"), r"Column 'label' .* in 1 of 41 rows, line 42\. Fill in"),
        ([(text, "yes") for text, _ in ROWS], ("text", "label"), r"at least two classes; .* 'yes' throughout"),
        ([*ROWS, ("a", "yes", "more")], ("text", "label"), r"must have 2 cells; others: line 42"),
        ([], ("text", "label"), "has headings, but no rows"),
    ],
)
def test_bad_tables_are_refused_in_a_line(tmp_path: Path, rows: Any, head: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(str(written(tmp_path / "films.csv", rows, head)))
    assert "\n" not in str(caught.value)


def test_another_encoding_is_refused_with_its_line_and_read_when_named(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_bytes(b"text,label\n" + "".join(f"caf\u00e9 {i},{i % 2}\n" for i in range(20)).encode("latin-1"))
    with pytest.raises(
        InputError, match=r"not encoded as utf-8 \(line 2\); name its encoding, such as --encoding latin-1"
    ):
        load_dataset(str(path))
    splits = load_dataset(str(path), columns=Columns(encoding="latin-1"))
    assert all(text.startswith("caf\u00e9") for text in splits.texts.values())
    assert reload_splits(splits.describe(), "x").fingerprint == splits.fingerprint
    with pytest.raises(InputError, match="no encoding 'klingon'"):
        load_dataset(str(path), columns=Columns(encoding="klingon"))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not")
    for name, message in (
        ("a.csv", "is empty"),
        ("a.parquet", "cannot be read as a Parquet file"),
        ("b.csv", "nor a file"),
    ):
        with pytest.raises(InputError, match=message):
            load_dataset(str(tmp_path / name))
    with pytest.raises(InputError, match="table of texts"):
        load_dataset("digits", columns=Columns())


@pytest.mark.skipif(not REVIEWS.is_dir(), reason="The movie-review sentences are not here")
def test_real_movie_reviews_are_learned_above_chance(tmp_path: Path) -> None:
    rows = [
        (text, name)
        for name in ("pos", "neg")
        for text in (REVIEWS / f"rt-polarity.{name}").read_text("latin-1").split("\n")[:1500]
        if text.strip()
    ]
    splits = load_dataset(str(written(tmp_path / "reviews.csv", rows)), queries=400)
    run = train(splits, None, None)
    assert run.model_spec.name == "embedding-bag"
    assert run.result["query_accuracy"] > 0.6  # 0.5 by chance, a deviation of 0.025
