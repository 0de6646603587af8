"""SOURCE on a quadratic, where its closed form is known; its limits; and beside Unrolled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.linalg import expm
from scipy.stats import spearmanr
from torch import Tensor, nn

from comove.attribution import Source, Unrolled
from comove.attribution.source import decay, response
from comove.data import ExampleSet, Splits
from comove.data.batches import Batch
from comove.errors import InputError
from comove.gradients.ekfac import ekfac_factors, mean_factors
from comove.gradients.per_example import PerExampleGradients
from comove.tasks import Task, targets_of
from comove.training import Checkpoint, Recipe, Resident, Run, Weights, adopt, train
from comove.training.randomness import derived_seed

N, QUERIES, FEATURES, RATE = 30, 4, 5, 0.07
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Squares(Task):
    """Half the squared error; pseudo-gradients are signs, whose square is the curvature itself."""

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        found: Tensor = (outputs[:, 0] - targets_of(batch)).square() / 2
        return found

    def measure(self, outputs: Any, batch: Batch) -> Tensor:
        return -self.loss(outputs, batch)

    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        return torch.ones(len(outputs), 1, 1, dtype=outputs.dtype)

    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """Linear regression by full-batch gradient descent: inputs with a column of ones, targets, weights by step."""

    inputs: Array
    targets: Array
    asked: Array
    asked_targets: Array
    weights: list[Array]

    @property
    def hessian(self) -> Array:
        return self.inputs.T @ self.inputs / N

    def train_gradients(self, step: int) -> Array:
        return (self.inputs @ self.weights[step] - self.targets)[:, None] * self.inputs

    def measured_gradients(self) -> Array:
        return -(self.asked @ self.weights[-1] - self.asked_targets)[:, None] * self.asked

    def closed_form(self, segments: Sequence[tuple[int, Sequence[int]]], wd: float = 0.0) -> Array:
        """Scores from (steps, checkpoints' steps) a segment, by the matrix exponential."""
        h = self.hessian + wd * np.eye(len(self.hessian))
        total, left = np.zeros((N, QUERIES)), self.measured_gradients()
        for steps, places in reversed(segments):
            forgotten = expm(-RATE * steps * h)
            mean = np.mean([self.train_gradients(place) for place in places], axis=0)
            total -= mean @ np.linalg.solve(h, (np.eye(len(h)) - forgotten) @ left.T) / N
            left = left @ forgotten
        return total


@pytest.fixture(scope="module")
def quadratic() -> Quadratic:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N + QUERIES, FEATURES)) * [2.0, 1.5, 1.0, 0.5, 0.2] + 0.3
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    targets = inputs @ rng.normal(size=FEATURES + 1) + rng.normal(size=len(inputs))
    weights = [np.zeros(FEATURES + 1)]
    for _ in range(60):
        error = inputs[:N] @ weights[-1] - targets[:N]
        weights.append(weights[-1] - RATE * inputs[:N].T @ error / N)
    return Quadratic(inputs[:N], targets[:N], inputs[N:], targets[N:], weights)


def adopted(quadratic: Quadratic, places: Sequence[int], lr: float | None = RATE, **changes: Any) -> Run:
    def examples(inputs: Array, targets: Array) -> ExampleSet:
        items = [(torch.from_numpy(x[:-1]), torch.tensor(y)) for x, y in zip(inputs, targets, strict=True)]
        return ExampleSet(items, collate=torch.utils.data.default_collate)

    kept = []
    for number, place in enumerate(places):
        state = {
            "weight": torch.from_numpy(quadratic.weights[place][None, :-1]),
            "bias": torch.from_numpy(quadratic.weights[place][-1:]),
        }
        kept.append(Weights(state, epoch=number + 1, lr=lr, **{"step": place, **changes}))
    train_set = examples(quadratic.inputs, quadratic.targets)
    asked = examples(quadratic.asked, quadratic.asked_targets)
    return adopt(nn.Linear(FEATURES, 1).double(), kept, train_set, asked, Squares(), device="cpu")


def closed(quadratic: Quadratic, places: Sequence[int], segments: int, wd: float = 0.0) -> Array:
    """The closed form with the checkpoints at these steps shared out to the segments; the last one is explained."""
    until = dataclasses.replace(quadratic, weights=quadratic.weights[: places[-1] + 1])
    parts, before = [], 0
    for part in np.array_split(np.array(places), segments):
        parts.append((int(part[-1]) - before, part.tolist()))
        before = int(part[-1])
    return until.closed_form(parts, wd)


@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("wd", [0.0, 0.3])
@pytest.mark.parametrize("curvature", ["exact", "ekfac"])
def test_segments_on_a_quadratic_are_the_closed_form(
    quadratic: Quadratic, segments: int, wd: float, curvature: Any
) -> None:
    places = [4, 9, 15, 30, 44]
    found = (
        Source(segments=segments, weight_decay=wd, curvature=curvature)
        .fit(adopted(quadratic, places))
        .attribute()
        .values
    )
    np.testing.assert_allclose(found, closed(quadratic, places, segments, wd), rtol=1e-5, atol=1e-6)


def test_the_longer_training_the_more_it_is_influence(quadratic: Quadratic) -> None:
    wd = 0.05
    run = adopted(quadratic, [60], lr=1e4)
    found = Source(segments=1, weight_decay=wd).fit(run).attribute().values
    damped = np.linalg.solve(quadratic.hessian + wd * np.eye(FEATURES + 1), quadratic.measured_gradients().T)
    np.testing.assert_allclose(found, -quadratic.train_gradients(60) @ damped / N, rtol=1e-5, atol=1e-6)


