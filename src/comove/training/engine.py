"""Training many models: side by side in groups, or one by one, whichever a short timing finds faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from comove.errors import InputError
from comove.models import Factory, ModelSpec
from comove.training.loop import Resident, batch_bounds, fit, one_thread, predict
from comove.training.recipe import Recipe
from comove.training.stacked import Member, Stack, place_matters, why_not_stacked

__all__ = ["Engine", "Trained", "choose_engine", "train_many"]

GROUPS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
"""Group sizes that are tried, until one is slower than a smaller one."""
FEW = 4
"""Fewer models than this are not worth a timing."""
LONG = 2.0
"""Seconds; where one step of one model takes longer, its layers are large enough by themselves."""
TRIAL, TRIALS = 0.1, 2.0
"""Seconds of measuring a group size, after one run to warm up; and after which no further size is tried."""
MEMORY = 512 << 20
"""Bytes that a group's activations and parameters may take (on a GPU: a quarter of what is free)."""


class Trained(NamedTuple):
    """One trained model: (Q, K) float32 logits on the queries in evaluation mode; its weights if they were asked for."""

    logits: npt.NDArray[np.float32]
    weights: dict[str, torch.Tensor] | None


@dataclass(frozen=True)
class Engine:
    """How many models are trained; the bits of a model depend on ``kind`` and ``group``.

    Args:
        kind: ``stacked`` (side by side in groups) or ``one-by-one``.
        group: models trained together; 1 for one-by-one.
        reason: why, with the seconds a model of both kinds where they were timed.

    Raises:
        InputError: an unknown kind, or a group that does not go with it.
    """

    kind: Literal["stacked", "one-by-one"]
    group: int
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in ("stacked", "one-by-one"):
            raise InputError(f"An engine is 'stacked' or 'one-by-one', not {self.kind!r}.")
        whole = isinstance(self.group, int) and not isinstance(self.group, bool)
        if not whole or self.group < 1 or (self.kind == "one-by-one" and self.group > 1):
            raise InputError(f"A group must be a whole number from 1 on, and 1 for one-by-one; got {self.group!r}.")

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Engine:
        """Read what :meth:`to_json` wrote.

        Raises:
            TypeError: an entry too many or too few.
            InputError: a value out of its range.
        """
        return cls(**content)


def train_many(
    spec: ModelSpec,
    train: Resident,
    query: Resident,
    members: Sequence[Member],
    recipe: Recipe,
    *,
    engine: Engine,
    factory: str | Factory | None = None,
    keep_weights: bool = False,
) -> list[Trained]:
    """Train a model for each member, and return them in the same order.

    A member's bits depend on its positions, its seed and ``engine`` alone: not on the other members, their order, or
    how they were spread over calls. Stacked, members with equally many examples are trained together, and a group that
    is not full is filled up with repetitions of its last member; where the arithmetic for such a size would depend on
    the place in the group, its members are trained one by one. On a CPU everything runs on one thread.

    Args:
        spec: the architecture.
        train: all training examples, on the device to train on.
        query: the examples to predict, on the same device.
        members: positions in ``train`` and a seed for each model.
        recipe: how to train.
        engine: from :func:`choose_engine`.
        factory: the user's own factory, as for :meth:`ModelSpec.build`.
        keep_weights: whether to return each model's parameters and buffers.

    Returns:
        One :class:`Trained` a member. A diverged model's logits are NaN or infinite.

    Raises:
        InputError: positions outside ``train``, repeated or fewer than two; an engine that cannot train these models.
    """
    for member in members:
        _check(member, len(train))
    found: dict[int, Trained] = {}
    with one_thread(train.device.type == "cpu"):
        if engine.kind == "stacked" and members and (obstacle := why_not_stacked(spec, train, recipe, factory)):
            raise InputError(f"These models cannot be trained stacked: {obstacle}. Use Engine('one-by-one', 1, '').")
        for size, places in _by_size(members).items():
            group = engine.group
            if engine.kind == "one-by-one" or place_matters(spec, train, recipe, group, size, factory):
                for place in places:
                    found[place] = _alone(spec, train, query, members[place], recipe, factory, keep_weights)
                continue
            for first in range(0, len(places), group):
                here = places[first : first + group]
                chosen = [members[place] for place in here]
                made = _stacked(spec, train, query, chosen, recipe, group, factory, keep_weights)
                found.update(zip(here, made, strict=True))
    return [found[place] for place in range(len(members))]


def _check(member: Member, size: int) -> None:
    positions = np.asarray(member.positions)
    if positions.ndim != 1 or positions.size < 2 or not np.issubdtype(positions.dtype, np.integer):
        raise InputError(f"A member needs a list of at least 2 positions, got {positions.dtype} {positions.shape}.")
    if positions.min() < 0 or positions.max() >= size or np.unique(positions).size < positions.size:
        raise InputError(f"A member's positions must be different numbers from 0 to {size - 1}.")


def _by_size(members: Sequence[Member]) -> dict[int, list[int]]:
    """Places of members with equally many examples."""
    places: dict[int, list[int]] = {}
    for place, member in enumerate(members):
        places.setdefault(len(member.positions), []).append(place)
    return places


