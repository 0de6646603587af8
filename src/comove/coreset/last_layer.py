"""g_i = e_i (x) [h_i, 1], e_i = P_i - onehot(y_i): the loss gradient of the last linear layer, never written out.

The gradient of cross-entropy in the last layer's weights is the outer product of the error e_i (C) and the penultimate
features h_i (F), in its bias e_i itself. All that selection needs follows from the factors:
<g_i, g_j> = <e_i, e_j> (1 + <h_i, h_j>) and ||g_i||^2 = ||e_i||^2 (1 + ||h_i||^2). (N, C F) is never held.

Shape legend: N examples, C classes, F features, A and B blocks of examples; a direction is (C, F + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.coreset.trace_values import needs_anchor
from comove.data import Ids
from comove.errors import InputError, NonFiniteError
from comove.ties import tie_order
from comove.training.sources import Source

__all__ = ["LastLayerGradients", "anchor_gradients", "check_features", "in_tie_order"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LastLayerGradients:
    """Last-layer gradients of N examples, as their two factors.

    Attributes:
        errors_NC: (N, C) P - onehot(y).
        features_NF: (N, F) penultimate features.
    """

    errors_NC: Array
    features_NF: Array

    @classmethod
    def of(
        cls, probabilities_NC: npt.ArrayLike, labels_N: npt.ArrayLike, features_NF: npt.ArrayLike
    ) -> LastLayerGradients:
        """Make them from class probabilities (N, C), labels (N,) and penultimate features (N, F).

        Raises:
            InputError: shapes that do not fit, labels outside the classes.
        """
        errors, features = np.array(probabilities_NC), np.asarray(features_NF)
        labels = np.asarray(labels_N, np.int64)
        if errors.ndim != 2 or features.ndim != 2 or not len(errors) == len(features) == labels.size:
            raise InputError(
                f"Last-layer gradients need probabilities (N, C), labels (N,) and features (N, F), got shapes "
                f"{errors.shape}, {labels.shape} and {features.shape}."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < errors.shape[1]:
            raise InputError(f"Labels must be in 0 ... {errors.shape[1] - 1}, got {labels.min()} ... {labels.max()}.")
        errors[np.arange(labels.size), labels] -= 1
        return cls(errors, features)

    def __len__(self) -> int:
        return len(self.errors_NC)

    def take(self, positions: npt.NDArray[np.int64]) -> LastLayerGradients:
        """Return those of some examples."""
        return LastLayerGradients(self.errors_NC[positions], self.features_NF[positions])

    def double(self) -> LastLayerGradients:
        """Return them in float64."""
        if self.errors_NC.dtype == self.features_NF.dtype == np.float64:
            return self
        return LastLayerGradients(self.errors_NC.astype(np.float64), self.features_NF.astype(np.float64))

    def unit(self) -> LastLayerGradients:
        """Return them divided by their norms; gradients of zero stay zero."""
        norms_N = np.sqrt(self.squared_norms())
        scale_N = np.divide(1, norms_N, out=np.zeros_like(norms_N), where=norms_N > 0)
        return LastLayerGradients(self.errors_NC * scale_N[:, None].astype(self.errors_NC.dtype), self.features_NF)

    def gram(self, others: LastLayerGradients) -> Array:
        """Return the inner products (A, B) with ``others``."""
        products_AB = self.features_NF @ others.features_NF.T
        products_AB += 1
        products_AB *= self.errors_NC @ others.errors_NC.T
        return products_AB

    def distances(self, others: LastLayerGradients) -> Array:
        """Return the Euclidean distances (A, B) to ``others``; in float64, lest near ones drown in rounding."""
        own, theirs = self.double(), others.double()
        squares_AB = own.gram(theirs)
        squares_AB *= -2
        squares_AB += own.squared_norms()[:, None]
        squares_AB += theirs.squared_norms()
        distances_AB: Array = np.sqrt(np.maximum(squares_AB, 0, out=squares_AB), out=squares_AB)
        return distances_AB

    def squared_norms(self) -> npt.NDArray[np.float64]:
        """Return the squared norms (N,)."""
        return self._squared_norms

    @cached_property
    def _squared_norms(self) -> npt.NDArray[np.float64]:
        return _squares(self.errors_NC) * (1 + _squares(self.features_NF))

    def mean(self, weights_N: npt.ArrayLike | None = None) -> Array:
        """Return the mean gradient, or the weighted sum with ``weights_N`` (N,), as a direction (C, F + 1)."""
        weights = np.full(len(self), 1 / len(self)) if weights_N is None else np.asarray(weights_N)
        weighted_NC = self.errors_NC * weights[:, None].astype(self.errors_NC.dtype)
        return np.concatenate([weighted_NC.T @ self.features_NF, weighted_NC.sum(0)[:, None]], 1)

    def along(self, direction: Array) -> Array:
        """Return the inner products (N,) with one direction (C, F + 1)."""
        mapped_NC = self.features_NF @ direction[:, :-1].T
        mapped_NC += direction[:, -1]
        products_N: Array = np.einsum("nc,nc->n", self.errors_NC, mapped_NC)
        return products_N


def _squares(matrix_ND: Array) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = np.einsum("nd,nd->n", matrix_ND, matrix_ND, dtype=np.float64)
    return squares


def in_tie_order(candidates: npt.NDArray[np.int64], ids: Ids) -> npt.NDArray[np.int64]:
    """Return candidate positions in order of their tie keys: ties may then go to the lower index (``comove.ties``)."""
    return candidates[tie_order(ids[candidates])]


def check_features(features_NF: Array, ids: Ids, who: str) -> None:
    """Raise when an example's features or probabilities are not finite.

    Raises:
        NonFiniteError: naming the first example's id.
    """
    bad = np.flatnonzero(~np.isfinite(features_NF).all(1))
    if bad.size:
        raise NonFiniteError(
            f"{who}: the features or probabilities of {bad.size} examples are NaN or infinite, the first of id "
            f"{ids[bad[0]]}. The run probably diverged; choose an earlier epoch or train again."
        )


def anchor_gradients(source: Source, epoch: int | None, who: str) -> LastLayerGradients:
    """Return the last-layer gradients of the training examples at an anchor.

    Raises:
        InputError: no features were kept there, no training labels.
        NonFiniteError: features or probabilities that are NaN or infinite.
    """
    features_NF, probabilities_NC = needs_anchor(source, epoch, who)
    labels_N = source.labels(who)
    for values in (features_NF, probabilities_NC):
        check_features(values, source.train_ids, who)
    return LastLayerGradients.of(probabilities_NC, labels_N, features_NF)
