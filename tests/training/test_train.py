"""comove.train and Run: what is recorded, what is kept, and the same bits after a kill."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fork_server import Warm
from torch import nn

import comove
from comove.data import ExampleSet, Splits, split
from comove.errors import CorruptFileError, FingerprintError, InputError, NonFiniteError
from comove.models import build_model
from comove.store import read_header
from comove.trace import statistics
from comove.training import RECIPES, Recipe, Recording, Run, default_recipe, evaluate, fit, loop, predict, train
from comove.training.loop import OptimizerState, Resident
from comove.training.run import read_weights

QUICK = Recipe(epochs=3, batch_size=32, lr=0.05)


def losses(model: nn.Module, examples: ExampleSet) -> np.ndarray[Any, np.dtype[Any]]:
    labels = torch.from_numpy(examples.labels)
    return nn.functional.cross_entropy(predict(model, examples), labels, reduction="none").numpy()


def files(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal between two runs: not how long it took, nor the command that started it."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = {
        key: value for key, value in json.loads(found["manifest.json"]).items() if key not in ("command", "checksum")
    }
    found["manifest.json"] = json.dumps(manifest).encode()
    return {name: content for name, content in found.items() if name != "result.json" and not name.endswith(".tmp")}


# --- what a run holds --------------------------------------------------------------------------------------------


def test_a_sweep_has_a_row_before_training_and_one_after_each_epoch(run: Run, small_digits: Splits) -> None:
    trace = run.trace
    assert [row.epoch for row in trace.rows] == list(range(7))
    assert [row.step for row in trace.rows] == [7 * epoch for epoch in range(7)]
    assert trace.train_ids.tolist() == small_digits.train.ids.tolist()
    assert small_digits.validation is not None
    assert trace.query_ids.tolist() == [*small_digits.query.ids, *small_digits.validation.ids]
    assert trace.validation_ids.tolist() == small_digits.validation.ids.tolist()
    assert trace.manifest["data_fingerprint"] == small_digits.fingerprint


def test_row_zero_holds_the_losses_of_the_untrained_model(run: Run, small_digits: Splits) -> None:
    untrained = build_model("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0)
    np.testing.assert_allclose(run.trace.train_losses[0], losses(untrained, small_digits.train), rtol=1e-5)
    np.testing.assert_allclose(run.trace.query_losses[0, :40], losses(untrained, small_digits.query), rtol=1e-5)


def test_every_checkpoint_gives_the_losses_of_its_row(run: Run, small_digits: Splits) -> None:
    assert [(kept.epoch, kept.row) for kept in run.checkpoints] == [(epoch, epoch) for epoch in range(7)]
    for kept in run.checkpoints:
        model = run.load_model(kept)
        assert not model.training
        np.testing.assert_allclose(run.trace.train_losses[kept.row], losses(model, small_digits.train), rtol=1e-4)
    np.testing.assert_allclose(run.trace.query_losses[-1, :40], losses(run.load_model(), small_digits.query), rtol=1e-4)


def test_the_result_repeats_the_last_row(run: Run) -> None:
    trace, result = run.trace, run.result
    assert result["train_loss"] == pytest.approx(float(trace.train_losses[-1].mean()))
    assert result["train_accuracy"] == pytest.approx(trace.read("train", "correct")[-1].mean())
    assert result["query_accuracy"] == pytest.approx(trace.read("query", "correct")[-1, :40].mean())


def test_anchored_features_times_the_head_are_the_logits(small_digits: Splits) -> None:
    made = train(small_digits, "mlp", QUICK, recording=Recording(anchors=(1, -1)))
    assert made.trace.anchors == (1, 3)
    for kept in (made.checkpoints[1], made.checkpoints[3]):
        model = made.load_model(kept)
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        features = torch.from_numpy(made.trace.features("train", kept.row).copy())
        logits = predict(model, small_digits.train)
        torch.testing.assert_close(head(features).detach(), logits, rtol=1e-4, atol=1e-4)
        probabilities = torch.from_numpy(made.trace.probabilities("train", kept.row).copy())
        torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)


def test_checkpoints_keep_all_the_last_or_every_second_epoch(small_digits: Splits) -> None:
    def kept(policy: Any) -> list[int]:
        made = train(small_digits, "mlp", QUICK.with_changes(epochs=5), checkpoints=policy)
        return [checkpoint.epoch for checkpoint in made.checkpoints]

    assert kept("all") == [0, 1, 2, 3, 4, 5]
    assert kept("last") == [5]
    assert kept(2) == [0, 2, 4, 5]
    with pytest.raises(InputError, match="checkpoints must be"):
        kept(0)
    with pytest.raises(InputError, match="checkpoints must be"):
        kept("every")


def test_checkpoints_know_their_learning_rates(small_digits: Splits) -> None:
    recipe = QUICK.with_changes(schedule="triangular", peak_epoch=1)
    made = train(small_digits, "mlp", recipe)
    steps = [[recipe.lr_at(epoch + (i + 0.5) / 7) for i in range(7)] for epoch in range(3)]
    assert [kept.lr for kept in made.checkpoints] == pytest.approx([steps[0][0], *(lrs[-1] for lrs in steps)])
    assert [kept.mean_lr for kept in made.checkpoints] == pytest.approx([steps[0][0], *(np.mean(lrs) for lrs in steps)])


def test_every_adds_rows_at_these_steps_of_each_epoch_and_changes_nothing_else(small_digits: Splits) -> None:
    made = train(small_digits, "mlp", QUICK, recording=Recording(every=3))
    plain = train(small_digits, "mlp", QUICK)
    assert [row.step for row in made.trace.rows] == [0, 3, 6, 7, 10, 13, 14, 17, 20, 21]
    assert [row.epoch for row in made.trace.rows] == pytest.approx(
        [0, 3 / 7, 6 / 7, 1, 10 / 7, 13 / 7, 2, 17 / 7, 20 / 7, 3]
    )
    assert [kept.row for kept in made.checkpoints] == [0, 3, 6, 9]
    np.testing.assert_array_equal(made.trace.train_losses[[0, 3, 6, 9]], plain.trace.train_losses)
    np.testing.assert_array_equal(made.trace.query_losses[[0, 3, 6, 9]], plain.trace.query_losses)


def test_recording_every_seventh_of_seven_steps_adds_no_row(small_digits: Splits) -> None:
    assert len(train(small_digits, "mlp", QUICK, recording=Recording(every=7)).trace.rows) == 4


@pytest.mark.parametrize("row_zero", [True, False])
def test_in_pass_losses_are_what_the_training_batches_gave(small_digits: Splits, row_zero: bool) -> None:
    recipe = QUICK.with_changes(augment="flip_crop", crop_padding=1)
    made = train(small_digits, "cnn-small", recipe, recording=Recording(mode="in_pass", row_zero=row_zero))
    seen = np.zeros((3, 200), np.float32)

    class Note:
        epoch = 0

        def on_start(self) -> None: ...

        def on_epoch_start(self, epoch: int) -> None:
            self.epoch = epoch

        def on_batch(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
            values, _ = statistics(logits, labels)
            seen[self.epoch, positions.numpy()] = values["loss"].numpy()

        def on_step(self, step: int, epoch: float, lr: float, last_of_epoch: bool) -> None: ...

        def on_epoch_end(self, state: OptimizerState) -> None: ...

    model = build_model("cnn-small", num_classes=10, input_shape=(1, 8, 8), seed=0)
    fit(model, small_digits.train, recipe, seed=0, hooks=Note())
    assert made.trace.mode == "in_pass"
    assert [row.epoch for row in made.trace.rows] == ([0, 1, 2, 3] if row_zero else [1, 2, 3])
    np.testing.assert_array_equal(made.trace.train_losses[-3:], seen)
    np.testing.assert_allclose(made.trace.query_losses[-1, :40], losses(model, small_digits.query), rtol=1e-4)


@pytest.mark.parametrize("recording", [Recording(), Recording(every=2), Recording(fields=("loss",), anchors=())])
def test_recording_does_not_change_training(small_digits: Splits, recording: Recording) -> None:
    made = train(small_digits, "cnn-small", QUICK, seed=3, recording=recording)
    model = build_model("cnn-small", num_classes=10, input_shape=(1, 8, 8), seed=3)
    fit(model, small_digits.train, QUICK, seed=3)
    for name, value in made.load_model().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("bad", [{"mode": "swep"}, {"every": 0}, {"every": 2, "mode": "in_pass"}])
def test_a_recording_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Recording"):
        Recording(**bad)


def test_an_anchor_after_the_last_epoch_is_refused(small_digits: Splits) -> None:
    with pytest.raises(InputError, match="anchors must be epochs from 0 to 3"):
        train(small_digits, "mlp", QUICK, recording=Recording(anchors=(4,)))


# --- killed and resumed ------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys, time
from comove.data.builtin import load_dataset
from comove.training import Recipe, Recording, train
from comove.training.train import _Session
model, mode, recipe, out = sys.argv[1:]
finish = _Session.on_epoch_end
def slow(self, state):
    finish(self, state)
    time.sleep(0.15)  # so that a kill falls between the rows
_Session.on_epoch_end = slow
try:
    data, recipe = load_dataset("digits", limit=200, queries=40), json.loads(recipe)
    train(data, model, recipe, 0, out, recording=Recording(mode=mode))
except KeyboardInterrupt:
    sys.exit(130)
"""
RESUMED = Recipe(epochs=6, batch_size=32, lr=0.05, augment="flip_crop", crop_padding=1, schedule="cosine")
MODERN = Recipe(
    epochs=6,
    batch_size=32,
    lr=0.01,
    optimizer="adamw",
    weight_decay=0.1,
    clip_norm=0.5,
    warmup_epochs=3,
    early_stop_patience=5,
    ema=0.95,
)