def _stacked(
    spec: ModelSpec,
    train: Resident,
    query: Resident,
    members: Sequence[Member],
    recipe: Recipe,
    group: int,
    factory: str | Factory | None,
    keep_weights: bool,
) -> list[Trained]:
    padded = [*members, *[members[-1]] * (group - len(members))]
    stack = Stack([spec.build(member.seed, factory) for member in padded], recipe, train.device)
    stack.train(train, padded)
    return [
        Trained(logits_QK.numpy().copy(), stack.weights(place) if keep_weights else None)
        for place, logits_QK in islice(enumerate(stack.predict(query)), len(members))
    ]


def _alone(
    spec: ModelSpec,
    train: Resident,
    query: Resident,
    member: Member,
    recipe: Recipe,
    factory: str | Factory | None,
    keep_weights: bool,
) -> Trained:
    model = spec.build(member.seed, factory).to(train.device)
    fit(model, train.part(member.positions), recipe, seed=member.seed, device=train.device)
    weights = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
    return Trained(predict(model, query).numpy(), weights if keep_weights else None)


# --- the choice ----------------------------------------------------------------------------------------------------


def choose_engine(
    spec: ModelSpec, train: Resident, recipe: Recipe, size: int, *, models: int, factory: str | Factory | None = None
) -> Engine:
    """Time a few steps of one model alone and of groups side by side, and return the faster way.

    Of group sizes within a tenth of the best the smallest is taken: shorter jobs, less memory, fewer repetitions in the
    last group.

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
        if obstacle:
            return Engine("one-by-one", 1, obstacle)
        trial = _Trial(spec, train, recipe, size, factory)
        if trial.first > LONG:
            return Engine("one-by-one", 1, f"one step of one model takes {trial.first:.1f} s: nothing to gain")
        alone, grouped = trial.alone(), _time_groups(trial, models)
        best = min(grouped.values(), default=float("inf"))
        group = min((group for group, seconds in grouped.items() if seconds <= 1.1 * best), default=1)
        if not grouped:
            return Engine("one-by-one", 1, "two models side by side would take too much memory")
        timed = f"stacked {grouped[group]:.3g} s a model in groups of {group}, one by one {alone:.3g} s (timed)"
        if grouped[group] > alone:
            return Engine("one-by-one", 1, timed)
        if place_matters(spec, train, recipe, group, size, factory):
            return Engine("one-by-one", 1, f"a model's bits would depend on its place in a group; {timed}")
        return Engine("stacked", group, timed)


def _time_groups(trial: _Trial, models: int) -> dict[int, float]:
    """Seconds a model by group size, the repetitions that fill up the last group counted in."""
    found: dict[int, float] = {}
    for group in GROUPS:
        too_large = group * trial.memory_a_model() > trial.memory() or group >= 2 * models
        if too_large or trial.spent > TRIALS:
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
        self.spec, self.train, self.factory, self.spent = spec, train, factory, 0.0
        self.recipe = recipe.with_changes(epochs=1)
        self.steps_a_model = len(batch_bounds(size, recipe.batch_size)) * recipe.epochs
        self.positions = np.arange(min(size, recipe.batch_size))
        self.first = self._once(self._fitting())
        if self.first < TRIAL / 10:
            self.positions = np.arange(min(size, 8 * recipe.batch_size))

    def alone(self) -> float:
        """Seconds to train one model by itself."""
        return self._seconds(self._fitting())

    def stacked(self, group: int) -> float:
        """Seconds a model to train ``group`` side by side."""
        members = [Member(self.positions, seed) for seed in range(group)]
        stack = Stack([self.network(seed) for seed in range(group)], self.recipe, self.train.device)
        return self._seconds(lambda: stack.train(self.train, members)) / group

    def memory_a_model(self) -> int:
        """Bytes of one model in a step: what its forward pass keeps, and its parameters with gradient and momentum."""
        network, kept = self.network(0).to(self.train.device), {}
        rows = min(2, len(self.positions))

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(self.train.inputs(torch.arange(rows, device=self.train.device)))
        parameters = sum(parameter.nbytes for parameter in network.parameters())
        return sum(kept.values()) * self.recipe.batch_size // rows + 4 * parameters

    def memory(self) -> int:
        """Bytes that a group may take."""
        return torch.cuda.mem_get_info(self.train.device)[0] // 4 if self.train.device.type == "cuda" else MEMORY

    def network(self, seed: int) -> nn.Module:
        return self.spec.build(seed, self.factory)

    def _fitting(self) -> Callable[[], None]:
        model, part = self.network(0).to(self.train.device), self.train.part(self.positions)
        return lambda: fit(model, part, self.recipe, seed=0, device=self.train.device)

    def _seconds(self, work: Callable[[], None]) -> float:
        """The fastest of several runs, as seconds of a whole training."""
        self._once(work)
        taken = [self._once(work)]
        while sum(taken) < TRIAL:
            taken.append(self._once(work))
        steps = len(batch_bounds(len(self.positions), self.recipe.batch_size))
        return min(taken) / steps * self.steps_a_model

    def _once(self, work: Callable[[], None]) -> float:
        on_gpu = self.train.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.process_time  # which a busy machine lengthens less
        started = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize(self.train.device)
        taken = clock() - started
        self.spent += taken
        return taken
