"""Random projections of gradients: linear, unbiased, seeded, and as accurate as theory says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from comove.errors import InputError
from comove.gradients.projections import FastJL, Identity, Projection, Projector, Rademacher, Sparse

SIZES = {"a.weight": 60, "a.bias": 3, "b.weight": 200}
MAKERS: dict[str, Callable[[int, int], Projector]] = {
    "sparse": lambda dim, seed: Sparse(SIZES, dim, seed),
    "one sign": lambda dim, seed: Sparse(SIZES, dim, seed, nonzeros=1),
    "rademacher": lambda dim, seed: Rademacher(SIZES, dim, seed),
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def layers(flat: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    parts = torch.split(flat, list(SIZES.values()), 1)
    shapes: tuple[tuple[int, ...], ...] = ((6, 10), (3,), (4, 5, 10))
    return [(name, part.reshape(-1, *shape)) for name, part, shape in zip(SIZES, parts, shapes, strict=True)]


def matrix(projector: Projector) -> torch.Tensor:
    """(K, P), by projecting the unit vectors."""
    return projector.project(layers(torch.eye(sum(SIZES.values()))), 0).T


@every_kind
@pytest.mark.parametrize("dim", [1, 7, 64, 500])
def test_projecting_layer_by_layer_is_the_product_with_one_fixed_matrix(
    make: Callable[[int, int], Projector], dim: int
) -> None:
    projector, g = make(dim, 3), torch.randn(5, 263, generator=torch.Generator().manual_seed(0))
    s_KP = matrix(projector)
    projected = projector.project(iter(layers(g)), model_id=4)
    assert projected.shape == (5, dim)
    torch.testing.assert_close(projected, g @ s_KP.T, rtol=1e-5, atol=1e-5)
    projector.free_memory()
    torch.testing.assert_close(projector.project(layers(g), 0), projected, rtol=0, atol=0)


@every_kind
def test_the_seed_decides_the_matrix(make: Callable[[int, int], Projector]) -> None:
    torch.testing.assert_close(matrix(make(32, 5)), matrix(make(32, 5)), rtol=0, atol=0)
    assert (matrix(make(32, 5)) != matrix(make(32, 6))).any()


@every_kind
def test_no_global_generator_is_touched(make: Callable[[int, int], Projector]) -> None:
    before = torch.get_rng_state()
    make(16, 0)
    assert torch.equal(before, torch.get_rng_state())


@every_kind
def test_inner_products_are_kept_on_average_with_the_promised_spread(make: Callable[[int, int], Projector]) -> None:
    g = torch.randn(2, 263, generator=torch.Generator().manual_seed(1))
    g[1] += g[0]
    truth, k, draws = float(g[0] @ g[1]), 40, 150
    products = torch.empty(draws)
    for seed in range(draws):
        phi = make(k, seed).project(layers(g), 0)
        products[seed] = phi[0] @ phi[1]
    spread = float((g[0].square().sum() * g[1].square().sum() + truth**2) / k) ** 0.5
    assert abs(float(products.mean()) - truth) < 4 * spread / draws**0.5
    assert 0.75 < float(products.std()) / spread < 1.25


def test_a_column_of_the_sparse_matrix_holds_four_signs() -> None:
    s_KP = matrix(Sparse(SIZES, 1000, 0))
    assert int((s_KP != 0).sum(0).max()) == 4
    assert int((s_KP != 0).sum()) > 0.99 * 4 * 263  # a few signs meet in one row
    torch.testing.assert_close(s_KP[s_KP != 0].abs().min(), torch.tensor(0.5))


def test_the_rows_of_the_sparse_matrix_are_used_evenly() -> None:
    drawn = [(matrix(Sparse(SIZES, 64, seed)) != 0).sum(1) for seed in range(200)]
    used = torch.stack(drawn).double().mean(0)
    expected = 4 * 263 / 64
    assert (used - expected).abs().max() < 0.1 * expected


def test_identity_is_the_flat_gradient() -> None:
    g, projector = torch.randn(4, 263), Identity(SIZES)
    assert projector.proj_dim == 263
    torch.testing.assert_close(projector.project(layers(g), 0), g, rtol=0, atol=0)


def test_double_precision_gradients_are_projected_in_double_precision() -> None:
    projected = Sparse(SIZES, 16, 0).project(layers(torch.randn(3, 263, dtype=torch.float64)))
    assert projected.dtype == torch.float64


def test_a_dense_matrix_that_would_not_fit_is_refused_with_its_size() -> None:
    with pytest.raises(InputError, match=r"11,000,000 gradient entries .* 83.9 GiB.*projector='sparse'"):
        Rademacher({"w": 11_000_000}, 2048, 0)


def test_fast_jl_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match=r"fast_jl' needs a CUDA device.*cpu.*projector='sparse'"):
        FastJL(SIZES, 512, 0, device="cpu")


@pytest.mark.parametrize(("examples", "expected"), [(5000, 512), (1024, 512), (200, 100), (1, 1)])
def test_the_default_dimension_is_512_or_half_the_training_set(examples: int, expected: int) -> None:
    assert Projection().dimension(examples, 10**6) == expected


def test_more_dimensions_than_training_examples_are_refused() -> None:
    assert Projection(proj_dim=200).dimension(200, 9) == 200
    with pytest.raises(InputError, match=r"proj_dim, 201, must not exceed the 200 training"):
        Projection(proj_dim=201).dimension(200, 9)
    with pytest.raises(InputError, match=r"number of parameters, 201, must not exceed the 200"):
        Projection("none").dimension(200, 201)
