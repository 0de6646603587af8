"""Training many models: side by side in groups, or one by one; see :mod:`comove.training.many.choice` for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from comove.errors import InputError
from comove.models import Factory, ModelSpec
from comove.store import entries
from comove.training.loop import Resident, StopEarly, fit, one_thread, predict
from comove.training.many.compiled import trainer_for
from comove.training.many.stacked import Member, Stack, place_matters, why_not_stacked
from comove.training.recipe import Recipe

__all__ = ["Engine", "Engines", "Trained", "train_many"]

KINDS = ("stacked", "one-by-one", "captured", "compiled")


class Trained(NamedTuple):
    """A trained model: its (Q, K) float32 logits on the queries in evaluation mode, and its weights if asked for."""

    logits: npt.NDArray[np.float32]
    weights: dict[str, torch.Tensor] | None


@dataclass(frozen=True)
class Engine:
    """How many models are trained; the bits of a model depend on ``kind`` and ``group``.

    Args:
        kind: ``stacked`` (side by side in groups), ``one-by-one``; or, one by one too, ``captured``: on a GPU in a
            compiled network, replayed as a CUDA graph (:mod:`comove.training.many.compiled`). ``compiled`` is the same
            and in the manifests of older banks.
        group: models trained together; 1 unless stacked.
        reason: why, with the seconds a model of each kind that was timed.

    Raises:
        InputError: an unknown kind, or a group that does not go with it.
    """

    kind: Literal["stacked", "one-by-one", "captured", "compiled"]
    group: int
    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise InputError(f"An engine is one of {', '.join(KINDS)}, not {self.kind!r}.")
        whole = isinstance(self.group, int) and not isinstance(self.group, bool)
        if not whole or self.group < 1 or (self.kind != "stacked" and self.group > 1):
            raise InputError(f"A group must be a whole number from 1 on, and 1 unless stacked; got {self.group!r}.")

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Engine:
        """Read what :meth:`to_json` wrote.

        Raises:
            CorruptFileError: an entry that is missing or of another type.
            InputError: a value out of its range.
        """
        return cls(**entries(content, "an engine", {"kind": str, "group": int, "reason": str}))

    def same_bits(self, other: Engine) -> bool:
        """Whether a model comes out alike: the reason does not count."""
        return (self.kind, self.group) == (other.kind, other.group)


@dataclass(frozen=True)
class Engines:
    """How many models are trained on a processor and on a GPU; part of a retraining bank's identity.

    Args:
        cpu: the engine on a processor.
        cuda: the engine on a GPU.
    """

    cpu: Engine
    cuda: Engine

    def on(self, device_type: str) -> Engine:
        """The engine on a kind of device, ``"cpu"`` or ``"cuda"``."""
        return self.cuda if device_type == "cuda" else self.cpu

    def to_json(self) -> dict[str, Any]:
        """A JSON object: kind and group for each kind of device; not the reasons, which decide no bit."""
        return {
            name: {"kind": engine.kind, "group": engine.group}
            for name, engine in (("cpu", self.cpu), ("cuda", self.cuda))
        }

    @classmethod
    def from_json(cls, content: object) -> Engines:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: anything else.
        """
        devices = content if isinstance(content, Mapping) else {}
        found = {name: entry for name, entry in devices.items() if isinstance(entry, Mapping)}
        if found.keys() != {"cpu", "cuda"} or any(entry.keys() != {"kind", "group"} for entry in found.values()):
            raise InputError(f"Engines are a kind and a group for cpu and for cuda, not {str(content)[:200]}.")
        return cls(**{name: Engine(**entry, reason="noted") for name, entry in found.items()})


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
    validation: Resident | None = None,
) -> list[Trained]:
    """Train a model for each member, and return them in the same order.

    On a CPU, where everything here runs on one thread, a member's bits depend on its positions, its seed and ``engine``
    alone: not on the other members, their number and order, or how they were spread over calls. Stacked, members with
    equally many examples are trained together, and a group that is not full is filled up with repetitions of its last
    member; where the arithmetic for such a size would depend on the place in the group, its members are trained one by
    one. On a GPU, where kernels add in whatever order, no bits are promised.

    Args:
        spec: the architecture.
        train: all training examples, on the device to train on.
        query: the examples to predict, on the same device.
        members: positions in ``train`` and a seed for each model, and what the losses count there.
        recipe: how to train.
        engine: from :func:`comove.training.choose_engine`.
        factory: the user's own factory, as for :meth:`ModelSpec.build`.
        keep_weights: whether to return each model's parameters and buffers.
        validation: the examples that early stopping goes by, where the recipe asks for it.

    Returns:
        One :class:`Trained` a member. A diverged model's logits are NaN or infinite.

    Raises:
        InputError: positions outside ``train``, repeated or fewer than two; an engine that cannot train these models;
            early stopping without validation examples.
    """
    for member in members:
        _check(member, len(train))
    task = _Task(spec, train, query, recipe, factory, keep_weights, validation)
    found: dict[int, Trained] = {}
    with one_thread(train.device.type == "cpu"):
        if engine.kind == "stacked" and members and (obstacle := why_not_stacked(spec, train, recipe, factory)):
            raise InputError(f"These models cannot be trained stacked: {obstacle}. Use Engine('one-by-one', 1, '').")
        for size, places in _by_size(members).items():
            group = engine.group
            alone = engine.kind != "stacked" or _place_matters(task, group, size)
            for first in range(0, len(places), group):
                here = [members[place] for place in places[first : first + group]]
                made = [_alone(task, member, engine) for member in here] if alone else _stacked(task, here, group)
                found.update(zip(places[first:], made, strict=False))
    return [found[place] for place in range(len(members))]


