"""What selectors read from a trace, and what is said when it is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import comove
from comove.coreset import trace_values
from comove.coreset.trace_values import (
    check_first,
    check_window,
    epoch_rows,
    mean_over_epochs,
    needs_anchor,
    needs_features,
    needs_field,
    needs_validation,
    over_epochs,
)
from comove.errors import InputError
from comove.trace import Trace
from comove.training import Run
from comove.training.sources import Source

Recorded = Callable[..., Trace]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Epochs 0 to 3, features kept after 1 and 3; train ids 5 to 8, query ids 20 to 22, of which 22 and 20 validate."""
    recorder = comove.Recorder(
        tmp_path_factory.mktemp("kept") / "trace",
        train_ids=[5, 6, 7, 8],
        query_ids=[20, 21, 22],
        validation_ids=[22, 20],
    )
    for epoch in range(4):
        for ids in ([5, 6, 7, 8], [20, 21, 22]):
            features = torch.tensor([[10.0 * id_, epoch] for id_ in ids])
            logits = features / 100
            labels = torch.tensor(ids) % 2
            recorder.observe(ids, logits=logits, labels=labels, features=features if epoch in (1, 3) else None)
        recorder.end_epoch()
    return recorder.finish()


def test_rows_are_the_ends_of_epochs_without_row_zero_and_rows_between(recorded: Recorded) -> None:
    trace = recorded(el2n=np.zeros((6, 2)), epochs=[0.5, 1, 1.25, 2, 2.5, 3])
    assert epoch_rows(trace, "m") == (2, 4, 6)
    assert epoch_rows(trace, "m", 2) == (2, 4)
    assert epoch_rows(trace, "m", 99) == (2, 4, 6)


def test_too_few_epochs_are_told_with_both_numbers(recorded: Recorded) -> None:
    trace = recorded(el2n=np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"m needs at least 4 recorded epochs, found 3; train longer"):
        epoch_rows(trace, "m", at_least=4)
    with pytest.raises(InputError, match=r"at least 3 recorded epochs, found 2 \(first=2\)"):
        epoch_rows(trace, "m", 2, at_least=3)


