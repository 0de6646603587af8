"""p_i(c) = mean over kept models of softmax(f(x_i))_c;  suggested: the c other than the label that has most of it.

A network that has learned a wrong label by heart predicts it, so its prediction suggests nothing. What it would say
next does: where three networks had learned the wrong labels of 140 digits by heart, averaged over training the true
class was the most probable other one for .97 of them, and the most probable of all for .21.

Shape legend: N train examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError, InputError
from comove.training import resolve_device
from comove.training.sources import Source

__all__ = ["mean_probabilities", "other_class"]


def mean_probabilities(
    sources: Sequence[Source], device: str = "auto", *, last: bool = False
) -> npt.NDArray[np.float32] | None:
    """Return class probabilities (N, C) of the training examples, averaged over checkpoints after epoch 0, and runs.

    A run whose data or network is not at hand, or a bare trace, gives those it kept at anchors; ``None`` where none of
    the sources has any.

    Args:
        sources: of the same training examples.
        device: where to compute.
        last: of each run the last checkpoint (or anchor) only.

    Raises:
        CorruptFileError: a damaged checkpoint.
    """
    means = []
    for source in sources:
        kept = _of_checkpoints(source, device, last)
        kept = kept if kept is not None else _of_anchors(source, last)
        if kept is not None:
            means.append(kept)
    mean_NC: npt.NDArray[np.float32] | None = np.mean(means, axis=0).astype(np.float32) if means else None
    return mean_NC


def other_class(
    probabilities_NC: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the most probable class (N,) other than the label, and its probability (N,); ties go to the lower class.

    >>> classes, sure = other_class(np.array([[0.7, 0.1, 0.2]], np.float32), np.array([0]))
    >>> int(classes[0]), round(float(sure[0]), 1)
    (2, 0.2)
    """
    others_NC = probabilities_NC.copy()
    others_NC[np.arange(labels_N.size), labels_N] = -1
    return others_NC.argmax(1).astype(np.int64), others_NC.max(1)


def _of_checkpoints(source: Source, device: str, last: bool) -> npt.NDArray[np.float64] | None:
    run = source.run
    kept = [] if run is None else [checkpoint for checkpoint in run.checkpoints if checkpoint.epoch > 0]
    if run is None or not kept:
        return None
    used = kept[-1:] if last else kept
    try:
        examples, where = run.data().train.subset(source.train_ids), resolve_device(device)
        found = [run.class_logits(examples, one, where) for one in used]
        logits = [one for one in found if one is not None]
        return _mean(one.softmax(1).numpy() for one in logits) if logits else None
    except CorruptFileError:
        raise
    except InputError:  # the user's own data or network, which were not passed again
        return None


def _of_anchors(source: Source, last: bool) -> npt.NDArray[np.float64] | None:
    trace = source.trace
    rows = [row for row in trace.anchors if trace.rows[row].epoch > 0]
    return _mean(trace.probabilities("train", row) for row in (rows[-1:] if last else rows)) if rows else None


def _mean(several: Iterator[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    total, number = np.zeros(()), 0
    for probabilities_NC in several:
        total, number = total + probabilities_NC.astype(np.float64), number + 1
    return np.asarray(total / number)
