"""The networks that comove trains, each by name, and what other parts need to know of them.

``build_model`` makes a network from its name, ``ModelSpec`` is the same request in a form that a manifest can hold.
``logits_of`` reads the logits in what a model returned, ``last_linear`` finds the linear layer that gives them, and
``penultimate`` reads the features that feed it. No ReLU here works in place and no module
keeps state beyond its parameters and batch-norm buffers, so all of them work under ``torch.func``. Hooks may sit on any
linear layer and convolution; torchvision's residual blocks add in place to the output of their last batch norm, which
therefore takes tensor hooks but no full backward hook.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from comove.checks import whole_number
from comove.errors import CorruptFileError, InputError, InputTypeError, did_you_mean
from comove.models.last_layer import Penultimate, last_linear, penultimate
from comove.models.outputs import logits_of, without_fast_path
from comove.models.texts import embedding_bag, text_transformer

__all__ = [
    "TEXT_MODELS",
    "Factory",
    "ModelSpec",
    "Penultimate",
    "build_model",
    "last_linear",
    "logits_of",
    "model_names",
    "parameter_count",
    "penultimate",
    "put_channels_last",
    "without_fast_path",
]

Factory: TypeAlias = Callable[..., nn.Module]
"""A function called as ``factory(num_classes=..., input_shape=..., **options)`` that returns a network."""


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class _Mul(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def _mlp(
    *, num_classes: int, input_shape: tuple[int, ...], hidden: Sequence[int] = (64, 64), activation: str = "relu"
) -> nn.Module:
    if not isinstance(hidden, Sequence):
        raise InputError(f"hidden must be a sequence of layer widths such as (64, 64); got {hidden!r}.")
    if activation not in ACTIVATIONS:
        known = did_you_mean(str(activation), ACTIVATIONS)
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}.{known}")
    sizes = [math.prod(input_shape), *(_whole(size, "each width in hidden") for size in hidden)]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def _cnn_small(*, num_classes: int, input_shape: tuple[int, ...], width: float = 1.0) -> nn.Module:
    a, b, c = _scaled((16, 32, 64), width)
    blocks = [_conv_bn(input_shape[0], a), nn.MaxPool2d(2), _conv_bn(a, b), nn.MaxPool2d(2), _conv_bn(b, c)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, num_classes))


def _resnet9(*, num_classes: int, input_shape: tuple[int, ...], width: float = 1.0) -> nn.Module:
    a, b, c = _scaled((64, 128, 256), width)
    return nn.Sequential(
        _conv_bn(input_shape[0], a),
        _conv_bn(a, b, kernel=5, stride=2, padding=2),
        _Residual(nn.Sequential(_conv_bn(b, b), _conv_bn(b, b))),
        _conv_bn(b, c),
        nn.MaxPool2d(2),
        _Residual(nn.Sequential(_conv_bn(c, c), _conv_bn(c, c))),
        _conv_bn(c, b, padding=0),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(b, num_classes, bias=False),
        _Mul(0.2),
    )


def _resnet(name: str, *, num_classes: int, input_shape: tuple[int, ...], stem: str = "auto") -> nn.Module:
    from torchvision.models import get_model

    net: Any = get_model(name, weights=None, num_classes=num_classes)
    cifar = _is_cifar(stem, input_shape)
    net.conv1 = _first_conv(net.conv1, input_shape[0], cifar)
    if cifar:
        net.maxpool = nn.Identity()
    return _finished(net, "fan_out")


def _vgg19_bn(*, num_classes: int, input_shape: tuple[int, ...], stem: str = "auto") -> nn.Module:
    from torchvision.models import vgg

    if _is_cifar(stem, input_shape):  # from its parts: torchvision's own head is 120 million weights to throw away
        net: Any = _with_head(vgg.make_layers(vgg.cfgs["E"], batch_norm=True), nn.Linear(512, num_classes))
    else:
        net = vgg.vgg19_bn(weights=None, num_classes=num_classes)
    net.features[0] = _first_conv(net.features[0], input_shape[0], cifar=False)  # 3 by 3, stride 1 in both stems
    return _finished(net, "fan_out")


def _densenet121(*, num_classes: int, input_shape: tuple[int, ...], stem: str = "auto") -> nn.Module:
    from torchvision.models import densenet121

    cifar = _is_cifar(stem, input_shape)
    if not cifar:
        _check_fits("densenet121", input_shape, 29)  # this stem divides the side by four before the three halvings
    net: Any = densenet121(weights=None, num_classes=num_classes)
    net.features.conv0 = _first_conv(net.features.conv0, input_shape[0], cifar)
    if cifar:
        net.features.pool0 = nn.Identity()
    net.features.relu5 = nn.ReLU()  # put together again, because DenseNet.forward applies its last ReLU in place
    return _finished(_with_head(net.features, net.classifier), "fan_in")


def _with_head(features: nn.Module, classifier: nn.Module) -> nn.Sequential:
    pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(OrderedDict(features=features, avgpool=pool, flatten=flatten, classifier=classifier))


def _first_conv(conv: nn.Conv2d, channels: int, cifar: bool) -> nn.Conv2d:
    kernel, stride, padding = (3, 1, 1) if cifar else (conv.kernel_size, conv.stride, conv.padding)
    bias = conv.bias is not None
    return nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]


def _finished(net: nn.Module, fan: Literal["fan_in", "fan_out"]) -> nn.Module:
    """Initialise the convolutions as torchvision does, the replaced one included, and take ReLUs out of place."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ReLU):
            module.inplace = False
    return net


