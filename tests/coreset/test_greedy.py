"""Lazy greedy picks what plain greedy picks, with fewer evaluations, and maximises as well as submodlib."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from comove.coreset.craig import facility_location
from comove.coreset.graphcut import graph_cut
from comove.coreset.greedy import FacilityLocation, Positions, eager_greedy, lazy_greedy
from comove.errors import InputError

Floats = npt.NDArray[np.float64]


def similarities(n: int, seed: int, dimension: int = 3) -> Floats:
    points = np.random.default_rng(seed).standard_normal((n, dimension))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    return np.asarray(distances.max() - distances)


def facility_value(similarity: Floats, picks: npt.ArrayLike) -> float:
    return float(similarity[:, np.asarray(picks)].max(1).sum())


def cut_value(similarity: Floats, picks: npt.ArrayLike, lam: float) -> float:
    chosen = np.asarray(picks)
    return float(lam * similarity[:, chosen].sum() - similarity[np.ix_(chosen, chosen)].sum())


def plain_greedy(value: Any, n: int, k: int) -> tuple[list[int], list[float]]:
    """One candidate at a time, all others evaluated by the function's definition; ties to the lower index."""
    picks: list[int] = []
    gains = []
    now = 0.0
    for _ in range(k):
        best = max((x for x in range(n) if x not in picks), key=lambda x: (round(value([*picks, x]), 9), -x))
        picks.append(best)
        gains.append(value(picks) - now)
        now = value(picks)
    return picks, gains


@pytest.mark.parametrize("seed", range(5))
def test_lazy_facility_location_is_plain_greedy(seed: int) -> None:
    similarity = similarities(40, seed)
    picks, gains, served = facility_location(similarity, 15)
    expected, expected_gains = plain_greedy(lambda s: facility_value(similarity, s), 40, 15)
    assert picks.tolist() == expected
    np.testing.assert_allclose(gains, expected_gains, atol=1e-9)
    assert gains.sum() == pytest.approx(facility_value(similarity, picks))
    assert served.tolist() == np.bincount(similarity[:, picks].argmax(1), minlength=15).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lam", [1.0, 2.0, 3.5])
def test_graph_cut_is_plain_greedy(seed: int, lam: float) -> None:
    similarity = similarities(30, seed)
    picks, gains = graph_cut(similarity, 30, lam)
    expected, expected_gains = plain_greedy(lambda s: cut_value(similarity, s, lam), 30, 30)
    assert picks[:28].tolist() == expected[:28]  # with lam = 2 and s_xx alike the last two always tie
    np.testing.assert_allclose(gains, expected_gains, atol=1e-8)
    assert sorted(picks.tolist()) == list(range(30))
    assert (lam >= 2) == bool((gains >= 0).all())


def test_gains_of_facility_location_never_grow() -> None:
    gains = facility_location(similarities(200, 3), 200)[1]
    assert (np.diff(gains) <= 1e-9).all()
    assert gains[-1] >= 0


@pytest.mark.parametrize("width", [2, 7, 1000])
def test_how_many_are_evaluated_at_a_time_changes_nothing(width: int) -> None:
    similarity = similarities(60, 1)

    def select(width: int) -> Positions:
        return lazy_greedy(FacilityLocation(lambda c: similarity[c], 60), similarity.sum(1), 25, width=width)[0]

    np.testing.assert_array_equal(select(width), select(1))


def test_few_candidates_are_evaluated_again() -> None:
    similarity = similarities(600, 0)
    evaluated = 0

    def rows(candidates: Positions) -> Floats:
        nonlocal evaluated
        evaluated += candidates.size
        return np.asarray(similarity[candidates])

    lazy_greedy(FacilityLocation(rows, 600), similarity.sum(1), 60)
    assert evaluated < 600 * 60 / 10


def test_ties_go_to_the_lower_index() -> None:
    assert facility_location(np.ones((5, 5)), 5)[0].tolist() == [0, 1, 2, 3, 4]
    assert graph_cut(np.ones((5, 5)), 5)[0].tolist() == [0, 1, 2, 3, 4]
    twice = np.kron(np.eye(3), np.ones((2, 2)))  # three pairs of duplicates
    assert facility_location(twice, 4)[0].tolist() == [0, 2, 4, 1]
    assert facility_location(twice, 4)[2].tolist() == [2, 2, 2, 0]


def test_picks_are_made_even_where_every_gain_is_negative() -> None:
    picks, gains = eager_greedy([-3.0, -1.0, -2.0], lambda pick, now: np.subtract(now, 1, out=now), 3)
    assert picks.tolist() == [1, 2, 0]
    assert gains.tolist() == [-1, -3, -5]


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_number_of_picks_out_of_range_is_refused(k: int) -> None:
    for select in (facility_location, graph_cut):
        with pytest.raises(InputError, match=f"from 1 to the 5 candidates, got {k}"):
            select(np.ones((5, 5)), k)


# --- against submodlib -------------------------------------------------------------------------------------------


OLD_SCIPY = pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")  # its own import


@pytest.fixture(scope="module")
def submodlib() -> Any:
    """The independent implementation; its docstrings hold invalid escapes, which warn when first compiled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("submodlib")
    except ImportError as error:
        pytest.skip(f"submodlib-py cannot be imported (it has no wheels for Python 3.13 and later): {error}")


@OLD_SCIPY
@pytest.mark.parametrize("seed", range(3))
def test_facility_location_reaches_the_value_of_submodlib(seed: int, submodlib: Any) -> None:
    similarity = similarities(300, seed, dimension=6)
    function = submodlib.FacilityLocationFunction(
        n=300, mode="dense", sijs=similarity.astype(np.float32), separate_rep=False
    )
    theirs = function.maximize(budget=30, optimizer="NaiveGreedy", stopIfZeroGain=False, show_progress=False)
    value = facility_value(similarity, [index for index, _ in theirs])
    assert facility_value(similarity, facility_location(similarity, 30)[0]) == pytest.approx(value, rel=1e-5)


@OLD_SCIPY
@pytest.mark.parametrize("lam", [1.0, 2.0, 4.0])
def test_graph_cut_reaches_the_value_of_submodlib(lam: float, submodlib: Any) -> None:
    """Its ``lambdaVal`` multiplies the likeness among the picks: 1 / lam of ours."""
    similarity = similarities(200, 5, dimension=6)
    function = submodlib.GraphCutFunction(
        n=200, mode="dense", lambdaVal=1 / lam, ggsijs=similarity.astype(np.float32), separate_rep=False
    )
    theirs = function.maximize(
        budget=20, optimizer="NaiveGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    value = cut_value(similarity, [index for index, _ in theirs], lam)
    ours = graph_cut(similarity, 20, lam)[0]
    assert cut_value(similarity, ours, lam) == pytest.approx(value, rel=1e-5)
    assert value == pytest.approx(lam * function.evaluate({index for index, _ in theirs}), rel=1e-4)
