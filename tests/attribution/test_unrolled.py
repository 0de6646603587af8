"""Unrolled: the derivative of a training run by the weights of its examples, held to finite differences in float64."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import comove
from comove.attribution import GradDot, Unrolled, metasmoothness
from comove.attribution.smoothness import sign_agreement
from comove.attribution.unrolled import Adjoint, unroll
from comove.data import ExampleSet, Splits
from comove.errors import InputError
from comove.evaluation import RetrainingBank, subsets
from comove.gradients.batch_products import BatchProducts
from comove.gradients.scalars import margin
from comove.store import read_header
from comove.training import Recipe, Resident, Run, Training, Weights, train
from comove.training.loop import EpochBatches, TrainingBatch
from comove.training.replay import Replay, Step
from comove.training.run import read_weights, write_weights

CPU = torch.device("cpu")
N, QUERIES, CLASSES = 24, 5, 3
PLAIN = Recipe(epochs=4, batch_size=8, lr=0.1, momentum=0.9, schedule="cosine")
RECIPES = {
    "momentum and a schedule": PLAIN,
    "no momentum": dataclasses.replace(PLAIN, momentum=0.0),
    "nesterov, weight decay": dataclasses.replace(PLAIN, nesterov=True, weight_decay=0.02),
    "weight decay, smoothed labels": dataclasses.replace(PLAIN, weight_decay=0.02, label_smoothing=0.1),
    "a short last batch": dataclasses.replace(PLAIN, batch_size=10, last_batch="short"),
}


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(),
        nn.Linear(27, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Tanh(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def built(factory: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return factory().double()


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and labels of training examples and of queries, in float64."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(N + QUERIES, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (N + QUERIES,), generator=generator)
    return inputs[:N], labels[:N], inputs[N:], labels[N:]


def plain_loop(
    model: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe, weights_N: Tensor
) -> tuple[nn.Module, list[Step]]:
    """Train a copy with torch's own SGD, the losses weighted; and the steps that were taken."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    steps = []
    for epoch in range(recipe.epochs):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        parts = torch.split(order, recipe.batch_size)
        for index, part in enumerate(parts):
            lr = optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch + (index + 0.5) / len(parts))
            state = {name: value.clone() for name, value in model.state_dict().items()}
            steps.append(Step(state, TrainingBatch(part, inputs[part], labels[part], lr)))
            smoothing = recipe.label_smoothing
            losses = F.cross_entropy(model(inputs[part]), labels[part], reduction="none", label_smoothing=smoothing)
            optimizer.zero_grad()
            torch.autograd.backward((losses * weights_N[part]).sum() / len(part))
            optimizer.step()
    return model.eval(), steps


def derivative(
    model: nn.Module, problem: tuple[Tensor, Tensor, Tensor, Tensor], recipe: Recipe, curvature: Any = "hessian"
) -> npt.NDArray[np.float64]:
    inputs, labels, asked, asked_labels = problem
    trained, steps = plain_loop(model, inputs, labels, recipe, torch.ones(N, dtype=torch.float64))
    products = BatchProducts(trained, curvature=curvature, smoothing=recipe.label_smoothing, dtype=torch.float64)
    products.load(trained.state_dict())
    weights_QP, statistics_QS = products.measure_gradients(margin, asked, asked_labels)
    start = Adjoint(weights_QP, torch.zeros_like(weights_QP), statistics_QS)
    return unroll(products, reversed(steps), start, recipe, N)


def finite_difference(
    model: nn.Module, problem: tuple[Tensor, Tensor, Tensor, Tensor], recipe: Recipe, example: int
) -> npt.NDArray[np.float64]:
    """Central, of fourth order."""
    inputs, labels, asked, asked_labels = problem
    found, size = torch.zeros(QUERIES, dtype=torch.float64), 1e-3
    for by, factor in ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12)):
        weights_N = torch.ones(N, dtype=torch.float64)
        weights_N[example] += by * size
        with torch.no_grad():
            logits = plain_loop_outputs(model, inputs, labels, recipe, weights_N, asked)
            found += factor / size * margin(logits, asked_labels)
    return found.numpy()


