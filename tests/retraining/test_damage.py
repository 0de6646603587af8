"""Nothing is lost: damaged files, full disks, second drivers; and a bank's status, its shards, and its one file."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from tests.calls import grouped

from comove.data import Splits
from comove.errors import CorruptFileError, FingerprintError, InputError, LockedError
from comove.evaluation import RetrainingBank, subsets
from comove.models import ModelSpec
from comove.store import read_checked, write_checked
from comove.store.lock import driver_lock, owner_of
from comove.training import Engine, Recipe

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05)
ONE = Engine("one-by-one", 1, "for a test")


def create(folder: Path, data: Splits, **changes: object) -> RetrainingBank:
    plain: dict[str, object] = {"model": "mlp", "recipe": RECIPE, "subsets": subsets.random(0.5, 4), "seeds": 2}
    return RetrainingBank.create(folder, data, **grouped({**plain, **changes}))


@pytest.fixture(scope="module")
def finished(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    """Four halves x two seeds; read only."""
    return create(tmp_path_factory.mktemp("finished") / "bank", small_digits).run(engine=ONE)


@pytest.fixture
def bank(finished: RetrainingBank, tmp_path: Path) -> RetrainingBank:
    """A copy of it."""
    return RetrainingBank.load(shutil.copytree(finished.path, tmp_path / "bank"))


def file_of(bank: RetrainingBank, subset: int, seed: int) -> Path:
    return bank.path / "results" / f"{bank.digests[subset]}-{seed:03d}.safetensors"


# --- damaged results ----------------------------------------------------------------------------------------------


def truncated(bank: RetrainingBank, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def emptied(bank: RetrainingBank, file: Path) -> None:
    file.write_bytes(b"")


def one_bit_flipped(bank: RetrainingBank, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def another_models(bank: RetrainingBank, file: Path) -> None:
    shutil.copyfile(file_of(bank, 3, 1), file)


def another_banks(bank: RetrainingBank, file: Path) -> None:
    arrays, header = read_checked(file)
    write_checked(file, {"logits": arrays["logits"] + 1}, {**header, "bank": "0" * 32})


def foreign(bank: RetrainingBank, file: Path) -> None:
    file.write_text("my notes")


def of_other_queries(bank: RetrainingBank, file: Path) -> None:
    arrays, header = read_checked(file)
    write_checked(file, {"logits": arrays["logits"][1:]}, header)


@pytest.mark.parametrize(
    "damage", [truncated, emptied, one_bit_flipped, another_models, another_banks, foreign, of_other_queries]
)
def test_a_damaged_result_is_pending_and_is_set_aside_and_trained_again(
    damage: Callable[[RetrainingBank, Path], None], bank: RetrainingBank, finished: RetrainingBank
) -> None:
    file = file_of(bank, 1, 0)
    damage(bank, file)
    damaged = file.read_bytes()
    assert bank.pending == [(1, 0)]
    assert bank.status().damaged == (file.name,)
    with pytest.warns(UserWarning, match=rf"1 results .* damaged \({file.name}\) and count as pending; run the bank"):
        outputs = bank.outputs()
    assert np.argwhere(np.isnan(outputs).all(-1)).tolist() == [[1, 0]]
    with pytest.warns(UserWarning, match=rf"1 results .* damaged \({file.name}\): they are set aside"):
        bank.run()
    np.testing.assert_array_equal(bank.logits(), finished.logits())
    assert file.with_name(f"{file.name}.damaged").read_bytes() == damaged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bank.run().status().damaged == ()


def test_damage_after_reading_is_noticed(bank: RetrainingBank) -> None:
    assert np.isfinite(bank.logits()).all()
    one_bit_flipped(bank, file_of(bank, 2, 1))
    assert bank.pending == [(2, 1)]


def test_a_part_does_not_speak_of_damage_elsewhere(bank: RetrainingBank) -> None:
    truncated(bank, file_of(bank, 1, 0))
    assert np.isfinite(bank.part([0, 2]).outputs()).all()
    assert bank.part([0, 2]).status().damaged == ()


def test_a_damaged_plan_is_written_again_by_create(bank: RetrainingBank, small_digits: Splits) -> None:
    (plan,) = (bank.path / "plans").iterdir()
    one_bit_flipped(bank, plan)
    with pytest.raises(CorruptFileError, match=r"random-0\.5-0\.safetensors has changed since it was written"):
        RetrainingBank.load(bank.path)
    with pytest.warns(UserWarning, match=r"plan random-0\.5-0 .* set aside .* no result is lost"):
        assert create(bank.path, small_digits).pending == []
    assert RetrainingBank.load(bank.path).pending == []


def test_damaged_examples_are_written_again_by_create(bank: RetrainingBank, small_digits: Splits) -> None:
    one_bit_flipped(bank, bank.path / "examples.safetensors")
    with pytest.raises(CorruptFileError, match="has changed since it was written"):
        RetrainingBank.load(bank.path)
    create(bank.path, small_digits)
    np.testing.assert_array_equal(RetrainingBank.load(bank.path).query_labels, small_digits.query.labels)


# --- a full disk, a second driver ---------------------------------------------------------------------------------

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from comove.errors import StorageError
from comove.evaluation import RetrainingBank

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rename = Path.replace
def replace(self, target):
    result = rename(self, target)
    if len(list(Path(target).parent.glob("*.safetensors"))) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))  # the next result stops in the middle
    return result

bank = RetrainingBank.load(sys.argv[1])
Path.replace = replace
try:
    bank.run(executor="serial")
except StorageError as error:
    print(error)
    print(len(bank.pending), len(list((bank.path / "results").iterdir())))
"""


