"""The built-in data sets, on real digits, real CIFAR-10 where it lies, and small folders written by the tests."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from comove.data import ExampleSet, Splits
from comove.data.builtin import (
    CIFAR10_CLASSES,
    _reloaded,
    as_splits,
    data_folders,
    dataset_names,
    find_cifar10,
    load_dataset,
    reload_splits,
)
from comove.data.hashed_ids import hashed_ids
from comove.data.label_noise import known_flips
from comove.errors import CorruptFileError, FingerprintError, InputError, InputTypeError


def counts(examples: ExampleSet) -> list[int]:
    return [int(count) for count in np.bincount(examples.labels, minlength=examples.n_classes)]


def all_ids(splits: Splits) -> list[int]:
    assert splits.validation is not None
    return [int(id_) for part in (splits.train, splits.validation, splits.query) for id_ in part.ids]


# --- digits ------------------------------------------------------------------------------------------------------


def test_digits_are_split_1400_197_200(digits: Splits) -> None:
    assert digits.validation is not None
    assert [len(digits.train), len(digits.validation), len(digits.query)] == [1400, 197, 200]
    assert sorted(all_ids(digits)) == list(range(1797))
    assert digits.classes == tuple("0123456789")
    assert max(counts(digits.query)) - min(counts(digits.query)) <= 2
    inputs, _ = digits.train.batch(np.arange(1400))
    assert inputs.shape == (1400, 1, 8, 8)
    assert (float(inputs.min()), float(inputs.max())) == (0, 1)


def test_digits_are_scikit_learns_by_id(digits: Splits) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    for part in (digits.train, digits.query):
        np.testing.assert_array_equal(part.labels, source.target[part.ids])
        expected = source.images[part.ids].astype(np.float32) / 16
        np.testing.assert_array_equal(part.batch(np.arange(len(part)))[0][:, 0].numpy(), expected)


def test_limit_takes_fewer_training_examples_and_leaves_the_rest_alone(digits: Splits) -> None:
    limited = load_dataset("digits", limit=200)
    assert len(limited.train) == 200
    assert set(limited.train.ids) <= set(digits.train.ids)
    assert max(counts(limited.train)) - min(counts(limited.train)) <= 2
    assert limited.query.fingerprint == digits.query.fingerprint
    assert len(load_dataset("digits", limit=10**6).train) == 1400


def test_the_seed_decides_the_split(digits: Splits) -> None:
    assert load_dataset("digits").fingerprint == digits.fingerprint
    assert load_dataset("digits", seed=1).fingerprint != digits.fingerprint


def test_digits_sizes_can_be_chosen() -> None:
    splits = load_dataset("digits", validation=0.5, queries=50)
    assert splits.validation is not None
    assert [len(splits.train), len(splits.validation), len(splits.query)] == [849, 898, 50]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"queries": 0}, {"queries": -3}, {"queries": 1797}])
def test_impossible_sizes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"limit|quer"):
        load_dataset("digits", **wrong)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'cifar-10'.*digits, cifar10 nor a folder.*Did you mean 'cifar10'"):
        load_dataset("cifar-10")
    assert dataset_names() == ("digits", "cifar10")


def test_any_map_style_dataset_becomes_splits() -> None:
    dataset = TensorDataset(torch.zeros(50, 2), torch.arange(50) % 2)
    splits = as_splits(dataset)
    assert (len(splits.train), splits.name) == (40, "TensorDataset")
    assert as_splits(splits) is splits
    with pytest.raises(InputTypeError, match="map-style"):
        as_splits(iter([1]))  # type: ignore[arg-type]


# --- CIFAR-10 from files that the tests write --------------------------------------------------------------------


def colour(index: int) -> tuple[int, int, int]:
    return (index * 7 % 256, index * 31 % 256, index * 101 % 256)


def encoded(index: int, side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour(index)).save(buffer, "PNG")
    return buffer.getvalue()


def write_part(folder: Path, part: str, images: Sequence[bytes | None], labels: Sequence[Any], files: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        column = [{"bytes": image, "path": None} for image in images[number::files]]
        table = pa.table({"img": column, "label": list(labels[number::files])})
        pq.write_table(table, folder / f"{part}-{number:05d}-of-{files:05d}.parquet")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """60 training and 20 test images, each of one colour that tells its row."""
    folder = tmp_path / "cifar10"
    write_part(folder, "train", [encoded(i) for i in range(60)], [i % 10 for i in range(60)])
    write_part(folder, "test", [encoded(100 + i) for i in range(20)], [i % 10 for i in range(20)])
    return tmp_path


def test_parquet_rows_are_ids_and_images_follow_them(parquet: Path) -> None:
    splits = load_dataset("cifar10", data_dir=parquet, validation=10, limit=30)
    assert splits.validation is not None
    assert [len(splits.train), len(splits.validation), len(splits.query)] == [30, 10, 20]
    assert len(set(all_ids(splits))) == 60
    assert splits.query.ids.tolist() == list(range(50_000, 50_020))
    assert splits.classes == CIFAR10_CLASSES
    assert counts(splits.train) == [3] * 10
    assert counts(splits.validation) == [1] * 10
    for part, shift in ((splits.train, 0), (splits.validation, 0), (splits.query, 100 - 50_000)):
        raw = part.raw(np.arange(len(part)))
        assert raw.dtype == torch.uint8
        assert raw.shape[1:] == (3, 32, 32)
        assert [tuple(pixel) for pixel in raw[:, :, 5, 5].tolist()] == [colour(i + shift) for i in part.ids]
        assert (part.labels == part.ids % 10).all()


def test_several_parquet_files_are_read_in_the_order_of_their_names(parquet: Path) -> None:
    folder = parquet / "cifar10"
    for file in folder.glob("train-*"):
        file.unlink()
    order = [*range(0, 60, 2), *range(1, 60, 2)]
    write_part(folder, "train", [encoded(i) for i in range(60)], [i % 10 for i in range(60)], files=2)
    train = load_dataset("cifar10", data_dir=parquet, validation=0).train
    assert train.ids.tolist() == list(range(60))
    assert (train.labels == np.array(order) % 10).all()
    assert [tuple(p) for p in train.raw(np.arange(60))[:, :, 0, 0].tolist()] == [colour(i) for i in order]


def test_cifar10_is_found_by_argument_environment_and_working_folder(
    parquet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = ("parquet", parquet / "cifar10")
    assert find_cifar10(parquet) == expected
    assert find_cifar10(parquet / "cifar10") == expected
    monkeypatch.setenv("COMOVE_DATA", str(parquet))
    assert find_cifar10() == expected
    assert data_folders(parquet / "other") == (parquet / "other",)
    assert find_cifar10(parquet / "other") is None
    monkeypatch.delenv("COMOVE_DATA")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert find_cifar10() is None
    Path("data").symlink_to(parquet)
    assert find_cifar10() == ("parquet", Path("data/cifar10"))


def test_missing_cifar10_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("cifar10", data_dir=tmp_path / "nowhere")
    for word in (
        str(tmp_path / "nowhere"),
        "--data-dir",
        "COMOVE_DATA",
        "--download",
        "parquet",
        "cifar-10-batches-py",
    ):
        assert word in str(caught.value)


@pytest.mark.parametrize("broken", [b"no image", encoded(3)[:60], b"", None])
def test_a_corrupt_image_names_its_row(parquet: Path, broken: bytes | None) -> None:
    images: list[bytes | None] = [encoded(i) for i in range(60)]
    images[41] = broken
    write_part(parquet / "cifar10", "train", images, [i % 10 for i in range(60)])
    with pytest.raises(InputError, match=r"Row 41 of .*train-\*\.parquet is no readable image"):
        load_dataset("cifar10", data_dir=parquet)


def test_an_image_of_another_size_names_its_row(parquet: Path) -> None:
    images = [encoded(i, side=32 + (i == 7)) for i in range(60)]
    write_part(parquet / "cifar10", "train", images, [i % 10 for i in range(60)])
    with pytest.raises(InputError, match=r"Row 7 .*32 x 32 pixels, got \(33, 33\)"):
        load_dataset("cifar10", data_dir=parquet)


@pytest.mark.parametrize(
    "table",
    [
        {"image": [{"bytes": b""}], "label": [0]},
        {"img": [{"bytes": b""}], "target": [0]},
        {"img": [b""], "label": [0]},
        {"img": [{"path": ""}], "label": [0]},
        {"img": [{"bytes": b""}], "label": ["cat"]},
        {"img": [{"bytes": b""}], "label": [0.5]},
        {"img": [{"bytes": b""}], "label": [None]},
    ],
)
def test_wrong_columns_say_what_they_must_be(parquet: Path, table: dict[str, Any]) -> None:
    pq.write_table(pa.table(table), next((parquet / "cifar10").glob("train-*")))
    with pytest.raises(InputError, match=r"Cannot read train-\*\.parquet.*columns must be img .*label"):
        load_dataset("cifar10", data_dir=parquet)


def test_a_truncated_parquet_file_is_refused(parquet: Path) -> None:
    file = next((parquet / "cifar10").glob("test-*"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"Cannot read test-\*\.parquet"):
        load_dataset("cifar10", data_dir=parquet)


def test_a_label_out_of_range_is_refused(parquet: Path) -> None:
    write_part(parquet / "cifar10", "train", [encoded(i) for i in range(60)], [10] + [1] * 59)
    with pytest.raises(InputError, match=r"1 are out of range.* with label 10"):
        load_dataset("cifar10", data_dir=parquet, validation=0)


# --- torchvision's own folder ------------------------------------------------------------------------------------


def test_torchvisions_folder_gives_the_same_examples(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle  # torchvision's format, not ours: it checks the files' md5 first, which this test leaves out

    from torchvision.datasets import CIFAR10

    def pixels(rows: range) -> np.ndarray[Any, Any]:
        flat = [np.broadcast_to(np.array(colour(i), np.uint8)[:, None, None], (3, 32, 32)).reshape(-1) for i in rows]
        return np.stack(flat)

    folder = tmp_path / "torchvision" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = [(name, range(12 * k, 12 * k + 12), 0) for k, (name, _) in enumerate(CIFAR10.train_list)]
    for name, rows, shift in [*batches, (CIFAR10.test_list[0][0], range(100, 120), 100)]:
        content = {"data": pixels(rows), "labels": [(i - shift) % 10 for i in rows]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": list(CIFAR10_CLASSES)}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    assert find_cifar10(folder.parent) == ("torchvision", folder.parent)
    ours = load_dataset("cifar10", data_dir=folder.parent, validation=10, limit=30)
    assert ours.fingerprint == load_dataset("cifar10", data_dir=parquet, validation=10, limit=30).fingerprint


def test_an_incomplete_torchvision_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(InputError, match=r"incomplete.*delete .*cifar-10-batches-py and add --download"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_a_download_without_network_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    from torchvision.datasets import CIFAR10

    def offline(self: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(CIFAR10, "download", offline)
    with pytest.raises(InputError, match=r"no network.*--download"):
        load_dataset("cifar10", data_dir=tmp_path, download=True)


# --- real CIFAR-10 -----------------------------------------------------------------------------------------------


def test_real_cifar10(cifar_folder: Path) -> None:
    splits = load_dataset("cifar10", data_dir=cifar_folder, limit=200)
    assert splits.validation is not None
    assert [len(splits.train), len(splits.validation), len(splits.query)] == [200, 100, 200]
    assert len(set(all_ids(splits))) == 500
    assert splits.train.ids.max() < 50_000 <= splits.query.ids.min()
    assert counts(splits.train) == [20] * 10
    assert counts(splits.query) == [20] * 10
    assert splits.classes == CIFAR10_CLASSES
    inputs, labels = splits.train.batch(np.arange(200))
    assert inputs.shape == (200, 3, 32, 32)
    assert labels.dtype == torch.int64
    assert inputs.mean(dim=(0, 2, 3)).abs().max() < 0.25  # the normalisation is that of the data
    assert (inputs.std(dim=(0, 2, 3)) - 1).abs().max() < 0.15


# --- folders of images -------------------------------------------------------------------------------------------


def fill(folder: Path, count: int, shift: int = 0, size: tuple[int, int] = (10, 8)) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", size, colour(index + shift)).save(folder / f"{index:03d}.png")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / name, 20, 20 * label)
    (tmp_path / "pets" / "README.txt").write_text("not a class")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".cache").mkdir()
    return tmp_path / "pets"


def hue(id_: int, splits: Splits) -> tuple[int, int, int]:
    """The colour of an example's file, by the name that its set gives it."""
    part = next(part for part in splits.parts if id_ in part.ids)
    assert part.sources is not None
    folder, name = str(part.sources[part.positions([id_])[0]]).split("/")[-2:]
    return colour(20 * (folder == "dog") + int(name.removesuffix(".png")))


