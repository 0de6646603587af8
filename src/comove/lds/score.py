"""Linear datamodeling score: do summed scores rank retrained models as retraining does (paper eq. 65)?

    LDS(q) = spearman_j( 1/R sum_r f(q, theta[S_j, r]),  sum_{i in S_j} scores[i, q] )

C random subsets S_j of the training set are each retrained with R seeds, and f is what a retrained model says about a
query q: its margin, loss, or whether it is correct. An attribution method predicts the same number by adding up the
scores of the examples in the subset; the LDS is the rank correlation of the two over the subsets. Positive scores help
the query, so for an f that grows as the model gets better (margin, probability, correct) a good method has a positive
LDS; negate f where it is a loss.

Shape suffixes: C subsets, N training examples, Q queries, R seeds (models of one subset), B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.display import counted, html_facts, plain
from comove.lds.arrays import (
    ArrayInput,
    Floats,
    Ints,
    Numbers,
    ScoresLike,
    at_least_zero,
    check_outputs,
    check_scores,
    check_shapes,
    level,
    members_of,
    numbers,
    unpack,
)
from comove.lds.ranks import spearman_columns, varies
from comove.lds.truth import ground_truth, group_scores, lds_columns
from comove.lds.uncertainty import bootstrap_means, recentred_interval, split_half_reliability
from comove.plots import lds_histogram
from comove.store import digest, entries
from comove.store.results import as_plain, freeze

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["LDS", "GroundTruth", "ScoresLike", "linear_datamodeling_score", "spearman_columns"]

ENTRIES: dict[str, Any] = {
    "per_query": list[float | None],
    "mean": float | None,
    "interval": list[float | None] | None,
    "query_ids": list[int],
    "confidence": float,
    **dict.fromkeys(("undefined", "constant_predictions", "subsets", "seeds"), int),
    **dict.fromkeys(("reliability", "noise_ceiling", "alpha"), float | None),
    **dict.fromkeys(("method", "output", "against"), str | None),
}


@dataclass(frozen=True, eq=False, repr=False)
class LDS:
    """Linear datamodeling scores of one method; made by :func:`linear_datamodeling_score`.

    Attributes:
        per_query: (Q,) LDS of each query; NaN where the ground truth is constant over the subsets.
        mean: over the queries that are defined; NaN if none is.
        interval: bootstrap interval of the mean at level ``confidence``; None if it was not asked for.
        undefined: number of queries with a constant ground truth, left out of the mean.
        constant_predictions: number of defined queries with a constant prediction, counted in the mean as 0.
        reliability: of the ground truth over seeds, Spearman-Brown corrected to all R; None for a single seed.
        noise_ceiling: ``sqrt(max(reliability, 0))``, about what a perfect attributor would get; None for a single seed.
        method: the attribution method's name, if known.
        query_ids: (Q,) int64.
        subsets: C.
        seeds: R.
        confidence: level of the interval.
        output: what was measured on the queries, if known.
        alpha: share of the training data in each subset, if known.
        resamples: (B,) mean in each bootstrap resample, which :func:`comove.evaluation.paired_difference` subtracts;
            None without an interval.
        against: fingerprint of the ground truth and its resamples: equal where methods can be compared in pairs.
    """

    per_query: Floats
    mean: float
    interval: tuple[float, float] | None
    undefined: int
    constant_predictions: int
    reliability: float | None
    noise_ceiling: float | None
    method: str | None
    query_ids: Ints
    subsets: int
    seeds: int
    confidence: float
    output: str | None = None
    alpha: float | None = None
    resamples: Floats | None = None
    against: str | None = None

    def __post_init__(self) -> None:
        arrays = {name: getattr(self, name) for name in ("per_query", "query_ids", "resamples")}
        freeze(self, {name: None if array is None else np.array(array) for name, array in arrays.items()})

    def __repr__(self) -> str:
        score = plain(self.mean) + (
            f" [{plain(self.interval[0], 2)}, {plain(self.interval[1], 2)}]" if self.interval else ""
        )
        parts = [
            f"{self.method}: {score}" if self.method else score,
            counted(len(self.per_query), "query"),
            f"{counted(self.subsets, 'subset')} x {counted(self.seeds, 'seed')}",
        ]
        parts += [self.output] if self.output else []
        parts += [] if self.alpha is None else [f"alpha {self.alpha:.4g}"]
        parts += [f"{self.undefined} undefined"] if self.undefined else []
        parts += [f"{self.constant_predictions} predicted constant"] if self.constant_predictions else []
        parts += [] if self.noise_ceiling is None else [f"ceiling {self.noise_ceiling:.2f}"]
        return f"LDS({', '.join(parts)})"

    @property
    def share_of_ceiling(self) -> float | None:
        """``mean`` over ``noise_ceiling``; None where the ceiling is not known, or 0: the truth is noise alone."""
        return self.mean / self.noise_ceiling if self.noise_ceiling else None

    def plot(self) -> Figure:
        """Draw the LDS of the queries as a histogram, with the mean, its interval and the noise ceiling.

        Raises:
            InputError: no query has one.
        """
        return lds_histogram(
            self.per_query,
            self.mean,
            interval=self.interval,
            confidence=self.confidence,
            ceiling=self.noise_ceiling,
            title=self.method or "",
        )

    def _repr_html_(self) -> str:
        low, high = self.interval or (None, None)
        facts: dict[str, object] = {"mean": self.mean, "low": low, "high": high, "noise ceiling": self.noise_ceiling}
        facts["share of the ceiling"] = self.share_of_ceiling
        facts |= {
            "output": self.output,
            "alpha": self.alpha,
            "queries": len(self.per_query),
            "undefined": self.undefined,
        }
        title = f"Linear datamodeling score{'' if self.method is None else f' of {self.method}'}"
        return html_facts(title, {**facts, "subsets": self.subsets, "seeds": self.seeds})

    def to_pandas(self) -> pd.DataFrame:
        """One row per query: ``query_id`` and ``lds``."""
        import pandas as pd

        return pd.DataFrame({"query_id": self.query_ids, "lds": self.per_query})

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of every field but the resamples, ready for :func:`json.dumps`: lists, and None for NaN."""
        return {field.name: as_plain(getattr(self, field.name)) for field in fields(self) if field.name != "resamples"}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], where: object) -> LDS:
        """What :meth:`to_json` gave, read back from ``where``; further entries are left alone.

        Raises:
            CorruptFileError: an entry is missing, or of another type.
        """
        own = entries(row, where, ENTRIES)
        low, high = (math.nan if end is None else end for end in own["interval"] or (None, None))
        return cls(
            **{
                **own,
                "per_query": np.array(own["per_query"], np.float64),  # null is NaN
                "query_ids": np.array(own["query_ids"], np.int64),
                "mean": math.nan if own["mean"] is None else own["mean"],
                "interval": None if own["interval"] is None else (low, high),
            }
        )