def _stop_in_the_middle(warm: Warm, model: str, mode: str, recipe: Recipe, out: Path, with_signal: int) -> int:
    process = warm.start(SCRIPT, model, mode, json.dumps(recipe.to_json()), out)
    deadline = time.monotonic() + 60
    while not (out / "trace/rows/000002.safetensors").exists():
        assert time.monotonic() < deadline, warm.errors.read_text()
        time.sleep(0.02)
    os.kill(process, with_signal)
    return warm.wait()


@pytest.mark.parametrize(
    ("model", "mode", "recipe", "with_signal"),
    [
        ("mlp", "sweep", RESUMED, signal.SIGKILL),
        ("cnn-small", "in_pass", RESUMED, signal.SIGKILL),
        ("cnn-small", "sweep", RESUMED, signal.SIGINT),
        ("cnn-small", "sweep", MODERN, signal.SIGKILL),
    ],
)
def test_a_run_stopped_in_the_middle_ends_with_the_bits_of_one_never_stopped(
    small_digits: Splits, tmp_path: Path, warm: Warm, model: str, mode: Any, recipe: Recipe, with_signal: int
) -> None:
    code = _stop_in_the_middle(warm, model, mode, recipe, tmp_path / "stopped", with_signal)
    assert code == (130 if with_signal == signal.SIGINT else -signal.SIGKILL)
    left = Run.load(tmp_path / "stopped")
    assert not left.finished
    assert 3 <= len(left.trace.rows) < 7
    resumed, whole = (
        train(small_digits, model, recipe, 0, tmp_path / name, recording=Recording(mode=mode))
        for name in ("stopped", "whole")
    )
    assert resumed.finished
    a, b = files(resumed.path), files(whole.path)
    assert sorted(a) == sorted(b)
    assert [name for name in a if a[name] != b[name]] == []
    assert (resumed.path / "resume.safetensors").exists() == resumed.recipe.extendable


