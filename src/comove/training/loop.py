"""The training loop, and evaluation passes.

Recorded runs are trained by :func:`fit`, and so are the models of banks and coreset curves one by one. For many models
there are two faster ways: side by side (:mod:`comove.training.many.stacked`), and on a GPU in a compiled network
(:mod:`comove.training.many.compiled`). They draw weights, order and augmentation as :func:`fit` does and are tested
against it, to rounding: not to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from comove.data import ExampleSet
from comove.data.batches import Batch
from comove.errors import InputError, did_you_mean
from comove.jobs.base import torch_threads
from comove.models import logits_of, put_channels_last, without_fast_path
from comove.training.augment import draw_flip_crop, flip_crop
from comove.training.ema import EMA
from comove.training.optimizers import optimizer_for
from comove.training.randomness import generator_for, seeded
from comove.training.recipe import Recipe

__all__ = [
    "EpochBatches",
    "Hooks",
    "OptimizerState",
    "Resident",
    "StopEarly",
    "TrainingBatch",
    "batch_bounds",
    "computing_on",
    "epoch_plan",
    "epochs_without_gain",
    "evaluate",
    "fit",
    "mean_loss",
    "one_thread",
    "predict",
    "resolve_device",
]

SMALL_WORK = 10_000_000
"""Multiply-adds a step (batch size times parameters) below which a fully connected network trains on one thread."""
_auto: ContextVar[torch.device | None] = ContextVar("_auto", default=None)
PREPARED_BYTES = 1 << 30
"""Inputs are normalised once and kept on the device when they take no more than this as float32."""


@contextmanager
def computing_on(device: str | torch.device) -> Iterator[None]:
    """Let ``"auto"`` be this device within the block, for all that chooses one by itself, as attribution methods do.

    Raises:
        InputError: as of :func:`resolve_device`.
    """
    token = _auto.set(resolve_device(device))
    try:
        yield
    finally:
        _auto.reset(token)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on: ``"auto"`` is that of :func:`computing_on`, else the first GPU or the CPU.

    Raises:
        InputError: an unknown device, or CUDA where there is none.
    """
    if device == "auto" and (chosen := _auto.get()) is not None:
        return chosen
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ("auto", "cpu", "cuda")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in known:
        raise InputError(f"Unknown device {str(device)!r}; use {', '.join(known)}.{did_you_mean(str(device), known)}")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda' was asked for, but torch sees no CUDA device; use device='cpu' or 'auto'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise InputError(f"There is no device {str(device)!r}: torch sees {torch.cuda.device_count()} CUDA devices.")
    return resolved


class Resident:
    """An example set on its device: whole and normalised where it fits, else fetched batch by batch."""

    def __init__(self, examples: ExampleSet, device: torch.device) -> None:
        self.examples, self.device = examples, device
        labels = examples.labels if examples.labelled else np.zeros(0, np.int64)
        self.labels = torch.from_numpy(labels).to(device)
        """(N,) int64; none where the examples have none."""
        held = None if examples.structured else examples.held
        self._raw = None if held is None else held.to(device)
        self._prepared: torch.Tensor | None = None
        if self._raw is not None and self._raw.numel() * 4 <= PREPARED_BYTES:
            self._prepared = examples.prepare(self._raw)
        self._latest: tuple[npt.NDArray[np.int64], Batch] | None = None
        self.kept: dict[Any, Any] = {}
        """What was built upon these data and the next training on them uses again."""

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def in_memory(self) -> bool:
        """Whether all inputs are on the device, not fetched batch by batch."""
        return self._raw is not None or self._prepared is not None

    def part(self, positions: npt.NDArray[np.int64]) -> Resident:
        """Return the examples at ``positions``, in this order, on the same device; nothing is normalised again."""
        made = copy.copy(self)
        made.kept = {}
        made.examples = self.examples.subset(self.examples.ids[positions])
        where = torch.from_numpy(np.array(positions, np.int64)).to(self.device)
        made.labels = self.labels[where] if self.examples.labelled else self.labels
        made._prepared = None if self._prepared is None else self._prepared[where]
        made._raw = None if self._raw is None or self._prepared is not None else self._raw[where]
        return made

    def batch(self, positions: torch.Tensor | slice) -> Batch:
        """Return the examples at ``positions`` as a task reads them: (inputs, labels), or what the items collate to."""
        if not self.examples.structured:
            return self.inputs(positions), self.labels[positions]
        places = np.arange(len(self))[positions] if isinstance(positions, slice) else positions.cpu().numpy()
        if self._latest is None or not np.array_equal(self._latest[0], places):  # asked for twice, it is read once
            self._latest = places, self.examples.collated(places, self.device)
        return self._latest[1]

    def inputs(self, positions: torch.Tensor | slice) -> torch.Tensor:
        """Return normalised inputs at ``positions`` (an int64 tensor, or a slice for a view)."""
        if self._prepared is not None:
            if isinstance(positions, torch.Tensor) and self._prepared.is_contiguous():
                return self._prepared.index_select(0, positions)  # the same, whole rows copied at once
            return self._prepared[positions]
        if self._raw is not None:
            return self.examples.prepare(self._raw[positions])
        places = np.arange(len(self))[positions] if isinstance(positions, slice) else positions.cpu().numpy()
        return self.examples.batch(places, self.device)[0]


