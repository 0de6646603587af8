"""Many models at once: the weights of ``fit``, the same bits in any grouping, and a choice that says why."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.data import ExampleSet, Splits
from comove.errors import InputError
from comove.evaluation import output_of
from comove.models import Factory, ModelSpec
from comove.training import (
    Engine,
    Member,
    Recipe,
    Resident,
    Trained,
    choose_engine,
    default_recipe,
    engines_for,
    fit,
    predict,
    train_many,
)
from comove.training.loop import StopEarly
from comove.training.many import choice, engine
from comove.training.many.stacked import Stack, place_matters, why_not_stacked
from comove.training.recipe import RECIPES

pytestmark = pytest.mark.usefixtures("two_threads")  # as against one in workers, or within the work

CPU = torch.device("cpu")
ALONE = Engine("one-by-one", 1, "")
FANCY = Recipe(
    epochs=1, batch_size=32, lr=0.05, nesterov=True, weight_decay=1e-2, label_smoothing=0.2, schedule="cosine"
)
MODERN = Recipe(
    epochs=1,
    batch_size=32,
    lr=0.003,
    optimizer="adamw",
    weight_decay=0.1,
    clip_norm=0.5,
    warmup_epochs=0.5,
    schedule="cosine",
    ema=0.8,
)
AUGMENTED = FANCY.with_changes(batch_size=16, augment="flip_crop", crop_padding=2)


def stacked(group: int) -> Engine:
    return Engine("stacked", group, "")


@pytest.fixture(scope="module")
def train(small_digits: Splits) -> Resident:
    return Resident(small_digits.train, CPU)


@pytest.fixture(scope="module")
def query(small_digits: Splits) -> Resident:
    return Resident(small_digits.query, CPU)


@pytest.fixture(scope="module")
def pictures() -> Resident:
    """60 random RGB images of 4 classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 3, 12, 12), dtype=torch.uint8, generator=generator)
    return Resident(ExampleSet.from_arrays(pixels, np.arange(60) % 4, classes=list("abcd")), CPU)


def spec_of(model: str | Factory, data: Resident, **options: Any) -> ModelSpec:
    classes, shape = len(data.examples.classes), data.examples.input_shape
    return ModelSpec.of(model, num_classes=classes, input_shape=shape, **options)


def drawn(data: Resident, size: int, number: int, first_seed: int = 0) -> list[Member]:
    generator = np.random.default_rng(size)
    places = [np.sort(generator.choice(len(data), size, replace=False)) for _ in range(number)]
    return [Member(positions, first_seed + seed) for seed, positions in enumerate(places)]


def same(a: Trained, b: Trained) -> bool:
    if a.weights is not None and b.weights is not None:
        assert list(a.weights) == list(b.weights)
        if not all(torch.equal(value, b.weights[name]) for name, value in a.weights.items()):
            return False
    return np.array_equal(a.logits, b.logits)


# --- networks of a user's own --------------------------------------------------------------------------------------