def test_a_full_disk_keeps_what_was_finished_and_the_bank_goes_on(
    warm: Any, finished: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    bank = create(tmp_path, small_digits, engine=ONE)
    message, counts = warm.run(FULL_DISK, tmp_path).splitlines()
    assert "Could not write" in message
    assert "then run the same command again" in message
    assert counts == "5 3"  # pending models, and nothing in the folder but three results
    np.testing.assert_array_equal(bank.run().logits(), finished.logits())


DRIVER = """
import sys, time
from comove.evaluation import RetrainingBank
from comove.retraining import training
from tests.calls import grouped

def slow(*args, **options):
    print("training", flush=True)
    time.sleep(60)

training.train_many = slow
RetrainingBank.load(sys.argv[1]).run(executor="serial")
"""


def test_a_second_driver_is_refused_while_the_first_lives_and_reading_is_not(
    warm: Any, finished: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    bank = create(tmp_path, small_digits, engine=ONE)
    first = warm.start(DRIVER, tmp_path)
    until = time.monotonic() + 60
    while warm.output.read_text() != "training\n":
        assert time.monotonic() < until, warm.errors.read_text()
        time.sleep(0.01)
    for attempt in (bank.run, lambda: bank.merge(finished)):
        with pytest.raises(LockedError, match=rf"is being worked on by process {first} on "):
            attempt()
    assert len(create(tmp_path, small_digits).pending) == 8  # looking is free, and so is planning more
    owner = bank.status().owner
    assert owner is not None
    assert owner.pid == first
    assert f"driven by process {first} on " in str(bank.status())
    assert warm.kill() == -9
    assert bank.status().owner is None
    np.testing.assert_array_equal(bank.run().logits(), finished.logits())


def test_a_finished_bank_needs_no_lock(bank: RetrainingBank) -> None:
    with driver_lock(bank.path):
        assert bank.run() is bank


def test_what_killed_writes_left_behind_goes_with_the_next_run(small_digits: Splits, tmp_path: Path) -> None:
    bank = create(tmp_path, small_digits, seeds=1, keep_weights=True)
    for folder in ("results", "weights"):
        (tmp_path / folder / ".half.safetensors.17-ab.tmp").write_text("half a result")
    bank.run()
    names = [file.name for folder in ("results", "weights") for file in (tmp_path / folder).iterdir()]
    assert len(names) == 8
    assert not any(name.endswith(".tmp") for name in names)


# --- status -------------------------------------------------------------------------------------------------------


def test_status_counts_models_by_plan_and_tells_the_pace(small_digits: Splits, tmp_path: Path) -> None:
    create(tmp_path, small_digits, seeds=1).run(engine=ONE)
    bank = create(tmp_path, small_digits, subsets=[subsets.random(0.5, 4), subsets.everything()])
    status = bank.status()
    assert (status.done, status.total, status.owner, status.damaged) == (4, 10, None, ())
    assert [(plan.name, plan.subsets, plan.done, plan.total) for plan in status.plans] == [
        ("random-0.5-0", 4, 4, 8),
        ("everything", 1, 0, 2),
    ]
    headers = [read_checked(file)[1] for file in (tmp_path / "results").iterdir()]
    seconds = max(header["finished"] for header in headers) - headers[0]["started"]
    assert status.models_a_minute == pytest.approx(60 * 4 / seconds)
    assert 0 < sum(header["seconds"] for header in headers) <= seconds + 0.01
    assert str(status).startswith(f"{tmp_path}: 4 of 10 models trained\n  random-0.5-0: 4 subsets, 4 of 8 models\n")
    assert "no process is running it" in str(status)
    assert json.loads(json.dumps(status.to_json()))["plans"][1]["name"] == "everything"


def test_the_pace_is_that_of_the_latest_run(small_digits: Splits, tmp_path: Path) -> None:
    bank = create(tmp_path, small_digits).run(engine=ONE)
    for number, file in enumerate(sorted((tmp_path / "results").iterdir())):
        arrays, header = read_checked(file)
        times = (1000.0, 1001.0 + number) if number < 5 else (9000.0, 9030.0)
        write_checked(file, arrays, {**header, "started": times[0], "finished": times[1]})
    assert bank.status().models_a_minute == 6.0  # three models in 30 s
    assert bank.status().damaged == ()


def test_status_of_a_planned_bank(small_digits: Splits, tmp_path: Path) -> None:
    status = create(tmp_path, small_digits).status()
    assert (status.done, status.total, status.models_a_minute) == (0, 8, None)


# --- shards -------------------------------------------------------------------------------------------------------


def test_shards_made_apart_are_joined_to_the_same_bank(
    finished: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    shards = [create(tmp_path / name, small_digits) for name in ("here", "there")]
    for shard, part in zip(shards, ([0, 1], [1, 2, 3]), strict=True):
        shard.part(part).run(engine=ONE)
    here, there = shards
    assert here.merge(there) == 4  # subset 1 was here
    assert here.pending == []
    np.testing.assert_array_equal(here.logits(), finished.logits())
    assert there.merge(here.path) == 2  # a path will do
    assert here.merge(there) == 0


def test_merging_brings_plans_and_weights(small_digits: Splits, tmp_path: Path) -> None:
    here = create(tmp_path / "here", small_digits, seeds=1)
    plans = [subsets.random(0.5, 6), subsets.everything()]
    there = create(tmp_path / "there", small_digits, subsets=plans, seeds=2, keep_weights=True).run(engine=ONE)
    assert here.merge(there) == 14
    found = RetrainingBank.load(here.path)
    assert (sorted(found.plans), found.masks.shape, found.pending) == (["everything", "random-0.5-0"], (7, 200), [])
    np.testing.assert_array_equal(found.plan("everything").logits(), there.plan("everything").logits())
    assert found.weights(0, 0).keys() == ModelSpec.from_json(there.manifest["model"]).build(0).state_dict().keys()


def test_what_differs_stays_as_it_is_here(bank: RetrainingBank, finished: RetrainingBank, tmp_path: Path) -> None:
    other = RetrainingBank.load(shutil.copytree(finished.path, tmp_path / "other"))
    file = file_of(other, 2, 1)
    arrays, header = read_checked(file)
    write_checked(file, {"logits": arrays["logits"] + 1}, header)
    with pytest.warns(
        UserWarning, match=rf"1 models are in both .* with different results \({file.name}\); those that"
    ):
        assert bank.merge(other) == 0
    np.testing.assert_array_equal(bank.logits(), finished.logits())


def test_damaged_results_are_not_copied_and_do_not_stand_in_the_way(
    bank: RetrainingBank, finished: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    truncated(bank, file_of(bank, 0, 0))
    empty = create(tmp_path / "empty", small_digits)
    with pytest.warns(UserWarning, match="1 results in .* are damaged and were not copied"):
        assert empty.merge(bank) == 7
    assert empty.pending == [(0, 0)]
    assert bank.merge(finished) == 1  # the whole file replaces the damaged one
    np.testing.assert_array_equal(bank.logits(), finished.logits())


def test_another_bank_is_not_merged(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    other = create(tmp_path / "other", small_digits, seed=1)
    both = rf"fingerprint is {other.manifest['fingerprint']}, this bank has {bank.manifest['fingerprint']}"
    with pytest.raises(FingerprintError, match=both):
        bank.merge(other)


# --- one file -----------------------------------------------------------------------------------------------------


def test_a_compact_bank_reads_like_the_folder(bank: RetrainingBank, tmp_path: Path) -> None:
    file_of(bank, 1, 1).unlink()
    compact = RetrainingBank.load(bank.compact(tmp_path / "published" / "bank.safetensors"))
    assert [file.name for file in (tmp_path / "published").iterdir()] == ["bank.safetensors"]
    np.testing.assert_array_equal(compact.logits(), bank.logits())
    np.testing.assert_array_equal(compact.outputs("loss"), bank.outputs("loss"))
    for name in ("masks", "train_ids", "train_labels", "query_ids", "query_labels"):
        np.testing.assert_array_equal(getattr(compact, name), getattr(bank, name))
    assert (compact.classes, compact.digests, compact.plans) == (bank.classes, bank.digests, bank.plans)
    assert (compact.pending, compact.manifest) == ([(1, 1)], bank.manifest)
    np.testing.assert_array_equal(compact.at(0.5).part([2]).logits(), bank.logits()[2:3])
    assert (compact.status().done, compact.status().total) == (7, 8)
    with pytest.raises(InputError, match="imported or compact bank, to be read only; train in the folder"):
        compact.run()
    with pytest.raises(InputError, match="imported or compact bank, to be read only"):
        compact.merge(bank)
    with pytest.raises(InputError, match="no weights of subset 0"):
        compact.weights(0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_published_file_is_continued_in_a_folder(
    bank: RetrainingBank,
    finished: RetrainingBank,
    small_digits: Splits,
    tmp_path: Path,
    dtype: Literal["float32", "float16"],
) -> None:
    file_of(bank, 1, 1).unlink()
    part = bank.part([3, 1, 0])  # in another order than the plan's, and without one of its subsets
    file = part.compact(tmp_path / "bank.safetensors", dtype)
    again = create(tmp_path / "again", small_digits)
    assert again.merge(file) == 5
    assert again.pending == [(2, 0), (1, 1), (2, 1)]
    np.testing.assert_array_equal(again.logits()[[3, 0]], bank.logits()[[3, 0]].astype(dtype))
    again.run(engine=ONE)
    np.testing.assert_array_equal(again.logits()[[1, 2], 1], finished.logits()[[1, 2], 1])
    assert again.merge(file) == 0  # they agree as far as the file says
    assert finished.merge(file) == 0
    with pytest.raises(FingerprintError, match="fingerprint"):
        create(tmp_path / "other", small_digits, seed=1).merge(file)


def test_several_plans_parts_and_half_precision_in_one_file(small_digits: Splits, tmp_path: Path) -> None:
    plans = [subsets.random(0.5, 3), subsets.without([[], []])]
    bank = create(tmp_path / "bank", small_digits, subsets=plans, seeds=1).run(engine=ONE)
    part = bank.part([4, 0])
    whole, half = (RetrainingBank.load(part.compact(tmp_path / f"{d}.safetensors", d)) for d in ("float32", "float16"))
    np.testing.assert_array_equal(whole.logits(), part.logits())
    np.testing.assert_array_equal(half.logits(), part.logits().astype(np.float16))
    assert whole.plans == part.plans == tuple(reversed(bank.plans))
    assert whole.alphas == (0.5,)
    assert (tmp_path / "float16.safetensors").stat().st_size < (tmp_path / "float32.safetensors").stat().st_size
    again = RetrainingBank.load(whole.compact(tmp_path / "again.safetensors"))
    np.testing.assert_array_equal(again.logits(), part.logits())


def test_a_changed_compact_file_is_refused(bank: RetrainingBank, tmp_path: Path) -> None:
    file = bank.compact(tmp_path / "bank.safetensors")
    one_bit_flipped(bank, file)
    with pytest.raises(CorruptFileError, match="has changed since it was written"):
        RetrainingBank.load(file).logits()
    with pytest.raises(InputError, match=r"is a \.safetensors file, got 'bank'"):
        bank.compact(tmp_path / "bank")
    with pytest.raises(InputError, match="not as 'int8'"):
        bank.compact(file, "int8")  # type: ignore[arg-type]
    with pytest.raises(CorruptFileError, match="not a comove compact-bank"):
        RetrainingBank.load(file_of(bank, 0, 0))


def test_logits_too_large_for_half_precision_are_refused(bank: RetrainingBank, tmp_path: Path) -> None:
    arrays, header = read_checked(file_of(bank, 0, 0))
    write_checked(file_of(bank, 0, 0), {"logits": arrays["logits"] + 70_000}, header)
    with pytest.raises(InputError, match=r"largest logit is 7e\+04, too large for float16; use dtype='float32'"):
        bank.compact(tmp_path / "bank.safetensors", "float16")
    assert not list(tmp_path.glob("*.safetensors"))


def test_who_owns_what_nobody_drives(tmp_path: Path) -> None:
    assert owner_of(tmp_path) is None