@dataclass
class OptimizerState:
    """What a resumed run needs besides the model: epochs done, steps done, momentum (AdamW's averages), loss scale.

    ``weights`` are what the optimizer moves, where the recipe asks for an average of the weights (EMA): the model holds
    that average then.
    """

    epoch: int = 0
    step: int = 0
    momentum: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Hooks(Protocol):
    """What :func:`fit` calls; the model is in training mode when a hook is entered and must be when it returns.

    With an average of the weights (EMA) the model holds it in ``on_step`` and ``on_epoch_end``, and the weights
    themselves in the others (before training both are alike).
    """

    def on_start(self) -> None:
        """Called before the first step of a run that starts at epoch 0."""

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch of ``epoch`` (counted from 0)."""

    def on_batch(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Called with each training batch after its forward pass; ``positions`` (B,) are on the CPU."""

    def on_step(self, step: int, epoch: float, lr: float, last_of_epoch: bool) -> None:
        """Called after each optimizer step."""

    def on_epoch_end(self, state: OptimizerState) -> None:
        """Called after each epoch."""


class StopEarly:
    """Ends training when the mean loss on held-out examples no longer falls.

    Args:
        model: the network being trained.
        validation: the examples.
        patience: epochs without a new least value, from 1 on.
    """

    def __init__(self, model: nn.Module, validation: Resident, patience: int) -> None:
        self.model, self.validation, self.patience = model, validation, patience
        self.losses: list[float] = []

    @classmethod
    def of(cls, model: nn.Module, recipe: Recipe, validation: Resident | None) -> StopEarly | None:
        """What the recipe asks for, given validation examples; ``None`` for nothing."""
        patience = recipe.early_stop_patience
        return None if patience is None or validation is None else cls(model, validation, patience)

    def __call__(self) -> bool:
        """Add the loss after an epoch; return whether it was the last epoch."""
        parts = evaluate(self.model, self.validation)
        losses = torch.cat([F.cross_entropy(logits.float(), y, reduction="none") for _, logits, y in parts])
        self.losses.append(float(losses.double().mean()))
        return epochs_without_gain(self.losses) >= self.patience


def epochs_without_gain(losses: Sequence[float]) -> int:
    """How many epochs have passed since the least loss (the first of equals); 0 before the first."""
    return len(losses) - 1 - int(np.argmin(losses)) if losses else 0


