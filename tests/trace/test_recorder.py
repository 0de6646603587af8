"""Three lines in anybody's loop give the trace that arrays would; no gap, flip or kill can spoil it in silence."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.fork_server import Warm
from torch import Tensor

from comove import Recorder, Trace
from comove.errors import (
    CorruptFileError,
    FingerprintError,
    InputError,
    MissingExamplesError,
    NonFiniteError,
    StorageError,
)
from comove.store import read_json
from comove.trace import FIELDS
from comove.trace.statistics import kd, statistics

TRAIN, QUERY = np.array([40, 10, 30, 20, 50]), np.array([7, 9, 8])
ROWS, CLASSES = 4, 3


def logits_of(row: int) -> tuple[Tensor, Tensor]:
    """The logits of training and query examples in a row."""
    generator = torch.Generator().manual_seed(row)
    return torch.randn(5, CLASSES, generator=generator), torch.randn(3, CLASSES, generator=generator)


TRAIN_LABELS, QUERY_LABELS = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([2, 0, 1])


def recorder_at(path: Path, **changes: Any) -> Recorder:
    return Recorder(path, **{"train_ids": TRAIN, "query_ids": QUERY, **changes})


def observe_row(recorder: Recorder, row: int, features: bool = False) -> None:
    train, query = logits_of(row)
    for ids, logits, labels in ((TRAIN, train, TRAIN_LABELS), (QUERY, query, QUERY_LABELS)):
        recorder.observe(ids, logits=logits, labels=labels, features=10 * logits if features else None)


def recorded(path: Path, rows: int = ROWS, **changes: Any) -> Trace:
    recorder = recorder_at(path, **changes)
    for row in range(rows):
        observe_row(recorder, row)
        recorder.end_epoch()
    return recorder.finish()


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*.safetensors")}


# --- the identity ------------------------------------------------------------------------------------------------


def test_three_lines_in_a_loop_give_the_trace_of_the_same_arrays(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 3
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(100, 120)
    recorder = Recorder(tmp_path / "t", train_ids=ids[:14], query_ids=ids[14:])
    losses = []
    for _ in range(3):
        with torch.no_grad():
            losses.append(F.cross_entropy(model(inputs), labels, reduction="none").numpy())
        for batch in torch.split(torch.randperm(20, generator=generator), 6):  # training and query examples mixed
            recorder.observe(ids[batch], logits=model(inputs[batch]), labels=labels[batch])
        recorder.end_epoch()
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(inputs[:14]), labels[:14]))
        optimizer.step()
    trace = recorder.finish()
    matrix = np.stack(losses)
    expected = Trace.from_arrays(
        train_losses=matrix[:, :14],
        query_losses=matrix[:, 14:],
        train_ids=ids[:14],
        query_ids=ids[14:],
        train_labels=labels[:14],
        query_labels=labels[14:],
    )
    np.testing.assert_allclose(trace.train_losses, expected.train_losses, atol=1e-6)
    np.testing.assert_allclose(trace.query_losses, expected.query_losses, atol=1e-6)
    assert trace.rows == expected.rows
    for name, value in expected.examples.items():
        np.testing.assert_array_equal(trace.examples[name], value)


def test_every_field_is_that_of_statistics_and_kd(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "t")
    assert trace.fields == FIELDS
    for side, part, labels in (("train", 0, TRAIN_LABELS), ("query", 1, QUERY_LABELS)):
        computed = [statistics(logits_of(row)[part], labels) for row in range(ROWS)]
        for field in FIELDS[:-1]:
            expected = torch.stack([values[field] for values, _ in computed])
            np.testing.assert_array_equal(trace.read(side, field), expected.numpy(), err_msg=field)  # type: ignore[arg-type]
        changes = torch.stack([kd(computed[t][1], computed[t - 1][1]) for t in range(1, ROWS)])
        np.testing.assert_array_equal(trace.read(side, "kd"), changes.numpy())  # type: ignore[arg-type]


def permuted(row: int) -> Iterator[tuple[np.ndarray[Any, Any], Tensor, Tensor]]:
    train, query = logits_of(row)
    ids, logits, labels = np.r_[TRAIN, QUERY], torch.cat([train, query]), torch.cat([TRAIN_LABELS, QUERY_LABELS])
    order = torch.from_numpy(np.random.default_rng(row).permutation(8))
    for batch in torch.split(order, row + 1):
        yield ids[batch], logits[batch], labels[batch]


def test_order_and_partition_of_batches_do_not_matter(tmp_path: Path) -> None:
    recorded(tmp_path / "whole")
    recorder = recorder_at(tmp_path / "parts")
    for row in range(ROWS):
        for ids, logits, labels in permuted(row):
            recorder.observe(ids, logits=logits, labels=labels)
        recorder.end_epoch()
    recorder.finish()
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")


def test_each_closed_row_is_one_file_at_once(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    for row in range(3):
        observe_row(recorder, row)
        assert len(list((tmp_path / "rows").iterdir())) == row
        recorder.end_epoch()
        assert sorted(file.name for file in (tmp_path / "rows").iterdir())[-1] == f"00000{row}.safetensors"


def test_a_trace_being_recorded_opens_with_its_rows_so_far(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path / "t")
    with pytest.raises(InputError, match="holds no row yet"):
        Trace.load(tmp_path / "t")
    observe_row(recorder, 0)
    recorder.end_epoch()
    observe_row(recorder, 1)
    partial = Trace.load(tmp_path / "t")
    assert [row.index for row in partial.rows] == [0]
    assert "kd" not in partial.fields
    recorder.end_epoch()
    assert Trace.load(tmp_path / "t").train_losses.shape == (2, 5)


def test_epochs_count_from_0_in_a_sweep_and_from_1_in_a_pass(tmp_path: Path) -> None:
    sweep = recorded(tmp_path / "a", rows=3)
    in_pass = recorded(tmp_path / "b", rows=3, mode="in_pass")
    assert [row.epoch for row in sweep.rows] == [0, 1, 2]
    assert [row.epoch for row in in_pass.rows] == [1, 2, 3]
    assert (sweep.mode, in_pass.mode) == ("sweep", "in_pass")


def test_rows_within_an_epoch_leave_the_epochs_whole(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    closed = []
    for count, epoch in enumerate((None, 0.4, 0.8, None, 1.5, None)):
        observe_row(recorder, count)
        closed.append(recorder.end_epoch() if epoch is None else recorder.end_row(epoch=epoch, step=10 * count))
    assert [row.epoch for row in closed] == [0, 0.4, 0.8, 1, 1.5, 2]
    assert [row.step for row in closed] == [0, 10, 20, 3, 40, 5]


def test_fields_can_be_left_out(tmp_path: Path) -> None:
    trace = recorded(tmp_path, fields=("el2n", "loss"))
    assert trace.fields == ("loss", "el2n")


def test_labels_classes_validation_ids_and_notes_are_kept(tmp_path: Path) -> None:
    trace = recorded(tmp_path, classes=["x", "y", "z"], validation_ids=[9], notes={"optimizer": "sgd"})
    assert trace.train_labels is not None
    assert trace.train_labels.tolist() == TRAIN_LABELS.tolist()
    assert trace.validation_ids.tolist() == [9]
    assert (trace.manifest["classes"], trace.manifest["optimizer"]) == (["x", "y", "z"], "sgd")


def test_anchors_keep_features_and_probabilities_of_their_rows_alone(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path, fields=("loss",), missing="previous")
    for row in range(4):
        observe_row(recorder, row, features=row in (0, 2))
        recorder.end_epoch()
    trace = recorder.finish()
    assert trace.anchors == (0, 2)
    np.testing.assert_array_equal(trace.features("train"), 10 * logits_of(2)[0].numpy())
    np.testing.assert_array_equal(trace.features("query", 0), 10 * logits_of(0)[1].numpy())
    np.testing.assert_array_equal(trace.probabilities("train", 0), logits_of(0)[0].softmax(1).numpy())
    with pytest.raises(InputError, match=r"row 1; kept: \[0, 2\]"):
        trace.features("train", 1)


def test_features_of_one_side_only_say_so(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    train, query = logits_of(0)
    recorder.observe(TRAIN, logits=train, labels=TRAIN_LABELS, features=train)
    recorder.observe(QUERY, logits=query, labels=QUERY_LABELS)
    recorder.end_epoch()
    with pytest.raises(InputError, match=r"query\.features was not kept at row 0"):
        recorder.finish().features("query")


def test_observations_of_other_frameworks_are_taken(tmp_path: Path) -> None:
    recorded(tmp_path / "tensors", rows=1)
    recorder = recorder_at(tmp_path / "arrays")
    for ids, logits, labels in zip((TRAIN, QUERY), logits_of(0), (TRAIN_LABELS, QUERY_LABELS), strict=True):
        frozen = logits.numpy().copy()
        frozen.flags.writeable = False  # as arrays of JAX are
        recorder.observe(ids.tolist(), logits=frozen, labels=labels.tolist())
    recorder.end_epoch()
    recorder.finish()
    assert files_of(tmp_path / "tensors") == files_of(tmp_path / "arrays")


def test_observing_leaves_no_graph_and_changes_nothing(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    logits = logits_of(0)[0].requires_grad_()
    before = logits.detach().clone()
    ids = TRAIN.copy()
    recorder.observe(ids, logits=logits, labels=TRAIN_LABELS)
    assert not any(value.requires_grad for value in recorder.state_dict().values() if isinstance(value, Tensor))
    assert torch.equal(logits.detach(), before)
    assert ids.tolist() == TRAIN.tolist()


# --- losses alone ------------------------------------------------------------------------------------------------


def test_losses_alone_give_losses_alone(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path, train_labels=TRAIN_LABELS)
    for row in range(2):
        recorder.observe(TRAIN, loss=np.arange(5.0) + row)
        recorder.observe(torch.from_numpy(QUERY), loss=torch.arange(3.0, requires_grad=True), labels=QUERY_LABELS)
        recorder.end_epoch()
    trace = recorder.finish()
    assert trace.fields == ("loss",)
    assert trace.train_losses.tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert trace.query_labels is not None
    assert trace.query_labels.tolist() == QUERY_LABELS.tolist()
    with pytest.raises(InputError, match=r"no 'margin_logit'.*passing logits= and labels="):
        trace.read("train", "margin_logit")


def test_labels_of_a_part_of_the_examples_are_not_kept_as_labels_of_all(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    recorder.observe(TRAIN[:2], loss=[1.0, 2.0], labels=torch.tensor([0, 1]))
    recorder.observe(TRAIN[2:], loss=[1.0, 2.0, 3.0])
    recorder.observe(QUERY, loss=[1.0, 2.0, 3.0])
    recorder.end_epoch()
    assert recorder.finish().train_labels is None


def test_fields_of_one_side_are_not_asked_of_the_other(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    recorder.observe(TRAIN, logits=logits_of(0)[0], labels=TRAIN_LABELS)
    recorder.observe(QUERY, loss=[1.0, 2.0, 3.0])
    recorder.end_epoch()
    trace = recorder.finish()
    assert trace.read("train", "el2n").shape == (1, 5)
    with pytest.raises(InputError, match="no 'el2n' of the query examples; it holds loss"):
        trace.read("query", "el2n")


def test_batches_of_a_row_that_bring_different_things_are_refused(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    recorder.observe(TRAIN[:2], loss=[1.0, 2.0])
    with pytest.raises(InputError, match=r"train batches before had loss; this one has .*margin_logit"):
        recorder.observe(TRAIN[2:], logits=logits_of(0)[0][2:], labels=TRAIN_LABELS[2:])


def test_rows_that_hold_different_things_are_refused(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    observe_row(recorder, 0)
    recorder.end_epoch()
    recorder.observe(np.r_[TRAIN, QUERY], loss=np.ones(8))
    with pytest.raises(InputError, match=r"Every row must hold the same statistics: .*train\.margin_prob"):
        recorder.end_epoch()
    assert len(Trace.load(tmp_path).rows) == 1


# --- what is missing ---------------------------------------------------------------------------------------------


def test_examples_not_observed_are_named(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    recorder.observe(TRAIN[:3], loss=[1.0, 2.0, 3.0])
    recorder.observe(QUERY, loss=[1.0, 2.0, 3.0])
    with pytest.raises(MissingExamplesError, match=r"2 of 5 train .* row 0: ids 20, 50\. .*drop_last.*'previous'"):
        recorder.end_epoch()
    recorder.observe(TRAIN[3:], loss=[4.0, 5.0])
    recorder.end_epoch()
    assert recorder.finish().train_losses.tolist() == [[1, 2, 3, 4, 5]]


def test_a_side_never_observed_is_missing(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    recorder.observe(TRAIN, loss=np.ones(5))
    with pytest.raises(MissingExamplesError, match="3 of 3 query"):
        recorder.end_epoch()


def test_missing_previous_repeats_the_last_values_and_counts_them(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path, missing="previous")
    observe_row(recorder, 0)
    recorder.end_epoch()
    train, query = logits_of(1)
    recorder.observe(TRAIN[:4], logits=train[:4], labels=TRAIN_LABELS[:4])
    recorder.observe(QUERY, logits=query, labels=QUERY_LABELS)
    assert recorder.end_epoch().filled == 1
    observe_row(recorder, 2)
    recorder.end_epoch()
    trace = recorder.finish()
    assert [row.filled for row in trace.rows] == [0, 1, 0]
    assert trace.manifest["missing"] == "previous"
    for field in FIELDS[:-1]:
        values = trace.read("train", field)
        assert values[1, 4] == values[0, 4]
    changes = trace.read("train", "kd")
    assert changes[0, 4] == 0
    expected = kd(logits_of(2)[0].softmax(1), logits_of(0)[0].softmax(1))[4]
    assert changes[1, 4] == pytest.approx(expected.item())


def test_missing_previous_can_repeat_a_whole_side(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path, missing="previous")
    observe_row(recorder, 0)
    recorder.end_epoch()
    recorder.observe(TRAIN, logits=logits_of(1)[0], labels=TRAIN_LABELS)
    assert recorder.end_epoch().filled == 3
    trace = recorder.finish()
    assert (trace.query_losses[1] == trace.query_losses[0]).all()


def test_there_is_nothing_to_repeat_in_the_first_row(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path, missing="previous")
    recorder.observe(TRAIN[:4], loss=np.ones(4))
    with pytest.raises(MissingExamplesError, match="ids 50"):
        recorder.end_epoch()


def test_features_are_never_repeated_nor_made_up(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path, missing="previous")
    observe_row(recorder, 0, features=True)
    recorder.end_epoch()
    train, query = logits_of(1)
    recorder.observe(TRAIN[:4], logits=train[:4], labels=TRAIN_LABELS[:4])
    recorder.observe(QUERY, logits=query, labels=QUERY_LABELS)
    recorder.end_epoch()
    recorder.observe(TRAIN[:4], logits=train[:4], labels=TRAIN_LABELS[:4], features=train[:4])
    recorder.observe(QUERY, logits=query, labels=QUERY_LABELS, features=query)
    with pytest.raises(MissingExamplesError, match=r"Features are not repeated.*ids 50"):
        recorder.end_epoch()
    assert Trace.load(tmp_path).anchors == (0,)


# --- what is wrong -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_row_and_ids_and_earlier_rows_stay(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    observe_row(recorder, 0)
    recorder.end_epoch()
    observe_row(recorder, 1)
    train = logits_of(1)[0]
    recorder.observe([30, 50], logits=torch.full((2, 3), torch.nan), labels=TRAIN_LABELS[[2, 4]])
    with pytest.raises(NonFiniteError, match=r"in row 1 \(epoch 1\) 2 train examples .* ids 30, 50"):
        recorder.end_epoch()
    assert len(Trace.load(tmp_path).rows) == 1
    recorder.observe([30, 50], logits=train[[2, 4]], labels=TRAIN_LABELS[[2, 4]])
    recorder.end_epoch()
    assert recorder.finish().train_losses.shape == (2, 5)


def test_a_label_that_changes_is_refused_with_ids(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    observe_row(recorder, 0)
    recorder.end_epoch()
    train, query = logits_of(1)
    recorder.observe(TRAIN, logits=train, labels=torch.tensor([0, 1, 0, 1, 1]))
    recorder.observe(QUERY, logits=query, labels=QUERY_LABELS)
    with pytest.raises(InputError, match=r"2 train examples .* another label than before: ids 30, 50"):
        recorder.end_epoch()


def test_a_label_other_than_the_one_declared_is_refused(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path, train_labels=[0, 1, 2, 1, 1])
    observe_row(recorder, 0)
    with pytest.raises(InputError, match="ids 50"):
        recorder.end_epoch()


def test_unknown_ids_are_named_and_nothing_of_their_batch_is_taken(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    with pytest.raises(InputError, match=r"Unknown ids: 0, 1 are neither.*stable ids"):
        recorder.observe([40, 0, 1], loss=np.ones(3))
    with pytest.raises(InputError, match="Unknown train ids: 7"):
        recorder.observe([7], loss=np.ones(1), side="train")
    with pytest.raises(MissingExamplesError, match="5 of 5"):
        recorder.end_epoch()


def test_overlapping_ids_need_a_side(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, train_ids=[0, 1, 2], query_ids=[2, 3])
    with pytest.raises(InputError, match=r"ids 2 are both train and query ids: say side="):
        recorder.observe([0, 1, 2], loss=np.ones(3))
    with pytest.raises(InputError, match="side must be"):
        recorder.observe([3], loss=np.ones(1), side="test")  # type: ignore[arg-type]
    recorder.observe([0, 1, 2], loss=[1.0, 2.0, 3.0], side="train")
    recorder.observe([2, 3], loss=[5.0, 6.0], side="query")
    recorder.end_epoch()
    trace = recorder.finish()
    assert (trace.train_losses.tolist(), trace.query_losses.tolist()) == ([[1, 2, 3]], [[5, 6]])


def test_of_two_observations_in_a_row_the_last_counts(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    recorder.observe(np.r_[TRAIN, QUERY], loss=np.zeros(8))
    recorder.observe([30, 8], loss=[1.0, 2.0])
    recorder.end_epoch()
    trace = recorder.finish()
    assert trace.train_losses.tolist() == [[0, 0, 1, 0, 0]]
    assert trace.query_losses.tolist() == [[0, 0, 2]]


def test_of_an_id_repeated_in_a_batch_the_last_counts(tmp_path: Path) -> None:
    train_ids = np.arange(1000)
    recorder = Recorder(tmp_path, train_ids=train_ids, query_ids=[5000])
    ids = np.tile(train_ids, 60)
    recorder.observe(np.r_[ids, 5000], loss=np.arange(ids.size + 1))
    recorder.end_epoch()
    assert recorder.finish().train_losses[0].tolist() == list(range(59_000, 60_000))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, r"needs logits= and labels=, or loss="),
        ({"logits": torch.zeros(2, 3)}, "needs logits= and labels="),
        ({"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1]), "loss": torch.zeros(2)}, "not both"),
        ({"loss": 1.5}, r"per example, \(B,\), got shape \(\); use reduction='none'"),
        ({"loss": torch.zeros(2, 2)}, r"\(2, 2\)"),
        ({"loss": torch.zeros(3)}, r"ids has shape \(2,\) for a batch of 3"),
        ({"loss": torch.zeros(2), "labels": torch.tensor([0])}, r"labels has shape \(1,\) for a batch of 2"),
        ({"loss": torch.zeros(2), "features": torch.zeros(2, 4)}, "features= needs logits= and labels="),
        ({"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 3])}, r"labels must be in 0 \.\.\. 2"),
        (
            {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1]), "features": torch.zeros(3, 4)},
            r"features must be \(2, F\), got \(3, 4\)",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused_in_words(tmp_path: Path, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recorder_at(tmp_path).observe([40, 10], **batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_ids": [1, 1]}, "train_ids must be unique"),
        ({"query_ids": []}, "query_ids must name at least one"),
        ({"train_labels": [0, 1]}, "train_labels has 2 entries for 5 examples"),
        ({"query_labels": [0.5, 1, 2]}, "query_labels must be a 1-D array of integers"),
        ({"validation_ids": [1]}, "Unknown query ids: 1"),
        ({"fields": ("kd",)}, "must contain 'loss'"),
        ({"fields": ("loss", "lossy")}, "among loss, target_probability"),
        ({"mode": "sideways"}, "mode must be sweep or in_pass"),
        ({"missing": "zero"}, "missing error or previous"),
    ],
)
def test_recorders_that_make_no_sense_are_refused_and_leave_no_folder(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recorder_at(tmp_path / "t", **changes)
    assert not (tmp_path / "t").exists()


def test_a_folder_that_holds_a_trace_is_not_written_again(tmp_path: Path) -> None:
    recorded(tmp_path / "t")
    before = files_of(tmp_path / "t")
    with pytest.raises(InputError, match=r"already holds a trace.*resume=True"):
        recorder_at(tmp_path / "t")
    assert files_of(tmp_path / "t") == before


def test_an_unwritable_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot make the folder"):
        recorder_at(tmp_path / "file" / "trace")


def test_a_row_that_could_not_be_written_can_be_closed_again(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path / "t")
    observe_row(recorder, 0)
    recorder.end_epoch()
    observe_row(recorder, 1)
    (tmp_path / "t" / "rows").rename(tmp_path / "away")
    (tmp_path / "t" / "rows").write_text("in the way")
    with pytest.raises((StorageError, CorruptFileError)):
        recorder.end_epoch()
    (tmp_path / "t" / "rows").unlink()
    (tmp_path / "away").rename(tmp_path / "t" / "rows")
    recorder.end_epoch()
    recorder.finish()
    recorded(tmp_path / "expected", rows=2)
    assert files_of(tmp_path / "t") == files_of(tmp_path / "expected")


def test_nothing_recorded_is_no_trace_and_a_finished_one_is_frozen(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    with pytest.raises(InputError, match="Nothing was recorded"):
        recorder.finish()
    observe_row(recorder, 0)
    recorder.end_epoch()
    recorder.finish()
    observe_row(recorder, 1)
    with pytest.raises(InputError, match="finished and frozen"):
        recorder.end_epoch()
    assert len(Trace.load(tmp_path).rows) == 1


# --- resuming ----------------------------------------------------------------------------------------------------

RECORD_UNTIL_KILLED = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[2])
from test_recorder import observe_row, recorder_at
path = Path(sys.argv[1])
recorder = recorder_at(path / "t")
for row in range(10**6):
    observe_row(recorder, row, features=row % 2 == 0)
    recorder.end_epoch()
    state = recorder.state_dict()
    save_file({k: v for k, v in state.items() if k != "rows"}, path / f"state-{state['rows']}.tmp")
    (path / f"state-{state['rows']}.tmp").rename(path / f"state-{state['rows']}")
"""


