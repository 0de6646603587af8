"""Training in a compiled network, held to the eager loop; on a CPU compiled by the quickest backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from comove.data import ExampleSet, Splits
from comove.models import ModelSpec
from comove.training import Engine, Member, Recipe, Resident, choose_engine, fit, train_many
from comove.training.loop import StopEarly
from comove.training.many import choice
from comove.training.many.compiled import CompiledTrainer, trainer_for, why_not_compiled

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=2,
    batch_size=12,
    last_batch="short",
    lr=0.1,
    weight_decay=5e-4,
    schedule="triangular",
    peak_epoch=1,
    augment="flip_crop",
    crop_padding=2,
    channels_last=True,
    label_smoothing=0.1,
)
SPEC = ModelSpec.of("resnet9", num_classes=4, input_shape=(3, 12, 12), width=0.0625)


@pytest.fixture(autouse=True)
def compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have CPUs compile too, by a backend that needs no compiler of C++ and replays no graph."""

    def compiled(network: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(
            network, backend="eager", dynamic=False, fullgraph=True
        )
        return forward

    original = CompiledTrainer.__init__

    def made(self: CompiledTrainer, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if self.data.device.type == "cpu":
            assert self.forward is None
            self.forward = compiled(self.network)

    monkeypatch.setattr(CompiledTrainer, "__init__", made)


@pytest.fixture
def resident(images: ExampleSet) -> Resident:
    return Resident(images, CPU)


def _plain(spec: ModelSpec, data: Resident, member: Member, recipe: Recipe) -> dict[str, torch.Tensor]:
    model = spec.build(member.seed)
    fit(model, data.part(member.positions), recipe, seed=member.seed)
    return model.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": "none"},
        {"nesterov": True},
        {"momentum": 0.0},
        {"weight_decay": 0.0},
        {"batch_size": 40},
        {"optimizer": "adamw", "lr": 1e-3, "eps": 1e-3, "clip_norm": 0.1, "ema": 0.9},
    ],
    ids=str,
)
def test_weights_and_buffers_equal_those_of_plain_training(resident: Resident, changes: dict[str, object]) -> None:
    recipe = RECIPE.with_changes(**changes)
    member = Member(np.array([3, 1, 4, 15, 9, 26, 5, 35, 8, 7, 31, 2, 38, 13, 20]), 5)  # the last batch is short
    found = CompiledTrainer(SPEC, resident, recipe).train(member).state_dict()
    for name, wanted in _plain(SPEC, resident, member, recipe).items():
        torch.testing.assert_close(found[name], wanted, rtol=2e-4, atol=2e-6, msg=name)


def test_inputs_that_are_no_images_train_as_by_plain_training(small_digits: Splits) -> None:
    spec = ModelSpec.of("mlp", num_classes=10, input_shape=small_digits.train.input_shape)
    data, recipe = Resident(small_digits.train, CPU), Recipe(epochs=2, batch_size=32)
    member = Member(np.arange(70), 1)
    found = CompiledTrainer(spec, data, recipe).train(member).state_dict()
    for name, wanted in _plain(spec, data, member, recipe).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)


def test_a_model_does_not_depend_on_those_trained_before_it(resident: Resident) -> None:
    first, second = Member(np.arange(20), 1), Member(np.arange(10, 40), 2)
    alone = {name: value.clone() for name, value in _trained(CompiledTrainer(SPEC, resident, RECIPE), second).items()}
    trainer = CompiledTrainer(SPEC, resident, RECIPE)
    trainer.train(first)
    after = _trained(trainer, second)
    assert all(torch.equal(after[name], alone[name]) for name in alone)


def _trained(trainer: CompiledTrainer, member: Member) -> dict[str, torch.Tensor]:
    return trainer.train(member).state_dict()


def test_a_model_ends_early_by_its_validation_loss(resident: Resident) -> None:
    recipe = RECIPE.with_changes(epochs=6, schedule="constant", early_stop_patience=1)
    member, validation = Member(np.arange(20), 1), resident.part(np.arange(20, 40))
    found = CompiledTrainer(SPEC, resident, recipe).train(member, validation=validation).state_dict()
    model = SPEC.build(member.seed)
    stop = StopEarly(model, validation, 1)
    fit(model, resident.part(member.positions), recipe, seed=member.seed, ended=stop)
    assert len(stop.losses) < 6
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-2, atol=1e-3, msg=name)


def test_train_many_returns_the_logits_of_plain_training_and_makes_one_trainer(resident: Resident) -> None:
    members = [Member(np.arange(seed, 30 + seed), seed) for seed in range(3)]
    options = {"spec": SPEC, "train": resident, "query": resident, "members": members, "recipe": RECIPE}
    found = train_many(**options, engine=Engine("captured", 1, ""), keep_weights=True)  # type: ignore[arg-type]
    wanted = train_many(**options, engine=Engine("one-by-one", 1, ""))  # type: ignore[arg-type]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-3, atol=1e-4)
        assert one.weights is not None
    assert len(resident.kept) == 1
    assert trainer_for(SPEC, resident, RECIPE) is trainer_for(SPEC, resident, RECIPE)
    assert not resident.part(np.arange(5)).kept


def test_right_training_is_found_right_and_wrong_training_is_found_out(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_not_compiled(SPEC, resident, RECIPE) is None
    trainer = trainer_for(SPEC, resident, RECIPE)
    monkeypatch.setattr(trainer, "forward", lambda inputs: trainer.network(inputs.flip(0)))
    assert "differ from the eager loop's by" in str(why_not_compiled(SPEC, resident, RECIPE))
    monkeypatch.setattr(trainer, "forward", lambda _: 1 / 0)
    assert "ZeroDivisionError" in str(why_not_compiled(SPEC, resident, RECIPE))


def test_a_cpu_is_never_given_a_captured_engine(resident: Resident) -> None:
    assert choose_engine(SPEC, resident, RECIPE.with_changes(epochs=1), 20, models=8).kind in ("stacked", "one-by-one")


def test_the_faster_engine_is_taken_and_the_captured_one_only_if_it_is_right(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = choice._Trial(SPEC, resident, RECIPE, 30, None)
    plain = Engine("one-by-one", 1, "timed")
    assert choice._compiled(trial, 4, plain, 60.0) is plain  # compiling would take as long
    assert choice._compiled(trial, 10**13, plain, 1e-9).kind == "one-by-one"
    found = choice._compiled(trial, 40, plain, 60.0)
    assert (found.kind, found.group) == ("captured", 1)
    assert "one-by-one 60 s a model" in found.reason
    monkeypatch.setattr(choice, "why_not_compiled", lambda *_, **__: "it is wrong")
    refused = choice._compiled(trial, 40, plain, 60.0)
    assert refused.kind == "one-by-one"
    assert "captured: it is wrong" in refused.reason


def test_a_gpu_is_timed_warm_and_over_many_steps(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's weights and the first call of a library must not count as its steps: no GPU is needed to see that."""
    calls = []
    monkeypatch.setattr(choice._Trial, "_fitting", lambda trial: lambda: calls.append(trial.positions.size))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(resident, "device", torch.device("cuda"))
    monkeypatch.setattr(choice, "STEPS_ON_GPU", 3)
    trial = choice._Trial(SPEC, resident, RECIPE, 40, None)
    assert calls == [12, 12]
    assert trial.positions.size == 36
    assert trial.spent == trial.first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_the_compiled_network_moves_weights_as_plain_training(images: ExampleSet, precision: str) -> None:
    data = Resident(images, torch.device("cuda"))
    assert why_not_compiled(SPEC, data, RECIPE.with_changes(precision=precision)) is None
