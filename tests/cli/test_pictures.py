"""``comove attribute --image``: pictures of one's own, what is said of them, the files, and the report of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from comove import cli
from comove.attribution import CLD, Scores
from comove.attribution.pictures import open_pictures
from comove.data.preparation import image_files
from comove.errors import InputError
from comove.training import Run


def comove_(*words: object) -> Any:
    """Run a command in this process; its ``exit_code``, ``stdout`` and ``stderr``."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """Three held-out digits as PNG files, one of them a level down, and a text that is no picture."""
    queries, folder = run.data().query, tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    for position, name in enumerate(("b.png", "a.png", "more/c.png")):
        pixels = (255 * queries.raw(np.array([position]))[0, 0].numpy()).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_of_pictures_without_labels_is_explained_by_what_the_runs_predict(
    runs: tuple[Run, ...], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = comove_("attribute", *(run.path for run in runs), "--image", folder, "--out", out)
    assert made.exit_code == 0, made.stderr
    assert {file.name for file in out.iterdir()} == {"cld.safetensors", "cld-top.csv", "cld-influence.png"}
    files = [folder / name for name in ("a.png", "b.png", "more/c.png")]
    prepared = runs[0].prepare(files, [0, 0, 0])
    seen = np.mean([run.class_logits(prepared).double().softmax(1).numpy() for run in runs], axis=0)  # type: ignore[union-attr]
    scores = Scores.load(out / "cld.safetensors")
    assert scores.query_labels is not None
    assert scores.query_labels.tolist() == seen.argmax(1).tolist()
    assert scores.info["pictures"] == list(map(str, files))
    assert scores.info["labelled"] is False
    expected = CLD().fit(runs).attribute(prepared.with_labels(seen.argmax(1)))
    np.testing.assert_array_equal(scores.values, expected.values)
    for id_, name in enumerate(("a.png", "b.png", "c.png")):
        told = f"{name}: predicted {seen[id_].argmax()} ({seen[id_].max():.0%}), which is explained, as no label"
        assert told in made.stderr
    assert "help a.png most" in made.stdout
    assert "cld: 200 training examples x 3 pictures, the mean of 2 runs" in made.stderr
    table = pd.read_csv(out / "cld-top.csv")
    assert table["picture"].unique().tolist() == ["a.png", "b.png", "c.png"]
    best = table[(table["picture"] == "b.png") & (table["side"] == "helps")]["train_id"]
    assert best.tolist() == scores.top(10, query=1).ids.tolist()


def test_a_label_is_what_is_explained_and_json_says_both(run: Run, folder: Path, tmp_path: Path) -> None:
    words = ("attribute", run.path, "--image", folder / "a.png", folder / "b.png", "--label", "5", "--json")
    made = comove_(*words, "--out", tmp_path / "out")
    assert made.exit_code == 0, made.stderr
    found = json.loads(made.stdout)
    assert [row["explained"] for row in found["pictures"]] == ["5", "5"]
    assert all(row["labelled"] for row in found["pictures"])
    assert {row["picture"] for row in found["top"]} == {"a.png", "b.png"}
    scores = Scores.load(tmp_path / "out/cld.safetensors")
    assert scores.query_labels is not None
    assert scores.query_labels.tolist() == [5, 5]
    each = comove_(*words[:-2], "3", "--out", tmp_path / "each")
    assert each.exit_code == 0, each.stderr
    each = comove_("attribute", run.path, "--image", folder, "--label", "1", "2", "3", "--out", tmp_path / "each")
    assert Scores.load(tmp_path / "each/cld.safetensors").query_labels.tolist() == [1, 2, 3]  # type: ignore[union-attr]


def test_a_figure_shows_the_picture_as_the_model_sees_it(run: Run, folder: Path) -> None:
    pictures = open_pictures([run], [folder / "a.png"], ["4"])
    scores = CLD().fit(run).attribute(pictures.examples)
    figure = scores.plot(0, k=2, splits=pictures.splits(run), names=pictures.names)
    shown = [axes for axes in figure.axes if axes.images]
    assert shown[0].get_title() == "a.png\n4"
    assert len(shown) == 1 + 2 * 2
    pixels = np.asarray(shown[0].images[0].get_array())
    original = run.data().query.raw(np.array([1]))[0, 0].numpy()
    assert pixels.shape[:2] == original.shape
    flat = pixels.reshape(*original.shape, -1)[..., 0].astype(float).ravel()
    assert abs(np.corrcoef(flat, original.ravel())[0, 1]) > 0.99


def test_what_cannot_be_asked_is_refused_in_one_line_and_nothing_is_written(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    picture, empty = folder / "a.png", tmp_path / "empty"
    empty.mkdir()
    for words, told in (
        ((run.path, "--image", picture, "--method", "fz"), "fz: a bank knows its own queries only"),
        ((run.path / "trace", "--image", picture), "shown to a run's checkpoints, and a bare trace has none"),
        ((run.path, "--image", tmp_path / "none.png"), "There is no picture"),
        ((run.path, "--image", empty), "holds no picture"),
        ((run.path, "--image", folder / "notes.txt"), "no image of a known format"),
        ((run.path, "--image", picture, picture), "named twice"),
        ((run.path, "--image", picture, "--label", "cat"), "Unknown class 'cat'; the classes are 0, 1"),
        ((run.path, "--image", folder, "--label", "1", "2"), "got 2 for 3 examples"),
        ((run.path, "--label", "1"), "--label is the class of a picture"),
        ((run.path, "--image", picture, "--query-id", "1"), "give one of them"),
        ((run.path, "--image", picture, "--blocks", "serial"), "leave out --image"),
    ):
        made = comove_("attribute", *words, "--out", tmp_path / "out")
        assert made.exit_code == 2, made.stderr
        assert told in made.stderr
        assert made.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="holds no picture"):
        image_files([empty])


def test_the_report_shows_pictures_and_refuses_those_that_changed(
    runs: tuple[Run, ...], folder: Path, tmp_path: Path
) -> None:
    out, page = tmp_path / "out", tmp_path / "page.html"
    paths = [run.path for run in runs]
    words = ("--image", folder, "--label", "1", "2", "3", "--methods", "cld", "random-control")
    assert comove_("attribute", *paths, *words, "--out", out).exit_code == 0
    made = comove_("report", *paths, "--scores", out, "--out", page)
    assert made.exit_code == 0, made.stderr
    text = page.read_text(encoding="utf-8")
    content = json.loads(text.split('id="payload">', 1)[1].split("</script>", 1)[0])
    assert content["title"].startswith("a.png, b.png, c.png")
    assert content["sheets"] is not None
    labels = dict(zip(content["query"]["ids"], content["query"]["labels"], strict=True))
    assert labels == {0: 1, 1: 2, 2: 3}
    assert [method["name"] for method in content["methods"]] == ["cld", "random-control"]
    bare = comove_("report", paths[0] / "trace", "--scores", out, "--out", page)
    assert (bare.exit_code, "a bare trace has none" in bare.stderr) == (2, True)
    comove_("attribute", paths[0], "--queries", 2, "--method", "cld:rows=epochs", "--out", out)
    mixed = comove_("report", *paths, "--scores", out, "--out", page)
    assert (mixed.exit_code, "different queries or pictures" in mixed.stderr) == (2, True)
    Image.new("L", (8, 8)).save(folder / "a.png")
    changed = comove_("report", *paths, "--scores", out / "cld.safetensors", "--out", page)
    assert (changed.exit_code, "another set of pictures" in changed.stderr) == (2, True)


def test_in_python_a_folder_and_the_name_of_a_class_will_do(run: Run, folder: Path) -> None:
    files = [folder / name for name in ("a.png", "b.png", "more/c.png")]
    expected = run.prepare(files, [5, 5, 5])
    for found in (run.prepare(folder, labels="5"), run.prepare(str(folder), labels=["5", "5", "5"])):
        assert found.fingerprint == expected.fingerprint
    with pytest.raises(InputError, match="Unknown class 'cat'; the classes are 0, 1"):
        run.prepare(folder, labels="cat")
