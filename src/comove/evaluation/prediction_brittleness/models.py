"""The models that brittleness asks: trained without what is removed, or on everything.

Shape suffixes: C removed sets, Q queries, R models per set, B voting models, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from comove.checks import whole_number
from comove.data import Ids, Splits, positions_of
from comove.errors import CorruptFileError
from comove.evaluation.prediction_brittleness.flips import majority
from comove.evaluation.prediction_brittleness.own_models import Answers, OwnRetraining
from comove.evaluation.prediction_brittleness.removal import Removal
from comove.jobs import Compute
from comove.models import Factory
from comove.models.measured_outputs import output_of
from comove.retraining import subsets
from comove.retraining.bank import RetrainingBank
from comove.retraining.contents import OWN
from comove.retraining.own import OwnTraining
from comove.training import Training, as_training

__all__ = ["BankRetraining", "FullData", "Retraining", "answers_without", "check_models", "training_and_seed"]

Logits = npt.NDArray[np.float32]
BANK_FOLDER = "removal-bank"
SETS_AT_ONCE = 256
"""Removed sets whose logits are held at a time: only those of a set's own query are kept."""


class Retraining(Protocol):
    """Where retrained models' logits come from."""

    def full(self, models: int) -> Logits:
        """Logits (models, Q, classes) of models of all training examples."""

    def without(self, removed: Sequence[Ids], queries: Sequence[int], models: int) -> Logits:
        """Logits (C, models, classes) of models without each removed set, on its own query (a position 0 ... Q-1)."""


