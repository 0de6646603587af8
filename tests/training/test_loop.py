"""The training loop: reproducible, polite to its caller, and the same wherever the data is kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from comove.data import ExampleSet, Splits
from comove.errors import InputError
from comove.models import build_model
from comove.training import Recipe, Resident, evaluate, fit, loop, predict, resolve_device
from comove.training.loop import OptimizerState, StopEarly, batch_bounds, epochs_without_gain
from comove.training.randomness import derived_seed, generator_for

Weights = dict[str, torch.Tensor]
MODERN = Recipe(
    epochs=3,
    batch_size=16,
    lr=0.01,
    optimizer="adamw",
    weight_decay=0.1,
    clip_norm=0.5,
    warmup_epochs=1.5,
    schedule="cosine",
    ema=0.9,
)
AUGMENTED = Recipe(epochs=2, batch_size=16, lr=0.05, augment="flip_crop", crop_padding=2)


class _Dropout(nn.Module):
    """Dropout and batch norm, for images."""

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.drop(hidden))  # type: ignore[no-any-return]


def _dropout(classes: int = 10, channels: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _Dropout(classes, channels)


def _trained(examples: ExampleSet, recipe: Recipe, seed: int, build: Callable[[], nn.Module] = _dropout) -> Weights:
    model = build()
    fit(model, examples, recipe, seed=seed)
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class _Log:
    """Hooks that note what they are told."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.steps: list[tuple[int, float, float, bool]] = []
        self.events: list[str] = []

    def on_start(self) -> None:
        self.events.append("start")

    def on_epoch_start(self, epoch: int) -> None:
        self.events.append(f"epoch {epoch}")

    def on_batch(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        assert logits.shape[0] == labels.shape[0] == positions.shape[0]
        assert not logits.requires_grad
        self.batches.append(positions.tolist())

    def on_step(self, step: int, epoch: float, lr: float, last_of_epoch: bool) -> None:
        self.steps.append((step, epoch, lr, last_of_epoch))

    def on_epoch_end(self, state: OptimizerState) -> None:
        self.events.append(f"end {state.epoch}")


# --- the same bits -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(small_digits: Splits) -> None:
    first, again, other = (_trained(small_digits.train, AUGMENTED, seed) for seed in (0, 0, 1))
    assert _same(first, again)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_neither_reads_nor_moves_the_callers_generators(small_digits: Splits) -> None:
    def states() -> tuple[torch.Tensor, str, object]:
        return torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    first = _trained(small_digits.train, AUGMENTED, 0)
    with torch.random.fork_rng():
        torch.manual_seed(987)
        np.random.seed(987)  # noqa: NPY002
        random.seed(987)
        before = states()
        second = _trained(small_digits.train, AUGMENTED, 0)
        after = states()
    assert _same(first, second)
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert before[2] == after[2]


@pytest.mark.parametrize("recipe", [AUGMENTED.with_changes(epochs=3, schedule="cosine"), MODERN])
def test_going_on_from_an_epoch_gives_the_bits_of_the_whole(small_digits: Splits, recipe: Recipe) -> None:
    kept: dict[str, Any] = {}

    class Keep(_Log):
        def on_epoch_end(self, state: OptimizerState) -> None:
            if state.epoch == 1:
                kept["weights"] = {name: value.clone() for name, value in whole.state_dict().items()}
                momentum = {name: value.clone() for name, value in state.momentum.items()}
                own = {name: value.clone() for name, value in state.weights.items()}
                kept["state"] = OptimizerState(1, state.step, momentum, dict(state.scaler), own)

    whole, rest, log = _dropout(), _dropout(), _Log()
    fit(whole, small_digits.train, recipe, seed=4, hooks=Keep())
    rest.load_state_dict(kept["weights"])
    fit(rest, small_digits.train, recipe, seed=4, hooks=log, state=kept["state"])
    assert _same(whole.state_dict(), rest.state_dict())
    assert log.events == ["epoch 1", "end 2", "epoch 2", "end 3"]
    assert log.steps[0][0] == 14


def test_streams_of_other_names_indices_and_seeds_differ_and_are_fixed_for_good() -> None:
    paths: list[tuple[int, tuple[str | int, ...]]] = [
        (0, ("order", 0)),
        (0, ("order", 1)),
        (0, ("augment", 0)),
        (1, ("order", 0)),
    ]
    assert len({derived_seed(seed, *path) for seed, path in paths}) == len(paths)
    assert derived_seed(0, "order", 0) == 6230928577095065118  # a change here would change every run ever made
    assert generator_for(0, "order", 0).initial_seed() == derived_seed(0, "order", 0)


# --- the order of things -----------------------------------------------------------------------------------------


def test_each_epoch_meets_each_example_once_in_another_order(small_digits: Splits) -> None:
    log = _Log()
    fit(_dropout(), small_digits.train, AUGMENTED, seed=0, hooks=log)
    epochs = [[place for batch in part for place in batch] for part in (log.batches[:13], log.batches[13:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(200))] * 2
    assert epochs[0] != epochs[1]
    assert log.events == ["start", "epoch 0", "end 1", "epoch 1", "end 2"]


@pytest.mark.parametrize(
    ("last_batch", "size", "sizes"),
    [
        ("short", 9, [4, 5]),
        ("short", 10, [4, 4, 2]),
        ("short", 8, [4, 4]),
        ("short", 5, [5]),
        ("even", 9, [3, 3, 3]),
        ("even", 10, [4, 3, 3]),
        ("even", 8, [4, 4]),
        ("even", 5, [3, 2]),
        ("even", 3, [3]),
    ],
)
def test_no_batch_is_of_one_example_and_even_ones_differ_by_one(
    small_digits: Splits, last_batch: str, size: int, sizes: list[int]
) -> None:
    log = _Log()
    examples = small_digits.train.subset(small_digits.train.ids[:size])
    recipe = Recipe(epochs=1, batch_size=4, last_batch=last_batch)
    fit(_dropout(), examples, recipe, seed=0, hooks=log)
    assert [len(batch) for batch in log.batches] == sizes
    assert [last for *_, last in log.steps] == [False] * (len(sizes) - 1) + [True]


@given(size=st.integers(1, 5000), batch_size=st.integers(2, 600))
def test_even_batches_cover_the_epoch(size: int, batch_size: int) -> None:
    bounds = batch_bounds(size, Recipe(batch_size=batch_size))
    sizes = [stop - start for start, stop in bounds]
    assert [start for start, _ in bounds] == [0, *np.cumsum(sizes)[:-1]]
    assert sum(sizes) == size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(size, 2)
    assert max(sizes) <= max(batch_size, 3)  # three examples in batches of two are one batch
    short = len(batch_bounds(size, Recipe(batch_size=batch_size, last_batch="short")))
    assert short <= len(bounds) <= short + 1  # one more where a single example had joined its neighbour


def test_each_step_uses_the_schedule_at_its_middle(small_digits: Splits) -> None:
    recipe = Recipe(epochs=4, batch_size=50, lr=0.4, schedule="triangular", peak_epoch=1)
    log = _Log()
    fit(_dropout(), small_digits.train, recipe, seed=0, hooks=log)
    assert [lr for _, _, lr, _ in log.steps] == pytest.approx([recipe.lr_at((i + 0.5) / 4) for i in range(16)])
    assert [epoch for _, epoch, _, _ in log.steps] == pytest.approx([(i + 1) / 4 for i in range(16)])
    assert [step for step, *_ in log.steps] == list(range(1, 17))


def test_one_epoch_equals_a_literal_loop_with_torch_optim(small_digits: Splits) -> None:
    recipe = Recipe(epochs=1, batch_size=64, lr=0.1, momentum=0.9, weight_decay=1e-3, label_smoothing=0.1)

    def build() -> nn.Module:
        return build_model("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0)

    ours = _trained(small_digits.train, recipe, 3, build)
    model, threads = build(), torch.get_num_threads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    order = torch.randperm(200, generator=generator_for(3, "order", 0))
    torch.set_num_threads(1)
    try:
        for part in torch.tensor_split(order, 4):
            inputs, labels = small_digits.train.batch(part.numpy())
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs), labels, label_smoothing=0.1))
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    assert _same(ours, model.state_dict())


