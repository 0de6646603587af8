"""Hessian-vector products against dense Hessians and autograd's own second derivatives, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from comove.errors import InputError, NonFiniteError
from comove.gradients.double_backward import TwiceDifferentiable
from comove.gradients.hessian import Hessian, flatten, unflatten
from comove.gradients.per_example import PerExampleGradients
from comove.models import build_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operations shared by two threads take longer, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Fixed:
    """A batch source in memory."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, positions: slice) -> Tensor:
        return self.x[positions]

    def batch(self, positions: slice) -> tuple[Tensor, Tensor]:
        return self.x[positions], self.labels[positions]


def shaken(model: nn.Module) -> nn.Module:
    """In evaluation mode and float64, with running statistics and affine parameters that are not the defaults."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.double().eval()


def conv_bn(inplace: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.ReLU(inplace),
        nn.BatchNorm2d(4),  # follows no convolution
        nn.Conv2d(4, 3, 2, stride=2, padding_mode="circular", padding=1),
        nn.BatchNorm2d(3, affine=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def batch(count: int = 5, shape: tuple[int, ...] = (2, 6, 6), classes: int = 3) -> Fixed:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return Fixed(x, torch.randint(classes, (count,), generator=generator))


def dense(model: nn.Module, data: Fixed) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        outputs = functional_call(model, unflatten(flat, parameters), (data.x,))
        return F.cross_entropy(outputs, data.labels)

    # not torch.func.hessian: its forward mode loads torch.jit, which warns
    found: Tensor = jacrev(grad(loss))(flatten(list(parameters.values())))
    return found


def by_autograd(model: nn.Module, data: Fixed, vector: Tensor) -> Tensor:
    parameters = list(model.parameters())
    grads = torch.autograd.grad(F.cross_entropy(model(data.x), data.labels), parameters, create_graph=True)
    return flatten(torch.autograd.grad(flatten(grads) @ vector, parameters))


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def ready(model: nn.Module, data: Fixed) -> nn.Module:
    model(data.x.float())  # lazy layers take their shapes
    return shaken(model)


@pytest.mark.parametrize("memory", [1, 40_000, 1 << 30])
def test_products_are_those_of_the_dense_hessian(memory: int) -> None:
    data = batch()
    model = ready(conv_bn(), data)
    operator = Hessian(PerExampleGradients(model), data, memory=memory)
    vectors = torch.randn(4, operator.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = vectors @ dense(model, data)
    assert relative(operator(vectors), true) < 1e-12
    assert float(true.norm()) > 0.1


def test_the_chunks_follow_the_memory_limit() -> None:
    data = batch(7)
    gradients = PerExampleGradients(ready(conv_bn(), data))
    small, large = Hessian(gradients, data, memory=1), Hessian(gradients, data)
    assert (len(small._chunks), small._kept) == (7, None)
    assert len(large._chunks) == 1
    assert large._kept is not None


def test_in_place_relu_gives_the_same_products() -> None:
    data = batch()
    plain, in_place = (ready(conv_bn(inplace), data) for inplace in (False, True))
    vector = torch.randn(Hessian(PerExampleGradients(plain), data).size, dtype=torch.float64)
    found = [Hessian(PerExampleGradients(model), data)(vector) for model in (plain, in_place)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def torchvision_shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    net: nn.Module = ShuffleNetV2([1, 1, 1], [4, 8, 16, 32, 16], num_classes=3)  # its ReLUs work in place
    return net


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet9": (lambda: build_model("resnet9", num_classes=3, input_shape=(3, 16, 16), width=0.1), (3, 16, 16)),
    "mlp": (lambda: build_model("mlp", num_classes=3, input_shape=(9,)), (9,)),
    "torchvision shufflenet": (torchvision_shufflenet, (3, 24, 24)),
    "one-dimensional": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, dilation=2), nn.BatchNorm1d(3), nn.GELU(), nn.Flatten(), nn.Linear(9, 3)
        ),
        (2, 7),
    ),
    "three-dimensional": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
        (1, 3, 3, 3),
    ),
    "padding by name": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3)),
        (1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_autograd(name: str) -> None:
    build, shape = MODELS[name]
    data = batch(6, shape)
    model = shaken(build())
    operator = Hessian(PerExampleGradients(model), data)
    vectors = torch.randn(3, operator.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = torch.stack([by_autograd(model, data, vector) for vector in vectors])
    assert relative(operator(vectors), true) < 1e-11
    assert relative(operator(vectors[1]), true[1]) < 1e-11


class BranchesBeforeBatchNorm(nn.Module):
    """The convolution's output is used a second time, and changed in place before batch norm in another branch."""

    def __init__(self, change: bool) -> None:
        super().__init__()
        self.change, self.conv, self.norm = change, nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = torch.sigmoid(y)
        if self.change:
            y.mul_(2)
        logits: Tensor = (self.norm(y) * z).mean((2, 3))
        return logits


