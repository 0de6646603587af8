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

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from comove.errors import InputError, InputTypeError, NonFiniteError, some

if TYPE_CHECKING:
    import pandas as pd
    import torch

__all__ = ["LDS", "ScoresLike", "linear_datamodeling_score", "spearman_columns"]

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[Any]
ArrayInput: TypeAlias = "npt.ArrayLike | torch.Tensor"

_UNIT_ROUNDOFF = float(np.finfo(np.float64).eps) / 2
_QUERY_BLOCK = 512  # columns of the scores held in float64 at a time
_RESAMPLE_BLOCK = 64  # resamples held at a time, to stay in cache; part of the definition of the random stream
_MAX_SPLITS = 32  # half splits of the seeds; every one of them up to R = 6


# --- ranks -----------------------------------------------------------------------------------------------------------


class TieGroups(NamedTuple):
    """Columns sorted once, so that any reweighting of the rows can be re-ranked without sorting again."""

    order: Ints  # row numbers in ascending order of value
    below: Ints  # for each row: how many rows have a smaller value
    through: Ints  # for each row: how many rows have a smaller or equal value


def tie_groups(values_CQ: Floats) -> TieGroups:
    """Sort every column and count, for each entry, the entries below it and those not above it."""
    order = np.argsort(values_CQ, axis=0, kind="stable")
    sorted_CQ = np.take_along_axis(values_CQ, order, axis=0)
    edge = np.ones((len(values_CQ) + 1, values_CQ.shape[1]), dtype=np.bool_)
    edge[1:-1] = sorted_CQ[1:] != sorted_CQ[:-1]
    position = np.arange(len(values_CQ))[:, None]
    first = np.maximum.accumulate(np.where(edge[:-1], position, 0), axis=0)
    end = np.minimum.accumulate(np.where(edge[1:], position + 1, len(values_CQ))[::-1], axis=0)[::-1]
    below, through = np.empty_like(order), np.empty_like(order)
    np.put_along_axis(below, order, first, axis=0)
    np.put_along_axis(through, order, end, axis=0)
    return TieGroups(order, below, through)


def centred_ranks(values_CQ: Floats) -> Floats:
    """Average ranks of every column, doubled and centred: ``2 rank - (C + 1)``, whole numbers, so sums are exact."""
    groups = tie_groups(values_CQ)
    return (groups.below + groups.through - len(values_CQ)).astype(np.float64)


def spearman_columns(a_CQ: ArrayInput, b_CQ: ArrayInput) -> Floats:
    """Spearman's rank correlation of each column of ``a`` with the same column of ``b``.

    The Pearson correlation of the ranks, ties sharing their average rank. Ranks are held as whole numbers, so equal
    orders give exactly 1 and reversed ones exactly -1.

    Args:
        a_CQ: (C, Q) numbers.
        b_CQ: (C, Q) numbers.

    Returns:
        (Q,) correlations, NaN where either column is constant or holds a NaN.

    Raises:
        InputError: the arrays are not two-dimensional, or their shapes differ.
        InputTypeError: an argument does not hold numbers.

    Reference:
        Spearman, The proof and measurement of association between two things, 1904.

    Example:
        >>> spearman_columns([[1, 5], [2, 5], [4, 5]], [[10, 1], [20, 2], [90, 3]])
        array([ 1., nan])
    """
    a = _numbers(a_CQ, "a_CQ", (2,)).astype(np.float64)
    b = _numbers(b_CQ, "b_CQ", (2,)).astype(np.float64)
    if a.shape != b.shape:
        raise InputError(f"a_CQ and b_CQ must have the same shape, found {a.shape} and {b.shape}.")
    correlations = _cosine(centred_ranks(a), centred_ranks(b))
    correlations[np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0)] = np.nan
    return correlations