def test_a_flat_image_folder_is_split_and_ids_are_those_of_the_paths(flat: Path) -> None:
    splits = load_dataset(str(flat))
    assert splits.validation is not None
    assert (splits.name, splits.classes) == ("pets", ("cat", "dog"))
    assert [counts(part) for part in (splits.train, splits.validation, splits.query)] == [[16, 16], [2, 2], [2, 2]]
    names = sorted(f"{name}/{index:03d}.png" for name in ("cat", "dog") for index in range(20))
    assert sorted(all_ids(splits)) == sorted(hashed_ids(names).tolist())
    for part in splits.parts:
        assert part.input_shape == (3, 8, 8)
        pixels = part.raw(np.arange(len(part)))[:, :, 4, 4].tolist()
        assert [tuple(pixel) for pixel in pixels] == [hue(id_, splits) for id_ in part.ids.tolist()]
        assert part.sources is not None
        assert hashed_ids(part.sources.tolist()).tolist() == part.ids.tolist()
        assert [name.startswith("dog/") for name in part.sources] == (part.labels == 1).tolist()
    assert len(load_dataset(str(flat), limit=8, queries=10).train) == 8


def test_ids_of_a_folder_survive_files_that_come_and_go(flat: Path) -> None:
    def ids() -> dict[str, int]:
        parts = load_dataset(str(flat)).parts
        return {str(name): int(id_) for part in parts for name, id_ in zip(part.sources, part.ids, strict=True)}  # type: ignore[arg-type]

    before = ids()
    (flat / "cat" / "000.png").unlink()
    Image.new("RGB", (10, 8), (1, 2, 3)).save(flat / "cat" / "0005.png")
    after = ids()
    assert set(before) - set(after) == {"cat/000.png"}
    assert set(after) - set(before) == {"cat/0005.png"}
    assert all(before[name] == after[name] for name in set(before) & set(after))


