"""Models of a user's own training function, as brittleness measurements query them.

A prediction flips where the class that a model gives (``"predicted"``) changes, or whether it is ``"correct"``. Without
classes the user's own rule says so (:attr:`comove.OwnTraining.flip`), or nothing does: then the change of the output
stands beside what retraining alone changes.

Every subset has the same seeds, so models without a removed set share theirs with models of all examples. Those that
vote on the prediction have seeds of their own: the others tell what retraining alone changes.

Shape suffixes: C removed sets, Q queries, R models per set, B voting models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from comove.data import Ids
from comove.errors import CorruptFileError, InputError
from comove.models.measured_outputs import sign_of
from comove.retraining import subsets
from comove.retraining.bank import RetrainingBank
from comove.retraining.own import OwnTraining

__all__ = ["Answers", "OwnRetraining"]

Answers = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""Predicted classes, and margins (or another output, larger is better)."""
Doubles = npt.NDArray[np.float64]
Removed = Callable[[Sequence[Ids], Sequence[int], int, Callable[[RetrainingBank], npt.NDArray[Any]]], npt.NDArray[Any]]


@dataclass(frozen=True)
class OwnRetraining:
    """Retraining by a function of the user's own.

    Where there are no classes, a flipped prediction is written as the class after the query's label.

    Attributes:
        own: the function.
        full_bank: returns the bank with this number of models of all examples, trained.
        removed: returns one array per removed set, (C, R), read from a bank's parts at each set's own query.
        labels: (Q,) of the queries; 0 where there are none.
        columns: (Q,) where they stand among the bank's queries: all of the query split, for only the user's function
            knows which ones it answers.
        voting: B.
        seeds: R.
    """

    own: OwnTraining
    full_bank: Callable[[int], RetrainingBank]
    removed: Removed
    labels: Ids
    columns: npt.NDArray[np.int64]
    voting: int
    seeds: int

    @property
    def again(self) -> int:
        """How many models of all examples have no vote."""
        return max(self.voting, self.seeds)

    def _everything(self) -> RetrainingBank:
        return self.full_bank(self.again + self.voting).plan(subsets.everything())

    def full(self) -> tuple[Answers, Answers]:
        """The answers (B, Q) of the models that vote, and those (R0, Q) of the others."""
        bank = self._everything()
        amounts_RQ, predicted_RQ = self._amounts(bank)[0], self._classes(bank)
        again, voting = slice(0, self.again), slice(self.again, self.again + self.voting)
        if predicted_RQ is None:
            predicted_RQ = np.tile(self.labels, (self.again + self.voting, 1))
            if self.own.flip is not None:
                flips_Q = self._rule(amounts_RQ[voting].T, amounts_RQ[: self.seeds].T)
                predicted_RQ[again] += flips_Q
        else:
            predicted_RQ = predicted_RQ[0]
        signed_RQ = self._signed(bank, amounts_RQ)
        both = [(predicted_RQ[part].astype(np.int32), signed_RQ[part]) for part in (voting, again)]
        return both[0], both[1]

    def without(self, removed: Sequence[Ids], queries: Sequence[int], models: int) -> Answers:
        """The answers (C, R) of models without each removed set, on its own query (a position 0 ... Q-1)."""
        full = self._everything()
        amounts_CR = _complete(
            self.removed(removed, queries, models, self._amounts), allow_nan=self._output(full) is None
        )
        if self.mode == "classes":
            predicted_CR = _complete(self.removed(removed, queries, models, lambda part: self._known_classes(part)))
        else:
            predicted_CR = np.repeat(self.labels[list(queries)][:, None], models, 1)
            if self.own.flip is not None:
                base_QB = self._amounts(full)[0, self.again :][: self.voting].T
                predicted_CR = predicted_CR + self._rule(base_QB[list(queries)], amounts_CR)[:, None]
        return predicted_CR.astype(np.int32), self._signed(full, amounts_CR)

    @property
    def mode(self) -> Literal["classes", "rule", "none"]:
        """How flips are known."""
        if self.own.flip is not None:
            return "rule"
        return "classes" if {"predicted", "correct"} & set(self._everything().output_names) else "none"

    def require_flips(self, who: str) -> None:
        """Refuse outputs from which no flip is known.

        Raises:
            InputError: neither classes nor a rule.
        """
        if self.mode == "none":
            raise InputError(
                f"{who} counts flips: the training function must give 'predicted' or 'correct', or say what a flip is: "
                "OwnTraining(..., flip=function(outputs_full, outputs_removed) -> bool)."
            )

    # --- reading ---

    def _known_classes(self, bank: RetrainingBank) -> npt.NDArray[Any]:
        found = self._classes(bank)
        assert found is not None
        return found

    def _classes(self, bank: RetrainingBank) -> npt.NDArray[Any] | None:
        """(C, R, Q) predicted classes, NaN where pending; ``None`` without classes."""
        if self.own.flip is not None:
            return None
        if "predicted" in bank.output_names:
            return bank.outputs("predicted")[..., self.columns]
        if "correct" in bank.output_names:
            correct = bank.outputs("correct")[..., self.columns]
            return np.where(np.isnan(correct), np.nan, self.labels + (correct < 0.5))
        return None

    def _output(self, bank: RetrainingBank) -> str | None:
        """The output that is compared beside flips; ``None`` where there are classes alone."""
        names = bank.output_names
        known = next((name for name in ("margin", "measure") if name in names), None)
        if known is not None:
            return known
        amounts = [name for name in names if name not in ("predicted", "correct")]
        if len(amounts) == 1:
            return amounts[0]
        return None if self.mode == "classes" else bank.default_output

    def _amounts(self, bank: RetrainingBank) -> Doubles:
        """(C, R, Q) of the output that is compared."""
        name = self._output(bank)
        if name is None:
            return np.full((len(bank.masks), bank.seeds, self.columns.size), np.nan)
        return bank.outputs(name)[..., self.columns]

    def _signed(self, bank: RetrainingBank, amounts: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        name = self._output(bank)
        return (amounts * (1 if name is None else sign_of(bank, name))).astype(np.float32)

    def _rule(self, full_CB: Doubles, removed_CR: Doubles) -> npt.NDArray[np.int64]:
        assert self.own.flip is not None
        return np.array([bool(self.own.flip(f, r)) for f, r in zip(full_CB, removed_CR, strict=True)], np.int64)


def _complete(values: npt.NDArray[Any], *, allow_nan: bool = False) -> npt.NDArray[Any]:
    if np.isnan(values).any() and not allow_nan:
        raise CorruptFileError("Results of the bank were lost while they were read: run the same call again.")
    return values
