"""u_i = s_i + sum_{j ~ i} exp(-gamma_f d_ij) s_j; pick the largest u; then u_j <- u_j - exp(-gamma_r d_ij) u_i, j ~ i.

s_i >= 0 is the difficulty of an example, j ~ i its neighbours in a graph of nearest neighbours at distances d_ij. The
message forward says how hard an example's surroundings are; the one back keeps the selected examples apart.

Shape legend: N candidates, E directed edges, k picks (neighbours in the graph: knn).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.checks import check_number, check_share, whole_number
from comove.coreset.aum import AUM
from comove.coreset.base import Picks, Positions, ScoreSelector, Selector, adopt, as_selector
from comove.coreset.forgetting import Forgetting
from comove.coreset.greedy import check_count
from comove.coreset.last_layer import check_features, in_tie_order
from comove.coreset.neighbours import Neighbours, nearest_neighbours
from comove.coreset.trace_values import needs_anchor
from comove.data import Ids
from comove.errors import InputError, InputTypeError
from comove.ties import highest
from comove.training.sources import Source

__all__ = ["D2", "Graph", "d2_pruning", "forward_messages", "neighbour_graph"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph: the neighbours of i are ``target_E[start_N[i] : start_N[i + 1]]``.

    Attributes:
        start_N: (N + 1,) where each node's edges begin.
        target_E: (E,) the other end; every edge stands once at either end.
        distance_E: (E,) its length.
    """

    start_N: Positions
    target_E: Positions
    distance_E: Floats

    @property
    def source_E(self) -> Positions:
        """(E,) the node each edge begins at."""
        return np.repeat(np.arange(self.start_N.size - 1), np.diff(self.start_N))


def neighbour_graph(neighbours: Neighbours) -> Graph:
    """Join two examples when either is among the other's nearest neighbours."""
    n, k = neighbours.index_Nk.shape
    source_E, target_E = np.repeat(np.arange(n), k), neighbours.index_Nk.reshape(-1)
    either_E = np.concatenate([source_E * n + target_E, target_E * n + source_E])
    distance_E = np.tile(neighbours.distance_Nk.reshape(-1), 2)
    pairs_E, first_E = np.unique(either_E, return_index=True)
    start_N = np.searchsorted(pairs_E, np.arange(n + 1) * n)
    return Graph(start_N, pairs_E % n, distance_E[first_E])


def forward_messages(scores_N: npt.ArrayLike, graph: Graph, *, gamma: float = 1.0, squared: bool = False) -> Floats:
    """Return u (N,): each example's difficulty with that of its neighbours, less the further they are.

    Args:
        scores_N: (N,) difficulties.
        graph: of nearest neighbours.
        gamma: how fast messages fade with distance.
        squared: fade with the squared distance, as the paper writes; the authors' code takes the distance itself.
    """
    scores = np.asarray(scores_N, np.float64)
    faded_E = np.exp(-gamma * (graph.distance_E**2 if squared else graph.distance_E))
    messages_E = faded_E * scores[graph.target_E]
    return scores + np.bincount(graph.source_E, messages_E, minlength=scores.size)


def d2_pruning(messages_N: npt.ArrayLike, graph: Graph, k: int, *, gamma: float = 0.1) -> tuple[Positions, Floats]:
    """Pick ``k`` examples, each the one of highest u, which then takes exp(-gamma d) u from its neighbours.

    O(k knn log N) with a heap, in which an example is entered again when its u changes.

    Args:
        messages_N: (N,) u after the forward messages.
        graph: of nearest neighbours.
        k: from 1 to N.
        gamma: how fast the message back fades with distance; 0 takes the whole of u from every neighbour.

    Returns:
        (k,) picks in order (ties to the lower index), and their u when picked.

    Raises:
        InputError: k out of range.
    """
    u: list[float] = np.asarray(messages_N, np.float64).tolist()
    check_count(k, len(u))
    start, target = graph.start_N.tolist(), graph.target_E.tolist()
    weight: list[float] = np.exp(-gamma * graph.distance_E).tolist()
    heap = [(-value, index) for index, value in enumerate(u)]
    heapq.heapify(heap)
    picked = [False] * len(u)
    order: list[int] = []
    while len(order) < k:
        negative, best = heapq.heappop(heap)
        if picked[best] or -negative != u[best]:
            continue  # entered again since
        picked[best] = True
        order.append(best)
        for edge in range(start[best], start[best + 1]):
            other = target[edge]
            if not picked[other]:
                u[other] -= weight[edge] * u[best]
                heapq.heappush(heap, (-u[other], other))
    return np.array(order), np.array([u[index] for index in order])