# The shortest side of an image that the model takes; 0 for one that takes any input.
_REGISTRY: dict[str, tuple[Factory, int]] = {
    "mlp": (_mlp, 0),
    "cnn-small": (_cnn_small, 4),
    "resnet9": (_resnet9, 11),
    "resnet18": (partial(_resnet, "resnet18"), 1),
    "resnet34": (partial(_resnet, "resnet34"), 1),
    "resnet50": (partial(_resnet, "resnet50"), 1),
    "vgg19_bn": (_vgg19_bn, 32),
    "densenet121": (_densenet121, 8),
    "embedding-bag": (embedding_bag, 0),
    "text-transformer": (text_transformer, 0),
}
TEXT_MODELS = ("embedding-bag", "text-transformer")
"""Models of token ids; they take the size of the vocabulary as an option."""


def _whole(value: Any, what: str) -> int:
    return whole_number(value, what, 1, error=InputError)


def _shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str) or len(input_shape) == 0:
        raise InputError(
            f"input_shape must be the shape of one example, such as (channels, height, width), (channels, length) or "
            f"(features,), without the batch; got {input_shape!r}."
        )
    return tuple(_whole(size, "each size in input_shape") for size in input_shape)


def _check_fits(name: str, input_shape: tuple[int, ...], minimum: int) -> None:
    if minimum == 0:
        return
    if len(input_shape) != 3:
        raise InputError(f"{name!r} needs images, input_shape (channels, height, width); got {input_shape}. Use 'mlp'.")
    height, width = input_shape[1:]
    if min(height, width) < minimum:
        images = {other: least for other, (_, least) in _REGISTRY.items() if other not in (name, *TEXT_MODELS)}
        fitting = [other for other, least in images.items() if min(height, width) >= least]
        raise InputError(
            f"{name!r} needs images of at least {minimum} x {minimum}; got {height} x {width}. "
            f"Models that fit: {', '.join(fitting)}."
        )


def _scaled(channels: tuple[int, ...], width: float) -> list[int]:
    number = isinstance(width, int | float) and not isinstance(width, bool)
    if not (number and math.isfinite(width) and width > 0):
        raise InputError(f"width must be a positive number that multiplies every channel count; got {width!r}.")
    return [max(4, round(count * width)) for count in channels]


def _is_cifar(stem: str, input_shape: tuple[int, ...]) -> bool:
    if stem not in ("auto", "cifar", "imagenet"):
        raise InputError(f"stem must be 'auto', 'cifar' or 'imagenet'; got {stem!r}.")
    return stem == "cifar" or (stem == "auto" and max(input_shape[1:]) <= 64)


def model_names() -> tuple[str, ...]:
    """Return the names that :func:`build_model` knows, small models first."""
    return tuple(_REGISTRY)


