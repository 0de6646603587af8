r"""precision(k) = hits(k) / k, recall(k) = hits(k) / P;  AP = sum_g (recall_g - recall_{g-1}) precision_g.

hits(k) counts the wrong labels among the k most suspicious, P are there in all, and g runs over groups of equal values
from the most suspicious on: average precision is the area under the precision-recall curve, P/N for a random order.
Ties are no order: hits(k) is the expectation over random orders within a group.

Intervals are percentiles over resamples of the examples, moved so that their mean is the estimate; wrong and right
labels are resampled apart, so that their numbers stay. Simulated with 100 wrong labels of 1,000, they hold the truth 91
to 97 % of the time where 95 was asked for (88 to 93 % where they are not moved). All methods meet the same resamples,
so that methods can be compared in pairs. The runs are not resampled: what another training seed would find is not in
the interval.

Shape legend: N train examples, G groups of equal values, B bootstrap resamples, K numbers of labels looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.checks import check_seed
from comove.data import Ids, positions_of
from comove.discovery import lookup
from comove.display import html_table
from comove.errors import InputError
from comove.evaluation.estimate import Estimate
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.lds.uncertainty import recentred_interval
from comove.plots import detection_figure
from comove.store import as_ids

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Detection", "average_precision", "detect", "expected_hits"]

Floats = npt.NDArray[np.float64]
BOOTSTRAP = 1000
GRID = 60
"""Numbers of labels looked at for which intervals are kept."""
BLOCK_VALUES = 1 << 24
"""Resamples are worked on in blocks of about so many counts, whatever N."""


@dataclass(frozen=True)
class _Groups:
    """Examples sorted by suspicion, groups of equal values together."""

    order: Ids
    ends: Ids

    @classmethod
    def of(cls, suspicion_N: npt.ArrayLike) -> _Groups:
        values = np.asarray(suspicion_N)
        order = np.argsort(-values, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
        return cls(order, ends)

    def cumulative(self, counts_BN: npt.NDArray[Any]) -> Floats:
        """How many stand in the first g groups, (B, G), when example n stands there ``counts_BN[b, n]`` times."""
        totals: Floats = np.cumsum(counts_BN[:, self.order], axis=1, dtype=np.float64)[:, self.ends]
        return totals

    def average_precision(self, wrong_BN: npt.NDArray[Any], counts_BN: npt.NDArray[Any]) -> Floats:
        hits_BG, seen_BG = self.cumulative(wrong_BN), self.cumulative(counts_BN)
        precision_BG = np.divide(hits_BG, seen_BG, out=np.zeros_like(hits_BG), where=seen_BG > 0)
        gained_BG = np.diff(hits_BG, axis=1, prepend=0.0)
        areas: Floats = (gained_BG * precision_BG).sum(1) / hits_BG[:, -1]
        return areas

    def hits(self, wrong_BN: npt.NDArray[Any], counts_BN: npt.NDArray[Any], at_K: Ids) -> Floats:
        zeros = np.zeros((len(counts_BN), 1))
        hits, seen = (np.hstack([zeros, self.cumulative(part)]) for part in (wrong_BN, counts_BN))
        return np.stack([np.interp(at_K, x, y) for x, y in zip(seen, hits, strict=True)])


def average_precision(suspicion_N: npt.ArrayLike, wrong_N: npt.ArrayLike) -> float:
    """Return the area under the precision-recall curve.

    Args:
        suspicion_N: (N,) higher is more suspicious.
        wrong_N: (N,) whether the label is wrong; at least one is.

    >>> average_precision([3, 2, 1, 0], [True, False, True, False])
    0.8333333333333333
    """
    wrong_1N = np.asarray(wrong_N, bool)[None]
    return float(_Groups.of(suspicion_N).average_precision(wrong_1N, np.ones_like(wrong_1N))[0])


def expected_hits(suspicion_N: npt.ArrayLike, wrong_N: npt.ArrayLike) -> Floats:
    """Return how many wrong labels are among the k most suspicious, k = 1 ... N, (N,); ties in a random order.

    >>> expected_hits([3, 2, 2, 0], [True, False, True, False]).tolist()
    [1.0, 1.5, 2.0, 2.0]
    """
    wrong_1N = np.asarray(wrong_N, bool)[None]
    at = np.arange(1, wrong_1N.size + 1)
    hits_N: Floats = _Groups.of(suspicion_N).hits(wrong_1N, np.ones_like(wrong_1N), at)[0]
    return hits_N


@dataclass(frozen=True)
class _Measured:
    """What is kept of one method."""

    hits_N: Floats
    average_precision: float
    resampled_B: Floats
    bands_2K: Floats
    at_wrong_B: Floats


@dataclass(frozen=True, eq=False, repr=False)
class Detection:
    """How well rankings find labels that are known to be wrong; made by :func:`detect`.

    Attributes:
        n: N, how many labels there are.
        wrong: P, how many of them are wrong.
        grid: (K,) numbers of labels looked at, for which intervals are known.
        confidence: level of the intervals.
        measured: method -> its curve and resamples.
    """

    n: int
    wrong: int
    grid: Ids
    confidence: float
    measured: Mapping[str, _Measured] = field(repr=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order of the ranking."""
        return tuple(self.measured)

    @property
    def best(self) -> str:
        """The method of the highest average precision."""
        return max(self.methods, key=lambda method: self.measured[method].average_precision)

    def average_precision(self, method: str) -> Estimate:
        """The average precision of a method, with its interval.

        Raises:
            InputError: an unknown method.
        """
        found = self._of(method)
        return self._share(found.average_precision, found.resampled_B)

    def at_wrong(self, method: str) -> Estimate:
        """Precision among the P most suspicious, which is the recall there too, with its interval."""
        found = self._of(method)
        return self._share(float(found.hits_N[self.wrong - 1]) / self.wrong, found.at_wrong_B / self.wrong)

    def precision(self, method: str, k: int) -> float:
        """The share of wrong labels among the k most suspicious.

        Raises:
            InputError: an unknown method, k outside 1 to N.
        """
        return self._hits(method, k) / k

    def recall(self, method: str, k: int) -> float:
        """The share of all wrong labels that is among the k most suspicious; raises as :meth:`precision`."""
        return self._hits(method, k) / self.wrong

    def hits(self, method: str) -> Floats:
        """(N,) how many wrong labels are among the k most suspicious, k = 1 ... N."""
        return self._of(method).hits_N

    def bands(self, method: str) -> Floats:
        """(2, K) lower and upper bounds of :meth:`hits` at the numbers in ``grid``."""
        return self._of(method).bands_2K

    def difference(self, method: str, other: str) -> Estimate:
        """The average precision of ``method`` less that of ``other``; the interval is that of pairs."""
        one, two = self._of(method), self._of(other)
        gap = one.average_precision - two.average_precision
        return Estimate(gap, *recentred_interval(one.resampled_B - two.resampled_B, gap, self.confidence))

    def rows(self) -> list[dict[str, Any]]:
        """One row per method: average precision, and precision among the P most suspicious, with their bounds."""
        rows = []
        for method in self.methods:
            area, at = self.average_precision(method), self.at_wrong(method)
            rows.append(
                {
                    "method": method,
                    **dict(zip(("average_precision", "low", "high"), area, strict=True)),
                    **dict(zip(("precision_at_wrong", "at_low", "at_high"), at, strict=True)),
                    "wrong": self.wrong,
                    "labels": self.n,
                }
            )
        return rows

    def to_pandas(self) -> pd.DataFrame:
        """A data frame of :meth:`rows`."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def curves(self) -> pd.DataFrame:
        """A long data frame of the curves: ``method``, ``k``, ``precision``, ``recall``."""
        import pandas as pd

        k = np.arange(1, self.n + 1)
        hits = {method: self.hits(method) for method in self.methods}
        parts = [
            pd.DataFrame({"method": method, "k": k, "precision": found / k, "recall": found / self.wrong})
            for method, found in hits.items()
        ]
        return pd.concat(parts, ignore_index=True)

    def plot(self) -> Figure:
        """Draw precision and recall of every method, and average precision with its interval."""
        return detection_figure(
            {method: self.hits(method) for method in self.methods},
            {method: self.bands(method) for method in self.methods},
            self.grid,
            {method: self.average_precision(method) for method in self.methods},
            wrong=self.wrong,
            confidence=self.confidence,
        )

    def _repr_html_(self) -> str:
        names = ("method", "average_precision", "low", "high", "precision_at_wrong")
        title = f"{self.wrong:,} wrong of {self.n:,} labels"
        return html_table(title, names, [[row[name] for name in names] for row in self.rows()])

    def _of(self, method: str) -> _Measured:
        return lookup(method, self.measured, "method here")

    def _hits(self, method: str, k: int) -> float:
        if not 1 <= k <= self.n:
            raise InputError(f"k must be from 1 to the {self.n} labels there are, got {k}.")
        return float(self._of(method).hits_N[k - 1])

    def _share(self, value: float, resampled_B: Floats) -> Estimate:
        low, high = recentred_interval(resampled_B, value, self.confidence)
        return Estimate(value, max(low, 0.0), high)

    def __repr__(self) -> str:
        width = max(map(len, self.methods))
        areas = {method: self.average_precision(method) for method in self.methods}
        lines = [
            f"  {name:<{width}} {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]" for name, area in areas.items()
        ]
        head = f"Detection({self.wrong:,} wrong of {self.n:,} labels; average precision, by chance"
        return "\n".join([f"{head} {self.wrong / self.n:.3f}):", *lines])


def detect(
    suspicion: Suspicion, wrong_ids: object, *, bootstrap: int = BOOTSTRAP, confidence: float = 0.95, seed: int = 0
) -> Detection:
    """Hold a ranking to labels that are known to be wrong.

    Args:
        suspicion: the ranking.
        wrong_ids: ids of the wrong labels, such as :func:`comove.data.label_noise.known_flips` gives.
        bootstrap: number of resamples.
        confidence: level of the intervals.
        seed: of the resamples.

    Raises:
        InputError: an unknown id, no wrong label or nothing but such, a bad option.
    """
    check_seed(seed, "detect")
    if bootstrap < 1 or not 0 < confidence < 1:
        raise InputError(f"bootstrap must be 1 or more, confidence in (0, 1); got {bootstrap} and {confidence}.")
    wrong = np.zeros(len(suspicion), bool)
    wrong[positions_of(as_ids(wrong_ids, "wrong ids"), suspicion.train_ids, "train ids")] = True
    if not 0 < wrong.sum() < wrong.size:
        raise InputError(f"From 1 to {wrong.size - 1} of the {wrong.size} labels must be wrong, got {wrong.sum()}.")
    grid = np.unique(np.linspace(1, wrong.size, min(GRID, wrong.size)).astype(np.int64))
    parts: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in suspicion.methods}
    groups = {name: _Groups.of(suspicion.towards(name)) for name in suspicion.methods}
    at = np.append(grid, wrong.sum())
    for counts_BN in _resamples(wrong, bootstrap, seed):
        for name, own in groups.items():
            hit_BN = counts_BN * wrong
            parts[name].append((own.average_precision(hit_BN, counts_BN), own.hits(hit_BN, counts_BN, at)))
    measured = {}
    for name, found in parts.items():
        areas_B, hits_BK = (np.concatenate(part) for part in zip(*found, strict=True))
        values = suspicion.towards(name)
        hits_N = expected_hits(values, wrong)
        ends = [
            recentred_interval(h_B, hits_N[k - 1], confidence, np.inf) for k, h_B in zip(grid, hits_BK.T, strict=False)
        ]
        bands_2K = np.clip(np.array(ends).T, 0, np.minimum(grid, wrong.sum()))
        measured[name] = _Measured(hits_N, average_precision(values, wrong), areas_B, bands_2K, hits_BK[:, -1])
    return Detection(wrong.size, int(wrong.sum()), grid, confidence, measured)


def _resamples(wrong_N: npt.NDArray[np.bool_], bootstrap: int, seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """How often each example is drawn, (B, N), a block of resamples at a time; wrong and right ones apart."""
    rng = np.random.default_rng([seed, 0x51D])
    sides = [np.flatnonzero(wrong_N == side) for side in (False, True)]
    block = max(1, BLOCK_VALUES // wrong_N.size)
    for start in range(0, bootstrap, block):
        size = min(block, bootstrap - start)
        counts_BN = np.zeros((size, wrong_N.size), np.int32)
        for places in sides:
            drawn = rng.multinomial(places.size, np.full(places.size, 1 / places.size), size=size)
            counts_BN[:, places] = drawn
        yield counts_BN
