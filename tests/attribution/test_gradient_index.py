"""An index against the whole matrix: scores and the best k, whatever the blocks, executors, kills and damages."""

from __future__ import annotations

import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.fork_server import Warm

from comove.attribution import Scores
from comove.attribution import gradient_index as module
from comove.attribution.gradient_index import GradientIndex, index_scores, index_top, rows_of_block
from comove.errors import CorruptFileError, FingerprintError, InputError, InputTypeError, NonFiniteError, StorageError
from comove.jobs import Local
from comove.store import write_manifest

N, Q = 137, 9
SECTIONS = {"first": 5, "blocks.0/second": 7}
Float32 = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 examples a block."""
    monkeypatch.setattr(module, "BLOCK_ROWS", 20)


@pytest.fixture
def phi() -> Float32:
    return np.random.default_rng(0).normal(size=(N, 12)).astype(np.float32)


@pytest.fixture
def asked() -> Float32:
    return np.random.default_rng(1).normal(size=(Q, 12)).astype(np.float32)


IDS = np.random.default_rng(2).permutation(1000)[:N]


def build(folder: Path, phi: Float32, calls: list[int] | None = None, **options: Any) -> GradientIndex:
    def features(part: slice) -> Float32:
        if calls is not None:
            calls.append(part.start)
        return phi[part]

    return GradientIndex.build(folder, **{"ids": IDS, "sections": SECTIONS, "features": features, **options})


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files of features."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("0*.safetensors"))}


def test_scores_are_the_product_with_the_whole_matrix(tmp_path: Path, phi: Float32, asked: Float32) -> None:
    index = build(tmp_path, phi)
    assert len(files(tmp_path)) == 7
    np.testing.assert_allclose(index.scores(asked), phi @ asked.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index.read(slice(15, 63)), phi[15:63])
    np.testing.assert_array_equal(index.read(slice(120, 137)), phi[120:])


@pytest.mark.parametrize("k", [1, 10, 50, N])
def test_the_best_k_are_those_of_all_scores(tmp_path: Path, phi: Float32, asked: Float32, k: int) -> None:
    phi[40:60] = phi[100:120]  # equal scores
    index = build(tmp_path, phi)
    ids_QK, scores_QK = index.top(asked, k)
    whole = Scores(index.scores(asked), IDS, np.arange(Q), "x")
    for query in range(Q):
        ranking = whole.top(k, query=query)
        np.testing.assert_array_equal(ids_QK[query], ranking.ids)
        np.testing.assert_array_equal(scores_QK[query], ranking.scores)


def test_worker_processes_give_the_same_bits(tmp_path: Path, phi: Float32, asked: Float32) -> None:
    index = build(tmp_path, phi)
    here, there = index.top(asked, 8), index.top(asked, 8, executor=Local(2))
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1], there[1])


def test_several_indexes_are_added_up_even_with_other_blocks(
    tmp_path: Path, phi: Float32, asked: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build(tmp_path / "one", phi)
    monkeypatch.setattr(module, "BLOCK_ROWS", 33)
    more = np.concatenate([phi, phi[:, :3] ** 2], 1)
    other = build(tmp_path / "other", more, sections={"all": 15})
    both = [one, other], [asked, np.concatenate([asked, asked[:, :3]], 1)]
    total = index_scores(*both)
    np.testing.assert_allclose(total, phi @ asked.T + more @ both[1][1].T, rtol=1e-4, atol=1e-4)
    ids_QK, scores_QK = index_top(*both, 5)
    np.testing.assert_array_equal(scores_QK, -np.sort(-total.T, 1)[:, :5])
    np.testing.assert_array_equal(
        total.T[np.arange(Q)[:, None], np.argsort(IDS)[np.searchsorted(np.sort(IDS), ids_QK)]], scores_QK
    )


def test_an_opened_index_is_the_one_that_was_built_also_when_it_moved(
    tmp_path: Path, phi: Float32, asked: Float32
) -> None:
    index = build(tmp_path / "a", phi, made_from={"model": "m", "sizes": (1, 2)})
    shutil.move(tmp_path / "a", tmp_path / "b")
    found = GradientIndex.load(tmp_path / "b")
    assert found.sections == SECTIONS
    assert found.made_from == {"model": "m", "sizes": [1, 2]}
    np.testing.assert_array_equal(found.ids, IDS)
    np.testing.assert_array_equal(found.scores(asked), build(tmp_path / "c", phi).scores(asked))
    assert found.identity == index.identity


def test_second_moments_are_those_of_each_section_and_kept(tmp_path: Path, phi: Float32) -> None:
    index = build(tmp_path, phi)
    found = index.second_moments()
    for name, own in zip(SECTIONS, (phi[:, :5], phi[:, 5:]), strict=True):
        np.testing.assert_allclose(found[name], own.T @ own / N, rtol=1e-5, atol=1e-6)
    for file in tmp_path.glob("0*.safetensors"):
        file.unlink()
    again = index.second_moments()  # not computed again
    np.testing.assert_array_equal(again["first"], found["first"])


def test_damaged_second_moments_are_set_aside_and_computed_again(tmp_path: Path, phi: Float32) -> None:
    index = build(tmp_path, phi)
    before = index.second_moments()
    spoil(tmp_path / module.MOMENTS)
    with pytest.warns(UserWarning, match="set aside"):
        again = index.second_moments()
    np.testing.assert_array_equal(again["first"], before["first"])


def spoil(file: Path) -> None:
    """Change one bit of the last byte."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_a_finished_index_is_not_computed_again(tmp_path: Path, phi: Float32) -> None:
    calls: list[int] = []
    build(tmp_path, phi, calls)
    assert calls == list(range(0, N, 20))
    build(tmp_path, phi, calls)
    assert len(calls) == 7


