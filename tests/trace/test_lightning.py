"""Lightning's loop with the callback writes the trace that a plain loop writes, through its own checkpoints too."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from comove import Recorder, Trace
from comove.data import Splits
from comove.errors import InputError, MissingExamplesError

if importlib.util.find_spec("lightning") is None:
    pytest.skip("lightning is not installed: pip install 'comove[lightning]'", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations within lightning's own imports
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from comove.trace.lightning import CLDCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated.*"),
]

EPOCHS, BATCH, LR = 3, 16, 0.1


class Parts:
    """60 training and 20 query digits, with ids that are no positions."""

    def __init__(self, digits: Splits) -> None:
        self.train = self._part(digits.train, 60)
        self.query = self._part(digits.query, 20)
        self.train_ids, self.query_ids = self.train.tensors[2].numpy(), self.query.tensors[2].numpy()

    @staticmethod
    def _part(examples: Any, size: int) -> TensorDataset:
        return TensorDataset(
            torch.as_tensor(examples.held[:size]).flatten(1),
            torch.as_tensor(examples.labels[:size]),
            torch.as_tensor(examples.ids[:size]),
        )


@pytest.fixture(scope="module")
def parts(digits: Splits) -> Parts:
    return Parts(digits)


def network(dropout: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 10))


class Digits(LightningModule):
    def __init__(self, returns: str = "logits", dropout: float = 0) -> None:
        super().__init__()
        self.network, self.returns = network(dropout), returns

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels, ids = batch
        logits = self.network(inputs)
        loss = F.cross_entropy(logits, labels)
        if self.returns == "loss":
            return loss
        if self.returns == "per_sample_loss":
            return {"loss": loss, "ids": ids, "per_sample_loss": F.cross_entropy(logits, labels, reduction="none")}
        return {"loss": loss, "ids": ids, "logits": logits, "labels": labels}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("seen", float(len(batch[0])))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)


def evaluate(module: LightningModule, batch: list[Tensor]) -> dict[str, Tensor]:
    inputs, labels, ids = batch
    return {"ids": ids, "logits": module.network(inputs), "labels": labels}


def callback_at(path: Path, parts: Parts, **changes: Any) -> CLDCallback:
    options: dict[str, Any] = {
        "train_ids": parts.train_ids,
        "query_ids": parts.query_ids,
        "train_loader": DataLoader(parts.train, batch_size=32),
        "query_loader": DataLoader(parts.query, batch_size=32),
        "evaluate": evaluate,
    }
    return CLDCallback(path, **{**options, **changes})


def trainer_at(folder: Path, *callbacks: Any, **changes: Any) -> Trainer:
    options: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(callbacks), **{**options, **changes})


def shuffled(parts: Parts, drop_last: bool = False) -> DataLoader[Any]:
    return DataLoader(parts.train, BATCH, shuffle=True, drop_last=drop_last, generator=torch.Generator().manual_seed(1))


class InterruptError(Exception):
    """A job that was killed."""


class Stop(Callback):
    """Breaks training off at the ``at``-th call of a hook."""

    def __init__(self, hook: str, at: int) -> None:
        self.calls, self.at = 0, at
        setattr(self, hook, self._count)

    def _count(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise InterruptError


def by_epoch(parts: Parts, drop_last: bool = False) -> DataLoader[Any]:
    """Shuffled anew each epoch, alike after a restart: Lightning tells the sampler its epoch."""
    return DataLoader(parts.train, BATCH, sampler=DistributedSampler(parts.train, 1, 0, seed=3), drop_last=drop_last)


def plain(path: Path, parts: Parts, mode: str, accumulate: int = 1, drop_last: bool = False) -> Trace:
    """The same training as a loop of one's own, recorded by hand."""
    recorder = Recorder(path, train_ids=parts.train_ids, query_ids=parts.query_ids, mode=mode)  # type: ignore[arg-type]
    model = network(dropout=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    loader = by_epoch(parts, drop_last)
    for epoch in range(EPOCHS + 1):
        loader.sampler.set_epoch(epoch - 1)  # type: ignore[attr-defined]
        for number, (inputs, labels, ids) in enumerate(loader if epoch else ()):
            logits = model(inputs)
            (F.cross_entropy(logits, labels) / accumulate).backward()  # type: ignore[no-untyped-call]
            if mode == "in_pass":
                recorder.observe(ids, logits=logits, labels=labels)
            if (number + 1) % accumulate == 0 or number + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            if mode == "sweep" or epoch == 0:
                inputs, labels, ids = parts.train.tensors
                recorder.observe(ids, logits=model(inputs), labels=labels)
            inputs, labels, ids = parts.query.tensors
            recorder.observe(ids, logits=model(inputs), labels=labels)
        recorder.end_row(epoch=epoch)
    return recorder.finish()


def same(one: Trace, other: Trace, tolerance: float = 2e-6) -> None:
    assert [row.epoch for row in one.rows] == [row.epoch for row in other.rows]
    assert one.fields == other.fields
    for name, value in one.examples.items():
        np.testing.assert_array_equal(other.examples[name], value)
    for side in ("train", "query"):
        for field in one.fields:
            np.testing.assert_allclose(one.read(side, field), other.read(side, field), rtol=0, atol=tolerance)


# --- the identity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "accumulate", "drop_last"), [("sweep", 1, True), ("sweep", 3, False), ("in_pass", 3, False)]
)
def test_lightning_records_the_trace_of_a_plain_loop(
    mode: str, accumulate: int, drop_last: bool, parts: Parts, tmp_path: Path
) -> None:
    callback = callback_at(tmp_path / "lightning", parts, mode=mode)
    trainer = trainer_at(tmp_path, callback, accumulate_grad_batches=accumulate)
    trainer.fit(Digits(), by_epoch(parts, drop_last))
    assert callback.trace is not None
    same(callback.trace, plain(tmp_path / "plain", parts, mode, accumulate, drop_last))
    steps = -(-len(by_epoch(parts, drop_last)) // accumulate)
    assert [row.step for row in callback.trace.rows] == [epoch * steps for epoch in range(EPOCHS + 1)]


def test_a_loss_per_example_gives_the_losses_that_logits_give(parts: Parts, tmp_path: Path) -> None:
    traces = []
    for returns in ("logits", "per_sample_loss"):
        callback = callback_at(tmp_path / returns, parts, mode="in_pass", fields=["loss"])
        trainer_at(tmp_path, callback).fit(Digits(returns), shuffled(parts))
        traces.append(callback.trace)
    # the row before training has logits from evaluate in both
    assert traces[0] is not None
    assert traces[1] is not None
    np.testing.assert_allclose(traces[0].train_losses, traces[1].train_losses, atol=2e-6)


def test_training_is_the_same_with_and_without_the_callback(parts: Parts, tmp_path: Path) -> None:
    weights = []
    for recorded in (False, True):
        torch.manual_seed(7)  # shuffling and dropout draw from the global generator
        model = Digits(dropout=0.5)
        callbacks = [callback_at(tmp_path / "t", parts, train_loader=DataLoader(parts.train, 7, num_workers=0))]
        trainer = trainer_at(tmp_path, *callbacks * recorded)
        torch.manual_seed(7)
        trainer.fit(model, DataLoader(parts.train, BATCH, shuffle=True))
        weights.append(model.state_dict())
        assert model.training
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_under_mixed_precision_losses_are_float32_of_the_half_precision_logits(parts: Parts, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def looking(module: LightningModule, batch: list[Tensor]) -> dict[str, Tensor]:
        outputs = evaluate(module, batch)
        seen.append(outputs["logits"])
        return outputs

    callback = callback_at(
        tmp_path / "t",
        parts,
        evaluate=looking,
        train_loader=DataLoader(parts.train, 60),
        validation_ids=parts.query_ids[:5],
    )
    trainer_at(tmp_path, callback, precision="bf16-mixed", max_epochs=1).fit(Digits(), shuffled(parts))
    trace = callback.trace
    assert trace is not None
    assert seen[0].dtype == torch.bfloat16
    expected = F.cross_entropy(seen[0].float(), parts.train.tensors[1], reduction="none")
    np.testing.assert_array_equal(trace.train_losses[0], expected.numpy())
    assert (expected != expected.bfloat16().float()).any()  # half precision would have lost digits
    np.testing.assert_array_equal(trace.validation_ids, parts.query_ids[:5])


# --- resuming ----------------------------------------------------------------------------------------------------

SAVES: dict[str, dict[str, Any]] = {
    "at the end of an epoch": {"save_on_train_epoch_end": True},
    "after validation": {"save_on_train_epoch_end": False},
    "after its last batch": {"every_n_train_steps": 4},
}


@pytest.mark.parametrize("mode", ["sweep", "in_pass"])
@pytest.mark.parametrize("when", SAVES)
def test_interrupted_and_resumed_is_uninterrupted(when: str, mode: str, parts: Parts, tmp_path: Path) -> None:
    validation = [DataLoader(parts.query, 20)] * (when == "after validation")
    options: dict[str, Any] = {"enable_checkpointing": True, "num_sanity_val_steps": 0}

    def fit(name: str, *callbacks: Any, checkpoint: Path | None = None) -> Trace | None:
        saving = ModelCheckpoint(dirpath=tmp_path / name / "checkpoints", save_top_k=-1, **SAVES[when])
        callback = callback_at(tmp_path / name / "trace", parts, mode=mode)
        trainer = trainer_at(tmp_path, callback, saving, *callbacks, **options)
        trainer.fit(Digits(), by_epoch(parts), *validation, ckpt_path=checkpoint, weights_only=True)
        return callback.trace

    whole = fit("whole")
    with pytest.raises(InterruptError):
        fit("broken", Stop("on_train_batch_start", 11))  # in the third epoch, after the checkpoints of two
    latest = tmp_path / "broken" / "checkpoints" / "epoch=1-step=8.ckpt"
    resumed = fit("broken", checkpoint=latest)
    assert whole is not None
    assert resumed is not None
    assert [(row.epoch, row.step) for row in resumed.rows] == [(float(e), 4 * e) for e in range(EPOCHS + 1)]
    same(resumed, whole, tolerance=0)


def test_a_finished_run_goes_on_for_more_epochs(parts: Parts, tmp_path: Path) -> None:
    first = callback_at(tmp_path / "t", parts)
    trainer = trainer_at(tmp_path, first, max_epochs=2)
    trainer.fit(Digits(), by_epoch(parts))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    before = Trace.load(tmp_path / "t").train_losses
    callback = callback_at(tmp_path / "t", parts)
    more = trainer_at(tmp_path, callback, max_epochs=4)
    more.fit(Digits(), by_epoch(parts), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert callback.trace is not None
    assert [row.epoch for row in callback.trace.rows] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(callback.trace.train_losses[:3], before)


# --- what is missing, what is wrong --------------------------------------------------------------------------------


def test_a_pass_that_drops_its_last_batch_is_refused_or_carried(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(MissingExamplesError, match=r"12 of 60 train examples.*drop_last"):
        trainer_at(tmp_path, callback_at(tmp_path / "a", parts, mode="in_pass")).fit(Digits(), shuffled(parts, True))
    callback = callback_at(tmp_path / "b", parts, mode="in_pass", missing="previous")
    trainer_at(tmp_path, callback).fit(Digits(), shuffled(parts, True))
    assert callback.trace is not None
    assert [row.filled for row in callback.trace.rows] == [0, 12, 12, 12]
    unchanged = (np.diff(callback.trace.train_losses, axis=0) == 0).sum(1)
    np.testing.assert_array_equal(unchanged, [12 + BATCH, 12, 12])  # the first batch meets the weights of row 0


def test_training_that_stops_within_an_epoch_keeps_a_sweep_and_leaves_out_half_a_pass(
    parts: Parts, tmp_path: Path
) -> None:
    sweep = callback_at(tmp_path / "sweep", parts)
    trainer_at(tmp_path, sweep, max_steps=6, max_epochs=-1).fit(Digits(), shuffled(parts))
    assert sweep.trace is not None
    assert [(row.epoch, row.step) for row in sweep.trace.rows] == [(0, 0), (1, 4), (1.5, 6)]
    in_pass = callback_at(tmp_path / "pass", parts, mode="in_pass")
    with pytest.warns(UserWarning, match="stopped within epoch 2"):
        trainer_at(tmp_path, in_pass, max_steps=6, max_epochs=-1).fit(Digits(), shuffled(parts))
    assert in_pass.trace is not None
    assert [row.epoch for row in in_pass.trace.rows] == [0, 1]


def test_a_pass_needs_no_train_loader_and_then_has_no_row_before_training(parts: Parts, tmp_path: Path) -> None:
    callback = callback_at(tmp_path / "t", parts, mode="in_pass", train_loader=None)
    trainer_at(tmp_path, callback).fit(Digits(), shuffled(parts))
    assert callback.trace is not None
    assert [row.epoch for row in callback.trace.rows] == [1, 2, 3]
    with pytest.raises(InputError, match=r"mode='sweep' evaluates the training examples.*train_loader="):
        callback_at(tmp_path / "u", parts, train_loader=None)


def test_a_training_step_that_returns_only_its_loss_is_told_what_to_return(parts: Parts, tmp_path: Path) -> None:
    callback = callback_at(tmp_path / "t", parts, mode="in_pass")
    with pytest.raises(InputError, match=r"training_step .*must return a dict with 'ids', and 'logits' and 'labels'"):
        trainer_at(tmp_path, callback).fit(Digits("loss"), shuffled(parts))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"logits": torch.zeros(2, 3), "labels": torch.zeros(2)},
            r"must return a dict with 'ids'.*found \['labels', 'logits'\]",
        ),
        ({"ids": torch.arange(2), "logits": torch.zeros(2, 3)}, "'logits' without 'labels'"),
        (None, "found NoneType"),
    ],
)
def test_an_evaluate_that_returns_something_else_is_told(
    outputs: object, message: str, parts: Parts, tmp_path: Path
) -> None:
    callback = callback_at(tmp_path / "t", parts, evaluate=lambda module, batch: outputs)
    with pytest.raises(InputError, match=f"evaluate .*{message}|evaluate {message}"):
        trainer_at(tmp_path, callback).fit(Digits(), shuffled(parts))


def test_a_folder_with_a_trace_is_begun_anew_only_when_asked(parts: Parts, tmp_path: Path) -> None:
    for overwrite in (False, True):
        callback = callback_at(tmp_path / "t", parts)
        trainer_at(tmp_path, callback, max_epochs=1).fit(Digits(), shuffled(parts)) if not overwrite else None
        again = callback_at(tmp_path / "t", parts, overwrite=overwrite)
        if overwrite:
            trainer_at(tmp_path, again, max_epochs=2).fit(Digits(), shuffled(parts))
            assert again.trace is not None
            assert len(again.trace.rows) == 3
        else:
            with pytest.raises(InputError, match=r"already holds a trace.*overwrite=True"):
                trainer_at(tmp_path, again, max_epochs=1).fit(Digits(), shuffled(parts))


def test_hooks_outside_of_fit_say_so(parts: Parts, tmp_path: Path) -> None:
    callback = callback_at(tmp_path / "t", parts)
    assert callback.state_dict() == {}
    with pytest.raises(InputError, match="outside of Trainer"):
        callback.on_train_end(trainer_at(tmp_path), Digits())
