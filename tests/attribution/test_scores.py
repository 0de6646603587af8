"""Scores and rankings: what stands where, ids kept, and files that refuse to be something else."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from comove.attribution import Ranking, Rankings, Scores
from comove.errors import CorruptFileError, InputError, InputTypeError, NonFiniteError, StorageError
from comove.ties import tie_keys, tie_order

VALUES = [[0.5, -1.0], [2.0, 0.0], [0.5, 3.0], [-4.0, 0.0]]


@pytest.fixture
def scores() -> Scores:
    return made()


def made(values: Any = VALUES, **changes: Any) -> Scores:
    plain: dict[str, Any] = {
        "values": np.asarray(values),
        "train_ids": [40, 10, 30, 20],
        "query_ids": [7, 5],
        "method": "m",
        "train_labels": [0, 1, 1, 0],
        "query_labels": [1, 0],
        "classes": ("cat", "dog"),
        "info": {"runs": 2, "note": "x"},
    }
    return Scores(**{**plain, **changes})


def test_a_column_is_the_query_with_that_id(scores: Scores) -> None:
    np.testing.assert_array_equal(scores.column(5), [-1.0, 0.0, 3.0, 0.0])
    np.testing.assert_array_equal(scores.column(7), [0.5, 2.0, 0.5, -4.0])


def test_top_is_the_highest_and_bottom_the_lowest_with_ties_by_the_hash_of_the_id(scores: Scores) -> None:
    first, second = np.array([30, 40])[tie_order(np.array([30, 40]))].tolist()
    assert list(scores.top(4, query=7)) == [(10, 2.0), (first, 0.5), (second, 0.5), (20, -4.0)]
    first, second = np.array([10, 20])[tie_order(np.array([10, 20]))].tolist()
    assert list(scores.bottom(4, query=5)) == [(40, -1.0), (first, 0.0), (second, 0.0), (30, 3.0)]
    names = {40: "cat", 10: "dog", 30: "dog", 20: "cat"}
    assert scores.top(2, query=7).class_names() == [names[id_] for id_, _ in scores.top(2, query=7)]
    assert len(scores.top(3, query=5)) == 3


def test_without_a_query_the_rankings_of_all_are_one_table(scores: Scores) -> None:
    assert scores.subset(query_ids=[5]).top(1).ids.tolist() == [30]
    assert isinstance(scores.subset(query_ids=[5]).top(1), Ranking)
    for found, one in ((scores.top(3), scores.top), (scores.bottom(3), scores.bottom)):
        assert isinstance(found, Rankings)
        assert len(found) == 3 * scores.query_ids.size
        table = found.to_pandas()
        assert list(table) == ["query_id", "rank", "train_id", "score", "class"]
        assert table["query_id"].tolist() == np.repeat(scores.query_ids, 3).tolist()
        assert table["rank"].tolist() == [1, 2, 3] * scores.query_ids.size
        for query, rows in table.groupby("query_id"):
            ranking = one(3, query=int(str(query)))
            assert list(zip(rows["train_id"], rows["score"], strict=True)) == list(ranking)
            assert rows["class"].tolist() == ranking.class_names()
    assert "train_id" not in repr(scores.top(3))
    assert scores.top(1)._repr_html_().count("<tr>") == 1 + scores.query_ids.size


def test_both_ends_are_a_row_for_each_query_side_and_rank(scores: Scores) -> None:
    table = scores.both_ends(2)
    assert list(table) == ["query_id", "side", "rank", "train_id", "score", "class"]
    assert len(table) == 2 * 2 * scores.query_ids.size
    hurts = table[(table["query_id"] == 5) & (table["side"] == "hurts")]
    assert hurts["train_id"].tolist() == scores.bottom(2, query=5).ids.tolist()


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_outside_the_training_examples_is_refused(scores: Scores, k: int) -> None:
    with pytest.raises(InputError, match=f"k must be a whole number from 1 to 4, got {k}"):
        scores.top(k, query=7)


def test_an_unknown_query_is_named(scores: Scores) -> None:
    with pytest.raises(InputError, match="Unknown query ids: 99; 2 ids are known here: 5, 7"):
        scores.bottom(1, query=99)


def test_a_subset_keeps_the_order_asked_for(scores: Scores) -> None:
    part = scores.subset(train_ids=[20, 40], query_ids=[5, 7])
    np.testing.assert_array_equal(part.values, [[0.0, -4.0], [-1.0, 0.5]])
    assert part.train_labels is not None
    assert part.query_labels is not None
    assert (part.train_labels.tolist(), part.query_labels.tolist()) == ([0, 0], [0, 1])


def test_the_mean_matches_ids_not_positions(scores: Scores) -> None:
    other = scores.subset(train_ids=[10, 20, 30, 40], query_ids=[5, 7])
    doubled = dataclasses.replace(other, values=3 * other.values)
    mean = Scores.mean([scores, doubled], "ensemble")
    np.testing.assert_array_equal(mean.values, 2 * scores.values)
    np.testing.assert_array_equal(mean.train_ids, scores.train_ids)
    assert (mean.method, mean.info["averaged"]) == ("ensemble", 2)


def test_the_mean_is_of_any_iterable_of_scores_and_of_nothing_else(scores: Scores) -> None:
    assert np.array_equal(Scores.mean(iter([scores, scores])).values, Scores.mean([scores, scores]).values)
    assert np.array_equal(Scores.mean(scores).values, scores.values)  # type: ignore[arg-type]
    others: tuple[Any, ...] = ([scores.values], {"a": scores}, [scores, None])
    for other in others:
        with pytest.raises(InputTypeError, match=r"averages Scores, got (ndarray|str|NoneType): make them"):
            Scores.mean(other)


def test_standardized_methods_count_alike_whatever_their_units() -> None:
    rng = np.random.default_rng(0)
    a_NQ, b_NQ = rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 2
    a_NQ[:, 2] = 7.1  # a method that says nothing of a query
    a, b = Scores.from_arrays(a_NQ, method="a"), Scores.from_arrays(1e6 * b_NQ, method="b")
    mean = Scores.mean([a, b], "a + b", standardize=True)
    expected_NQ = (a_NQ / [*a_NQ[:, :2].std(axis=0), np.inf] + b_NQ / b_NQ.std(axis=0)) / 2
    np.testing.assert_allclose(mean.values, expected_NQ, rtol=1e-5, atol=1e-6)
    assert mean.method == "a + b"


def test_standardizing_keeps_signs_and_nothing_overflows() -> None:
    tiny = Scores.from_arrays(np.array([[1e-38, 0.0], [-1e-38, 3e38], [0.0, -3e38]], np.float32), method="a")
    mean = Scores.mean([tiny], standardize=True)
    np.testing.assert_allclose(mean.values, np.array([[1, 0], [-1, 1], [0, -1]]) * np.sqrt(1.5), rtol=1e-5)


def test_a_mean_of_nothing_or_of_other_shapes_is_refused(scores: Scores) -> None:
    with pytest.raises(InputError, match="Nothing to average"):
        Scores.mean([])
    with pytest.raises(InputError, match="Cannot average"):
        Scores.mean([scores, scores.subset(query_ids=[5])])


def test_the_object_and_its_arrays_are_frozen(scores: Scores) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.method = "other"  # type: ignore[misc]
    for array in (scores.values, scores.train_ids, scores.query_ids, scores.train_labels, scores.query_labels):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = 0


def test_what_was_passed_in_stays_writeable() -> None:
    values = np.array(VALUES, np.float32)
    made(values)
    values[0, 0] = 9


def test_transposed_values_are_recognised() -> None:
    with pytest.raises(InputError, match=r"\(train, query\) = \(4, 2\), got \(2, 4\)\. They look transposed"):
        made(np.array(VALUES).T)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_named(bad: float) -> None:
    values = np.array(VALUES)
    values[2, 1] = bad
    with pytest.raises(NonFiniteError, match="train id 30 and query id 5"):
        made(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_ids": [1, 1, 2, 3]}, "train_ids must be unique"),
        ({"query_ids": [1.5, 2.5]}, "query_ids must be a 1-D array of integers"),
        ({"train_labels": [0, 1]}, r"train_labels has shape \(2,\) for 4 ids"),
    ],
)
def test_ids_and_labels_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**changes)


def test_save_and_load_give_the_same_object(scores: Scores, tmp_path: Path) -> None:
    for name, original in {"full": scores, "bare": made(train_labels=None, query_labels=None, classes=None)}.items():
        original.save(tmp_path / f"{name}.safetensors")
        loaded = Scores.load(tmp_path / f"{name}.safetensors")
        for field in dataclasses.fields(Scores):
            np.testing.assert_equal(getattr(loaded, field.name), getattr(original, field.name))
        with pytest.raises(ValueError, match="read-only"):
            loaded.values[:] = 0


def test_loading_what_is_missing_truncated_or_foreign_is_refused(scores: Scores, tmp_path: Path) -> None:
    file = tmp_path / "scores.safetensors"
    with pytest.raises(CorruptFileError, match=r"scores\.safetensors"):
        Scores.load(file)
    scores.save(file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CorruptFileError, match="truncated"):
        Scores.load(file)
    from comove.store import write_arrays

    write_arrays(file, {"ids": np.arange(3)}, {"kind": "comove/coreset", "format_version": 1})
    with pytest.raises(CorruptFileError, match="not a comove scores"):
        Scores.load(file)
    write_arrays(file, {"values": np.zeros((1, 1))}, {"kind": "comove/scores", "format_version": 999})
    with pytest.raises(CorruptFileError, match="format version 999"):
        Scores.load(file)


def test_saving_where_no_folder_can_be_is_a_storage_error(scores: Scores, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Cannot make the folder"):
        scores.save(tmp_path / "file" / "scores.safetensors")


def test_frames_carry_ids_and_class_names(scores: Scores) -> None:
    frame = scores.to_pandas()
    assert frame.loc[30, 5] == 3.0
    assert (frame.index.name, frame.columns.name) == ("train_id", "query_id")
    top = scores.top(2, query=5).to_pandas()
    assert top.to_dict("list") == {"id": [30, 10], "score": [3.0, 0.0], "class": ["dog", "dog"]}


def test_they_print_themselves(scores: Scores) -> None:
    assert repr(scores) == 'Scores(m: 4 train x 2 queries, positive = helps; {"runs": 2, "note": "x"})'
    lines = repr(scores.top(1, query=5)).splitlines()
    assert lines[0] == "Ranking for query 5:"
    assert lines[2].split() == ["30", "+3.00", "dog"]


def test_small_scores_and_long_ids_are_printed_in_full() -> None:
    values = np.array([[2.5e-6], [-1e-9], [0.0], [1.0]], np.float32)
    tiny = Scores(values, np.array([7, 8, 9, 5036793732754224]), np.array([5]), "m")
    lines = repr(tiny.top(4, query=5)).splitlines()
    assert [line.split() for line in lines[2:]] == [
        *(["5036793732754224", "+1.00"], ["7", "+2.5e-06"], ["9", "0"], ["8", "-1.0e-09"]),
    ]
    assert len({len(line.rstrip()) for line in lines[2:]}) == 1


def test_names_fall_back_to_labels_and_to_nothing() -> None:
    assert made(classes=None).top(1, query=5).class_names() == ["1"]
    assert made(train_labels=None).top(1, query=5).class_names() == [""]


def test_float64_values_become_float32_and_float32_is_not_copied() -> None:
    values: npt.NDArray[np.float32] = np.array(VALUES, np.float32)
    assert np.shares_memory(made(values).values, values)
    assert made(values.astype(np.float64)).values.dtype == np.float32


# --- files larger than memory ------------------------------------------------------------------------------------


def random_scores(n: int, q: int, seed: int = 0) -> Scores:
    """Scores with many ties and shuffled ids."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-40, 40, (n, q)).astype(np.float32)
    return Scores(values, rng.permutation(3 * n)[:n], rng.permutation(5 * q)[:q], "m", np.arange(n) % 7)