def test_a_field_is_read_at_the_ends_of_epochs(recorded: Recorded) -> None:
    values = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(needs_field(recorded(el2n=values), "el2n", "m"), values)
    dense = recorded(el2n=values, epochs=[0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(needs_field(dense, "el2n", "m"), values[[1, 3]])


def test_a_field_that_was_not_recorded_is_told_with_how_to_record_it(recorded: Recorded) -> None:
    trace = recorded(el2n=np.zeros((3, 2)))
    for read in (
        lambda: needs_field(trace, "margin_prob", "m"),
        lambda: over_epochs(trace, "margin_prob", lambda block: block.mean(0), "m", (1,)),
    ):
        with pytest.raises(
            InputError, match=r"m needs 'margin_prob'.*holds loss, el2n.*Recording\(fields=\('loss', 'margin_prob'\)\)"
        ):
            read()


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_blocks_of_any_size_give_the_whole(size: int, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((5, 23)).astype(np.float32)
    widths = []

    def both(block: Any) -> Any:
        widths.append(block.shape[1])
        return np.stack([block.sum(0, dtype=np.float64), block.max(0)])

    monkeypatch.setattr(trace_values, "BLOCK_BYTES", size * 8)
    found = over_epochs(recorded(el2n=values), "el2n", both, "m", (1, 2, 5))
    used = values[[0, 1, 4]]
    np.testing.assert_allclose(found, np.stack([used.sum(0), used.max(0)]), rtol=1e-6)
    assert sum(widths) == 23
    assert max(widths) == min(23, max(1, size // 3))


def test_means_over_runs_count_each_runs_epochs(recorded: Recorded) -> None:
    a, b = np.random.default_rng(1).random((2, 6, 4)).astype(np.float32)
    sources = [Source(recorded(el2n=a)), Source(recorded(el2n=b[:3]))]

    def mean(block: Any) -> Any:
        return block.mean(0, dtype=np.float64)

    found, epochs = mean_over_epochs(sources, "el2n", mean, "m", 5)
    np.testing.assert_allclose(found, (a[:5].mean(0) + b[:3].mean(0)) / 2, rtol=1e-6)
    assert epochs == [5, 3]
    found, epochs = mean_over_epochs(sources, "el2n", mean, "m", 1, epoch=3)
    np.testing.assert_allclose(found, (a[2] + b[2]) / 2, rtol=1e-6)
    assert epochs == [1, 1]
    with pytest.raises(InputError, match=r"m: epoch 4 was not recorded; the last is 3"):
        mean_over_epochs(sources, "el2n", mean, "m", epoch=4)


def test_an_anchor_is_the_last_or_that_of_the_epoch_asked_for(kept: Trace) -> None:
    source = Source(kept)
    for epoch, at in ((None, 3), (3, 3), (1, 1)):
        features, probabilities = needs_anchor(source, epoch, "m")
        np.testing.assert_array_equal(features, [[50, at], [60, at], [70, at], [80, at]])
        np.testing.assert_array_equal(needs_features(source, epoch, "m"), features)
        assert probabilities.shape == (4, 2)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


def test_the_validation_side_of_an_anchor_follows_the_validation_ids(kept: Trace) -> None:
    source = Source(kept)
    features, probabilities = needs_anchor(source, 1, "m", "validation")
    np.testing.assert_array_equal(features, [[220, 1], [200, 1]])
    assert probabilities[0, 0] > probabilities[1, 0]  # of logits 2.2 and 2.0
    columns, labels = needs_validation(source, "m")
    assert columns.tolist() == [2, 0]
    assert labels.tolist() == [0, 0]


def test_a_missing_anchor_is_told_with_what_to_record_and_what_was_kept(kept: Trace, trace: Trace) -> None:
    with pytest.raises(InputError, match=r"m needs features.* at epoch 2; kept were epochs 1, 3.*anchors=\(2, -1\)\)"):
        needs_anchor(Source(kept), 2, "m")
    with pytest.raises(InputError, match=r"at epoch 2; kept were epochs 6\..*choose a kept epoch"):
        needs_features(Source(trace), 2, "m")
    losses = np.ones((3, 2))
    bare = Trace.from_arrays(train_losses=losses, query_losses=losses)
    with pytest.raises(InputError, match=r"at some epoch; none were kept.*anchors=\(-1,\)\)"):
        needs_anchor(Source(bare), None, "m")
    with pytest.raises(InputError, match="m needs the validation labels"):
        needs_validation(Source(bare), "m")


def test_an_anchor_of_train_examples_alone_says_so(tmp_path: Path) -> None:
    recorder = comove.Recorder(tmp_path / "trace", train_ids=[0, 1], query_ids=[2])
    recorder.observe([0, 1], logits=torch.eye(2), labels=torch.tensor([0, 1]), features=torch.eye(2))
    recorder.observe([2], logits=torch.eye(2)[:1], labels=torch.tensor([0]))
    recorder.end_epoch()
    trace = recorder.finish()
    assert needs_features(Source(trace), 0, "m").shape == (2, 2)
    with pytest.raises(InputError, match=r"query\.features was not kept at row 0"):
        needs_anchor(Source(trace), 0, "m", "validation")


def test_the_query_order_of_a_run_is_that_of_its_validation_ids(run: Run) -> None:
    trace = run.trace
    columns, labels = needs_validation(Source(trace, run), "m")
    np.testing.assert_array_equal(trace.query_ids[columns], trace.validation_ids)
    assert trace.query_labels is not None
    np.testing.assert_array_equal(labels, trace.query_labels[columns])


@pytest.mark.parametrize("first", [0, -1, 2.5, True, "3"])
def test_a_number_of_epochs_is_a_whole_number_from_one_on(first: Any) -> None:
    with pytest.raises(InputError, match="m: first must be a number of epochs from 1 on"):
        check_first(first, "m")


def test_windows_are_whole_numbers_that_fit() -> None:
    check_window(3, 3, "m")
    check_window(30, None, "m")
    for window in (1, 0, -2, 2.5, True):
        with pytest.raises(InputError, match="m: window must be a number of epochs from 2 on"):
            check_window(window, None, "m")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="m: a window of 4 epochs does not fit into the first 3"):
        check_window(4, 3, "m")
