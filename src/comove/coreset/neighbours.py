"""N_k(i) = the k nearest of x_j, j != i, exactly: blocked matrix products, never N x N distances.

Distances are Euclidean and computed in float64, so that equal distances are equal and duplicates are at distance 0;
ties go to the lower index. An example is never its own neighbour; a duplicate of it is.

Shape legend: N examples, F features, k neighbours, B rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from comove.errors import InputError
from comove.training import resolve_device

__all__ = ["Neighbours", "nearest_neighbours", "unit_rows"]

BLOCK_BYTES = 256 << 20
"""A block of distances takes no more than this."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest neighbours of N examples.

    Attributes:
        index_Nk: (N, k) int64, nearest first.
        distance_Nk: (N, k) float64.
    """

    index_Nk: npt.NDArray[np.int64]
    distance_Nk: npt.NDArray[np.float64]


def unit_rows(features_NF: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the rows divided by their Euclidean norms; rows of zeros stay zeros."""
    norms_N = np.linalg.norm(features_NF, axis=1, keepdims=True)
    return features_NF / np.where(norms_N > 0, norms_N, 1)


def nearest_neighbours(
    features_NF: npt.ArrayLike, k: int, *, device: str | torch.device = "auto", block_bytes: int = BLOCK_BYTES
) -> Neighbours:
    """Return the k nearest neighbours of every example among the others, in O(N^2 F) time and O(N (F + k)) memory.

    Args:
        features_NF: (N, F).
        k: neighbours of each; all N - 1 others where k is more.
        device: where to compute.
        block_bytes: limit of one block of distances.

    Raises:
        InputError: no (N, F) array, NaN or infinite features, k below 1.
    """
    features = np.asarray(features_NF)
    if features.ndim != 2 or not len(features) or k < 1:
        raise InputError(f"Neighbours need features (N, F) and k >= 1, got shape {features.shape} and k = {k}.")
    if not np.isfinite(features).all():
        raise InputError("Neighbours need finite features; there are NaN or infinite ones. Did the run diverge?")
    n = len(features)
    k = min(k, n - 1)
    index_Nk, distance_Nk = np.empty((n, k), np.int64), np.empty((n, k), np.float64)
    if k == 0:
        return Neighbours(index_Nk, distance_Nk)
    points_NF = torch.from_numpy(np.array(features)).to(resolve_device(device), torch.float64)
    squares_N = points_NF.square().sum(1)
    rows = max(1, block_bytes // (8 * n))
    buffer_BN = points_NF.new_empty(min(rows, n), n)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        block_BN = torch.addmm(
            squares_N, points_NF[start:stop], points_NF.T, alpha=-2, out=buffer_BN[: stop - start]
        )  # less the row's own square, which changes no order
        block_BN[torch.arange(stop - start), torch.arange(start, stop)] = torch.inf
        chosen_Bk = _smallest(block_BN, k)
        distances_Bk = _distances(points_NF, start, chosen_Bk)
        order_Bk = np.lexsort((chosen_Bk.cpu().numpy(), distances_Bk.cpu().numpy()))
        index_Nk[start:stop] = np.take_along_axis(chosen_Bk.cpu().numpy(), order_Bk, 1)
        distance_Nk[start:stop] = np.take_along_axis(distances_Bk.cpu().numpy(), order_Bk, 1)
    return Neighbours(index_Nk, distance_Nk)


def _smallest(block_BN: torch.Tensor, k: int) -> torch.Tensor:
    """Return the columns (B, k) of each row's k smallest values; of those tied for the last place the first."""
    values_Bk, columns_Bk = block_BN.topk(k, 1, largest=False, sorted=True)
    last_B1 = values_Bk[:, -1:]
    tied = (block_BN <= last_B1).sum(1) > k
    for row in tied.nonzero()[:, 0].tolist():  # topk takes any of the tied
        below = (block_BN[row] < last_B1[row]).nonzero()[:, 0]
        equal = (block_BN[row] == last_B1[row]).nonzero()[:, 0]
        columns_Bk[row] = torch.cat([below, equal])[:k]
    return columns_Bk


def _distances(points_NF: torch.Tensor, start: int, columns_Bk: torch.Tensor) -> torch.Tensor:
    """Return the distances (B, k) by direct differences: that of a duplicate is 0, not a rounding error."""
    own_BF = points_NF[start : start + len(columns_Bk)]
    by_place = [torch.linalg.vector_norm(points_NF[column_B] - own_BF, dim=1) for column_B in columns_Bk.T]
    return torch.stack(by_place, 1)