def test_adamw_with_clipping_warm_up_and_an_average_equals_a_literal_loop_with_torch_optim(
    small_digits: Splits,
) -> None:
    recipe = MODERN.with_changes(epochs=2, batch_size=64)

    def build() -> nn.Module:
        return build_model("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0)

    ours = _trained(small_digits.train, recipe, 3, build)
    model, average, step = build(), build(), 0
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for epoch in range(2):
        order = torch.randperm(200, generator=generator_for(3, "order", epoch))
        for index, part in enumerate(torch.tensor_split(order, 4)):
            inputs, labels = small_digits.train.batch(part.numpy())
            optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch + (index + 0.5) / 4)
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs), labels))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            step += 1
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(weight, 1 - min(0.9, (1 + step) / (10 + step)))
    for name, value in average.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)
        assert not torch.allclose(ours[name], model.state_dict()[name], rtol=1e-3)


def test_hooks_see_the_average_after_steps_and_epochs_and_the_weights_in_between(small_digits: Splits) -> None:
    model = _dropout()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def weights() -> torch.Tensor:
        return torch.clone(model.state_dict()["head.weight"])

    class Watch(_Log):
        def on_batch(self, *_: Any) -> None:
            self.before = weights()

        def on_step(self, *_: Any, **__: Any) -> None:
            seen.append((self.before, weights()))

        def on_epoch_end(self, state: OptimizerState) -> None:
            seen.append((state.weights["head.weight"].clone(), weights()))

    fit(model, small_digits.train, MODERN.with_changes(epochs=2), seed=0, hooks=Watch())
    for own, average in seen:
        assert not torch.equal(own, average)
    assert torch.equal(seen[-1][0], seen[-2][0])  # on_batch comes after the step
    assert torch.equal(seen[-1][1], seen[-2][1])
    assert torch.equal(seen[-1][1], weights())  # the model ends with the average


