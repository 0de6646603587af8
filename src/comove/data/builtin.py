"""The built-in data sets: digits (embedded), CIFAR-10 (from a folder or downloaded), and any folder of images."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from comove.checks import check_text, whole_number
from comove.data.examples import (
    CHANGES,
    ExampleSet,
    Ids,
    MapDataset,
    Normalization,
    Splits,
    as_amount,
    split,
    stratified_sample,
)
from comove.data.hashed_ids import hashed_ids
from comove.data.label_noise import flip_labels as with_flipped_labels
from comove.data.texts import ENDINGS, Columns, text_splits
from comove.errors import CorruptFileError, InputError, InputTypeError, did_you_mean, some
from comove.store import check_fingerprint, readable

__all__ = [
    "as_rgb",
    "as_splits",
    "data_folders",
    "dataset_names",
    "find_cifar10",
    "load_dataset",
    "open_image",
    "reload_splits",
]


def as_splits(dataset: str | Splits | ExampleSet | MapDataset, seed: int = 0) -> Splits:
    """Take a data set's name, splits, an example set or any map-style dataset, and return splits."""
    if isinstance(dataset, Splits):
        return dataset
    if isinstance(dataset, str):
        return load_dataset(dataset, seed=seed)
    if not isinstance(dataset, ExampleSet):
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise InputTypeError(f"A data set must be map-style (len and [i]), got {type(dataset).__name__}.")
        dataset = ExampleSet(dataset, name=type(dataset).__name__)
    return split(dataset, seed=seed)


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    validation: float | int | None = None,
    queries: int | None = None,
    download: bool = False,
    flip_labels: float = 0.0,
    columns: Columns | None = None,
    side: int | None = None,
) -> Splits:
    """Load a built-in data set, a folder of images with one sub-folder a class, or a table of texts.

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 handwritten digits, embedded), ``"cifar10"``, a folder, or a CSV, TSV
            or Parquet file of texts.
        data_dir: where CIFAR-10 lies; by default ``$COMOVE_DATA``, then ``./data``.
        seed: of the stratified splits.
        limit: use only so many training examples, classes in proportion.
        validation: a share of the training examples, or a number; by default 10 % (digits: 197, leaving 1,400).
        queries: how many query examples; by default 200 of digits, the whole test set of CIFAR-10, or half as many
            as ``limit`` when one is given.
        download: let torchvision download CIFAR-10 into ``data_dir`` when it is missing.
        flip_labels: give this share of the training examples a wrong label (see :mod:`comove.data.label_noise`, which
            tells which ones), by ``seed``.
        columns: of a table of texts; by default ``text`` and ``label``.
        side: of a folder of images, the pixels that they are brought to; by default those of the first, at most 224.

    Returns:
        The three splits.

    Raises:
        InputError: an unknown name, a missing folder (the message says what to do), impossible sizes; a path that is
            not UTF-8 (files and classes in the folder may have such names).
    """
    for what, value in (("limit", limit), ("queries", queries), ("side", side)):
        if value is not None:
            whole_number(value, what, 1)
    paths = [path for path in (None if name in _LOADERS else name, data_dir) if path is not None]
    check_text([str(Path(path).resolve()) for path in paths], "The path of a data set")
    source = {"name": name, "seed": seed, "limit": limit, "validation": validation, "queries": queries}
    if data_dir is not None:
        source["data_dir"] = str(Path(data_dir).resolve())
    if name not in _LOADERS and Path(name).is_dir():
        source |= {"ids": "path"} | ({} if side is None else {"side": side})
    elif side is not None:
        raise InputError(f"A side in pixels is for folders of images; {name!r} is none.")
    if is_table(name):
        wanted = columns or Columns()
        source |= {"text_column": wanted.text, "label_column": wanted.label, "encoding": wanted.encoding}
    elif columns is not None:
        raise InputError(f"Columns are those of a table of texts ({', '.join(ENDINGS)}); {name!r} is none.")
    splits = _load(source, download)
    return with_flipped_labels(splits, flip_labels, seed)[0] if flip_labels else splits


def is_table(name: str) -> bool:
    """Tell whether a data set's name is the path of a table of texts."""
    return Path(name).suffix.lower() in ENDINGS and not Path(name).is_dir()