def weighted_spearman(truth: TieGroups, prediction: TieGroups, weights_CB: Floats) -> tuple[Floats, Floats]:
    """Spearman of one query in B resamples given as whole-number weights; also the truth's variance in each.

    An entry's average rank in a resample is ``(weight before its tie group + weight through it + 1) / 2``, and the
    correlation is Pearson's, each entry counted ``weight`` times: the same as repeating the rows and ranking again.
    ``truth`` and ``prediction`` are one-dimensional here, (C,). NaN where either side is constant.
    """
    a_CB, b_CB = _resampled_ranks(truth, weights_CB), _resampled_ranks(prediction, weights_CB)
    weighted_CB = weights_CB * a_CB
    a_squared, product = np.einsum("cb,cb->b", weighted_CB, a_CB), np.einsum("cb,cb->b", weighted_CB, b_CB)
    np.multiply(weights_CB, b_CB, out=weighted_CB)
    return _ratio(product, a_squared, np.einsum("cb,cb->b", weighted_CB, b_CB)), a_squared


def _resampled_ranks(groups: TieGroups, weights_CB: Floats) -> Floats:
    cumulative = np.zeros((len(weights_CB) + 1, weights_CB.shape[1]))
    np.cumsum(weights_CB[groups.order], axis=0, out=cumulative[1:])
    ranks_CB: Floats = cumulative[groups.below]
    ranks_CB += cumulative[groups.through]
    ranks_CB -= cumulative[-1]
    return ranks_CB


def _cosine(a_CQ: Floats, b_CQ: Floats) -> Floats:
    return _ratio((a_CQ * b_CQ).sum(axis=0), (a_CQ * a_CQ).sum(axis=0), (b_CQ * b_CQ).sum(axis=0))


def _ratio(product: Floats, a_squared: Floats, b_squared: Floats) -> Floats:
    norm = np.sqrt(a_squared * b_squared)
    return np.divide(product, norm, out=np.full_like(norm, np.nan), where=norm > 0)


# --- ground truth and prediction -------------------------------------------------------------------------------------


def ground_truth(outputs_CRQ: Floats) -> Floats:
    """Mean output over the seeds, (C, Q)."""
    seeds = outputs_CRQ.shape[1]
    if seeds == 1:
        return outputs_CRQ[:, 0]
    error_CQ = seeds * _UNIT_ROUNDOFF * np.abs(outputs_CRQ).mean(axis=1)
    return merge_rounding_ties(outputs_CRQ.mean(axis=1), error_CQ)


def group_scores(masks_CN: Bools, scores_NQ: Numbers) -> Floats:
    """Predicted output of every subset: the sum of its members' scores, ``masks @ scores`` in float64, (C, Q)."""
    members_CN = masks_CN.astype(np.float64)
    bound_C1 = members_CN.sum(axis=1, keepdims=True) * _UNIT_ROUNDOFF
    prediction_CQ = np.empty((len(masks_CN), scores_NQ.shape[1]))
    for start in range(0, scores_NQ.shape[1], _QUERY_BLOCK):
        block = slice(start, start + _QUERY_BLOCK)
        scores = scores_NQ[:, block].astype(np.float64)
        sums = members_CN @ scores
        prediction_CQ[:, block] = merge_rounding_ties(sums, bound_C1 * (members_CN @ np.abs(scores)))
    return prediction_CQ


def merge_rounding_ties(values_CQ: Floats, error_CQ: Floats) -> Floats:
    """Make entries of a column equal where they differ by no more than the rounding ``error`` of their sums.

    Equal scores summed over subsets of one size must tie, but the order of the additions makes them differ in the last
    bit, and ranks would turn that bit into a full-sized correlation.
    """
    order = np.argsort(values_CQ, axis=0, kind="stable")
    sorted_CQ, error = np.take_along_axis(values_CQ, order, axis=0), np.take_along_axis(error_CQ, order, axis=0)
    apart = np.diff(sorted_CQ, axis=0) > error[1:] + error[:-1]
    position = np.arange(1, len(values_CQ))[:, None]
    first = np.zeros_like(order)
    first[1:] = np.maximum.accumulate(np.where(apart, position, 0), axis=0)
    merged = np.empty_like(values_CQ)
    np.put_along_axis(merged, order, np.take_along_axis(sorted_CQ, first, axis=0), axis=0)
    return merged


