"""What wrong labels show themselves by: one number s_i a training example, of which one end is suspicious.

===========  =============================================================  ==========  ==========================
method       s_i                                                            suspicious  needs
===========  =============================================================  ==========  ==========================
aum          mean over epochs of z_y - max of the other logits              low         margins
loss         cross-entropy after the last epoch                             high        losses
trak         phi_i' (Phi' Phi + lambda I)^-1 phi_i times mean (1 - p_i)     high        checkpoints, data
tracin       sum over checkpoints of lr norm(grad l(theta, z_i))^2          high        checkpoints, data
forgetting   times it went from right to wrong; epochs, if never right      high        correctness
cld          Pearson(Delta_i, mean Delta of validation examples of y_i)     low         losses, validation labels
random       uniform: what any method must surpass                          high        nothing
===========  =============================================================  ==========  ==========================

Each is computed by the coreset or attribution method of its name; of several runs the mean is taken (forgetting: the
sum). Nothing here sees which labels are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.attribution.base import Attributor
from comove.attribution.tracin import TracIn
from comove.attribution.trak import TRAK
from comove.checks import check_seed
from comove.coreset.aum import AUM
from comove.coreset.base import ScoreSelector, check_scores
from comove.coreset.cld import CLDCoreset
from comove.coreset.forgetting import Forgetting
from comove.coreset.strata import random_keys
from comove.discovery import label_of, parse_method
from comove.errors import InputTypeError
from comove.training.sources import Source, as_sources

__all__ = ["SIGNALS", "FinalLoss", "RandomOrder", "Signal", "as_signals", "measure"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FinalLoss:
    """The loss in the last recorded row, averaged over runs: the baseline that costs nothing to try."""

    name: ClassVar[str] = "loss"


@dataclass(frozen=True)
class RandomOrder:
    """Uniform numbers that belong to the ids.

    Args:
        seed: of the numbers.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)


class Signal(NamedTuple):
    """A method that suspects labels: its class, and whether low values are the suspicious ones (else high ones)."""

    kind: type[Any]
    low: bool


SIGNALS = {
    "aum": Signal(AUM, low=True),
    "loss": Signal(FinalLoss, low=False),
    "trak": Signal(TRAK, low=False),
    "tracin": Signal(TracIn, low=False),
    "forgetting": Signal(Forgetting, low=False),
    "cld": Signal(CLDCoreset, low=True),
    "random": Signal(RandomOrder, low=False),
}
"""The first orders tables by default: ``aum`` found flipped labels best on the whole in ``benchmarks/clean.py``."""


def as_signals(methods: Sequence[Any]) -> dict[str, tuple[Any, bool]]:
    """Return methods by their labels, each with whether its low values are suspicious; repeats are left out.

    Args:
        methods: names with options, as ``"trak:proj_dim=256"``; or methods built already, of a class in ``SIGNALS``.

    Raises:
        InputError: an unknown name (the nearest are suggested) or option.
        InputTypeError: something else, or a method that says nothing of labels.
    """
    kinds = {name: signal.kind for name, signal in SIGNALS.items()}
    low = {signal.kind: signal.low for signal in SIGNALS.values()}
    chosen = {}
    for given in methods:
        method = parse_method(given, kinds, "way to suspect labels") if isinstance(given, str) else given
        if type(method) not in low:
            raise InputTypeError(f"Labels are suspected by {', '.join(kinds)}, or methods of these; got {given!r}.")
        chosen[label_of(method)] = (method, low[type(method)])
    return chosen


def measure(method: Any, sources: Sequence[Source]) -> Floats:
    """Return the (N,) numbers of one method, in the order of the training ids.

    Raises:
        InputError: the runs lack what the method reads; the message says what to record.
        NonFiniteError: a number is NaN or infinite; the message names the example.
    """
    trace = sources[0].trace
    if isinstance(method, RandomOrder):
        return random_keys(trace.train_ids, method.seed, 0x51615).astype(np.float32)
    if isinstance(method, FinalLoss):
        last = [source.trace.read("train", rows=[len(source.trace.rows) - 1])[0] for source in sources]
        values: Floats = np.asarray(np.mean(last, axis=0, dtype=np.float64), np.float32)
    elif isinstance(method, Attributor):
        values = method.fit(as_sources(sources, method.requires, method.name)).self_influence()
    else:
        assert isinstance(method, ScoreSelector)
        values = (replace(method, keep="high") if isinstance(method, AUM) else method).scores(sources)
    check_scores(values, trace.train_ids, method.name)
    return values
