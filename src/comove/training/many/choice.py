"""Which way of training many models is the faster: by a rule, the same on every machine, or by a short timing here.

Banks go by the rule (:func:`engines_for`): a model's bits depend on the engine, and what is timed differs from machine
to machine and with the number of models asked for. :func:`choose_engine` measures, for those who then name what it
found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from comove.data import ExampleSet
from comove.errors import InputError
from comove.models import Factory, ModelSpec
from comove.training.loop import Resident, batch_bounds, fit, one_thread
from comove.training.many.compiled import trainer_for, why_not_compiled
from comove.training.many.engine import Engine, Engines
from comove.training.many.stacked import COMPARED, Member, Stack, place_matters, why_not_stacked
from comove.training.randomness import seeded
from comove.training.recipe import Recipe

__all__ = ["choose_engine", "engines_for"]

SIDE_BY_SIDE = {"dense": 6_000_000, "convolutional": 12_000_000}
"""Multiply-adds of a step (a batch forward) below which networks gain by standing side by side on a processor: beyond,
their layers are large enough by themselves, and grouped convolutions and batched products are the slower. Measured."""
TOGETHER, TOGETHER_ON_GPU = 16, 256
"""Models of a group by the rule: multiples of :data:`comove.training.many.side_by_side.ALIGNED`."""
FEW = 4
"""Fewer models than this are not worth a timing."""
GROUPS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
"""Group sizes that are tried, until one is slower than a smaller one."""
LONG = 2.0
"""Seconds; where one step of one model takes longer, its layers are large enough by themselves."""
TRIAL, TRIALS = 0.1, 2.0
"""Seconds of measuring a group size, after one run to warm up; and after which no further size is tried."""
STEPS, STEPS_ON_GPU = 8, 64
"""Steps of a timed run, where they are short; a GPU's wait for each model's weights must not count as theirs."""
COMPILING = 120.0
"""Seconds that compiling may take; it is tried where all models will take far longer."""
MEMORY = 512 << 20
"""Bytes that a group's activations and parameters may take (on a GPU: a quarter of what is free)."""


def engines_for(spec: ModelSpec, train: ExampleSet, recipe: Recipe, factory: str | Factory | None = None) -> Engines:
    """How models of this kind are trained by default: by the network and the recipe alone, without a clock.

    So it is the same on every machine, and whether three models are asked for or three thousand. Small networks that
    can stand side by side are trained in groups of 16 (on a GPU 256), filled up by repetition. All others are trained
    one by one; on a GPU in a compiled network, where that is right.

    Args:
        spec: the architecture.
        train: the training examples; a few of them are passed through the network.
        recipe: how the models will be trained.
        factory: the user's own factory, as for :meth:`ModelSpec.build`.
    """
    few = Resident(train.subset(train.ids[: 2 * COMPARED]), torch.device("cpu"))
    with one_thread():
        obstacle = _too_large(spec, few, recipe, factory) or why_not_stacked(spec, few, recipe, factory)
    reason = obstacle or "small layers gain by standing side by side"
    cpu = Engine("one-by-one", 1, reason) if obstacle else Engine("stacked", TOGETHER, reason)
    scaled = recipe.precision == "float16"  # the loss scale would be shared by a group
    cuda = Engine("captured", 1, reason) if obstacle or scaled else Engine("stacked", TOGETHER_ON_GPU, reason)
    return Engines(cpu, cuda)


def _too_large(spec: ModelSpec, few: Resident, recipe: Recipe, factory: str | Factory | None) -> str | None:
    """Why the layers of this network are too large to gain by standing side by side, if they are."""
    network = spec.build(0, factory)
    convolves = any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in network.modules())
    limit = SIDE_BY_SIDE["convolutional" if convolves else "dense"]
    if recipe.batch_size * sum(parameter.numel() for parameter in network.parameters()) > limit:
        return "its layers are large enough by themselves"  # at least as many multiply-adds as parameters
    try:
        work = recipe.batch_size * _multiply_adds(network, few)
    except Exception as error:  # whatever a network of the user's own may raise; training it will tell
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None if work <= limit else "its layers are large enough by themselves"