@pytest.mark.parametrize("n", [1, 30, 65_536, 65_537])
def test_opened_scores_answer_as_those_in_memory(tmp_path: Path, n: int) -> None:
    kept = random_scores(n, 9)
    kept.save(tmp_path / "s")
    opened = Scores.load(tmp_path / "s")
    np.testing.assert_array_equal(opened.values, kept.values)
    for query in kept.query_ids[:3].tolist():
        np.testing.assert_array_equal(opened.column(query), kept.column(query))
        for k in (1, min(n, 17)):
            for found, expected in ((opened.top, kept.top), (opened.bottom, kept.bottom)):
                assert list(found(k, query=query)) == list(expected(k, query=query))
    for train_ids in (None, kept.train_ids[::-3][:50]):
        for query_ids in (None, kept.query_ids[[4, 0]]):
            found_part = opened.subset(train_ids=train_ids, query_ids=query_ids)
            np.testing.assert_array_equal(
                found_part.values, kept.subset(train_ids=train_ids, query_ids=query_ids).values
            )
    opened.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()


def test_the_best_k_are_those_of_a_whole_sort() -> None:
    scores = random_scores(500, 2)
    query = int(scores.query_ids[0])
    order = np.lexsort((tie_keys(scores.train_ids), -scores.column(query)))
    for k in (1, 2, 250, 499, 500):
        np.testing.assert_array_equal(scores.top(k, query=query).ids, scores.train_ids[order[:k]])


