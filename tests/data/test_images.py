"""Images of folders and of parquet files: which formats are read and how, and what is refused in one line."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comove.data import builtin
from comove.data.builtin import load_dataset
from comove.data.hashed_ids import hashed_ids
from comove.errors import InputError

RNG = np.random.default_rng(0)
EIGHT = RNG.integers(0, 256, (8, 8), dtype=np.uint8)


def folder_with(tmp_path: Path, name: str, content: bytes) -> Path:
    """A folder of two classes whose first file, in order of names, is good and one other is ``content``."""
    root = tmp_path / "images"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(root / label / f"{number:02}.png")
    if content:
        (root / "b" / name).write_bytes(content)
    return root


def pixels_of(root: Path) -> Any:
    """All images of a folder by id, as (N, 3, 8, 8) numbers from 0 to 255."""
    splits = load_dataset(str(root))
    found: dict[int, Any] = {}
    for part in (splits.train, splits.validation, splits.query):
        assert part is not None
        inputs = part.batch(np.arange(len(part)), "cpu")[0].numpy()
        mean, std = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        for place, id_ in enumerate(part.ids.tolist()):
            found[id_] = (inputs[place] * std + mean) * 255
    return found


def saved(image: Any, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


WHOLE = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(harm) print\n%%EOF\n",
            "no image of a known format",
        ),
        (png_header(50_000, 50_000), "pixels"),
        (WHOLE[: len(WHOLE) // 2], "truncated|broken|end of"),
        (WHOLE[:20], "."),
        (b"no image at all", "no image of a known format"),
        (saved(Image.fromarray(RNG.random((8, 8)).astype(np.float32)), "TIFF"), "no scale"),
    ],
    ids=["PostScript", "giant", "half a file", "a header", "text", "floating point"],
)
def test_what_is_no_good_image_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    root = folder_with(tmp_path, "99.png", content)
    with pytest.raises(InputError, match=rf"99\.png cannot be read as an image \(.*({reason})") as refused:
        pixels_of(root)
    assert "\n" not in str(refused.value)


def test_an_empty_file_is_refused_by_name(tmp_path: Path) -> None:
    root = folder_with(tmp_path, "", b"")
    (root / "b" / "99.png").touch()
    with pytest.raises(InputError, match=r"99\.png cannot be read as an image"):
        pixels_of(root)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device", "loop", "nowhere"])
def test_what_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_with(tmp_path, "", b"")
    odd = root / "b" / "99.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(odd.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(odd.name)
    else:
        targets = {"device": Path("/dev/zero"), "loop": odd, "nowhere": root / "none"}
        odd.symlink_to(targets[kind])
    with pytest.raises(InputError, match=r"99\.png is none; remove or rename it"):
        load_dataset(str(root))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_file_that_became_something_else_since_is_refused_too(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "99.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"99\.png cannot be read as an image \(not a regular file\)"):
        builtin._ImageFiles([odd], 8)[0]


SIXTEEN = EIGHT.astype(np.uint16) * 257  # the same brightness in 16 bits
PALETTE = Image.fromarray(EIGHT % 4, "P")
PALETTE.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
COLOURS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[EIGHT % 4].transpose(2, 0, 1)
GREY = np.broadcast_to(EIGHT, (3, 8, 8))
FRAMES = [Image.fromarray(EIGHT), Image.fromarray(255 - EIGHT)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (saved(Image.fromarray(EIGHT), "PNG"), GREY),
        (saved(Image.fromarray(SIXTEEN), "PNG"), GREY),
        (saved(Image.fromarray(SIXTEEN), "TIFF"), GREY),
        (saved(PALETTE, "PNG"), COLOURS),
        (saved(PALETTE, "PNG", transparency=bytes([0, 255, 128, 255])), COLOURS),
        (saved(Image.fromarray(EIGHT).convert("LA"), "PNG"), GREY),
        (saved(Image.fromarray((EIGHT > 99).astype(np.uint8) * 255).convert("1"), "PNG"), (GREY > 99) * 255),
        (saved(Image.merge("CMYK", [Image.new("L", (8, 8))] * 3 + [Image.fromarray(255 - EIGHT)]), "TIFF"), GREY),
        (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), GREY),
        (saved(Image.fromarray(EIGHT).convert("RGB"), "BMP"), GREY),
        (saved(Image.fromarray(EIGHT).convert("RGB"), "PPM"), GREY),
        (saved(Image.fromarray(EIGHT).convert("RGB"), "WEBP", lossless=True), GREY),
        (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), GREY),
    ],
    ids=[
        "grey",
        "16-bits",
        "16-bit-TIFF",
        "palette",
        "transparent-palette",
        "alpha",
        "1-bit",
        "CMYK",
        "APNG",
        "BMP",
        "PPM",
        "WEBP",
        "GIF",
    ],
)
def test_images_of_every_kind_become_the_same_rgb(tmp_path: Path, content: bytes, expected: Any) -> None:
    found = pixels_of(folder_with(tmp_path, "99.png", content))
    (made,) = hashed_ids(["b/99.png"]).tolist()
    np.testing.assert_allclose(found[made], expected, atol=1.01)


def parquet_folder(tmp_path: Path, content: bytes) -> Path:
    import pyarrow
    from pyarrow import parquet

    good = saved(Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "PNG")
    for part in ("train", "test"):
        images = [{"bytes": content if (part, row) == ("test", 3) else good, "path": None} for row in range(60)]
        table = pyarrow.table({"img": images, "label": [row % 10 for row in range(60)]})
        parquet.write_table(table, tmp_path / f"{part}-0.parquet")
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EOF\n", png_header(50_000, 50_000), b"", WHOLE[:99]],
)
def test_images_in_parquet_files_are_opened_with_the_same_care(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"Row 3 of .*test-\*\.parquet is no readable image"):
        load_dataset("cifar10", data_dir=parquet_folder(tmp_path, content))


def test_a_pipe_in_place_of_a_parquet_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(parquet_folder(tmp_path, WHOLE) / "train-1.parquet")
    with pytest.raises(InputError, match=r"train-1\.parquet must be regular files"):
        load_dataset("cifar10", data_dir=tmp_path)
