"""One model after another on a GPU, in a network that ``torch.compile(mode="reduce-overhead")`` has compiled once.

The compiler fuses kernels and replays forward and backward pass as CUDA graphs, so that a step does not wait for its
kernels to be launched one by one. Everything else is :func:`comove.training.fit`, which is all there is on a CPU. Every
model is trained in the same network, whose weights are replaced: compiling takes a minute and pays for many models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from comove.models import Factory, ModelSpec, put_channels_last
from comove.training.loop import Resident, StopEarly, fit
from comove.training.many.stacked import Member
from comove.training.recipe import Recipe

__all__ = ["CompiledTrainer", "trainer_for", "why_not_compiled"]

TOLERANCE = {"float32": 0.05, "float16": 0.2, "bfloat16": 0.3}
"""How far the first updates may be from those of the eager loop, relative to their size, by precision; float32 products
of a GPU may be TensorFloat-32."""


class CompiledTrainer:
    """Trains models of one architecture and recipe on parts of one data set, on a GPU in a compiled network.

    Args:
        spec: the architecture.
        train: all training examples, on the device to train on.
        recipe: how to train.
        factory: the user's own factory, as for :meth:`ModelSpec.build`.
    """

    def __init__(self, spec: ModelSpec, train: Resident, recipe: Recipe, factory: str | Factory | None = None) -> None:
        self.spec, self.data, self.recipe, self.factory = spec, train, recipe, factory
        self.network = spec.build(0, factory).to(train.device)
        if recipe.channels_last:
            put_channels_last(self.network)
        self.forward = _compiled(self.network) if train.device.type == "cuda" else None

    def train(self, member: Member, trial_epochs: int | None = None, validation: Resident | None = None) -> nn.Module:
        """Train one model, and return the network with its weights, in evaluation mode; the next call reuses it.

        Args:
            member: its training examples and its seed.
            trial_epochs: instead of the recipe's, none of which early stopping leaves out.
            validation: the examples that early stopping goes by.
        """
        fresh = self.spec.build(member.seed, self.factory).state_dict()
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                value.copy_(fresh[name])  # in place: graphs read weights where they were when captured
        recipe = self.recipe if trial_epochs is None else self.recipe.shortened(trial_epochs)
        fit(
            self.network,
            self.data.part(member.positions),
            recipe,
            seed=member.seed,
            device=self.data.device,
            forward=self.forward,
            ended=StopEarly.of(self.network, recipe, validation),
            loss_weights=None if member.loss_weights is None else torch.from_numpy(member.loss_weights),
        )
        return self.network


def _compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network compiled for each batch size by itself, and whole or not at all.

    What was compiled for other trainers is forgotten: beyond a number of versions of one function the compiler would
    run it as it is without a word.
    """
    torch.compiler.reset()
    compiled = torch.compile(network, mode="reduce-overhead", dynamic=False, fullgraph=True)

    begin_step: Callable[[], None] = torch.compiler.cudagraph_mark_step_begin

    def forward(inputs: Tensor) -> Tensor:
        begin_step()  # gradients of the step before may be overwritten now
        logits: Tensor = compiled(inputs)
        return logits

    return forward


def trainer_for(
    spec: ModelSpec, train: Resident, recipe: Recipe, factory: str | Factory | None = None
) -> CompiledTrainer:
    """The trainer for these, made when first asked for and kept beside the data, so that it compiles once."""
    key = ("compiled", spec, recipe, factory)
    if key not in train.kept:
        train.kept[key] = CompiledTrainer(spec, train, recipe, factory)
    trainer: CompiledTrainer = train.kept[key]
    return trainer


def why_not_compiled(
    spec: ModelSpec, train: Resident, recipe: Recipe, factory: str | Factory | None = None
) -> str | None:
    """Return why these models cannot be trained in a compiled network, or ``None`` when they can.

    It trains a model on two batches in both ways and compares how the weights have moved: a compiler may be wrong, and
    draws dropout otherwise than the eager loop does.
    """
    positions = torch.arange(min(len(train), 2 * recipe.batch_size)).numpy()
    wanted = spec.build(0, factory).to(train.device)
    before = {name: value.clone() for name, value in wanted.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about what it leaves out
            found = trainer_for(spec, train, recipe, factory).train(Member(positions, 0), 1).state_dict()
        fit(wanted, train.part(positions), recipe.shortened(1), seed=0, device=train.device)
    except Exception as error:  # whatever a network of the user's own, a driver or a compiler may raise
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    after = wanted.state_dict()
    moved = [name for name, value in after.items() if value.is_floating_point()]
    difference = sum(float((found[name] - after[name]).square().sum()) for name in moved)
    size = sum(float((after[name] - before[name]).square().sum()) for name in moved)
    if not difference <= TOLERANCE[recipe.precision] ** 2 * size:
        relative = (difference / max(size, 1e-30)) ** 0.5
        return f"its first updates differ from the eager loop's by {relative:.2g} of their size"
    return None
