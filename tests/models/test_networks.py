"""What the networks must be: their shapes, their bits for a seed, and the refusal to run what a file names."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from comove.errors import ComoveError, CorruptFileError, InputError, InputTypeError
from comove.models import TEXT_MODELS, ModelSpec, build_model, model_names, parameter_count, penultimate

IMAGE_MODELS = tuple(name for name in model_names() if name not in TEXT_MODELS)
TORCHVISION = ("resnet18", "vgg19_bn", "densenet121")
SMALLEST = {"cnn-small": 4, "resnet9": 11, "resnet18": 1, "resnet34": 1, "resnet50": 1, "vgg19_bn": 32} | {
    "densenet121": 8
}


def linear_factory(*, num_classes: int, input_shape: tuple[int, ...], bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes, bias=bias))


@cache
def full(name: str) -> nn.Module:
    """Return ``name`` for CIFAR-10, in evaluation mode; built once, since tests only read it."""
    return build_model(name, num_classes=10, input_shape=(3, 32, 32)).eval()


def small(name: str, seed: int = 0, side: int = 16) -> nn.Module:
    """Return ``name``, narrow where it has a width, for RGB images with this side."""
    options: dict[str, Any] = {"width": 0.125} if name in ("cnn-small", "resnet9") else {}
    return build_model(name, num_classes=10, input_shape=(3, side, side), seed=seed, **options)


def images(count: int = 4, side: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(5))


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)
    return dict(zip(names, slopes, strict=True))


def same_bits(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def output_size(model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Return the (H, W) that ``layer`` puts out when ``model`` sees ``x``."""
    seen: list[tuple[int, ...]] = []
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[2:])))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return seen[0]


# Each model -----------------------------------------------------------------------------------------------------------


def test_resnet9_has_the_parameter_count_of_traks_network() -> None:
    assert parameter_count(full("resnet9")) == 2_274_880


def test_torchvision_parameter_counts_are_those_of_the_cifar_networks() -> None:
    assert parameter_count(full("resnet18")) == 11_173_962  # the usual CIFAR ResNet-18
    assert parameter_count(full("vgg19_bn")) == 20_040_522  # the usual CIFAR VGG-19 with one linear layer


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_logits_are_finite_and_one_per_class(name: str) -> None:
    with torch.no_grad():
        logits = full(name)(images(2, 32))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", ["mlp", "cnn-small", "resnet9"])
@pytest.mark.parametrize("shape", [(1, 11, 13), (3, 32, 32)])
def test_every_parameter_of_a_small_model_gets_a_gradient(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, num_classes=5, input_shape=shape)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    for label, slope in gradient(model, x, torch.arange(6) % 5).items():
        assert slope.abs().sum() > 0, label


def test_cnn_small_takes_the_eight_by_eight_digits() -> None:
    model = build_model("cnn-small", num_classes=10, input_shape=(1, 8, 8))
    assert model(images(3, 8, channels=1)).shape == (3, 10)


def test_mlp_takes_vectors_and_flattens_anything_else() -> None:
    vectors = build_model("mlp", num_classes=3, input_shape=(12,), hidden=(5, 6))
    pictures = build_model("mlp", num_classes=3, input_shape=(3, 2, 2), hidden=[5, 6])
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert [tuple(p.shape) for p in vectors.parameters() if p.ndim == 2] == [(5, 12), (6, 5), (3, 6)]
    assert torch.equal(vectors(x.flatten(1)), pictures(x))


def test_mlp_without_hidden_layers_is_a_linear_model() -> None:
    model = build_model("mlp", num_classes=3, input_shape=(4,), hidden=())
    weight, bias = model.parameters()
    x = torch.eye(4)
    torch.testing.assert_close(model(x), x @ weight.T + bias)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_no_relu_works_in_place(name: str) -> None:
    relus = [module for module in full(name).modules() if isinstance(module, nn.ReLU)]
    assert relus
    assert not any(relu.inplace for relu in relus)


def test_densenet_leaves_the_output_of_its_last_norm_as_it_was() -> None:
    net = build_model("densenet121", num_classes=10, input_shape=(3, 8, 8)).eval()
    kept: list[Tensor] = []
    net.get_submodule("features.norm5").register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.no_grad():
        net(images(1, 8))
    assert (kept[0] < 0).any()


