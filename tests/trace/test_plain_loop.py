"""A loop of one's own: shuffled, accumulating, in half precision, killed and resumed, it records what it computed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from comove import Recorder, Trace
from comove.data import Splits
from comove.errors import MissingExamplesError
from comove.trace.evaluation_pass import clean_pass

EPOCHS, BATCH, N, Q = 3, 16, 60, 20


class KilledError(Exception):
    """A job that was killed."""


def part(examples: Any, size: int) -> TensorDataset:
    return TensorDataset(
        torch.as_tensor(examples.held[:size]).flatten(1),
        torch.as_tensor(examples.labels[:size]),
        torch.as_tensor(examples.ids[:size]),
    )


class Loop:
    """Training with torch alone, and checkpoints of torch alone."""

    def __init__(
        self,
        digits: Splits,
        path: Path,
        mode: Any,
        *,
        drop_last: bool = False,
        checkpoint: Path | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.train, self.query = part(digits.train, N), part(digits.query, Q)
        self.model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.recorder = Recorder(
            path, train_ids=self.train.tensors[2], query_ids=self.query.tensors[2], mode=mode, **options
        )
        self.loader = DataLoader(self.train, BATCH, shuffle=True, drop_last=drop_last)
        self.mode, self.checkpoint, self.epoch = mode, checkpoint, 0
        self.seen: dict[int, float] = {}

    def sweep(self, *parts: TensorDataset) -> None:
        with clean_pass(self.model):
            for data in parts:
                for inputs, labels, ids in DataLoader(data, 7):
                    self.recorder.observe(ids, logits=self.model(inputs), labels=labels)

    def fit(self, epochs: int = EPOCHS, accumulate: int = 1, kill: int | None = None) -> Trace:
        if not self.recorder.rows:
            self.sweep(self.train, self.query)
            self.recorder.end_row(epoch=0)
        while self.epoch < epochs:
            for number, (inputs, labels, ids) in enumerate(self.loader):
                if kill == self.epoch * len(self.loader) + number:
                    raise KilledError
                with torch.autocast("cpu", torch.bfloat16):
                    logits = self.model(inputs)
                losses = F.cross_entropy(logits.float(), labels, reduction="none")
                (losses.mean() / accumulate).backward()  # type: ignore[no-untyped-call]
                if self.mode == "in_pass":
                    self.recorder.observe(ids, logits=logits, labels=labels)
                    self.seen |= dict(zip(ids.tolist(), losses.tolist(), strict=True))
                if (number + 1) % accumulate == 0 or number + 1 == len(self.loader):
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            self.epoch += 1
            self.sweep(*[self.train] * (self.mode == "sweep"), self.query)
            self.recorder.end_epoch()
            if self.checkpoint is not None:
                self.save(self.checkpoint)
        return self.recorder.finish()

    def save(self, file: Path) -> None:
        state: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "recorder": self.recorder}
        content = {name: owner.state_dict() for name, owner in state.items()}
        torch.save({**content, "epoch": self.epoch, "generator": torch.get_rng_state()}, file)

    def load(self, file: Path) -> None:
        content = torch.load(file, weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.recorder.load_state_dict(content["recorder"])
        self.epoch = content["epoch"]
        torch.set_rng_state(content["generator"])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_pass_records_the_float32_losses_of_its_half_precision_batches(
    accumulate: int, digits: Splits, tmp_path: Path
) -> None:
    loop = Loop(digits, tmp_path / "t", "in_pass")
    trace = loop.fit(accumulate=accumulate)
    np.testing.assert_allclose(trace.train_losses[-1], [loop.seen[int(key)] for key in trace.train_ids], atol=2e-6)
    assert trace.train_losses.dtype == np.float32


@pytest.mark.parametrize("mode", ["sweep", "in_pass"])
@pytest.mark.parametrize("kill", [5, 8])
def test_killed_and_resumed_is_uninterrupted(kill: int, mode: str, digits: Splits, tmp_path: Path) -> None:
    whole = Loop(digits, tmp_path / "whole", mode).fit()
    with pytest.raises(KilledError):
        Loop(digits, tmp_path / "broken", mode, checkpoint=tmp_path / "state").fit(kill=kill)
    again = Loop(digits, tmp_path / "broken", mode, resume=True)
    again.load(tmp_path / "state")
    resumed = again.fit()
    assert [row.epoch for row in resumed.rows] == [0, 1, 2, 3]
    for side in ("train", "query"):
        for field in whole.fields:
            np.testing.assert_array_equal(resumed.read(side, field), whole.read(side, field))


def test_a_pass_that_drops_its_last_batch_is_refused_or_carried(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(MissingExamplesError, match=r"12 of 60 train examples.*drop_last"):
        Loop(digits, tmp_path / "a", "in_pass", drop_last=True).fit()
    trace = Loop(digits, tmp_path / "b", "in_pass", drop_last=True, missing="previous").fit()
    assert [row.filled for row in trace.rows] == [0, 12, 12, 12]
    assert [row.filled for row in Loop(digits, tmp_path / "c", "sweep", drop_last=True).fit().rows] == [0, 0, 0, 0]


# --- a clean pass ------------------------------------------------------------------------------------------------


def test_a_clean_pass_is_not_noticed_by_training(digits: Splits, tmp_path: Path) -> None:
    weights = []
    for looks in (0, 2):
        loop = Loop(digits, tmp_path / str(looks), "sweep")
        for _ in range(looks):
            loop.sweep(loop.train, loop.query)
        loop.fit()
        weights.append([value.clone() for value in loop.model.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_clean_pass_gives_back_modes_gradients_and_generators_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    model[1].eval()  # a layer kept frozen
    states = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(KilledError), clean_pass(model):  # noqa: PT012
        assert not model[0].training
        assert not torch.is_grad_enabled()
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        raise KilledError
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.is_grad_enabled()
    assert random.getstate() == states[0]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