# --- early stopping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [([], 0), ([2.0], 0), ([2.0, 1.0], 0), ([1.0, 2.0, 1.5], 2), ([1.0, 1.0], 1), ([3.0, 1.0, 2.0], 1)],
)
def test_epochs_without_gain_are_counted_from_the_first_least_loss(losses: list[float], epochs: int) -> None:
    assert epochs_without_gain(losses) == epochs


def test_training_ends_when_the_mean_validation_loss_has_not_fallen_for_so_many_epochs(small_digits: Splits) -> None:
    recipe = Recipe(epochs=12, batch_size=16, lr=0.3, early_stop_patience=2)

    def build() -> nn.Module:
        return build_model("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0)

    model, held_out = build(), Resident(small_digits.query, torch.device("cpu"))
    stop = StopEarly.of(model, recipe, held_out)
    assert stop is not None
    fit(model, small_digits.train, recipe, seed=0, ended=stop)
    epochs = len(stop.losses)
    assert 2 < epochs < 12
    least = stop.losses.index(min(stop.losses))
    assert epochs - 1 - least == 2
    logits, labels = predict(model, held_out), torch.from_numpy(small_digits.query.labels)
    assert stop.losses[-1] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    shorter = Recipe(epochs=epochs, batch_size=16, lr=0.3)
    assert _same(_trained(small_digits.train, shorter, 0, build), model.state_dict())
    assert StopEarly.of(model, Recipe(), None) is None
    with pytest.raises(InputError, match="pass validation examples"):
        fit(model, small_digits.train, recipe, seed=0, ended=StopEarly.of(model, recipe, None))


def test_training_on_one_example_is_refused(small_digits: Splits) -> None:
    with pytest.raises(InputError, match="at least 2 examples, got 1"):
        fit(_dropout(), small_digits.train.subset(small_digits.train.ids[:1]), Recipe(epochs=1), seed=0)


def test_flip_crop_of_inputs_that_are_no_images_is_refused() -> None:
    examples = ExampleSet.from_arrays(torch.zeros(8, 5), np.arange(8) % 2)
    with pytest.raises(InputError, match="needs images"):
        fit(nn.Linear(5, 2), examples, AUGMENTED, seed=0)


# --- threads and modes -------------------------------------------------------------------------------------------


def test_the_number_of_threads_comes_back_also_after_an_error(small_digits: Splits) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []

    class Stop(_Log):
        def on_epoch_start(self, epoch: int) -> None:
            seen.append(torch.get_num_threads())
            raise ZeroDivisionError

    mlp = build_model("mlp", num_classes=10, input_shape=(1, 8, 8))
    try:
        for model in (mlp, _dropout()):
            with pytest.raises(ZeroDivisionError):
                fit(model, small_digits.train, Recipe(epochs=1), seed=0, hooks=Stop())
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]  # the small fully connected network on one, the convolutional one on all


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_uses_running_statistics_and_puts_the_mode_back(small_digits: Splits, training: bool) -> None:
    model = _dropout().train(training)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    data = Resident(small_digits.query, torch.device("cpu"))
    parts = list(evaluate(model, data, batch_size=7))
    assert model.training is training
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    whole = model.eval()(small_digits.query.batch(np.arange(40))[0]).detach()
    torch.testing.assert_close(torch.cat([logits for _, logits, _ in parts]), whole)
    assert np.concatenate([positions for positions, _, _ in parts]).tolist() == list(range(40))
    assert torch.cat([labels for *_, labels in parts]).tolist() == small_digits.query.labels.tolist()