def test_the_shorter_training_the_more_it_is_tracin(quadratic: Quadratic) -> None:
    found = Source(segments=1).fit(adopted(quadratic, [10], lr=1e-9)).attribute().values
    until = dataclasses.replace(quadratic, weights=quadratic.weights[:11])
    expected = -1e-8 / N * until.train_gradients(10) @ until.measured_gradients().T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_momentum_lengthens_training(quadratic: Quadratic) -> None:
    slow, fast = adopted(quadratic, [12], lr=RATE), adopted(quadratic, [12], lr=4 * RATE)
    np.testing.assert_allclose(
        Source(segments=1, momentum=0.75).fit(slow).attribute().values,
        Source(segments=1).fit(fast).attribute().values,
        rtol=1e-6,
    )


def test_functions_of_eigenvalues_hold_at_zero_and_for_tiny_ones() -> None:
    sigma = torch.tensor([0.0, 1e-14, 1e-6, 1.0, 1e6], dtype=torch.float64)
    np.testing.assert_allclose(response(sigma, 3.0), [3, 3, 3 * (1 - 1.5e-6), 1 - np.exp(-3), 1e-6], rtol=1e-9)
    np.testing.assert_allclose(decay(sigma, 3.0), np.exp(-3 * sigma.numpy()))


# --- runs of comove -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smooth_run(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe(epochs=12, batch_size=50, lr=0.02, weight_decay=1e-3, schedule="cosine")
    folder = tmp_path_factory.mktemp("run")
    return train(small_digits, "mlp", recipe, 0, folder, model_options={"hidden": [], "activation": "tanh"})


def test_times_are_the_sums_of_the_recipes_rates(smooth_run: Run) -> None:
    info = Source(segments=3, checkpoints="all").fit(smooth_run).attribute(smooth_run.data().query.ids[:1]).info
    recipe = smooth_run.recipe
    rates = np.array([recipe.lr_at((step + 0.5) / 4) for step in range(48)]).reshape(3, 16)
    np.testing.assert_allclose(info["times"], [(rates.sum(1) / (1 - recipe.momentum)).tolist()], rtol=1e-4)


def test_it_comes_close_to_the_exact_derivative_where_training_is_smooth(smooth_run: Run) -> None:
    exact = Unrolled().fit(smooth_run).attribute().values
    for curvature, least in (("ekfac", 0.9), ("exact", 0.98)):
        scores = Source(checkpoints="all", segments=6, curvature=curvature).fit(smooth_run).attribute()
        pairs = zip(exact.T, scores.values.T, strict=True)
        assert np.mean([spearmanr(one, other).statistic for one, other in pairs]) > least
        assert 0.7 < np.linalg.norm(scores.values) / np.linalg.norm(exact) < 1.4
        assert scores.info["eigenvectors"] == curvature


def gradients_at(run: Run, checkpoint: Checkpoint) -> PerExampleGradients:
    return PerExampleGradients(run.load_model(checkpoint))


def test_factors_of_several_checkpoints_have_the_mean_trace_and_of_one_are_its_own(smooth_run: Run) -> None:
    data = Resident(smooth_run.data().train, torch.device("cpu"))
    makers = [partial(gradients_at, smooth_run, checkpoint) for checkpoint in smooth_run.checkpoints[3:6]]
    seeds = [2, derived_seed(2, "checkpoint", 1), derived_seed(2, "checkpoint", 2)]
    alone = [ekfac_factors(make(), data, seed=seed) for make, seed in zip(makers, seeds, strict=True)]
    both, one = mean_factors(makers, data, seed=2), mean_factors(makers[:1], data, seed=2)
    assert both.mean_eigenvalue == pytest.approx(np.mean([each.mean_eigenvalue for each in alone]), rel=1e-5)
    direction = {name: torch.ones(1, *p.shape) for name, p in makers[0]().parameters.items()}
    for name, value in alone[0].apply(direction, torch.sqrt).items():
        torch.testing.assert_close(one.apply(direction, torch.sqrt)[name], value)
    twice = alone[0].apply(alone[0].apply(direction, torch.sqrt), torch.sqrt)
    for name, value in alone[0].apply(direction, lambda e: e).items():
        torch.testing.assert_close(twice[name], value, rtol=1e-4, atol=1e-5)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_too_few_checkpoints_for_the_segments_are_refused(quadratic: Quadratic) -> None:
    with pytest.raises(InputError, match="each of its 3 segments, got 2"):
        Source().fit(adopted(quadratic, [4, 9]))


@pytest.mark.parametrize("changes", [{"step": None}, {"lr": None}])
def test_checkpoints_without_rates_or_steps_are_refused(quadratic: Quadratic, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="how long training took"):
        Source(segments=1).fit(adopted(quadratic, [4], **changes))


def test_a_checkpoint_before_the_first_step_is_refused(quadratic: Quadratic) -> None:
    with pytest.raises(InputError, match=r"the first after a step; got \[0, 4\]"):
        Source(segments=1).fit(adopted(quadratic, [0, 4]))


def test_a_run_trained_by_adamw_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    run = train(small_digits, "mlp", Recipe(epochs=3, optimizer="adamw", lr=1e-3), 0, tmp_path / "run")
    with pytest.raises(InputError, match="trained by adamw"):
        Source().fit(run)


@pytest.mark.parametrize(
    "options",
    [
        {"segments": 0},
        {"curvature": "fisher"},
        {"checkpoints": 0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"seed": -1},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="source"):
        Source(**options)
