"""Steps to the decision boundary, known in closed form, and the budget over their bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from comove.coreset import select
from comove.coreset.boundaryset_ccs import BoundarySetCCS, boundary_steps, cover_bands
from comove.coreset.input_gradients import margin_gradients
from comove.coreset.strata import random_keys
from comove.data import ExampleSet, Normalization, split
from comove.errors import InputError
from comove.training import Recipe, Run, train


def sign_network(x: Tensor) -> Tensor:
    """Predicts class 0 where x > 0."""
    return torch.cat([x, -x], 1)


def steps_of(values: list[float], **options: float) -> list[int]:
    inputs = torch.tensor(values, dtype=torch.float64)[:, None]
    found = boundary_steps(
        lambda x, y: margin_gradients(sign_network, x, y)[::2],
        lambda positions: inputs[torch.from_numpy(positions)],
        torch.zeros(len(values), dtype=torch.int64),
        **{"low": -10.0, "high": 10.0, **options},  # type: ignore[arg-type]
    )
    return [int(steps) for steps in found]


@pytest.mark.parametrize(("most", "expected"), [(5, [1, 3, 5, 0]), (50, [1, 3, 6, 0])])
def test_the_example_of_the_specification_comes_out(most: int, expected: list[int]) -> None:
    assert steps_of([0.05, 0.25, 0.55, -0.1], step=0.1, max_steps=most) == expected


@pytest.mark.parametrize("batch", [1, 3, 7, 1000])
def test_steps_are_counted_alike_whatever_the_batch(batch: int) -> None:
    values = np.random.default_rng(0).uniform(-0.2, 1.2, 60)
    closed_form = [0 if v < 0 else min(9, int(v / 0.1) + 1) for v in values]
    assert steps_of(values.tolist(), step=0.1, max_steps=9, batch=batch) == closed_form


def test_clipping_keeps_the_input_in_its_range() -> None:
    assert steps_of([0.25], step=0.1, max_steps=9, low=0.0) == [9]
    assert steps_of([0.25], step=0.1, max_steps=9, low=-0.05) == [3]


def test_saturated_predictions_still_move() -> None:
    """At a gap of 400 the cross-entropy is 0 in float32, and so is its gradient as written."""
    inputs = torch.tensor([[200.0]])
    found = boundary_steps(
        lambda x, y: margin_gradients(sign_network, x, y)[::2],
        lambda positions: inputs,
        torch.tensor([0]),
        step=50.0,
        low=-1e3,
        high=1e3,
    )
    assert found.tolist() == [5]


def test_the_budget_over_bands_of_the_specification_comes_out() -> None:
    steps = np.repeat([0, 1, 3, 5], [1, 4, 3, 2])
    ids = np.arange(10)
    kept = cover_bands(steps, ids, random_keys(ids, 0, 1), 5)
    bands, counts = np.unique(steps[kept], return_counts=True)
    assert dict(zip(bands.tolist(), counts.tolist(), strict=True)) == {0: 1, 1: 2, 3: 1, 5: 1}


def test_beta_leaves_out_those_nearest_to_the_boundary() -> None:
    steps, ids = np.arange(10) % 5, np.arange(10)
    kept = cover_bands(steps, ids, random_keys(ids, 0, 1), 6, beta=0.4)
    assert sorted(steps[kept].tolist()) == [2, 2, 3, 3, 4, 4]
    with pytest.raises(InputError, match=r"beta = 0\.4 drops 4 of 10 examples, but keeping 7 prunes only 3"):
        cover_bands(steps, ids, random_keys(ids, 0, 1), 7, beta=0.4)


def test_bands_are_sampled_uniformly_and_the_seed_decides() -> None:
    steps, ids = np.zeros(8, int), np.arange(8)
    counts = np.zeros(8)
    for seed in range(400):
        counts[cover_bands(steps, ids, random_keys(ids, seed, 1), 2)] += 1
    assert 60 < counts.min() <= counts.max() < 140


def one_by_one(run: Run, position: int, step: float, most: int) -> int:
    """The definition, one example at a time on a pixel scale, by plain cross-entropy in float64."""
    examples = run.data().train.subset(run.trace.train_ids)
    network = run.load_model().double()
    raw = examples.raw(np.array([position]))
    images = raw.dtype == torch.uint8
    everything = examples.raw(np.arange(len(examples)))
    low, high = (0.0, 1.0) if images else (float(everything.min()), float(everything.max()))
    x = raw.double() / 255 if images else raw.double()
    shape = (1, -1, 1, 1)
    norm = examples.normalization or Normalization((0.0,), (1.0,))
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(shape) for values in (norm.mean, norm.std))
    label = torch.from_numpy(examples.labels[[position]])
    for taken in range(most):
        x = x.detach().requires_grad_()
        logits = network((x - mean) / std)
        if int(logits.argmax(1)) != int(label):
            return taken
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, label), x)
        x = (x + step * (high - low) * gradient.sign()).clamp(low, high)
    return most


def test_steps_of_a_real_run_follow_the_definition(run: Run) -> None:
    made = BoundarySetCCS(step=0.05, max_steps=12)
    steps = made._prepare(made._sources(run)).steps_N
    assert np.unique(steps).size > 3
    expected = [one_by_one(run, position, 0.05, 12) for position in range(25)]
    assert np.mean(steps[:25] != expected) <= 0.08  # a sign may differ where a derivative is 0 up to rounding


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small convolutional network with batch norm, on 8-bit images of two classes with a normalisation."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 200, (60, 3, 12, 12), dtype=torch.uint8, generator=generator)
    labels = np.arange(60) % 2
    pixels[labels == 1, 0] += 50
    examples = ExampleSet.from_arrays(
        pixels, labels, ids=500 + np.arange(60), normalization=Normalization((0.5, 0.5, 0.5), (0.25, 0.2, 0.3))
    )
    splits = split(examples, validation=0.1, query=0.1)
    recipe = Recipe(epochs=4, batch_size=16, lr=0.05)
    folder = tmp_path_factory.mktemp("images") / "run"
    return train(splits, "cnn-small", recipe, out=folder, model_options={"width": 0.25})


def test_eight_bit_images_move_by_grey_levels_before_normalisation(image_run: Run) -> None:
    made = BoundarySetCCS(step=4 / 255, max_steps=12)
    steps = made._prepare(made._sources(image_run)).steps_N
    expected = [one_by_one(image_run, position, 4 / 255, 12) for position in range(16)]
    assert np.unique(expected).size > 2
    assert np.sum(steps[:16] != expected) <= 1


def test_a_coreset_of_a_real_run_covers_the_bands_and_counts_them(run: Run) -> None:
    coreset = select("boundaryset_ccs", run, 40, step=0.05, max_steps=12)
    made = BoundarySetCCS(step=0.05, max_steps=12)
    steps = made._prepare(made._sources(run)).steps_N
    by_id = dict(zip(run.trace.train_ids.tolist(), steps.tolist(), strict=True))
    assert coreset.scores.tolist() == [-by_id[id_] for id_ in coreset.ids.tolist()]
    assert coreset.info["bands"] == {str(b): int(n) for b, n in zip(*np.unique(steps, return_counts=True), strict=True)}
    assert {by_id[id_] for id_ in coreset.ids.tolist()} == set(steps.tolist())
    again = select("boundaryset_ccs", run, 40, step=0.05, max_steps=12, seed=1)
    assert set(again.ids.tolist()) != set(coreset.ids.tolist())


def test_the_network_of_the_run_is_left_as_it_was(run: Run) -> None:
    before = {name: value.clone() for name, value in run.load_model().state_dict().items()}
    select("boundaryset_ccs", run, 10, max_steps=3)
    for name, value in run.load_model().state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(("option", "value"), [("step", 0), ("max_steps", 0), ("beta", 1.0), ("seed", -1)])
def test_bad_options_are_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"boundaryset_ccs: {option} must be"):
        BoundarySetCCS(**{option: value})  # type: ignore[arg-type]
