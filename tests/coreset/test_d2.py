"""D2: messages and picks of the specification's example, against loops over the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from comove.coreset import ScoreSelector, select
from comove.coreset.aum import AUM
from comove.coreset.cld import CLDCoreset
from comove.coreset.d2 import D2, Graph, d2_pruning, forward_messages, neighbour_graph
from comove.coreset.neighbours import nearest_neighbours
from comove.errors import InputError, InputTypeError
from comove.ties import tie_order
from comove.trace import Trace
from comove.training import Run
from comove.training.sources import Source

Anchored = Callable[..., Trace]

LINE = np.array([[0.0], [1.0], [2.5], [10.0]])
SCORES = [1.0, 2.0, 3.0, 4.0]
EVEN = np.full((4, 2), 0.5)


@dataclass(frozen=True)
class Given(ScoreSelector):
    """Difficulties given, in the order of the trace."""

    name: ClassVar[str] = "given"
    values: tuple[float, ...] = ()

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        return np.array(self.values, np.float32)


def graph_of(points: npt.NDArray[np.float64], knn: int) -> Graph:
    return neighbour_graph(nearest_neighbours(points, knn))


def edges(graph: Graph) -> set[tuple[int, int]]:
    return set(zip(graph.source_E.tolist(), graph.target_E.tolist(), strict=True))


def test_the_graph_joins_two_when_either_is_a_neighbour_of_the_other() -> None:
    graph = graph_of(LINE, 1)
    assert edges(graph) == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}
    lengths = dict(
        zip(zip(graph.source_E.tolist(), graph.target_E.tolist(), strict=True), graph.distance_E, strict=True)
    )
    assert lengths[(0, 1)] == lengths[(1, 0)] == 1
    assert lengths[(2, 3)] == lengths[(3, 2)] == 7.5


def test_the_example_of_the_specification_comes_out() -> None:
    graph = graph_of(LINE, 1)
    messages = forward_messages(SCORES, graph)
    np.testing.assert_allclose(messages, [1.735759, 3.037270, 3.448473, 4.001659], atol=1e-6)
    squared = forward_messages(SCORES, graph, squared=True)
    np.testing.assert_allclose(squared, [1.735759, 2.684077, 3.210798, 4.0], atol=1e-6)
    assert d2_pruning(messages, graph, 3, gamma=1.0)[0].tolist() == [3, 2, 1]
    assert d2_pruning(messages, graph, 3, gamma=0.1)[0].tolist() == [3, 1, 0]


@pytest.mark.parametrize(("gamma", "order"), [(1.0, [3, 2, 1]), (0.1, [3, 1, 0])])
def test_the_selector_gives_the_example_too(gamma: float, order: list[int], anchored: Anchored) -> None:
    ids = [70, 60, 50, 40]
    trace = anchored(LINE, EVEN, [0, 1, 0, 1], ids)
    coreset = D2(Given(tuple(SCORES)), neighbours=1, gamma_reverse=gamma).select(trace, 3)
    assert coreset.ids.tolist() == [ids[position] for position in order]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0])
def test_messages_and_picks_follow_the_definition(seed: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    points, scores = rng.standard_normal((60, 3)), rng.random(60)
    graph = graph_of(points, 4)
    near = [set(np.argsort(np.linalg.norm(points - p, axis=1), kind="stable")[1:5].tolist()) for p in points]
    joined = {(i, j) for i in range(60) for j in range(60) if j in near[i] or i in near[j]}
    assert edges(graph) == joined
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    u = np.array([scores[i] + sum(np.exp(-distance[i, j]) * scores[j] for a, j in joined if a == i) for i in range(60)])
    np.testing.assert_allclose(forward_messages(scores, graph), u, atol=1e-12)
    picks, values = d2_pruning(u, graph, 60, gamma=gamma)
    left, expected, taken = u.copy(), [], []
    for _ in range(60):
        best = max((i for i in range(60) if i not in expected), key=lambda i: (left[i], -i))
        expected.append(best)
        taken.append(left[best])
        for a, j in joined:
            if a == best and j not in expected:
                left[j] -= np.exp(-gamma * distance[a, j]) * left[best]
    assert picks.tolist() == expected
    np.testing.assert_allclose(values, taken, atol=1e-9)


def test_duplicates_are_not_picked_together() -> None:
    points = np.array([[0.0], [0.0], [5.0], [5.0], [9.0]])
    graph = graph_of(points, 1)
    messages = forward_messages([5.0, 5.0, 4.0, 4.0, 1.0], graph)
    assert set(d2_pruning(messages, graph, 3, gamma=1.0)[0].tolist()) == {0, 2, 4}


def test_scores_that_are_all_zero_fill_the_budget_by_the_hash_of_the_id(anchored: Anchored) -> None:
    ids = np.array([9, 3, 7, 5])
    trace = anchored(LINE, EVEN, [0, 1, 0, 1], ids)
    chosen = D2(Given((0.0,) * 4)).select(trace, 4)
    assert chosen.ids.tolist() == ids[tie_order(ids)].tolist()
    assert chosen.scores.tolist() == [0.0] * 4  # a difficulty of 0 sends nothing, and nothing is raised to a floor


def test_negative_difficulties_are_shifted_to_start_at_zero(anchored: Anchored) -> None:
    trace = anchored(LINE, EVEN, [0, 1, 0, 1])
    low, shifted = Given((-3.0, -2.0, -1.0, 0.0)), Given((0.0, 1.0, 2.0, 3.0))
    one, other = (D2(given, neighbours=1).select(trace, 4) for given in (low, shifted))
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_forgetting_is_the_default_and_other_scores_go_by_name(run: Run) -> None:
    coreset = select("d2", run, 40)
    assert coreset.method == "d2"
    np.testing.assert_array_equal(coreset.ids, select("d2", run, 40, difficulty="forgetting").ids)
    by_margin = select("d2", run, 40, difficulty="aum")
    assert set(by_margin.ids.tolist()) != set(coreset.ids.tolist())


def test_cld_is_spread_as_its_formula_written_out_says(run: Run) -> None:
    coreset = select("d2:difficulty=cld:neighbours=4", run, 60)
    assert coreset.method == "d2(difficulty=cld, neighbours=4)"
    ids, scores = run.trace.train_ids, CLDCoreset().scores(run).astype(np.float64)
    points = run.trace.features("train", max(run.trace.anchors)).astype(np.float64)
    distance = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
    near = np.zeros(distance.shape, bool)
    for i, row in enumerate(distance):
        near[i, sorted(set(range(row.size)) - {i}, key=lambda j: row[j])[:4]] = True
    near |= near.T
    scores -= min(0.0, scores.min())
    u = np.array(
        [scores[i] + sum(np.exp(-distance[i, j]) * scores[j] for j in np.flatnonzero(near[i])) for i in range(ids.size)]
    )
    expected: list[int] = []
    for _ in range(60):
        best = int(np.argmax(np.where(np.isin(np.arange(ids.size), expected), -np.inf, u)))
        expected.append(best)
        u[near[best]] -= np.exp(-0.1 * distance[best, near[best]]) * u[best]
    assert coreset.ids.tolist() == ids[expected].tolist()


def test_the_cut_off_leaves_out_the_lowest_areas_under_the_margin(run: Run) -> None:
    hardest = AUM(margin="prob").select(run, 60).ids
    coreset = D2(cutoff=0.3).select(run, 100)
    assert not np.isin(coreset.ids, hardest).any()
    assert coreset.info["dropped"] == 60
    assert np.isin(D2().select(run, 100).ids, hardest).any()
    with pytest.raises(InputError, match=r"cutoff = 0\.3 drops 60 of 200 examples, but keeping 141 prunes only 59"):
        D2(cutoff=0.3).select(run, 141)


def test_a_class_of_one_example_has_no_neighbours_and_is_picked(anchored: Anchored) -> None:
    trace = anchored(LINE, EVEN, [0, 0, 0, 1])
    inner = D2(Given(tuple(SCORES)))
    assert sorted(select("per_class", trace, {0: 1, 1: 1}, selector=inner).ids.tolist()) == [2, 3]


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="d2: neighbours must be a whole number from 1 on, got 0"):
        D2(neighbours=0)
    with pytest.raises(InputError, match="d2: gamma_reverse must be a finite number from 0 on, got -1"):
        D2(gamma_reverse=-1)
    with pytest.raises(InputError, match=r"d2: cutoff must be a share from 0 to below 1, got 1\.0"):
        D2(cutoff=1.0)
    with pytest.raises(InputTypeError, match="d2: difficulty must be a method that scores every example, got herding"):
        D2(difficulty="herding")