@pytest.mark.parametrize("change", [False, True])
def test_folding_batch_norm_sees_what_happens_to_the_convolution(change: bool) -> None:
    data = batch()
    model = shaken(BranchesBeforeBatchNorm(change))
    operator = Hessian(PerExampleGradients(model), data)
    vector = torch.randn(operator.size, dtype=torch.float64)
    assert relative(operator(vector), by_autograd(model, data, vector)) < 1e-12


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_inside_the_mode_are_those_outside(layout: torch.memory_format) -> None:
    data = batch()
    model = ready(conv_bn(), data)
    x = data.x.contiguous(memory_format=layout)
    with TwiceDifferentiable():
        inside = model(x)
    torch.testing.assert_close(inside, model(x), rtol=1e-12, atol=1e-12)


def test_float32_is_near_float64() -> None:
    data = batch(6, (3, 16, 16))
    model = shaken(build_model("resnet9", num_classes=3, input_shape=(3, 16, 16), width=0.1))
    exact = Hessian(PerExampleGradients(model), data)
    vector = torch.randn(exact.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = exact(vector)
    single = Hessian(PerExampleGradients(model.float()), Fixed(data.x.float(), data.labels))
    assert relative(single(vector.float()).double(), true) < 1e-4


@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 2), (0, 1), (2, 4), (4, 5)])
def test_chosen_parameters_give_their_block_of_the_hessian(first: int, last: int) -> None:
    data = batch()
    model = ready(conv_bn(), data)
    names = [name for name, _ in model.named_parameters()]
    begin, end = (sum(p.numel() for p in list(model.parameters())[:place]) for place in (first, last))
    operator = Hessian(PerExampleGradients(model, parameters=names[first:last]), data)
    found = operator(torch.eye(end - begin, dtype=torch.float64))
    torch.testing.assert_close(found, dense(model, data)[begin:end, begin:end], rtol=1e-10, atol=1e-12)


def test_a_scalar_linear_in_the_parameters_has_no_curvature() -> None:
    data = batch(4, (3,))
    gradients = PerExampleGradients(nn.Linear(3, 3).double().eval(), lambda outputs, labels: outputs.sum(1))
    operator = Hessian(gradients, data)
    assert (operator(torch.ones(2, operator.size, dtype=torch.float64)) == 0).all()


def test_parameters_are_left_without_grad_and_threads_as_they_were() -> None:
    data = batch(4, (3,))
    model = nn.Linear(3, 3).double().eval()
    threads = torch.get_num_threads()
    Hessian(PerExampleGradients(model), data)(torch.ones(12, dtype=torch.float64))
    assert all(p.grad is None for p in model.parameters())
    assert torch.get_num_threads() == threads


def test_training_mode_is_refused() -> None:
    data = batch()
    model = ready(conv_bn(), data)
    gradients = PerExampleGradients(model)
    model.train()
    with pytest.raises(InputError, match="evaluation mode"):
        Hessian(gradients, data)