class GroundTruth:
    """What retraining said of some subsets, checked once, for any number of methods to be measured on.

    Reliability and resamples belong to the truth: they are computed once, and every method meets the same ones.

    Args:
        masks: (C, N) boolean or 0/1; row j marks the training examples of subset S_j.
        outputs: (C, R, Q), or (C, Q) for one seed: what the models retrained on S_j say about the queries.
        query_ids: (Q,) ids; by default 0 ... Q-1.
        bootstrap: number of resamples; 0 for no interval.
        confidence: level of the interval, between 0 and 1.
        seed: of the resamples and of the random splits of the seeds.
        output: what the outputs are, for the results.
        alpha: share of the training data in each subset, likewise.

    Raises:
        InputError: masks that are not 0/1, fewer than three subsets or all of them the same, an option out of range.
        InputTypeError: an argument has the wrong type.
        NonFiniteError: outputs hold NaN or infinity, such as those of models not trained yet.
    """

    def __init__(
        self,
        masks: ArrayInput,
        outputs: ArrayInput,
        query_ids: Ints | None = None,
        *,
        bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        output: str | None = None,
        alpha: float | None = None,
    ) -> None:
        self._bootstrap, self._seed = at_least_zero(bootstrap, "bootstrap"), at_least_zero(seed, "seed")
        self._confidence = level(confidence)
        outputs_CRQ = numbers(outputs, "outputs", (2, 3))
        outputs_CRQ = outputs_CRQ.reshape(len(outputs_CRQ), -1, outputs_CRQ.shape[-1])  # (C, Q) is one seed
        self._query_ids = np.arange(outputs_CRQ.shape[2]) if query_ids is None else query_ids
        self._members = members_of(numbers(masks, "masks", (2,)))
        check_outputs(outputs_CRQ, self._query_ids)
        outputs_CRQ = outputs_CRQ.astype(np.float64)
        self._truth, self._seeds = ground_truth(outputs_CRQ), outputs_CRQ.shape[1]
        self._output, self._alpha = output, alpha
        self._defined = varies(self._truth)
        self._reliability = self._reliability_of(outputs_CRQ)
        resampling = {"bootstrap": self._bootstrap, "seed": self._seed, "confidence": self._confidence}
        self._against = digest(self._truth, self._query_ids, resampling)

    def _generators(self) -> list[np.random.Generator]:
        """For the bootstrap, and for the splits of the seeds."""
        return np.random.default_rng(self._seed).spawn(2)

    def _reliability_of(self, outputs_CRQ: Floats) -> float | None:
        if self._seeds == 1:
            return None
        return _mean(split_half_reliability(outputs_CRQ[:, :, self._defined], self._generators()[1]))

    def predictions(self, scores_NQ: Numbers) -> Floats:
        """Summed scores of every subset, (C, Q)."""
        return group_scores(self._members, scores_NQ)

    def lds(self, predictions: Sequence[Floats], methods: Sequence[str | None]) -> list[LDS]:
        """The LDS of several methods' ``predictions``, each (C, Q)."""
        means = self._resampled(predictions)
        results = []
        for prediction_CQ, resamples, method in zip(predictions, means, methods, strict=True):
            per_query = lds_columns(self._truth, prediction_CQ)
            mean = _mean(per_query)
            results.append(
                LDS(
                    per_query=per_query,
                    mean=mean,
                    interval=None if resamples is None else recentred_interval(resamples, mean, self._confidence),
                    undefined=int((~self._defined).sum()),
                    constant_predictions=int((self._defined & ~varies(prediction_CQ)).sum()),
                    reliability=self._reliability,
                    noise_ceiling=None if self._reliability is None else math.sqrt(max(self._reliability, 0.0)),
                    method=method,
                    query_ids=self._query_ids,
                    subsets=len(self._members),
                    seeds=self._seeds,
                    confidence=self._confidence,
                    output=self._output,
                    alpha=self._alpha,
                    resamples=resamples,
                    against=self._against,
                )
            )
        return results

    def _resampled(self, predictions: Sequence[Floats]) -> Sequence[Floats | None]:
        if not self._bootstrap:
            return [None] * len(predictions)
        if not self._defined.any():
            return [np.full(self._bootstrap, np.nan)] * len(predictions)
        defined = [prediction_CQ[:, self._defined] for prediction_CQ in predictions]
        return list(bootstrap_means(self._truth[:, self._defined], defined, self._bootstrap, self._generators()[0]))


