"""f(S) = lam sum_{m, j in S} s_mj - sum_{i, j in S} s_ij: like all the others, unlike one another.

m runs over all candidates. The gain of x is lam sum_m s_mx - 2 sum_{j in S} s_jx - s_xx; s_ij = (1 + cos(g_i, g_j)) / 2
of last-layer gradients. With lam >= 2 no gain is negative.

Shape legend: N candidates, k picks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from comove.checks import check_number
from comove.coreset.base import Picks, Positions, Selector
from comove.coreset.greedy import eager_greedy
from comove.coreset.last_layer import LastLayerGradients, anchor_gradients, in_tie_order
from comove.data import Ids
from comove.training.sources import Source

__all__ = ["GraphCut", "gradient_graph_cut", "graph_cut"]

Floats = npt.NDArray[np.float64]


def graph_cut(similarity_NN: npt.ArrayLike, k: int, lam: float = 2.0) -> tuple[Positions, Floats]:
    """Maximise the graph cut function by greedy: ``k`` picks even where gains become negative (lam < 2).

    Args:
        similarity_NN: (N, N), symmetric.
        k: from 1 to N.
        lam: weight of likeness to all against likeness among the picks.

    Returns:
        (k,) picks in order (ties to the lower index), and the gain of each.

    Raises:
        InputError: k out of range.
    """
    similarity = np.asarray(similarity_NN, np.float64)
    return _maximise(similarity.sum(0), similarity.diagonal(), lambda pick: similarity[pick], k, lam)


def gradient_graph_cut(gradients: LastLayerGradients, k: int, lam: float = 2.0) -> tuple[Positions, Floats]:
    """Maximise it for s_ij = (1 + cos(g_i, g_j)) / 2 without any (N, N) matrix; a gradient of zero has cosine 0.

    O(N C F) for the sums over all and O(N (C + F)) a pick: one row of similarities changes all gains, which is less
    than a heap of old gains would cost.

    Raises:
        InputError: k out of range.
    """
    unit = gradients.double().unit()
    zero_N = ~unit.errors_NC.any(1)
    sums_N = (len(unit) + unit.along(unit.mean(np.ones(len(unit)))) + zero_N) / 2  # an example is like itself: 1

    def row(pick: int) -> Floats:
        similarities: Floats = (1 + unit.take(np.array([pick])).gram(unit)[0]) / 2
        return similarities

    return _maximise(sums_N, np.ones(len(unit)), row, k, lam)


def _maximise(
    sums_N: Floats, own_N: Floats, row: Callable[[int], Floats], k: int, lam: float
) -> tuple[Positions, Floats]:
    def update(pick: int, gains_N: Floats) -> None:
        gains_N -= 2 * row(pick)

    return eager_greedy(lam * sums_N - own_N, update, k)


@dataclass(frozen=True)
class GraphCut(Selector):
    """Graph cut of last-layer gradients (Iyer, Khargonkar, Bilmes, Asnani, ALT 2021), class by class.

    Args:
        lam: 2 by default, the least for which f is monotone (the paper asks for 2 or more; DeepCore takes 1, with which
            gains become negative and likeness among the picks counts for more).
        epoch: after which epoch the gradients are taken; by default the last whose features were kept.
    """

    name: ClassVar[str] = "graphcut"
    summary: ClassVar[str] = "last-layer gradients like all others and unlike one another, class by class"
    cost: ClassVar[str] = "O(N_c (F + C)) a pick on features"
    balanced: ClassVar[bool] = True
    greedy: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    lam: float = 2.0
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_number(self.lam, f"{self.name}: lam")

    def _prepare(self, sources: tuple[Source, ...]) -> tuple[LastLayerGradients, Ids]:
        return anchor_gradients(sources[0], self.epoch, self.name), sources[0].train_ids

    def _pick(self, prepared: tuple[LastLayerGradients, Ids], candidates: Positions, k: int) -> Picks:
        gradients, ids = prepared
        ordered = in_tie_order(candidates, ids)
        picks, gains = gradient_graph_cut(gradients.take(ordered), k, self.lam)
        return Picks(ordered[picks], gains.astype(np.float32))
