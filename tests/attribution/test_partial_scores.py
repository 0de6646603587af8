"""Scores written block by block: whatever stops the work, what was written stays, and nothing half done opens."""

from __future__ import annotations

import errno
import os
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fork_server import Warm

from comove.attribution import Scores
from comove.attribution.score_blocks import Block, PartialScores, partial_folder
from comove.errors import ComoveError, CorruptFileError, FingerprintError, InputError, LockedError, StorageError

N, Q = 70_003, 11
BLOCKS = [Block(n, min(n + 30_000, N), q, min(q + 4, Q)) for n in range(0, N, 30_000) for q in range(0, Q, 4)]
ARRAYS = {"train_ids": np.arange(N)[::-1] * 2, "query_ids": np.arange(Q) + 5, "train_labels": np.arange(N) % 3}
HEADER: dict[str, Any] = {"method": "m", "classes": ["a", "b", "c"], "info": {"runs": 1}}


def values() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random((N, Q), np.float32)


def partial(path: Path, blocks: list[Block] = BLOCKS, **made_from: object) -> PartialScores:
    return PartialScores(path, ARRAYS, HEADER, made_from, blocks)


def write(made: PartialScores, index: int) -> None:
    block = made.blocks[index]
    made.write(index, values()[block.n0 : block.n1, block.q0 : block.q1])


def test_blocks_in_any_order_make_the_whole(tmp_path: Path) -> None:
    with partial(tmp_path / "s") as made:
        for index in np.random.default_rng(1).permutation(len(BLOCKS)).tolist():
            write(made, index)
        made.finish({"counted": 3})
    opened = Scores.load(tmp_path / "s")
    np.testing.assert_array_equal(opened.values, values())
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(getattr(opened, name), array)
    assert (opened.method, opened.classes, opened.query_labels) == ("m", ("a", "b", "c"), None)
    assert opened.info == {"runs": 1, "counted": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_before_the_last_block_nothing_opens(tmp_path: Path) -> None:
    with partial(tmp_path / "s") as made:
        for index in range(len(BLOCKS)):
            with pytest.raises(InputError, match=f"{len(BLOCKS) - index} of {len(BLOCKS)} blocks are missing"):
                made.finish({})
            assert not (tmp_path / "s").exists()
            for file in partial_folder(tmp_path / "s").iterdir():
                with pytest.raises(CorruptFileError):
                    Scores.load(file)
            write(made, index)


STOPPED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[2])))
import test_partial_scores as t
made = t.partial(Path(sys.argv[1])).__enter__()
for index in (4, 0, 7):
    t.write(made, index)