@pytest.mark.parametrize("stop_in", ["recorder", "checkpoint", "resume file", "result"])
def test_a_stop_between_any_two_files_of_an_epoch_loses_nothing(
    small_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_in: str
) -> None:
    from comove.training.train import _Session

    name = {"recorder": "_close_row", "checkpoint": "_save_checkpoint", "resume file": "_save_resume"}.get(
        stop_in, "_finish"
    )
    original, calls = getattr(_Session, name), []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == (1 if stop_in == "result" else 2):
            raise KeyboardInterrupt
        original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_Session, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            train(small_digits, "mlp", QUICK, 0, tmp_path / "a", recording=Recording(every=3))
    resumed = train(small_digits, "mlp", QUICK, 0, tmp_path / "a", recording=Recording(every=3))
    whole = train(small_digits, "mlp", QUICK, 0, tmp_path / "b", recording=Recording(every=3))
    assert files(resumed.path) == files(whole.path)


class _StoppedError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("from_end", [True, False])
@pytest.mark.parametrize("name", ["step", "end_row", "_save_checkpoint", "_save_resume", "_finish"])
def test_a_run_of_the_newer_options_stopped_anywhere_ends_with_the_same_bits(
    small_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, from_end: bool, ended_early: Run
) -> None:
    """Between any two files, and in the middle of epochs, of the last one too."""
    from comove.trace import Recorder
    from comove.training.optimizers import Optimizer
    from comove.training.train import _Session

    epochs = ended_early.result["epochs_trained"]
    owner: Any = {"step": Optimizer, "end_row": Recorder}.get(name, _Session)
    total = {"step": 7 * epochs - 2, "end_row": 2 * epochs + 1, "_save_checkpoint": epochs + 1, "_save_resume": epochs}
    call = total.get(name, 1) if from_end else min(total.get(name, 1), 10, epochs - 1)
    original, calls = getattr(owner, name), []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise _StoppedError
        return original(self, *args, **kwargs)

    arguments: Any = (small_digits, "mlp", ENDED, 0, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping)
        with pytest.raises(_StoppedError):
            train(*arguments, recording=DENSE, checkpoints=2)
    assert not Run.load(tmp_path / "run").finished
    assert Run.load(tmp_path / "run").damaged() == ()
    resumed = train(*arguments, recording=DENSE, checkpoints=2)
    assert files(resumed.path) == files(ended_early.path)
    assert resumed.result["epochs_trained"] == ended_early.result["epochs_trained"]


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_broken_resume_file_is_set_aside_and_the_run_starts_again(
    small_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from comove.training.train import _Session

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Session, "_finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(small_digits, "mlp", QUICK, 0, tmp_path)
    file = tmp_path / "resume.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        shutil.copy(tmp_path / "checkpoints/000001.safetensors", file)
    with pytest.warns(UserWarning, match=r"resume.safetensors.*set aside.*trained again from the beginning"):
        resumed = train(small_digits, "mlp", QUICK, 0, tmp_path)
    assert (tmp_path / "resume.safetensors.damaged").exists()
    whole = train(small_digits, "mlp", QUICK, 0, tmp_path.with_name("whole"))
    for name in ("trace/rows/000003", "checkpoints/000003"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (whole.path / f"{name}.safetensors").read_bytes()
    assert resumed.damaged() == ()


# --- early stopping and averaged weights -------------------------------------------------------------------------

ENDED = MODERN.with_changes(epochs=12, lr=0.1, warmup_epochs=1, early_stop_patience=2, ema=0.5)
DENSE = Recording(every=4)


@pytest.fixture(scope="module")
def ended_early(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that early stopping ended."""
    return train(small_digits, "mlp", ENDED, 0, tmp_path_factory.mktemp("ended"), recording=DENSE, checkpoints=2)


def test_a_run_ends_early_by_its_recorded_validation_losses_and_says_when(
    small_digits: Splits, ended_early: Run
) -> None:
    assert small_digits.validation is not None
    trace, last = ended_early.trace, ended_early.result["epochs_trained"]
    rows = [row.index for row in trace.rows if row.epoch >= 1 and row.epoch == int(row.epoch)]
    validation = np.isin(trace.query_ids, small_digits.validation.ids)
    means = trace.read("query", rows=rows)[:, validation].mean(1, dtype=np.float64)
    assert len(means) == last < 12
    assert int(means.argmin()) == last - 3
    assert [kept.epoch for kept in ended_early.checkpoints] == [*range(0, last, 2), last]
    assert ended_early.damaged() == ()
    assert trace.rows[trace.anchors[-1]].epoch == last  # not known beforehand
    assert trace.features("train").shape[0] == 200
    only = train(small_digits, "mlp", ENDED, checkpoints="last")
    assert [kept.epoch for kept in only.checkpoints] == [last]
    assert only.damaged() == ()
    missing = ended_early.path / "checkpoints" / f"{last:06d}.safetensors"
    content = missing.read_bytes()
    missing.unlink()
    try:
        assert ended_early.damaged() == (missing,)
    finally:
        missing.write_bytes(content)


def test_a_run_with_patience_for_all_its_epochs_is_trained_to_the_end(small_digits: Splits) -> None:
    plain = train(small_digits, "mlp", QUICK)
    patient = train(small_digits, "mlp", QUICK.with_changes(early_stop_patience=3))
    assert patient.result["epochs_trained"] == 3
    assert "epochs_trained" not in plain.result
    np.testing.assert_array_equal(plain.trace.train_losses, patient.trace.train_losses)


def test_stopping_early_without_validation_examples_is_refused_before_anything_is_written(
    small_digits: Splits, tmp_path: Path
) -> None:
    splits = Splits(small_digits.train, None, small_digits.query)
    with pytest.raises(InputError, match=r"early_stop_patience=2 .*no validation examples: split off some"):
        train(splits, "mlp", ENDED, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_checkpoints_and_recorded_losses_are_those_of_the_average(small_digits: Splits) -> None:
    recipe = Recipe(**{**MODERN.to_json(), "epochs": 3, "early_stop_patience": None})
    made = train(small_digits, "cnn-small", recipe, recording=Recording(every=3))
    for kept in made.checkpoints:
        own = losses(made.load_model(kept), small_digits.train)
        np.testing.assert_allclose(made.trace.train_losses[kept.row], own, rtol=1e-4, atol=1e-6)
    model = build_model("cnn-small", num_classes=10, input_shape=(1, 8, 8), seed=0)
    fit(model, small_digits.train, recipe, seed=0)
    for name, value in made.load_model().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    without = train(small_digits, "cnn-small", Recipe(**{**recipe.to_json(), "ema": None}))
    assert not np.allclose(made.trace.train_losses[-1], without.trace.train_losses[-1], rtol=1e-3)


# --- the same folder again ---------------------------------------------------------------------------------------


def test_a_finished_run_is_opened_and_not_trained_again(
    run: Run, small_digits: Splits, short_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "_epochs", never)
    again = train(small_digits, "mlp", short_recipe, 0, run.path)
    assert again.finished
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recipe": QUICK}, "recipe.epochs was 6, now 3"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"model_options": {"hidden": (8,)}}, "model.options was"),
        ({"recording": Recording(mode="in_pass")}, "recording.mode was sweep, now in_pass"),
        ({"checkpoints": "last"}, "checkpoints was all, now last"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_with_both_fingerprints_and_what_differs(
    run: Run, small_digits: Splits, short_recipe: Recipe, change: dict[str, Any], told: str
) -> None:
    arguments: dict[str, Any] = {"recipe": short_recipe, "seed": 0, "out": run.path, **change}
    with pytest.raises(FingerprintError) as caught:
        train(small_digits, "mlp", **arguments)
    text = str(caught.value)
    own = str(run.manifest["fingerprint"])
    assert told in text
    assert own in text
    other = train(small_digits, "mlp", **{**arguments, "out": None})
    assert other.manifest["fingerprint"] in text
    assert other.manifest["fingerprint"] != own


def test_other_data_in_the_same_folder_are_refused_and_name_both_fingerprints(run: Run, short_recipe: Recipe) -> None:
    other = comove.load_dataset("digits", limit=201, queries=40)
    with pytest.raises(FingerprintError) as caught:
        train(other, "mlp", short_recipe, 0, run.path)
    assert other.fingerprint in str(caught.value)
    assert run.manifest["dataset"]["fingerprint"] in str(caught.value)
    with pytest.raises(FingerprintError, match=other.fingerprint):
        Run.load(run.path, dataset=other)


def test_a_folder_with_something_else_in_it_is_left_alone(small_digits: Splits, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        train(small_digits, "mlp", QUICK, 0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "mpl"},
        {"model": "mlp", "model_options": {"width": 2}},
        {"model": "resnet9"},
        {"model": "mlp", "device": "gpu"},
    ],
)
def test_arguments_that_cannot_work_do_not_occupy_the_folder(
    small_digits: Splits, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        train(small_digits, recipe=QUICK, out=tmp_path / "a", **wrong)
    assert not (tmp_path / "a").exists()
    assert train(small_digits, "mlp", QUICK, out=tmp_path / "a").finished


def test_a_diverging_run_names_row_and_ids_and_keeps_the_rows_before(small_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"row \d+ .*ids \d+, .*lower its learning rate"):
        train(small_digits, "mlp", QUICK.with_changes(lr=1e6), 0, tmp_path / "a")
    left = Run.load(tmp_path / "a")
    assert not left.finished
    assert np.isfinite(left.trace.train_losses).all()
    assert len(left.trace.rows) >= 1


# --- models and data of one's own --------------------------------------------------------------------------------


def tiny_factory(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


def headless_factory(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, num_classes, 8), nn.Flatten())


def test_a_factory_of_ones_own_trains_and_must_be_passed_again_to_load(small_digits: Splits, tmp_path: Path) -> None:
    made = train(small_digits, tiny_factory, QUICK, 0, tmp_path / "a")
    np.testing.assert_allclose(
        made.trace.train_losses[-1], losses(made.load_model(), small_digits.train), rtol=1e-4, atol=1e-6
    )
    opened = Run.load(tmp_path / "a")
    assert len(opened.trace.rows) == 4
    with pytest.raises(InputError, match=r"Run.load\(.*model='.*tiny_factory'\)"):
        opened.load_model()
    again = Run.load(tmp_path / "a", model=tiny_factory).load_model()
    for name, value in made.load_model().state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_factory_named_by_its_path_trains_and_loads_where_it_was_named(
    small_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n\ndef make(*, num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = train(small_digits, "my_networks:make", QUICK, 0, tmp_path / "a")
    assert isinstance(made.load_model(), nn.Sequential)
    with pytest.raises(InputError, match="model='my_networks:make'"):
        Run.load(made.path).load_model()
    assert isinstance(Run.load(made.path, model="my_networks:make").load_model(), nn.Sequential)


def test_a_network_without_a_linear_layer_trains_once_anchors_are_given_up(
    small_digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"Recording\(anchors=\(\)\)"):
        train(small_digits, headless_factory, QUICK, 0, tmp_path / "a")
    made = train(small_digits, headless_factory, QUICK, 0, tmp_path / "a", recording=Recording(anchors=()))
    assert made.trace.anchors == ()


def test_augmenting_inputs_that_are_no_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    examples = ExampleSet.from_arrays(torch.zeros(60, 5), np.arange(60) % 3)
    with pytest.raises(InputError, match="needs images"):
        train(split(examples), "mlp", {"epochs": 1, "augment": "flip_crop"}, 0, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_data_of_ones_own_must_be_passed_again(images: ExampleSet, tmp_path: Path) -> None:
    splits = split(images, validation=8, query=8)
    made = train(splits, "mlp", {"epochs": 2, "batch_size": 8}, 0, tmp_path / "a")
    assert made.data() is splits
    assert made.examples(splits.query.ids[:3]).ids.tolist() == splits.query.ids[:3].tolist()
    with pytest.raises(InputError, match="data of your own"):
        Run.load(tmp_path / "a").data()
    assert Run.load(tmp_path / "a", dataset=splits).data() is splits


def test_built_in_data_are_loaded_again_by_name_and_checked(run: Run, small_digits: Splits) -> None:
    assert Run.load(run.path).data().fingerprint == small_digits.fingerprint


def test_a_map_style_dataset_is_split_alike_for_every_seed(images: ExampleSet) -> None:
    a, b = (train(images, "mlp", {"epochs": 1, "batch_size": 8}, seed) for seed in (0, 1))
    assert a.trace.train_ids.tolist() == b.trace.train_ids.tolist()
    assert not np.array_equal(a.trace.train_losses, b.trace.train_losses)


def test_examples_asked_for_by_ids_of_no_held_out_part_are_refused(run: Run, small_digits: Splits) -> None:
    assert small_digits.validation is not None
    assert len(run.examples(small_digits.validation.ids[:2])) == 2
    with pytest.raises(InputError, match="not all query ids"):
        run.examples(small_digits.train.ids[:2])


# --- folders and files -------------------------------------------------------------------------------------------


def test_without_out_the_folder_lives_as_long_as_the_run(small_digits: Splits) -> None:
    made = train(small_digits, "mlp", QUICK)
    folder = made.path
    assert len(made.trace.rows) == 4
    assert folder.exists()
    del made
    gc.collect()
    assert not folder.exists()


def test_an_unwritable_folder_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(comove.errors.StorageError, match="Cannot make the folder"):
        train(small_digits, "mlp", QUICK, 0, tmp_path / "file" / "run")


def test_a_truncated_or_foreign_checkpoint_is_named(small_digits: Splits, tmp_path: Path) -> None:
    made = train(small_digits, "mlp", QUICK, 0, tmp_path / "a")
    other = train(small_digits, "mlp", QUICK, 0, tmp_path / "b", model_options={"hidden": (8,)})
    last = made.checkpoints[-1].path
    shutil.copy(other.checkpoints[-1].path, last)
    with pytest.raises(CorruptFileError, match="belongs to another run"):
        made.load_model()
    shutil.copy(made.path / "trace/examples.safetensors", last)
    with pytest.raises(CorruptFileError, match="belongs to another run"):
        made.load_model()
    last.write_bytes(last.read_bytes()[:-50])
    with pytest.raises(CorruptFileError, match=r"000003\.safetensors"):
        made.load_model()


def test_read_weights_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"nothing\.safetensors"):
        read_weights(tmp_path / "nothing.safetensors")


def test_checkpoint_files_hold_exactly_the_state_of_the_model(run: Run) -> None:
    kept = run.checkpoints[-1]
    assert set(read_header(kept.path)[0]) == set(run.load_model().state_dict())


def test_a_run_says_what_it_is(run: Run) -> None:
    assert repr(run) == f"Run({run.path}: mlp on digits, seed 0, finished)"
    assert run.manifest["versions"]["torch"] == torch.__version__.split("+")[0] or run.manifest["versions"]["torch"]
    assert os.path.samefile(Run.load(str(run.path)).path, run.path)


def test_training_leaves_the_model_in_training_mode_between_hooks(small_digits: Splits) -> None:
    modes: list[bool] = []

    class Watch:
        def on_start(self) -> None:
            list(evaluate(model, Resident(small_digits.query, torch.device("cpu"))))

        def on_epoch_start(self, epoch: int) -> None: ...

        def on_batch(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
            modes.append(model.training)

        def on_step(self, step: int, epoch: float, lr: float, last_of_epoch: bool) -> None:
            list(evaluate(model, Resident(small_digits.query, torch.device("cpu"))))

        def on_epoch_end(self, state: OptimizerState) -> None: ...

    model = build_model("cnn-small", num_classes=10, input_shape=(1, 8, 8), seed=0)
    fit(model, small_digits.train, QUICK, seed=0, hooks=Watch())
    assert modes == [True] * 21


def test_another_network_under_the_same_name_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    width = 16

    def factory(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

    recipe = Recipe(epochs=1)
    train(small_digits, factory, recipe, out=tmp_path)
    width = 4
    with pytest.raises(FingerprintError, match="parameters was"):
        train(small_digits, factory, recipe, out=tmp_path)


def test_a_factory_of_ones_own_gets_a_recipe_without_augmentation() -> None:
    assert RECIPES[default_recipe("mine:make", 1000)].augment == "none"


def test_a_run_takes_its_data_back_in_the_form_it_was_given(images: ExampleSet, tmp_path: Path) -> None:
    train(images, "mlp", Recipe(epochs=1), out=tmp_path)
    assert len(Run.load(tmp_path, dataset=images).data().train) == 32