def _multiply_adds(network: nn.Module, few: Resident) -> int:
    """Of the linear and convolutional layers, for one example."""
    found = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal found
        places = output[0].numel() // (output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1])
        found += module.weight.numel() * places  # type: ignore[operator]  # a layer's weight is a tensor

    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), seeded(0, device=few.device):
            network.eval()(few.inputs(torch.arange(1)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def choose_engine(
    spec: ModelSpec, train: Resident, recipe: Recipe, size: int, *, models: int, factory: str | Factory | None = None
) -> Engine:
    """Time a few steps of one model alone and of groups side by side, and return the faster way.

    Of group sizes within a twentieth of the best the smallest is taken: shorter jobs, less memory, fewer repetitions in
    the last group.

    Args:
        spec: the architecture.
        train: the training examples, on the device to train on.
        recipe: how the models will be trained.
        size: training examples of one model.
        models: how many models there will be.
        factory: the user's own factory, as for :meth:`ModelSpec.build`.

    Raises:
        InputError: a size below 2 or above the number of examples.
    """
    if not 2 <= size <= len(train):
        raise InputError(f"size must be from 2 to {len(train)}, the number of training examples; got {size}.")
    if models < FEW:
        return Engine("one-by-one", 1, f"{models} models are too few to time")
    with one_thread(train.device.type == "cpu"):
        obstacle = why_not_stacked(spec, train, recipe, factory)
        on_gpu = train.device.type == "cuda"
        if obstacle and not on_gpu:
            return Engine("one-by-one", 1, obstacle)
        trial = _Trial(spec, train, recipe, size, factory)
        if trial.first > LONG:
            return Engine("one-by-one", 1, f"one step of one model takes {trial.first:.1f} s: nothing to gain")
        plain, seconds = _eager(trial, models, obstacle)
        return _compiled(trial, models, plain, seconds) if on_gpu else plain


def _eager(trial: _Trial, models: int, obstacle: str | None) -> tuple[Engine, float]:
    """The faster of one by one and stacked, and its seconds a model."""
    alone, grouped = trial.alone(), {} if obstacle else _time_groups(trial, models)
    best = min(grouped.values(), default=float("inf"))
    group = min((group for group, seconds in grouped.items() if seconds <= 1.05 * best), default=1)
    if not grouped:
        reason = obstacle or "two models side by side would take too much memory"
        return Engine("one-by-one", 1, reason), alone
    timed = f"stacked {grouped[group]:.3g} s a model in groups of {group}, one by one {alone:.3g} s (timed)"
    if grouped[group] > alone:
        return Engine("one-by-one", 1, timed), alone
    if place_matters(trial.spec, trial.train, trial.recipe, group, trial.size, trial.factory):
        return Engine("one-by-one", 1, f"a model's bits would depend on its place in a group; {timed}"), alone
    return Engine("stacked", group, timed), grouped[group]


def _compiled(trial: _Trial, models: int, plain: Engine, seconds: float) -> Engine:
    """The plain engine, or training in a compiled network where that is right, faster and pays for compiling."""
    if models * seconds < 3 * COMPILING:
        return plain
    if obstacle := why_not_compiled(trial.spec, trial.train, trial.recipe, trial.factory):
        return replace(plain, reason=f"{plain.reason}; captured: {obstacle}")
    compiled = trial.compiled()
    timed = f"{plain.kind} {seconds:.3g} s a model, captured {compiled:.3g} s a model (timed)"
    return Engine("captured", 1, timed) if compiled < seconds else replace(plain, reason=f"{timed}; {plain.reason}")


def _time_groups(trial: _Trial, models: int) -> dict[int, float]:
    """Seconds a model by group size, the repetitions that fill up the last group counted in."""
    found: dict[int, float] = {}
    largest = min(trial.memory() // trial.memory_a_model(), 2 * models - 1)
    for group in GROUPS:
        if group > largest or trial.spent > TRIALS:
            break
        found[group] = trial.stacked(group) * group * -(-models // group) / models
        if found[group] > 1.1 * min(found.values()):
            break
    return found


class _Trial:
    """A few steps of training, timed."""

    def __init__(
        self, spec: ModelSpec, train: Resident, recipe: Recipe, size: int, factory: str | Factory | None
    ) -> None:
        self.spec, self.train, self.factory, self.size, self.spent = spec, train, factory, size, 0.0
        self.recipe = recipe.shortened(1)
        self.steps_a_model = len(batch_bounds(size, recipe)) * recipe.epochs
        self.positions = np.arange(min(size, recipe.batch_size))
        on_gpu = train.device.type == "cuda"
        if on_gpu:
            self._once(self._fitting())  # libraries are loaded, kernels chosen
            self.spent = 0.0
        self.first = self._once(self._fitting())
        if self.first < TRIAL / 10 or on_gpu:
            self.positions = np.arange(min(size, (STEPS_ON_GPU if on_gpu else STEPS) * recipe.batch_size))

    def alone(self) -> float:
        """Seconds to train one model by itself."""
        return self._seconds(self._fitting())

    def stacked(self, group: int) -> float:
        """Seconds a model to train ``group`` side by side."""
        members = [Member(self.positions, seed) for seed in range(group)]
        stack = Stack([self.network(seed) for seed in range(group)], self.recipe, self.train.device)
        return self._seconds(lambda: stack.train(self.train, members)) / group

    def compiled(self) -> float:
        """Seconds to train one model in a compiled network, compilation left out."""
        trainer = trainer_for(self.spec, self.train, self.recipe, self.factory)
        member = Member(self.positions, 0)
        return self._seconds(lambda: trainer.train(member))

    def memory_a_model(self) -> int:
        """Bytes of one model in a step: what its forward pass keeps, and its parameters with gradient and averages."""
        network, kept = self.network(0).to(self.train.device), {}
        rows = min(2, len(self.positions))

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(self.train.inputs(torch.arange(rows, device=self.train.device)))
        parameters = sum(parameter.nbytes for parameter in network.parameters())
        copies = 4 + (self.recipe.optimizer == "adamw") + (self.recipe.ema is not None)
        return sum(kept.values()) * self.recipe.batch_size // rows + copies * parameters

    def memory(self) -> int:
        """Bytes that a group may take."""
        return torch.cuda.mem_get_info(self.train.device)[0] // 4 if self.train.device.type == "cuda" else MEMORY

    def network(self, seed: int) -> nn.Module:
        return self.spec.build(seed, self.factory)

    def _fitting(self) -> Callable[[], None]:
        model, part = self.network(0).to(self.train.device), self.train.part(self.positions)
        return lambda: fit(model, part, self.recipe, seed=0, device=self.train.device)

    def _seconds(self, work: Callable[[], object]) -> float:
        """The fastest of several runs, as seconds of a whole training."""
        self._once(work)
        taken = [self._once(work)]
        while sum(taken) < TRIAL:
            taken.append(self._once(work))
        steps = len(batch_bounds(len(self.positions), self.recipe))
        return min(taken) / steps * self.steps_a_model

    def _once(self, work: Callable[[], object]) -> float:
        on_gpu = self.train.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.process_time  # which a busy machine lengthens less
        started = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize(self.train.device)
        taken = clock() - started
        self.spent += taken
        return taken
