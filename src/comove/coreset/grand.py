"""s_i = || d loss(x_i, y_i) / d theta || early in training, mean over runs. Keep the highest.

The default is the last layer's part of it, which follows from features h and error e = P - onehot(y) alone:
||e|| sqrt(1 + ||h||^2), a proxy called ``grand_last``. The norm is not squared: squares would rank one run alike, but
not the mean of several.

Shape legend: N examples, C classes, F features, B a block of examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from comove.coreset.base import ScoreSelector
from comove.coreset.last_layer import LastLayerGradients
from comove.coreset.trace_values import needs_anchor
from comove.discovery import check_choice
from comove.errors import InputError
from comove.training.sources import Source

__all__ = ["GraNd", "grand_last"]

BLOCK = 65536


def grand_last(
    probabilities_NC: npt.NDArray[np.floating], labels_N: npt.NDArray[np.int64], features_NF: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the norms (N,) of the loss gradients in the last layer's weights and bias. O(N (C + F)).

    Args:
        probabilities_NC: class probabilities.
        labels_N: class indices.
        features_NF: penultimate features, the last layer's input.
    """
    parts = [slice(start, start + BLOCK) for start in range(0, len(labels_N), BLOCK)]
    blocks = (LastLayerGradients.of(probabilities_NC[part], labels_N[part], features_NF[part]) for part in parts)
    squared_N = np.concatenate([block.squared_norms() for block in blocks])
    return np.asarray(np.sqrt(squared_N), np.float64)


@dataclass(frozen=True)
class GraNd(ScoreSelector):
    """Gradient norm (Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021).

    Norms of several runs are averaged, the authors' expectation over initial weights. Before training it mostly
    reflects the size of the features.

    Args:
        gradient: ``"last"``, of the last layer's weights and bias, from features kept at an early epoch (DeepCore does
            the same, after 40 epochs); ``"full"``, of all parameters, from a checkpoint, as the authors.
        epoch: at whose end (10 in the CLD paper's comparison; 0 is before training).

    Raises:
        InputError: when selecting, no features, or no checkpoint, of that epoch; the message says what to record.
    """

    name: ClassVar[str] = "grand"
    summary: ClassVar[str] = "largest loss gradient early in training: hardest first"
    cost: ClassVar[str] = "O(N (C + F)) on the features of one epoch; full: one pass of per-example gradients"

    gradient: Literal["last", "full"] = "last"
    epoch: int = 10

    def __post_init__(self) -> None:
        check_choice(self.gradient, ("last", "full"), "gradient", self.name)
        if isinstance(self.epoch, bool) or not isinstance(self.epoch, int) or self.epoch < 0:
            raise InputError(f"grand: epoch must be a whole number from 0 on, got {self.epoch!r}.")
        if self.gradient == "full":
            object.__setattr__(self, "requires", frozenset({"trace", "checkpoints"}))

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        norms = self._last if self.gradient == "last" else self._full
        total = sum((norms(source) for source in sources), np.zeros(()))
        return (total / len(sources)).astype(np.float32)

    def _last(self, source: Source) -> npt.NDArray[np.float64]:
        anchor = needs_anchor(source, self.epoch, self.name)
        return grand_last(anchor.probabilities_NC, source.labels(self.name), anchor.features_NF)

    def _full(self, source: Source) -> npt.NDArray[np.float64]:
        from comove.attribution.replay import run_of, training_resident
        from comove.attribution.tracin import run_gradients
        from comove.training import resolve_device

        run = run_of(source)
        kept = {checkpoint.epoch: checkpoint for checkpoint in run.checkpoints}
        if self.epoch not in kept:
            raise InputError(
                f"grand needs the weights after epoch {self.epoch}; {run.path} keeps those of epochs "
                f"{', '.join(map(str, kept))}. Choose one of these (epoch=), or train with checkpoints='all'."
            )
        device = resolve_device()
        train = training_resident(source, device)
        squared_N = run_gradients(run, kept[self.epoch], device, check_on=train).squared_norms(train)
        return squared_N.double().sqrt().cpu().numpy()