def plain_loop_outputs(
    model: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe, weights_N: Tensor, asked: Tensor
) -> Tensor:
    with torch.enable_grad():
        trained, _ = plain_loop(model, inputs, labels, recipe, weights_N)
    outputs: Tensor = trained(asked)
    return outputs


@pytest.mark.parametrize("factory", [dense, normalised])
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_the_finite_difference_of_a_plain_loop(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], factory: Callable[[], nn.Module], name: str
) -> None:
    model, recipe = built(factory), RECIPES[name]
    found = derivative(model, problem, recipe)
    for example in (0, 7, 13):
        expected = finite_difference(model, problem, recipe, example)
        np.testing.assert_allclose(found[example], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("factory", [dense, normalised])
def test_gauss_newton_equals_the_hessian_where_the_logits_are_linear_and_differs_elsewhere(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], factory: Callable[[], nn.Module]
) -> None:
    linear = built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
    one, other = (derivative(linear, problem, PLAIN, curvature) for curvature in ("hessian", "gauss-newton"))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    one, other = (derivative(built(factory), problem, PLAIN, curvature) for curvature in ("hessian", "gauss-newton"))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.5
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


# --- the method ---------------------------------------------------------------------------------------------------

SMOOTH = {"hidden": [8], "activation": "tanh"}
SHORT = Recipe(epochs=4, batch_size=32, lr=0.05, weight_decay=1e-3, schedule="cosine")


@pytest.fixture(scope="module")
def smooth_run(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(small_digits, "mlp", SHORT, 1, tmp_path_factory.mktemp("smooth") / "run", model_options=SMOOTH)


def prepared(examples: ExampleSet) -> tuple[Tensor, Tensor]:
    held = examples.held
    assert held is not None
    return examples.prepare(held).double(), torch.from_numpy(examples.labels)


def retrained(run: Run, weights_N: Tensor) -> Tensor:
    """Margins of the queries in float64, after a plain loop over the run's batches from its initial weights."""
    model, recipe, data = run.model_spec.build(run.seed).double(), run.recipe, Resident(run.data().train, CPU)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, recipe.momentum, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        batches = EpochBatches(data, recipe, run.seed, epoch)
        for index in range(len(batches)):
            batch = batches[index]
            optimizer.param_groups[0]["lr"] = batch.lr
            losses = F.cross_entropy(model(batch.inputs.double()), batch.labels, reduction="none")
            optimizer.zero_grad()
            torch.autograd.backward((losses * weights_N[batch.positions]).sum() / len(losses))
            optimizer.step()
    inputs, labels = prepared(run.data().query)
    with torch.no_grad():
        return margin(model(inputs), labels)


def test_scores_are_the_change_of_the_margin_by_a_finite_change_of_a_weight(smooth_run: Run) -> None:
    scores = Unrolled(precision="float64").fit(smooth_run).attribute(smooth_run.data().query.ids)
    size, n = 1e-3, scores.train_ids.size
    for example in (3, 77):
        change = torch.zeros(n, dtype=torch.float64)
        change[example] = size
        expected = (retrained(smooth_run, 1 + change) - retrained(smooth_run, 1 - change)).numpy() / (2 * size)
        np.testing.assert_allclose(scores.values[example], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_single_precision_and_blocks_of_queries_give_the_same(smooth_run: Run) -> None:
    double = Unrolled(precision="float64").fit(smooth_run).attribute().values
    single = Unrolled().fit(smooth_run).attribute().values
    np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-4 * np.abs(double).max())
    replay = 8 * 610 * 70  # bytes: the replayed states, and the adjoints of a few queries
    blocks = Unrolled(memory=replay).fit(smooth_run).attribute().values
    np.testing.assert_allclose(blocks, single, rtol=1e-4, atol=1e-5 * np.abs(double).max())


def test_several_runs_are_averaged(smooth_run: Run, small_digits: Splits, tmp_path: Path) -> None:
    other = train(small_digits, "mlp", SHORT, 2, tmp_path / "run", model_options=SMOOTH)
    one, two, both = (Unrolled().fit(runs).attribute().values for runs in (smooth_run, other, [smooth_run, other]))
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-5, atol=1e-6 * np.abs(both).max())