@pytest.mark.parametrize("how", ["changed", "truncated", "empty", "gone", "another block's"])
def test_a_damaged_block_is_told_of_set_aside_and_made_again(
    tmp_path: Path, phi: Float32, asked: Float32, how: str
) -> None:
    index, calls = build(tmp_path, phi), list[int]()
    before, scores = files(tmp_path), index.scores(asked)
    file = tmp_path / f"{40:010d}.safetensors"
    if how == "changed":
        spoil(file)
    elif how == "gone":
        file.unlink()
    elif how == "another block's":
        shutil.copy(tmp_path / f"{60:010d}.safetensors", file)
    else:
        file.write_bytes(before[file.name][: 100 if how == "truncated" else 0])
    with pytest.raises(CorruptFileError, match=file.name):
        index.scores(asked)
    if how == "gone":
        with pytest.raises(CorruptFileError, match="lacks 1 of 7 blocks"):
            GradientIndex.load(tmp_path)
        again = build(tmp_path, phi, calls)
    else:
        with pytest.warns(UserWarning, match="set aside"):
            again = build(tmp_path, phi, calls)
        assert file.with_name(file.name + ".damaged").exists()
    assert calls == [40]
    assert files(tmp_path) == before
    np.testing.assert_array_equal(again.scores(asked), scores)


def test_damaged_ids_are_told_of_and_written_again(tmp_path: Path, phi: Float32) -> None:
    build(tmp_path, phi)
    spoil(tmp_path / module.IDS)
    with pytest.raises(CorruptFileError, match=module.IDS):
        GradientIndex.load(tmp_path)
    with pytest.warns(UserWarning, match="set aside"):
        build(tmp_path, phi)
    np.testing.assert_array_equal(GradientIndex.load(tmp_path).ids, IDS)


def test_a_changed_manifest_is_refused_when_opened(tmp_path: Path, phi: Float32) -> None:
    build(tmp_path, phi)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"block": 20', '"block": 40'))
    with pytest.raises((CorruptFileError, FingerprintError), match="changed since it was written"):
        GradientIndex.load(tmp_path)


@pytest.mark.parametrize(
    "other",
    [{"ids": IDS[::-1]}, {"sections": {"first": 7, "second": 5}}, {"made_from": {"seed": 1}}],
    ids=["examples", "sections", "made from"],
)
def test_another_index_in_the_folder_is_refused(tmp_path: Path, phi: Float32, other: dict[str, Any]) -> None:
    build(tmp_path, phi, made_from={"seed": 0})
    with pytest.raises(FingerprintError, match="holds another gradient-index"):
        build(tmp_path, phi, **{"made_from": {"seed": 0}, **other})


def test_a_folder_of_something_else_is_refused(tmp_path: Path, phi: Float32) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        build(tmp_path, phi)
    with pytest.raises(CorruptFileError):
        GradientIndex.load(tmp_path)


def test_another_artefact_of_ours_is_refused_and_left_alone(tmp_path: Path, phi: Float32) -> None:
    write_manifest(tmp_path, "run", 1, {})
    with pytest.raises(CorruptFileError, match="not a comove gradient-index"):
        build(tmp_path, phi)
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_a_damaged_manifest_is_refused_but_in_a_cache(tmp_path: Path, phi: Float32) -> None:
    folder, calls = tmp_path / "index", list[int]()
    build(folder, phi)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CorruptFileError, match="manifest"):
        build(folder, phi, calls)
    with pytest.warns(UserWarning, match="set aside"):
        build(folder, phi, calls, cached=True)
    assert calls == list(range(0, N, 20))