def test_after_kill_9_the_rows_are_whole_and_resuming_gives_the_same_bits(tmp_path: Path, warm: Warm) -> None:
    from safetensors.torch import load_file

    warm.start(RECORD_UNTIL_KILLED, tmp_path, Path(__file__).parent)
    until = time.monotonic() + 60
    while not (tmp_path / "state-21").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert warm.kill() == -9, warm.errors.read_text()
    partial = Trace.load(tmp_path / "t")
    assert len(partial.rows) >= 21
    for row in range(len(partial.rows)):
        expected = statistics(logits_of(row)[0], TRAIN_LABELS)[0]["loss"]
        np.testing.assert_array_equal(partial.read("train", rows=[row])[0], expected.numpy())

    recorder = recorder_at(tmp_path / "t", resume=True)
    assert recorder.rows == list(partial.rows)
    recorder.load_state_dict({**load_file(tmp_path / "state-18"), "rows": 18})
    for row in range(18, 24):
        observe_row(recorder, row, features=row % 2 == 0)
        recorder.end_epoch()
    recorder.finish()
    whole = recorder_at(tmp_path / "whole")
    for row in range(24):
        observe_row(whole, row, features=row % 2 == 0)
        whole.end_epoch()
    whole.finish()
    assert files_of(tmp_path / "t") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("missing", ["error", "previous"])
