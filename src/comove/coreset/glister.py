"""S <- S + argmax_i <g_i, gV>, gV = mean validation gradient at theta - eta sum_{j in S} g_j.

To first order a step on example i lowers the validation loss by eta <g_i, gV>. g are last-layer gradients, in factors;
after every pick the validation logits move by -eta (error of the pick) (1 + <features, features of the pick>), and gV
with them, so that what has been learned from the picks is not looked for again.

Shape legend: N candidates, V validation examples, C classes, F features, k picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.checks import check_number, whole_number
from comove.coreset.base import Picks, Positions, Selector
from comove.coreset.greedy import check_count
from comove.coreset.last_layer import LastLayerGradients, anchor_gradients, check_features, in_tie_order
from comove.coreset.trace_values import needs_anchor, needs_validation
from comove.data import Ids
from comove.errors import InputError, some
from comove.training.sources import Source

__all__ = ["Glister", "Validation", "glister"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Validation:
    """Validation examples at an anchor: (V, C) probabilities, (V,) labels, (V, F) features."""

    probabilities_VC: npt.NDArray[np.floating]
    labels_V: Ids
    features_VF: npt.NDArray[np.floating]

    def of_classes(self, labels: Ids) -> Validation:
        """Return the examples of these classes."""
        keep = np.isin(self.labels_V, labels)
        return Validation(self.probabilities_VC[keep], self.labels_V[keep], self.features_VF[keep])


def glister(
    train: LastLayerGradients, validation: Validation, k: int, *, eta: float = 0.05, rounds: int | None = None
) -> tuple[Positions, Floats]:
    """Pick ``k`` examples, each the one whose gradient lowers the validation loss most after a step on those before.

    Args:
        train: gradients of the candidates at theta.
        validation: at theta.
        k: from 1 to N.
        eta: step size.
        rounds: how often gV is computed, k / rounds best being taken each time; ``None`` for every pick.

    Returns:
        (k,) picks in order (ties to the lower index), and their gains when picked.

    Raises:
        InputError: k out of range, no validation example.
    """
    check_count(k, len(train))
    if not validation.labels_V.size:
        raise InputError("glister needs at least one validation example.")
    features_VF = validation.features_VF
    logits_VC = np.log(np.maximum(validation.probabilities_VC, np.finfo(np.float32).tiny), dtype=np.float64)
    free_N = np.ones(len(train), bool)
    picks: list[Positions] = []
    gained: list[Floats] = []
    turns = min(k, rounds or k)
    for turn in range(turns):
        size = (turn + 1) * k // turns - turn * k // turns
        probabilities_VC = _softmax(logits_VC).astype(features_VF.dtype)
        gradient = LastLayerGradients.of(probabilities_VC, validation.labels_V, features_VF).mean()
        gains_N = np.where(free_N, train.along(gradient), -np.inf)
        best = np.array([gains_N.argmax()]) if size == 1 else np.argsort(-gains_N, kind="stable")[:size]
        picks.append(best)
        gained.append(gains_N[best].astype(np.float64))
        free_N[best] = False
        step = train.take(best).mean(np.ones(best.size))
        logits_VC -= eta * (features_VF @ step[:, :-1].T + step[:, -1])
    return np.concatenate(picks), np.concatenate(gained)


def _softmax(logits_VC: Floats) -> Floats:
    powers_VC = np.exp(logits_VC - logits_VC.max(1, keepdims=True))
    normed: Floats = powers_VC / powers_VC.sum(1, keepdims=True)
    return normed


@dataclass(frozen=True)
class _Prepared:
    gradients: LastLayerGradients
    validation: Validation
    labels: Ids
    ids: Ids


@dataclass(frozen=True)
class Glister(Selector):
    """Greedy one-step validation gain (Killamsetty, Sivasubramanian, Ramakrishnan, Iyer, "GLISTER", AAAI 2021).

    O(k C F (N + V)) time, or O(rounds C F (N + V)). The authors select again every 20 epochs of training; here once, at
    one anchor. Aims at the validation examples of the candidates' classes: all of them, or under
    ``PerClass("glister")`` those of the class at hand. Train gradients stay as they were at the anchor.

    Args:
        eta: step size of the look-ahead; .05 is the learning rate in the authors' CORDS library.
        rounds: how often the validation gradient is computed anew, a k/rounds-th of the picks at a time (CORDS has a
            variant with 15); ``None``, the default, for every pick.
        epoch: after which epoch the gradients are taken; by default the last whose features were kept.
    """

    name: ClassVar[str] = "glister"
    summary: ClassVar[str] = "last-layer gradients that lower the validation loss most, one step after another"
    cost: ClassVar[str] = "O((N + V) F C) a pick on features"
    greedy: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    eta: float = 0.05
    rounds: int | None = None
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_number(self.eta, f"{self.name}: eta")
        if self.rounds is not None:
            whole_number(self.rounds, f"{self.name}: rounds", 1, error=InputError)

    def _prepare(self, sources: tuple[Source, ...]) -> _Prepared:
        source = sources[0]
        gradients = anchor_gradients(source, self.epoch, self.name)
        features_VF, probabilities_VC = needs_anchor(source, self.epoch, self.name, "validation")
        labels_V = needs_validation(source, self.name)[1]
        for values in (features_VF, probabilities_VC):
            check_features(values, source.trace.validation_ids, self.name)
        validation = Validation(probabilities_VC, labels_V, features_VF)
        return _Prepared(gradients, validation, source.labels(self.name), source.train_ids)

    def _pick(self, prepared: _Prepared, candidates: Positions, k: int) -> Picks:
        ordered = in_tie_order(candidates, prepared.ids)
        classes = np.unique(prepared.labels[ordered])
        validation = prepared.validation.of_classes(classes)
        if not validation.labels_V.size:
            raise InputError(
                f"{self.name} needs validation examples of the classes to pick from, found none of class "
                f"{some(classes.tolist())}; name some in validation_ids=."
            )
        gradients = prepared.gradients.take(ordered)
        picks, gains = glister(gradients, validation, k, eta=self.eta, rounds=self.rounds)
        return Picks(ordered[picks], gains.astype(np.float32))
