"""Input curvature, known in closed form for quadratics, and the lowest of it on a real run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from comove.coreset import select
from comove.coreset.input_gradients import loss_gradients
from comove.coreset.slocurv import SloCurv, curvatures
from comove.errors import InputError
from comove.training import Run

DIAGONAL = torch.tensor([1.0, 2.0], dtype=torch.float64)


def quadratic(x: Tensor, labels: Tensor) -> Tensor:
    """The gradient of x' diag(1, 2) x / 2."""
    return x * DIAGONAL


def of_quadratic(n: int = 6, **options: float) -> np.ndarray:
    inputs = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(n, dtype=torch.int64)
    return curvatures(quadratic, lambda places: inputs[places], labels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_the_example_of_the_specification_comes_out(seed: int) -> None:
    found = of_quadratic(h=0.1, directions=3, seed=seed)
    np.testing.assert_allclose(found, 0.05, rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(found), 0.223607, atol=1e-6)
    np.testing.assert_allclose(found / 0.1**2, 5, rtol=1e-9)


def test_the_mean_over_directions_is_that_of_hutchinson() -> None:
    """E ||H v||^2 = trace(H' H) for random signs."""
    hessian = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    inputs = torch.zeros(400, 3, dtype=torch.float64)
    found = curvatures(lambda x, y: x @ hessian, lambda p: inputs[p], torch.zeros(400, dtype=torch.int64), h=0.5)
    assert found.mean() / 0.25 == pytest.approx(float((hessian @ hessian).trace()), rel=0.05)
    assert found.std() > 0


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_directions_belong_to_examples_and_not_to_batches(batch: int) -> None:
    inputs = torch.randn(50, 3, 5, generator=torch.Generator().manual_seed(1))

    def cubic(x: Tensor, labels: Tensor) -> Tensor:
        return x**2 + x.sum((1, 2), keepdim=True)

    labels = torch.zeros(50, dtype=torch.int64)
    whole = curvatures(cubic, lambda p: inputs[p], labels, h=0.1, directions=2)
    np.testing.assert_allclose(curvatures(cubic, lambda p: inputs[p], labels, h=0.1, directions=2, batch=batch), whole)
    assert not np.allclose(curvatures(cubic, lambda p: inputs[p], labels, h=0.1, directions=2, seed=1), whole)


def test_scores_of_a_real_run_are_those_of_float64(run: Run) -> None:
    """Float32 loses little at h = .001: the order stays, though the loss of sure examples is far below its digits."""
    examples = run.data().train.subset(run.trace.train_ids)
    order = np.argsort(examples.ids)
    inputs = examples.batch(order)[0].double()
    network = run.load_model().double()
    labels = torch.from_numpy(examples.labels[order])
    truth = np.empty(200)
    truth[order] = curvatures(lambda x, y: loss_gradients(network, x, y), lambda places: inputs[places], labels, h=1e-3)
    np.testing.assert_allclose(-SloCurv().scores(run), truth, rtol=0.01)


def test_examples_lying_flat_are_kept_class_by_class(run: Run) -> None:
    scores = SloCurv().scores(run)
    coreset = select("slocurv", run, 40)
    assert (scores < 0).all()
    trace = run.trace
    for label, count in coreset.per_class.items():
        members = trace.train_labels == label
        flattest = trace.train_ids[members][np.argsort(-scores[members])[:count]]
        assert set(flattest.tolist()) == set(coreset.ids[coreset.labels == label].tolist())


def test_curvature_is_higher_where_the_network_is_unsure(run: Run) -> None:
    unsure = 1 - run.trace.read("train", "target_probability")[-1]
    scores = SloCurv().scores(run)
    sure, others = unsure < np.quantile(unsure, 0.3), unsure > np.quantile(unsure, 0.7)
    assert np.median(-scores[others]) > 3 * np.median(-scores[sure])


@pytest.mark.parametrize(("option", "value"), [("h", 0), ("h", np.nan), ("directions", 0), ("seed", -1)])
def test_bad_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"slocurv: {option} must be"):
        SloCurv(**{option: value})  # type: ignore[arg-type]