def test_width_scales_the_channels_and_stops_at_four() -> None:
    def channels(name: str, width: float) -> list[int]:
        net = build_model(name, num_classes=10, input_shape=(3, 32, 32), width=width)
        return [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]

    assert channels("resnet9", 1.0) == [64, 128, 128, 128, 256, 256, 256, 128]
    assert channels("resnet9", 0.125) == [8, 16, 16, 16, 32, 32, 32, 16]
    assert channels("resnet9", 0.001) == [4] * 8
    assert channels("cnn-small", 2) == [32, 64, 128]


# torch.func -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn-small", "resnet9", "resnet18"])
def test_vmap_over_models_gives_each_models_own_gradient(name: str) -> None:
    models = [small(name, seed) for seed in range(2)]
    parameters, buffers = stack_module_state(models)
    x, y = images(), torch.arange(4)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(models[0], (parameters, buffers), (x,)), y)

    together = vmap(grad(loss))(parameters, buffers)
    for key, alone in gradient(models[1], x, y).items():
        torch.testing.assert_close(together[key][1], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "cnn-small", "resnet9"])
def test_vmap_over_examples_gives_each_examples_own_gradient(name: str) -> None:
    model = small(name).eval()
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    x, y = images(), torch.arange(4)

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, (parameters, buffers), (x[None],)), y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for key, alone in gradient(model, x[2:3], y[2:3]).items():
        torch.testing.assert_close(each[key][2], alone, rtol=1e-3, atol=1e-4)


# Seeds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn-small", "resnet9", "resnet18", "densenet121"])
def test_same_seed_same_bits_and_another_seed_other_bits(name: str) -> None:
    first = small(name, seed=3)
    torch.rand(7)  # the caller's random state is none of the model's business
    assert same_bits(first, small(name, seed=3))
    assert not same_bits(first, small(name, seed=4))


def test_the_global_random_state_is_untouched_also_when_building_fails() -> None:
    def broken(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
        torch.rand(3)
        raise RuntimeError("no")

    before = torch.random.get_rng_state()
    small("resnet9", seed=9)
    small("resnet18", seed=9)
    with pytest.raises(RuntimeError, match="no"):
        build_model(broken, num_classes=2, input_shape=(2,))
    assert torch.equal(before, torch.random.get_rng_state())


def test_random_state_of_a_gpu_is_not_reseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("reseeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    monkeypatch.setattr(torch, "manual_seed", refuse)
    build_model("mlp", num_classes=2, input_shape=(2,), seed=1)


# Stems ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "cifar", "imagenet"),
    [
        ("resnet18", "layer1", (32, 32), (8, 8)),
        ("resnet50", "layer4", (4, 4), (1, 1)),
        ("densenet121", "features.denseblock1", (32, 32), (8, 8)),
    ],
)
def test_cifar_stem_keeps_the_resolution(
    name: str, layer: str, cifar: tuple[int, int], imagenet: tuple[int, int]
) -> None:
    for stem, size in (("auto", cifar), ("cifar", cifar), ("imagenet", imagenet)):
        net = build_model(name, num_classes=10, input_shape=(3, 32, 32), stem=stem)
        assert output_size(net, net.get_submodule(layer), images(1, 32)) == size, stem


def test_auto_stem_changes_above_a_side_of_64() -> None:
    for side, kernel in ((64, (3, 3)), (65, (7, 7))):
        net = build_model("resnet18", num_classes=2, input_shape=(3, side, side))
        assert next(m for m in net.modules() if isinstance(m, nn.Conv2d)).kernel_size == kernel


def test_cifar_vgg_has_one_linear_layer_of_512_features() -> None:
    assert [tuple(m.weight.shape) for m in full("vgg19_bn").modules() if isinstance(m, nn.Linear)] == [(10, 512)]


@pytest.mark.parametrize("name", TORCHVISION)
def test_other_numbers_of_channels_replace_the_first_convolution(name: str) -> None:
    net = build_model(name, num_classes=4, input_shape=(2, 32, 32)).eval()
    with torch.no_grad():
        assert net(images(1, 32, channels=2)).shape == (1, 4)


def test_imagenet_stem_with_one_channel_keeps_its_geometry() -> None:
    net = build_model("resnet18", num_classes=4, input_shape=(1, 96, 96))
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    assert (first.in_channels, first.kernel_size, first.stride, first.padding) == (1, (7, 7), (2, 2), (3, 3))


@pytest.mark.parametrize("name", ["resnet34", "densenet121"])
def test_imagenet_stem_names_its_weights_as_torchvision_does(name: str) -> None:
    import torchvision

    ours = build_model(name, num_classes=10, input_shape=(3, 64, 64), stem="imagenet")
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    x = images(1, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


# What is refused ------------------------------------------------------------------------------------------------------


def test_unknown_name_suggests_and_lists_the_models() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'resnet9'.*The models are mlp, cnn-small") as caught:
        build_model("resnet-9", num_classes=10, input_shape=(3, 32, 32))
    assert all(name in str(caught.value) for name in model_names())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_unknown_option_names_the_accepted_ones(name: str) -> None:
    options = {"mlp": "hidden", "cnn-small": "width", "resnet9": "width"}
    with pytest.raises(InputError, match=f"'depth'.*Its options are: {options.get(name, 'stem')}"):
        build_model(name, num_classes=10, input_shape=(3, 32, 32), depth=3)
    with pytest.raises(InputError, match="Did you mean 'hidden'"):
        build_model("mlp", num_classes=10, input_shape=(3,), hiden=3)


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_smallest_image_works_and_one_pixel_less_is_refused(name: str) -> None:
    side = SMALLEST[name]
    net = build_model(name, num_classes=2, input_shape=(1, side, side + 3)).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, side, side + 3)).shape == (1, 2)
    if side > 1:
        fits = rf"at least {side} x {side}; got {side - 1} x 40\. Models that fit: mlp"
        with pytest.raises(InputError, match=fits) as caught:
            build_model(name, num_classes=2, input_shape=(1, side - 1, 40))
        assert ("resnet9" in str(caught.value).split("fit:")[1]) == (name == "vgg19_bn")
    with pytest.raises(InputError, match=r"\(channels, height, width\); got \(64,\)\. Use 'mlp'"):
        build_model(name, num_classes=2, input_shape=(64,))