def test_new_examples_are_explained_as_recorded_ones(smooth_run: Run) -> None:
    recorded = smooth_run.data().query
    assert recorded.held is not None
    new = ExampleSet.from_arrays(
        recorded.held[:3], recorded.labels[:3], classes=recorded.classes, normalization=recorded.normalization
    )
    fitted = Unrolled().fit(smooth_run)
    rounding = 1e-5 * np.abs(fitted.attribute(recorded.ids[:3]).values).max()
    np.testing.assert_allclose(
        fitted.attribute(new).values, fitted.attribute(recorded.ids[:3]).values, rtol=1e-4, atol=rounding
    )


def test_a_run_that_kept_its_last_weights_only_is_replayed_as_well(
    smooth_run: Run, small_digits: Splits, tmp_path: Path
) -> None:
    last = train(small_digits, "mlp", SHORT, 1, tmp_path / "run", model_options=SMOOTH, checkpoints="last")
    np.testing.assert_array_equal(
        Unrolled().fit(last).attribute().values, Unrolled().fit(smooth_run).attribute().values
    )


def test_an_augmented_convolutional_run_is_unrolled_through_its_own_augmentation(
    small_digits: Splits, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=2, batch_size=64, lr=0.02, augment="flip_crop", crop_padding=1, channels_last=True)
    run = train(small_digits, "cnn-small", recipe, 0, tmp_path / "run", model_options={"width": 0.25})
    replay = Replay(run, Resident(small_digits.train, CPU))
    plain = EpochBatches(replay.train, dataclasses.replace(recipe, augment="none"), 0, 1)
    last = next(replay.backwards())
    assert torch.equal(last.batch.positions, plain[len(plain) - 1].positions)
    assert not torch.equal(last.batch.inputs, plain[len(plain) - 1].inputs)
    scores = Unrolled().fit(run).attribute(small_digits.query.ids[:2])
    assert np.abs(scores.values).max() > 0


def test_it_predicts_models_retrained_from_the_same_seed_better_than_gradients_do(
    small_digits: Splits, smooth_run: Run, tmp_path: Path
) -> None:
    how = Training("mlp", SHORT, SMOOTH, seed=1)
    bank = RetrainingBank.create(
        tmp_path / "bank", small_digits, how, subsets=subsets.random(0.97, 16), same_seed=True
    ).run(executor="serial")
    exact, first_order = (bank.lds(method.fit(smooth_run).attribute()).mean for method in (Unrolled(), GradDot()))
    assert exact > 0.95
    assert exact > first_order + 0.05


# --- the replay ---------------------------------------------------------------------------------------------------


def test_the_replay_gives_every_checkpoint_and_keeps_a_few_states(smooth_run: Run) -> None:
    replay = Replay(smooth_run, Resident(smooth_run.data().train, CPU))
    steps = list(replay.backwards())
    assert len(steps) == replay.steps == 28
    assert len(replay._kept) + replay._apart < replay.steps
    for checkpoint in smooth_run.checkpoints[:-1]:
        expected = smooth_run.load_model(checkpoint).state_dict()
        state = steps[-1 - checkpoint.step].state
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    last = smooth_run.load_model().state_dict()
    assert all(torch.equal(replay.final[name], last[name]) for name in last)
    again = list(replay.backwards())
    assert all(torch.equal(a.state["1.weight"], b.state["1.weight"]) for a, b in zip(steps, again, strict=True))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "adamw": ({"optimizer": "adamw", "lr": 1e-3}, "was trained by adamw"),
    "clipping": ({"clip_norm": 1.0}, "clips gradients"),
    "average": ({"ema": 0.9}, "average of the weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_runs_trained_in_another_way_are_refused_and_told_why(small_digits: Splits, tmp_path: Path, name: str) -> None:
    changes, told = REFUSED[name]
    recipe = dataclasses.replace(SHORT, epochs=1, **changes)
    run = train(small_digits, "mlp", recipe, 0, tmp_path / "run", model_options=SMOOTH)
    with pytest.raises(InputError, match=told):
        Unrolled().fit(run)


def test_a_run_that_ended_early_is_replayed_to_where_it_ended(small_digits: Splits, tmp_path: Path) -> None:
    recipe = Recipe(epochs=12, batch_size=32, lr=0.8, early_stop_patience=1)
    run = train(small_digits, "mlp", recipe, 0, tmp_path / "run", model_options=SMOOTH)
    epochs = run.result["epochs_trained"]
    assert epochs < 12
    assert Replay(run, Resident(small_digits.train, CPU)).steps == 7 * epochs


def dropping(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, num_classes))


