"""D_i = mean over windows k of (1 - mean(p_k)) std(p_k); drawn with probability ~ D_i BetaPDF(mean p_i; a, b).

Difficulty times uncertainty of the target probability p finds informative examples early in training; at high pruning
rates the hardest of them hurt, so sampling prefers easier ones, the more the fewer are kept:
b = 15 (1 - mu) (1 - r^c), a = 16 - b.

Shape legend: N examples, T epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.checks import check_number, check_seed
from comove.coreset.base import Picks, Positions, Selector, check_scores
from comove.coreset.dyn_unc import windows
from comove.coreset.strata import random_keys
from comove.coreset.trace_values import check_window, mean_over_epochs
from comove.data import Ids
from comove.discovery import check_choice
from comove.errors import InputError
from comove.ties import highest
from comove.training.sources import Source

__all__ = ["DUAL", "beta_parameters", "dual", "log_weights"]

Floats = npt.NDArray[np.float64]
TOP = 10
"""mu is the mean target probability of so many examples with the highest scores (authors)."""
CLIP = 1e-6
"""Mean probabilities are clipped to [CLIP, 1 - CLIP]: the density is infinite at 1 where b < 1."""


def dual(p_TN: npt.ArrayLike, window: int) -> Floats:
    """Return DUAL scores (N,). O(NTJ).

    Args:
        p_TN: (T, N) target probabilities.
        window: J epochs.

    Raises:
        InputError: fewer epochs than the window.
    """
    total, count = np.zeros(()), 0
    for mean, deviation in windows(p_TN, window):
        total, count = total + (1 - mean) * deviation, count + 1
    return total / count


def beta_parameters(mu: float, pruning_rate: float, c: float = 4.0) -> tuple[float, float]:
    """Return a and b of the Beta density at this pruning rate.

    Args:
        mu: mean target probability of the highest-scored examples.
        pruning_rate: r = 1 - k/N.
        c: how late the density turns to easy examples (authors: 4 on CIFAR-100, 11 on ImageNet).

    >>> a, b = beta_parameters(0.5, 0.9)
    >>> round(a, 5), round(b, 5)
    (13.42075, 2.57925)
    """
    b = max(15 * (1 - mu) * (1 - pruning_rate**c), CLIP)
    return 16 - b, b


def log_weights(scores_N: npt.ArrayLike, means_N: npt.ArrayLike, a: float, b: float) -> Floats:
    """Return ln(BetaPDF(mean p; a, b) D) (N,); -inf where the score is 0. In logarithms nothing underflows."""
    from scipy.special import betaln

    x = np.clip(np.asarray(means_N, np.float64), CLIP, 1 - CLIP)
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(scores_N, np.float64))
    total: Floats = (a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - betaln(a, b) + logs
    return total


class _Prepared(NamedTuple):
    scores: npt.NDArray[np.float32]
    means: Floats
    ids: Ids
    keys: Floats


@dataclass(frozen=True)
class DUAL(Selector):
    """Difficulty and uncertainty-aware lightweight score, with Beta sampling (Cho, Shin, Kang, Yun, ICML 2025).

    Scores and mean probabilities of several runs are averaged. No example is drawn twice; when everything is kept,
    nothing is drawn.

    Args:
        sampling: ``"beta"``; or ``"none"``, the highest scores.
        first: T, the first epochs of training used (authors: 30 on CIFAR, 60 on ImageNet; all of a shorter run);
            ``None`` for all.
        window: J epochs (authors: 10).
        c: the exponent of the pruning rate (authors: 4 on CIFAR-100 and in code, 11 on ImageNet).
        seed: of the sampling.

    Raises:
        InputError: a window below 2 epochs or longer than ``first``, ``c`` not above 0; when selecting, fewer epochs
            than the window, fewer examples with a non-zero weight than the budget.
    """

    name: ClassVar[str] = "dual"
    summary: ClassVar[str] = "difficult and uncertain early in training; easier ones at high pruning rates"
    cost: ClassVar[str] = "O(NTJ) on the recorded target probabilities"

    sampling: Literal["beta", "none"] = "beta"
    first: int | None = 30
    window: int = 10
    c: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.sampling, ("beta", "none"), "sampling", self.name)
        check_window(self.window, self.first, self.name)
        check_seed(self.seed, self.name)
        check_number(self.c, f"{self.name}: c")

    def _prepare(self, sources: tuple[Source, ...]) -> _Prepared:
        def both(p_TN: npt.NDArray[np.float32]) -> Floats:
            return np.stack([dual(p_TN, self.window), p_TN.mean(0, dtype=np.float64)])

        (scores, means), _ = mean_over_epochs(
            sources, "target_probability", both, self.name, self.first, at_least=self.window
        )
        ids = sources[0].train_ids
        check_scores(scores, ids, self.name)
        return _Prepared(scores.astype(np.float32), means, ids, random_keys(ids, self.seed, 0xD0A1))

    def _pick(self, prepared: _Prepared, candidates: Positions, k: int) -> Picks:
        scores, ids, means = prepared.scores[candidates], prepared.ids[candidates], prepared.means[candidates]
        ranked = highest(scores, ids, candidates.size)
        if self.sampling == "none" or k == candidates.size:
            return Picks(candidates[ranked[:k]], scores[ranked[:k]])
        mu = float(means[ranked[:TOP]].mean())
        a, b = beta_parameters(mu, 1 - k / candidates.size, self.c)
        logs = log_weights(scores, means, a, b)
        possible = int(np.isfinite(logs).sum())
        if possible < k:
            raise InputError(
                f"dual: {k} examples are to be drawn, but only {possible} of {candidates.size} have a score above 0 "
                "(the others' probability never changed). Lower the budget, or pass sampling='none'."
            )
        # the k highest of log weight + Gumbel noise are k draws without replacement, each by weight
        drawn = highest(logs - np.log(-np.log(prepared.keys[candidates])), ids, k)
        kept = drawn[highest(scores[drawn], ids[drawn], k)]
        return Picks(candidates[kept], scores[kept], info={"a": a, "b": b, "mu": mu})
