"""Does one method's LDS exceed another's? Their difference on the same queries, subsets and resamples.

    difference = mean_q( LDS_a(q) - LDS_b(q) )

Two methods are measured on the same noisy truth, so their scores go up and down together from resample to resample: the
interval of the difference is far narrower than the two intervals suggest, and says more than whether they overlap.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from comove.display import counted
from comove.errors import InputError
from comove.lds.score import LDS
from comove.lds.uncertainty import recentred_interval
from comove.store.results import as_plain

__all__ = ["Difference", "paired_difference"]


@dataclass(frozen=True)
class Difference:
    """By how much the mean LDS of one method exceeds that of another; made by :func:`paired_difference`.

    Attributes:
        method: the first method.
        other: the one whose LDS is subtracted.
        mean: over the queries that are defined; NaN if none is.
        interval: bootstrap interval of the mean; both methods meet the same resamples.
        better: number of queries where the first method's LDS is the higher one.
        queries: number of queries that are defined.
        confidence: level of the interval.
        output: what was measured on the queries, if known.
        alpha: share of the training data in each subset, if known.
    """

    method: str | None
    other: str | None
    mean: float
    interval: tuple[float, float]
    better: int
    queries: int
    confidence: float
    output: str | None = None
    alpha: float | None = None

    @property
    def decided(self) -> bool:
        """Whether the interval lies wholly on one side of 0."""
        low, high = self.interval
        return low > 0 or high < 0

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of every field, None for NaN."""
        plain: dict[str, Any] = as_plain(asdict(self))
        return plain

    def __repr__(self) -> str:
        low, high = self.interval
        where = f", {self.output}" if self.output else ""
        where += "" if self.alpha is None else f", alpha {self.alpha:.4g}"
        return (
            f"Difference({self.method} - {self.other}: {self.mean:+.3f} [{low:+.3f}, {high:+.3f}], higher on "
            f"{self.better:,} of {counted(self.queries, 'query')}{where})"
        )


def paired_difference(first: LDS, second: LDS) -> Difference:
    """Subtract the LDS of two methods that were measured on the same ground truth with the same resamples.

    The interval speaks of other queries and other subsets of the same kind. It does not speak of other training runs:
    what the methods were fitted on is taken as given.

    Args:
        first: of one method.
        second: of the other.

    Raises:
        InputError: another ground truth, other resamples, or none.

    Example:
        >>> import numpy as np
        >>> from comove.evaluation import linear_datamodeling_score
        >>> rng = np.random.default_rng(0)
        >>> scores, masks = rng.normal(size=(40, 20)), rng.random((60, 40)) < 0.5
        >>> outputs = masks @ scores + rng.normal(size=(60, 20))
        >>> good, worse = (
        ...     linear_datamodeling_score(scores + noise * rng.normal(size=(40, 20)), masks, outputs, method=f"{noise}")
        ...     for noise in (0.5, 1.0)
        ... )
        >>> paired_difference(good, worse).decided
        True
    """
    if first.resamples is None or second.resamples is None:
        raise InputError("A paired difference needs both methods' resamples: score them with bootstrap above 0.")
    if first.against is None or first.against != second.against:
        raise InputError(
            "Methods are compared on the same ground truth and resamples: score both against the same masks, outputs "
            f"and query ids, with the same bootstrap, seed and confidence; got {first} and {second}."
        )
    per_query = first.per_query - second.per_query
    defined = per_query[~np.isnan(per_query)]
    mean = float(defined.mean()) if defined.size else math.nan
    return Difference(
        method=first.method,
        other=second.method,
        mean=mean,
        interval=recentred_interval(first.resamples - second.resamples, mean, first.confidence, limit=2.0),
        better=int((defined > 0).sum()),
        queries=int(defined.size),
        confidence=first.confidence,
        output=first.output,
        alpha=first.alpha,
    )
