"""Scores measured by a bank: matched by ids, refused where they were fitted on the very subsets they are measured on.

Every score matrix meets every part of a bank in one matrix product, whatever the number of outputs; the truth's
reliability and resamples are computed once for all methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from comove.attribution import Scores
from comove.data import Ids, positions_of
from comove.errors import InputError
from comove.lds.score import LDS, GroundTruth
from comove.models.measured_outputs import default_of, sign_of

__all__ = ["Retrained", "alpha_of", "bank_lds"]


class Retrained(Protocol):
    """What is asked of a bank, or of a part of one."""

    masks: npt.NDArray[np.bool_]
    train_ids: Ids
    query_ids: Ids

    @property
    def manifest(self) -> Mapping[str, Any]:
        """With the plan of its subsets under ``"subsets"``, or a list of plans."""

    @property
    def digests(self) -> list[str]:
        """(C,) fingerprints of the subsets."""

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """The (subset, seed) pairs of its models."""

    def outputs(self, kind: str = "margin") -> npt.NDArray[np.float64]:
        """(C, R, Q), NaN where there is no model."""


def bank_lds(
    parts: Sequence[Retrained], scores: Sequence[Scores], outputs: Sequence[str] | None = None, **options: Any
) -> list[LDS]:
    """The LDS of several methods against several parts of a bank: part by part, output by output, in their order.

    Args:
        parts: banks or parts, such as ``bank.at(0.5)``; one kind of subsets each.
        scores: of the bank's training examples, for all its queries.
        outputs: what to measure on the queries, by default each bank's own default, the margin; the sign of what is
            better when lower is turned, so that helping is positive.
        options: of :func:`linear_datamodeling_score`.

    Raises:
        InputError: scores without some of the ids, scores fitted on some of a part's own subsets, an output without
            better and worse.
        NonFiniteError: models are still pending.
    """
    asked = [[default_of(part)] if outputs is None else list(outputs) for part in parts]
    for part, names in zip(parts, asked, strict=True):
        for name in names:
            sign_of(part, name)
        for method in scores:
            _check(part, method)
    return [
        result for part, names in zip(parts, asked, strict=True) for result in _of_part(part, scores, names, options)
    ]


def _of_part(
    part: Retrained, scores: Sequence[Scores], outputs: Sequence[str], options: Mapping[str, Any]
) -> list[LDS]:
    seeds, alpha = min(Counter(row for row, _ in part.jobs).values()), alpha_of(part)  # of all subsets alike
    results: list[LDS] = []
    predictions: list[npt.NDArray[np.float64]] = []
    for output in outputs:
        signed_CRQ = sign_of(part, output) * part.outputs(output)[:, :seeds]
        truth = GroundTruth(part.masks, signed_CRQ, part.query_ids, output=output, alpha=alpha, **options)
        if not predictions:
            matched = (method.subset(train_ids=part.train_ids, query_ids=part.query_ids) for method in scores)
            predictions = [truth.predictions(method.values) for method in matched]
        results += truth.lds(predictions, [method.method for method in scores])
    return results


def _check(part: Retrained, scores: Scores) -> None:
    """Refuse scores of other examples, and those fitted on subsets that they would be measured on."""
    shared = set(scores.info.get("fitted_on", ())) & set(part.digests)
    if shared:
        raise InputError(
            f"{scores.method} was fitted on {len(shared)} of the {len(part.masks)} subsets it would be measured "
            "on; fit it on one part of the bank and measure it on another: fit_on, test_on = bank.halves()."
        )
    positions_of(part.train_ids, scores.train_ids, "train ids")
    positions_of(part.query_ids, scores.query_ids, "query ids")
    if scores.train_ids.size != part.train_ids.size:
        raise InputError(f"The scores have {scores.train_ids.size} training ids, the bank {part.train_ids.size}.")


def alpha_of(part: Retrained) -> float:
    """The share of the training data in each subset: as planned, else as it is on average."""
    plans = part.manifest["subsets"]
    ratios = {plan.get("alpha") for plan in (plans if isinstance(plans, list) else [plans])}
    planned = ratios.pop()
    return float(part.masks.mean()) if ratios or planned is None else float(planned)