def test_smallest_image_for_the_imagenet_stem_of_densenet() -> None:
    net = build_model("densenet121", num_classes=2, input_shape=(1, 29, 29), stem="imagenet").eval()
    with torch.no_grad():
        net(torch.zeros(1, 1, 29, 29))
    with pytest.raises(InputError, match="at least 29 x 29"):
        build_model("densenet121", num_classes=2, input_shape=(1, 28, 28), stem="imagenet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"input_shape": 5}, "input_shape"),
        ({"input_shape": (8, 8)}, "input_shape"),
        ({"input_shape": (1, 0, 8)}, "input_shape"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"width": 0}, "width"),
        ({"width": float("nan")}, "width"),
        ({"width": "wide"}, "width"),
        ({"name": "mlp", "hidden": 64}, "hidden"),
        ({"name": "mlp", "hidden": (0,)}, "hidden"),
        ({"name": "mlp", "hidden": "64"}, "hidden"),
        ({"name": "resnet18", "stem": "tiny"}, "'auto', 'cifar' or 'imagenet'"),
        ({"name": ""}, "no model called ''"),
        ({"name": "comove.models:nothing_here"}, "nothing_here"),
        ({"name": "no_such_package_here:make"}, "no_such_package_here"),
        ({"name": ":make"}, "package.module:factory"),
        ({"name": "comove.models:"}, "package.module:factory"),
        ({"name": "comove.models:__all__"}, "package.module:factory"),
        ({"name": nn.Linear(2, 2)}, "function that returns a network"),
        ({"name": 3}, "function that returns a network"),
        ({"name": lambda num_classes: nn.Identity()}, "must take num_classes, input_shape"),
        ({"name": lambda num_classes, input_shape, depth: nn.Identity()}, "depth"),
        ({"name": lambda num_classes, input_shape: "net"}, r"must return a torch\.nn\.Module"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"name": "cnn-small", "num_classes": 2, "input_shape": (1, 8, 8)} | arguments
    with pytest.raises(ComoveError, match=message):
        build_model(given.pop("name"), **given)


