"""f(q): what is measured of a retrained model on a query. One bank of logits serves all.

Shape legend: ... any leading axes (subsets, seeds), Q queries, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from comove.errors import InputError, did_you_mean

__all__ = ["OUTPUTS", "check_measurable", "check_output", "default_of", "output_of", "sign_of"]

OUTPUTS = {
    "margin": "z_y - logsumexp of the other logits (TRAK's choice)",
    "correct": "1 if the predicted class is the label, else 0 (the paper's choice)",
    "loss": "cross-entropy in nats (lower is better)",
    "probability": "probability of the label",
    "predicted": "the predicted class",
}


def check_output(kind: str) -> None:
    """Check that there is such an output.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in OUTPUTS:
        raise InputError(f"Unknown output {kind!r}.{did_you_mean(kind, OUTPUTS)} Known: {', '.join(OUTPUTS)}.")


def check_measurable(kind: str) -> None:
    """Check that an attribution can be measured by this output: that more (or less) of it is better.

    Raises:
        InputError: an unknown kind, or ``"predicted"``, whose values are names and no amounts.
    """
    measurable = [name for name in OUTPUTS if name != "predicted"]
    if kind not in measurable:
        raise InputError(
            f"Attributions are measured by one of {', '.join(measurable)}, got {kind!r}."
            f"{did_you_mean(kind, measurable)}"
        )


def sign_of(bank: object, kind: str) -> int:
    """Return 1 where more of an output is better, -1 where less is: what its values are multiplied by.

    Args:
        bank: a retraining bank; one that has no ``higher_is_better`` has the outputs of classifiers.
        kind: the output.

    Raises:
        InputError: an unknown kind, or ``"predicted"``, whose values are names and no amounts.
    """
    higher = getattr(bank, "higher_is_better", None)
    if higher is not None:
        return 1 if higher(kind) else -1
    check_measurable(kind)
    return -1 if kind == "loss" else 1


def default_of(bank: object) -> str:
    """Return the output of a bank that is measured where none is named."""
    return str(getattr(bank, "default_output", "margin"))


def output_of(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], kind: str) -> npt.NDArray[np.float64]:
    """Return one output (..., Q) of the logits (..., Q, K); NaN where the logits are NaN (a model not yet trained).

    Raises:
        InputError: an unknown kind.
    """
    check_output(kind)
    pending = np.asarray(np.isnan(logits).any(-1))
    z = np.where(pending[..., None], 0.0, logits.astype(np.float64))
    if kind in ("correct", "predicted"):
        predicted = z.argmax(-1)
        values = (predicted if kind == "predicted" else predicted == labels).astype(np.float64)
        return np.where(pending, np.nan, values)
    index = np.broadcast_to(labels[..., None], (*z.shape[:-1], 1))
    target = np.take_along_axis(z, index, -1)[..., 0]
    others = z.copy()
    np.put_along_axis(others, index, -np.inf, -1)
    top = others.max(-1)
    margin = target - top - np.log(np.exp(others - top[..., None]).sum(-1))
    if kind == "loss":
        values = np.logaddexp(0.0, -margin)  # -log sigmoid(margin): exact also where the probability rounds to 1
    else:
        values = margin if kind == "margin" else np.exp(-np.logaddexp(0.0, -margin))
    return np.where(pending, np.nan, values)