def build_model(
    name: str | Factory, *, num_classes: int, input_shape: Sequence[int], seed: int = 0, **options: Any
) -> nn.Module:
    """Build the network called ``name``, with weights that depend on ``seed`` alone.

    The weights are drawn on the CPU from a generator state of their own; the caller's random state is left as it was.
    No pretrained weights are used.

    ``mlp`` (options ``hidden=(64, 64)``, ``activation="relu"``, or tanh, gelu, softplus) flattens any input.
    ``cnn-small`` and ``resnet9`` (option ``width=1.0``, a factor on every channel count, never below four channels) are
    a three-convolution network for images from 4 by 4, and TRAK's ResNet-9 for images from 11 by 11, with 2,274,880
    parameters for CIFAR-10. ``resnet18``, ``resnet34``, ``resnet50``, ``vgg19_bn`` and ``densenet121`` (option
    ``stem="auto"``) are torchvision's; ``stem="cifar"``, which
    ``"auto"`` means up to a side of 64, keeps the resolution that the ``"imagenet"`` stem would throw away.
    ``embedding-bag`` and ``text-transformer`` (options ``vocabulary``, the number of tokens, and ``width=64``; the
    latter ``layers=2``, ``heads=4``) classify texts of word tokens (L,), where token 0 is padding.

    Args:
        name: One of :func:`model_names`, ``"package.module:factory"``, or a factory: a callable that takes
            ``num_classes``, ``input_shape`` and options by keyword and returns a network.
        num_classes: Number of outputs.
        input_shape: Shape of one example: (C, H, W) or, for ``mlp`` and your own models, any, such as (F,) or (C, L).
        seed: Seed of the initial weights, from 0 to 2**63 - 1.
        options: The model's own options.

    Returns:
        The network on the CPU in training mode; it maps ``(B, *input_shape)`` to logits (B, num_classes).

    Raises:
        InputError: The name or an option is unknown, a value is out of range, or the input is too small for the model.

    References:
        He et al., Deep residual learning for image recognition, 2016. Park et al., TRAK, ICML 2023 (ResNet-9).
        Simonyan & Zisserman, Very deep convolutional networks (VGG), 2015. Huang et al., DenseNet, 2017.

    Example:
        >>> from comove.models.networks import build_model
        >>> build_model("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=(32,))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    classes, shape = _whole(num_classes, "num_classes"), _shape(input_shape)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1; got {seed!r}.")
    factory, label = _resolve(name), name if isinstance(name, str) else _recorded_name(name)
    if label in _REGISTRY:
        _check_fits(label, shape, _REGISTRY[label][1])
    _check_options(label, factory, options)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the caller's GPUs as well
        model = factory(num_classes=classes, input_shape=shape, **options)
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"The factory {label!r} must return a torch.nn.Module; it returned {type(model)}.")
    return model


def _resolve(name: str | Factory) -> Factory:
    if not isinstance(name, str):
        return _checked_factory(name)
    if name in _REGISTRY:
        return _REGISTRY[name][0]
    module, colon, path = name.partition(":")
    if not colon:
        raise InputError(
            f"There is no model called {name!r}.{did_you_mean(name, _REGISTRY)} The models are {', '.join(_REGISTRY)}; "
            f"your own is named 'package.module:factory' or passed as a function."
        )
    try:
        return _checked_factory(operator.attrgetter(path)(importlib.import_module(module)))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"The model {name!r} must name a factory as 'package.module:factory', importable from here; "
            f"{type(error).__name__}: {error}"
        ) from error


def _checked_factory(factory: Any) -> Factory:
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InputTypeError(f"A model is a name or a function that returns a network; got {type(factory)}.")
    return factory  # type: ignore[no-any-return]


def _recorded_name(factory: Factory) -> str:
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}:{named.__qualname__}"


def _check_options(label: str, factory: Factory, options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables written in C have no signature to check
        return
    own = ("num_classes", "input_shape")
    accepted = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepted = [option for option in accepted if option not in own]
    try:
        signature.bind(**dict.fromkeys(own), **options)
    except TypeError as error:
        hint = "".join(did_you_mean(option, accepted) for option in options if option not in accepted)
        raise InputError(
            f"{label!r} must take num_classes, input_shape and the options given; {error}.{hint} "
            f"Its options are: {', '.join(accepted) or 'none'}."
        ) from error


@dataclass(frozen=True)
class ModelSpec:
    """Which network to build, in a form that a manifest can hold.

    A file never makes comove import or run code. A specification from :meth:`from_json` that names a user's own
    factory therefore builds nothing until the user passes that factory again.

    Args:
        name: One of :func:`model_names` or ``"package.module:factory"``; :meth:`of` also takes the factory itself.
        num_classes: Number of outputs.
        input_shape: Shape of one example.
        options: The model's options, as a mapping or pairs; kept as pairs sorted by name, with lists as tuples.
        factory: The user's factory in memory; never written to a file.
        from_file: Whether a file, and not the user's code, chose ``name``.

    Raises:
        InputError: A value is out of range, or an option is not made of JSON values.

    Example:
        >>> from comove.models.networks import ModelSpec
        >>> ModelSpec.from_json(ModelSpec("mlp", 3, (4,), {"hidden": [8]}).to_json()).options
        (('hidden', (8,)),)
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    factory: Factory | None = field(default=None, repr=False, compare=False, kw_only=True)
    from_file: bool = field(default=False, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputTypeError(f"name must be a string; got {type(self.name)}. ModelSpec.of takes a factory.")
        if self.factory is not None and ":" not in self.name:
            raise InputError(f"{self.name!r} is not the name of a factory; leave factory out, or use ModelSpec.of.")
        pairs = dict(self.options)
        reserved = {"name", "num_classes", "input_shape", "seed"}
        if not all(isinstance(key, str) and key not in reserved for key in pairs):
            raise InputError(f"Options must be named by strings other than {sorted(reserved)}; got {list(pairs)}.")
        options = tuple((key, _frozen(key, pairs[key])) for key in sorted(pairs))
        object.__setattr__(self, "num_classes", _whole(self.num_classes, "num_classes"))
        object.__setattr__(self, "input_shape", _shape(self.input_shape))
        object.__setattr__(self, "options", options)

    @classmethod
    def of(cls, model: str | Factory, *, num_classes: int, input_shape: Sequence[int], **options: Any) -> ModelSpec:
        """Return the specification of what :func:`build_model` would build from the same arguments.

        A factory is recorded as ``"module:qualname"``.
        """
        if isinstance(model, str):
            return cls(model, num_classes, _shape(input_shape), options)
        return cls(_recorded_name(_checked_factory(model)), num_classes, _shape(input_shape), options, factory=model)

    def build(self, seed: int, factory: str | Factory | None = None) -> nn.Module:
        """Build the network; see :func:`build_model`.

        Args:
            seed: Seed of the initial weights.
            factory: The user's own factory, or its ``"package.module:factory"``; needed when the specification was
                read from a file and names one.

        Raises:
            InputError: As :func:`build_model`; or ``factory`` is needed and absent, or given for one of our models.
        """
        return build_model(
            self.named(factory),
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            seed=seed,
            **dict(self.options),
        )

    def named(self, factory: str | Factory | None = None) -> str | Factory:
        """Return what makes this network, for those who train another: a name of ours, or the user's own factory.

        The one place where the name of a specification is taken for something to build.

        Args:
            factory: As for :meth:`build`.

        Raises:
            InputError: ``factory`` is needed and absent, or given for one of our models.
        """
        own = ":" in self.name
        if factory is not None and not own:
            raise InputError(f"{self.name!r} is one of comove's own models; build it without factory.")
        if own and self.from_file and factory is None:
            raise InputError(
                f"This model was made by your own factory {self.name!r}, and its name was read from a file. A file "
                f"never makes comove import or run code, so pass the factory again: factory={self.name!r}, or the "
                f"function itself (--model on the command line)."
            )
        chosen = self.factory if factory is None else factory
        return self.name if chosen is None else chosen

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of JSON values, for a manifest."""
        entries = {"name": self.name, "num_classes": self.num_classes, "input_shape": self.input_shape}
        document: dict[str, Any] = json.loads(json.dumps(entries | {"options": dict(self.options)}))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelSpec:
        """Return the specification in a dictionary made by :meth:`to_json`; nothing is imported or run.

        Raises:
            CorruptFileError: The document is not a dictionary with exactly the entries that :meth:`to_json` writes.
        """
        entries = {"name", "num_classes", "input_shape", "options"}
        if not isinstance(document, Mapping) or set(document) != entries:
            raise CorruptFileError(f"A model is described by {', '.join(sorted(entries))}; the file has {document!r}.")
        try:
            return cls(**document, from_file=True)
        except (TypeError, ValueError) as error:
            raise CorruptFileError(f"The model described in the file cannot exist. {error}") from error


def _frozen(option: str, value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(_frozen(option, item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"Option {option!r} must be a number, string, boolean, None, or a list of these; got {value!r}.")


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of ``model``, trainable or not, each shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def put_channels_last(model: nn.Module) -> nn.Module:
    """Lay the weights of 2-D convolutions out with their channels last, in place, and return the model.

    Unlike ``model.to(memory_format=torch.channels_last)`` it takes 3-D convolutions too, and leaves theirs as they are.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model