real, calls = os.pwrite, []
def pwrite(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
os.pwrite = pwrite
t.write(made, 2)
"""


def test_kill_9_in_a_block_costs_that_block(tmp_path: Path, warm: Warm) -> None:
    warm.start(STOPPED, tmp_path / "s", Path(__file__).parent)
    assert warm.wait() == -9, warm.errors.read_text()
    assert not (tmp_path / "s").exists()
    with partial(tmp_path / "s") as made:
        assert made.pending == [1, 2, 3, 5, 6, 8]
        for index in made.pending:
            write(made, index)
        made.finish({})
    np.testing.assert_array_equal(Scores.load(tmp_path / "s").values, values())


def test_another_computation_does_not_go_on_with_these_blocks(tmp_path: Path) -> None:
    partial(tmp_path / "s", data="a")
    with pytest.raises(FingerprintError, match="data was a, now b"):
        partial(tmp_path / "s", data="b")
    with pytest.raises(FingerprintError, match="blocks was"):
        partial(tmp_path / "s", [Block(0, N, 0, Q)], data="a")
    partial(tmp_path / "s", data="a")


def test_one_process_at_a_time_and_the_second_harms_nothing(tmp_path: Path) -> None:
    with partial(tmp_path / "s") as made:
        write(made, 0)
        (partial_folder(tmp_path / "s") / "done.json").unlink()  # as before the first block
        with pytest.raises(LockedError, match="is being worked on"), partial(tmp_path / "s"):
            pass
        block = made.blocks[0]
        stored = np.fromfile(partial_folder(tmp_path / "s") / "values", np.uint8)
        row = values()[block.n0 : block.n1, block.q0].tobytes()
        assert stored.tobytes().count(row) == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = partial_folder(tmp_path / "s")
    folder.mkdir()
    (folder / "mine").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        partial(tmp_path / "s")
    assert [file.name for file in folder.iterdir()] == ["mine"]


@pytest.mark.parametrize("damage", ["cut", "gone", "book", "manifest", "values are a folder", "book is a folder"])
def test_blocks_that_were_tampered_with_are_computed_again(tmp_path: Path, damage: str) -> None:
    with partial(tmp_path / "s") as made:
        write(made, 0)
    folder = partial_folder(tmp_path / "s")
    if damage == "cut":
        os.truncate(folder / "values", 100)
    elif damage == "gone":
        (folder / "values").unlink()
    elif damage.endswith("a folder"):
        file = folder / ("values" if damage.startswith("values") else "done.json")
        file.unlink()
        file.mkdir()
    else:
        file = folder / {"book": "done.json", "manifest": "manifest.json"}[damage]
        content = bytearray(file.read_bytes())
        content[-60] ^= 2
        file.write_bytes(content)
    with pytest.warns(UserWarning, match="computed again"), partial(tmp_path / "s") as again:
        assert again.pending == list(range(len(again.blocks)))


@pytest.mark.parametrize("when", ["going on", "at the end"])
def test_only_the_block_in_which_a_bit_flipped_is_computed_again(tmp_path: Path, when: str) -> None:
    path = tmp_path / "s"
    with partial(path) as made:
        for index in range(len(made.blocks)):
            write(made, index)
        place, block = made._layout.offsets["values_QN"], made.blocks[0]
        with (made.folder / "values").open("r+b") as file:
            file.seek(place + 4 * block.n0)
            byte = file.read(1)
            file.seek(place + 4 * block.n0)
            file.write(bytes([byte[0] ^ 64]))
        if when == "at the end":
            with pytest.raises(CorruptFileError, match=r"1 blocks in .* again to compute them anew"):
                made.finish({})
    with warnings.catch_warnings():
        warnings.simplefilter("error" if when == "at the end" else "ignore")
        with partial(path) as again:
            assert again.pending == [0]
            write(again, 0)
            again.finish({})
    assert np.isfinite(Scores.load(path).values).all()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes (a write that would fails as on a full disk, with another number)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_too_little_room_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    message = r"take 0\.00\d GB in .* GB are free .*Nothing was computed"
    with room_for(1_000_000), pytest.raises(StorageError, match=message), partial(tmp_path / "s"):
        pass
    assert not (partial_folder(tmp_path / "s") / "values").exists()
    with partial(tmp_path / "s") as made:
        assert made.pending == list(range(len(BLOCKS)))


def test_a_full_disk_in_a_block_loses_nothing_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with partial(tmp_path / "s") as made, monkeypatch.context() as patched:
        write(made, 3)
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=r"No space left on device.* The 1 of 9 blocks before are safe"):
            write(made, 4)
    with partial(tmp_path / "s") as again:
        assert again.pending == made.pending == [0, 1, 2, 4, 5, 6, 7, 8]


def test_writes_in_several_goes_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, start: real(file, content[:50_001], start))
    with partial(tmp_path / "s") as made:
        for index in made.pending:
            write(made, index)
        made.finish({})
    np.testing.assert_array_equal(Scores.load(tmp_path / "s").values, values())


def test_a_block_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Block 0 is Block\(n0=0, n1=30000, q0=0, q1=4\), its scores have shape"):
        partial(tmp_path / "s").write(0, np.zeros((4, 30_000), np.float32))


def test_notes_that_are_too_long_are_refused_and_cost_nothing(tmp_path: Path) -> None:
    with partial(tmp_path / "s") as made:
        for index in made.pending:
            write(made, index)
        with pytest.raises(ComoveError, match="info must be shorter"):
            made.finish({"long": "x" * 30_000})
        made.finish({"short": 1})
    assert Scores.load(tmp_path / "s").info["short"] == 1
