"""The last layer is the one that runs last, whatever the order in which layers are registered: held to autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import comove
from comove.coreset import GraNd
from comove.data import ExampleSet, Splits, split
from comove.errors import InputError
from comove.models.last_layer import last_linear, penultimate, untouched
from comove.training import Recording

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A head registered before the body, a layer that is never called, and a forward pass of the test's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.head, self.body, self.unused = nn.Linear(12, 3), nn.Linear(8, 12), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.answer = forward

    def forward(self, x: Tensor) -> Any:
        return self.answer(self, x)


def hidden(net: Any, x: Tensor) -> Tensor:
    return torch.relu(net.body(x))


FOUND: dict[str, Forward] = {
    "head first": lambda net, x: net.head(hidden(net, x)),
    "by keyword": lambda net, x: net.head(input=torch.relu(net.body(input=x))),
    "scaled": lambda net, x: net.head(hidden(net, x)) * 0.2,
    "log-softmax": lambda net, x: net.head(hidden(net, x)).log_softmax(1),
    "a dictionary": lambda net, x: {"logits": net.head(hidden(net, x))},
    "in place afterwards": lambda net, x: net.head(hidden(net, x)).mul_(2),
    "another layer runs later but gives nothing": lambda net, x: (net.head(hidden(net, x)), net.body(x))[:1],
    "positions": lambda net, x: net.head(hidden(net, x)[:, None].expand(-1, 4, -1)).mean(1),
}
REFUSED: dict[str, tuple[Forward, str]] = {
    "weight read directly": (lambda net, x: F.linear(F.normalize(hidden(net, x)), net.head.weight), "'head.weight'"),
    "a parameter after it": (lambda net, x: net.head(hidden(net, x)) * net.scale, "also depend on 'scale'"),
    "a branch around it": (lambda net, x: net.head(hidden(net, x)) + net.unused(net.body(x)), "after or around it"),
    "called twice": (lambda net, x: net.head(hidden(net, x)) + net.head(net.body(x)), "after or around it|2 times"),
    "weight used earlier too": (
        lambda net, x: net.head(hidden(net, x) + (net.body(x) @ net.head.weight.T) @ net.head.weight),
        "another way",
    ),
    "no linear layer called": (lambda net, x: x[:, :3] * net.scale, "no torch.nn.Linear that is called"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_layer_that_gives_the_logits_is_found_and_the_model_left_alone(case: str) -> None:
    net, x = Net(FOUND[case]), torch.randn(5, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert last_linear(net, x) == ("head", net.head)
    with penultimate(net) as record:
        net(x)
    rows = hidden(net, x).detach()
    torch.testing.assert_close(record.features, rows.repeat(1, 4) if case == "positions" else rows)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_does_not_give_the_logits_is_refused(case: str) -> None:
    forward, message = REFUSED[case]
    net = Net(forward)
    with pytest.raises(InputError, match=message):
        last_linear(net, torch.randn(4, 8))
    with penultimate(net), pytest.raises(InputError, match=message):
        net(torch.randn(4, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_weight_shared_with_another_layer_is_refused() -> None:
    net = Net(lambda net, x: net.head(torch.relu(net.unused(hidden(net, x))) @ net.unused.weight))
    net.unused.weight = net.head.weight
    with pytest.raises(InputError, match="shares its weight with 'unused'"):
        last_linear(net, torch.randn(4, 8))


def test_a_linear_layer_with_a_forward_of_its_own_is_refused() -> None:
    class Cosine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(F.normalize(input), F.normalize(self.weight))

    with pytest.raises(InputError, match="another way"):
        last_linear(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), Cosine(6, 3)), torch.randn(4, 8))


def test_a_model_that_cannot_be_copied_comes_back_as_it_was() -> None:
    class Held(nn.Sequential):
        def __deepcopy__(self, memo: object) -> Any:
            raise RuntimeError("no copies")

    net = Held(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert last_linear(net, torch.randn(4, 8))[0] == "2"
    with untouched(net) as trial:
        trial(torch.randn(4, 8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


# --- in a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits() -> Splits:
    """90 examples of three classes, eight numbers each."""
    labels = np.arange(90) % 3
    inputs = (np.random.default_rng(0).normal(size=(90, 8)) + labels[:, None]).astype(np.float32)
    return split(ExampleSet.from_arrays(inputs, labels), validation=9, query=8)


def of(forward: Forward) -> Callable[..., nn.Module]:
    return lambda num_classes, input_shape: Net(forward)


def test_features_and_grand_are_those_of_the_head_that_runs_last(splits: Splits) -> None:
    run = comove.train(splits, of(FOUND["head first"]), {"epochs": 3})
    net = run.load_model().double()
    inputs, labels = splits.train.batch(np.arange(len(splits.train)))
    rows = torch.relu(net.get_submodule("body")(inputs.double())).detach()
    np.testing.assert_allclose(run.trace.features("train", run.trace.anchors[-1]), rows, rtol=1e-5, atol=1e-6)
    head = list(net.get_submodule("head").parameters())
    norms = [
        float(
            torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), head)]).norm()
        )
        for x, y in zip(inputs.double(), labels, strict=True)
    ]
    np.testing.assert_allclose(GraNd(epoch=3).scores(run), norms, rtol=1e-5)


@pytest.mark.parametrize("case", ["weight read directly", "a parameter after it"])
def test_a_run_without_such_a_layer_keeps_no_features_and_methods_that_need_them_say_so(
    case: str, splits: Splits
) -> None:
    forward = REFUSED[case][0]
    run = comove.train(splits, of(forward), {"epochs": 1})
    assert run.trace.anchors == ()
    with pytest.raises(InputError, match="none were kept"):
        GraNd(epoch=1).scores(run)
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Linear that is called once.*anchors=\(\)"):
        comove.train(splits, of(forward), {"epochs": 1}, recording=Recording(anchors=(0, -1)))


def test_a_head_at_several_positions_keeps_no_features(splits: Splits) -> None:
    run = comove.train(splits, of(FOUND["positions"]), {"epochs": 1})
    assert run.trace.anchors == ()
    with pytest.raises(InputError, match=r"one row an example.*\(2, 4, 3\)"):
        comove.train(splits, of(FOUND["positions"]), {"epochs": 1}, recording=Recording(anchors=(1,)))
