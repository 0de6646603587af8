"""Gradient norms: the last layer's in closed form, and the full one, against one backward pass an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from comove.coreset import grand as module
from comove.coreset import select, selector
from comove.coreset.grand import GraNd, grand_last
from comove.errors import InputError
from comove.trace import Trace
from comove.training import Run

Anchored = Callable[..., Trace]


def by_autograd(run: Run, epoch: int, parameters: slice) -> npt.NDArray[np.float64]:
    """The norm of each training example's gradient in some of the network's parameters, one backward pass each."""
    (checkpoint,) = [kept for kept in run.checkpoints if kept.epoch == epoch]
    model = run.load_model(checkpoint).double()
    chosen = list(model.parameters())[parameters]
    train = run.data().train.subset(run.trace.train_ids)
    inputs, labels = train.batch(np.arange(len(train)))
    norms = []
    for x, y in zip(inputs.double(), labels, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), chosen)
        norms.append(float(sum(gradient.square().sum() for gradient in gradients)) ** 0.5)
    return np.array(norms)


def test_the_example_of_the_specification_comes_out(anchored: Anchored) -> None:
    probabilities, features = [[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]], [[1.0, 2.0], [0.0, -1.0]]
    trace = anchored(features, probabilities, [0, 1])
    expected = [0.916515, np.sqrt(1.12)]  # of section 0: the second has squared norm 1.12
    found = grand_last(np.array(probabilities), np.array([0, 1]), np.array(features))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(GraNd().scores(trace), expected, atol=1e-6)
    assert select("grand", trace, 1).ids.tolist() == [1]


def test_the_last_layers_norm_is_that_of_its_gradient(run: Run) -> None:
    np.testing.assert_allclose(GraNd(epoch=6).scores(run), by_autograd(run, 6, slice(-2, None)), rtol=1e-4, atol=1e-6)


def test_the_full_norm_is_that_of_the_gradient_in_all_parameters(run: Run) -> None:
    for epoch in (0, 3):
        expected = by_autograd(run, epoch, slice(None))
        np.testing.assert_allclose(GraNd("full", epoch=epoch).scores(run), expected, rtol=1e-4, atol=1e-6)


def test_norms_of_several_runs_are_averaged_not_their_squares(runs: tuple[Run, ...]) -> None:
    for made in (GraNd(epoch=6), GraNd("full", epoch=6)):
        a, b = (made.scores(run).astype(float) for run in runs)
        np.testing.assert_allclose(made.scores(runs), (a + b) / 2, rtol=1e-6)
        assert not np.allclose((a + b) / 2, np.sqrt((a * a + b * b) / 2), rtol=1e-3)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    given = rng.dirichlet(np.ones(3), 50), rng.integers(0, 3, 50), rng.standard_normal((50, 4))
    whole = grand_last(*given)
    monkeypatch.setattr(module, "BLOCK", 7)
    np.testing.assert_array_equal(grand_last(*given), whole)


def test_features_of_an_early_epoch_are_asked_for(run: Run) -> None:
    with pytest.raises(
        InputError, match=r"grand needs features.* at epoch 10; kept were epochs 6\..*anchors=\(10, -1\)"
    ):
        GraNd().select(run, 5)


def test_the_full_gradient_needs_checkpoints_of_that_epoch(run: Run) -> None:
    assert GraNd().requires == {"trace"}
    assert GraNd("full").requires == {"trace", "checkpoints"}
    with pytest.raises(InputError, match=r"grand needs the weights after epoch 10; .* epochs 0, 1, 2, 3, 4, 5, 6\."):
        GraNd("full").select(run, 5)
    with pytest.raises(InputError, match="grand needs checkpoints"):
        GraNd("full").select(run.trace, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "first"}, "grand: gradient must be one of last, full"),
        ({"epoch": -1}, "grand: epoch must be a whole number from 0 on, got -1"),
        ({"epoch": None}, "got None"),
        ({"epoch": True}, "got True"),
    ],
)
def test_bad_options_are_refused_when_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        selector("grand", **options)
