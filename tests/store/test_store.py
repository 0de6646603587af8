"""What every artefact relies on: a file is whole or absent, a foreign one is refused, fingerprints tell apart."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from comove.errors import ComoveError, CorruptFileError, FingerprintError, InputError, InputTypeError, StorageError
from comove.store import (
    LazyRows,
    as_ids,
    check_fingerprint,
    check_kind,
    claim_folder,
    digest,
    is_empty,
    new_folder,
    open_array,
    open_manifest,
    read_arrays,
    read_checked,
    read_header,
    read_json,
    write_arrays,
    write_bytes,
    write_checked,
    write_json,
    write_manifest,
)

SOURCE = Path(__file__).parents[2] / "src"


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- writing -----------------------------------------------------------------------------------------------------

WRITE_FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from comove.store import write_arrays
for count in range(10**9):
    value = np.full(500_000, count % 250, np.uint8)
    write_arrays(Path(sys.argv[1]) / f"{count % 3}.safetensors", {"value": value}, {"count": count % 250})
    if count in (2, 60):
        print(count, flush=True)
"""


def test_kill_9_in_mid_write_leaves_only_whole_files(tmp_path: Path) -> None:
    for lines in (1, 2):
        with python(WRITE_FOR_EVER, tmp_path) as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert process.stdout.readline().strip()
            process.kill()
        assert process.returncode == -9
        files = sorted(tmp_path.glob("*.safetensors"))
        assert len(files) == 3
        for file in files:
            value = read_arrays(file)["value"]
            assert value.shape == (500_000,)
            assert set(value.tolist()) == {read_header(file)[1]["count"]}


DIE_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from comove import store
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
store.write_bytes(Path(sys.argv[1]), b"second")
"""


def test_kill_9_before_the_rename_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"first")
    with python(DIE_BEFORE_RENAME, path) as process:
        pass
    assert process.returncode == -9
    assert path.read_bytes() == b"first"


def test_what_a_killed_write_leaves_does_not_block_the_next_run(tmp_path: Path) -> None:
    with python(DIE_BEFORE_RENAME, tmp_path / "manifest.json"):
        pass
    assert [entry.suffix for entry in tmp_path.iterdir()] == [".tmp"]
    assert is_empty(tmp_path)
    assert claim_folder(tmp_path, "run", 1, {"seed": 0})["seed"] == 0


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from comove.errors import StorageError
from comove.store import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"x" * 5000)
except StorageError as error:
    print(error)
"""


def test_full_disk_is_a_storage_error_and_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"first")
    with python(FILL_THE_DISK, path) as process:
        output, errors = process.communicate()
    assert errors == ""
    assert str(path) in output
    assert "untouched" in output
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match=re.escape(str(file / "run"))):
        new_folder(file / "run")
    with pytest.raises(StorageError, match="file"):
        new_folder(file)
    with pytest.raises(StorageError, match=re.escape(str(file / "a.json"))):
        write_json(file / "a.json", {})


def test_a_folder_without_write_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(StorageError, match="not writable"):
        new_folder(tmp_path / "runs")


def test_a_write_into_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        write_bytes(tmp_path / "missing" / "a", b"")


def test_an_interrupt_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_in_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    arrays: dict[str, Any] = {
        "x": np.arange(10.0, dtype=np.float32),
        "ids": np.array([3, 1], np.int64),
        "none": np.zeros((0, 4)),
    }
    write_arrays(path, arrays, {"row": 7, "nested": {"a": [1, None]}})
    return path


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    transposed = np.arange(12, dtype=np.int32).reshape(3, 4).T
    write_arrays(tmp_path / "a", {"t": transposed, "half": np.ones(3, np.float16), "mask": np.array([True, False])})
    found = read_arrays(tmp_path / "a")
    np.testing.assert_array_equal(found["t"], transposed)
    assert {name: str(array.dtype) for name, array in found.items()} == {
        "t": "int32",
        "half": "float16",
        "mask": "bool",
    }


def test_same_content_is_same_bytes(tmp_path: Path) -> None:
    arrays = {name: np.arange(3.0) for name in ("c", "a", "b")}
    for count in range(20):
        write_arrays(tmp_path / str(count), arrays, {"row": 1, "step": 2, "epoch": 3.0, "kind": "x", "version": 1})
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_header_is_read_without_arrays(stored: Path) -> None:
    names, metadata = read_header(stored)
    assert set(names) == {"x", "ids", "none"}
    assert metadata == {"row": 7, "nested": {"a": [1, None]}}