def test_a_limit_below_one_and_non_finite_products_are_refused() -> None:
    data: Any = batch(4, (3,))
    model = nn.Linear(3, 3).double().eval()
    with pytest.raises(InputError, match="at least 1"):
        Hessian(PerExampleGradients(model), data, memory=0)
    data.x[0] = torch.inf
    with pytest.raises(NonFiniteError, match="checkpoint"):
        Hessian(PerExampleGradients(model), data)(torch.ones(12, dtype=torch.float64))


# --- what layers meet ---------------------------------------------------------------------------------------------


class UsesReLUAgain(nn.Module):
    """ReLU's output goes into max-pooling and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        logits: Tensor = self.head(F.adaptive_max_pool2d(y, 1).flatten(1) + F.adaptive_avg_pool2d(y, 1).flatten(1))
        return logits


class InPlace(nn.Module):
    """A residual block as torchvision writes it: ReLU and the sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x), inplace=True)
        out = self.norm(self.two(x))
        out += x
        logits: Tensor = self.head(torch.flatten(self.pool(F.relu(out, inplace=True)), 1))
        return logits


def resnet9() -> nn.Module:
    return build_model("resnet9", num_classes=3, input_shape=(3, 12, 12), width=0.1)


def cnn_small() -> nn.Module:
    return build_model("cnn-small", num_classes=3, input_shape=(3, 12, 12), width=0.3)


@pytest.mark.parametrize(
    ("build", "shape", "number"),
    [(resnet9, (3, 12, 12), 8), (cnn_small, (3, 12, 12), 3), (InPlace, (3, 8, 8), 1)],
)
@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_products_of_folded_and_residual_networks_are_those_of_autograd(
    build: Callable[[], nn.Module], shape: tuple[int, ...], number: int, memory: int
) -> None:
    data, model = batch(3, shape), shaken(build())
    gradients = PerExampleGradients(model)
    operator = Hessian(gradients, data, memory=memory)
    assert len(gradients.folded) == number
    vector = torch.randn(operator.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = by_autograd(model, data, vector)
    assert relative(operator(vector), true) < 1e-11
    assert relative(operator(vector), true) < 1e-11  # nothing is left over from the product before


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        cubed: Tensor = Cube.apply(self.body(x))
        logits: Tensor = self.head(cubed)
        return logits


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return CubeBackward.apply(g, x)


class CubeBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return 3 * g * x**2

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        g, x = ctx.saved_tensors
        assert torch.isfinite(h.sum()).item()  # reads a value, which several vectors at once do not have
        return 3 * h * x**2, 6 * h * g * x


@pytest.mark.parametrize(
    ("build", "shape", "path"),
    [
        (resnet9, (3, 12, 12), "one vector at a time (the model has convolutions)"),
        (Cubed, (4,), "one vector at a time (an operation takes no more)"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)), (4,), "several vectors"),
    ],
)
@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_several_vectors_at_once_or_one_after_another_are_the_same(
    build: Callable[[], nn.Module], shape: tuple[int, ...], path: str, memory: int
) -> None:
    data, model = batch(3, shape), shaken(build())
    operator = Hessian(PerExampleGradients(model), data, memory=memory)
    vectors = torch.randn(3, operator.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = torch.stack([by_autograd(model, data, vector) for vector in vectors])
    assert relative(operator(vectors), true) < 1e-11
    assert path in operator.path
    assert operator(vectors[:0]).shape == (0, operator.size)


@pytest.mark.parametrize("build", [lambda: BranchesBeforeBatchNorm(False), UsesReLUAgain])
def test_values_used_twice_are_differentiated_twice(build: Callable[[], nn.Module]) -> None:
    data = batch()
    model = ready(build(), data)
    operator = Hessian(PerExampleGradients(model), data)
    vector = torch.randn(operator.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert relative(operator(vector), by_autograd(model, data, vector)) < 1e-11
