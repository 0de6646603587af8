"""New examples: the run's own pictures, given in any form, have the scores that were recorded; others are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import comove
from comove.attribution import CLD, GradDot
from comove.data import ExampleSet, Normalization, Splits, split
from comove.data.preparation import Preprocessing, prepared
from comove.errors import CorruptFileError, InputError, InputTypeError
from comove.training import Recipe, Run

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.05)
NORMALIZATION = Normalization((0.45, 0.4, 0.5), (0.2, 0.25, 0.3))


def pictures(count: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """(N, C, 12, 10) random 8-bit images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 12, 10), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def splits() -> Splits:
    """60 colour images of three classes."""
    examples = ExampleSet.from_arrays(pictures(60), np.arange(60) % 3, normalization=NORMALIZATION)
    return split(examples, validation=6, query=6)


@pytest.fixture(scope="module")
def colour_run(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An MLP trained on them."""
    return comove.train(splits, "mlp", RECIPE, out=tmp_path_factory.mktemp("colour") / "run")


def as_pil(images: torch.Tensor, folder: Path) -> Any:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def as_paths(images: torch.Tensor, folder: Path) -> Any:
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, as_pil(images, folder), strict=True):
        image.save(path)
    return [paths[0], *map(str, paths[1:])]


FORMS: dict[str, Any] = {
    "PIL": as_pil,
    "paths": as_paths,
    "(N, C, H, W) uint8 tensor": lambda images, _: images,
    "(N, H, W, C) uint8 array": lambda images, _: images.permute(0, 2, 3, 1).numpy(),
    "list of (C, H, W)": lambda images, _: list(images),
    "list of (H, W, C)": lambda images, _: [image.permute(1, 2, 0).numpy() for image in images],
    "float32 in [0, 1]": lambda images, _: images.float() / 255,
    "float64 (H, W, C)": lambda images, _: (images.permute(0, 2, 3, 1).double() / 255).numpy(),
    "mixed": lambda images, folder: [*as_pil(images[:2], folder), *(images[2:].float() / 255)],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", [CLD(), GradDot()], ids=["cld", "graddot"])
def test_the_runs_own_pictures_have_the_recorded_scores(
    form: str, method: Any, colour_run: Run, splits: Splits, tmp_path: Path
) -> None:
    fitted = method.fit(colour_run)
    recorded = fitted.attribute(splits.query.ids)
    held = splits.query.held
    assert held is not None
    queries = colour_run.prepare(FORMS[form](held, tmp_path), splits.query.labels, splits.query.ids)
    new = fitted.attribute(queries)
    np.testing.assert_allclose(new.values, recorded.values, rtol=1e-4, atol=1e-5 * np.abs(recorded.values).max())
    np.testing.assert_array_equal(new.query_ids, splits.query.ids)


def test_without_labels_the_models_own_predictions_are_taken(colour_run: Run, splits: Splits) -> None:
    held = splits.query.held
    assert held is not None
    queries = colour_run.prepare(held)
    normalised = (held.double() / 255 - torch.tensor(NORMALIZATION.mean).double()[:, None, None]) / torch.tensor(
        NORMALIZATION.std
    ).double()[:, None, None]
    logits = colour_run.load_model().double()(normalised)
    np.testing.assert_array_equal(queries.labels, logits.argmax(1).numpy())
    assert "predictions" in queries.name
    assert CLD().fit(colour_run).attribute(queries).values.shape == (48, 6)


def test_a_picture_prepared_otherwise_is_refused_and_the_remedy_is_named(colour_run: Run, splits: Splits) -> None:
    held = splits.query.held
    assert held is not None
    fitted = CLD().fit(colour_run)
    others = {
        r"normalization is None, the run.s is Norm": ExampleSet.from_arrays(held, splits.query.labels),
        r"must have inputs \(3, 12, 10\).*got \(3, 10, 12\)": ExampleSet.from_arrays(
            held.transpose(2, 3), splits.query.labels, normalization=NORMALIZATION
        ),
        r"real numbers, not all in \[0, 1\]": ExampleSet.from_arrays(
            held.float(), splits.query.labels, normalization=NORMALIZATION
        ),
    }
    for message, queries in others.items():
        with pytest.raises(InputError, match=rf"{message}.*run\.prepare"):
            fitted.attribute(queries)
    same = ExampleSet.from_arrays(held.float() / 255, splits.query.labels, normalization=NORMALIZATION)
    np.testing.assert_allclose(
        fitted.attribute(same).values, fitted.attribute(splits.query.ids).values, rtol=1e-4, atol=1e-5
    )


def test_a_run_opened_without_its_data_still_knows_and_an_older_one_asks_for_it(
    colour_run: Run, splits: Splits, tmp_path: Path
) -> None:
    held = splits.query.held
    assert held is not None
    opened = Run.load(colour_run.path)
    assert opened.preprocessing == Preprocessing((3, 12, 10), "pixels", NORMALIZATION)
    assert torch.equal(
        opened.prepare(held, splits.query.labels).batch(np.arange(6))[0], splits.query.batch(np.arange(6))[0]
    )


# --- the rules ----------------------------------------------------------------------------------------------------

GREY = Preprocessing((1, 8, 8), "unit", None)
COLOUR = Preprocessing((3, 12, 10), "pixels", NORMALIZATION)
VECTORS = Preprocessing((5,), "real", None)
TOKENS = Preprocessing((7,), "tokens", None)


def test_pil_images_are_brought_to_the_runs_colours_and_size() -> None:
    red = Image.new("RGB", (20, 24), (255, 0, 0))
    found = prepared(red, COLOUR)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 12, 10))
    grey = prepared([red.convert("P"), red.convert("RGBA"), red.convert("L")], GREY)
    assert grey.shape == (3, 1, 8, 8)
    assert set(grey.flatten().tolist()) == {76}  # ITU-R 601-2 luma of red: 299/1000 x 255
    assert torch.equal(prepared(Image.new("L", (10, 12), 7), COLOUR), torch.full((1, 3, 12, 10), 7, dtype=torch.uint8))


def test_grey_images_are_told_from_the_rows_of_one() -> None:
    to, images = Preprocessing((1, 12, 10), "pixels", None), pictures(4, channels=1)
    for given in (images, images[:, 0], images[:, 0].numpy(), images.permute(0, 2, 3, 1), list(images[:, 0])):
        torch.testing.assert_close(prepared(given, to), images)
    torch.testing.assert_close(prepared(images[0, 0], to), images[:1])
    torch.testing.assert_close(prepared(images[0].permute(1, 2, 0), to), images[:1])


def test_a_folder_is_the_pictures_in_it_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name, red in (("b.png", 2), ("a.png", 1), ("deeper/c.png", 3)):
        Image.new("RGB", (10, 12), (red, 0, 0)).save(tmp_path / name)
    assert prepared(tmp_path, COLOUR)[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert prepared([tmp_path / "b.png", tmp_path / "deeper"], COLOUR)[:, 0, 0, 0].tolist() == [2, 3]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no picture"):
        prepared(tmp_path / "empty", COLOUR)


def test_arrays_of_another_size_are_resized_and_stay_in_range() -> None:
    half = torch.zeros(3, 24, 20)
    half[:, :, 10:] = 1
    found = prepared(half, COLOUR)
    assert found.shape == (1, 3, 12, 10)
    assert found.min() == 0
    assert found.max() == 1
    pixels = prepared((half * 255).to(torch.uint8).permute(1, 2, 0).numpy(), COLOUR)
    assert pixels.dtype == torch.uint8
    assert (pixels.float() / 255 - found).abs().max() <= 1.01 / 255
    assert prepared(np.zeros((8, 8), np.uint8), GREY).shape == (1, 1, 8, 8)


def test_other_arrays_are_taken_as_they_are() -> None:
    vectors = np.arange(10, dtype=np.float64).reshape(2, 5) - 4
    assert prepared(vectors, VECTORS).tolist() == vectors.tolist()
    assert prepared(vectors[0], VECTORS).shape == (1, 5)
    assert prepared(np.zeros((2, 7), np.int64), TOKENS).dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "to", "message"),
    [
        (np.full((3, 12, 10), 1.5), COLOUR, r"in \[0, 1\]; found 1.5 to 1.5"),
        (np.full((3, 12, 10), -0.5), COLOUR, r"in \[0, 1\]; found -0.5"),
        (np.full((3, 12, 10), np.nan), COLOUR, r"in \[0, 1\]; found nan"),
        (np.zeros((2, 12, 10), np.uint8), COLOUR, "3 channels"),
        (np.zeros((12, 10), np.uint8), COLOUR, "3 channels"),
        (np.zeros((2, 4, 12, 10), np.uint8), COLOUR, "3 channels"),
        (np.zeros((3, 12, 3), np.uint8), COLOUR, "cannot be seen"),
        (np.zeros((3, 12, 10), np.int64), COLOUR, "8-bit"),
        (np.zeros((3, 12, 10), np.uint16), COLOUR, "8-bit"),
        (np.zeros((3, 12, 10), bool), COLOUR, "8-bit"),
        ([], COLOUR, "at least one"),
        (Image.new("F", (10, 12)), COLOUR, "8 or 16 bits a channel"),
        (np.zeros((2, 6)), VECTORS, r"real numbers, not all in \[0, 1\] \(5,\)"),
        (np.zeros((2, 5), np.int64), VECTORS, "int64"),
        (np.zeros((2, 7)), TOKENS, "whole numbers"),
        (["no-such-file.png"], COLOUR, "There is no picture no-such-file.png"),
    ],
)
def test_what_is_no_such_example_is_refused(given: Any, to: Preprocessing, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepared(given, to)


@pytest.mark.parametrize(
    ("given", "to"),
    [
        (7, COLOUR),
        ({"image": 1}, COLOUR),
        ([3], COLOUR),
        (np.array(["a"]), COLOUR),
        (Image.new("RGB", (3, 3)), VECTORS),
        (np.zeros((3, 12, 10), complex), COLOUR),
    ],
)
def test_things_of_another_type_are_refused(given: Any, to: Preprocessing) -> None:
    with pytest.raises(InputTypeError):
        prepared(given, to)


def test_a_pipe_and_a_file_that_is_no_image_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 12\n")
    for name in ("pipe.png", "text.png"):
        with pytest.raises(InputError, match=name):
            prepared(tmp_path / name, COLOUR)


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"shape": [3], "kind": "odd", "normalization": None}, {"shape": "x", "kind": "real"},
     {"shape": [], "kind": "real", "normalization": None}, {"shape": [2], "kind": "real", "normalization": {"mean": 3}},
     {"shape": [2], "kind": "real", "normalization": {"mean": [0.5], "std": [0]}}],
)  # fmt: skip
def test_a_damaged_note_is_refused(document: Any) -> None:
    assert Preprocessing.from_json(COLOUR.to_json()) == COLOUR
    with pytest.raises(CorruptFileError):
        Preprocessing.from_json(document)


def test_parts_of_one_run_are_preprocessed_alike() -> None:
    train = ExampleSet.from_arrays(pictures(6), np.arange(6) % 2, normalization=NORMALIZATION)
    other = ExampleSet.from_arrays(pictures(6), np.arange(6) % 2, ids=np.arange(6) + 10)
    with pytest.raises(InputError, match="preprocessed alike; the normalization"):
        Splits(train, None, other)
