"""What methods read from: runs, traces and folders, one or several, checked once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comove.data import Splits
from comove.errors import CorruptFileError, InputError, InputTypeError
from comove.trace import Trace
from comove.training import Run
from comove.training.sources import Source, as_sources, open_source

TRACE, CHECKPOINTS = frozenset({"trace"}), frozenset({"trace", "checkpoints"})


def small_trace(**changes: object) -> Trace:
    losses = np.arange(12.0).reshape(3, 4)
    return Trace.from_arrays(train_losses=losses, query_losses=losses, **changes)


def test_one_or_several_runs_traces_sources_and_folders_are_taken(runs: tuple[Run, ...], tmp_path: Path) -> None:
    trace = runs[0].trace
    trace.save(tmp_path / "trace")
    for given in (runs[0], [runs[0]], trace, Source(trace), runs[0].path, str(runs[0].path), tmp_path / "trace"):
        (source,) = as_sources(given, TRACE, "m")  # type: ignore[arg-type]
        np.testing.assert_array_equal(source.trace.train_ids, trace.train_ids)
    several = as_sources([runs[0], runs[1].trace, str(runs[1].path)], TRACE, "m")  # type: ignore[list-item]
    assert [source.run is None for source in several] == [False, True, False]


def test_a_folder_opens_as_what_it_holds(run: Run, tmp_path: Path) -> None:
    small_trace().save(tmp_path / "trace")
    assert isinstance(open_source(run.path), Run)
    assert isinstance(open_source(tmp_path / "trace"), Trace)
    with pytest.raises(CorruptFileError, match="not a folder"):
        open_source(tmp_path / "none")


@pytest.mark.parametrize("given", [None, 1, [3], {"run": 1}, iter(())])
def test_anything_else_is_a_type_error(given: object) -> None:
    with pytest.raises(InputTypeError, match="Expected a Run, a Trace or a sequence of them, got"):
        as_sources(given, TRACE, "m")  # type: ignore[arg-type]


def test_none_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="m needs at least one run"):
        as_sources([], TRACE, "m")


@pytest.mark.parametrize("ids", [[0, 1, 2, 4], [3, 2, 1, 0]])
def test_other_ids_and_another_order_are_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match="m: all runs must have the same training examples in the same order"):
        as_sources([small_trace(), small_trace(train_ids=ids)], TRACE, "m")


def test_labels_must_agree_where_there_are_any() -> None:
    one, other = small_trace(train_labels=[0, 0, 1, 1]), small_trace(train_labels=[0, 1, 1, 1])
    with pytest.raises(InputError, match="the same training ids different labels"):
        as_sources([one, other], TRACE, "m")
    assert len(as_sources([one, small_trace(), one], TRACE, "m")) == 3


def test_checkpoints_are_asked_for_where_needed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_sources(run, CHECKPOINTS, "m")[0].run is run
    with pytest.raises(InputError, match="m needs checkpoints, and a bare trace"):
        as_sources(run.trace, CHECKPOINTS, "m")
    monkeypatch.setattr(Run, "checkpoints", ())
    with pytest.raises(InputError, match="checkpoints='all'"):
        as_sources(run, CHECKPOINTS, "m")


def test_a_source_without_labels_says_how_to_record_them() -> None:
    with pytest.raises(InputError, match="m needs training labels; pass train_labels="):
        Source(small_trace()).labels("m")


def test_a_runs_data_are_known_by_its_manifest_and_a_traces_by_its_own(run: Run, small_digits: Splits) -> None:
    assert Source(run.trace, run).data_fingerprint == small_digits.fingerprint
    assert Source(run.trace).data_fingerprint == small_digits.fingerprint
    assert Source(run.trace).noted == {"data_fingerprint": small_digits.fingerprint}
    assert Source(small_trace()).data_fingerprint is None
    assert Source(small_trace()).noted == {}