def lds_columns(truth_CQ: Floats, prediction_CQ: Floats) -> Floats:
    """LDS of every query: Spearman, NaN where the truth is constant, 0 where only the prediction is."""
    per_query = spearman_columns(truth_CQ, prediction_CQ)
    per_query[_varies(truth_CQ) & ~_varies(prediction_CQ)] = 0.0
    return per_query


def _varies(values_CQ: Floats) -> Bools:
    varies: Bools = (values_CQ != values_CQ[0]).any(axis=0)
    return varies


def _mean(values: Floats) -> float:
    """Mean of the entries that are not NaN; NaN, without a warning, when there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan


# --- uncertainty -----------------------------------------------------------------------------------------------------


def bootstrap_means(truth_CQ: Floats, prediction_CQ: Floats, bootstrap: int, rng: np.random.Generator) -> Floats:
    """Mean LDS in each resample of the subsets and, independently, of the queries; NaN if no query has one.

    Within a resample the rules are those of the score itself: a query whose truth has become constant is left out, and
    one whose prediction alone has become constant counts as 0.
    """
    truth, prediction = tie_groups(truth_CQ), tie_groups(prediction_CQ)
    means = []
    for start in range(0, bootstrap, _RESAMPLE_BLOCK):
        size = min(_RESAMPLE_BLOCK, bootstrap - start)
        weights_CB, counts_QB = _resample(len(truth_CQ), size, rng), _resample(truth_CQ.shape[1], size, rng)
        total_B, count_B = np.zeros(size), np.zeros(size)
        for q, counts_B in enumerate(counts_QB):
            lds_B, variance_B = weighted_spearman(_column(truth, q), _column(prediction, q), weights_CB)
            total_B += counts_B * np.nan_to_num(lds_B, copy=False)
            count_B += counts_B * (variance_B > 0)
        means.append(np.divide(total_B, count_B, out=np.full(size, np.nan), where=count_B > 0))
    return np.concatenate(means)


def recentred_interval(means: Floats, estimate: float, confidence: float) -> tuple[float, float]:
    """Percentiles of the bootstrap ``means``, moved so that their own mean is the ``estimate``.

    A resample holds some subsets twice, and such ties bias its Spearman towards 0 by order 1/C. Averaged over many
    queries that exceeds the spread: the percentiles as they stand can lie wholly to one side of the estimate.
    """
    percentiles = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.clip(percentiles + (estimate - means.mean()), -1.0, 1.0)
    return float(low), float(high)


def _column(groups: TieGroups, q: int) -> TieGroups:
    return TieGroups(groups.order[:, q], groups.below[:, q], groups.through[:, q])


def _resample(n: int, size: int, rng: np.random.Generator) -> Floats:
    """How often each of ``n`` items is drawn in ``size`` draws of ``n`` with replacement, (n, size)."""
    drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
    return np.ascontiguousarray(counts.T, dtype=np.float64)


def split_half_reliability(outputs_CRQ: Floats, rng: np.random.Generator) -> Floats:
    """Reliability of each query's mean over R seeds, from Spearman between means of half the seeds, (Q,).

    With r the average over splits into two halves of h = R // 2 seeds (one seed sits out when R is odd), Spearman-Brown
    carries it to R = n h seeds: ``n r / (1 + (n - 1) |r|)``. The absolute value, the usual form for a correlation that
    may be negative, keeps noise about zero at zero. A half that is constant while the other is not counts as 0.
    """
    correlations = [_half_correlation(outputs_CRQ, *split) for split in half_splits(outputs_CRQ.shape[1], rng)]
    stacked = np.stack(correlations)
    defined = ~np.isnan(stacked)
    count = defined.sum(axis=0)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    r_Q = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    n = outputs_CRQ.shape[1] / (outputs_CRQ.shape[1] // 2)
    corrected_Q: Floats = n * r_Q / (1 + (n - 1) * np.abs(r_Q))
    return corrected_Q


def half_splits(seeds: int, rng: np.random.Generator) -> Iterator[tuple[list[int], list[int]]]:
    """Two disjoint halves of ``seeds // 2`` seeds: every distinct such pair if there are few, else random ones."""
    half = seeds // 2
    if math.comb(seeds, 2 * half) * math.comb(2 * half, half) // 2 > _MAX_SPLITS:
        for _ in range(_MAX_SPLITS):
            shuffled = rng.permutation(seeds).tolist()
            yield shuffled[:half], shuffled[half : 2 * half]
        return
    for used in itertools.combinations(range(seeds), 2 * half):
        for rest in itertools.combinations(used[1:], half - 1):  # the first seed stays left: each pair once
            left = [used[0], *rest]
            yield left, [seed for seed in used if seed not in left]


