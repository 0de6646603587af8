"""How many wrongly labelled examples a coreset keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from comove.coreset import Coreset
from comove.data import Ids
from comove.errors import InputError

__all__ = ["NoiseKept", "noise_kept"]


@dataclass(frozen=True)
class NoiseKept:
    """Wrong labels in a coreset.

    Attributes:
        method: that chose it.
        size: of the coreset.
        kept: how many of its labels are wrong.
        share: of its labels, how many are wrong.
        expected: the share among all training examples, which a random coreset has on average.
    """

    method: str
    size: int
    kept: int
    share: float
    expected: float

    @property
    def ratio(self) -> float:
        """``share`` over ``expected``: below 1 the method avoids wrong labels, above 1 it collects them."""
        return self.share / self.expected

    def to_json(self) -> Mapping[str, Any]:
        """A JSON object."""
        return {**asdict(self), "ratio": self.ratio}


def noise_kept(coreset: Coreset, flipped: Ids) -> NoiseKept:
    """Count the wrong labels that a coreset keeps.

    Args:
        coreset: chosen from examples some of whose labels are wrong.
        flipped: their ids (see :func:`comove.data.label_noise.flip_labels`).

    Raises:
        InputError: no wrong label, or more than there are examples.
    """
    if not 0 < flipped.size <= coreset.n_candidates:
        raise InputError(f"There must be from 1 to {coreset.n_candidates} wrong labels, got {flipped.size}.")
    kept = int(np.isin(coreset.ids, flipped).sum())
    expected = flipped.size / coreset.n_candidates
    return NoiseKept(coreset.method, len(coreset), kept, kept / len(coreset), expected)