def branches(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Functional layers, group norm, biased strided grouped convolutions, a frozen and an unused layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(input_shape[0], 8, 3, stride=2)
            self.norm, self.second = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
            self.batch = nn.BatchNorm2d(8, affine=False)
            self.frozen, self.unused = nn.Linear(8, 8), nn.Linear(3, 3)
            self.flat, self.head = nn.BatchNorm1d(8, momentum=None), nn.Linear(8, num_classes, bias=False)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = F.gelu(self.norm(self.first(x)))
            x = F.max_pool2d(x + self.batch(self.second(x)), 2).mean((2, 3))
            return self.head(self.flat(torch.tanh(self.frozen(x))))  # type: ignore[no-any-return]

    return Net()


def sequence(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """One-dimensional convolutions over the pixels."""
    body = nn.Sequential(nn.Flatten(2), nn.Conv1d(input_shape[0], 6, 5, stride=3), nn.BatchNorm1d(6), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(12, num_classes))


def bare(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


def _forward(forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    module = type("Own", (nn.Module,), {"forward": forward})()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module  # type: ignore[no-any-return]


def concatenating(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x)
        return net.head(torch.cat([x, x.relu()], 1).mean((2, 3)))  # type: ignore[no-any-return]

    return _forward(forward, conv=nn.Conv2d(input_shape[0], 4, 3), head=nn.Linear(8, num_classes))


def dropping(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(F.dropout(x.flatten(1), training=net.training))  # type: ignore[no-any-return]

    return _forward(forward, head=nn.Linear(int(np.prod(input_shape)), num_classes))


def tokens(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(x.flatten(2)).mean(1)  # type: ignore[no-any-return]

    return _forward(forward, head=nn.Linear(int(np.prod(input_shape[1:])), num_classes))


def dropout_layer(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(bare(num_classes=num_classes, input_shape=input_shape), nn.Dropout(0.1))


def tied(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    first, last = nn.Linear(8, 8), nn.Linear(8, 8)
    last.weight = first.weight
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 8), first, last, nn.Linear(8, num_classes))


def recurrent(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return _forward(lambda net, x: net.cell(x.flatten(2))[0][:, -1], cell=nn.LSTM(input_shape[-1] ** 2, num_classes))


# --- as fit trains one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "size", "options"),
    [
        (Recipe(epochs=1), 130, {}),
        (FANCY, 97, {}),
        (FANCY, 97, {"hidden": (20,)}),
        (Recipe(epochs=1, batch_size=32, lr=0.05, momentum=0.0, schedule="triangular", peak_epoch=1), 100, {}),
        (FANCY.with_changes(nesterov=False), 9, {"hidden": ()}),
        (FANCY.with_changes(clip_norm=0.3), 97, {}),
        (MODERN, 97, {}),
        (MODERN, 97, {"hidden": (20,)}),
    ],
)
def test_after_an_epoch_fully_connected_networks_have_the_weights_of_fit(
    train: Resident, query: Resident, recipe: Recipe, size: int, options: dict[str, Any]
) -> None:
    members, spec = drawn(train, size, 5), spec_of("mlp", train, **options)
    assert why_not_stacked(spec, train, recipe) is None
    together = train_many(spec, train, query, members, recipe, engine=stacked(3), keep_weights=True)
    for member, found in zip(members, together, strict=True):
        model = spec.build(member.seed)
        fit(model, train.examples.subset(train.examples.ids[member.positions]), recipe, seed=member.seed)
        assert found.weights is not None
        near_zero = 1e-4 if recipe.optimizer == "adamw" else 1e-6  # AdamW divides by roots of tiny averages
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found.weights[name], value, rtol=1e-4, atol=near_zero)
        np.testing.assert_allclose(found.logits, predict(model, query), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "recipe", "options"),
    [
        ("resnet9", AUGMENTED, {"width": 0.07}),
        ("resnet9", AUGMENTED.with_changes(channels_last=True, momentum=0.5), {"width": 0.125}),
        ("cnn-small", FANCY, {"width": 0.2}),
        (branches, AUGMENTED, {}),
        (sequence, FANCY, {}),
        (bare, AUGMENTED, {}),
        ("resnet9", FANCY.with_changes(batch_size=16, clip_norm=0.5, ema=0.8), {"width": 0.125}),
    ],
)
def test_after_an_epoch_other_networks_have_the_weights_and_running_statistics_of_fit(
    pictures: Resident, model: str | Factory, recipe: Recipe, options: dict[str, Any]
) -> None:
    members, spec = drawn(pictures, 40, 3), spec_of(model, pictures, **options)
    assert why_not_stacked(spec, pictures, recipe) is None
    recipe = recipe.with_changes(lr=0.01)  # batch norm over few examples enlarges roundings
    together = train_many(spec, pictures, pictures, members, recipe, engine=stacked(2), keep_weights=True)
    alone = train_many(spec, pictures, pictures, members, recipe, engine=ALONE, keep_weights=True)
    for one, other in zip(together, alone, strict=True):
        assert one.weights is not None
        assert other.weights is not None
        assert list(one.weights) == list(other.weights)
        for name, value in other.weights.items():
            torch.testing.assert_close(one.weights[name], value, rtol=2e-3, atol=2e-4, msg=name)
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradients_by_hand_equal_automatic_differentiation(train: Resident, smoothing: float) -> None:
    spec, recipe = spec_of("mlp", train, hidden=(32, 16)), Recipe(label_smoothing=smoothing)
    by_hand, automatic = (Stack([spec.build(seed).double() for seed in range(3)], recipe, CPU) for _ in range(2))
    assert by_hand.layers is not None
    automatic.layers = None
    positions = torch.arange(21)
    inputs, labels = by_hand.rows(train, positions).double(), train.labels[positions].view(7, 3)
    for stack in (by_hand, automatic):
        stack.step(inputs, labels, 0.1)
    for one, other in zip(by_hand.network.parameters(), automatic.network.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_trained_to_the_end_accuracies_and_margins_are_those_of_the_loop(digits: Splits) -> None:
    train, query = Resident(digits.train, CPU), Resident(digits.query, CPU)
    spec, recipe = spec_of("mlp", train), RECIPES[default_recipe("mlp", len(train))]
    stack, again, loop = (
        np.stack([one.logits for one in train_many(spec, train, query, members, recipe, engine=how)])
        for members, how in (
            (drawn(train, 700, 12), stacked(12)),
            (drawn(train, 700, 12, first_seed=100), stacked(12)),
            (drawn(train, 700, 12), ALONE),
        )
    )
    accuracy = [(logits.argmax(2) == query.labels.numpy()).mean() for logits in (stack, again, loop)]
    margins = [output_of(logits, query.labels.numpy(), "margin") for logits in (stack, again, loop)]
    assert accuracy[0] == pytest.approx(accuracy[2], abs=0.002)
    assert accuracy[1] == pytest.approx(accuracy[2], abs=0.01)
    assert accuracy[2] > 0.95
    assert np.median(np.abs(margins[0] - margins[2])) < 1e-3  # the same seeds: equal but for roundings
    noise = np.std(margins[2], axis=0, ddof=1) / np.sqrt(6)  # of a difference of means over 12 seeds each
    z = (margins[1].mean(0) - margins[2].mean(0)) / noise
    assert abs(np.mean(z)) < 1
    assert 0.7 < np.std(z) < 1.6  # other seeds: they differ as much as seeds make them differ


def test_one_by_one_is_fit_and_predict(train: Resident, query: Resident) -> None:
    spec, (member, *_) = spec_of("cnn-small", train, width=0.25), drawn(train, 50, 1, first_seed=7)
    [found] = train_many(spec, train, query, [member], FANCY, engine=ALONE, keep_weights=True)
    model, threads = spec.build(7), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(model, train.examples.subset(train.examples.ids[member.positions]), FANCY, seed=7)
        expected = predict(model, query).numpy()
    finally:
        torch.set_num_threads(threads)
    assert same(found, Trained(expected, model.state_dict()))


# --- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "group", "size", "recipe"),
    [
        ("mlp", {}, 4, 75, FANCY),
        ("mlp", {"hidden": (13, 5)}, 3, 70, FANCY),  # matrices that begin anywhere
        ("cnn-small", {"width": 0.4}, 2, 50, FANCY),  # batch norm over 6 and 13 channels
        ("mlp", {}, 16, 75, MODERN),
        ("cnn-small", {"width": 0.4}, 16, 50, MODERN),
    ],
)
def test_bits_do_not_depend_on_how_members_are_ordered_grouped_or_split(
    train: Resident, query: Resident, model: str, options: dict[str, Any], group: int, size: int, recipe: Recipe
) -> None:
    spec, recipe = spec_of(model, train, **options), recipe.with_changes(epochs=2)
    members = [*drawn(train, size, 6), *drawn(train, size + 9, 3, first_seed=50)]

    def trained(chosen: list[int]) -> list[Trained]:
        asked = [members[place] for place in chosen]
        return train_many(spec, train, query, asked, recipe, engine=stacked(group), keep_weights=True)

    whole = trained(list(range(9)))
    generator = np.random.default_rng(0)
    for _ in range(2):
        order = generator.permutation(9).tolist()
        cut = int(generator.integers(1, 8))
        parts = [*trained(order[:cut]), *trained(order[cut:])]
        assert all(same(whole[place], found) for place, found in zip(order, parts, strict=True))
    assert not same(whole[0], whole[1])


@pytest.mark.parametrize(
    ("model", "options", "group", "size"),
    [
        ("mlp", {}, 3, 93),
        ("mlp", {"hidden": (7, 5)}, 2, 87),  # matrices of which most begin unaligned
        ("cnn-small", {"width": 0.15}, 3, 54),
        ("cnn-small", {"width": 0.4}, 2, 54),  # batch norm over 12 channels: less than a register
    ],
)
def test_one_member_in_all_places_comes_out_the_same(
    train: Resident, model: str, options: dict[str, Any], group: int, size: int
) -> None:
    assert not place_matters(spec_of(model, train, **options), train, FANCY, group, size)


def test_bits_of_a_resnet_with_batch_norm_and_augmentation_do_not_depend_on_the_grouping(pictures: Resident) -> None:
    spec, members = spec_of("resnet9", pictures, width=0.125), drawn(pictures, 40, 3)
    assert not place_matters(spec, pictures, AUGMENTED, 2, 40)

    def trained(*chosen: int) -> list[Trained]:
        asked = [members[place] for place in chosen]
        return train_many(spec, pictures, pictures, asked, AUGMENTED, engine=stacked(2), keep_weights=True)

    whole = trained(0, 1, 2)
    regrouped = [*trained(2, 0), *trained(1)]
    assert all(same(whole[place], found) for place, found in zip((2, 0, 1), regrouped, strict=True))


def test_bits_of_a_query_do_not_depend_on_the_other_queries(train: Resident, query: Resident) -> None:
    spec, members = spec_of("mlp", train), drawn(train, 50, 3)
    whole = train_many(spec, train, query, members, FANCY, engine=stacked(4))
    part = train_many(spec, train, query.part(np.array([17, 3])), members, FANCY, engine=stacked(4))
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(one.logits[[17, 3]], other.logits)


def test_streamed_inputs_train_to_the_same_bits(pictures: Resident) -> None:
    class Source:
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> Any:
            return pictures.examples[index]

    examples = ExampleSet(Source(), labels=pictures.examples.labels, classes=list("abcd"), hold_bytes=0)
    streamed, spec = Resident(examples, CPU), spec_of("resnet9", pictures, width=0.125)
    held, read = (
        train_many(spec, data, data, drawn(data, 30, 2), AUGMENTED, engine=stacked(2)) for data in (pictures, streamed)
    )
    assert examples.held is None
    assert all(same(one, other) for one, other in zip(held, read, strict=True))


def test_a_member_that_diverges_is_returned_as_it_is_and_leaves_the_others_alone(small_digits: Splits) -> None:
    pixels = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels[39] = torch.nan
    data = Resident(ExampleSet.from_arrays(pixels, np.arange(40) % 3), CPU)
    spec, query = spec_of("mlp", data), data.part(np.arange(10))
    members = [Member(np.arange(start, start + 20), start) for start in (0, 20, 10)]
    sound, broken, other = train_many(spec, data, query, members, FANCY, engine=stacked(3))
    again = train_many(spec, data, query, members[::2], FANCY, engine=stacked(3))
    assert np.isnan(broken.logits).all()
    assert same(sound, again[0])
    assert same(other, again[1])
    assert np.isfinite(sound.logits).all()


def test_where_the_place_in_the_group_would_matter_members_are_trained_one_by_one(
    train: Resident, query: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, members = spec_of("mlp", train), [*drawn(train, 50, 2), *drawn(train, 60, 1)]
    monkeypatch.setattr(engine, "place_matters", lambda *arguments: arguments[4] == 60)
    found = train_many(spec, train, query, members, FANCY, engine=stacked(2), keep_weights=True)
    alone = train_many(spec, train, query, members, FANCY, engine=ALONE, keep_weights=True)
    assert [same(one, other) for one, other in zip(found, alone, strict=True)] == [False, False, True]


def test_a_kernel_that_rounds_by_place_is_noticed(train: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("mlp", train)
    assert not place_matters(spec, train, FANCY, 3, 50)
    plain = Stack.step

    def uneven(stack: Stack, *arguments: Any) -> None:
        plain(stack, *arguments)
        with torch.no_grad():
            next(stack.network.parameters())[-1] *= 1 + 1e-7

    monkeypatch.setattr(Stack, "step", uneven)
    assert place_matters(spec, train, FANCY, 3, 50)


# --- manners -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [ALONE, stacked(2)])
def test_kept_weights_are_a_model_that_gives_the_logits(train: Resident, query: Resident, how: Engine) -> None:
    spec, members = spec_of("cnn-small", train, width=0.25), drawn(train, 40, 3)
    for found in train_many(spec, train, query, members, FANCY, engine=how, keep_weights=True):
        assert found.weights is not None
        model = spec.build(99)
        model.load_state_dict(found.weights)
        np.testing.assert_allclose(predict(model, query), found.logits, rtol=1e-4, atol=1e-5)
        assert found.logits.dtype == np.float32
    assert train_many(spec, train, query, members, FANCY, engine=how)[0].weights is None
    assert train_many(spec, train, query, [], FANCY, engine=how) == []


@pytest.mark.parametrize("how", [ALONE, stacked(2)])
def test_threads_and_generators_of_the_caller_are_left_as_they_were(
    train: Resident, query: Resident, how: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, before, seen = spec_of("cnn-small", train, width=0.25), torch.get_num_threads(), []
    monkeypatch.setattr(engine, "_check", lambda *_: None)
    build = ModelSpec.build

    def watched(*arguments: Any) -> nn.Module:
        seen.append(torch.get_num_threads())
        return build(*arguments)

    monkeypatch.setattr(ModelSpec, "build", watched)
    torch.set_num_threads(2)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    inputs = train.inputs(slice(None)).clone()
    try:
        train_many(spec, train, query, drawn(train, 40, 2), FANCY, engine=how)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (str(np.random.get_state()), random.getstate()) == states[1:]  # noqa: NPY002
    assert torch.equal(train.inputs(slice(None)), inputs)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([3], "at least 2 positions"),
        ([0.5, 1.5], "at least 2 positions, got float64"),
        ([[0, 1], [2, 3]], r"got int64 \(2, 2\)"),
        ([0, 200], "different numbers from 0 to 199"),
        ([-1, 3], "different numbers from 0 to 199"),
        ([4, 4], "different numbers"),
    ],
)
def test_positions_that_are_no_subset_are_refused(
    train: Resident, query: Resident, positions: list[Any], message: str
) -> None:
    for how in (ALONE, stacked(2)):
        with pytest.raises(InputError, match=message):
            train_many(spec_of("mlp", train), train, query, [Member(np.array(positions), 0)], FANCY, engine=how)


def test_a_part_of_resident_data_is_its_subset(train: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    positions = np.array([5, 199, 0])
    whole = Resident(train.examples.subset(train.examples.ids[positions]), CPU)
    monkeypatch.setattr("comove.training.loop.PREPARED_BYTES", 0)
    for data in (train, Resident(train.examples, CPU)):
        part = data.part(positions)
        assert torch.equal(part.inputs(torch.tensor([2, 0])), whole.inputs(torch.tensor([2, 0])))
        assert torch.equal(part.inputs(slice(1, 3)), whole.inputs(slice(1, 3)))
        assert torch.equal(part.labels, whole.labels)
        assert part.examples.ids.tolist() == train.examples.ids[positions].tolist()
        assert len(part) == 3


# --- what cannot be stacked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (dropout_layer, "dropout"),
        (dropping, "not compute what each computes alone"),
        (concatenating, "not compute what each computes alone"),
        (tokens, "linear layers stand side by side on"),
        (tied, "share parameters"),
        (recurrent, "LSTM layers have no form"),
    ],
)
def test_what_cannot_stand_side_by_side_is_trained_one_by_one_and_said_so(
    pictures: Resident, model: Factory, reason: str
) -> None:
    spec = spec_of(model, pictures)
    chosen = choose_engine(spec, pictures, FANCY, 30, models=100)
    assert (chosen.kind, chosen.group) == ("one-by-one", 1)
    assert reason in chosen.reason
    with pytest.raises(InputError, match=r"cannot be trained stacked: .*Use Engine\('one-by-one'"):
        train_many(spec, pictures, pictures, drawn(pictures, 20, 2), FANCY, engine=stacked(2))
    assert len(train_many(spec, pictures, pictures, drawn(pictures, 20, 2), FANCY, engine=ALONE)) == 2


def test_a_factory_named_in_a_file_is_used_only_when_passed_again(pictures: Resident) -> None:
    read = ModelSpec.from_json(spec_of(sequence, pictures).to_json())
    members = drawn(pictures, 20, 2)
    for how in (ALONE, stacked(2)):
        with pytest.raises(InputError, match="pass the factory again"):
            train_many(read, pictures, pictures, members, FANCY, engine=how)
        found = train_many(read, pictures, pictures, members, FANCY, engine=how, factory=sequence)
        assert found[0].logits.shape == (60, 4)
    with pytest.raises(InputError, match="pass the factory again"):
        choose_engine(read, pictures, FANCY, 20, models=10)
    assert choose_engine(read, pictures, FANCY, 20, models=10, factory=sequence).reason.endswith("(timed)")


def test_models_that_end_early_are_trained_one_by_one_by_validation_examples(train: Resident, query: Resident) -> None:
    spec, recipe = spec_of("mlp", train), Recipe(epochs=8, batch_size=16, lr=0.3, early_stop_patience=1)
    members, validation = drawn(train, 60, 2), query.part(np.arange(20, 40))
    reason = "early stopping would end the members of a group after different epochs"
    assert engines_for(spec, train.examples, recipe).cpu == Engine("one-by-one", 1, reason)
    assert choose_engine(spec, train, recipe, 60, models=10).reason == reason
    found = train_many(spec, train, query, members, recipe, engine=ALONE, validation=validation)
    for member, one in zip(members, found, strict=True):
        model = spec.build(member.seed)
        stop = StopEarly(model, validation, 1)
        fit(model, train.part(member.positions), recipe, seed=member.seed, ended=stop)
        assert len(stop.losses) < 8
        assert np.array_equal(predict(model, query), one.logits)
    with pytest.raises(InputError, match="cannot be trained stacked: early stopping"):
        train_many(spec, train, query, members, recipe, engine=stacked(2), validation=validation)
    with pytest.raises(InputError, match="pass validation examples"):
        train_many(spec, train, query, members, recipe, engine=ALONE)


@pytest.mark.parametrize("model", ["mlp", "cnn-small"])
def test_adamw_clipping_warm_up_and_averages_are_stacked(train: Resident, model: str) -> None:
    spec = spec_of(model, train, **({} if model == "mlp" else {"width": 0.25}))
    recipe = MODERN.with_changes(epochs=30, warmup_epochs=3)  # longer than any trial
    assert engines_for(spec, train.examples, recipe).cpu.kind == "stacked"
    assert not place_matters(spec, train, recipe, 16, 60)
    assert choose_engine(spec, train, recipe, 60, models=500).reason.endswith("(timed)")


# --- the choice ----------------------------------------------------------------------------------------------------


def _timings(monkeypatch: pytest.MonkeyPatch, alone: float, groups: dict[int, float], memory: int = 1) -> list[int]:
    tried: list[int] = []

    def timed(_: Any, group: int) -> float:
        tried.append(group)
        return groups[group]

    monkeypatch.setattr(choice._Trial, "alone", lambda _: alone)
    monkeypatch.setattr(choice._Trial, "stacked", timed)
    monkeypatch.setattr(choice._Trial, "memory_a_model", lambda _: memory)
    monkeypatch.setattr(choice._Trial, "memory", lambda _: 100)
    return tried


def test_the_smallest_group_within_a_twentieth_of_the_best_is_taken(
    train: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = _timings(monkeypatch, 1.0, {2: 0.7, 4: 0.5, 8: 0.415, 12: 0.41, 16: 0.40, 24: 0.5})
    chosen = choose_engine(spec_of("mlp", train), train, FANCY, 100, models=480)
    assert tried == [2, 4, 8, 12, 16, 24]
    assert chosen == Engine("stacked", 8, "stacked 0.415 s a model in groups of 8, one by one 1 s (timed)")


def test_repetitions_that_fill_the_last_group_are_counted(train: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    _timings(monkeypatch, 1.0, {2: 0.7, 4: 0.5, 8: 0.45})
    chosen = choose_engine(spec_of("mlp", train), train, FANCY, 100, models=5)
    assert chosen.group == 8  # 8 x 0.45 / 5, against 8 x 0.5 / 5 and 6 x 0.7 / 5
    assert "stacked 0.72 s" in chosen.reason


@pytest.mark.parametrize(
    ("alone", "memory", "models", "reason"),
    [
        (0.3, 1, 480, "stacked 0.5 s a model in groups of 4, one by one 0.3 s (timed)"),
        (1.0, 60, 480, "too much memory"),
        (1.0, 1, 3, "3 models are too few to time"),
    ],
)
def test_one_by_one_is_chosen_where_it_is_faster_or_the_only_way(
    train: Resident, monkeypatch: pytest.MonkeyPatch, alone: float, memory: int, models: int, reason: str
) -> None:
    _timings(monkeypatch, alone, {2: 0.7, 4: 0.5, 8: 0.9}, memory)
    chosen = choose_engine(spec_of("mlp", train), train, FANCY, 100, models=models)
    assert (chosen.kind, chosen.group) == ("one-by-one", 1)
    assert reason in chosen.reason


def test_groups_are_not_timed_where_one_step_alone_takes_long_nor_used_where_the_place_matters(
    train: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = _timings(monkeypatch, 1.0, {2: 0.7, 4: 0.9})
    monkeypatch.setattr(choice, "place_matters", lambda *_: True)
    spec = spec_of("mlp", train)
    reason = choose_engine(spec, train, FANCY, 100, models=480).reason
    assert reason.startswith("a model's bits would depend on its place in a group; stacked 0.7 s")
    monkeypatch.setattr(choice, "LONG", 0.0)
    tried.clear()
    assert "one step of one model takes" in choose_engine(spec, train, FANCY, 100, models=480).reason
    assert tried == []


def test_a_real_timing_takes_about_a_second_and_finds_small_networks_faster_side_by_side(train: Resident) -> None:
    chosen = choose_engine(spec_of("mlp", train), train, Recipe(), 100, models=500)
    assert chosen.kind == "stacked"
    assert chosen.group in choice.GROUPS
    seconds = [float(word) for word in chosen.reason.split() if word[0].isdigit() and "." in word]
    assert 0 < seconds[0] < seconds[1] < 10


def test_memory_counts_activations_by_batch_size_and_weights_four_times(train: Resident) -> None:
    spec = spec_of("mlp", train, hidden=(32,))
    small, large = (
        choice._Trial(spec, train, Recipe(batch_size=size), 100, None).memory_a_model() for size in (20, 40)
    )
    weights = 4 * 4 * (64 * 32 + 32 + 32 * 10 + 10)
    activations = 4 * (64 + 32)  # what an example keeps for the backward pass at least: the layers' inputs
    assert weights + 20 * activations <= small <= 2 * (weights + 20 * activations)
    assert large - small >= 20 * activations


@pytest.mark.parametrize("size", [1, 201])
def test_a_size_that_no_member_can_have_is_refused(train: Resident, size: int) -> None:
    with pytest.raises(InputError, match=f"from 2 to 200.*got {size}"):
        choose_engine(spec_of("mlp", train), train, FANCY, size, models=10)


def test_an_engine_comes_back_from_json_and_refuses_nonsense() -> None:
    made = Engine("stacked", 16, "stacked 0.021 s a model")
    assert Engine.from_json(made.to_json()) == made
    for kind, group in (("vmap", 4), ("stacked", 0), ("stacked", 2.5), ("stacked", True), ("one-by-one", 2)):
        with pytest.raises(InputError, match=r"An engine is|A group must be|group must be of type int"):
            Engine.from_json({"kind": kind, "group": group, "reason": ""})
    with pytest.raises(InputError, match="lacks group"):
        Engine.from_json({"kind": "stacked"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_trains_groups_to_nearly_the_logits_of_the_cpu(small_digits: Splits, precision: str) -> None:
    recipe = FANCY.with_changes(precision=precision, epochs=3)
    for model, options in (("mlp", {}), ("cnn-small", {"width": 0.5})):
        found = []
        for device in (CPU, torch.device("cuda")):
            train, query = Resident(small_digits.train, device), Resident(small_digits.query, device)
            spec, members = spec_of(model, train, **options), drawn(train, 100, 3)
            found.append(train_many(spec, train, query, members, recipe, engine=stacked(2)))
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one.logits, other.logits, rtol=0.1, atol=0.1)