# A user's own factory -------------------------------------------------------------------------------------------------


def test_factory_by_string_and_by_function_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import torch\ntorch.rand(5)\n"
        "def make(*, num_classes, input_shape, bias=True):\n"
        "    return torch.nn.Linear(input_shape[0], num_classes, bias=bias)\n"
    )
    (tmp_path / "comove_user_model.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    by_name = build_model("comove_user_model:make", num_classes=3, input_shape=(4,), seed=2, bias=False)
    module = sys.modules["comove_user_model"]
    by_function = build_model(module.make, num_classes=3, input_shape=(4,), seed=2, bias=False)
    assert parameter_count(by_name) == 12
    assert same_bits(by_name, by_function)
    with pytest.raises(InputError, match="Its options are: bias"):
        build_model("comove_user_model:make", num_classes=3, input_shape=(4,), depth=1)
    spec = ModelSpec.of(module.make, num_classes=3, input_shape=(4,), bias=False)
    assert spec == ModelSpec("comove_user_model:make", 3, (4,), {"bias": False})
    assert same_bits(spec.build(2), by_name)
    assert same_bits(ModelSpec("comove_user_model:make", 3, (4,), {"bias": False}).build(2), by_name)


def test_factory_with_open_keywords_gets_every_option() -> None:
    def make(**arguments: Any) -> nn.Module:
        assert set(arguments) == {"num_classes", "input_shape", "depth"}
        return nn.Identity()

    assert isinstance(build_model(make, num_classes=3, input_shape=(4,), depth=2), nn.Identity)


# Specifications -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("mlp", 3, (4,), {"hidden": [8, 9]}),
        ModelSpec("cnn-small", 10, (1, 8, 8), {"width": 0.5}),
        ModelSpec("resnet9", 10, (3, 12, 12)),
    ],
)
def test_spec_survives_json_and_builds_the_same_bits(spec: ModelSpec) -> None:
    read = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert read == spec
    assert hash(read) == hash(spec)
    assert read.to_json() == spec.to_json()
    arguments = dict(spec.options)
    built = build_model(spec.name, num_classes=spec.num_classes, input_shape=spec.input_shape, seed=6, **arguments)
    assert same_bits(read.build(6), built)


def test_spec_takes_numpy_numbers_and_orders_its_options() -> None:
    spec = ModelSpec("m:f", np.int64(3), (np.int32(4),), {"b": [1, [2.5]], "a": None})  # type: ignore[arg-type]
    assert spec.options == (("a", None), ("b", (1, (2.5,))))
    assert spec.to_json() == {
        "name": "m:f",
        "num_classes": 3,
        "input_shape": [4],
        "options": {"a": None, "b": [1, [2.5]]},
    }


def test_spec_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelSpec("mlp", 3, (4,)).name = "resnet9"  # type: ignore[misc]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module on the path that raises, and leaves a file behind, when it is imported."""
    source = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit('imported')\n"
    (tmp_path / "comove_trap.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return "comove_trap"


def test_a_file_never_makes_us_import_a_factory(trap: str, tmp_path: Path) -> None:
    document = {"name": f"{trap}:make", "num_classes": 3, "input_shape": [4], "options": {"bias": False}}
    read = ModelSpec.from_json(document)
    copies = [read, copy.deepcopy(read), pickle.loads(pickle.dumps(read)), dataclasses.replace(read, num_classes=3)]  # noqa: S301
    for spec in copies:
        with pytest.raises(InputError, match=f"pass the factory again: factory='{trap}:make'"):
            spec.build(0)
        assert spec.to_json() == document
        with pytest.raises(InputError, match="no model called ''"):
            spec.build(0, factory="")
    assert same_bits(
        read.build(1, factory=linear_factory),
        build_model(linear_factory, num_classes=3, input_shape=(4,), seed=1, bias=False),
    )
    assert trap not in sys.modules
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SystemExit, match="imported"):  # the trap is a real one: the user's own request springs it
        build_model(f"{trap}:make", num_classes=3, input_shape=(4,))