def _load(source: Mapping[str, Any], download: bool = False) -> Splits:
    """The splits that a source tells of, before any label is flipped."""
    name, data_dir = source["name"], source.get("data_dir")
    wanted: list[Any] = [source.get(key) for key in ("seed", "limit", "validation", "queries")]
    if name in _LOADERS:
        return _LOADERS[name](data_dir, *wanted, download, source)
    if name and (Path(name).is_dir() or (is_table(name) and Path(name).exists())):
        read: Callable[..., Splits] = _image_folder if Path(name).is_dir() else text_splits
        return read(Path(name), *wanted, source={**source, "name": str(Path(name).resolve())})
    raise InputError(
        f"There is no data set {name!r}: it is neither one of {', '.join(_LOADERS)} nor a folder"
        f"{', nor a file that is there' if is_table(name) else ''}.{did_you_mean(name, _LOADERS)}"
    )


def _limited(train: ExampleSet, limit: int | None, seed: int) -> ExampleSet:
    if limit is None or limit >= len(train):
        return train
    generator = np.random.default_rng([seed, 0x11417])
    return train.subset(train.ids[stratified_sample(train.labels, limit, generator)])


def _limit_train(splits: Splits, limit: int | None, seed: int) -> Splits:
    return Splits(_limited(splits.train, limit, seed), splits.validation, splits.query, splits.name, splits.source)


def _digits(
    data_dir: object,
    seed: int,
    limit: int | None,
    validation: float | int | None,
    queries: int | None,
    download: bool,
    source: Mapping[str, Any],
) -> Splits:
    table = _digits_table()
    images = torch.from_numpy((table[:, :64].reshape(-1, 1, 8, 8) / 16).astype(np.float32))
    examples = ExampleSet.from_arrays(
        images, table[:, 64].astype(np.int64), classes=[str(c) for c in range(10)], name="digits"
    )
    held_out = 197 if validation is None else validation
    splits = split(examples, validation=held_out, query=queries or 200, seed=seed, name="digits", source=source)
    return _limit_train(splits, limit, seed)


def _digits_table() -> npt.NDArray[np.float64]:
    """(1797, 65): the 64 pixels of each image, from 0 to 16, and its digit.

    The file is read where scikit-learn keeps it: importing scikit-learn takes longer than training on the digits.
    """
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return np.column_stack([pixels, digits])


