"""S = union over strata b of U(S_b, budget_b): drop the beta N hardest, then cover every level of difficulty.

The rest of the scores' range is cut into n intervals of equal width, the budget shared so that small strata are kept
whole (:func:`comove.coreset.strata.allocate`), and each stratum sampled uniformly.

Shape legend: N examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.checks import check_seed, check_share, whole_number
from comove.coreset.aum import AUM
from comove.coreset.base import Picks, Positions, ScoreSelector, Selector, adopt, as_selector
from comove.coreset.strata import draw, equal_width, random_keys
from comove.data import Ids
from comove.errors import InputError, InputTypeError
from comove.ties import highest
from comove.training.sources import Source

__all__ = ["CCS", "coverage_centric", "default_beta"]

BETA = ((0.5, 0.7, 0.8, 0.9), (0.0, 0.1, 0.1, 0.3))
"""Pruning rates, and the share of hardest examples dropped at each, for CIFAR-10. Of these only .3 at .9 was read in
the authors' repository; the others are unconfirmed, so they are a default to override and no quotation."""


def default_beta(pruning_rate: float) -> float:
    """Return the share of hardest examples to drop: 0 up to a pruning rate of .5, .1 at .7 and .8, .3 from .9 on."""
    return float(np.interp(pruning_rate, *BETA))


def coverage_centric(
    hardness_N: npt.ArrayLike, ids: Ids, keys_N: npt.NDArray[np.float64], k: int, *, beta: float = 0.0, n: int = 50
) -> npt.NDArray[np.int64]:
    """Return the positions of ``k`` examples that cover all levels of difficulty, the hardest dropped. O(N log N).

    Args:
        hardness_N: (N,) scores, higher is harder.
        ids: (N,), for ties.
        keys_N: (N,) independent random numbers; within a stratum the highest are kept.
        k: how many.
        beta: the share dropped, floor(beta N) examples.
        n: number of strata.

    Raises:
        InputError: ``beta`` above the pruning rate: fewer than ``k`` examples would be left.
    """
    hardness = np.asarray(hardness_N, np.float64)
    dropped = math.floor(beta * hardness.size + 1e-9)  # .29 * 100 is 28.999...96
    if hardness.size - dropped < k:
        raise InputError(
            f"ccs: beta must not exceed the pruning rate: beta = {beta:g} drops {dropped} of {hardness.size} examples, "
            f"but keeping {k} prunes only {hardness.size - k}. Lower beta or the budget."
        )
    rest = highest(hardness, ids, hardness.size)[dropped:]
    easiness = -hardness[rest]  # strata are cut from the hardest on, as the authors cut AUM
    return rest[draw(equal_width(easiness, n), keys_N[rest], k)]


class _Prepared(NamedTuple):
    hardness: npt.NDArray[np.float32]
    ids: Ids
    keys: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CCS(Selector):
    """Coverage-centric coreset selection (Zheng, Liu, Lai, Prakash, ICLR 2023).

    Args:
        score: what says how hard an example is: any score selector, or its name (``"cld"``, ``"el2n:first=5"``). Where
            its highest scores are the easiest examples' (``easy_first``), its lowest count as the hardest. The authors'
            is AUM of class probabilities.
        beta: the share of hardest examples dropped; by default by pruning rate (:func:`default_beta`, the values for
            CIFAR-10 with straight lines between them, a choice of ours; other data needs its own).
        strata: how many (the authors: 50).
        seed: of the sampling.

    Raises:
        InputError: a share outside [0, 1), fewer than one stratum; when selecting, ``beta`` above the pruning rate.
        InputTypeError: ``score`` is no score selector.
    """

    name: ClassVar[str] = "ccs"
    summary: ClassVar[str] = "the hardest dropped, then evenly from all levels of difficulty"
    cost: ClassVar[str] = "O(NT + N log N) on the recorded margins"

    score: ScoreSelector | str = AUM(margin="prob")  # noqa: RUF009  (frozen)
    beta: float | None = None
    strata: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        inner = as_selector(self.score, self.name)
        if not isinstance(inner, ScoreSelector):
            raise InputTypeError(f"ccs: score must be a method that scores every example, got {inner}.")
        object.__setattr__(self, "score", inner)
        adopt(self, inner, "requires", "one_run")
        check_seed(self.seed, self.name)
        if self.beta is not None:
            check_share(self.beta, f"{self.name}: beta")
        whole_number(self.strata, f"{self.name}: strata", 1, error=InputError)

    def _prepare(self, sources: tuple[Source, ...]) -> _Prepared:
        assert isinstance(self.score, ScoreSelector)
        ranked = self.score._prepare(sources)
        hardness = -ranked.scores if self.score.easy_first else ranked.scores
        return _Prepared(hardness, ranked.ids, random_keys(ranked.ids, self.seed, 0xCC5))

    def _pick(self, prepared: _Prepared, candidates: Positions, k: int) -> Picks:
        hardness, ids, keys = prepared.hardness[candidates], prepared.ids[candidates], prepared.keys[candidates]
        beta = default_beta(1 - k / candidates.size) if self.beta is None else self.beta
        kept = coverage_centric(hardness, ids, keys, k, beta=beta, n=self.strata)
        kept = kept[highest(hardness[kept], ids[kept], k)]
        info: dict[str, Any] = {"beta": beta, "dropped": math.floor(beta * candidates.size + 1e-9)}
        return Picks(candidates[kept], hardness[kept], info=info)
