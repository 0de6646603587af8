"""Influence in a random subspace: exact when the subspace is everything, reproducible, and its own basis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from comove.attribution.arnoldi import Arnoldi, SubspaceInfluence, dominant
from comove.attribution.rand_select import RandSelect, random_basis
from comove.errors import InputError
from comove.training import Run


def problem(size: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return half @ half.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def test_the_basis_is_orthonormal_and_the_matrix_is_the_operator_in_it() -> None:
    matrix = problem()
    vectors = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    basis, seen = random_basis(lambda v: matrix @ v, vectors)
    torch.testing.assert_close(basis @ basis.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen, basis @ matrix @ basis.T, rtol=0, atol=1e-12)
    outside = vectors - vectors @ basis.T @ basis
    assert float(outside.abs().max()) < 1e-12


def test_in_float32_it_is_orthonormal_to_1e_6() -> None:
    basis, _ = random_basis(lambda v: v, torch.randn(100, 5000, generator=torch.Generator().manual_seed(1)))
    gram = basis.double() @ basis.double().T
    assert float((gram - torch.eye(100)).abs().max()) < 1e-6


def test_a_subspace_of_all_dimensions_gives_the_inverse() -> None:
    matrix = problem()
    basis, seen = random_basis(lambda v: matrix @ v, torch.randn(20, 20, dtype=torch.float64))
    values, vectors, dropped = dominant(seen, 20)
    turned = vectors.T @ basis
    assert dropped == 0
    torch.testing.assert_close(turned.T @ torch.diag(1 / values) @ turned, torch.linalg.inv(matrix))


def test_the_restricted_inverse_is_that_of_the_projected_operator() -> None:
    matrix = problem()
    basis, seen = random_basis(lambda v: matrix @ v, torch.randn(5, 20, dtype=torch.float64))
    values, vectors, _ = dominant(seen, 5)
    turned = vectors.T @ basis
    truth = basis.T @ torch.linalg.inv(basis @ matrix @ basis.T) @ basis
    torch.testing.assert_close(turned.T @ torch.diag(1 / values) @ turned, truth)


def test_the_seed_fixes_the_scores_and_changes_them(run: Run) -> None:
    method = RandSelect(subspace_dim=20, rank=10, hessian_examples=40)
    first, second, other = (made.fit(run).attribute() for made in (method, method, replace(method, seed=1)))
    np.testing.assert_array_equal(first.values, second.values)
    assert np.abs(first.values - other.values).max() > 0.1 * np.abs(first.values).max()


def test_it_shares_all_but_the_basis_with_arnoldi(run: Run) -> None:
    for name in ("_fit", "_fit_one", "_scores", "_self_influence"):
        assert getattr(RandSelect, name) is getattr(Arnoldi, name) is getattr(SubspaceInfluence, name)
    method = RandSelect(subspace_dim=20, rank=10, hessian_examples=40)
    info = method.fit(run).attribute().info
    assert info["kept"][0] + info["dropped"][0] == 10
    assert (method.fit(run).self_influence() >= 0).all()


@pytest.mark.parametrize("options", [{"subspace_dim": 0}, {"rank": 0}, {"damping": float("inf")}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"rand-select: {next(iter(options))}"):
        RandSelect(**options)
