"""One model after another on a GPU, each step one replay of a captured graph.

Training examples lie on the device, normalised, padded and in the precision of the step, images with channels last; a
crop is a read at another place. Gathering a batch, forward and backward pass and the update are captured once for a
batch size (``torch.cuda.CUDAGraph``) and replayed with other examples, another learning rate and the weights of
whichever model is loaded, so a step costs no more than its kernels; ``compiled`` fuses these first. What is drawn
(weights, order, augmentation) is what :func:`comove.training.fit` draws, and the update is its update.

On a CPU the same path runs in float32 and uncaptured.

Letters: N examples, B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.errors import InputError
from comove.models import Factory, ModelSpec, logits_of, put_channels_last
from comove.training.loop import Resident, batch_bounds, epoch_plan, fit
from comove.training.many.stacked import Member
from comove.training.recipe import Recipe

__all__ = ["CapturedTrainer", "scaled_update", "trainer_for", "why_not_captured"]

WARM_UP = 3
"""Steps before capture, in which libraries choose their kernels."""
PREPARED_AT_ONCE = 4096
"""Examples that are normalised and padded at a time."""
FIRST_SCALE = 2.0**16
"""The loss scale of float16 to begin with, as in ``torch.amp.GradScaler``."""
APART = {"cpu": 1e-3, "cuda": 0.05, torch.float16: 0.2, torch.bfloat16: 0.3}
"""How far the first updates may be from those of ``fit``, relative to their size, by precision; a GPU's float32 may be
TensorFloat-32."""


class CapturedTrainer:
    """Trains models of one architecture and recipe on parts of one data set.

    Args:
        spec: the architecture.
        train: all training examples, in memory, on the device to train on.
        recipe: how to train.
        factory: the user's own factory, as for :meth:`ModelSpec.build`.
        compiled: whether ``torch.compile`` fuses kernels first, which takes a minute and pays for many models.

    Raises:
        InputError: examples that are not held in memory.
    """

    def __init__(
        self,
        spec: ModelSpec,
        train: Resident,
        recipe: Recipe,
        factory: str | Factory | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        if not train.in_memory:
            raise InputError("Training from a captured graph needs examples in memory; these are fetched one by one.")
        self.spec, self.recipe, self.factory, self.device = spec, recipe, factory, train.device
        on_gpu = self.device.type == "cuda"
        half = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(recipe.precision)
        self.half = half if on_gpu else None
        self.network = spec.build(0, factory).to(self.device)
        if len(spec.input_shape) == 3:
            put_channels_last(self.network)
        self.parameters: list[Tensor] = [
            parameter for parameter in self.network.parameters() if parameter.requires_grad
        ]
        self.momenta = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.lr = torch.zeros((), device=self.device)
        self.scale = torch.full((1,), FIRST_SCALE, device=self.device) if self.half == torch.float16 else None
        self.growth = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.labels, self.examples = train.labels, _prepared(train, recipe, self.half or torch.float32)
        self.loss: Callable[[Tensor, Tensor], Tensor] = _compiled(self._loss) if compiled else self._loss
        self._steps: dict[int, _Step] = {}
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None

    def train(self, member: Member) -> nn.Module:
        """Train one model, and return the network with its weights, in evaluation mode; the next call reuses it."""
        positions = torch.from_numpy(member.positions.astype("int64"))
        batches = batch_bounds(len(positions), self.recipe.batch_size)
        for size in sorted({stop - start for start, stop in batches}, reverse=True):  # first: warming up moves weights
            self._step_of(size)
        self._load(member.seed)
        for epoch in range(self.recipe.epochs):
            order, draws = epoch_plan(len(positions), self.recipe, member.seed, epoch)
            where_N = positions[order].to(self.device)
            draws_N3 = None if draws is None else draws[order].to(self.device)
            for index, (start, stop) in enumerate(batches):
                self.lr.fill_(self.recipe.lr_at(epoch + (index + 0.5) / len(batches)))
                drawn = None if draws_N3 is None else draws_N3[start:stop]
                self._step_of(stop - start)(self, where_N[start:stop], drawn)
        return self.network.eval()

    def _load(self, seed: int) -> None:
        """Put fresh weights where the graphs find them, and forget the model before."""
        fresh = self.spec.build(seed, self.factory).state_dict()
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                value.copy_(fresh[name])
            for momentum in self.momenta:
                momentum.zero_()
        if self.scale is not None:
            self.scale.fill_(FIRST_SCALE)
        self.growth.zero_()
        self.network.train()

    def _step_of(self, size: int) -> _Step:
        if size not in self._steps:
            self._steps[size] = _Step(self, size, self._pool)
        return self._steps[size]

    def step(self, where_B: Tensor, draws_B3: Tensor | None) -> None:
        """Take one step on these examples; all that it reads and writes is on the device."""
        loss = self.loss(self._inputs(where_B, draws_B3), self.labels[where_B])
        scaled = loss if self.scale is None else loss * self.scale
        gradients = list(torch.autograd.grad(scaled.sum(), self.parameters))
        with torch.no_grad():
            scaled_update(
                self.parameters, gradients, self.momenta, self.recipe, self.lr, scale=self.scale, growth=self.growth
            )

    def _inputs(self, where_B: Tensor, draws_B3: Tensor | None) -> Tensor:
        """Gather a batch, each image from where its crop begins, flipped ones backwards."""
        if self.examples.ndim != 4:
            return self.examples[where_B]
        if draws_B3 is None:
            return self.examples[where_B].permute(0, 3, 1, 2)
        _, height, width = self.spec.input_shape
        rows_BH = draws_B3[:, 1:2] + torch.arange(height, device=self.device)
        across = torch.arange(width, device=self.device).expand(len(where_B), width)
        columns_BW = draws_B3[:, 2:3] + torch.where(draws_B3[:, :1] == 1, across.flip(1), across)
        images_BHWC = self.examples[where_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]
        return images_BHWC.permute(0, 3, 1, 2)

    def _loss(self, inputs: Tensor, labels_B: Tensor) -> Tensor:
        if self.half is None:
            logits_BK = logits_of(self.network(inputs))
            return F.cross_entropy(logits_BK, labels_B, label_smoothing=self.recipe.label_smoothing)
        with torch.autocast("cuda", dtype=self.half, cache_enabled=False):  # a cache would outlive the capture
            logits_BK = logits_of(self.network(inputs))
        return F.cross_entropy(logits_BK.float(), labels_B, label_smoothing=self.recipe.label_smoothing)


class _Step:
    """One step of a fixed batch size: captured on a GPU, as it is on a CPU."""

    def __init__(self, trainer: CapturedTrainer, size: int, pool: Any) -> None:
        device = trainer.device
        self.graph = None
        self.where_B = torch.arange(size, device=device) % len(trainer.labels)
        augmented = trainer.recipe.augment != "none"
        self.draws_B3 = torch.zeros(size, 3, dtype=torch.int64, device=device) if augmented else None
        if pool is None:
            return
        trainer.network.train()
        trainer.lr.zero_()
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    trainer.step(self.where_B, self.draws_B3)
            torch.cuda.current_stream(device).wait_stream(beside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                trainer.step(self.where_B, self.draws_B3)

    def __call__(self, trainer: CapturedTrainer, where_B: Tensor, draws_B3: Tensor | None) -> None:
        """Take the trainer's step on these examples; a trainer that steps kept would not be freed with its memory."""
        if self.graph is None:
            trainer.step(where_B, draws_B3)
            return
        self.where_B.copy_(where_B)
        if self.draws_B3 is not None and draws_B3 is not None:
            self.draws_B3.copy_(draws_B3)
        self.graph.replay()