@pytest.mark.parametrize(
    "part", [slice(2, 5), slice(8, 20), slice(12, 14), slice(-3, None), slice(4, 4), slice(0, 9, 2), slice(None)]
)
def test_a_part_is_what_numpy_would_slice(stored: Path, part: slice) -> None:
    np.testing.assert_array_equal(read_arrays(stored, ["x"], part)["x"], np.arange(10.0)[part])


def test_an_absent_array_is_named_with_what_there_is(stored: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"'x'.*not \['y'\]"):
        read_arrays(stored, ["y"])


Read = Callable[[Path], Any]


@pytest.mark.parametrize("read", [read_header, read_arrays])
@pytest.mark.parametrize("damage", ["cut", "headless", "empty", "foreign", "folder", "missing", "not ours"])
def test_damaged_array_files_are_named(stored: Path, read: Read, damage: str) -> None:
    whole = stored.read_bytes()
    if damage in ("folder", "missing"):
        stored.unlink()
    if damage == "folder":
        stored.mkdir()
    if damage in ("cut", "headless", "empty", "foreign"):
        stored.write_bytes({"cut": whole[:-5], "headless": whole[9:], "empty": b"", "foreign": b"PK\3\4" * 9}[damage])
    if damage == "not ours":
        save_file({"x": np.zeros(2)}, stored, {"format": "not JSON"})
        if read is read_arrays:
            return  # the arrays of such a file are sound
    with pytest.raises(CorruptFileError, match=re.escape(str(stored))):
        read(stored)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1, 2]", b"\xff\xfe\x00", None])
def test_damaged_json_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "manifest.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        read_json(path)


# --- manifests and fingerprints ----------------------------------------------------------------------------------


def test_a_missing_manifest_asks_for_the_right_folder(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="the folder you meant"):
        open_manifest(tmp_path, "run", 1)
    with pytest.raises(CorruptFileError, match="is not a folder"):
        open_manifest(tmp_path / "nowhere", "run", 1)


def test_another_kind_of_artefact_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, "bank", 1, {})
    assert open_manifest(tmp_path, "bank", 1)["versions"]["torch"]
    with pytest.raises(CorruptFileError, match=r"'comove/bank', not a comove run"):
        open_manifest(tmp_path, "run", 1)


def test_a_newer_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    write_manifest(tmp_path, "run", 3, {})
    with pytest.raises(CorruptFileError, match=r"version 3; this comove reads up to 2.*Update"):
        open_manifest(tmp_path, "run", 2)
    with pytest.raises(CorruptFileError, match="lacks format_version"):
        check_kind({"kind": "comove/run"}, "run", 2, "here")


def test_digest_tells_dtype_shape_content_and_boundaries_apart() -> None:
    zeros = np.zeros(4, np.int32)
    parts: list[tuple[Any, ...]] = [
        (zeros,),
        (zeros.astype(np.float32),),
        (zeros.reshape(2, 2),),
        (zeros.reshape(4, 1),),
        (np.zeros(2, np.int64),),
        (np.array([0, 0, 0, 1], np.int32),),
        (zeros.astype(">i4"),),
        (zeros[:2], zeros[:2]),
        (zeros[:0],),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ({"a": 1},),
        ({"a": 2},),
        ({"a": "1"},),
        (),
    ]
    assert len({digest(*part) for part in parts}) == len(parts)


def test_digest_depends_on_content_alone() -> None:
    matrix = np.arange(12.0).reshape(3, 4)
    assert digest(matrix.T) == digest(np.ascontiguousarray(matrix.T))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len(digest()) == 32


def test_a_claimed_folder_opens_again_for_the_same_content(tmp_path: Path) -> None:
    content = {"seed": 0, "recipe": {"lr": 0.1, "milestones": (81, 121)}, "dataset": {"name": "digits", "source": 1}}
    first = claim_folder(tmp_path, "run", 1, content)
    moved = {**content, "dataset": {"name": "digits", "source": "elsewhere"}}
    assert claim_folder(tmp_path, "run", 1, moved) == first


