"""Per-example gradients equal one-by-one autograd in float64, for every layer kind, option and path."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comove.errors import InputError
from comove.gradients.per_example import PerExampleGradients, cross_entropy, margin
from comove.models import build_model

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Examples:
    """Inputs and labels in memory."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, positions: slice) -> Tensor:
        return self.x[positions]

    def batch(self, positions: slice) -> tuple[Tensor, Tensor]:
        return self.x[positions], self.labels[positions]


def one_by_one(model: nn.Module, x: Tensor, y: Tensor, scalar: Function = cross_entropy) -> dict[str, Tensor]:
    """The truth: a batch of one, forward and backward, example by example."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for i in range(len(x)):
        value = scalar(model(x[i : i + 1]), y[i : i + 1])[0]
        rows.append(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def assert_equal(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert list(found) == list(truth)
    for name in truth:
        torch.testing.assert_close(found[name], truth[name], rtol=1e-9, atol=1e-11, msg=partial("{}: {}".format, name))


def ready(model: nn.Module) -> nn.Module:
    """The model in float64 and evaluation mode, its batch norms with statistics and scales that matter."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.double().eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(size: int, classes: int = 3) -> Tensor:
    return torch.arange(size) % classes


def conv(*args: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(*args, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


class Pooled(nn.Module):
    """The mean over the middle dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Shared(nn.Module):
    """One layer called three times, and an output layer tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.out.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x).tanh()
        out: Tensor = self.out(x)
        return out


class InPlace(nn.Module):
    """A residual block as torchvision writes it: ReLU and addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.conv(x)))
        y = self.norm(y)
        y += x
        out: Tensor = self.head(self.relu(y).mean((2, 3)))
        return out


def text_model(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4, **options), nn.Linear(4, 5), nn.LayerNorm(5), Pooled(), nn.Linear(5, 3))


CLOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear-no-bias": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear-sequence": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Pooled(), nn.Linear(5, 3)), (6, 4)),
    "linear-two-middle": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(30, 3)), (2, 3, 4)),
    "conv": (conv(3, 4, 3), (3, 7, 7)),
    "conv-many-inputs": (conv(6, 4, 3, padding=1), (6, 7, 7)),
    "conv-stride-remainder": (conv(6, 4, 3, stride=2, bias=False), (6, 8, 9)),
    "conv-stride-padding": (conv(6, 4, (5, 3), stride=(2, 3), padding=(2, 1)), (6, 8, 9)),
    "conv-dilation": (conv(6, 4, 3, dilation=2, padding=2), (6, 8, 8)),
    "conv-small-dilation": (conv(2, 4, 3, dilation=2, padding=1, stride=2), (2, 9, 8)),
    "conv-groups": (conv(6, 4, 3, groups=2, stride=2), (6, 8, 8)),
    "conv-depthwise": (conv(4, 8, 3, groups=4, padding=1), (4, 6, 6)),
    "conv-same": (conv(5, 4, 4, padding="same"), (5, 6, 6)),
    "conv-valid": (conv(5, 4, 3, padding="valid"), (5, 6, 6)),
    "conv-circular": (conv(5, 4, 3, padding=1, padding_mode="circular"), (5, 6, 6)),
    "conv-reflect": (conv(5, 4, 3, padding=(1, 2), padding_mode="reflect"), (5, 6, 6)),
    "conv-1x1": (conv(40, 4, 1, stride=2), (40, 5, 5)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, stride=2), nn.Flatten(), nn.LazyLinear(3)), (3, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.Flatten(), nn.LazyLinear(3)), (2, 4, 4, 4)),
    "batch-norm-1d": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (4,)),
    "batch-norm-1d-long": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(20, 3)), (4, 5)),
    "batch-norm-2d": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)), (3, 4, 4)),
    "batch-norm-plain": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)),
        (4,),
    ),
    "layer-norm": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)), (4,)),
    "layer-norm-two": (lambda: nn.Sequential(nn.LayerNorm((2, 4)), nn.Flatten(), nn.Linear(24, 3)), (3, 2, 4)),
    "shared": (Shared, (4,)),
    "in-place": (InPlace, (2, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")  # torch, of its own forward pass
@pytest.mark.parametrize("case", CLOSED)
@pytest.mark.parametrize("channels_last", [False, True])
def test_per_sample_rules_equal_one_by_one_autograd(case: str, channels_last: bool) -> None:
    make, shape = CLOSED[case]
    if channels_last and len(shape) != 3:
        pytest.skip("no images")
    torch.manual_seed(0)
    x, y = normal(5, *shape), labels(5)
    model = make()
    model(x.float())  # lazy layers take their shapes
    model = ready(model)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    stream = PerExampleGradients(model)
    assert_equal(stream(x, y), one_by_one(model, x, y))
    assert stream.paths.way == "per-sample rules"
    assert "per-sample rules" in str(stream.paths)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("case", [case for case in CLOSED if case.startswith("conv")])
def test_convolutions_by_patches_as_on_a_gpu_equal_one_by_one_autograd(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def by_patches(layer: Any, x: Tensor) -> bool:
        asked.append(layer.groups == 1 and x.ndim == 4)
        return bool(asked[-1])

    monkeypatch.setattr("comove.gradients.per_sample_rules._by_patches", by_patches)
    make, shape = CLOSED[case]
    model, x = make(), normal(5, *shape)
    model(x.float())
    model = ready(model)
    assert_equal(PerExampleGradients(model)(x, labels(5)), one_by_one(model, x, labels(5)))
    assert asked


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}])
def test_embedding_equals_one_by_one_autograd(options: dict[str, Any]) -> None:
    model = ready(text_model(**options))
    tokens = torch.randint(0, 7, (5, 6), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 2
    stream = PerExampleGradients(model)
    assert_equal(stream(tokens, labels(5)), one_by_one(model, tokens, labels(5)))
    assert stream.paths.modules == ("0", "1", "2", "4")


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("resnet9", (3, 16, 16), {"width": 0.1}),
        ("cnn-small", (3, 8, 8), {}),
        ("mlp", (5,), {}),
    ],
)
def test_networks_equal_one_by_one_autograd(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    model = ready(build_model(name, num_classes=4, input_shape=shape, **options))
    x, y = normal(3, *shape), labels(3, 4)
    stream = PerExampleGradients(model, margin)
    assert_equal(stream(x, y), one_by_one(model, x, y, margin))
    assert stream.paths.way == "per-sample rules"


def test_torchvision_resnet18_as_it_is_with_relu_in_place() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=4)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    model = ready(model)
    x, y = normal(2, 3, 5, 5), labels(2)
    stream = PerExampleGradients(model)
    assert_equal(stream(x, y), one_by_one(model, x, y))
    assert stream.paths.way == "per-sample rules"


def test_a_transformer_takes_the_fallback_and_says_why() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    model = ready(nn.Sequential(nn.Embedding(7, 8), layer, Pooled(), nn.Linear(8, 3)))
    tokens = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(0))
    stream = PerExampleGradients(model)
    assert_equal(stream(tokens, labels(4)), one_by_one(model, tokens, labels(4)))
    assert "self_attn (MultiheadAttention)" in stream.paths.reason
    assert stream.paths.way == "torch.func"
    assert "torch.func for" in str(stream.paths)


def test_a_transformer_from_plain_layers_takes_per_sample_rules() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            weights = (q @ k.mT / 8**0.5).softmax(-1)
            return x + self.out(weights @ v)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = ready(nn.Sequential(nn.Embedding(7, 8), Attention(), Attention(), Pooled(), nn.Linear(8, 3)))
    tokens = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(0))
    stream = PerExampleGradients(model)
    assert_equal(stream(tokens, labels(4)), one_by_one(model, tokens, labels(4)))
    assert stream.paths.way == "per-sample rules"


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.layer(x) @ self.layer.weight).tanh())  # type: ignore[no-any-return]


class SequenceFirst(ReadsWeight):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).tanh().mean(0))  # type: ignore[no-any-return]


class ChangesInput(ReadsWeight):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = self.layer(y).tanh()
        y += 1
        return self.head(z + y)  # type: ignore[no-any-return]


class Scaled(ReadsWeight):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)) * self.scale  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        (ReadsWeight, (4,), "other gradients of layer.weight"),
        (SequenceFirst, (3, 4), r"\(3, 4, 4\), not \(B"),
        (SequenceFirst, (4, 4), "other gradients of"),  # as long as the batch that is checked
        (ChangesInput, (4,), "changed in place"),
        (Scaled, (4,), "the model .Scaled."),
    ],
)
def test_what_hooks_cannot_see_is_noticed(kind: type[nn.Module], shape: tuple[int, ...], reason: str) -> None:
    torch.manual_seed(0)
    model = ready(kind())
    if kind is ChangesInput:  # in-place changes of what autograd needs are refused by torch itself
        model.layer.weight.requires_grad_(False)  # type: ignore[union-attr]
    x, y = normal(4, *shape), labels(4)
    stream = PerExampleGradients(model)
    assert_equal(stream(x, y), one_by_one(model, x, y))
    assert stream.paths.way == "torch.func"
    assert re.search(reason, stream.paths.reason), stream.paths.reason


@pytest.fixture
def model() -> nn.Module:
    return ready(build_model("cnn-small", num_classes=3, input_shape=(3, 8, 8), width=0.3))


@pytest.fixture
def examples() -> Examples:
    return Examples(normal(11, 3, 8, 8), labels(11))


@pytest.mark.parametrize("batch", [1, 3, 11, 50])
def test_chunk_size_changes_nothing(model: nn.Module, examples: Examples, batch: int) -> None:
    stream = PerExampleGradients(model, batch=batch)
    parts = [part for part, _ in stream.stream(examples)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(11))
    assert max(part.stop - part.start for part in parts) == min(batch, 11)
    assert_equal(stream.collect(examples), one_by_one(model, examples.x, examples.labels))


def test_the_memory_limit_sets_the_chunk(model: nn.Module, examples: Examples) -> None:
    one = PerExampleGradients(model, memory=1)
    few = PerExampleGradients(model, memory=4 * 8 * one.size)
    sizes = [[part.stop - part.start for part, _ in stream.stream(examples)] for stream in (one, few)]
    assert sizes[0] == [1] * 11
    assert 1 <= max(sizes[1]) <= 4


def test_a_subset_of_parameters(model: nn.Module, examples: Examples) -> None:
    truth = one_by_one(model, examples.x, examples.labels)
    names = [name for name in truth if name.endswith("bias")][::-1]
    found = PerExampleGradients(model, parameters=names)(examples.x, examples.labels)
    assert_equal(found, {name: truth[name] for name in truth if name in names})


@pytest.mark.parametrize(
    "ending", ["conv.weight", "conv.bias", "norm.weight", "norm.bias", ("conv.weight", "norm.weight"), ""]
)
def test_a_subset_of_parameters_of_layers_that_are_folded(ending: Any) -> None:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {"conv": nn.Conv2d(2, 3, 3, padding=1), "norm": nn.BatchNorm2d(3), "tanh": nn.Tanh()}
    parts |= {"other": nn.Conv2d(3, 4, 3, stride=2), "last": nn.BatchNorm2d(4), "flat": nn.Flatten()}
    model = ready(nn.Sequential(OrderedDict(parts, head=nn.LazyLinear(3))))
    data = Examples(normal(7, 2, 6, 6), labels(7))
    truth = one_by_one(model, data.x, data.labels)
    stream = PerExampleGradients(model, parameters=[name for name in truth if name.endswith(ending)], batch=3)
    found = stream.collect(data)
    assert_equal(found, {name: truth[name] for name in stream.parameters})
    flat = torch.cat([matrix.flatten(1) for matrix in found.values()], 1)
    norms = torch.zeros(7, dtype=torch.float64)
    for noted in (None, norms):
        products = stream.inner_products(data, {n: m[:4] for n, m in found.items()}, squared_norms=noted)
        torch.testing.assert_close(products, flat @ flat[:4].T, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(norms, flat.square().sum(1))
    assert stream.paths.way == "per-sample rules"


@pytest.mark.parametrize("channels_last", [False, True])
def test_inner_products_of_resnet9_in_single_precision(channels_last: bool) -> None:
    model = ready(build_model("resnet9", num_classes=4, input_shape=(3, 16, 16), width=0.25))
    data = Examples(normal(9, 3, 16, 16), labels(9, 4))
    truth = torch.cat([m.flatten(1) for m in one_by_one(model, data.x, data.labels).values()], 1)
    model = model.float().to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    single = Examples(data.x.float(), data.labels)
    stream = PerExampleGradients(model, batch=4)
    whole = stream.collect(single)
    for found in (
        stream.inner_products(single, whole),
        torch.cat([m.flatten(1) for m in whole.values()], 1) @ truth.T.float(),
    ):
        torch.testing.assert_close(
            found.double(), truth @ truth.T, rtol=1e-3, atol=1e-4 * float(truth.square().sum(1).max())
        )


def test_what_detection_of_folding_misses_is_computed_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose output goes elsewhere too, handed on as foldable: the check of the first examples finds it out."""
    from comove.gradients.batch_norm_folding import Pair

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return self.head(self.norm(y).tanh() + y)  # type: ignore[no-any-return]

    model = ready(Both())
    pair = Pair(model.layer, model.norm)
    monkeypatch.setattr("comove.gradients.per_example.foldable", lambda model, inputs: (pair,))
    stream, x, y = PerExampleGradients(model), normal(5, 4), labels(5)
    assert_equal(stream(x, y), one_by_one(model, x, y))
    assert stream.paths.way == "per-sample rules"


@pytest.mark.parametrize("path", ["closed", "fallback"])
def test_frozen_parameters_are_left_out_unless_named(path: str) -> None:
    torch.manual_seed(0)
    model = ready(
        nn.Sequential(
            nn.Linear(4, 4), nn.ReLU(inplace=True), nn.PReLU() if path == "fallback" else nn.Tanh(), nn.Linear(4, 3)
        )
    )
    x, y = normal(5, 4), labels(5)
    truth = one_by_one(model, x, y)
    model.requires_grad_(False)
    assert_equal(PerExampleGradients(model, parameters=list(truth))(x, y), truth)
    model.get_submodule("0").requires_grad_(True)
    assert_equal(PerExampleGradients(model)(x, y), {name: truth[name] for name in ("0.weight", "0.bias")})


def brier(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.softmax(1) - torch.nn.functional.one_hot(targets, 3)).square().sum(1)


@pytest.mark.parametrize(("scalar", "function"), [("loss", cross_entropy), ("margin", margin), (brier, brier)])
def test_scalars(model: nn.Module, examples: Examples, scalar: Any, function: Function) -> None:
    found = PerExampleGradients(model, scalar)(examples.x, examples.labels)
    assert_equal(found, one_by_one(model, examples.x, examples.labels, function))


def test_margin_is_the_logit_of_the_probability() -> None:
    logits, y = normal(6, 3), labels(6)
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(margin(logits, y), (p / (1 - p)).log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("queries", [2, 20])
def test_inner_products_and_norms_equal_flat_ones(dtype: torch.dtype, queries: int) -> None:
    torch.manual_seed(0)
    net = ready(nn.Sequential(nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 3))).to(dtype)
    data = Examples(normal(60, 40).to(dtype), labels(60))
    stream = PerExampleGradients(net, batch=17)
    whole = stream.collect(data)
    flat = torch.cat([matrix.flatten(1) for matrix in whole.values()], 1)
    norms = torch.zeros(60, dtype=dtype)
    products = stream.inner_products(data, {n: m[:queries] for n, m in whole.items()}, squared_norms=norms)
    tight: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(products, flat @ flat[:queries].T, **tight)
    torch.testing.assert_close(norms, flat.square().sum(1), **tight)
    torch.testing.assert_close(stream.squared_norms(data), norms)


def test_inner_products_are_the_same_without_prepacked_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = ready(nn.Sequential(nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 3)))
    stream, data = PerExampleGradients(net, batch=17), Examples(normal(60, 40), labels(60))
    directions = {name: matrix[:20] for name, matrix in stream.collect(data).items()}
    packed = stream.inner_products(data, directions)
    monkeypatch.setattr("comove.gradients.inner_products._has_packed", lambda matrix: False)
    torch.testing.assert_close(stream.inner_products(data, directions), packed, rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was(model: nn.Module, examples: Examples) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    PerExampleGradients(model).collect(examples)
    with pytest.raises(InputError, match="Labels"):
        PerExampleGradients(model)(examples.x, examples.labels + 3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(4, 3), nn.Dropout()], r"1 \(Dropout\) is in training mode.*model\.eval"),
        ([nn.BatchNorm1d(4), nn.Linear(4, 3)], r"0 \(BatchNorm1d\) is in training mode"),
    ],
)
def test_training_mode_is_refused(layers: list[nn.Module], message: str) -> None:
    model = nn.Sequential(*layers).eval()
    next(module for module in model if not isinstance(module, nn.Linear)).train()
    with pytest.raises(InputError, match=message):
        PerExampleGradients(model)


def test_errors_say_what_must_hold(model: nn.Module, examples: Examples) -> None:
    with pytest.raises(InputError, match="running statistics"):
        PerExampleGradients(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval())
    with pytest.raises(InputError, match=r"no parameter 'weigth'.*Did you mean 'weight'"):
        PerExampleGradients(nn.Linear(3, 2).eval(), parameters=["weigth"])
    with pytest.raises(InputError, match="no parameters"):
        PerExampleGradients(nn.Tanh().eval())
    with pytest.raises(InputError, match="'loss', 'measure'"):
        PerExampleGradients(model, "hinge")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        PerExampleGradients(model, memory=0)
    with pytest.raises(InputError, match=r"one value per example"):
        PerExampleGradients(model, lambda z, y: z)(examples.x, examples.labels)
    with pytest.raises(InputError, match=r"outputs \(B, C\)"):
        PerExampleGradients(nn.Linear(4, 3).eval())(torch.ones(2, 5, 4), labels(2))
    with pytest.raises(InputError, match="directions must hold"):
        PerExampleGradients(model).inner_products(examples, {})