@pytest.mark.parametrize("row", [0, 2])
def test_a_state_taken_in_mid_row_goes_on_to_the_same_bits(tmp_path: Path, row: int, missing: str) -> None:
    recorded(tmp_path / "whole", missing=missing)
    recorder = recorder_at(tmp_path / "t", missing=missing)
    for before in range(row):
        observe_row(recorder, before)
        recorder.end_epoch()
    train, query = logits_of(row)
    recorder.observe(TRAIN[:2], logits=train[:2], labels=TRAIN_LABELS[:2])
    state = recorder.state_dict()
    kept = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
    observe_row(recorder, 77)  # what comes after the state is lost with the process
    recorder.end_epoch()
    assert all(torch.equal(state[key], value) for key, value in kept.items() if isinstance(value, Tensor))

    again = recorder_at(tmp_path / "t", resume=True, missing=missing)
    again.load_state_dict(state)
    again.observe(TRAIN[2:], logits=train[2:], labels=TRAIN_LABELS[2:])
    again.observe(QUERY, logits=query, labels=QUERY_LABELS)
    again.end_epoch()
    for after in range(row + 1, ROWS):
        observe_row(again, after)
        again.end_epoch()
    again.finish()
    assert files_of(tmp_path / "t") == files_of(tmp_path / "whole")
    assert all(torch.equal(state[key], value) for key, value in kept.items() if isinstance(value, Tensor))


