"""A folder of pictures and a table of texts from the shell: names in every table, dropped and relabelled, moved."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tests.cli.test_clean import comove

from comove.data.builtin import load_dataset
from comove.data.hashed_ids import hashed_ids
from comove.evaluation import RetrainingBank, subsets
from comove.training import Run, Training

TRAINED = ("--model", "mlp", "--epochs", 2, "--quiet")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits of two classes as PNGs, in a folder that holds a run on them."""
    root, digits = tmp_path_factory.mktemp("folder"), load_digits()
    for name, digit in (("three", 3), ("eight", 8)):
        (root / "photos" / name).mkdir(parents=True)
        for number, place in enumerate(np.flatnonzero(digits.target == digit)[:30]):
            pixels = (digits.images[place] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{number:02d}.png")
    assert comove("train", "--dataset", root / "photos", *TRAINED, "--out", root / "run").exit_code == 0
    return root


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 60 sentences in a CSV file with columns of other names."""
    root = tmp_path_factory.mktemp("texts")
    with (root / "films.csv").open("w", newline="") as file:
        rows = [(f"a {'good' if i % 2 else 'bad'} film number {i}", "yes" if i % 2 else "no") for i in range(60)]
        csv.writer(file).writerows([("review", "liked"), *rows])
    named = ("--text-column", "review", "--label-column", "liked")
    made = comove("train", "--dataset", root / "films.csv", *named, "--quiet", "--epochs", 3, "--out", root / "run")
    assert made.exit_code == 0, made.stderr
    return root


def ids_of(names: pd.Series[str]) -> list[int]:
    return [int(hashed_ids([name])[0]) for name in names]


def payload(page: Path) -> dict[str, object]:
    found = re.search(r'id="payload"[^>]*>(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_every_table_names_the_file(photos: Path, tmp_path: Path) -> None:
    made = comove("attribute", photos / "run", "--queries", 2, "--top", 3, "--out", tmp_path / "scores")
    assert made.exit_code == 0, made.stderr
    frame = pd.read_csv(tmp_path / "scores" / "cld-top.csv")
    assert frame["train_id"].tolist() == ids_of(frame["file"])
    assert frame["query_id"].tolist() == ids_of(frame["query_file"])
    assert f"({frame['query_file'][0]})" in made.stdout
    for name in frame["file"][:3]:
        assert name in made.stdout
    made = comove(
        "clean", photos / "run", "--methods", "loss", "aum", "--by", "aum", "--top", 4, "--out", tmp_path / "c"
    )
    assert made.exit_code == 0, made.stderr
    for table in ("suspicion.csv", "suspects.csv"):
        frame = pd.read_csv(tmp_path / "c" / table)
        assert frame["id"].tolist() == ids_of(frame["file"])
    assert frame["method"].tolist() == ["aum"] * 4 + ["loss"] * 4
    assert all(name in made.stdout for name in frame["file"][:4])
    made = comove("coreset", photos / "run", "--budget", "0.2", "--out", tmp_path / "kept.csv")
    frame = pd.read_csv(tmp_path / "kept.csv")
    assert frame["id"].tolist() == ids_of(frame["file"])
    assert frame["file"][0] in made.stdout


def test_the_report_names_the_file_of_each_example(photos: Path, texts: Path, tmp_path: Path) -> None:
    for run in (photos, texts):
        assert comove("report", run / "run", "--queries", 3, "--out", tmp_path / "r.html").exit_code == 0
        page, splits = payload(tmp_path / "r.html"), Run.load(run / "run").data()
        for side in ("query", "train"):
            ids = page[side]["ids"]  # type: ignore[index]
            assert page["files"][side] == [splits.sources[id_] for id_ in ids]  # type: ignore[index]
            if run is texts:
                assert page["texts"][side] == [splits.texts[id_] for id_ in ids]  # type: ignore[index]


def test_texts_are_shown(texts: Path, tmp_path: Path) -> None:
    made = comove("attribute", texts / "run", "--queries", 1, "--top", 3, "--out", tmp_path)
    frame = pd.read_csv(tmp_path / "cld-top.csv")
    assert all(text in made.stdout for text in frame["text"])
    assert (frame["file"].str.fullmatch(r"films\.csv:\d+")).all()
    made = comove("clean", texts / "run", "--methods", "aum", "--top", 2, "--out", tmp_path)
    assert "a good film number" in made.stdout or "a bad film number" in made.stdout
    made = comove("coreset", texts / "run", "--out", tmp_path / "kept.csv")
    assert "film number" in made.stdout
    for method in ("tracin", "trak"):
        assert comove("attribute", texts / "run", "--method", method, "--queries", 1, "--out", tmp_path).exit_code == 0


def test_a_cleaned_run_opens_from_every_command(photos: Path, tmp_path: Path) -> None:
    assert (
        comove("clean", photos / "run", "--methods", "aum", "loss", "--top", 3, "--out", tmp_path / "c").exit_code == 0
    )
    worst = pd.read_csv(tmp_path / "c" / "suspects.csv")["id"][:3].tolist()
    splits = Run.load(photos / "run").data()
    fixed = next(id_ for id_ in splits.train.ids.tolist() if id_ not in worst)
    (tmp_path / "fixes.csv").write_text(f"file,label\n{splits.sources[fixed]},three\n")
    words = ("--drop", tmp_path / "c" / "suspects.csv", "--relabel", tmp_path / "fixes.csv")
    run = tmp_path / "run"
    made = comove("train", "--dataset", photos / "photos", *words, *TRAINED, "--out", run)
    assert made.exit_code == 0, made.stderr
    assert "Note: 3 examples dropped" in made.stderr
    opened = Run.load(run).data()
    assert set(splits.train.ids) - set(opened.train.ids) == set(worst)
    assert opened.train.labels[opened.train.positions([fixed])].tolist() == [opened.classes.index("three")]
    for command in (
        ("attribute", run, "--queries", 1, "--method", "tracin", "--out", tmp_path / "a"),
        ("coreset", run, "--out", tmp_path / "k.csv"),
        ("clean", run, "--out", tmp_path / "d"),
        ("report", run, "--out", tmp_path / "r.html"),
        ("curve", run, "--budgets", "0.5", "--seeds", 1, "--executor", "serial", "--quiet", "--out", tmp_path / "v"),
    ):
        made = comove(*command)
        assert made.exit_code == 0, made.stderr
    again = comove("train", "--dataset", photos / "photos", *words, *TRAINED, "--out", run)
    assert again.exit_code == 0  # the same data: the run is opened


def test_dropped_examples_are_absent_from_a_bank_that_loads_its_data_again(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "drop.txt").write_text("three/00.png\nthree/01.png\neight/02.png\n")
    data = ("--dataset", photos / "photos", "--drop", tmp_path / "drop.txt", *TRAINED, "--executor", "serial")
    made = comove("lds", *data, "--subsets", 3, "--seeds", 1, "--runs", 1, "--out", tmp_path / "lds")
    assert made.exit_code == 0, made.stderr
    bank = RetrainingBank.load(tmp_path / "lds" / "bank")
    gone = hashed_ids(["three/00.png", "three/01.png", "eight/02.png"])
    trained = Run.load(photos / "run").data().train.ids
    assert sorted(bank.train_ids.tolist()) == np.setdiff1d(trained, gone).tolist()
    assert bank.train_ids.size < trained.size


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id\n5\n7\n", r"has 2 ids that these data have not: 5, 7"),
        (
            "file\nthree/99.png\n",
            r"names 1 files or lines that these data have not: three/99\.png.*Did you mean 'three/",
        ),
        ("", "is empty"),
        ("name,age\na,b\n", "needs a column 'id' or 'file'; it has name, age|needs a column 'id' or 'file' that names"),
        ("id\n", "has headings, but no rows"),
    ],
)
def test_what_cannot_be_dropped_is_named(photos: Path, tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "drop.csv").write_text(table)
    made = comove("train", "--dataset", photos / "photos", "--drop", tmp_path / "drop.csv", "--out", tmp_path / "x")
    assert made.exit_code == 2
    assert re.search(message, made.stderr), made.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\nthree/00.png,five\n", "Unknown class 'five'; the classes are eight, three"),
        ("file\nthree/00.png\n", "right class of each example in a column 'label'"),
        ("file,label\nthree/00.png,three\nthree/00.png,eight\n", "two labels"),
        ("file,label,class\nthree/00.png,three,eight\n", "two labels"),
    ],
)
def test_what_cannot_be_relabelled_is_named(photos: Path, tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "fixes.csv").write_text(table)
    made = comove("train", "--dataset", photos / "photos", "--relabel", tmp_path / "fixes.csv", "--out", tmp_path / "x")
    assert made.exit_code == 2
    assert re.search(message, made.stderr), made.stderr


def test_one_example_is_not_both_dropped_and_relabelled(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,label\nthree/00.png,eight\n")
    both = ("--drop", tmp_path / "t.csv", "--relabel", tmp_path / "t.csv")
    made = comove("train", "--dataset", photos / "photos", *both, "--out", tmp_path / "x")
    assert made.exit_code == 2
    assert "drop or relabel an example, not both" in made.stderr


def test_a_moved_folder_is_named_anew_and_another_is_refused(photos: Path, tmp_path: Path) -> None:
    run, moved = photos / "run", tmp_path / "animals"
    how = Training("mlp", {"epochs": 1})
    splits = load_dataset(str(photos / "photos"))
    RetrainingBank.create(tmp_path / "bank", splits, how, subsets=subsets.random(0.5, 2, 0), seeds=1)
    (photos / "photos").rename(moved)
    try:
        made = comove("coreset", run, "--method", "herding", "--out", tmp_path / "k.csv")
        cannot = comove("attribute", run, "--method", "tracin", "--queries", 1, "--out", tmp_path / "s")
        assert cannot.exit_code == 2
        assert "--dataset NEW" in cannot.stderr
        curve = ("curve", run, "--methods", "random", "--budgets", "0.5", "--seeds", 1, "--executor", "serial")
        for words in (
            (*curve, "--out", tmp_path / "curve"),
            ("bank", "work", tmp_path / "bank", "--executor", "serial"),
            ("attribute", run, "--method", "tracin", "--queries", 1, "--out", tmp_path / "s"),
        ):
            made = comove(*words, "--dataset", moved)
            assert made.exit_code == 0, made.stderr
        assert "three/" in made.stdout or "eight/" in made.stdout
        assert Run.load(run, dataset=str(moved)).data().fingerprint == Run.load(run).manifest["dataset"]["fingerprint"]
        Image.new("L", (8, 8)).save(moved / "three" / "new.png")
        other = comove("attribute", run, "--queries", 1, "--out", tmp_path / "s", "--dataset", moved)
        assert other.exit_code == 2
        assert "data set" in other.stderr
        (moved / "three" / "new.png").unlink()
    finally:
        moved.rename(photos / "photos")
    assert load_dataset(str(photos / "photos")).fingerprint == Run.load(run).manifest["dataset"]["fingerprint"]


def test_all_files_are_looked_at_with_folds_and_the_share_is_told(photos: Path, tmp_path: Path) -> None:
    made = comove("clean", photos / "run", "--methods", "aum", "--top", 3, "--out", tmp_path / "a")
    assert "48 of 60 examples (80%) were ranked, not the 12 held-out ones" in made.stderr
    made = comove("clean", photos / "run", "--folds", 2, "--top", 60, "--out", tmp_path / "c")
    assert made.exit_code == 0, made.stderr
    assert "All 60 examples were ranked" in made.stderr
    frame = pd.read_csv(tmp_path / "c" / "suspicion.csv")
    assert sorted(frame["file"]) == sorted(f"{name}/{n:02d}.png" for name in ("three", "eight") for n in range(30))
    assert (tmp_path / "c" / "suspicious.png").exists()
    assert comove("report", photos / "run", "--clean", tmp_path / "c", "--out", tmp_path / "r.html").exit_code == 0
    splits = Run.load(photos / "run").data()
    held_out = splits.query.ids[0]
    (tmp_path / "drop.csv").write_text(f"id\n{held_out}\n")
    made = comove(
        "train", "--dataset", photos / "photos", "--drop", tmp_path / "drop.csv", *TRAINED, "--out", tmp_path / "b"
    )
    assert made.exit_code == 0, made.stderr
    assert "1 of them held out" in made.stderr
    assert held_out not in Run.load(tmp_path / "b").data().query.ids