def _half_correlation(outputs_CRQ: Floats, left: list[int], right: list[int]) -> Floats:
    a_CQ, b_CQ = ground_truth(outputs_CRQ[:, left]), ground_truth(outputs_CRQ[:, right])
    correlation = spearman_columns(a_CQ, b_CQ)
    correlation[_varies(a_CQ) ^ _varies(b_CQ)] = 0.0
    return correlation


# --- the result ------------------------------------------------------------------------------------------------------


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

    def __post_init__(self) -> None:
        for name in ("per_query", "query_ids"):
            array = np.array(getattr(self, name))
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        score = f"{self.mean:.3f}" + (f" [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.interval else "")
        queries, seeds = ("query" if len(self.per_query) == 1 else "queries"), ("seed" if self.seeds == 1 else "seeds")
        parts = [
            f"{self.method}: {score}" if self.method else score,
            f"{len(self.per_query)} {queries}",
            f"{self.subsets} subsets x {self.seeds} {seeds}",
        ]
        parts += [f"{self.undefined} undefined"] if self.undefined else []
        parts += [f"{self.constant_predictions} predicted constant"] if self.constant_predictions else []
        parts += [] if self.noise_ceiling is None else [f"ceiling {self.noise_ceiling:.2f}"]
        return f"LDS({', '.join(parts)})"

    def to_pandas(self) -> pd.DataFrame:
        """One row a query: ``query_id`` and ``lds``."""
        import pandas as pd

        return pd.DataFrame({"query_id": self.query_ids, "lds": self.per_query})

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of every field, lists for arrays and None for NaN: ready for :func:`json.dumps`."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | tuple):
        return [_plain(entry) for entry in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and math.isnan(value) else value


# --- the score -------------------------------------------------------------------------------------------------------


@runtime_checkable
class ScoresLike(Protocol):
    """What is used of an attribution result; ``comove.attribution.Scores`` is one."""

    @property
    def values(self) -> Any:
        """(N, Q), positive where the training example helps the query."""

    @property
    def train_ids(self) -> Any:
        """(N,) ids, in the order of the rows."""

    @property
    def query_ids(self) -> Any:
        """(Q,) ids, in the order of the columns."""

    @property
    def method(self) -> str | None:
        """Name of the method."""


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
    bootstrap, seed = _at_least_zero(bootstrap, "bootstrap"), _at_least_zero(seed, "seed")
    confidence = _level(confidence)
    values_NQ, train_ids, query_ids, method = _unpack(scores, method)
    masks_CN, outputs_CRQ = _numbers(masks, "masks", (2,)), _numbers(outputs, "outputs", (2, 3))
    _check_shapes(values_NQ, masks_CN, outputs_CRQ)
    outputs_CRQ = outputs_CRQ.reshape(len(masks_CN), -1, values_NQ.shape[1])  # (C, Q) is one seed
    members_CN = _members(masks_CN)
    _check_scores(values_NQ, train_ids, query_ids)
    _check_outputs(outputs_CRQ, query_ids)
    outputs_CRQ = outputs_CRQ.astype(np.float64)

    truth_CQ, prediction_CQ = ground_truth(outputs_CRQ), group_scores(members_CN, values_NQ)
    per_query = lds_columns(truth_CQ, prediction_CQ)
    defined = ~np.isnan(per_query)
    for_bootstrap, for_splits = np.random.default_rng(seed).spawn(2)
    reliability = None
    if outputs_CRQ.shape[1] > 1:
        reliability = _mean(split_half_reliability(outputs_CRQ[:, :, defined], for_splits))
    return LDS(
        per_query=per_query,
        mean=_mean(per_query),
        interval=_interval(truth_CQ[:, defined], prediction_CQ[:, defined], bootstrap, confidence, for_bootstrap),
        undefined=int((~defined).sum()),
        constant_predictions=int((defined & ~_varies(prediction_CQ)).sum()),
        reliability=reliability,
        noise_ceiling=None if reliability is None else math.sqrt(max(reliability, 0.0)),
        method=method,
        query_ids=query_ids,
        subsets=outputs_CRQ.shape[0],
        seeds=outputs_CRQ.shape[1],
        confidence=confidence,
    )


def _interval(
    truth_CQ: Floats, prediction_CQ: Floats, bootstrap: int, confidence: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    if not bootstrap:
        return None
    if not truth_CQ.size:
        return math.nan, math.nan
    means = bootstrap_means(truth_CQ, prediction_CQ, bootstrap, rng)
    means = means[~np.isnan(means)]
    if not means.size:
        return math.nan, math.nan
    return recentred_interval(means, _mean(lds_columns(truth_CQ, prediction_CQ)), confidence)


# --- checks ----------------------------------------------------------------------------------------------------------


def _at_least_zero(value: int, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputTypeError(f"{name} must be an int, found {type(value).__name__}.") from None
    if number < 0:
        raise InputError(f"{name} must be 0 or more, found {number}.")
    return number


def _level(confidence: float) -> float:
    try:
        level = float(confidence)
    except (TypeError, ValueError):
        raise InputTypeError(f"confidence must be a number, found {type(confidence).__name__}.") from None
    if not 0 < level < 1:
        raise InputError(f"confidence must be between 0 and 1, found {confidence}; 95 % is 0.95.")
    return level


def _numbers(value: ArrayInput, name: str, ndims: tuple[int, ...]) -> Numbers:
    """``value`` as a numpy array of numbers with one of ``ndims`` dimensions."""
    if hasattr(value, "detach"):  # a torch tensor, which numpy does not take from a device, a graph or in bfloat16
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputTypeError(f"{name} must be an array of numbers, found {type(value).__name__} of {array.dtype}.")
    if array.ndim not in ndims:
        wanted = " or ".join(f"{ndim}-dimensional" for ndim in ndims)
        raise InputError(f"{name} must be {wanted}, found shape {array.shape}.")
    return array


def _unpack(scores: ScoresLike | ArrayInput, method: str | None) -> tuple[Numbers, Ints, Ints, str | None]:
    if method is not None and not isinstance(method, str):
        raise InputTypeError(f"method must be a string or None, found {type(method).__name__}.")
    if not isinstance(scores, ScoresLike):
        values_NQ = _numbers(scores, "scores", (2,))
        return values_NQ, np.arange(values_NQ.shape[0]), np.arange(values_NQ.shape[1]), method
    values_NQ = _numbers(scores.values, "scores.values", (2,))
    train_ids = np.array(_numbers(scores.train_ids, "scores.train_ids", (1,)), dtype=np.int64)
    query_ids = np.array(_numbers(scores.query_ids, "scores.query_ids", (1,)), dtype=np.int64)
    if values_NQ.shape != (len(train_ids), len(query_ids)):
        raise InputError(
            f"scores.values must be (train, query), found shape {values_NQ.shape} "
            f"with {len(train_ids)} train_ids and {len(query_ids)} query_ids."
        )
    return values_NQ, train_ids, query_ids, scores.method if method is None else method


def _check_shapes(scores: Numbers, masks: Numbers, outputs: Numbers) -> None:
    """Refuse empty arrays and shapes that disagree, naming them all and the likely slip."""
    (C, N), Q = masks.shape, outputs.shape[-1]
    agree = masks.shape == (outputs.shape[0], scores.shape[0]) and scores.shape[1] == Q
    if agree and outputs.size and N:
        return
    found = f"found scores {scores.shape}, masks {masks.shape}, outputs {outputs.shape}"
    rule = "scores must be (N, Q), masks (C, N) and outputs (C, Q) or (C, R, Q)"
    if agree:
        hint = "None may be empty."
    elif scores.shape == (Q, N) and outputs.shape[0] == C:
        hint = "The scores look transposed: must be (train, query); pass scores.T."
    elif scores.shape == (C, Q) and outputs.shape[0] == N:
        hint = "The masks look transposed: must be (subset, train); pass masks.T."
    elif scores.shape[0] == N and outputs.shape == (scores.shape[1], C):
        hint = "The outputs look transposed: must be (subset, query); pass outputs.T."
    elif scores.shape == (N, Q) and outputs.ndim == 3 and outputs.shape[1] == C:
        hint = (
            "The outputs look like (seed, subset, query): must be (subset, seed, query); pass outputs.swapaxes(0, 1)."
        )
    elif scores.shape[0] == N and outputs.ndim == 3 and outputs.shape[:2] == (C, scores.shape[1]):
        hint = (
            "The outputs look like (subset, query, seed): must be (subset, seed, query); pass outputs.swapaxes(1, 2)."
        )
    elif outputs.shape[0] != C:
        hint = f"masks have {C} subsets and outputs {outputs.shape[0]}: pass the masks the models were trained on."
    elif scores.shape[0] != N:
        hint = f"scores have {scores.shape[0]} training examples and masks {N}: score every example of the masks."
    else:
        hint = f"scores have {scores.shape[1]} queries and outputs {Q}: both must cover the same queries, in one order."
    raise InputError(f"{rule}; {found}. {hint}")


def _members(masks: Numbers) -> Bools:
    """``masks`` as booleans, with at least three subsets that are not all the same."""
    if masks.dtype != np.bool_ and not ((masks == 0) | (masks == 1)).all():
        raise InputError(
            f"masks must be boolean or 0/1, found {masks.dtype} values from {masks.min()} to {masks.max()}. "
            "Example ids become masks with numpy.isin(train_ids, ids) for each subset."
        )
    members: Bools = masks.astype(np.bool_)
    if len(members) < 3:
        raise InputError(
            f"At least 3 subsets are needed, found {len(members)}: the rank correlation of two is always 1 or -1."
        )
    if (members == members[0]).all():
        raise InputError(
            f"The subsets must differ, but all {len(members)} rows of masks are the same, so no prediction can vary."
        )
    return members


def _check_scores(scores_NQ: Numbers, train_ids: Ints, query_ids: Ints) -> None:
    bad_NQ = ~np.isfinite(scores_NQ)
    count = int(bad_NQ.sum())
    if count:
        row, column = np.unravel_index(int(bad_NQ.argmax()), bad_NQ.shape)
        raise NonFiniteError(
            f"Scores must be finite, found {count} of {bad_NQ.size} that are not, the first "
            f"{scores_NQ[row, column]} for train id {train_ids[row]}, query id {query_ids[column]}; "
            "the models behind them may have diverged."
        )


def _check_outputs(outputs_CRQ: Numbers, query_ids: Ints) -> None:
    bad_CRQ = ~np.isfinite(outputs_CRQ)
    if not bad_CRQ.any():
        return
    models = outputs_CRQ.shape[0] * outputs_CRQ.shape[1]
    pending = np.argwhere(np.isnan(outputs_CRQ).all(axis=2))
    if len(pending):
        names = some((f"subset {j} seed {r}" for j, r in pending), limit=4)
        raise NonFiniteError(
            f"Outputs must be finite, but {len(pending)} of {models} models are NaN for every query ({names}), as "
            "pending models of a bank are: finish the bank, or leave out those subsets' rows of masks and outputs."
        )
    j, r, q = np.unravel_index(int(bad_CRQ.argmax()), bad_CRQ.shape)
    raise NonFiniteError(
        f"Outputs must be finite, but {int(bad_CRQ.any(axis=2).sum())} of {models} models hold NaN or infinity, the "
        f"first {outputs_CRQ[j, r, q]} for subset {j}, seed {r}, query id {query_ids[q]}: training may have diverged; "
        "retrain these models, or leave out their subsets' rows of masks and outputs."
    )