def test_a_kill_while_rows_are_taken_back_leaves_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path)
    recorder = recorder_at(tmp_path, resume=True)
    unlink = Path.unlink
    taken: list[str] = []

    def killed(path: Path, missing_ok: bool = False) -> None:
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(path.name)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            recorder.load_state_dict(Recorder.EMPTY_STATE)
    assert 0 < len(Trace.load(tmp_path).rows) < ROWS
    assert recorder_at(tmp_path, resume=True).rows


def test_resuming_keeps_labels_seen_before(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    recorder.observe(np.r_[TRAIN, QUERY], loss=np.ones(8), labels=torch.cat([TRAIN_LABELS, QUERY_LABELS]))
    recorder.end_epoch()
    again = recorder_at(tmp_path, resume=True)
    again.observe(np.r_[TRAIN, QUERY], loss=np.ones(8))
    again.end_epoch()
    trace = again.finish()
    assert trace.train_labels is not None
    assert trace.train_labels.tolist() == TRAIN_LABELS.tolist()


def test_resuming_without_the_state_says_that_kd_needs_it(tmp_path: Path) -> None:
    recorded(tmp_path, rows=2)
    recorder = recorder_at(tmp_path, resume=True)
    observe_row(recorder, 2)
    with pytest.raises(InputError, match=r"kd compares with the row before.*load_state_dict"):
        recorder.end_epoch()


def test_an_anchor_whose_row_was_never_written_is_not_listed(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    observe_row(recorder, 0, features=True)
    recorder.end_epoch()
    anchors = tmp_path / "anchors"
    (anchors / "000001.safetensors").write_bytes((anchors / "000000.safetensors").read_bytes())
    assert Trace.load(tmp_path).anchors == (0,)


def test_resuming_before_the_first_row_begins_anew(tmp_path: Path) -> None:
    recorder_at(tmp_path / "t")
    (tmp_path / "t" / "rows").rmdir()  # killed between the manifest and this folder
    recorded(tmp_path / "t", resume=True)
    recorded(tmp_path / "expected")
    assert files_of(tmp_path / "t") == files_of(tmp_path / "expected")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_ids": TRAIN[::-1]}, "train ids of the trace .* are not those given"),
        ({"query_ids": QUERY[:2]}, "query ids of the trace .* are not those given"),
        ({"mode": "in_pass"}, "has mode 'sweep', not 'in_pass'"),
    ],
)
def test_resuming_something_else_is_refused_and_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recorded(tmp_path)
    before = (files_of(tmp_path), read_json(tmp_path / "manifest.json"))
    with pytest.raises(InputError, match=message):
        recorder_at(tmp_path, resume=True, **changes)
    assert before == (files_of(tmp_path), read_json(tmp_path / "manifest.json"))


def test_resuming_on_another_data_set_shows_both_fingerprints(tmp_path: Path) -> None:
    recorded(tmp_path, data_fingerprint="aaaa")
    with pytest.raises(FingerprintError, match=r"aaaa.*bbbb"):
        recorder_at(tmp_path, resume=True, data_fingerprint="bbbb")


def test_a_state_of_another_trace_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path / "a", rows=2)
    recorder = recorder_at(tmp_path / "a", resume=True)
    with pytest.raises(InputError, match=re.escape("The state has 3 rows, but") + ".* holds 2"):
        recorder.load_state_dict({"rows": 3})
    with pytest.raises(InputError, match=r"state is of \[6\] train examples, this recorder has 5"):
        recorder.load_state_dict({"rows": 1, "train.seen": torch.zeros(6, dtype=torch.bool)})
    assert len(Trace.load(tmp_path / "a").rows) == 2


def test_the_empty_state_takes_everything_back(tmp_path: Path) -> None:
    recorded(tmp_path)
    recorder = recorder_at(tmp_path, resume=True)
    recorder.load_state_dict(Recorder.EMPTY_STATE)
    assert list((tmp_path / "rows").iterdir()) == []
    assert recorder_at(tmp_path, resume=True).rows == []