def _mean(values: Floats) -> float:
    """Mean of the entries that are not NaN; NaN, without a warning, when there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan


def linear_datamodeling_score(
    scores: ScoresLike | ArrayInput,
    masks: ArrayInput,
    outputs: ArrayInput,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    method: str | None = None,
) -> LDS:
    """Rank correlation of summed scores with retrained outputs, by query, with its interval and noise ceiling.

    For every query, ``spearman(outputs.mean(seeds), masks @ scores)`` over the subsets. A query whose ground truth is
    constant has no rank correlation: it is NaN, left out of the mean and counted in ``undefined``. A query whose truth
    varies but whose prediction does not scores 0 and is counted in ``constant_predictions``. The interval is a
    percentile bootstrap that resamples the defined queries and the subsets, independently, recentred on the mean (see
    :func:`recentred_interval`); it is about the LDS to expect from C subsets.

    ``reliability`` is how well the ground truth would agree with another set of R seeds: the correlation between two
    halves of the seeds, Spearman-Brown corrected to all R. An attributor that predicts the noise-free outputs
    perfectly still meets the noise in the truth and gets about its square root, which is ``noise_ceiling``; where
    queries differ much in reliability that is an upper bound.

    Args:
        scores: (N, Q) scores, or a :class:`ScoresLike` such as ``comove.attribution.Scores``; positive = helps.
        masks: (C, N) boolean or 0/1; row j marks the training examples of subset S_j. Columns in the order of the
            rows of ``scores`` (its ``train_ids``).
        outputs: (C, R, Q), or (C, Q) for one seed: what the models retrained on S_j say about the queries.
        bootstrap: number of resamples; 0 for no interval.
        confidence: level of the interval, between 0 and 1.
        seed: of the resamples and of the random splits of the seeds.
        method: name for the result; by default that of ``scores``.

    Returns:
        An :class:`LDS`.

    Raises:
        InputError: shapes disagree, masks are not 0/1, fewer than three subsets or all of them the same, or an option
            is out of range.
        InputTypeError: an argument has the wrong type.
        NonFiniteError: scores or outputs hold NaN or infinity, such as the outputs of models not trained yet.

    Reference:
        Park et al., TRAK: Attributing Model Behavior at Scale, ICML 2023; eq. 65 of the CLD paper. Reliability:
        Spearman, and Brown, both in British Journal of Psychology 3, 1910.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> scores, masks = rng.normal(size=(40, 5)), rng.random((60, 40)) < 0.5
        >>> outputs = (masks @ scores)[:, None] + rng.normal(size=(60, 4, 5))
        >>> linear_datamodeling_score(scores, masks, outputs, method="oracle")
        LDS(oracle: 0.983 [0.97, 0.99], 5 queries, 60 subsets x 4 seeds, ceiling 0.98)
    """
    values_NQ, train_ids, query_ids, method = unpack(scores, method)
    masks_CN, outputs_CRQ = numbers(masks, "masks", (2,)), numbers(outputs, "outputs", (2, 3))
    check_shapes(values_NQ, masks_CN, outputs_CRQ)
    check_scores(values_NQ, train_ids, query_ids)
    truth = GroundTruth(masks_CN, outputs_CRQ, query_ids, bootstrap=bootstrap, confidence=confidence, seed=seed)
    return truth.lds([truth.predictions(values_NQ)], [method])[0]