def fit(
    model: nn.Module,
    examples: ExampleSet | Resident,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    hooks: Hooks | None = None,
    state: OptimizerState | None = None,
    forward: Callable[[torch.Tensor], Any] | None = None,
    ended: Callable[[], bool] | None = None,
    loss_weights: torch.Tensor | None = None,
) -> None:
    """Train ``model`` in place; with an average of the weights (EMA) it ends with that.

    The order of examples, their augmentation and dropout depend only on ``seed`` and the epoch: the same inputs give
    the same bits on the same machine with the same number of threads, resumed or not.

    Args:
        model: on ``device``; left in evaluation mode.
        examples: N >= 2 training examples, or a :class:`Resident` of them (shared by many runs).
        recipe: how to train.
        seed: of this run.
        device: where to compute.
        hooks: called along the way.
        state: where to resume; the model must hold the weights of that moment.
        forward: computes what ``model`` computes, faster; by default the model itself.
        ended: asked after each epoch whether training ends there, as :class:`StopEarly`.
        loss_weights: (N,), what each example's loss counts, by default 1; see :func:`mean_loss`.

    Raises:
        InputError: fewer than two examples; a recipe with a patience, and nothing that is asked.
    """
    device = resolve_device(device)
    data = examples if isinstance(examples, Resident) else Resident(examples, device)
    if len(data) < 2:
        raise InputError(f"Training needs at least 2 examples, got {len(data)}.")
    if recipe.early_stop_patience is not None and ended is None:
        raise InputError(
            f"early_stop_patience={recipe.early_stop_patience} goes by the mean validation loss: pass validation "
            "examples, or leave the patience out."
        )
    state = state or OptimizerState()
    if recipe.channels_last:
        put_channels_last(model)
    stepper = Stepper(model, recipe, device, state, forward or model)
    if loss_weights is not None and not bool((loss_weights == 1).all()):  # else to the bit as without
        stepper.loss_weights = loss_weights.to(device, torch.float32)
    with one_thread(gains_nothing_by_threads(model, recipe, device)):
        _epochs(stepper, data, seed, state, hooks, ended)
    model.eval()


def _epochs(
    stepper: Stepper,
    data: Resident,
    seed: int,
    state: OptimizerState,
    hooks: Hooks | None,
    ended: Callable[[], bool] | None,
) -> None:
    recipe = stepper.recipe
    if hooks is not None and state.epoch == 0:
        hooks.on_start()
    stepper.model.train()
    average = stepper.average
    for epoch in range(state.epoch, recipe.epochs):
        if hooks is not None:
            hooks.on_epoch_start(epoch)
        batches = EpochBatches(data, recipe, seed, epoch)
        with seeded(seed, "dropout", epoch, device=data.device):
            for index in range(len(batches)):
                batch = batches[index]
                logits = stepper.step(batch)
                state.step += 1
                if average is not None:
                    average.update(state.step)
                if hooks is not None:
                    hooks.on_batch(batch.positions, logits, batch.labels)
                    done = (index + 1) / len(batches)
                    with stepper.averaged():
                        hooks.on_step(state.step, epoch + done, batch.lr, last_of_epoch=done == 1)
        state.epoch = epoch + 1
        if hooks is not None or ended is not None:
            with stepper.averaged():
                if hooks is not None:
                    stepper.save(state)
                    hooks.on_epoch_end(state)
                if ended is not None and ended():
                    break
    if average is not None:
        average.swap()


def gains_nothing_by_threads(model: nn.Module, recipe: Recipe, device: torch.device) -> bool:
    """A small fully connected network: sharing its tiny products costs more than it saves."""
    work = recipe.batch_size * sum(parameter.numel() for parameter in model.parameters())
    convolves = any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in model.modules())
    return device.type == "cpu" and not convolves and work < SMALL_WORK


def one_thread(wanted: bool = True) -> AbstractContextManager[None]:
    """Compute on one CPU thread within the block, if ``wanted``; the caller's number of threads comes back."""
    return torch_threads(1) if wanted else nullcontext()


class Stepper:
    """One optimizer step after another, in the recipe's precision."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        state: OptimizerState,
        forward: Callable[[torch.Tensor], Any],
    ) -> None:
        self.model, self.recipe, self.forward = model, recipe, forward
        half = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(recipe.precision)
        self.half = half if device.type == "cuda" else None
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.half == torch.float16)
        if state.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(state.scaler))
        self.optimizer = optimizer_for(model, recipe, state.momentum)
        self.average = None if recipe.ema is None else EMA(model, recipe.ema, state.weights)
        self.loss_weights: torch.Tensor | None = None

    def step(self, batch: TrainingBatch) -> torch.Tensor:
        """Take one step and return the logits it started from."""
        self.optimizer.lr = batch.lr
        weights_B = None if self.loss_weights is None else self.loss_weights[batch.positions.to(batch.labels.device)]
        with torch.autocast("cuda", dtype=self.half) if self.half is not None else nullcontext():
            logits = logits_of(self.forward(batch.inputs))
            loss = mean_loss(logits, batch.labels, self.recipe.label_smoothing, weights_B)
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # type: ignore[arg-type]  # it asks for param_groups and step() only
            self.scaler.update()
        else:
            self.optimizer.step()
        return logits.detach()

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model holds the average of its weights, if there is one."""
        return nullcontext() if self.average is None else self.average.in_model()

    def save(self, state: OptimizerState) -> None:
        """Put momentum, loss scale, and where the model holds the average the weights into ``state``."""
        state.momentum = self.optimizer.momentum()
        state.scaler = self.scaler.state_dict()
        state.weights = {} if self.average is None else self.average.other