def test_a_factory_that_counts_as_false_is_still_the_users_choice(trap: str) -> None:
    class Empty:
        def __len__(self) -> int:
            return 0

        def __call__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
            return nn.Linear(input_shape[0], num_classes)

    read = ModelSpec.from_json({"name": f"{trap}:make", "num_classes": 3, "input_shape": [4], "options": {}})
    assert parameter_count(read.build(0, factory=Empty())) == 15


def test_spec_of_a_function_loses_it_in_json_until_it_is_passed_again() -> None:
    spec = ModelSpec.of(linear_factory, num_classes=3, input_shape=(2, 2, 2), bias=True)
    assert spec.name == f"{__name__}:linear_factory"
    read = ModelSpec.from_json(spec.to_json())
    assert read == spec
    with pytest.raises(InputError, match="linear_factory"):
        read.build(0)
    assert same_bits(read.build(4, factory=linear_factory), spec.build(4))
    assert same_bits(read.build(4, factory=spec.name), spec.build(4))
    with pytest.raises(InputError, match="one of comove's own"):
        ModelSpec("mlp", 3, (4,)).build(0, factory=linear_factory)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"name": "mlp", "num_classes": 3, "input_shape": [4]},
        {"name": "mlp", "num_classes": 3, "input_shape": [4], "options": {}, "from_file": False},
        {"name": 3, "num_classes": 3, "input_shape": [4], "options": {}},
        {"name": "mlp", "num_classes": "3", "input_shape": [4], "options": {}},
        {"name": "mlp", "num_classes": 3, "input_shape": [], "options": {}},
        {"name": "mlp", "num_classes": 3, "input_shape": [4], "options": 7},
        {"name": "mlp", "num_classes": 3, "input_shape": [4], "options": {"seed": 1}},
        {"name": "mlp", "num_classes": 3, "input_shape": [4], "options": {"hidden": {"a": 1}}},
    ],
)
def test_a_damaged_description_is_refused(document: Any) -> None:
    with pytest.raises(CorruptFileError):
        ModelSpec.from_json(document)


def test_spec_refuses_what_json_cannot_hold_and_a_factory_under_our_name() -> None:
    with pytest.raises(InputError, match="'activation'"):
        ModelSpec.of(linear_factory, num_classes=2, input_shape=(2,), activation=nn.GELU)
    with pytest.raises(InputError, match="not the name of a factory"):
        ModelSpec("mlp", 2, (2,), factory=linear_factory)
    with pytest.raises(InputTypeError, match=r"ModelSpec\.of"):
        ModelSpec(linear_factory, 2, (2,))  # type: ignore[arg-type]


# Penultimate features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "factor"), [("resnet9", 0.2), ("mlp", 1.0), ("cnn-small", 1.0), ("densenet121", 1.0)])
def test_penultimate_features_times_the_head_are_the_logits(name: str, factor: float) -> None:
    model = small(name).eval()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with penultimate(model) as last:
        logits = model(images())
    bias = 0.0 if head.bias is None else head.bias
    assert last.features.shape == (4, head.in_features)
    assert last.features.dtype == torch.float32
    assert not last.features.requires_grad
    torch.testing.assert_close(factor * (last.features @ head.weight.T + bias), logits)


def test_penultimate_follows_each_call_and_leaves_no_hook() -> None:
    model = small("mlp")
    with penultimate(model) as last:
        with pytest.raises(InputError, match="call the model"):
            _ = last.features
        model(images(2))
        first = last.features
        model(images(3))
        assert len(first) == 2
        assert len(last.features) == 3
    model(images(4))
    assert len(last.features) == 3
    with pytest.raises(RuntimeError, match="stop"), penultimate(model):
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_penultimate_is_float32_and_flat_whatever_the_model() -> None:
    model = nn.Linear(4, 2).double()
    with penultimate(model) as last:
        model(torch.ones(3, 5, 4, dtype=torch.float64))
    assert last.features.shape == (3, 20)
    assert last.features.dtype == torch.float32


def test_penultimate_needs_a_linear_layer() -> None:
    with pytest.raises(InputError, match="Conv2d has none"), penultimate(nn.Conv2d(1, 1, 1)):
        pass


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.requires_grad_(False)
    assert parameter_count(nn.Sequential(layer, nn.ReLU(), layer)) == 9