@dataclass(frozen=True)
class _Prepared:
    features_NF: npt.NDArray[np.float32]
    difficulty_N: Floats
    hardness_N: npt.NDArray[np.float32] | None
    ids: Ids


@dataclass(frozen=True)
class D2(Selector):
    """D2 pruning: difficulty and diversity by message passing (Maharana, Yadav, Bansal, ICLR 2024).

    O(N^2 F) for exact neighbours in penultimate features, O(k knn log N) for the picks. Over all examples, as in the
    paper; ``PerClass("d2")`` picks class by class with a graph for each, as the authors' example for CIFAR-10 does.

    Args:
        difficulty: a score selector that keeps the hardest first, or its name; forgetting events by default. Scores
            that can be negative are shifted to start at 0 (``"aum"`` becomes max AUM - AUM).
        neighbours: nearest neighbours of each example (5 in the authors' example for CIFAR-10 at 10 %).
        gamma_forward: how fast forward messages fade with distance.
        gamma_reverse: how fast messages back do (.1 in that example).
        squared: forward messages fade with the squared distance, as the paper writes; the authors' code has it plain.
        cutoff: share of the examples of lowest AUM (of class probabilities) left out at first, as wrongly labelled (.4
            in that example; the default of 0 is ours, as the right share depends on the budget and the data).
        epoch: after which epoch the features are taken; by default the last that were kept.
    """

    name: ClassVar[str] = "d2"
    summary: ClassVar[str] = "hard examples in hard surroundings, kept apart from each other"
    cost: ClassVar[str] = "O(N^2 F) on features for the neighbours, O(log N) a message"
    greedy: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    difficulty: ScoreSelector | str = Forgetting()  # noqa: RUF009  (frozen)
    neighbours: int = 5
    gamma_forward: float = 1.0
    gamma_reverse: float = 0.1
    squared: bool = False
    cutoff: float = 0.0
    epoch: int | None = None

    def __post_init__(self) -> None:
        inner = as_selector(self.difficulty, self.name)
        if not isinstance(inner, ScoreSelector):
            raise InputTypeError(f"d2: difficulty must be a method that scores every example, got {inner}.")
        object.__setattr__(self, "difficulty", inner)
        adopt(self, inner, "requires")
        whole_number(self.neighbours, f"{self.name}: neighbours", 1, error=InputError)
        check_number(self.gamma_forward, f"{self.name}: gamma_forward", zero=True)
        check_number(self.gamma_reverse, f"{self.name}: gamma_reverse", zero=True)
        check_share(self.cutoff, f"{self.name}: cutoff")

    def _prepare(self, sources: tuple[Source, ...]) -> _Prepared:
        assert isinstance(self.difficulty, ScoreSelector)
        features_NF = needs_anchor(sources[0], self.epoch, self.name).features_NF
        check_features(features_NF, sources[0].train_ids, self.name)
        difficulty_N = self.difficulty.scores(sources).astype(np.float64)
        difficulty_N -= min(0.0, float(difficulty_N.min()))
        hardness_N = AUM(margin="prob").scores(sources) if self.cutoff else None
        return _Prepared(features_NF, difficulty_N, hardness_N, sources[0].train_ids)

    def _pick(self, prepared: _Prepared, candidates: Positions, k: int) -> Picks:
        kept = in_tie_order(candidates, prepared.ids)
        info: dict[str, Any] = {}
        if prepared.hardness_N is not None:
            kept = self._cut(prepared.hardness_N[kept], prepared.ids[kept], kept, k)
            info["dropped"] = candidates.size - kept.size
        near = nearest_neighbours(prepared.features_NF[kept], self.neighbours)
        graph = neighbour_graph(near)
        messages_N = forward_messages(
            prepared.difficulty_N[kept], graph, gamma=self.gamma_forward, squared=self.squared
        )
        picks, values = d2_pruning(messages_N, graph, k, gamma=self.gamma_reverse)
        return Picks(kept[picks], values.astype(np.float32), info=info)

    def _cut(self, hardness_N: npt.NDArray[np.float32], ids: Ids, candidates: Positions, k: int) -> Positions:
        dropped = int(self.cutoff * candidates.size + 1e-9)
        if candidates.size - dropped < k:
            raise InputError(
                f"d2: cutoff must not exceed the pruning rate: cutoff = {self.cutoff:g} drops {dropped} of "
                f"{candidates.size} examples, but keeping {k} prunes only {candidates.size - k}. Lower either."
            )
        return np.delete(candidates, highest(hardness_N, ids, dropped))