def test_evaluate_puts_the_mode_back_when_the_model_fails(small_digits: Splits) -> None:
    model = nn.Linear(3, 3).train()
    with pytest.raises(RuntimeError):
        list(evaluate(model, Resident(small_digits.query, torch.device("cpu"))))
    assert model.training


def test_fit_leaves_the_model_in_evaluation_mode(small_digits: Splits) -> None:
    model = _dropout()
    fit(model, small_digits.train, Recipe(epochs=1), seed=0)
    assert not model.training


def test_predict_equals_the_model(small_digits: Splits) -> None:
    model = _dropout().eval()
    inputs, _ = small_digits.query.batch(np.arange(40))
    torch.testing.assert_close(predict(model, small_digits.query), model(inputs).detach())
    assert predict(model, small_digits.query).dtype == torch.float32


# --- where the data is -------------------------------------------------------------------------------------------


def test_prepared_held_and_streamed_inputs_train_to_the_same_bits(
    images: ExampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> nn.Module:
        return _dropout(4, 3)

    class Source:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> Any:
            return images[index]

    streamed = ExampleSet(Source(), labels=images.labels, classes=images.classes, hold_bytes=0)
    assert streamed.held is None
    prepared = _trained(images, AUGMENTED, 0, build)
    assert _same(prepared, _trained(streamed, AUGMENTED, 0, build))
    monkeypatch.setattr(loop, "PREPARED_BYTES", 0)
    assert _same(prepared, _trained(images, AUGMENTED, 0, build))


def test_a_shared_resident_trains_as_its_examples_and_is_not_changed(images: ExampleSet) -> None:
    data = Resident(images, torch.device("cpu"))
    before = data.inputs(slice(None)).clone()
    model = _dropout(4, 3)
    fit(model, data, AUGMENTED, seed=0)
    assert _same(model.state_dict(), _trained(images, AUGMENTED, 0, lambda: _dropout(4, 3)))
    assert torch.equal(data.inputs(slice(None)), before)


def test_channels_last_changes_the_layout_and_not_the_result(images: ExampleSet) -> None:
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    plain = _trained(images, recipe, 0, lambda: _dropout(4, 3))
    last = _trained(images, recipe.with_changes(channels_last=True), 0, lambda: _dropout(4, 3))
    assert last["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=1e-4, atol=1e-5)


# --- devices -----------------------------------------------------------------------------------------------------


def test_cuda_without_cuda_and_an_unknown_device_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="no CUDA device; use device='cpu'"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="Did you mean 'cuda'"):
        resolve_device("cudaa")
    with pytest.raises(InputError, match="Unknown device 'mps'; use auto, cpu, cuda"):
        resolve_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="no device 'cuda:3': torch sees 1"):
        resolve_device("cuda:3")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_gpu_trains_to_nearly_the_losses_of_the_cpu(small_digits: Splits, precision: str) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        model = build_model("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0).to(device)
        fit(model, small_digits.train, Recipe(epochs=5, precision=precision), seed=0, device=device)
        logits = predict(model, small_digits.query, device)
        losses.append(nn.functional.cross_entropy(logits, torch.from_numpy(small_digits.query.labels)))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0.05)