def test_another_claim_is_refused_with_both_fingerprints_and_the_differences(tmp_path: Path) -> None:
    content = {"seed": 0, "recipe": {"lr": 0.1, "epochs": 5, "milestones": (81, 121)}}
    first = claim_folder(tmp_path, "run", 1, content)["fingerprint"]
    other = {"seed": 1, "recipe": {"lr": 0.2, "epochs": 5, "milestones": (81, 121)}}
    with pytest.raises(FingerprintError) as caught:
        claim_folder(tmp_path, "run", 1, other)
    message = str(caught.value)
    assert first in message
    assert digest(other) in message
    assert "seed was 0, now 1; recipe.lr was 0.1, now 0.2. Use another folder" in message  # and nothing else


def test_entries_that_only_one_claim_has_are_named(tmp_path: Path) -> None:
    claim_folder(tmp_path, "run", 1, {"recipe": {"lr": 0.1, "optimizer": "adamw"}})
    with pytest.raises(
        FingerprintError, match=r"recipe\.optimizer was adamw, now not given; recipe\.ema was not given, now"
    ):
        claim_folder(tmp_path, "run", 1, {"recipe": {"lr": 0.1, "ema": 0.9}})


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (
            list(range(10)),
            "now 10; the first 10 agree, then it was 10, 11, 12, 13, 14, 15, 16, 17 and 22 more, now none. Use another",
        ),
        ([*range(39), 99], "now 40; the first 39 agree, then it was 39, now 99. Use another"),
    ],
)
def test_of_long_lists_that_differ_only_what_differs_is_told_and_not_all_of_it(
    now: list[int], told: str, tmp_path: Path
) -> None:
    claim_folder(tmp_path, "bank", 1, {"seed": 0, "query_ids": list(range(40))})
    with pytest.raises(FingerprintError) as caught:
        claim_folder(tmp_path, "bank", 1, {"seed": 0, "query_ids": now})
    assert f"query_ids was 40 values, {told}" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_short_lists_that_differ_are_told_whole(tmp_path: Path) -> None:
    claim_folder(tmp_path, "run", 1, {"anchors": [2, 5]})
    with pytest.raises(FingerprintError, match=r"anchors was \[2, 5\], now \[2, 6, 7\]\. Use"):
        claim_folder(tmp_path, "run", 1, {"anchors": (2, 6, 7)})