def test_too_little_room_is_said_before_anything_is_computed(
    tmp_path: Path, phi: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, calls = shutil.disk_usage(tmp_path), list[int]()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=N * 12 * 4 - 1))
    with pytest.raises(StorageError, match="Nothing was computed"):
        build(tmp_path, phi, calls)
    assert not calls


CHILD = """
import sys, time
import numpy as np
from comove.attribution import gradient_index
gradient_index.BLOCK_ROWS = 20
phi = np.load(sys.argv[2])
def features(part):
    time.sleep(0.1)
    return phi[part]
ids = np.random.default_rng(2).permutation(1000)[:137]
gradient_index.GradientIndex.build(sys.argv[1], ids, {"first": 5, "blocks.0/second": 7}, features)
"""


@pytest.mark.parametrize("blocks", [0, 3])
def test_building_goes_on_after_kill_9_with_the_same_bits(
    tmp_path: Path, phi: Float32, warm: Warm, blocks: int
) -> None:
    killed, whole, calls = tmp_path / "killed", tmp_path / "whole", list[int]()
    np.save(tmp_path / "phi.npy", phi)
    warm.start(CHILD, killed, tmp_path / "phi.npy")
    until = time.monotonic() + 60
    while (not killed.exists() or len(files(killed)) < blocks) and time.monotonic() < until:
        time.sleep(0.02)
    assert warm.kill() == -9, warm.errors.read_text()
    before = files(killed)
    assert blocks <= len(before) < 7
    build(killed, phi, calls)
    assert calls == [20 * block for block in range(len(before), 7)]
    build(whole, phi)
    assert files(killed) == files(whole)
    assert before.items() <= files(killed).items()


# --- memory -----------------------------------------------------------------------------------------------------------


def test_neither_building_nor_the_best_k_hold_the_whole_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 512)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 17)
    n, k, asked = 4096, 256, np.random.default_rng(0).normal(size=(40, 256)).astype(np.float32)
    assert rows_of_block(k) == 128
    whole = 4 * n * k

    def features(part: slice) -> Float32:
        return np.random.default_rng(part.start).normal(size=(part.stop - part.start, k)).astype(np.float32)

    tracemalloc.start()
    try:
        index = GradientIndex.build(tmp_path, np.arange(n), {"all": k}, features)
        built = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        index.top(asked, 10)
        chosen = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        index.second_moments()
        moments = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(built, chosen, moments) < whole / 2
    assert index.scores(asked).shape == (n, 40)


def test_a_block_of_many_dimensions_has_few_examples() -> None:
    assert rows_of_block(12) == 20
    assert rows_of_block(1 << 20) == 8
    assert rows_of_block(1 << 40) == 1


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "k", "error", "message"),
    [
        (np.ones((2, 11)), 1, InputError, r"must be \(Q, 12\)"),
        (np.ones(12), 1, InputError, r"must be \(Q, 12\)"),
        (np.full((2, 12), np.nan), 1, NonFiniteError, "finite"),
        (np.full((2, 12), 1e38), 1, NonFiniteError, "beyond float32"),
        (np.ones((2, 12), bool), 1, InputTypeError, "real numbers"),
        (np.ones((2, 12)), 0, InputError, "k must be"),
        (np.ones((2, 12)), N + 1, InputError, "k must be"),
        (np.ones((2, 12)), 1.5, InputTypeError, "k must be"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow|invalid:RuntimeWarning")
def test_bad_questions_are_refused(
    tmp_path: Path, phi: Float32, queries: Any, k: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(tmp_path, phi + 10).top(queries, k)


def test_indexes_of_other_examples_and_other_numbers_of_queries_are_refused(
    tmp_path: Path, phi: Float32, asked: Float32
) -> None:
    one, other = build(tmp_path / "one", phi), build(tmp_path / "other", phi, ids=IDS[::-1])
    with pytest.raises(InputError, match="other training examples"):
        index_scores([one, other], [asked, asked])
    with pytest.raises(InputError, match="same queries"):
        index_scores([one, one], [asked, asked[:3]])
    with pytest.raises(InputError, match="queries for each index"):
        index_scores([one], [asked, asked])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [(np.ones((20, 3), np.float32), InputError, r"\(20, 12\)"), (np.full((20, 12), np.inf), NonFiniteError, "of ids")],
)
def test_bad_features_are_refused(tmp_path: Path, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(tmp_path, value, features=lambda part: value)
    assert not files(tmp_path)


@pytest.mark.parametrize("options", [{"ids": np.zeros(0, np.int64)}, {"sections": {}}, {"sections": {"a": 0}}])
def test_an_index_of_nothing_is_refused(tmp_path: Path, phi: Float32, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="An index needs"):
        build(tmp_path, phi, **options)