@dataclass(frozen=True)
class BankRetraining:
    """Retraining through a bank: models of equal removed sets, of whatever method or k, are trained once.

    Attributes:
        plan: makes (or opens) the bank with these subsets and this number of models per subset.
        run: trains what is pending.
    """

    plan: Callable[[subsets.SubsetPlan, int], RetrainingBank]
    run: Callable[[RetrainingBank], RetrainingBank]

    @classmethod
    def at(
        cls,
        folder: Path,
        splits: Splits,
        training: Training | OwnTraining,
        *,
        queries: Ids,
        compute: Compute,
    ) -> BankRetraining:
        """Retraining in the bank ``folder/removal-bank``; see :meth:`RetrainingBank.create`.

        With a training function of the user's own the bank holds the whole query split, because only that function
        decides which queries it answers.
        """
        bank, asked = folder / BANK_FOLDER, None if isinstance(training, OwnTraining) else queries

        def plan(chosen: subsets.SubsetPlan, models: int) -> RetrainingBank:
            return RetrainingBank.create(bank, splits, training, subsets=chosen, seeds=models, queries=asked)

        return cls(plan, lambda bank: bank.run(executor=compute.on(), device=compute.device, progress=compute.progress))

    def full(self, models: int) -> Logits:
        """Logits (models, Q, classes) of models of all training examples."""
        return _complete(self.run(self.plan(subsets.everything(), models)).logits()[0, :models])

    def without(self, removed: Sequence[Ids], queries: Sequence[int], models: int) -> Logits:
        """Logits (C, models, classes) of models without each removed set, on its own query (a position 0 ... Q-1)."""
        return _complete(self.read(removed, queries, models, lambda part: part.logits()))

    def read(
        self,
        removed: Sequence[Ids],
        queries: Sequence[int],
        models: int,
        values: Callable[[RetrainingBank], npt.NDArray[Any]],
    ) -> npt.NDArray[Any]:
        """What ``values`` reads of a part (C, R, Q, ...), for each removed set at its own query: (C, models, ...)."""
        place: dict[bytes, int] = {}
        rows = [place.setdefault(np.sort(ids).tobytes(), len(place)) for ids in removed]
        distinct = [np.frombuffer(key, np.int64) for key in place]
        bank = self.run(self.plan(subsets.without(distinct), models))
        users: dict[int, list[int]] = {}
        for user, row in enumerate(rows):
            users.setdefault(row, []).append(user)
        found: list[npt.NDArray[Any]] = [np.empty(0, np.float32)] * len(removed)
        for start in range(0, len(distinct), SETS_AT_ONCE):
            chosen = range(start, min(start + SETS_AT_ONCE, len(distinct)))
            for row, values_RQ in zip(chosen, values(bank.part(chosen)), strict=True):
                for user in users[row]:
                    found[user] = values_RQ[:models, queries[user]]
        return np.stack(found)

    def answering(
        self, training: Training | OwnTraining, removal: Removal, *, voting: int, seeds: int
    ) -> BankRetraining | OwnRetraining:
        """What answers about the queries: this bank, or a training function of the user's own through it."""
        if not isinstance(training, OwnTraining):
            return self
        everything = subsets.everything()
        columns = positions_of(removal.query_ids, self.plan(everything, 1).query_ids, "query ids")
        labels = removal.query_labels
        return OwnRetraining(
            training, lambda models: self.run(self.plan(everything, models)), self.read, labels, columns, voting, seeds
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance for results: data, model, recipe, seed and fingerprint of the bank."""
        manifest = self.plan(subsets.everything(), 1).manifest
        names = ("dataset", "model", "recipe", "seed", OWN, "fingerprint")
        return {name: manifest[name] for name in names if name in manifest}


def _complete(logits: Logits) -> Logits:
    if np.isnan(logits).any():  # the class it would predict means nothing
        raise CorruptFileError("Results of the bank were lost while they were read: run the same call again.")
    return logits


@dataclass(frozen=True)
class FullData:
    """What models of all training examples predict: some vote, the others show how much retraining alone changes.

    Attributes:
        voting: (B, Q) classes predicted by the models whose majority is the prediction.
        voting_margins: (B, Q) their margins.
        again: (R0, Q) classes predicted by other such models; they have no vote, or they would agree with it too well.
        again_margins: (R0, Q) their margins.
    """

    voting: npt.NDArray[np.int32]
    voting_margins: npt.NDArray[np.float32]
    again: npt.NDArray[np.int32]
    again_margins: npt.NDArray[np.float32]

    @classmethod
    def train(cls, retraining: Retraining | OwnRetraining, labels: Ids, *, voting: int, seeds: int) -> FullData:
        """Train ``voting`` models that vote, and as many others (``seeds`` if that is more).

        Raises:
            InputError: no model.
        """
        check_models(seeds, voting)
        if isinstance(retraining, OwnRetraining):
            (own, own_margins), (again, again_margins) = retraining.full()
            return cls(own, own_margins, again, again_margins)
        predicted, margins = predicted_and_margins(retraining.full(voting + max(voting, seeds)), labels)
        return cls(predicted[:voting], margins[:voting], predicted[voting:], margins[voting:])

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> FullData:
        """Make it from :meth:`to_arrays` (the mapping may hold other arrays too)."""
        return cls(**{field.name: arrays[f"full.{field.name}"] for field in fields(cls)})

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return its arrays by the names that they have in files."""
        return {f"full.{field.name}": getattr(self, field.name) for field in fields(self)}

    @property
    def prediction(self) -> Ids:
        """(Q,) the majority's class, ties to the smallest."""
        return majority(self.voting)


def training_and_seed(
    training: Training | OwnTraining | str | Factory | None,
) -> tuple[Training | OwnTraining, int]:
    """Return how models are trained, and its seed; a training function of the user's own has none, that is 0."""
    if isinstance(training, OwnTraining):
        return training, 0
    how = as_training(training)
    return how, how.seed


def check_models(seeds: int, base_seeds: int) -> None:
    """Check the numbers of models.

    Raises:
        InputError: one is below 1.
        InputTypeError: one is no whole number.
    """
    whole_number(seeds, "seeds", 1)
    whole_number(base_seeds, "base_seeds", 1)


def answers_without(
    retraining: Retraining | OwnRetraining, removed: Sequence[Ids], queries: Sequence[int], models: int, labels: Ids
) -> Answers:
    """Predicted classes and margins (C, R) of models without each removed set, on its own query; ``labels`` (Q,)."""
    if isinstance(retraining, OwnRetraining):
        return retraining.without(removed, queries, models)
    logits_CRc = retraining.without(removed, queries, models)
    return predicted_and_margins(logits_CRc, labels[list(queries)][:, None])


def predicted_and_margins(logits: Logits, labels: Ids) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Predicted classes and margins (..., Q) of logits (..., Q, classes)."""
    return logits.argmax(-1).astype(np.int32), output_of(logits, labels, "margin").astype(np.float32)
