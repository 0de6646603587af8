"""Exact neighbours against scikit-learn and against distances written out; duplicates, ties, blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.neighbors import NearestNeighbors

from comove.coreset.neighbours import nearest_neighbours, unit_rows
from comove.errors import InputError


def brute(points: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.int64]:
    """Sorted by distance, then index, self left out."""
    rows = []
    for i, point in enumerate(points):
        distances = np.linalg.norm(points - point, axis=1)
        rows.append([j for j in np.lexsort((np.arange(len(points)), distances)) if j != i][:k])
    return np.array(rows)


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_scikit_learns(seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((300, 7)).astype(np.float32)
    found = nearest_neighbours(points, 6)
    distances, index = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(points.astype(float)).kneighbors()
    np.testing.assert_array_equal(found.index_Nk, index)
    np.testing.assert_allclose(found.distance_Nk, distances, atol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 4, 8])
def test_ties_go_to_the_lower_index_and_duplicates_are_neighbours_but_oneself_is_not(k: int) -> None:
    points = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(np.float64)  # a grid of 9: ties everywhere
    found = nearest_neighbours(points, k)
    np.testing.assert_array_equal(found.index_Nk, brute(points, k))
    assert not (found.index_Nk == np.arange(60)[:, None]).any()
    assert (found.distance_Nk[:, 0] == 0).all()


def test_all_examples_alike_have_the_first_others_as_neighbours() -> None:
    found = nearest_neighbours(np.full((5, 3), 0.1), 2)
    assert found.index_Nk.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert found.distance_Nk.tolist() == [[0, 0]] * 5


@pytest.mark.parametrize("block_bytes", [1, 8 * 97 * 10, 10**9])
def test_blocks_change_nothing(block_bytes: int) -> None:
    points = np.random.default_rng(1).standard_normal((97, 5))
    found, whole = nearest_neighbours(points, 4, block_bytes=block_bytes), brute(points, 4)
    np.testing.assert_array_equal(found.index_Nk, whole)


def test_near_points_far_from_the_origin_are_told_apart() -> None:
    points = 1e4 + np.array([[0.0], [1e-3], [3e-3], [7e-3]])
    found = nearest_neighbours(points, 3)
    assert found.index_Nk.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]
    np.testing.assert_allclose(found.distance_Nk[0], [1e-3, 3e-3, 7e-3], rtol=1e-6)


def test_fewer_examples_than_neighbours_give_all_others() -> None:
    assert nearest_neighbours([[0.0], [1.0], [5.0]], 10).index_Nk.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert nearest_neighbours([[3.0]], 10).index_Nk.shape == (1, 0)


def test_rows_of_zeros_stay_zeros_when_normed() -> None:
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="finite features"):
        nearest_neighbours([[0.0], [np.nan]], 1)
    with pytest.raises(InputError, match=r"shape \(2,\) and k = 1"):
        nearest_neighbours([0.0, 1.0], 1)
    with pytest.raises(InputError, match="k = 0"):
        nearest_neighbours([[0.0], [1.0]], 0)
