"""Other libraries on the recorded runs of ``benchmarks/quality.py``, with the options that they come with.

A language model is handed to libraries that know classifiers as one that classifies the character after each: its
logits are turned to (B, classes, T - 1), and the targets are the text without its first character.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ekfac as beside
import numpy as np
import numpy.typing as npt
import peers
import torch
from quality_cases import Case
from torch import Tensor, nn

import attribution as side_by_side
from comove.attribution import Scores
from comove.attribution.arnoldi import hessian_resident
from comove.data import ExampleSet
from comove.tasks import CausalLM
from comove.training import Run
from comove.training.sources import Source

__all__ = ["captum_tracin", "dattri_arnoldi", "dattri_trak", "kronfluence_scores", "traker"]

Compute = Callable[[Case, Sequence[Run]], Scores]


class NextToken(nn.Module):
    """A language model as a classifier of every token but the first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, K, T - 1)."""
        logits: Tensor = self.model(tokens)[:, :-1].mT
        return logits


@dataclass(frozen=True)
class Adapted:
    """A run whose model gives what a classifier gives."""

    run: Run

    def load_model(self) -> nn.Module:
        """The model after training."""
        model = self.run.load_model()
        return NextToken(model) if isinstance(self.run.task, CausalLM) else model


@dataclass(frozen=True)
class OfRun(side_by_side.Setting):
    """What the functions of ``benchmarks/peers.py`` take, of a run that is there."""

    recorded: Run | None = None

    @property
    def whole(self) -> Run:
        """The run as it is."""
        assert self.recorded is not None
        return self.recorded

    @property
    def run(self) -> Any:  # type: ignore[override]
        """The run, as a classifier's."""
        return Adapted(self.whole)

    def pair(self, part: Any) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a set of examples, or of a batch."""
        batch = part.collated(np.arange(len(part))) if isinstance(part, ExampleSet) else part
        return (batch["input_ids"], batch["input_ids"][:, 1:]) if isinstance(batch, dict) else tuple(batch)

    @cached_property
    def train_xy(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The training examples, in the order of the scores' rows."""
        return self.pair(self.whole.data().train.subset(self.whole.trace.train_ids))

    @cached_property
    def query_xy(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The queries."""
        return self.pair(self.whole.data().query)

    @cached_property
    def hessian_xy(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The very examples that ours builds its Hessian from."""
        data = hessian_resident(Source(self.whole.trace, self.whole), side_by_side.HESSIAN, 0, side_by_side.CPU)
        return self.pair(data.batch(slice(0, len(data))))

    @property
    def weights(self) -> list[Any]:  # type: ignore[override]
        """Every checkpoint after the first epoch, with its learning rate."""
        adapted = isinstance(self.whole.task, CausalLM)
        kept = [one for one in self.whole.checkpoints if one.epoch > 0]
        found = [(self.whole.load_model(one).state_dict(), one.lr) for one in kept]
        return [({f"model.{k}" if adapted else k: v for k, v in state.items()}, rate) for state, rate in found]


def staged(make: Callable[..., peers.Stages]) -> Compute:
    """Scores by a function of ``benchmarks/peers.py``."""

    def scores(case: Case, runs: Sequence[Run]) -> Scores:
        (run,) = runs
        with tempfile.TemporaryDirectory() as folder:
            setting = OfRun(Path(folder), None, 0, 0, 100, run)
            found: Any = None
            for _, stage in make(setting, len(setting.train_xy[1]), 100):
                found = stage()
        return as_scores(run, torch.as_tensor(found).detach().numpy())

    return scores


def as_scores(run: Run, values: npt.NDArray[Any]) -> Scores:
    """Rows as in the trace, columns as the queries lie in the data."""
    ids = {"train_ids": run.trace.train_ids, "query_ids": run.data().query.ids}
    return Scores.from_arrays(values.astype(np.float32), method="peer", **ids)


traker = staged(lambda *given: peers.plain_traker(512, 0.0, True, *given))
dattri_trak = staged(lambda *given: peers.dattri_trak(512, 0.0, *given))
dattri_arnoldi = staged(lambda *given: peers.dattri_arnoldi(50, *given))
captum_tracin = staged(lambda *given: peers.captum_tracin(True, *given))


def kronfluence_scores(case: Case, runs: Sequence[Run]) -> Scores:
    """EK-FAC of all linear layers and convolutions, by kronfluence as it comes."""
    (run,) = runs
    model, data = run.load_model(), run.data()
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    train = data.train.subset(run.trace.train_ids)
    batches = [part.collated(np.arange(len(part))) for part in (train, data.query)]
    language = isinstance(run.task, CausalLM)
    held = [beside.Held(batch["input_ids"] if language else tuple(batch)) for batch in batches]
    sampled = beside.drawn
    if language:
        tokens = held[0].whole.shape[1] - 1
        sampled = lambda logits: beside.drawn(logits[:, :-1]) / tokens**0.5  # noqa: E731
    given = beside.Setting(model, run.task, *held, sampled)
    _, found = beside.theirs(given, layers, 100)
    return as_scores(run, found.numpy())
