"""A training function of the user's own, and what its models say about the queries.

    function(train_ids, seed) -> a module, or {"loss": (Q,), ...}

The function never travels to disk: a bank notes the name that the user gives it, and is only trained further when the
user passes a function of that name again.

Shape legend: M training examples of one subset, Q queries, B examples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from comove.checks import as_array, check_text
from comove.data import ExampleSet, Ids
from comove.data.batches import batch_size
from comove.errors import ComoveError, FingerprintError, InputError, InputTypeError, NonFiniteError, first_line, some
from comove.retraining.contents import OWN, Arrays, is_own
from comove.tasks import Classification, Task, check_values

__all__ = ["OwnTraining", "checked_outputs", "differing", "lower_names", "measured_outputs", "trained_outputs"]

Trained = nn.Module | Mapping[str, Any]
BATCH = 256
"""Queries in one forward pass."""
LONGEST_NAME = 100


@final
@dataclass(frozen=True)
class OwnTraining:
    """How models are trained that comove's own loop does not train: any function of ids and a seed.

    The function is given the ids of the examples to train on, (M,) int64 in the order that the bank has them, and a
    seed (0, 1, ... R-1, the same ones for every subset). It returns either an ``nn.Module``, whose ``"loss"`` and
    ``"measure"`` on the queries are then computed with ``task`` (and ``"correct"`` and ``"predicted"`` where the task
    has labels and the outputs are (B, C)), or those numbers themselves: a mapping of names to arrays (Q,), from
    anything. It must be deterministic in its arguments; ``bank.run(check=True)`` trains one model twice and compares.

    >>> mine = OwnTraining(lambda train_ids, seed: {"loss": train_ids[:2] / 10}, name="mine-1")
    >>> mine.lower
    ('loss',)

    Attributes:
        function: of (train_ids, seed).
        name: what the function is called in fingerprints: change it whenever the function changes.
        higher: by output, whether more of it is better; what is not named is so, but for ``"loss"``.
        task: what a module is measured with; by default :class:`comove.tasks.Classification`.
        outputs: the names that a mapping must have; by default those of the first model.
        flip: for :func:`comove.evaluation.brittleness` without classes: a function of a query's outputs with all
            examples (B,) and without the removed ones (R,) that says whether the prediction has flipped.

    Raises:
        InputTypeError: no function, no name, a task that is none.
        InputError: an empty or very long name.
    """

    function: Callable[[Ids, int], Trained]
    name: str
    higher: Mapping[str, bool] = field(default_factory=dict)
    task: Task | None = None
    outputs: tuple[str, ...] | None = None
    flip: Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], bool] | None = None

    def __post_init__(self) -> None:
        for what, value in (("function", self.function), ("flip", self.flip)):
            if not callable(value) and (what == "function" or value is not None):
                raise InputTypeError(f"OwnTraining: {what} must be a function, got {type(value).__name__}.")
        if not isinstance(self.name, str):
            raise InputTypeError(f"OwnTraining: name must be a string, got {type(self.name).__name__}.")
        if not 1 <= len(self.name) <= LONGEST_NAME:
            raise InputError(f"OwnTraining: name must have 1 to {LONGEST_NAME} characters, got {len(self.name)}.")
        check_text([self.name], "OwnTraining: name")
        if not isinstance(self.higher, Mapping) or not all(isinstance(value, bool) for value in self.higher.values()):
            raise InputTypeError(
                'OwnTraining: higher must be a mapping of outputs to True or False, as {"loss": False}.'
            )
        if self.task is not None and not isinstance(self.task, Task):
            raise InputTypeError(f"OwnTraining: task must be a Task of comove.tasks, got {type(self.task).__name__}.")
        if self.outputs is not None:
            if isinstance(self.outputs, str):
                raise InputTypeError("OwnTraining: outputs must be a list of names, got one string.")
            object.__setattr__(self, "outputs", tuple(self.outputs))
            check_names(self.outputs, f"OwnTraining {self.name!r}: outputs")

    @property
    def lower(self) -> tuple[str, ...]:
        """The outputs of which less is better, sorted."""
        return lower_names(self.higher)

    def to_json(self) -> dict[str, Any]:
        """What manifests say of it: nothing of the function but its name."""
        outputs = None if self.outputs is None else sorted(self.outputs)
        task = None if self.task is None else self.task.name
        return {"name": self.name, "lower": list(self.lower), "outputs": outputs, "task": task}

    def measured_by(self, task: Task | None) -> OwnTraining:
        """The same with this task, where one is given.

        Raises:
            InputError: it has another one already.
        """
        if task is None or self.task is None:
            return self if task is None else replace(self, task=task)
        if not isinstance(task, Task) or task.name != self.task.name:
            raise InputError(f"OwnTraining {self.name!r} has the task {self.task.name}; leave out task=, or {task!r}.")
        return self

    def check_same(self, identity: Mapping[str, Any], where: object) -> None:
        """Refuse a bank whose models another function trains.

        Raises:
            FingerprintError: the message shows both.
        """
        if not is_own(identity):
            raise FingerprintError(
                f"The models of {where} are trained by comove ({identity['model'].get('name')}), not by a function of "
                f"your own, {self.name!r}: leave out training=, or use another folder."
            )
        found, own = identity[OWN], self.to_json()
        changed = [
            f"{name} {found.get(name)!r} there, {own[name]!r} here" for name in own if found.get(name) != own[name]
        ]
        if changed:
            raise FingerprintError(
                f"The models of {where} are trained by another function of your own: {'; '.join(changed)}. Pass the "
                "OwnTraining that the bank was made with, or make a bank in a new folder."
            )


def lower_names(higher: Mapping[str, bool]) -> tuple[str, ...]:
    """The outputs of which less is better, sorted: those said to be so, and ``"loss"`` unless said otherwise."""
    return tuple(sorted(name for name, more in {"loss": False, **higher}.items() if not more))


# --- what models say ------------------------------------------------------------------------------------------------


def trained_outputs(own: OwnTraining, train_ids: Ids, seed: int, queries: ExampleSet | None, size: int) -> Arrays:
    """Train one model, and return its outputs on the queries.

    Args:
        own: with the function.
        train_ids: (M,).
        seed: passed on.
        queries: the Q queries; needed where the function returns a module.
        size: Q.

    Raises:
        InputError: the function raised; it returned a module, and the queries are ids alone; outputs of another length.
        InputTypeError: it returned something else; outputs that are no numbers.
        NonFiniteError: outputs that are NaN or infinite.
    """
    who = f"The training function {own.name!r}"
    try:
        found = own.function(train_ids.copy(), seed)
    except ComoveError:
        raise
    except Exception as error:  # whatever a user's function may raise
        raise InputError(
            f"{who} raised {type(error).__name__} for {train_ids.size} ids and seed {seed}: {first_line(error)}"
        ) from error
    if isinstance(found, nn.Module):
        if queries is None:
            raise InputError(
                f"{who} returned a module, and this bank knows its queries by their ids alone: pass queries= as an "
                "ExampleSet, or return the outputs, a mapping of names to arrays."
            )
        found = measured_outputs(found, queries, own.task or Classification())
    return checked_outputs(found, size, who)


def measured_outputs(model: nn.Module, queries: ExampleSet, task: Task) -> dict[str, npt.NDArray[Any]]:
    """A model's outputs on the queries, each (Q,), in evaluation mode and batch by batch.

    Raises:
        InputError: the task and the model do not fit.
        NonFiniteError: a loss or measured output that is NaN or infinite.
    """
    tensor = next(chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    parts: list[dict[str, Tensor]] = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(queries), BATCH):
            batch = queries.collated(np.arange(start, min(start + BATCH, len(queries))), device)
            found, size = task.outputs(model, batch), batch_size(batch)
            one = {"loss": check_values(task.loss(found, batch), size, "loss", task)}
            one["measure"] = check_values(task.measure(found, batch), size, "measure", task)
            classes = task.labels(batch)
            if classes is not None and isinstance(found, Tensor) and found.ndim == 2:
                one["predicted"] = found.argmax(1)
                one["correct"] = one["predicted"] == classes
            parts.append(one)
    return {name: torch.cat([_plain(part[name]) for part in parts]).numpy() for name in parts[0]}


def _plain(tensor: Tensor) -> Tensor:
    kept = tensor.detach().cpu()
    return kept.float() if kept.dtype in (torch.float16, torch.bfloat16) else kept


def check_names(names: Sequence[object], who: str) -> None:
    """Refuse names of outputs that are no short strings, repeated, or text that UTF-8 cannot hold."""
    if not names or not all(isinstance(name, str) and 1 <= len(name) <= LONGEST_NAME for name in names):
        raise InputTypeError(f"{who} must be named by strings, as 'loss'; got {some(map(repr, names)) or 'none'}.")
    if len(set(names)) < len(names):
        raise InputError(f"{who} must have different names, got {some(names)}.")
    check_text(names, f"{who}: a name")


def checked_outputs(found: object, size: int, who: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Check outputs, and return them as arrays (Q,) of float32 where they were that, else float64.

    Args:
        found: a mapping of names to arrays (Q,).
        size: Q.
        who: for messages.
        names: those that there must be.

    Raises:
        InputTypeError: no mapping, no numbers.
        InputError: other lengths, missing or unexpected names.
        NonFiniteError: NaN or infinity.
    """
    if not isinstance(found, Mapping):
        raise InputTypeError(
            f"{who} must give an nn.Module, or a mapping of names to arrays ({size},); got {type(found).__name__}."
        )
    check_names(list(found), f"{who}: outputs")
    if names is not None and set(found) != set(names):
        missing, others = sorted(set(names) - set(found)), sorted(set(found) - set(names))
        parts = [f"{some(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
        parts += [f"{some(others)} {'is' if len(others) == 1 else 'are'} unexpected"] if others else []
        raise InputError(f"{who} must give the outputs {some(names)}, as every model of the bank: {', '.join(parts)}.")
    return {str(name): _checked(values, size, f"{who}: {name!r}") for name, values in found.items()}


def _checked(values: Any, size: int, what: str) -> npt.NDArray[Any]:
    array = as_array(values, what)
    if array.dtype.kind not in "fiub":
        raise InputTypeError(f"{what} must be real numbers, one per query, got an array of {array.dtype}.")
    if array.shape != (size,):
        raise InputError(f"{what} must be one number per query, ({size},), got shape {array.shape}.")
    plain = np.ascontiguousarray(array, np.float32 if array.dtype == np.float32 else np.float64)
    bad = np.flatnonzero(~np.isfinite(plain))
    if bad.size:
        raise NonFiniteError(
            f"{what} is NaN or infinite for {bad.size} of {size} queries, at positions {some(bad.tolist())}: the model "
            "may have diverged."
        )
    return plain


def differing(first: Arrays, second: Arrays) -> list[str]:
    """Names of outputs that are not the same in both."""
    names = dict.fromkeys((*first, *second))
    return [
        name
        for name in names
        if name not in first or name not in second or not np.array_equal(first[name], second[name])
    ]