def test_dropout_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    run = train(small_digits, dropping, dataclasses.replace(SHORT, epochs=1), 0, tmp_path / "run")
    with pytest.raises(InputError, match="drew dropout"):
        Unrolled().fit(run)


def test_a_run_trained_elsewhere_is_refused(smooth_run: Run) -> None:
    weights = smooth_run.load_model().state_dict()
    splits = smooth_run.data()
    adopted = comove.adopt(
        smooth_run.load_model(), weights=[Weights(weights, epoch=1, lr=0.1)], train=splits.train, queries=splits.query
    )
    with pytest.raises(InputError, match="trained elsewhere"):
        Unrolled().fit(adopted)


def test_a_replay_that_does_not_give_the_checkpoints_bits_is_refused(smooth_run: Run, tmp_path: Path) -> None:
    shutil.copytree(smooth_run.path, tmp_path / "run")
    checkpoint = smooth_run.checkpoints[2]
    _, header = read_header(checkpoint.path)
    tensors = read_weights(checkpoint.path)
    tensors["1.bias"][0] += 1e-6
    write_weights(tmp_path / "run" / "checkpoints" / checkpoint.path.name, tensors, header)
    other = Run.load(tmp_path / "run", dataset=smooth_run.data())
    with pytest.raises(InputError, match=r"bits of its own checkpoint after epoch 2 \(1.bias differs\)"):
        Unrolled().fit(other)


def test_states_that_take_too_much_memory_are_refused_before_training(smooth_run: Run) -> None:
    with pytest.raises(InputError, match="more than memory=1000 bytes"):
        Unrolled(memory=1000).fit(smooth_run)


@pytest.mark.parametrize("options", [{"curvature": "fisher"}, {"precision": "half"}, {"memory": 0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unrolled"):
        Unrolled(**options)


# --- metasmoothness -----------------------------------------------------------------------------------------------


def test_smooth_training_is_told_from_rough(small_digits: Splits, smooth_run: Run, tmp_path: Path) -> None:
    rough = train(small_digits, "mlp", dataclasses.replace(SHORT, lr=1.5, epochs=6), 0, tmp_path / "run")
    scores = Unrolled().fit(smooth_run).attribute()
    good, bad = metasmoothness(smooth_run, scores=scores, directions=3), metasmoothness(rough, directions=3)
    assert good.value > 0.9 > bad.value
    assert good.correlation > 0.9
    assert good.predicted > 0.9
    assert good.removed == 2
    assert good.per_direction.shape == (3,)
    assert "Metasmoothness(" in repr(good)


def test_sign_agreement_weighs_by_the_first_change() -> None:
    assert sign_agreement(np.array([3.0, -1.0]), np.array([0.1, 0.2])) == pytest.approx(0.5)
    assert np.isnan(sign_agreement(np.zeros(2), np.ones(2)))


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"directions": 0}, {"seed": -1}])
def test_bad_requests_for_metasmoothness_are_refused(smooth_run: Run, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        metasmoothness(smooth_run, **options)
