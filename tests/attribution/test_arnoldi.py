"""Arnoldi's basis and eigenpairs against dense linear algebra; its scores on trained networks and against captum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from comove.attribution.arnoldi import Arnoldi, arnoldi, dominant, hessian_resident
from comove.data import Splits
from comove.errors import InputError
from comove.gradients.hessian import Hessian, unflatten
from comove.gradients.per_example import PerExampleGradients
from comove.training import Recipe, Resident, Run, predict, train
from comove.training.sources import Source

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operations shared by two threads take longer, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=values.dtype)).Q
    made: Tensor = turn @ torch.diag(values) @ turn.T
    return made


def start_vector(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(9), dtype=dtype)


# --- the iteration ------------------------------------------------------------------------------------------------


def test_the_basis_is_orthonormal_in_float32_after_extreme_eigenvalues_have_converged() -> None:
    values = torch.cat([torch.tensor([1e3, 4e2, -2e2]), torch.linspace(-1e-2, 1, 397)])
    matrix = symmetric(values)
    basis, seen = arnoldi(lambda v: matrix @ v, start_vector(400, torch.float32), 120)
    gram = basis.double() @ basis.double().T
    assert basis.shape == (120, 400)
    assert float((gram - torch.eye(120)).abs().max()) < 1e-6
    truth = basis.double() @ matrix.double() @ basis.double().T
    assert float((seen - truth).abs().max()) < 1e-5 * 1e3
    torch.testing.assert_close(seen, seen.T, rtol=0, atol=0)


def test_dominant_eigenpairs_match_a_dense_eigendecomposition() -> None:
    values = torch.cat([torch.tensor([50, 20, -15, 9, 4], dtype=torch.float64), torch.linspace(-0.5, 0.5, 195)])
    matrix = symmetric(values)
    basis, seen = arnoldi(lambda v: matrix @ v, start_vector(200), 40)
    found, vectors, dropped = dominant(seen, 5)
    assert dropped == 1  # -15
    torch.testing.assert_close(found, torch.tensor([50.0, 20, 9, 4], dtype=torch.float64), rtol=1e-8, atol=0)
    ritz = vectors.T @ basis
    truth, true_vectors = torch.linalg.eigh(matrix)
    for value, vector in zip(found, ritz, strict=True):
        own = true_vectors[:, int((truth - value).abs().argmin())]
        assert abs(float(own @ vector)) > 1 - 1e-8


def test_an_exhausted_space_ends_the_iteration() -> None:
    matrix = symmetric(torch.tensor([3.0, 3, 3, 1, 1, 0, 0, 0], dtype=torch.float64))
    basis, seen = arnoldi(lambda v: matrix @ v, start_vector(8), 100)
    assert len(basis) == 3  # as many as there are distinct eigenvalues
    found = torch.linalg.eigvalsh(seen)
    torch.testing.assert_close(found, torch.tensor([0.0, 1, 3], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_no_more_vectors_than_parameters_and_no_curvature_at_all() -> None:
    assert arnoldi(lambda v: v * torch.arange(1.0, 5), start_vector(4, torch.float32), 100)[0].shape == (4, 4)
    basis, seen = arnoldi(torch.zeros_like, start_vector(4), 100)
    assert basis.shape == (1, 4)
    values, vectors, dropped = dominant(seen, 50)
    assert (len(values), vectors.shape, dropped) == (0, (1, 0), 1)


@pytest.mark.parametrize(
    ("values", "rank", "kept", "dropped"),
    [
        ([5.0, -4.0, 3.0, 0.0], 4, [5.0, 3.0], 2),
        ([5.0, -4.0, 3.0, 0.0], 2, [5.0], 1),
        ([-5.0, -4.0], 2, [], 2),
        ([1.0, 1e-5, 0.9e-5, 2e-5], 4, [1.0, 2e-5], 2),
        ([2.0, 1.0], 50, [2.0, 1.0], 0),
    ],
)
def test_ritz_values_at_or_below_the_tolerance_are_dropped(
    values: list[float], rank: int, kept: list[float], dropped: int
) -> None:
    found, vectors, count = dominant(torch.diag(torch.tensor(values, dtype=torch.float64)), rank)
    assert found.tolist() == pytest.approx(kept)
    assert vectors.shape == (len(values), len(kept))
    assert count == dropped


# --- on trained networks ------------------------------------------------------------------------------------------


def test_the_seed_fixes_the_scores_and_changes_them(run: Run) -> None:
    method = Arnoldi(arnoldi_dim=20, rank=5, hessian_examples=40)
    first, second, other = (made.fit(run).attribute() for made in (method, method, replace(method, seed=1)))
    np.testing.assert_array_equal(first.values, second.values)
    assert np.abs(first.values - other.values).max() > 1e-3 * np.abs(first.values).max()


def test_with_all_examples_leading_directions_do_not_depend_on_the_seed(run: Run) -> None:
    method = Arnoldi(arnoldi_dim=60, rank=5, hessian_examples=200)
    one, two = (replace(method, seed=seed).fit(run).attribute().values for seed in (0, 1))
    assert spearmanr(one.ravel(), two.ravel()).statistic > 0.999


def test_what_was_dropped_is_told(runs: tuple[Run, ...]) -> None:
    info = Arnoldi(arnoldi_dim=30, rank=30, hessian_examples=40).fit(runs).attribute().info
    assert [kept + dropped for kept, dropped in zip(info["kept"], info["dropped"], strict=True)] == [30, 30]
    assert min(info["dropped"]) > 0  # an undertrained network's Hessian is indefinite


def test_a_saturated_network_gives_finite_scores(small_digits: Splits, tmp_path: Any) -> None:
    recipe = Recipe(epochs=80, batch_size=32, lr=0.1, momentum=0.9)
    run = train(small_digits, "mlp", recipe, 0, tmp_path / "run")
    probabilities = torch.softmax(predict(run.load_model(), small_digits.train), 1).max(1).values
    assert float(probabilities.median()) > 0.9999
    fitted = Arnoldi(damping=0.0, rank=100).fit(run)
    scores = fitted.attribute()
    assert np.isfinite(scores.values).all()
    assert (fitted.self_influence() >= 0).all()
    assert scores.info["dropped"][0] > 0


def test_self_influence_is_larger_where_the_model_is_wrong(
    small_digits: Splits, short_recipe: Recipe, run: Run
) -> None:
    values = Arnoldi(arnoldi_dim=40, rank=20).fit(run).self_influence()
    logits = predict(run.load_model(), small_digits.train.subset(run.trace.train_ids))
    wrong = logits.argmax(1).numpy() != small_digits.train.subset(run.trace.train_ids).labels
    assert 0 < wrong.sum() < wrong.size / 2
    assert np.median(values[wrong]) > 1.5 * np.median(values[~wrong])


def test_the_batch_depends_on_seed_and_ids_only(run: Run) -> None:
    source = Source(run.trace, run)
    first, second, other = (hessian_resident(source, 30, seed, CPU).examples.ids for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert len(hessian_resident(source, 10_000, 0, CPU)) == run.trace.train_ids.size


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"arnoldi_dim": 0}, {"damping": -1}, {"hessian_examples": 0}, {"seed": -1}, {"rank": 2.5}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"arnoldi: {next(iter(options))}"):
        Arnoldi(**options)


# --- against captum -----------------------------------------------------------------------------------------------


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*body, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_ranks_like_captum_s(small_digits: Splits, tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip(
            "captum.influence._core.arnoldi_influence_function", reason="captum, a test-only peer, is not installed"
        )
    train_set, query_set = (Resident(part, CPU) for part in (small_digits.train, small_digits.query))
    model = small_cnn()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    everything = slice(0, len(train_set))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train_set.inputs(everything)), train_set.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    data = torch.utils.data.TensorDataset(train_set.inputs(everything), train_set.labels)

    def theirs(seed: int) -> np.ndarray[Any, Any]:
        method = module.ArnoldiInfluenceFunction(
            model,
            data,
            str(tmp_path / "weights.pt"),
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            batch_size=100,
            projection_dim=20,
            arnoldi_dim=60,
            seed=seed,
            sample_wise_grads_per_batch=True,
        )
        found: np.ndarray[Any, Any] = method.influence((query_set.inputs(slice(0, 40)), query_set.labels)).numpy()
        return found.T

    def ours(seed: int) -> np.ndarray[Any, Any]:
        gradients = PerExampleGradients(model)
        start = torch.randn(gradients.size, generator=torch.Generator().manual_seed(seed))
        basis, seen = arnoldi(Hessian(gradients, train_set), start, 60)
        values, vectors, dropped = dominant(seen, 20)
        assert dropped == 0  # else captum, which keeps them, computes something else
        directions = unflatten(vectors.T.float() @ basis, gradients.parameters)
        left, right = (gradients.inner_products(data, directions).double() for data in (train_set, query_set))
        return ((left / values) @ right.T).numpy()

    def agreement(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> float:
        return float(np.mean([spearmanr(one[:, q], two[:, q]).statistic for q in range(40)]))

    own, rival = ours(0), theirs(0)
    assert agreement(own, ours(1)) > 0.99  # the noise from seed to seed allows what is asked of the two
    assert agreement(own, rival) >= 0.99
    assert float((own * rival).sum()) > 0  # the same sign