def first_format(path: Path, scores: Scores) -> None:
    """What the first version of the format held: the values by training example."""
    from comove.store import write_arrays

    header = {"kind": "comove/scores", "format_version": 1, "method": "m", "classes": ["cat", "dog"], "info": {"a": 1}}
    names = ("values", "train_ids", "query_ids", "train_labels", "query_labels")
    write_arrays(path, {name: getattr(scores, name) for name in names}, header)


def test_files_of_the_first_format_are_still_read(scores: Scores, tmp_path: Path) -> None:
    first_format(tmp_path / "s", scores)
    loaded = Scores.load(tmp_path / "s")
    for field in dataclasses.fields(Scores):
        expected = {"a": 1} if field.name == "info" else getattr(scores, field.name)
        np.testing.assert_equal(getattr(loaded, field.name), expected)
    assert list(loaded.top(2, query=7)) == list(scores.top(2, query=7))


@pytest.mark.parametrize("file_format", [1, 2])
def test_no_flipped_bit_of_the_head_and_no_cut_gives_other_scores(
    scores: Scores, tmp_path: Path, file_format: int
) -> None:
    file = tmp_path / "s"
    first_format(file, scores) if file_format == 1 else scores.save(file)
    content = file.read_bytes()
    for place in (*range(8), *range(8, len(content), 41)):
        file.write_bytes(content[:place])
        with pytest.raises(CorruptFileError, match=r"truncated or not a safetensors file"):
            Scores.load(file)
    for place in range(8):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(CorruptFileError):
            Scores.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values_QN": np.zeros((2, 5), np.float32)}, r"float32 scores of shape \(2, 5\) for 4 x 2 ids"),
        ({"values_QN": np.zeros((2, 4), np.float64)}, "float64 scores"),
        ({"values_QN": None}, "lacks values_QN"),
        ({"train_ids": None}, "lacks train_ids"),
        ({"method": None}, "lacks method"),
    ],
)
def test_a_file_that_lacks_something_says_what(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    from comove.store import write_arrays

    arrays: dict[str, Any] = {
        "values_QN": np.zeros((2, 4), np.float32),
        "train_ids": np.arange(4),
        "query_ids": np.arange(2),
    }
    header = {"kind": "comove/scores", "format_version": 2, "method": "m"}
    parts = {**arrays, **header, **change}
    write_arrays(
        tmp_path / "s",
        {name: parts[name] for name in arrays if parts[name] is not None},
        {name: parts[name] for name in header if parts[name] is not None},
    )
    with pytest.raises(CorruptFileError, match=message):
        Scores.load(tmp_path / "s")


def test_a_damaged_score_is_known_when_its_query_is_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = Scores(rng.random((70_000, 3), np.float32), np.arange(70_000), np.array([7, 4, 5]), "m")
    file = tmp_path / "s"
    scores.save(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of what is stored beyond the last training example of the last query
    file.write_bytes(content)
    opened = Scores.load(file)
    assert list(opened.top(4, query=7)) == list(scores.top(4, query=7))
    np.testing.assert_array_equal(opened.subset(query_ids=[4]).values, scores.subset(query_ids=[4]).values)
    for look in (lambda: opened.subset(train_ids=[69_999]), lambda: opened.top(1, query=5), lambda: opened.values):
        with pytest.raises(CorruptFileError, match="has changed since it was written"):
            look()


def test_a_score_that_is_no_number_in_a_file_without_checksums_is_named(scores: Scores, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    values = scores.values.copy()
    values[-1, -1] = np.nan
    header = '{"kind": "comove/scores", "format_version": 1, "method": "m"}'
    arrays = {"values": values, "train_ids": scores.train_ids, "query_ids": scores.query_ids}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "s", {"comove": header})
    opened = Scores.load(tmp_path / "s")
    with pytest.raises(NonFiniteError, match="train id 20 and query id 5"):
        opened.top(1, query=5)


ASK_A_LARGE_FILE = """
import sys
import numpy as np
from comove.attribution import Scores
from comove.ties import tie_keys, tie_order
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
scores = Scores.load(sys.argv[1])
top, bottom = scores.top(100, query=17_003), scores.bottom(5, query=17_003)
part = scores.subset(train_ids=scores.train_ids[:100], query_ids=[17_003, 3])
print(4 * scores.shape[0] * scores.shape[1], peak() - before)
print(top.ids[0], top.scores[0], bottom.ids[0], bottom.scores[0], part.values[5, 0], part.values[5, 1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux")
def test_a_file_larger_than_the_memory_it_takes_is_asked_for_its_best(tmp_path: Path) -> None:
    from comove.attribution.scores import scores_layout, stored_width
    from comove.store.checksums import BLOCK

    n, q = 200_003, 20_000
    arrays = {"train_ids": np.arange(n) + 7, "query_ids": np.arange(q)}
    column = np.random.default_rng(0).random(n, np.float32)
    column[[5, 9]] = 3, -3
    width = 4 * stored_width(n)
    blocks, rest = divmod(width * q, BLOCK)
    sums = np.array([zlib.crc32(bytes(BLOCK))] * blocks + [zlib.crc32(bytes(rest))] * bool(rest))
    first, place = divmod(17_003 * width, BLOCK)
    touched = bytes(place) + column.tobytes()
    for block, start in enumerate(range(0, len(touched), BLOCK), first):
        sums[block] = zlib.crc32(touched[start : start + BLOCK].ljust(BLOCK, b"\0"))
    header: dict[str, Any] = {"method": "m", "classes": None, "info": {}}
    layout = scores_layout(arrays, header, "".join(f"{value:08x}" for value in sums))
    with (tmp_path / "s").open("wb") as file:
        file.truncate(layout.size)  # a sparse file: zeros take no room
        for name, content in (("train_ids", arrays["train_ids"]), ("query_ids", arrays["query_ids"])):
            file.seek(layout.offsets[name])
            file.write(content.tobytes())
        file.seek(layout.offsets["values_QN"] + 4 * 17_003 * stored_width(n))
        file.write(column.tobytes())
        file.seek(0)
        file.write(layout.head)
    done = subprocess.run(
        [sys.executable, "-c", ASK_A_LARGE_FILE, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sizes, answers = done.stdout.splitlines()
    whole, peak = map(int, sizes.split())
    assert whole == 4 * n * q
    assert peak < 100e6 < whole / 100
    assert answers.split() == ["12", "3.0", "16", "-3.0", "3.0", "0.0"]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u8", "i1", ">i8", ">f4", "f2", "f8"])
def test_numbers_of_every_kind_change_sign_as_numbers_do(dtype: str) -> None:
    given = np.array([[1, 2], [3, 0], [127, 100]]).astype(dtype)
    given[1, 1] = np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else -0.5
    found = Scores.from_arrays(given, positive="hurts").values
    assert found.tolist() == [[-float(one) for one in row] for row in given.astype(float)]


@pytest.mark.parametrize("factor", [1e-200, 1e-42, 1e200])
def test_scores_that_float32_cannot_tell_apart_are_refused_not_read_as_0(factor: float) -> None:
    values = np.array([[1.0, 0.0], [-2.0, 0.0]])
    assert Scores.from_arrays(values * [[1.0, factor]]).values.tolist() == values.tolist()  # 0 may be 0
    with pytest.raises(InputError, match=r"of 1 queries the largest is beyond \(of column 0: 2"):
        Scores.from_arrays(values * factor)
    with pytest.raises(InputError, match="ranks do not change"):
        Scores.from_arrays(-values.T * factor, axes="query train")


def test_scores_of_other_libraries_come_in_and_go_out_in_any_orientation_and_sign() -> None:
    ours = np.array([[1.0, -2.0], [0.5, 3.0], [0.0, -1.0]], np.float32)
    for axes, positive in itertools.product(("train query", "query train", "query,train"), ("helps", "hurts")):
        theirs = (ours if axes.startswith("train") else ours.T) * (1 if positive == "helps" else -1)
        scores = Scores.from_arrays(
            torch.from_numpy(theirs.copy()), train_ids=[3, 4, 5], query_ids=[8, 9], axes=axes, positive=positive
        )
        np.testing.assert_array_equal(scores.values, ours)
        np.testing.assert_array_equal(scores.as_array(axes=axes, positive=positive), theirs)
        assert scores.train_ids.tolist() == [3, 4, 5]
    assert Scores.from_arrays(ours).train_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": "rows columns"}, "axes must be"),
        ({"positive": "yes"}, "positive must be"),
        ({"values": np.zeros(3)}, "two axes"),
        ({"train_ids": [1, 2]}, "train, query"),
    ],
)
def test_scores_that_do_not_say_what_they_are_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scores.from_arrays(**{"values": np.zeros((3, 2)), **changes})
