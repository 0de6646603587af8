"""Two-sided projections against P_out G P_in' of per-example gradients by autograd, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.gradients.test_ekfac import (
    CASES,
    Held,
    Odd,
    Positions,
    Reading,
    built,
    draw,
    images,
    labelled,
    tiny_gpt,
    tokens,
    transformers,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comove.errors import InputError
from comove.gradients.layer_projections import ProjectedGradients, random_side
from comove.gradients.per_example import PerExampleGradients
from comove.tasks import CausalLM, Classification, Task


def projected(model: nn.Module, data: Held, dims: tuple[int, int] = (3, 2), **options: Any) -> ProjectedGradients:
    task, names = options.pop("task", Classification()), options.pop("parameters", None)
    gradients = PerExampleGradients(model, task=task, parameters=names)
    return ProjectedGradients(gradients, data, *dims, draw(options.pop("seed", 0)), **options)


def features(found: ProjectedGradients, data: Held) -> Tensor:
    return torch.cat(list(found.stream(data, found.gradients.objective.values)))


def brute(found: ProjectedGradients, model: nn.Module, data: Held, task: Task) -> Tensor:
    """P_out G P_in' of each layer, G each example's whole gradient by autograd, one example at a time."""
    parts = []
    for projection in found.layers.values():
        layer, wholes = projection.layer, []
        for row in range(len(data)):
            one = data.batch(slice(row, row + 1))
            loss = task.loss(task.outputs(model, one), one).sum()
            wanted = [dict(model.named_parameters())[name] for name in layer.names]
            weight, *bias = torch.autograd.grad(loss, wanted, materialize_grads=True)
            whole_OI = weight.mT if layer.layout == "transposed" else weight.flatten(1)
            wholes.append(torch.cat([whole_OI, *(each[:, None] for each in bias)], 1))
        parts.append((projection.outputs @ torch.stack(wholes) @ projection.inputs.mT).flatten(1))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("dims", [(3, 2), (2, 100)])
@pytest.mark.parametrize("name", CASES)
def test_features_are_projections_of_the_whole_gradients(name: str, dims: tuple[int, int]) -> None:
    build, x = CASES[name]
    model, data = built(build), labelled(x)
    found = projected(model, data, dims)
    phi_BK = features(found, data)
    assert phi_BK.shape == (13, found.size)
    assert found.size == sum(
        min(dims[0], i) * min(dims[1], o) for o, i in (p.layer.sides for p in found.layers.values())
    )
    torch.testing.assert_close(phi_BK, brute(found, model, data, Classification()), rtol=1e-9, atol=1e-12)


@transformers
def test_features_of_transposed_layers_and_padded_sentences() -> None:
    model, data, task = built(tiny_gpt), tokens(5), CausalLM()
    found = projected(model, data, task=task)
    assert len(found.layers) == 8
    torch.testing.assert_close(features(found, data), brute(found, model, data, task), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["linear layers", "convolution", "positions", "called twice"])
def test_neither_chunks_nor_one_example_at_a_time_matter(name: str) -> None:
    build, x = CASES[name]
    model, data = built(build), labelled(x)
    whole = features(projected(model, data), data)
    torch.testing.assert_close(features(projected(model, data, batch=4), data), whole)
    alone = projected(Reading(model).eval(), data, batch=4)
    assert alone.gradients.paths.way == "one example at a time"
    torch.testing.assert_close(features(alone, data), whole)


def test_positions_of_all_examples_in_one_tensor_are_told_apart() -> None:
    data = labelled(images(6, 4))
    models = built(lambda: Positions(False)), built(lambda: Positions(True))
    one, other = (features(projected(model, data), data) for model in models)
    torch.testing.assert_close(one, other)


def test_sides_that_are_kept_whole_give_exact_inner_products() -> None:
    build, x = CASES["convolution"]
    model, data = built(build), labelled(x)
    phi_BK = features(projected(model, data, (1000, 1000)), data)
    whole = torch.cat([each.flatten(1) for each in PerExampleGradients(model).collect(data).values()], 1)
    torch.testing.assert_close(phi_BK @ phi_BK.mT, whole @ whole.mT)


def test_inner_products_are_unbiased() -> None:
    """Over 200 draws the mean is off by no more than four standard errors, for every pair of examples."""
    build, x = CASES["linear layers"]
    model, data = built(build), labelled(x[:4])
    whole = torch.cat([each.flatten(1) for each in PerExampleGradients(model).collect(data).values()], 1)
    found = [features(projected(model, data, (2, 3), seed=seed), data) for seed in range(200)]
    grams = torch.stack([phi @ phi.mT for phi in found])
    error = grams.std(0) / len(grams) ** 0.5
    assert bool(((grams.mean(0) - whole @ whole.mT).abs() < 4 * error).all())
    assert float(error.max()) < 0.2 * float((whole @ whole.mT).abs().max())


@pytest.mark.parametrize(("size", "kept"), [(5, 2), (40, 7), (3, 3), (3, 9)])
def test_a_side_has_orthogonal_rows_and_is_whole_where_nothing_is_left_out(size: int, kept: int) -> None:
    side = random_side(size, kept, draw(1))
    rows = min(size, kept)
    assert side.shape == (rows, size)
    torch.testing.assert_close(side @ side.mT, size / rows * torch.eye(rows, dtype=torch.float64))
    mean = torch.stack([random_side(size, kept, generator).mT for generator in [draw(2)] for _ in range(2000)])
    second = (mean @ mean.mT).mean(0)
    torch.testing.assert_close(second, torch.eye(size, dtype=torch.float64), rtol=0, atol=0.25)


def test_more_dimensions_are_nearer_to_the_whole_gradients() -> None:
    model, data = (
        built(lambda: nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10))),
        labelled(images(20), 10),
    )
    whole = torch.cat([each.flatten(1) for each in PerExampleGradients(model).collect(data).values()], 1)

    def error(kept: int) -> float:
        phi = features(projected(model, data, (kept, kept)), data)
        return float((phi @ phi.mT - whole @ whole.mT).norm())

    errors = [error(kept) for kept in (2, 8, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_what_cannot_be_projected_is_left_out_with_the_reason() -> None:
    data = Held((torch.randint(0, 7, (9, 5), generator=draw(0)), torch.arange(9) % 7))
    model = built(Odd)
    found = projected(model, data)
    assert list(found.layers) == ["inner"]
    assert set(found.left_out) >= {"embed.weight", "norm.weight", "grouped.weight", "unused.weight"}
    assert found.left_out["embed.weight"] == "shared by several layers"
    with pytest.raises(InputError, match=r"need linear layers or convolutions, of which .* none: norm.weight"):
        projected(model, data, parameters="norm.*")


def test_chosen_parameters_alone_are_projected() -> None:
    build, x = CASES["linear layers"]
    model, data = built(build), labelled(x)
    found = projected(model, data, parameters="2.weight")
    assert found.sections == {"2": 6}
    torch.testing.assert_close(features(found, data), brute(found, model, data, Classification()))


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The entries of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.entries = max(self.entries, *(each.numel() for each in tree_leaves(made) if isinstance(each, Tensor)), 0)
        return made


@pytest.mark.parametrize("convolution", [False, True])
def test_no_gradient_of_a_weight_is_formed(convolution: bool) -> None:
    """Of 200 examples gradients would take 200 x 10,000 entries."""
    model = nn.Sequential(nn.Conv2d(100, 100, 1), nn.Flatten()) if convolution else nn.Linear(100, 100)
    data = labelled(torch.randn(200, 100, *((1, 1) if convolution else ()), generator=draw(0)), 10)
    found = projected(model.eval(), data, (4, 4), batch=200)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        phi_BK = features(found, data)
    assert phi_BK.shape == (200, 16)
    assert 0 < largest.entries < 200 * 10_000 / 10


def test_patches_of_a_convolution_are_not_written_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten()).eval()
    data = labelled(torch.randn(20, 1, 38, 38, generator=draw(0)), 10)
    found = projected(model, data, (3, 2))
    with Largest() as largest:  # type: ignore[no-untyped-call]
        features(found, data)
    assert largest.entries <= 3 * 20 * 38 * 38  # patches: 20 x 900 x 81
