"""A finished run trained further in its own folder has the bits of one trained with so many epochs from the start."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from comove import cli
from comove.data import Splits
from comove.errors import InputError
from comove.training import Recipe, Run, extend, loop, train

SHORT = Recipe(epochs=3, batch_size=32, lr=0.05)


def same(longer: Run, whole: Run) -> None:
    """Assert that two runs have the same rows, weights and fingerprint."""
    assert longer.manifest["fingerprint"] == whole.manifest["fingerprint"]
    assert longer.finished
    assert longer.damaged() == ()
    assert [row.epoch for row in longer.trace.rows] == [row.epoch for row in whole.trace.rows]
    for side in ("train", "query"):
        for field in whole.trace.fields:
            np.testing.assert_array_equal(longer.trace.read(side, field), whole.trace.read(side, field))
    assert [one.epoch for one in longer.checkpoints] == [one.epoch for one in whole.checkpoints]
    for one, other in zip(longer.checkpoints, whole.checkpoints, strict=True):
        assert (one.step, one.row, one.lr, one.mean_lr) == (other.step, other.row, other.lr, other.mean_lr)
        state = longer.load_model(one).state_dict()
        assert all((state[name] == tensor).all() for name, tensor in whole.load_model(other).state_dict().items())


@pytest.mark.parametrize(
    ("model", "recipe", "kept"),
    [
        ("mlp", {}, "all"),
        ("mlp", {"schedule": "multistep", "milestones": (2, 4), "warmup_epochs": 1}, "last"),
        ("cnn-small", {"optimizer": "adamw", "lr": 0.001, "ema": 0.9}, 2),
        ("mlp", {"early_stop_patience": 3}, "all"),
    ],
)
def test_it_is_the_run_of_all_epochs_to_the_bit_and_its_rows_are_untouched(
    model: str, recipe: dict[str, Any], kept: Any, small_digits: Splits, tmp_path: Path
) -> None:
    how = SHORT.with_changes(**recipe)
    short = train(small_digits, model, how, 1, tmp_path / "a", checkpoints=kept)
    rows = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (short.path / "trace/rows").iterdir()}
    whole = train(small_digits, model, how.with_changes(epochs=5), 1, tmp_path / "b", checkpoints=kept)
    longer = extend(short, 5)
    same(longer, whole)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in rows} == rows
    assert set(whole.trace.anchors) <= set(longer.trace.anchors)
    again = train(small_digits, model, how.with_changes(epochs=5), 1, tmp_path / "a", checkpoints=kept)
    same(again, whole)
    same(extend(Run.load(tmp_path / "a", dataset=small_digits), 6), extend(whole, 6))


def test_interrupted_anywhere_it_goes_on(small_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = importlib.import_module("comove.training.train")  # the package's name of it is the function
    whole = train(small_digits, "mlp", SHORT.with_changes(epochs=5), 0, tmp_path / "whole")

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (training, "continue_folder", stop),
        (training, "train", stop),
        (training, "fit", stop),
        (training._Session, "_finish", stop),
    ]
    for number, (where, name, broken) in enumerate(places):
        short = train(small_digits, "mlp", SHORT, 0, tmp_path / str(number))
        with monkeypatch.context() as patch:
            patch.setattr(where, name, broken)
            with pytest.raises(KeyboardInterrupt):
                extend(short, 5)
        left = Run.load(short.path)
        assert not left.finished
        if name == "continue_folder":  # it is still the short run, which the same call finishes
            left = train(small_digits, "mlp", SHORT, 0, short.path)
        same(extend(left, 5), whole)


def test_what_cannot_be_extended_says_which_settings_would(
    small_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = train(small_digits, "mlp", SHORT, 0, tmp_path / "a")
    with pytest.raises(InputError, match="more than its 3 epochs; got 2"):
        extend(short, 2)
    assert extend(short, 3).path == short.path
    for schedule in ("triangular", "cosine"):
        run = train(small_digits, "mlp", SHORT.with_changes(schedule=schedule, peak_epoch=1), 0, tmp_path / schedule)
        told = rf"{schedule} schedule depend on the number of epochs \(3\): train a new run of 5.*'constant' or"
        with pytest.raises(InputError, match=told):
            extend(run, 5)
        assert run.finished
    (short.path / "resume.safetensors").unlink()
    with pytest.raises(InputError, match="kept no optimizer state"):
        extend(short, 5)
    stopped = train(
        small_digits, "mlp", SHORT.with_changes(lr=50.0, epochs=6, early_stop_patience=1), 0, tmp_path / "s"
    )
    assert stopped.result["epochs_trained"] < 6
    with pytest.raises(InputError, match="ended early"):
        extend(stopped, 8)
    monkeypatch.setattr(loop, "_epochs", None)
    assert Run.load(tmp_path / "a").damaged() == ()


def test_a_damaged_resume_file_of_a_finished_run_costs_its_extension_only(small_digits: Splits, tmp_path: Path) -> None:
    short = train(small_digits, "mlp", SHORT, 0, tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    short.resume_file.write_bytes(short.resume_file.read_bytes()[:-1])
    assert short.damaged() == (short.resume_file,)
    with pytest.warns(UserWarning, match=r"resume.safetensors.damaged is damaged: the run is whole"):
        train(small_digits, "mlp", SHORT, 0, tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before
    assert short.damaged() == ()
    with pytest.raises(InputError, match="kept no optimizer state"):
        extend(short, 5)


def test_the_command_extends_and_refuses_what_would_change_the_run(small_digits: Splits, tmp_path: Path) -> None:
    def comove_(*words: object) -> Any:
        return CliRunner().invoke(cli.app, [str(word) for word in ("train", *words)])

    small = ("--limit", 200, "--held-out", 40, "--lr", 0.05, "--batch-size", 32, "-q")
    assert comove_(*small, "--epochs", 3, "--out", tmp_path / "a").exit_code == 0
    for words, told in (
        ((tmp_path / "a",), "say to how many in all"),
        ((tmp_path / "a", "--epochs", 5, "--lr", 0.1), "leave out --lr"),
        ((tmp_path / "a", "--epochs", 5, "--out", tmp_path / "b"), "leave out --out"),
        ((tmp_path / "a/trace", "--epochs", 5), "is a bare trace"),
        ((tmp_path / "a", "--epochs", 2), "more than its 3 epochs"),
        (("--epochs", 5), "--out names the folder"),
    ):
        made = comove_(*words)
        assert made.exit_code == 2
        assert told in made.stderr
        assert made.stderr.count("\n") == 1
    made = comove_(tmp_path / "a", "--epochs", 5, "-q")
    assert made.exit_code == 0, made.stderr
    assert comove_(*small, "--epochs", 5, "--out", tmp_path / "whole").exit_code == 0
    same(Run.load(tmp_path / "a"), Run.load(tmp_path / "whole"))