def batch_bounds(size: int, recipe: Recipe) -> list[tuple[int, int]]:
    """Cut the examples of an epoch into batches, none of one example, which batch norm cannot train on.

    Args:
        size: how many examples.
        recipe: says how many a batch, at most, and what becomes of those that are left (``last_batch``).

    Returns:
        First position and end of each batch. Of ``last_batch="short"`` all have ``batch_size`` examples but the last,
        which joins the one before where it is a single one; of ``"even"``, the larger ones come first.
    """
    if recipe.last_batch == "even":
        count = max(1, min(-(-size // recipe.batch_size), size // 2))
        each, larger = divmod(size, count)
        starts = [each * i + min(i, larger) for i in range(count)]
    else:
        starts = list(range(0, size, recipe.batch_size))
        if len(starts) > 1 and size - starts[-1] == 1:
            starts.pop()
    return list(zip(starts, [*starts[1:], size], strict=True))


def epoch_plan(size: int, recipe: Recipe, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw the epoch's order (N,), and each example's flip and shift (N, 3), row i for example i."""
    order = torch.randperm(size, generator=generator_for(seed, "order", epoch))
    if recipe.augment == "none":
        return order, None
    return order, draw_flip_crop(size, recipe.crop_padding, generator_for(seed, "augment", epoch))


def mean_loss(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, weights_B: torch.Tensor | None = None
) -> torch.Tensor:
    """sum_i w_i loss_i / B: what a training step descends, w_i = 1 where no weights are given.

    The divisor is the batch's size whatever the weights: an example of weight 0 is absent, and nothing else changes.
    """
    if weights_B is None:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    losses_B = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
    return (losses_B * weights_B).sum() / len(losses_B)


class TrainingBatch(NamedTuple):
    """What one step trains on: (B,) positions on the CPU, (B, ...) augmented inputs, (B,) labels; its learning rate."""

    positions: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    lr: float


class EpochBatches:
    """The batches of one epoch, in order and by index, drawn from the seed and the epoch alone."""

    def __init__(self, data: Resident, recipe: Recipe, seed: int, epoch: int) -> None:
        self.data, self.recipe, self.epoch = data, recipe, epoch
        self.order, self.draws = epoch_plan(len(data), recipe, seed, epoch)
        self.bounds = batch_bounds(len(data), recipe)

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> TrainingBatch:
        positions = self.order[slice(*self.bounds[index])]
        here = positions.to(self.data.device, non_blocking=True)
        lr = self.recipe.lr_at(self.epoch + (index + 0.5) / len(self.bounds))
        return TrainingBatch(positions, self._inputs(positions, here), self.data.labels[here], lr)

    def _inputs(self, positions: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        inputs, recipe = self.data.inputs(here), self.recipe
        if self.draws is not None:
            if inputs.ndim != 4:
                raise InputError(
                    f"augment='flip_crop' needs images (C, H, W), got inputs of shape {tuple(inputs.shape[1:])}."
                )
            draws = self.draws[positions].to(self.data.device, non_blocking=True)
            inputs = flip_crop(inputs, draws, recipe.crop_padding)
        if recipe.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs


def evaluate(
    model: nn.Module, data: Resident, batch_size: int = 1024
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]]:
    """Yield (positions, logits, labels) over all examples, in evaluation mode and float32, without gradients.

    The model's training mode comes back when the last batch has been taken.
    """
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(data), batch_size):
            part = slice(start, min(start + batch_size, len(data)))
            with torch.no_grad(), without_fast_path():
                logits = logits_of(model(data.inputs(part)))
            yield np.arange(part.start, part.stop), logits, data.labels[part]
    finally:
        model.train(was_training)


def predict(model: nn.Module, examples: ExampleSet | Resident, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the logits (M, C) float32 of all examples, on the CPU."""
    data = examples if isinstance(examples, Resident) else Resident(examples, resolve_device(device))
    return torch.cat([logits.float().cpu() for _, logits, _ in evaluate(model, data)])