def _place_matters(task: _Task, group: int, size: int) -> bool:
    """As :func:`place_matters`, asked once for all jobs on these data."""
    made_by = (task.factory, task.spec.factory)  # kept too, so that no other function gets their ids
    key = ("place matters", task.spec, task.recipe, *map(id, made_by), group, size)
    if key not in task.train.kept:
        matters = place_matters(task.spec, task.train, task.recipe, group, size, task.factory)
        task.train.kept[key] = (matters, made_by)
    found: bool = task.train.kept[key][0]
    return found


def _check(member: Member, size: int) -> None:
    positions = np.asarray(member.positions)
    if positions.ndim != 1 or positions.size < 2 or not np.issubdtype(positions.dtype, np.integer):
        raise InputError(f"A member needs a list of at least 2 positions, got {positions.dtype} {positions.shape}.")
    if positions.min() < 0 or positions.max() >= size or np.unique(positions).size < positions.size:
        raise InputError(f"A member's positions must be different numbers from 0 to {size - 1}.")
    weights = member.loss_weights
    if weights is not None and (weights.shape != positions.shape or not np.isfinite(weights).all()):
        raise InputError(f"A member's loss weights must be {positions.size} finite numbers, one a position.")


def _by_size(members: Sequence[Member]) -> dict[int, list[int]]:
    """Places of members with equally many examples."""
    places: dict[int, list[int]] = {}
    for place, member in enumerate(members):
        places.setdefault(len(member.positions), []).append(place)
    return places


class _Task(NamedTuple):
    """What all members share."""

    spec: ModelSpec
    train: Resident
    query: Resident
    recipe: Recipe
    factory: str | Factory | None
    keep_weights: bool
    validation: Resident | None


def _stacked(task: _Task, members: Sequence[Member], group: int) -> list[Trained]:
    padded = [*members, *[members[-1]] * (group - len(members))]
    networks = [task.spec.build(member.seed, task.factory) for member in padded]
    stack = Stack(networks, task.recipe, task.train.device)
    stack.train(task.train, padded)
    return [
        Trained(logits_QK.numpy().copy(), stack.weights(place) if task.keep_weights else None)
        for place, logits_QK in islice(enumerate(stack.predict(task.query)), len(members))
    ]


def _alone(task: _Task, member: Member, engine: Engine) -> Trained:
    if engine.kind in ("captured", "compiled"):
        trainer = trainer_for(task.spec, task.train, task.recipe, task.factory)
        model = trainer.train(member, validation=task.validation)
    else:
        device = task.train.device
        model = task.spec.build(member.seed, task.factory).to(device)
        ended = StopEarly.of(model, task.recipe, task.validation)
        weights = None if member.loss_weights is None else torch.from_numpy(member.loss_weights)
        part = task.train.part(member.positions)
        fit(model, part, task.recipe, seed=member.seed, device=device, ended=ended, loss_weights=weights)
    state = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
    return Trained(predict(model, task.query).numpy(), state if task.keep_weights else None)