CIFAR10_NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def data_folders(data_dir: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Where data sets are looked for: ``data_dir`` alone when given, else ``$COMOVE_DATA`` and ``./data``."""
    if data_dir is not None:
        return (Path(data_dir),)
    environment = os.environ.get("COMOVE_DATA")
    return (*((Path(environment),) if environment else ()), Path("data"))


CIFAR10_FOLDER = "cifar-10-batches-py"


def find_cifar10(data_dir: str | os.PathLike[str] | None = None) -> tuple[str, Path] | None:
    """Return ``("parquet", folder)`` or ``("torchvision", folder)`` where CIFAR-10 lies, or ``None``."""
    for base in data_folders(data_dir):
        for folder in (base, base / "cifar10", base / "plain_text", base / "cifar10" / "plain_text"):
            if any(folder.glob("train-*.parquet")) and any(folder.glob("test-*.parquet")):
                return "parquet", folder
            if (folder / CIFAR10_FOLDER).is_dir():
                return "torchvision", folder
    return None


def _cifar10(
    data_dir: str | os.PathLike[str] | None,
    seed: int,
    limit: int | None,
    validation: float | int | None,
    queries: int | None,
    download: bool,
    source: Mapping[str, Any],
) -> Splits:
    found = find_cifar10(data_dir)
    if found is None and not download:
        looked = ", ".join(str(folder) for folder in data_folders(data_dir))
        raise InputError(
            f"CIFAR-10 was not found (looked in {looked}). Either put train-*.parquet and test-*.parquet (columns "
            "img and label, the layout of its Hugging Face copy) or torchvision's cifar-10-batches-py into a folder "
            "and name it with --data-dir DIR or COMOVE_DATA=DIR, or add --download to let torchvision fetch it."
        )
    kind, folder = found or ("torchvision", data_folders(data_dir)[0])
    read = _parquet_part if kind == "parquet" else _torchvision_part
    half = None if limit is None else max(200, limit // 2)
    wanted = queries if queries is not None else half
    return _from_two(
        lambda part, choose: read(folder, part, choose, download), wanted, limit, validation, seed, "cifar10", source
    )


Choose = Callable[[Ids], npt.NDArray[np.int64]]


def _from_two(
    read: Callable[[str, Choose], ExampleSet],
    queries: int | None,
    limit: int | None,
    validation: float | int | None,
    seed: int,
    name: str,
    source: Mapping[str, Any],
) -> Splits:
    """Build splits from a training part (train and validation) and a test part (query), reading only what is used."""
    share = 0.1 if validation is None else validation
    parts: dict[str, npt.NDArray[np.int64]] = {}

    def choose_train(labels: Ids) -> npt.NDArray[np.int64]:
        size = labels.size
        n_validation = as_amount(share, size, "validation")
        if limit is not None and validation is None:
            n_validation = min(n_validation, max(10 * np.unique(labels).size, limit // 2))
        held_out = stratified_sample(labels, n_validation, np.random.default_rng([seed, 0x7A1]))
        rest = np.setdiff1d(np.arange(size), held_out)
        if limit is not None and limit < rest.size:
            chosen = stratified_sample(labels[rest], limit, np.random.default_rng([seed, 0x11417]))
            rest = rest[chosen]
        parts["train"], parts["validation"] = rest, held_out
        return np.sort(np.concatenate([rest, held_out]))

    def choose_queries(labels: Ids) -> npt.NDArray[np.int64]:
        size = min(labels.size, queries or labels.size)
        return stratified_sample(labels, size, np.random.default_rng([seed, 0x9E5]))

    both = read("train", choose_train)
    query = read("test", choose_queries)
    rows = np.sort(np.concatenate(list(parts.values())))  # what was read, in this order
    train, held_out = (both.ids[np.searchsorted(rows, parts[part])] for part in ("train", "validation"))
    return Splits(both.subset(train), both.subset(held_out) if held_out.size else None, query, name, source)


TEST_ID_OFFSET = 50_000
"""CIFAR-10 test examples have ids from here on: training row i has id i, test row i has id 50,000 + i."""


def _parquet_part(folder: Path, part: str, choose: Choose, download: bool) -> ExampleSet:
    import pyarrow.compute
    from pyarrow import ArrowException, parquet

    files = sorted(folder.glob(f"{part}-*.parquet"))
    if odd := [file for file in files if not file.is_file()]:
        raise InputError(f"{some(odd)} must be regular files; remove what is not.")
    try:
        table = parquet.read_table(files, columns=["img", "label"])
        labels = table.column("label").to_numpy().astype(np.int64, casting="safe")
        column = pyarrow.compute.struct_field(table.column("img"), "bytes").combine_chunks()
    except (ArrowException, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"Cannot read {part}-*.parquet in {folder} ({str(error).splitlines()[0]}); the columns must be img (a "
            "struct with bytes) and label (integers)."
        ) from error
    rows = choose(labels)

    def decode(row: int) -> npt.NDArray[np.uint8]:
        try:
            with _image(io.BytesIO(column[row].as_buffer() or b"")) as image:
                pixels = np.asarray(as_rgb(image))
        except Exception as error:  # a broken image makes Pillow raise whatever it likes
            raise InputError(
                f"Row {row} of {folder}/{part}-*.parquet is no readable image ({_reason(error)})."
            ) from error
        if pixels.shape != (32, 32, 3):
            raise InputError(f"Row {row} of {folder}/{part}-*.parquet must be 32 x 32 pixels, got {image.size}.")
        return pixels

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(decode, rows.tolist()))).transpose(0, 3, 1, 2)
    return _cifar_set(np.ascontiguousarray(images), labels[rows], rows, part)


def _torchvision_part(folder: Path, part: str, choose: Choose, download: bool) -> ExampleSet:
    from torchvision.datasets import CIFAR10

    try:
        dataset = CIFAR10(str(folder), train=part == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"CIFAR-10 in {folder} is missing or incomplete ({error}); delete {folder / CIFAR10_FOLDER} and add "
            "--download (which needs the network)."
        ) from error
    labels = np.asarray(dataset.targets, dtype=np.int64)
    rows = choose(labels)
    return _cifar_set(np.ascontiguousarray(dataset.data[rows].transpose(0, 3, 1, 2)), labels[rows], rows, part)


def _cifar_set(images: npt.NDArray[np.uint8], labels: Ids, rows: npt.NDArray[np.int64], part: str) -> ExampleSet:
    return ExampleSet.from_arrays(
        images,
        labels,
        ids=rows + (TEST_ID_OFFSET if part == "test" else 0),
        classes=CIFAR10_CLASSES,
        normalization=CIFAR10_NORMALIZATION,
        name=f"cifar10 {part}",
    )


IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff")


class _ImageFiles:
    """Image files read when asked for, as RGB of one size (shorter side resized, centre cropped)."""

    thread_safe = True

    def __init__(self, files: Sequence[Path], side: int) -> None:
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import ImageOps

        with open_image(self.files[index]) as image:
            return ImageOps.fit(as_rgb(image), (self.side, self.side)), 0


FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
"""Image formats that are read, whatever a file is called: Pillow hands PostScript to a program of its own."""
MOST_PIXELS = 178_956_970
"""Of one image: beyond, it is refused before it is unpacked, as Pillow does unless a limit is given."""


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """Open an image file, in a block that reads it.

    Raises:
        InputError: no file, or no image of :data:`FORMATS`, a broken or a huge one; also while the block reads it.
    """
    try:
        with _regular(path) as file, _image(file) as image:
            yield image
    except Exception as error:  # a broken image makes Pillow raise whatever it likes
        raise InputError(f"{path} cannot be read as an image ({_reason(error)}); mend or remove it.") from error


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # it names the open file
        return "no image of a known format"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.replace("\n", " ")


@contextmanager
def _regular(path: Path) -> Iterator[BinaryIO]:
    """Open what is a file, and nothing that is waited for or has no end: pipes, sockets, devices."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("not a regular file")
    with os.fdopen(handle, "rb") as file:
        yield file


@contextmanager
def _image(file: BinaryIO) -> Iterator[Any]:
    """Open an image in one of :data:`FORMATS` and of at most :data:`MOST_PIXELS` pixels."""
    from PIL import Image

    with Image.open(file, formats=FORMATS) as image:
        if min(image.size) < 1:
            raise ValueError("no pixels")
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width:,} x {image.height:,} pixels, more than {MOST_PIXELS:,}")
        yield image