def test_ids_are_of_53_bits_and_two_names_of_one_id_are_refused() -> None:
    ids = hashed_ids([f"{number}.png" for number in range(2000)])
    assert np.unique(ids).size == 2000
    assert ids.min() >= 0
    assert 2**52 < ids.max() < 2**53
    assert hashed_ids(["caf\u00e9.png"]) == hashed_ids(["cafe\u0301.png"])  # as two systems write one name
    with pytest.raises(InputError, match=r"have one id, \d+; rename one"):
        hashed_ids([f"{number}.png" for number in range(2000)], 16)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_nested_image_folder_takes_its_queries_from_the_held_out_part(tmp_path: Path, held_out: str) -> None:
    for part, count, shift in (("train", 10, 0), (held_out, 3, 50)):
        for label, name in enumerate(("cat", "dog")):
            fill(tmp_path / part / name, count, shift + count * label)
    splits = load_dataset(str(tmp_path), validation=4)
    assert splits.validation is not None
    assert splits.query.sources is not None
    names = [f"{held_out}/{name}/{index:03d}.png" for name in ("cat", "dog") for index in range(3)]
    assert splits.query.sources.tolist() == names
    assert [tuple(p) for p in splits.query.raw(np.arange(6))[:, :, 0, 0].tolist()] == [colour(50 + i) for i in range(6)]
    assert len(set(all_ids(splits))) == 26
    assert counts(splits.validation) == [2, 2]