def test_a_folder_with_something_else_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        claim_folder(tmp_path, "run", 1, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_fingerprint_that_differs_is_shown_beside_the_expected_one() -> None:
    check_fingerprint("data set", found="aa", expected="aa", where="runs/a")
    with pytest.raises(FingerprintError, match=r"runs/a.*aa.*bb"):
        check_fingerprint("data set", found="aa", expected="bb", where="runs/a")


# --- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 2, 3, 3], r"2 are repeated, among them \[2, 3\]"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([1.0, 2.0], "float64"),
        ([True, False], "bool"),
        (np.array([2**63], np.uint64), "9223372036854775808"),
        (5, r"shape \(\)"),
    ],
)
def test_ids_that_are_none_are_refused(ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_ids(ids, "train_ids")


def test_ids_are_a_copy_in_int64() -> None:
    given = np.array([5, 3], np.int64)
    ids = as_ids(given, "ids")
    ids[0] = 0
    assert given.tolist() == [5, 3]
    assert as_ids(np.array([7], np.uint8), "ids").dtype == np.int64
    assert as_ids([], "ids").shape == (0,)


# --- the whole package -------------------------------------------------------------------------------------------


def test_nothing_in_the_package_pickles_or_runs_what_a_file_says() -> None:
    unsafe = re.compile(
        r"\b(?:import|from)\s+(?:pickle|joblib|dill|cloudpickle|shelve|marshal)\b|torch\.(?:load|save)\(|allow_pickle"
        r"|read_pickle|to_pickle|\beval\((?!\))|\bexec\("
    )
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20
    in_transit = {
        SOURCE / "comove" / "jobs" / "serialization.py"
    }  # between processes of one run; never written to a file
    found = [
        f"{file.relative_to(SOURCE)}:{number}: {line.strip()}"
        for file in files
        if file not in in_transit
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if unsafe.search(line)
        and "model.eval(" not in line
        and "weights_only=True)" not in line
        and "allow_pickle=False" not in line
        and '"allow_pickle"' not in line
        and "torch.save(torch.from_numpy(" not in line  # what is written for others
    ]
    assert found == []
    assert not re.search(r"\bopen\(|\.write_|Path\(", in_transit.pop().read_text())


def test_every_error_of_ours_is_also_a_builtin_one() -> None:
    assert issubclass(CorruptFileError, ValueError)
    assert issubclass(FingerprintError, ValueError)
    assert issubclass(StorageError, OSError)
    assert all(issubclass(kind, ComoveError) for kind in (CorruptFileError, FingerprintError, StorageError))


def test_manifests_are_plain_json(tmp_path: Path) -> None:
    write_manifest(tmp_path, "run", 1, {"a": 1})
    assert json.loads((tmp_path / "manifest.json").read_text())["kind"] == "comove/run"


@pytest.mark.parametrize(
    ("called", "noted"),
    [
        (["/home/me/bin/comove", "train", "--out", "my runs/a"], "comove train --out 'my runs/a'"),
        (["-c", "x"], "python x"),  # no folder of the program, and no code
        ([""], "python"),
        (
            ["/lib/comove/__main__.py", "train", "--out", "it's"],
            """comove train --out 'it'"'"'s'""",
        ),  # python -m comove
        (["comove", "clean", *["a b"] * 1000], "comove clean" + " 'a b'" * 331 + " ..."),  # ends after a word
    ],
)
def test_a_manifest_notes_the_command_that_made_it_so_that_it_can_be_run_again(
    called: list[str], noted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", called)
    write_manifest(tmp_path, "run", 1, {"a": 1})
    assert read_json(tmp_path / "manifest.json")["command"] == noted


def test_a_checked_file_gives_back_what_was_written(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1], "b": np.zeros(0, np.int64)}
    write_checked(tmp_path / "file", arrays, {"n": (1, 2), "x": 0.1, "name": "ü"})
    found, metadata = read_checked(tmp_path / "file")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert metadata == {"n": [1, 2], "x": 0.1, "name": "ü"}
    assert read_checked(tmp_path / "file", ["b"])[0].keys() == {"b"}


def test_no_flipped_bit_of_a_checked_file_goes_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_checked(file, {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.uint8)}, {"x": 0.1})
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(CorruptFileError):
            read_checked(file)


def test_a_file_without_checksums_is_no_checked_file(tmp_path: Path) -> None:
    save_file({"a": np.ones(2)}, tmp_path / "file", {"comove": '{"x": 1}'})
    with pytest.raises(CorruptFileError, match="not written by this comove, or its header has changed"):
        read_checked(tmp_path / "file")
    assert read_header(tmp_path / "file") == (("a",), {"x": 1})  # earlier versions wrote none


# --- array files -------------------------------------------------------------------------------------------------

KINDS = ("u8", "i8", "f8", "f4", "u4", "i4", "f2", "u2", "i2", "i1", "u1", "b1")


def of_every_kind() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"{len(KINDS) - i}": (9 * rng.random((3, i + 1))).astype(k) for i, k in enumerate(KINDS)}
    arrays |= {"nothing": np.zeros((0, 3), np.float32), "one": np.array(7, np.int16)}
    return arrays | {"turned": np.arange(6, dtype=np.float32).reshape(2, 3).T, "swapped": np.arange(3, dtype=">f8")}


