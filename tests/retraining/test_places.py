"""Files of a bank and of a curve that lie where others belong: named, set aside, and made again to the same bits."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.errors import CorruptFileError
from comove.evaluation import RetrainingBank, coreset_curve, subsets
from comove.jobs import Compute
from comove.training import Run, Training

RECIPE = {"epochs": 1, "batch_size": 32, "lr": 0.05}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_dataset("digits", limit=40, queries=12)


def make(folder: Path, data: Splits, **changes: object) -> RetrainingBank:
    plain: dict[str, object] = {"subsets": subsets.random(0.5, 3), "keep_weights": True}
    options = {**plain, **changes}
    bank = RetrainingBank.create(folder, data, Training("mlp", RECIPE, options={"hidden": (4,)}), **options)  # type: ignore[arg-type]
    return bank.run(executor="serial")


@pytest.fixture(scope="module")
def original(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places") / "bank"
    make(folder, splits, subsets=[subsets.random(0.5, 3), subsets.random(0.25, 2)])
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "bank")


def swap(a: Path, b: Path) -> None:
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    bank = RetrainingBank.load(folder)
    return [bank.weights(subset, 0) for subset in range(len(bank.masks))]


def weight_files(folder: Path) -> list[Path]:
    return sorted((folder / "weights").glob("*.safetensors"))


@pytest.mark.parametrize("how", ["swapped", "flipped"])
def test_weights_that_are_another_models_or_damaged_are_trained_again(
    splits: Splits, original: Path, folder: Path, how: str
) -> None:
    files = weight_files(folder)
    if how == "swapped":
        swap(files[0], files[1])
        assert len(RetrainingBank.load(folder).pending) == 2
    else:
        flip(files[0])
        with pytest.raises(CorruptFileError, match=rf"{files[0].name}.*bank\.run\(\)"):
            weights(folder)
    with pytest.warns(UserWarning, match=rf"damaged .*weights/{files[0].name}"):
        RetrainingBank.load(folder, dataset=splits).run(executor="serial")
    for found, expected in zip(weights(folder), weights(original), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_merge_brings_no_damaged_weights(splits: Splits, original: Path, folder: Path, tmp_path: Path) -> None:
    flip(weight_files(folder)[0])
    plans = [subsets.random(0.5, 3), subsets.random(0.25, 2)]
    here = RetrainingBank.create(
        tmp_path / "here", splits, Training("mlp", RECIPE, options={"hidden": (4,)}), subsets=plans, keep_weights=True
    )
    with pytest.warns(UserWarning, match="damaged and were not copied: weights/"):
        here.merge(folder)
    assert len(here.pending) == 1
    here.run(executor="serial")
    for found, expected in zip(weights(here.path), weights(original), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ids_and_labels_of_another_bank_are_refused_and_written_anew(
    splits: Splits, original: Path, folder: Path, tmp_path: Path
) -> None:
    other_labels = load_dataset("digits", limit=40, queries=12, flip_labels=0.3)
    make(tmp_path / "labels", other_labels)
    make(tmp_path / "queries", splits, queries=splits.query.ids[:6])
    for other, match in (("labels", "is of other data"), ("queries", "holds other queries")):
        shutil.copy(tmp_path / other / "examples.safetensors", folder)
        with pytest.raises(CorruptFileError, match=match):
            RetrainingBank.load(folder)
        make(folder, splits)
        np.testing.assert_array_equal(RetrainingBank.load(folder).outputs(), RetrainingBank.load(original).outputs())


def test_plans_that_were_swapped_or_are_of_other_data_are_refused_and_written_anew(
    splits: Splits, original: Path, folder: Path, tmp_path: Path
) -> None:
    files = sorted((folder / "plans").iterdir())
    swap(*files)
    with pytest.raises(CorruptFileError, match=r"holds the plan random-0\.5-0: it was renamed or swapped"):
        RetrainingBank.load(folder)
    with pytest.warns(UserWarning, match="was damaged: it is set aside"):
        make(folder, splits, subsets=[subsets.random(0.5, 3), subsets.random(0.25, 2)])
    np.testing.assert_array_equal(RetrainingBank.load(folder).masks, RetrainingBank.load(original).masks)
    make(tmp_path / "other", load_dataset("digits", limit=40, queries=12, seed=1))
    shutil.copy(tmp_path / "other/plans" / files[1].name, files[1])
    with pytest.raises(CorruptFileError, match="is of other data"):
        RetrainingBank.load(folder)


def test_a_plan_that_is_gone_is_said(folder: Path) -> None:
    (folder / "plans/random-0.25-0.safetensors").unlink()
    with pytest.warns(UserWarning, match="models of 2 subsets that none of its plans names"):
        assert len(RetrainingBank.load(folder).masks) == 3


@pytest.mark.parametrize("how", ["another share", "another method", "another run"])
def test_a_coreset_of_a_curve_that_belongs_elsewhere_is_chosen_again(
    runs: tuple[Run, ...], tmp_path: Path, how: str
) -> None:
    def accuracies(name: str, run: Run) -> list[float]:
        curve = coreset_curve(
            run, ["cld", "random"], [0.2, 0.4], seeds=1, out=tmp_path / name, compute=Compute("serial")
        )
        return [point.accuracy for point in curve.points]

    first = accuracies("one", runs[0])
    files = sorted((tmp_path / "one/coresets").glob("*.safetensors"))
    before = [file.read_bytes() for file in files]
    if how == "another run":
        accuracies("two", runs[1])
        shutil.copy(tmp_path / "two/coresets" / files[0].name, files[0])
    else:
        swap(files[0], files[1 if how == "another share" else 2])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert accuracies("one", runs[0]) == first
    assert "another method, size, seed or run" in str(told[0].message)
    assert [file.read_bytes() for file in files] == before