def test_sources_of_earlier_versions_give_places_as_ids(flat: Path) -> None:
    new = load_dataset(str(flat))
    old = {name: value for name, value in new.source.items() if name != "ids"}
    now = _reloaded(old)
    assert sorted(all_ids(now)) == list(range(40))
    assert (now.train.labels == now.train.ids // 20).all()
    assert now.train.sources is not None
    assert new.train.sources is not None
    assert now.train.sources.tolist() == new.train.sources.tolist()  # the same split
    again = reload_splits({**now.describe(), "source": old}, "runs/old")
    assert again.fingerprint == now.fingerprint != new.fingerprint


def test_a_train_folder_alone_is_split_not_taken_for_a_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        fill(tmp_path / "train" / name, 10)
    assert load_dataset(str(tmp_path)).classes == ("cat", "dog")


def test_images_of_many_sizes_are_brought_to_that_of_the_first(flat: Path) -> None:
    Image.new("L", (31, 17), 200).save(flat / "dog" / "grey.png")
    assert load_dataset(str(flat)).train.input_shape == (3, 8, 8)


def test_the_side_of_images_can_be_chosen_and_reloads(flat: Path) -> None:
    splits = load_dataset(str(flat), side=6)
    assert splits.train.input_shape == (3, 6, 6)
    assert reload_splits(splits.describe(), "x").fingerprint == splits.fingerprint
    assert load_dataset(str(flat), side=16).train.input_shape == (3, 16, 16)
    with pytest.raises(InputError, match="folders of images; 'digits' is none"):
        load_dataset("digits", side=6)


@pytest.mark.parametrize("name", ["000.png", "013.png"])
def test_an_unreadable_image_is_named(flat: Path, name: str) -> None:
    (flat / "cat" / name).write_bytes(b"\x89PNG broken")
    with pytest.raises(InputError, match=rf"cat/{name} cannot be read as an image"):
        load_dataset(str(flat))


def test_an_empty_class_is_named(flat: Path) -> None:
    (flat / "emu").mkdir()
    with pytest.raises(InputError, match="no image was found for: emu"):
        load_dataset(str(flat))


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one sub-folder of images a class; it has no sub-folders"):
        load_dataset(str(tmp_path))


def test_a_class_of_the_test_part_alone_is_named(tmp_path: Path) -> None:
    for part, names in (("train", ("cat", "dog")), ("test", ("cat", "dog", "emu"))):
        for name in names:
            fill(tmp_path / part / name, 2)
    with pytest.raises(InputError, match="training folder has not: emu"):
        load_dataset(str(tmp_path))


# --- loading again -----------------------------------------------------------------------------------------------


def test_splits_are_reloaded_to_the_same_fingerprint(flat: Path, parquet: Path, small_digits: Splits) -> None:
    for splits in (small_digits, load_dataset(str(flat), seed=3), load_dataset("cifar10", data_dir=parquet, limit=20)):
        again = reload_splits(splits.describe(), "runs/a")
        assert again.fingerprint == splits.fingerprint
        assert again.train.ids.tolist() == splits.train.ids.tolist()


def test_data_that_changed_since_is_refused_with_both_fingerprints(flat: Path) -> None:
    described = load_dataset(str(flat)).describe()
    Image.new("RGB", (8, 8)).save(flat / "dog" / "007.png")
    now = load_dataset(str(flat)).fingerprint
    with pytest.raises(FingerprintError, match=rf"runs/a .*{described['fingerprint']}.*{now}"):
        reload_splits(described, "runs/a")


def test_what_is_dropped_and_relabelled_is_loaded_again(flat: Path) -> None:
    splits = load_dataset(str(flat), flip_labels=0.25)
    first, second, third = splits.train.ids[:3].tolist()
    held_out = int(splits.query.ids[0])
    changed = splits.without([first]).relabelled({second: 1, third: 0}).changed(drop=[third, held_out])
    assert changed.source["drop"] == sorted([first, third])
    assert changed.source["drop_held_out"] == [held_out]
    assert changed.source["relabel"] == {str(second): 1}
    described = json.loads(json.dumps(changed.describe()))
    again = reload_splits(described, "runs/a")
    assert again.fingerprint == changed.fingerprint
    assert not np.isin([first, third, held_out], all_ids(again)).any()
    assert again.train.labels[again.train.positions([second])].tolist() == [1]
    flips, left = known_flips(splits), known_flips(again)
    assert flips is not None
    assert left is not None
    assert left.tolist() == sorted(set(flips.tolist()) - {first, second, third})
    with pytest.raises(InputError, match=r"Unknown ids to drop: 5; none"):
        splits.changed(drop=[5, first])


@pytest.mark.parametrize("changes", [{"drop": ["1"]}, {"drop": [True]}, {"relabel": {"x": 1}}, {"relabel": {"1": "a"}}])
def test_a_damaged_note_of_changes_is_refused(flat: Path, changes: dict[str, Any]) -> None:
    described = load_dataset(str(flat)).describe()
    with pytest.raises(CorruptFileError, match="damaged note of what was changed"):
        reload_splits({**described, "source": {**described["source"], **changes}}, "runs/a")


def test_a_folder_that_moved_is_named_anew(flat: Path) -> None:
    splits = load_dataset(str(flat), limit=20)
    moved = flat.rename(flat.parent / "animals")
    with pytest.raises(InputError, match=r"There is no data set .*The data of runs/a was there.*--dataset NEW"):
        reload_splits(splits.describe(), "runs/a")
    again = reload_splits(splits.describe(), "runs/a", name=str(moved))
    assert again.fingerprint == splits.fingerprint
    assert again.source["name"] == str(moved)


def test_data_from_memory_must_be_passed_again(images: ExampleSet) -> None:
    with pytest.raises(InputError, match=r"runs/a was made with data of your own.*dataset="):
        reload_splits(as_splits(images).describe(), "runs/a")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode there")
def test_classes_and_files_whose_names_are_not_utf8_are_read_and_written_out_in_ascii(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    for name in (b"caf\xe9", b"tea"):
        fill(Path(os.fsdecode(root + b"/drinks/" + name)), 10)
        os.rename(root + b"/drinks/" + name + b"/000.png", root + b"/drinks/" + name + b"/\xff.png")
    splits = load_dataset(str(tmp_path / "drinks"))
    assert splits.classes == ("caf\\xe9", "tea")
    names = list(splits.sources.values())
    assert {"caf\\xe9/\\xff.png", "tea/\\xff.png", "tea/001.png"} <= set(names)
    ids = hashed_ids(
        [os.fsdecode(name.encode().replace(b"\\xe9", b"\xe9").replace(b"\\xff", b"\xff")) for name in names]
    )
    assert ids.tolist() == list(splits.sources)  # of the names themselves
    Path(os.fsdecode(root + b"/drinks/caf\xe9/\xff.png")).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"caf\udce9/\udcff.png cannot be read as an image"):
        load_dataset(str(tmp_path / "drinks"))


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode there")
def test_a_path_that_no_manifest_can_hold_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    fill(folder / "cat", 2)
    with pytest.raises(InputError, match=r"path of a data set must be text .*caf\\udce9'.*rename it"):
        load_dataset(str(folder))
    with pytest.raises(InputError, match="path of a data set must be text"):
        load_dataset("cifar10", data_dir=folder)
    monkeypatch.chdir(folder)
    assert len(load_dataset("digits").train) == 1400  # a folder that is not named does not matter
