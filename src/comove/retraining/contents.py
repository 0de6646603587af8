"""What one result of a bank holds: a model's logits, or numbers by name from a training function of the user's own.

Shape legend: Q queries, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from comove.errors import InputError, did_you_mean
from comove.models.measured_outputs import OUTPUTS, check_output, output_of

__all__ = ["OWN", "Arrays", "Contents", "LogitsOf", "NamedOutputs", "contents_of", "is_own"]

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
OWN = "training"
"""The entry of a bank's manifest that names the user's own training function."""


@dataclass(frozen=True)
class LogitsOf:
    """Logits, (Q, K) float32, from which every output is computed."""

    shape: tuple[int, int]
    names: tuple[str, ...] = tuple(OUTPUTS)

    def whole(self, arrays: Arrays) -> bool:
        """Whether these are the arrays of a result."""
        logits = arrays.get("logits")
        return logits is not None and logits.shape == self.shape and logits.dtype == np.float32

    def check(self, kind: str, names: Sequence[str]) -> None:
        """Refuse an output that there is not."""
        check_output(kind)

    def output(self, arrays: Arrays, kind: str, labels: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float64]:
        """(Q,) of one output."""
        assert labels is not None  # a bank of classifiers has them
        return output_of(arrays["logits"], labels, kind)

    def higher(self, kind: str) -> bool:
        """Whether more of an output is better."""
        return kind != "loss"

    def default(self, names: Sequence[str]) -> str:
        """The output that is measured where none is named."""
        return "margin"


@dataclass(frozen=True)
class NamedOutputs:
    """Outputs by name, each (Q,) float64 or float32.

    Attributes:
        size: Q.
        lower: the outputs of which less is better.
        names: the outputs that every result must have; ``None``: those of the first one.
    """

    size: int
    lower: tuple[str, ...] = ("loss",)
    names: tuple[str, ...] | None = None

    def whole(self, arrays: Arrays) -> bool:
        """Whether these are the arrays of a result."""
        kinds = (np.float64, np.float32)
        return bool(arrays) and all(one.shape == (self.size,) and one.dtype in kinds for one in arrays.values())

    def check(self, kind: str, names: Sequence[str]) -> None:
        """Refuse an output that there is not."""
        if kind not in names:
            known = ", ".join(names) or "none yet: no model is recorded"
            raise InputError(
                f"This bank's models have no output {kind!r}.{did_you_mean(str(kind), names)} There are: {known}."
            )

    def output(self, arrays: Arrays, kind: str, labels: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float64]:
        """(Q,) of one output."""
        return arrays[kind].astype(np.float64)

    def higher(self, kind: str) -> bool:
        """Whether more of an output is better."""
        return kind not in self.lower

    def default(self, names: Sequence[str]) -> str:
        """The output that is measured where none is named: the only one, or ``"measure"``, or ``"margin"``."""
        amounts = [name for name in names if name != "predicted"]
        if len(amounts) == 1:
            return amounts[0]
        for name in ("measure", "margin"):
            if name in amounts:
                return name
        known = ", ".join(amounts) or "none yet: no model is recorded"
        raise InputError(f"Say which output is meant (output=); there are: {known}.")


Contents: TypeAlias = LogitsOf | NamedOutputs


def is_own(identity: Mapping[str, Any]) -> bool:
    """Whether a bank's models are trained by a function of the user's own."""
    return OWN in identity


def contents_of(identity: Mapping[str, Any]) -> Contents:
    """What the results of the bank with this manifest hold."""
    size = len(identity["query_ids"])
    if not is_own(identity):
        return LogitsOf((size, int(identity["model"]["num_classes"])))
    own = identity[OWN]
    return NamedOutputs(size, tuple(own["lower"]), None if own["outputs"] is None else tuple(own["outputs"]))
