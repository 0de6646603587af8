"""A run's weights before each of its steps, the last step first, without ever holding all of them.

Training is repeated once and checked against the run's own checkpoints to the bit; of it some states are kept, evenly
spread. Between two of them training is repeated again when their steps are asked for. With about as many states as
steps between two, T steps take the memory of some sqrt(8 T) copies of the weights (Griewank, "Achieving logarithmic
growth of temporal and spatial complexity in reverse automatic differentiation", 1992, has the general scheme).

Shape legend: B batch, N train.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from comove.display import counted
from comove.errors import CorruptFileError, InputError
from comove.jobs.base import torch_threads
from comove.models import put_channels_last
from comove.training.loop import (
    EpochBatches,
    OptimizerState,
    Resident,
    Stepper,
    TrainingBatch,
    batch_bounds,
    gains_nothing_by_threads,
)
from comove.training.run import Run, read_weights

__all__ = ["Replay", "Step", "why_not_unrolled"]

MEMORY = 2 << 30
"""Bytes that kept states may take."""
RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Step(NamedTuple):
    """One step of training: parameters and buffers before it, by name, and the batch it was taken on."""

    state: Mapping[str, Tensor]
    batch: TrainingBatch


class _State(NamedTuple):
    """Between two steps: the network's tensors and the optimizer's."""

    model: dict[str, Tensor]
    momentum: dict[str, Tensor]


def why_not_unrolled(run: Run) -> str | None:
    """Why the steps of a run are not plain SGD in full precision, in words that follow "this run"; ``None``: they are.

    Learning-rate schedules, momentum (Nesterov's too), weight decay, label smoothing and augmentation are understood.
    """
    if run.adopted is not None:
        return "was trained elsewhere, by steps that comove does not know"
    if not run.finished:
        return "is not finished"
    recipe, device = run.recipe, str(run.result["device"])
    if recipe.optimizer != "sgd":
        return f"was trained by {recipe.optimizer}"
    if recipe.clip_norm is not None:
        return f"clips gradients (clip_norm={recipe.clip_norm})"
    if recipe.ema is not None:
        return f"keeps an average of the weights (ema={recipe.ema})"
    if recipe.precision != "float32" and device.startswith("cuda"):
        return f"was trained in {recipe.precision}"
    modules = run.load_model().modules()
    if any(isinstance(module, RANDOM) and module.p > 0 for module in modules):
        return "drew dropout"
    return None


class Replay:
    """The steps of a finished run that was trained by SGD, from the last to the first, as often as asked for.

    Args:
        run: made by :func:`comove.train`.
        train: its N training examples, in the order in which it had them, on the device that it was trained on.
        memory: bytes that kept states may take.

    Attributes:
        steps: T.
        final: parameters and buffers after the last step, by name.

    Raises:
        InputError: a run trained in another way, or whose repetition does not give the bits of its own checkpoints;
            states that take more than ``memory``.
    """

    def __init__(self, run: Run, train: Resident, *, memory: int = MEMORY) -> None:
        if obstacle := why_not_unrolled(run):
            raise InputError(
                f"Replaying each step needs a run of comove.train with plain SGD in float32; {run.path} {obstacle}. "
                "Train it with another recipe, or use a method that reads checkpoints (TracIn, TRAK)."
            )
        self.run, self.train, self.recipe = run, train, run.recipe
        self._checkpoints = {checkpoint.epoch: checkpoint for checkpoint in run.checkpoints}
        self._per_epoch = len(batch_bounds(len(train), self.recipe))
        self._batches: EpochBatches | None = None
        self.steps = max(self._checkpoints) * self._per_epoch
        self.model = run.model_spec.build(run.seed, run.factory).to(train.device)
        if self.recipe.channels_last:
            put_channels_last(self.model)
        self._apart = math.ceil(math.sqrt(2 * self.steps))
        self._check_memory(memory)
        self._kept = self._forward()

    def _check_memory(self, memory: int) -> None:
        each = sum(value.nbytes for value in self.model.state_dict().values())
        needed = each * (2 * math.ceil(self.steps / self._apart) + self._apart)
        if needed > memory:
            raise InputError(
                f"Replaying {counted(self.steps, 'step')} of a network of {each / 1e6:,.1f} MB takes "
                f"{needed / 1e6:,.0f} MB of kept states, more than memory={memory} bytes: allow more, or unroll a "
                "smaller network or fewer epochs."
            )

    def _forward(self) -> list[_State]:
        """Repeat training, compare with the checkpoints, and keep the states at multiples of ``_apart``."""
        kept, state = [], _State(_copies(self.model.state_dict()), {})
        with self._as_trained():
            stepper = self._stepper(state)
            for step in range(self.steps + 1):
                epoch, within = divmod(step, self._per_epoch)
                if within == 0 and epoch in self._checkpoints:
                    self._compare(epoch)
                if step == self.steps:
                    break
                if step % self._apart == 0:
                    kept.append(_State(_copies(self.model.state_dict()), _copies(stepper.optimizer.momentum())))
                stepper.step(self._batch(step))
        self.final: dict[str, Tensor] = _copies(self.model.state_dict())
        return kept

    def _compare(self, epoch: int) -> None:
        checkpoint, found = self._checkpoints[epoch], self.model.state_dict()
        stated = read_weights(checkpoint.path)
        if stated.keys() != found.keys():
            raise CorruptFileError(f"{checkpoint.path} does not hold the weights of {self.run.model_spec}.")
        other = [name for name, value in stated.items() if not torch.equal(value, found[name].cpu())]
        if other:
            threads, device = self.run.result["threads"], self.run.result["device"]
            raise InputError(
                f"Repeating the training of {self.run.path} does not give the bits of its own checkpoint after epoch "
                f"{epoch} ({other[0]} differs). Unroll it on the machine and with the torch that trained it ({device}, "
                f"{counted(threads, 'thread')}), with the data and the model factory it had; a model that draws random "
                "numbers in training cannot be unrolled."
            )

    def backwards(self) -> Iterator[Step]:
        """The steps, the last one first."""
        for number in range(len(self._kept) - 1, -1, -1):
            first = number * self._apart
            segment = range(first, min(first + self._apart, self.steps))
            states = self._segment(self._kept[number], segment)
            for step in reversed(segment):
                yield Step(states.pop(), self._batch(step))

    def _segment(self, start: _State, segment: range) -> list[dict[str, Tensor]]:
        """The network's tensors before each step of a segment."""
        states = []
        with self._as_trained():
            stepper = self._stepper(start)
            for step in segment:
                states.append(_copies(self.model.state_dict()))
                stepper.step(self._batch(step))
        return states

    def _stepper(self, state: _State) -> Stepper:
        self.model.load_state_dict(state.model)
        self.model.train()
        momentum = OptimizerState(momentum=state.momentum)
        return Stepper(self.model, self.recipe, self.train.device, momentum, self.model)

    def _batch(self, step: int) -> TrainingBatch:
        epoch, index = divmod(step, self._per_epoch)
        if self._batches is None or self._batches.epoch != epoch:
            self._batches = EpochBatches(self.train, self.recipe, self.run.seed, epoch)
        return self._batches[index]

    def _as_trained(self) -> AbstractContextManager[None]:
        """As many threads as the run had, on which bits depend."""
        alone = gains_nothing_by_threads(self.model, self.recipe, self.train.device)
        return torch_threads(1 if alone else int(self.run.result["threads"]))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
