"""The fixed-seed bank: one initialisation and one batch schedule, and absent examples weigh nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from comove import OwnTraining
from comove.data import ExampleSet, Ids, Splits
from comove.errors import FingerprintError, InputError
from comove.evaluation import RetrainingBank, subsets
from comove.models import ModelSpec
from comove.training import Engine, Recipe, Run, Training, train
from comove.training.loop import predict
from comove.training.randomness import generator_for

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05, weight_decay=1e-3, label_smoothing=0.1)
ONE, STACKED = Engine("one-by-one", 1, "for a test"), Engine("stacked", 4, "for a test")
engines = pytest.mark.parametrize("engine", [ONE, STACKED], ids=lambda engine: engine.kind)
PLANS = [subsets.everything(), subsets.random(0.99, 3), subsets.random(0.5, 2)]


def create(path: Path, data: Splits, **changes: Any) -> RetrainingBank:
    plain: dict[str, Any] = {"training": Training("mlp", RECIPE, seed=4), "subsets": PLANS, "seeds": 2}
    return RetrainingBank.create(path, data, **{**plain, "same_seed": True, **changes})


@pytest.fixture(scope="module")
def bank(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    return create(tmp_path_factory.mktemp("bank"), small_digits, engine=ONE, keep_weights=True).run(executor="serial")


def test_subsets_lack_down_to_one_example_in_a_hundred(bank: RetrainingBank) -> None:
    assert bank.masks.sum(1).tolist() == [200, 198, 198, 198, 100, 100]


@pytest.mark.parametrize("number", [0, 1])
def test_with_everything_present_it_is_the_run_of_that_seed_to_the_bit(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path, number: int
) -> None:
    run = train(small_digits, "mlp", RECIPE, 4 + number, tmp_path / "run", checkpoints="last")
    expected = predict(run.load_model(), small_digits.query).numpy()
    np.testing.assert_array_equal(bank.logits()[0, number], expected)


def by_hand(data: Splits, mask_N: np.ndarray[Any, np.dtype[np.bool_]], seed: int) -> np.ndarray[Any, Any]:
    """A plain loop with torch's optimizer: batches of the whole set, absent losses left out, divided by the batch."""
    model = ModelSpec.of("mlp", num_classes=10, input_shape=(1, 8, 8)).build(seed)
    optimizer = torch.optim.SGD(model.parameters(), RECIPE.lr, momentum=RECIPE.momentum, weight_decay=1e-3)
    held, labels = data.train.held, torch.from_numpy(data.train.labels)
    assert held is not None
    inputs = data.train.prepare(held)
    for epoch in range(RECIPE.epochs):
        order = torch.randperm(len(labels), generator=generator_for(seed, "order", epoch))
        for batch in torch.tensor_split(order, math.ceil(len(labels) / RECIPE.batch_size)):
            present = batch[torch.from_numpy(mask_N)[batch]]
            losses = F.cross_entropy(model(inputs[present]), labels[present], reduction="sum", label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(losses / len(batch))
            optimizer.step()
    return predict(model.eval(), data.query).numpy()


@engines
def test_a_plain_loop_gives_the_same_models(small_digits: Splits, tmp_path: Path, engine: Engine) -> None:
    made = create(tmp_path / "bank", small_digits, engine=engine).run(executor="serial")
    for row, number in ((1, 0), (1, 1), (5, 0)):
        expected = by_hand(small_digits, made.masks[row], 4 + number)
        np.testing.assert_allclose(made.logits()[row, number], expected, rtol=1e-4, atol=1e-4)


def test_stacked_models_are_those_trained_alone_to_rounding(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    stacked = create(tmp_path / "bank", small_digits, engine=STACKED).run(executor="serial")
    np.testing.assert_allclose(stacked.logits(), bank.logits(), rtol=1e-4, atol=1e-4)


def repainted(data: Splits, ids: Ids) -> Splits:
    """The same data with other pixels and labels of some examples."""
    held = data.train.held
    assert held is not None
    inputs, labels = held.clone(), data.train.labels.copy()
    rows = np.isin(data.train.ids, ids)
    inputs[torch.from_numpy(rows)] = inputs[torch.from_numpy(rows)].flip(-1) + 1
    labels[rows] = (labels[rows] + 1) % 10
    changed = ExampleSet.from_arrays(
        inputs,
        labels,
        ids=data.train.ids,
        classes=data.classes,
        normalization=data.train.normalization,
    )
    return Splits(changed, data.validation, data.query)


@engines
def test_an_absent_example_has_no_influence_to_the_bit(small_digits: Splits, tmp_path: Path, engine: Engine) -> None:
    gone = small_digits.train.ids[[3, 50, 120]]
    plan = {"subsets": subsets.without([gone, gone[:1]]), "engine": engine, "seeds": 1}
    one = create(tmp_path / "one", small_digits, **plan).run(executor="serial")
    other = create(tmp_path / "other", repainted(small_digits, gone), **plan).run(executor="serial")
    np.testing.assert_array_equal(one.logits()[0], other.logits()[0])
    assert not np.array_equal(one.logits()[1], other.logits()[1])


def test_models_of_one_number_share_their_batches_and_those_of_another_do_not(bank: RetrainingBank) -> None:
    outputs = bank.logits()
    same = np.abs(outputs[1, 0] - outputs[2, 0]).mean()
    assert 5 * same < np.abs(outputs[1, 0] - outputs[1, 1]).mean()


@engines
def test_it_goes_on_where_it_stopped_to_the_same_bits(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path, engine: Engine
) -> None:
    whole = create(tmp_path / "whole", small_digits, engine=engine).run(executor="serial")
    parts = create(tmp_path / "parts", small_digits, engine=engine)
    parts.part([4, 1]).run(executor="serial")
    parts.part([0]).run(executor="serial")
    RetrainingBank.load(tmp_path / "parts", dataset=small_digits).run(executor="serial")
    np.testing.assert_array_equal(parts.logits(), whole.logits())


def test_it_is_part_of_what_a_bank_is_and_banks_without_it_stay_as_they_were(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    assert bank.same_seed
    assert bank.manifest["same_seed"] is True
    plain = create(tmp_path / "plain", small_digits, same_seed=False)
    assert "same_seed" not in plain.manifest
    assert not RetrainingBank.load(tmp_path / "plain").same_seed
    with pytest.raises(FingerprintError):
        create(tmp_path / "plain", small_digits)
    with pytest.raises(FingerprintError):
        plain.merge(bank)


def test_it_merges_and_compacts_with_what_it_is(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    here = create(tmp_path / "here", small_digits, engine=ONE)
    assert here.merge(bank) == len(bank.jobs)
    np.testing.assert_array_equal(here.logits(), bank.logits())
    compact = RetrainingBank.load(bank.compact(tmp_path / "bank.safetensors"))
    assert compact.same_seed
    np.testing.assert_array_equal(compact.logits(), bank.logits())


def test_a_training_function_of_ones_own_has_no_batches_to_share(small_digits: Splits, tmp_path: Path) -> None:
    own = OwnTraining(lambda train_ids, seed: {"loss": np.zeros(40)}, name="own-1")
    with pytest.raises(InputError, match="same_seed"):
        create(tmp_path / "bank", small_digits, training=own)


def test_kept_weights_are_those_of_the_run(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    run: Run = train(small_digits, "mlp", RECIPE, 4, tmp_path / "run", checkpoints="last")
    kept, expected = bank.weights(0, 0), run.load_model().state_dict()
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_with_batch_norm_an_absent_examples_label_has_no_influence_and_its_inputs_have_some(
    small_digits: Splits, tmp_path: Path
) -> None:
    gone = small_digits.train.ids[[3, 50]]
    training = Training("cnn-small", Recipe(epochs=1, batch_size=50, lr=0.05), {"width": 0.25})
    plan = {"subsets": subsets.without([gone]), "seeds": 1, "training": training}
    one = create(tmp_path / "one", small_digits, **plan).run(executor="serial").logits()
    labels = small_digits.train.labels.copy()
    labels[[3, 50]] = (labels[[3, 50]] + 1) % 10
    held = small_digits.train.held
    assert held is not None
    normalization = small_digits.train.normalization
    relabelled = ExampleSet.from_arrays(
        held, labels, ids=small_digits.train.ids, classes=small_digits.classes, normalization=normalization
    )
    other = Splits(relabelled, small_digits.validation, small_digits.query)
    np.testing.assert_array_equal(create(tmp_path / "label", other, **plan).run(executor="serial").logits(), one)
    repaint = repainted(small_digits, gone)
    assert not np.array_equal(create(tmp_path / "pixels", repaint, **plan).run(executor="serial").logits(), one)
