"""Recipes: schedules at known points, refusals, JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from typing import Any

import pytest

from comove.errors import InputError, InputTypeError
from comove.training import RECIPES, Recipe, as_recipe, default_recipe
from comove.training.recipe import ADDED


def test_triangular_rises_from_zero_to_the_peak_and_falls_back_to_zero() -> None:
    recipe = Recipe(epochs=24, lr=0.4, schedule="triangular", peak_epoch=5)
    expected = {0: 0.0, 2.5: 0.2, 5: 0.4, 14.5: 0.2, 24: 0.0, 30: 0.0}
    assert {epoch: recipe.lr_at(epoch) for epoch in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("peak", "first", "last"), [(0.0, 1.0, 0.0), (4.0, 0.0, 1.0), (9.0, 0.0, 1.0)])
def test_triangular_with_its_peak_at_an_end_only_falls_or_only_rises(peak: float, first: float, last: float) -> None:
    recipe = Recipe(epochs=4, lr=1.0, schedule="triangular", peak_epoch=peak)
    assert (recipe.lr_at(0), recipe.lr_at(2), recipe.lr_at(4)) == pytest.approx((first, 0.5, last))


def test_multistep_is_divided_by_ten_at_epochs_81_and_121() -> None:
    recipe = RECIPES["cifar-164"]
    at = {0: 0.1, 80.999: 0.1, 81: 0.01, 120.999: 0.01, 121: 0.001, 163.9: 0.001}
    assert {epoch: recipe.lr_at(epoch) for epoch in at} == pytest.approx(at)


def test_cosine_is_half_the_peak_half_way_and_zero_at_the_end() -> None:
    recipe = Recipe(epochs=10, lr=0.2, schedule="cosine")
    at = {0: 0.2, 2.5: 0.1 * (1 + math.sqrt(0.5)), 5: 0.1, 10: 0.0, 11: 0.0}
    assert {epoch: recipe.lr_at(epoch) for epoch in at} == pytest.approx(at)


def test_warm_up_rises_linearly_and_then_the_schedule_is_as_it_is() -> None:
    constant, multistep, cosine = (
        Recipe(epochs=10, lr=0.2, warmup_epochs=4, schedule=name, milestones=(6,))
        for name in ("constant", "multistep", "cosine")
    )
    rising = {0: 0.0, 1: 0.05, 2: 0.1, 4: 0.2}
    for recipe, after in (
        (constant, {5: 0.2, 10: 0.2}),
        (multistep, {5: 0.2, 6: 0.02, 10: 0.02}),
        (cosine, {7: 0.1, 10: 0.0}),  # from the end of warm-up
    ):
        expected = {**rising, **after}
        assert {epoch: recipe.lr_at(epoch) for epoch in expected} == pytest.approx(expected)
    assert Recipe(epochs=4, lr=0.2, warmup_epochs=4, schedule="cosine").lr_at(4) == pytest.approx(0.2)


def test_constant_is_constant() -> None:
    assert {Recipe(lr=0.3).lr_at(epoch) for epoch in (0, 1.5, 30)} == {0.3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("schedule", "linear"),
        ("peak_epoch", math.nan),
        ("gamma", math.inf),
        ("augment", "mixup"),
        ("crop_padding", -1),
        ("crop_padding", 1.5),
        ("precision", "int8"),
        ("label_smoothing", 1.0),
        ("optimizer", "adam"),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("betas", 0.9),
        ("eps", 0.0),
        ("eps", math.nan),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", math.nan),
        ("warmup_epochs", -0.5),
        ("warmup_epochs", math.inf),
        ("warmup_epochs", 31),
        ("early_stop_patience", 0),
        ("early_stop_patience", 1.5),
        ("early_stop_patience", True),
        ("ema", 0.0),
        ("ema", 1.0),
        ("ema", math.nan),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    entries: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=rf"{name} must be .*got {re.escape(repr(value))}"):
        Recipe(**entries)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(InputError, match="nesterov must be false without momentum"):
        Recipe(momentum=0.0, nesterov=True)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InputError, match="nesterov must be false with AdamW"):
        Recipe(optimizer="adamw", nesterov=True)
    with pytest.raises(InputError, match="warmup_epochs must be 0 with the triangular schedule"):
        Recipe(schedule="triangular", warmup_epochs=2)


def test_entries_that_earlier_versions_lack_are_left_out_where_they_say_what_these_did() -> None:
    assert Recipe(last_batch="short").fingerprint == "ff46042a9326cb90aea4da60a69e36d5"  # what earlier versions gave
    earlier = Recipe(optimizer="sgd", betas=(0.9, 0.999), warmup_epochs=0, last_batch="short")
    assert not set(ADDED) & set(earlier.to_json())
    assert Recipe.from_json(earlier.to_json()) == earlier
    assert as_recipe({"epochs": 3}, model="mlp", n_train=100) == Recipe(epochs=3)  # a user's own, of now
    own = Recipe(optimizer="adamw", betas=(0.8, 0.9), ema=0.9, early_stop_patience=3)
    written = json.loads(json.dumps(own.to_json()))
    assert set(ADDED) & set(written) == {"optimizer", "betas", "ema", "early_stop_patience", "last_batch"}
    assert Recipe.from_json(written) == own


def test_a_trial_is_shorter_in_warm_up_too_and_not_ended_earlier() -> None:
    recipe = Recipe(epochs=20, warmup_epochs=5, early_stop_patience=1, lr=0.3)
    assert recipe.shortened(2) == Recipe(epochs=2, warmup_epochs=2, lr=0.3)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_json_round_trip_gives_the_same_recipe_and_fingerprint(name: str) -> None:
    recipe = RECIPES[name]
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


def test_every_entry_changes_the_fingerprint() -> None:
    changes: dict[str, Any] = {
        "epochs": 31,
        "batch_size": 65,
        "lr": 0.06,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.1,
        "schedule": "cosine",
        "peak_epoch": 4.0,
        "milestones": (3.0,),
        "gamma": 0.2,
        "augment": "flip_crop",
        "crop_padding": 3,
        "precision": "bfloat16",
        "channels_last": True,
        "label_smoothing": 0.1,
        "optimizer": "adamw",
        "betas": (0.9, 0.99),
        "eps": 1e-6,
        "clip_norm": 1.0,
        "warmup_epochs": 1,
        "early_stop_patience": 3,
        "ema": 0.99,
        "last_batch": "short",
    }
    assert set(changes) == {entry.name for entry in fields(Recipe)}
    prints = {Recipe(**{name: value}).fingerprint for name, value in changes.items()}
    assert len(prints | {Recipe().fingerprint}) == len(changes) + 1


def test_an_unknown_entry_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no 'epoch'.*'epochs'"):
        Recipe.from_json({"epoch": 3})


def test_as_recipe_takes_a_recipe_a_name_a_mapping_or_nothing() -> None:
    own = Recipe(epochs=2)
    assert as_recipe(own, model="mlp", n_train=10) is own
    assert as_recipe("cifar-164", model="mlp", n_train=10) is RECIPES["cifar-164"]
    assert as_recipe({"epochs": 2}, model="mlp", n_train=10) == own
    assert as_recipe(None, model="mlp", n_train=10) is RECIPES["digits-mlp"]


def test_an_unknown_name_suggests_the_nearest_and_another_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"Unknown recipe 'cifar164'.*Did you mean 'cifar-164'"):
        as_recipe("cifar164", model="mlp", n_train=10)
    with pytest.raises(InputTypeError, match="got int"):
        as_recipe(5, model="mlp", n_train=10)  # type: ignore[arg-type]


def test_the_default_recipe_follows_model_and_size() -> None:
    sizes = {("mlp", 10): "digits-mlp", ("cnn-small", 10**6): "digits-mlp", ("resnet9", 2000): "resnet9-small"}
    sizes |= {("resnet9", 50_000): "trak-resnet9", ("resnet18", 2000): "resnet9-small"}
    sizes |= {("resnet18", 50_000): "cifar-164"}
    assert {key: default_recipe(*key) for key in sizes} == sizes


def test_with_changes_leaves_none_alone() -> None:
    assert Recipe(epochs=7).with_changes(epochs=None, lr=0.5) == Recipe(epochs=7, lr=0.5)