def as_rgb(image: Any) -> Any:
    """The first frame as 8-bit RGB; 16 bits a channel are scaled down (Pillow would cut them off), transparency goes.

    Raises:
        ValueError: pixels that have no scale (floating point, 32-bit integers).
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        from PIL import Image

        pixels = np.asarray(image).astype(np.int64)
        return Image.fromarray((pixels.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, which have no scale; save it with 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _image_folder(
    folder: Path,
    seed: int,
    limit: int | None,
    validation: float | int | None,
    queries: int | None,
    source: Mapping[str, Any],
) -> Splits:
    """``folder/<class>/*``, or ``folder/train/<class>/*`` with ``folder/test`` or ``folder/val`` for the queries.

    With neither of the two, the queries come from ``folder/train`` as they would from a flat folder.
    Ids are hashes of the files' paths in the folder, so those of the others stay when files are added or deleted; in
    sources of earlier versions, positions in the sorted list of files (training files first). Images get the side
    that the source says, else that of the first one, at most 224.
    """
    test = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), None)
    train = folder / "train" if _class_names(folder / "train") else folder
    roots = [train, test] if train != folder and test is not None else [train]
    classes = _class_names(train)
    listed = [_image_list(root, classes) for root in roots]
    with open_image(listed[0][0][0]) as image:
        side = source.get("side") or min(224, *image.size)
    sets, offset = [], 0
    for files, labels in listed:
        names = [path.relative_to(folder).as_posix() for path in files]
        ids = hashed_ids(names) if source.get("ids") == "path" else offset + np.arange(len(files))
        sets.append(
            ExampleSet(
                _ImageFiles(files, side),
                ids=ids,
                labels=labels,
                classes=list(map(readable, classes)),
                normalization=IMAGENET_NORMALIZATION,
                name=folder.name,
            ).with_sources(list(map(readable, names)))
        )
        offset += len(files)
    if len(sets) == 1:
        share, asked = (0.1 if validation is None else validation), (0.1 if queries is None else queries)
        splits = split(sets[0], validation=share, query=asked, seed=seed, name=folder.name, source=source)
        return _limit_train(splits, limit, seed)

    def read(part: str, choose: Choose) -> ExampleSet:
        examples = sets[0] if part == "train" else sets[1]
        return examples.subset(examples.ids[choose(examples.labels)])

    return _from_two(read, queries, limit, validation, seed, folder.name, source)


def _class_names(root: Path) -> list[str]:
    entries = root.iterdir() if root.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _image_list(root: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    unknown = sorted(set(_class_names(root)) - set(classes))
    if unknown:
        raise InputError(f"{root} has classes that the training folder has not: {some(unknown)}.")
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
    ]
    if odd := [str(path) for path, _ in found if not path.is_file()]:
        raise InputError(f"What is named like an image must be a file: {some(odd)} is none; remove or rename it.")
    counts = np.bincount([label for _, label in found], minlength=len(classes)) if found else np.zeros(len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if not found or empty:
        raise InputError(
            f"{root} must hold one sub-folder of images a class; "
            + (f"no image was found for: {some(empty)}." if empty else "it has no sub-folders.")
        )
    return [path for path, _ in found], [label for _, label in found]


_LOADERS: dict[str, Callable[..., Splits]] = {"digits": _digits, "cifar10": _cifar10}


def dataset_names() -> tuple[str, ...]:
    """The names that :func:`load_dataset` knows; a folder of images is the other choice."""
    return tuple(_LOADERS)


SOURCE: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "seed": (int,),
    "limit": (int, NoneType),
    "validation": (float, int, NoneType),
    "queries": (int, NoneType),
    "data_dir": (str,),
    "flip_labels": (float, int),
    "ids": (str,),
    "side": (int,),
    "text_column": (str,),
    "label_column": (str,),
    "encoding": (str,),
    "vocabulary": (str,),
    "length": (int,),
    "drop": (list,),
    "drop_held_out": (list,),
    "relabel": (dict,),
}
"""What a manifest says of where data was found; ``download`` is for the user to say."""


def _checked_source(source: Any, where: object) -> dict[str, Any]:
    """The source in a manifest, believed only as far as it is of the kind that :func:`load_dataset` writes."""
    found = dict(source) if isinstance(source, Mapping) else {"": source}
    kinds = {name: SOURCE.get(name, ()) for name in found}
    wrong = [name for name, value in found.items() if isinstance(value, bool) or not isinstance(value, kinds[name])]
    if wrong or (found and "name" not in found):
        summary = ", ".join(f"{name} = {str(found[name])[:80]!r}" for name in wrong) or "no name"
        raise CorruptFileError(f"{where} has a damaged note of where its data was found ({summary}): restore it.")
    if not 0 <= found.get("seed", 0) < 2**63:
        raise CorruptFileError(f"{where} has a damaged note of where its data was found (seed = {found['seed']}).")
    numbers = [*found.get("drop", ()), *found.get("drop_held_out", ()), *found.get("relabel", {}).values()]
    whole = all(type(number) is int for number in numbers) and all(
        map(str.isdecimal, map(str, found.get("relabel", ())))
    )
    if not whole or found.get("ids", "path") != "path" or min(found.get("length", 1), found.get("side", 1)) < 1:
        raise CorruptFileError(f"{where} has a damaged note of what was changed in its data: restore it.")
    return found


def reload_splits(described: Mapping[str, Any], where: object, *, name: str | None = None) -> Splits:
    """Load again the splits that a manifest describes (see :meth:`Splits.describe`), and check that they are the same.

    Args:
        described: name, source and fingerprint.
        where: the artefact, for messages.
        name: where the data is now, a folder or a file that has moved.

    Raises:
        InputError: the data was passed in from memory and must be passed again; it is not where it was, or cannot be
            read there.
        FingerprintError: what is found under that name now is something else.
    """
    source = _checked_source(described["source"], where)
    if not source:
        raise InputError(f"{where} was made with data of your own ({described['name']}): pass it again as dataset=.")
    moved = source if name is None else {**source, "name": name}
    try:
        splits = _reloaded(moved)
    except OSError as error:
        raise InputError(
            f"The data of {where} cannot be read where they were found, {moved['name'][:200]!r} "
            f"({error.strerror or error}): pass them again as dataset=."
        ) from error
    except CorruptFileError:
        raise
    except InputError as error:
        unless = not is_at(moved["name"]) and name is None
        raise InputError(f"{error}{MOVED.format(where=where) if unless else ''}") from error
    check_fingerprint("data set", found=described["fingerprint"], expected=splits.fingerprint, where=where)
    return splits


MOVED = " The data of {where} was there; where it has moved, say where it is now: --dataset NEW (in Python, dataset=)."


def is_at(name: str) -> bool:
    """Tell whether a data set of this name can be looked for: a built-in one, or a path that is there."""
    return name in _LOADERS or Path(name).exists()


def _reloaded(source: Mapping[str, Any]) -> Splits:
    """The splits that a source tells of, with its flipped, dropped and changed labels.

    Raises:
        InputError: what was dropped or relabelled is not there.
    """
    kept = {name: value for name, value in source.items() if name not in (*CHANGES, "flip_labels")}
    splits = _load({"seed": 0, **kept})
    if share := source.get("flip_labels"):
        splits = with_flipped_labels(splits, share, kept.get("seed", 0))[0]
    gone = [*source.get("drop", ()), *source.get("drop_held_out", ())]
    labels = {int(id_): label for id_, label in source.get("relabel", {}).items()}
    return splits.changed(gone, labels) if gone or labels else splits
