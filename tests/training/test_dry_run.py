"""What a dry run refuses leaves nothing behind; what it lets through trains as ever, with the same bits."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import comove
from comove.attribution import GradDot
from comove.data import ExampleSet, Splits, split
from comove.errors import InputError, NonFiniteError
from comove.evaluation import RetrainingBank, subsets
from comove.training import Recipe, Recording, Training
from comove.training.dry_run import dry_run

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)
Forward = Callable[[Any, Tensor], Any]
Answer = namedtuple("Answer", ["logits", "more"])  # as torchvision's GoogLeNetOutputs


@dataclass
class Outputs:
    """As the outputs of Hugging Face models, with nothing but attributes."""

    logits: Tensor
    hidden_states: Any = None


class Net(nn.Module):
    """Two linear layers, dropout and batch norm, and a forward pass of the test's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm1d(6), nn.Linear(6, 3), nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.3)
        self.answer = forward

    def forward(self, x: Tensor) -> Any:
        return self.answer(self, x)


def plain(net: Any, x: Tensor) -> Any:
    return net.b(torch.relu(net.a(net.dropout(net.norm(x)))))


def of(forward: Forward) -> Callable[..., nn.Module]:
    return lambda num_classes, input_shape: Net(forward)


def numbers(count: int = 40, classes: int = 3, dtype: Any = np.float32) -> ExampleSet:
    inputs = np.random.default_rng(0).normal(size=(count, 6)).astype(dtype)
    return ExampleSet.from_arrays(inputs, np.arange(count) % classes)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return split(numbers(), validation=4, query=6)


SAME: dict[str, Forward] = {
    "dict": lambda net, x: {"logits": plain(net, x), "more": x},
    "attribute": lambda net, x: Outputs(plain(net, x)),
    "named tuple": lambda net, x: Answer(plain(net, x), x),
    "tuple of one": lambda net, x: (plain(net, x),),
    "keyword": lambda net, x: net.b(input=torch.relu(net.a(input=net.dropout(net.norm(x))))),
}


@pytest.mark.parametrize("case", SAME)
def test_an_output_that_holds_logits_trains_to_the_same_bits_as_the_logits_alone(case: str, splits: Splits) -> None:
    expected, found = (comove.train(splits, of(forward), RECIPE) for forward in (plain, SAME[case]))
    np.testing.assert_array_equal(found.trace.read("train"), expected.trace.read("train"))
    np.testing.assert_array_equal(
        found.trace.features("train", found.trace.anchors[-1]),
        expected.trace.features("train", expected.trace.anchors[-1]),
    )
    scores = [GradDot().fit(run).attribute(splits.query.ids).values for run in (found, expected)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-6)


def test_a_bank_of_models_that_return_a_dictionary_has_the_logits_of_those_that_do_not(
    splits: Splits, tmp_path: Path
) -> None:
    found = [
        RetrainingBank.create(tmp_path / name, splits, Training(of(forward), RECIPE), subsets=subsets.random(0.5, 2))
        .run(executor="serial")
        .logits()
        for name, forward in (("plain", plain), ("dict", SAME["dict"]))
    ]
    np.testing.assert_array_equal(found[0], found[1])