def _compiled(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile for each batch size by itself, and whole or not at all.

    What was compiled for other trainers is forgotten: their steps are captured, and beyond a number of versions of one
    function the compiler would run it as it is without a word.
    """
    torch.compiler.reset()
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(loss, dynamic=False, fullgraph=True)
    return compiled


def _prepared(train: Resident, recipe: Recipe, dtype: torch.dtype) -> Tensor:
    """All inputs normalised, images as (N, H + 2p, W + 2p, C) with a border of 0, the mean of normalised images."""
    padding = recipe.crop_padding if recipe.augment == "flip_crop" else 0
    parts = []
    for start in range(0, len(train), PREPARED_AT_ONCE):
        inputs = train.inputs(slice(start, min(start + PREPARED_AT_ONCE, len(train))))
        if inputs.ndim == 4:
            inputs = F.pad(inputs, (padding,) * 4).permute(0, 2, 3, 1)
        parts.append(inputs.to(dtype) if inputs.is_floating_point() else inputs)  # token ids stay whole numbers
    return torch.cat(parts).contiguous()


def scaled_update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    recipe: Recipe,
    lr: Tensor,
    *,
    scale: Tensor | None = None,
    growth: Tensor | None = None,
) -> None:
    """Update in place as :func:`comove.training.sgd.sgd_update` does, without asking the device for a number.

    With a loss scale, gradients that are NaN or infinite leave parameters and momenta as they are and halve the scale;
    2,000 updates without any double it (as ``torch.amp.GradScaler``, which waits for the device in every step).

    Args:
        parameters: in float32.
        gradients: of the scaled loss; used up.
        momenta: the momentum buffers.
        recipe: momentum and weight decay.
        lr: learning rate, a scalar on the device.
        scale: (1,) of the loss, ``None`` for 1.
        growth: (1,) int32, updates since the scale was last changed.
    """
    momentum: float | Tensor = recipe.momentum
    if scale is not None:
        found = torch.zeros_like(scale)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, scale.reciprocal())
        torch._amp_update_scale_(scale, growth, found, 2.0, 0.5, 2000)  # type: ignore[arg-type]
        bad = found[0] > 0
        lr = torch.where(bad, torch.zeros_like(lr), lr)
        momentum = torch.where(bad, 1.0, recipe.momentum)
    if recipe.weight_decay:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=recipe.weight_decay))
    if scale is not None:
        gradients = [torch.where(bad, torch.zeros_like(gradient), gradient) for gradient in gradients]
    if recipe.momentum:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
        steps = torch._foreach_add(gradients, momenta, alpha=recipe.momentum) if recipe.nesterov else momenta
    else:
        steps = gradients
    torch._foreach_sub_(parameters, torch._foreach_mul(list(steps), lr))


def trainer_for(
    spec: ModelSpec, train: Resident, recipe: Recipe, factory: str | Factory | None = None, *, compiled: bool = False
) -> CapturedTrainer:
    """The trainer for these, made when first asked for and kept beside the data: capture and compilation pay once."""
    key = (spec, recipe, factory, compiled)
    if key not in train.kept:
        train.kept[key] = CapturedTrainer(spec, train, recipe, factory, compiled=compiled)
    trainer: CapturedTrainer = train.kept[key]
    return trainer


def why_not_captured(
    spec: ModelSpec,
    train: Resident,
    recipe: Recipe,
    factory: str | Factory | None = None,
    *,
    compiled: bool = False,
) -> str | None:
    """Return why these models cannot be trained from a captured graph, or ``None`` when they can.

    Besides looking for dropout, whose draws a graph would repeat, it trains a model on two batches in both ways and
    compares how the weights have moved.
    """
    network = spec.build(0, factory)
    if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in network.modules()):
        return "dropout draws anew in every step"
    short = recipe.with_changes(epochs=1)
    positions = torch.arange(min(len(train), 2 * recipe.batch_size)).numpy()
    try:
        trainer = CapturedTrainer(spec, train, short, factory, compiled=compiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about what it leaves out
            found = trainer.train(Member(positions, 0)).state_dict()
        wanted = network.to(train.device)
        before = {name: value.clone() for name, value in wanted.state_dict().items()}
        fit(wanted, train.part(positions), short, seed=0, device=train.device)
    except Exception as error:  # whatever a network of the user's own, a driver or a compiler may raise
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    after = wanted.state_dict()
    moved = [name for name, value in after.items() if value.is_floating_point()]
    apart = sum(float((found[name] - after[name]).square().sum()) for name in moved)
    size = sum(float((after[name] - before[name]).square().sum()) for name in moved)
    if not apart <= APART[trainer.half or train.device.type] ** 2 * size:
        return f"its first updates are {(apart / max(size, 1e-30)) ** 0.5:.2g} of their size away from plain training's"
    return None
