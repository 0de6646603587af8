"""A folded network computes what it computed before; its gradients and Hessian are exact in the old parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from comove.gradients.batch_norm_folding import Pair, foldable, folded
from comove.gradients.double_backward import TwiceDifferentiable
from comove.models import build_model


def folds(model: nn.Module, x: Tensor) -> tuple[Pair, ...]:
    return foldable(model, lambda: model(x))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ready(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with statistics and scales that matter, one scale of 0 among them."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
                module.weight.data[0] = 0
    return model.double().eval()


def image_net(conv: nn.Module, norm: nn.Module) -> nn.Module:
    return nn.Sequential(conv, norm, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def network(make: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    model(torch.cat([x, x]).float())  # lazy layers take their shapes
    return ready(model)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "linear-no-bias": (
        lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)),
        (5,),
    ),
    "conv": (lambda: image_net(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)), (3, 7, 6)),
    "conv-no-bias": (lambda: image_net(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (3, 7, 6)),
    "conv-groups": (lambda: image_net(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 6, 6)),
    "conv-circular": (
        lambda: image_net(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)),
        (3, 6, 6),
    ),
    "conv-plain-norm": (lambda: image_net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (3, 6, 6)),
    "conv1d": (lambda: image_net(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 8)),
    "conv3d": (lambda: image_net(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 3, 4, 4)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, shape = CASES[request.param]
    x = normal(6, *shape)
    return network(make, x), x


def test_the_output_is_the_same_and_the_model_left_as_it_was(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    pairs = foldable(model, lambda: model(x[:1]))
    assert [(type(pair.layer), type(pair.norm)) for pair in pairs] == [(type(model[0]), type(model[1]))]  # type: ignore[index]
    truth = model(x)
    with folded(pairs):
        torch.testing.assert_close(model(x), truth)
        plain = functional_call(model, {"0.weight": model[0].weight * 2}, (x,))  # type: ignore[index]
    torch.testing.assert_close(plain, functional_call(model, {"0.weight": model[0].weight * 2}, (x,)))  # type: ignore[index]
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError), folded(pairs):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_gradients_of_the_parameters_follow_from_those_of_the_folded_ones(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    (pair,) = foldable(model, lambda: model(x[:1]))
    y = torch.arange(6) % 3
    chosen = list(pair.layer.parameters()) + list(pair.norm.parameters())
    truth = torch.autograd.grad(F.cross_entropy(model(x), y), chosen)
    with folded([pair]):
        for found, true in zip(torch.autograd.grad(F.cross_entropy(model(x), y), chosen), truth, strict=True):
            torch.testing.assert_close(found, true)
    weight, bias = (part.detach().requires_grad_() for part in pair.weight_and_bias())
    replaced = {"0.weight": weight, "0.bias": bias}
    if pair.layer.bias is None:
        pair.layer.register_parameter("bias", nn.Parameter(torch.zeros_like(bias)))
    bare = nn.Sequential(pair.layer, *list(model.children())[2:])
    dw, db = torch.autograd.grad(F.cross_entropy(functional_call(bare, replaced, (x,)), y), [weight, bias])
    if len(truth) % 2:  # it was made without a bias
        pair.layer.bias = None
    maps = [pair.layer_weight(dw)]
    maps += [pair.layer_bias(db)] if pair.layer.bias is not None else []
    maps += [pair.norm_weight(dw, db), pair.norm_bias(db)] if pair.norm.affine else []
    assert len(maps) == len(truth)
    for found, true in zip(maps, truth, strict=True):
        torch.testing.assert_close(found, true)


def test_maps_take_leading_dimensions(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    (pair,) = foldable(model, lambda: model(x[:1]))
    dw, db = normal(2, 5, *pair.layer.weight.shape), normal(2, 5, len(pair.layer.weight), seed=1)
    for function, arguments in (
        (pair.layer_weight, (dw,)),
        (pair.layer_bias, (db,)),
        (pair.norm_weight, (dw, db)),
        (pair.norm_bias, (db,)),
    ):
        each = [[function(*(part[i, j] for part in arguments)) for j in range(5)] for i in range(2)]
        torch.testing.assert_close(function(*arguments), torch.stack([torch.stack(row) for row in each]))


@pytest.mark.parametrize("fast", [False, True])
def test_hessian_products_through_the_folded_network_are_exact(fast: bool) -> None:
    model = ready(build_model("resnet9", num_classes=4, input_shape=(3, 12, 12), width=0.07))
    x, y, parameters = normal(3, 3, 12, 12), torch.arange(3), list(model.parameters())
    vectors = [normal(*parameter.shape, seed=i) for i, parameter in enumerate(parameters)]

    def product() -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
        return torch.autograd.grad(gradients, parameters, vectors)

    truth = product()
    with folded(foldable(model, lambda: model(x[:1]))):
        if fast:
            with TwiceDifferentiable():
                found = product()
        else:
            found = product()
    for one, true in zip(found, truth, strict=True):
        torch.testing.assert_close(one, true, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "shape", "number"), [("resnet9", (3, 12, 12), 8), ("cnn-small", (3, 8, 8), 3), ("resnet18", (3, 8, 8), 20)]
)
def test_networks_are_folded_throughout(name: str, shape: tuple[int, ...], number: int) -> None:
    model = ready(build_model(name, num_classes=4, input_shape=shape))
    x = normal(1, *shape)
    pairs = foldable(model, lambda: model(x))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {id(pair.norm) for pair in pairs} == {id(norm) for norm in norms}
    assert len({id(pair.layer) for pair in pairs}) == len(pairs) == number
    truth = model(x)
    with folded(pairs):
        torch.testing.assert_close(model(x), truth)


class Net(nn.Module):
    """A convolution, batch norm and head; what happens between them is the test's."""

    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.between(self, x).mean((2, 3)))
        return out