@pytest.mark.parametrize("metadata", [{}, {"name": "ü", "n": [1, 2]}])
def test_array_files_hold_what_safetensors_reads_in_the_order_in_which_it_writes(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    arrays = of_every_kind()
    write_arrays(tmp_path / "a", arrays, metadata)
    plain = {name: np.array(array, array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()}
    ours, theirs = (tmp_path / "a").read_bytes(), save(plain)
    body = theirs[8 + int.from_bytes(theirs[:8], "little") :]
    assert ours.endswith(body)
    assert (len(ours) - len(body)) % 8 == 0
    assert read_header(tmp_path / "a") == (tuple(sorted(arrays)), metadata)
    for name, array in load_file(tmp_path / "a").items():
        np.testing.assert_array_equal(array, arrays[name])


def test_a_mapped_array_is_the_array_read_only(tmp_path: Path) -> None:
    arrays = of_every_kind()
    write_arrays(tmp_path / "a", arrays)
    for name, array in arrays.items():
        mapped = open_array(tmp_path / "a", name).mapped()
        np.testing.assert_array_equal(mapped, array)
        assert mapped.shape == array.shape
        assert mapped.size == 0 or not mapped.flags.writeable
    with pytest.raises(CorruptFileError, match=r"not \['x'\]"):
        open_array(tmp_path / "a", "x")


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:5], lambda b: b"x" * 99, lambda b: b[:9] + b"?" * 9])
def test_a_damaged_file_is_not_mapped(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "a"
    write_arrays(file, {"a": np.arange(9)})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptFileError, match="truncated or not a safetensors file"):
        open_array(file, "a")
    file.unlink()
    with pytest.raises(CorruptFileError, match="does not exist"):
        open_array(file, "a")


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputTypeError, match="<U1"):
        write_arrays(tmp_path / "a", {"a": np.array(["x"])})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def rows_in_files(tmp_path: Path) -> tuple[np.ndarray[Any, Any], list[Path]]:
    matrix = np.random.default_rng(0).random((5, 7), np.float32)
    files = [tmp_path / str(row) for row in range(5)]
    for file, row in zip(files, matrix, strict=True):
        write_arrays(file, {"v": row, "other": row[:2]})
    return matrix, files


def test_rows_in_files_are_sliced_as_the_matrix_is(rows_in_files: tuple[np.ndarray[Any, Any], list[Path]]) -> None:
    matrix, files = rows_in_files
    lazy = LazyRows(files, "v", 7)
    keys: list[Any] = [slice(None), 2, -1, slice(1, 4), np.array([4, 0]), [1, 1]]
    columns: list[Any] = [slice(None), slice(2, 5), slice(None, None, -2), np.array([6, 0, 0]), 3, slice(5, 5)]
    for rows in keys:
        np.testing.assert_array_equal(lazy[rows], matrix[rows])
        for part in columns:
            np.testing.assert_array_equal(lazy[rows, part], matrix[rows][..., part])
            assert lazy[rows, part].dtype == np.float32
    assert lazy[3:3].shape == (0, 7)
    np.testing.assert_array_equal(np.asarray(lazy), matrix)
    assert np.asarray(lazy, np.float64).dtype == np.float64
    assert (lazy.shape, lazy.ndim, len(lazy), str(lazy.dtype)) == ((5, 7), 2, 5, "float32")
    lazy[1:3][:] = 0  # a copy
    np.testing.assert_array_equal(lazy[:], matrix)


def test_a_row_of_another_width_is_named(rows_in_files: tuple[np.ndarray[Any, Any], list[Path]]) -> None:
    _, files = rows_in_files
    write_arrays(files[3], {"v": np.zeros(8, np.float32)})
    with pytest.raises(CorruptFileError, match=re.escape(str(files[3])) + " holds 8 values of v .* for 7 examples"):
        LazyRows(files, "v", 7)


def test_written_arrays_are_not_copied_in_memory(tmp_path: Path) -> None:
    array = np.zeros(40_000_000, np.uint8)
    tracemalloc.start()
    write_arrays(tmp_path / "a", {"a": array})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"a": (DEEP,)}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"name": "caf\udce9"}, r"whole characters, found 'caf\\udce9'"),
        ({"\ud800": 1}, r"whole characters, found '\\ud800'"),
        ({"names": ("a", ["b", "\udfff"])}, r"whole characters, found '\\udfff'"),
        (DEEP, "nested more than 32 deep"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, content: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        write_json(tmp_path / "a.json", content)
    with pytest.raises(InputError, match=told):
        write_arrays(tmp_path / "a.safetensors", {"a": np.zeros(2)}, content)
    assert not list(tmp_path.iterdir())


def test_an_array_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whole characters"):
        write_arrays(tmp_path / "a.safetensors", {"output.\ud800": np.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_the_command_of_a_manifest_is_text_whatever_its_words_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["comove", "train", "--out", "caf\udce9"])
    write_manifest(tmp_path, "run", 1, {})
    assert read_json(tmp_path / "manifest.json")["command"] == r"comove train --out 'caf\xe9'"