REFUSED: dict[str, tuple[Forward, str]] = {
    "a tuple": (lambda net, x: (plain(net, x), x), "a tuple of 2"),
    "nothing": (lambda net, x: None, "a NoneType"),
    "a dictionary without logits": (lambda net, x: {"out": plain(net, x)}, "entries 'out'"),
    "auxiliary in training": (
        lambda net, x: Answer(plain(net, x), net.a(x)) if net.training else plain(net, x),
        r"same in both modes.*aux_logits=False",
    ),
    "auxiliary entry in training": (
        lambda net, x: {"logits": plain(net, x), **({"aux": net.a(x)} if net.training else {})},
        "same in both modes",
    ),
    "probabilities in evaluation": (
        lambda net, x: plain(net, x) if net.training else plain(net, x).softmax(1),
        "rows sum to 1",
    ),
    "whole numbers": (lambda net, x: plain(net, x).argmax(1), "floating-point logits.*int64"),
    "too many classes": (lambda net, x: torch.cat([plain(net, x), plain(net, x)], 1), r"\(2, 6\).*num_classes"),
    "one row": (lambda net, x: plain(net, x).mean(0, keepdim=True), r"\(1, 3\).*first dimension is the batch"),
    "a dimension more": (lambda net, x: plain(net, x)[:, None], r"\(2, 1, 3\)"),
    "a number": (lambda net, x: plain(net, x).sum(), r"returned \(\)"),
    "detached": (lambda net, x: plain(net, x).detach(), "no gradient reaches"),
    "not of the inputs' parameters": (lambda net, x: x[:, :3] * 2, "no gradient reaches"),
    "raises": (lambda net, x: net.nothing, r"two examples.*\(2, 6\) of float32. AttributeError"),
    "raises in evaluation": (
        lambda net, x: plain(net, x) if net.training else net.nothing,
        "in evaluation mode on two examples",
    ),
    "sparse": (lambda net, x: plain(net, x).to_sparse(), "dense logits.*sparse_coo"),
    "no batch of one": (lambda net, x: plain(net, x).squeeze(), r"one example.*\(1, 3\).*returned \(3,\)"),
    "a fixed batch size": (lambda net, x: plain(net, x.view(8, 6)), "shape '.8, 6.' is invalid"),
    "changes its inputs": (lambda net, x: plain(net, x.mul_(2)), "changes its inputs in place"),
    "NaN": (lambda net, x: plain(net, x) * float("nan"), "NaN or infinite before training"),
    "a gradient of NaN": (lambda net, x: plain(net, x) + (net.a(x) * 0).sqrt(), "gradient.*NaN or infinite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_and_no_folder_is_left(case: str, splits: Splits, tmp_path: Path) -> None:
    forward, message = REFUSED[case]
    with pytest.raises(InputError, match=f"(?s){message}"):
        comove.train(splits, of(forward), RECIPE, out=tmp_path / "runs" / "a")
    with pytest.raises(InputError, match=f"(?s){message}"):
        RetrainingBank.create(tmp_path / "bank", splits, Training(of(forward), RECIPE), subsets=subsets.random(0.5, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outputs", [lambda z: z[:, :1], lambda z: z[:, 0]], ids=["(B, 1)", "(B,)"])
def test_one_number_for_two_classes_is_refused(outputs: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match="Two classes take two numbers"):
        dry_run(Net(lambda net, x: outputs(plain(net, x))), numbers(classes=2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(6, 3).requires_grad_(False), "all 2 are frozen"),
        (nn.Flatten(), "it has none"),
        (nn.Linear(6, 3, device="meta"), "'weight' is on the meta device"),
        (nn.Sequential(nn.LazyLinear(3)), "'0.weight' has no shape yet"),
    ],
)
def test_parameters_that_cannot_be_trained_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dry_run(model, numbers())


def test_inputs_that_are_nan_and_a_single_example_are_refused() -> None:
    spoilt = ExampleSet.from_arrays(np.full((4, 6), np.nan, np.float32), np.arange(4) % 3)
    with pytest.raises(NonFiniteError, match="input of 'arrays'"):
        dry_run(Net(plain), spoilt)
    with pytest.raises(InputError, match="at least 2 examples, got 1"):
        dry_run(Net(plain), numbers(1, 1))


@pytest.mark.parametrize("where", ["train", "validation", "query"])
def test_one_input_that_is_not_finite_is_named_before_any_work(where: str, splits: Splits, tmp_path: Path) -> None:
    part: ExampleSet = getattr(splits, where)
    changed: dict[str, Any] = {}
    assert part.held is not None
    inputs = part.held.clone()
    inputs[-1, 2] = torch.inf
    changed[where] = ExampleSet.from_arrays(inputs, part.labels, ids=part.ids, classes=part.classes)
    with pytest.raises(NonFiniteError, match=f"in 1 examples, ids {part.ids[-1]}"):
        comove.train(replace(splits, **changed), of(plain), RECIPE, out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:FutureWarning", "ignore:.*torch.jit.script.*:DeprecationWarning"
)
def test_a_scripted_model_trains_as_the_model_it_was_made_of(splits: Splits) -> None:
    def make(num_classes: int, input_shape: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))

    def scripted(num_classes: int, input_shape: Any) -> nn.Module:
        made: nn.Module = torch.jit.script(make(num_classes, input_shape))
        return made

    runs = [comove.train(splits, factory, RECIPE, recording=Recording(anchors=())) for factory in (make, scripted)]
    np.testing.assert_allclose(runs[1].trace.read("train"), runs[0].trace.read("train"), rtol=1e-5)


def test_token_ids_for_a_model_of_real_numbers_are_explained() -> None:
    with pytest.raises(InputError, match=r"int64. RuntimeError.*Whole numbers are token ids"):
        dry_run(Net(lambda net, x: net.a(x)), numbers(dtype=np.int64))


def test_a_dry_run_changes_nothing(splits: Splits) -> None:
    net = Net(plain)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    dry_run(net, splits.train)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training


SHAPES: Mapping[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "signals": ((2, 9), lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28, 3))),
    "video": ((1, 4, 5, 5), lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))),
    "one number": ((1,), lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 3))),
}


@pytest.mark.parametrize("case", SHAPES)
def test_examples_of_any_shape_are_trained_on_by_a_factory_of_ones_own(case: str) -> None:
    shape, build = SHAPES[case]
    inputs = np.random.default_rng(0).normal(size=(30, *shape)).astype(np.float32)
    parts = split(ExampleSet.from_arrays(inputs, np.arange(30) % 3), validation=3, query=4)
    recipe = RECIPE.with_changes(channels_last=True)
    run = comove.train(parts, lambda num_classes, input_shape: build(), recipe)
    model = run.load_model()
    logits = model(torch.from_numpy(inputs))[parts.train.ids]
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(parts.train.labels), reduction="none")
    np.testing.assert_allclose(run.trace.read("train")[-1], losses.detach().numpy(), rtol=1e-4, atol=1e-6)
    named = comove.train(parts, "mlp", RECIPE)
    assert named.model_spec.input_shape == shape