def also_used(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    out: Tensor = net.norm(y).relu() + y
    return out


def used_before(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    pooled = y.mean((2, 3), keepdim=True)
    out: Tensor = net.norm(y) * pooled
    return out


def changed(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.norm(net.conv(x).relu_())
    return out


def through_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    view, out = y[:, :2], net.norm(y)
    joined: Tensor = torch.cat([view, out[:, 2:]], 1)
    return joined


def transposed(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    mirrored = y.mT
    out: Tensor = net.norm(y) + mirrored
    return out


def layer_twice(net: Any, x: Tensor) -> Tensor:
    net.conv(x)
    out: Tensor = net.norm(net.conv(x))
    return out


def norm_twice(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.norm(net.norm(net.conv(x)))
    return out


def both_twice(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    out: Tensor = net.norm(y) + net.norm(y)
    return out


def not_normed(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.conv(x)
    return out


@pytest.mark.parametrize(
    "between",
    [also_used, used_before, changed, through_a_view, transposed, layer_twice, norm_twice, both_twice, not_normed],
    ids=lambda function: function.__name__,
)
def test_an_output_that_goes_elsewhere_is_not_folded(between: Callable[..., Tensor]) -> None:
    assert folds(ready(Net(between)), normal(2, 2, 5, 5)) == ()


def test_an_output_of_the_model_is_not_folded() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return self.norm(y), y

    assert folds(ready(Both()), normal(2, 2, 5, 5)) == ()


def plainly(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.norm(net.conv(x)).relu_()
    return out


def looked_at(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    size, out = y.size(0) * y.shape[1], net.norm(y)
    scaled: Tensor = out * size
    return scaled


def test_only_plain_layers_in_evaluation_mode_are_folded() -> None:
    x = normal(2, 2, 5, 5)
    assert len(folds(ready(Net(plainly)), x)) == 1
    assert len(folds(ready(Net(looked_at)), x)) == 1
    net = ready(Net(plainly))
    net.conv.register_forward_hook(lambda module, args, output: output * 2)  # type: ignore[union-attr]
    assert foldable(net, lambda: net(x)) == ()
    net = ready(Net(plainly))
    net.norm.register_full_backward_hook(lambda module, grad_input, grad_output: None)  # type: ignore[union-attr]
    assert foldable(net, lambda: net(x)) == ()
    net = ready(Net(plainly))
    net.norm.train()  # type: ignore[union-attr]
    assert foldable(net, lambda: net(x)) == ()
    net = Net(plainly)
    net.norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert folds(net.double().eval(), x) == ()

    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    net = Net(plainly)
    net.conv = Doubled(2, 4, 3)
    assert folds(ready(net), x) == ()


def test_norms_over_positions_are_not_folded() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5))  # (B, 5, 6): the norm's channels are positions
    assert folds(ready(model), normal(2, 5, 4)) == ()


def test_a_pair_folds_scale_zero_without_dividing() -> None:
    model = ready(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    (pair,) = foldable(model, lambda: model(normal(1, 5)))
    assert isinstance(pair, Pair)
    weight, bias = pair.weight_and_bias()
    assert (weight[0] == 0).all()
    assert bias[0] == pair.norm.bias[0]
