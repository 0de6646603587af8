"""Two processes on gloo record the trace that one does: plain torch, Accelerate, Lightning and transformers."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from comove import Recorder, Trace
from comove.errors import InputError
from comove.store import read_header
from comove.trace.distributed import DistributedRecorder

PACKAGES = {
    "plain": (),
    "plain-resumed": (),
    "accelerate": ("accelerate",),
    "lightning": ("lightning",),
    "transformers": ("transformers", "accelerate"),
}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks its two processes")


def same(two: Trace, one: Trace, tolerance: float = 2e-6) -> None:
    """Float32 sums over batches cut in two differ in their last bits."""
    for name, value in one.examples.items():
        np.testing.assert_array_equal(two.examples[name], value, err_msg=name)
    assert [row.epoch for row in two.rows] == [row.epoch for row in one.rows]
    assert [row.filled for row in two.rows] == [0] * len(one.rows)
    assert two.fields == one.fields
    for side in ("train", "query"):
        for field in one.fields:
            np.testing.assert_allclose(two.read(side, field), one.read(side, field), atol=tolerance, err_msg=field)


WAYS = [(how, mode) for how in PACKAGES for mode in ("sweep", "in_pass")]
WAYS.remove(("plain-resumed", "sweep"))  # a sweep leaves nothing open in mid-pass


@pytest.mark.parametrize(("how", "mode"), WAYS)
def test_two_processes_record_the_trace_of_one(how: str, mode: str, two_processes: Path) -> None:
    absent = [name for name in PACKAGES[how] if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} not installed")
    two = f"plain-{mode}-resumed" if how == "plain-resumed" else f"{how}-{mode}"
    one = f"{how}-{mode}" if how in ("accelerate", "transformers") else f"plain-{mode}"
    recorded = Trace.load(two_processes / "two" / two)
    assert np.ptp(recorded.train_losses, axis=0).min() > 1e-4  # it did train: the identity is none of constants
    same(recorded, Trace.load(two_processes / "one" / one))


def test_where_only_losses_are_kept_they_are_those_of_the_logits(two_processes: Path) -> None:
    folder = two_processes / "two"
    only = Trace.load(folder / "only-losses")
    assert only.fields == ("loss",)
    whole = Trace.load(folder / "plain-sweep")
    np.testing.assert_allclose(only.train_losses[0], whole.train_losses[0], atol=1e-6)
    np.testing.assert_array_equal(only.train_labels, whole.train_labels)


def test_what_goes_wrong_in_the_first_process_is_raised_in_both(two_processes: Path) -> None:
    first, second = (json.loads((two_processes / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [kind for kind, _ in first] == ["InputError", "MissingExamplesError"]
    assert "already holds a trace" in first[0][1]
    assert "2 of 61 train examples were not observed in row 0" in first[1][1]


# --- without a process group -------------------------------------------------------------------------------------


def create(path: Path, **options: object) -> Recorder:
    return Recorder(path, train_ids=[3, 1, 2], query_ids=[9], **options)  # type: ignore[arg-type]


def observe(recorder: Recorder | DistributedRecorder, row: int) -> None:
    recorder.observe([1, 2, 3], loss=torch.tensor([1.0, 2.0, 3.0]) / (row + 1))
    recorder.observe([9], loss=torch.tensor([5.0 - row]))


def test_without_a_process_group_it_is_the_plain_recorder(tmp_path: Path) -> None:
    shared, plain = DistributedRecorder(partial(create, tmp_path / "shared")), create(tmp_path / "plain")
    for row in range(3):
        for recorder in (shared, plain):
            observe(recorder, row)
            recorder.end_epoch(step=4 * row)
    traces = [recorder.finish() for recorder in (shared, plain)]
    assert all(isinstance(trace, Trace) for trace in traces)
    for number in range(3):
        files = [tmp_path / name / "rows" / f"{number:06d}.safetensors" for name in ("shared", "plain")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert read_header(files[0])[1]["step"] == 4 * number


def test_alone_a_wrong_batch_is_refused_at_once(tmp_path: Path) -> None:
    recorder = DistributedRecorder(partial(create, tmp_path / "t"))
    with pytest.raises(InputError, match="Unknown ids: 4"):
        recorder.observe([4], loss=torch.ones(1))


def test_an_open_row_that_is_dropped_leaves_the_rows_and_can_be_recorded_again(tmp_path: Path) -> None:
    dropping, plain = DistributedRecorder(partial(create, tmp_path / "a")), create(tmp_path / "b")
    for recorder in (dropping, plain):
        observe(recorder, 0)
        recorder.end_epoch()
    dropping.observe([1], loss=torch.tensor([77.0]))
    dropping.drop_open_row()
    for recorder in (dropping, plain):
        observe(recorder, 1)
        recorder.end_epoch()
    a, b = dropping.finish(), plain.finish()
    assert a is not None
    np.testing.assert_array_equal(a.train_losses, b.train_losses)


def test_a_dropped_row_is_still_missing_its_examples(tmp_path: Path) -> None:
    recorder = DistributedRecorder(partial(create, tmp_path / "t"))
    observe(recorder, 0)
    recorder.drop_open_row()
    with pytest.raises(InputError, match="3 of 3 train examples were not observed"):
        recorder.end_epoch()
