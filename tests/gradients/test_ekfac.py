"""EK-FAC factors against brute force from per-example gradients, closed forms, and kronfluence."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from comove.attribution.ekfac import ekfac_scores
from comove.data.batches import Batch, batch_size, rows_of
from comove.errors import CorruptFileError, InputError, NonFiniteError
from comove.gradients import ekfac
from comove.gradients.ekfac import EKFACFactors, eigenvalue_sums, ekfac_factors
from comove.gradients.per_example import PerExampleGradients
from comove.gradients.scalars import flat_outputs
from comove.tasks import CausalLM, Classification, Regression, Task

transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Held:
    """Examples in memory."""

    whole: Any

    def __len__(self) -> int:
        return batch_size(self.whole)

    def batch(self, positions: slice) -> Batch:
        return rows_of(self.whole, positions)


@dataclass(frozen=True)
class TrueTargets(Task):
    """A task whose pseudo-gradients are those of the loss itself: nothing is drawn."""

    inner: Task = field(default_factory=Classification)

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        return self.inner.outputs(model, batch)

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return self.inner.loss(outputs, batch)

    def measure(self, outputs: Any, batch: Any) -> Tensor:
        return self.inner.measure(outputs, batch)

    def pseudo_gradients(self, outputs: Any, batch: Any, generator: torch.Generator) -> Tensor:
        free = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.inner.loss(free, batch).sum(), free)
        return flat_outputs(found)


class Stack(nn.Sequential):
    """Layers, then the mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return h if h.ndim == 2 else h.flatten(2).mean(2)


class Positions(nn.Module):
    """A linear layer at every position, its inputs as they are or with all examples' positions in one row of rows."""

    def __init__(self, flattened: bool) -> None:
        super().__init__()
        self.inner, self.head, self.flattened = nn.Linear(4, 5), nn.Linear(5, 3), flattened

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[:2]
        h = self.inner(x.flatten(0, 1)).unflatten(0, size) if self.flattened else self.inner(x)
        out: Tensor = self.head(torch.tanh(h).mean(1))
        return out


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))
        return out


class Reading(nn.Module):
    """Reads values, so that examples are taken one at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x) if float(x.detach().abs().sum()) < 1e9 else x
        return found


class Experts(nn.Module):
    """A mixture whose first example calls one expert of three, and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList([nn.Linear(4, 3) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(1)
        chosen, out = shares.argmax(1), x.new_zeros(len(x), 3)
        for place, expert in enumerate(self.experts):
            if len(rows := (chosen == place).nonzero()[:, 0]):
                out = out.index_add(0, rows, expert(x[rows]) * shares[rows, place, None])
        return out


def images(*shape: int) -> Tensor:
    return torch.randn(13, *shape, generator=draw(1), dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear layers": (lambda: Stack(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), images(4)),
    "no bias": (lambda: Stack(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)), images(4)),
    "positions": (lambda: Positions(False), images(6, 4)),
    "more positions than sides": (lambda: Positions(False), images(40, 4)),
    "convolution": (lambda: Stack(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3)), images(2, 6, 5)),
    "strides": (
        lambda: Stack(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=2, bias=False), nn.Conv2d(4, 3, 1)
        ),
        images(2, 9, 8),
    ),
    "circular": (lambda: Stack(nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular")), images(2, 5, 5)),
    "one dimension": (lambda: Stack(nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 3, 2)), images(2, 9)),
    "batch norm": (
        lambda: Stack(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 1)),
        images(2, 5, 5),
    ),
    "called twice": (Twice, images(4)),
    "mixture of experts": (Experts, images(4)),
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_var is not None
                module.running_var.uniform_(0.5, 2)
    return model


def labelled(x: Tensor, classes: int = 3) -> Held:
    return Held((x, torch.arange(len(x)) % classes))


def fitted(model: nn.Module, data: Held, task: Task | None = None, **options: Any) -> EKFACFactors:
    return ekfac_factors(PerExampleGradients(model, task=task or TrueTargets()), data, **options)


def matrices(model: nn.Module, data: Held, layer: Any, task: Task) -> Tensor:
    """Each example's gradient as the matrix that the factors are of, (N, O, I)."""
    gradients = PerExampleGradients(model, task=task).collect(data)
    weight = gradients[layer.weight]
    whole = weight.mT if layer.layout == "transposed" else weight.flatten(2)
    return whole if layer.bias is None else torch.cat([whole, gradients[layer.bias][:, :, None]], 2)


@pytest.mark.parametrize("name", CASES)
def test_eigenvalues_are_those_of_per_example_gradients(name: str) -> None:
    build, x = CASES[name]
    model, data = built(build), labelled(x)
    found = fitted(model, data)
    assert len(found.layers) == sum(isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d) for m in model.modules())
    assert found.examples == 13
    for layer in found.layers.values():
        whole_NOI = matrices(model, data, layer, TrueTargets())
        brute = (layer.outputs.mT @ whole_NOI @ layer.inputs).square().mean(0)
        torch.testing.assert_close(layer.eigenvalues, brute, rtol=1e-9, atol=1e-14)
        for basis in (layer.inputs, layer.outputs):
            torch.testing.assert_close(basis.mT @ basis, torch.eye(len(basis), dtype=torch.float64))


def test_bases_diagonalise_the_second_moments_of_patches_and_of_output_gradients() -> None:
    model, x = built(lambda: Stack(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)))), images(2, 7, 6)
    data = labelled(x, 4)
    layer = fitted(model, data).layers["0"]
    patches = F.unfold(x, (3, 2), stride=(2, 1), padding=(1, 0))
    a = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
    second = torch.einsum("nit,njt->ij", a, a)
    diagonal = layer.inputs.mT @ second @ layer.inputs
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-9)
    out = torch.softmax(model(x), 1) - F.one_hot(data.whole[1], 4)  # the same at every position, but for 1 / positions
    diagonal = layer.outputs.mT @ (out.mT @ out) @ layer.outputs
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("positions", [1, 3, 50])
def test_every_order_of_rotation_gives_the_same(positions: int) -> None:
    a, g = (torch.randn(5, positions, side, generator=draw(side), dtype=torch.float64) for side in (4, 6))
    u_a, u_s = (torch.linalg.qr(torch.randn(side, side, generator=draw(9), dtype=torch.float64))[0] for side in (4, 6))
    brute = torch.stack([(u_s.mT @ (g[b].mT @ a[b]) @ u_a).square() for b in range(5)]).sum(0)
    torch.testing.assert_close(eigenvalue_sums(a, g, u_a, u_s), brute)


@pytest.mark.parametrize("name", ["linear layers", "convolution", "positions"])
def test_neither_chunks_nor_memory_nor_one_example_at_a_time_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, x = CASES[name]
    model, data = built(build), labelled(x)
    whole = fitted(model, data)
    for memory in (None, 1):
        monkeypatch.setattr(ekfac, "MEMORY", memory or 1 << 28)
        alone = Reading(model)
        gradients = PerExampleGradients(alone.eval(), task=TrueTargets(), batch=4)
        some = ekfac_factors(gradients, data)
        small = ekfac_factors(PerExampleGradients(model, task=TrueTargets(), batch=3), data)
        for key, layer in whole.layers.items():
            close(layer, small.layers[key])
            close(layer, some.layers[f"inner.{key}"])


def close(one: Any, other: Any) -> None:
    """Equal but for the signs of eigenvectors: the whole operator is compared."""
    for inverse in (one, other):
        assert inverse.eigenvalues.shape == one.eigenvalues.shape
    eye = torch.eye(one.eigenvalues.numel(), dtype=torch.float64).reshape(-1, *one.eigenvalues.shape)
    dense = [
        each.outputs @ ((each.outputs.mT @ eye @ each.inputs) * each.eigenvalues) @ each.inputs.mT
        for each in (one, other)
    ]
    torch.testing.assert_close(*dense, rtol=1e-6, atol=1e-9)


def test_positions_of_all_examples_in_one_tensor_are_told_apart() -> None:
    one, other = built(lambda: Positions(False)), built(lambda: Positions(True))
    data = labelled(images(6, 4))
    found, again = fitted(one, data), fitted(other, data)
    for name in found.layers:
        close(found.layers[name], again.layers[name])


def test_solving_is_the_dense_inverse_and_leaves_other_parameters_to_scale() -> None:
    model, data = built(CASES["batch norm"][0]), labelled(images(2, 5, 5))
    found = fitted(model, data)
    assert set(found.left_out) == {"1.weight", "1.bias"}
    assert found.left_out["1.weight"] == "no factors for BatchNorm2d"
    directions = {
        n: torch.randn(3, *p.shape, generator=draw(4), dtype=torch.float64) for n, p in model.named_parameters()
    }
    solved = found.solve(directions, 0.01)
    for layer in found.layers.values():
        basis = torch.kron(layer.outputs, layer.inputs)
        dense = basis @ torch.diag(layer.eigenvalues.flatten() + 0.01) @ basis.mT
        given, got = (
            torch.cat([each[layer.weight].flatten(2), each[str(layer.bias)][:, :, None]], 2).flatten(1)
            for each in (directions, solved)
        )
        torch.testing.assert_close(got @ dense, given)
    torch.testing.assert_close(solved["1.bias"], directions["1.bias"] / (found.mean_eigenvalue + 0.01))
    with pytest.raises(InputError, match="damping must be above 0, got 0"):
        found.solve(directions, 0)
    with pytest.raises(InputError, match=r"'0.weight' is missing"):
        found.solve({"3.weight": directions["3.weight"]}, 1.0)


@dataclass(frozen=True)
class Independent(TrueTargets):
    """Of two equal inputs the first draws (sqrt 2, 0), the second (0, sqrt 2): E[u u'] = I whatever the input."""

    def pseudo_gradients(self, outputs: Any, batch: Any, generator: torch.Generator) -> Tensor:
        return torch.eye(2, dtype=torch.float64).repeat(len(outputs) // 2, 1) * 2**0.5


def test_a_linear_model_has_its_exact_gauss_newton_influence() -> None:
    """With A and S independent E[a a'] x E[d d'] is the Gauss-Newton matrix itself, here A x I."""
    model = built(lambda: nn.Linear(3, 2))
    x = images(3)[:12].repeat_interleave(2, 0)
    y = torch.randn(24, 2, generator=draw(5), dtype=torch.float64)
    data, queries = Held((x, y)), Held((images(3)[:4], y[:4]))
    task = Independent(Regression())
    gradients = PerExampleGradients(model, task=task)
    factors = ekfac_factors(gradients, data)
    scores = ekfac_scores(factors, gradients, data, queries, {"": 0.1})
    a, b = (torch.cat([part, torch.ones(len(part), 1, dtype=torch.float64)], 1) for part in (x, queries.whole[0]))
    errors = [model(part[0]).detach() - part[1] for part in (data.whole, queries.whole)]
    train, query = (torch.einsum("no,ni->noi", e, side).flatten(1) for e, side in zip(errors, (a, b), strict=True))
    newton = torch.kron(torch.eye(2, dtype=torch.float64), a.mT @ a / len(a))
    truth = train @ torch.linalg.solve(newton + 0.1 * torch.eye(8, dtype=torch.float64), query.mT)
    torch.testing.assert_close(scores, truth)  # the measured output is the negative loss


def test_pseudo_targets_of_a_classifier_have_the_gauss_newton_matrix_as_their_mean() -> None:
    model = built(lambda: nn.Linear(3, 3))
    x = images(3)[:2].repeat(6000, 1)
    layer = fitted(model, labelled(x), Classification()).layers[""]
    a = torch.cat([x[:2], torch.ones(2, 1, dtype=torch.float64)], 1)
    p = torch.softmax(model(x[:2]).detach(), 1)
    curved = torch.diag_embed(p) - torch.einsum("no,np->nop", p, p)
    newton = torch.einsum("nop,ni,nj->oipj", curved, a, a).reshape(12, 12) / 2
    basis = torch.kron(layer.outputs, layer.inputs)
    diagonal = (basis.mT @ newton @ basis).diagonal().reshape(3, 4)
    torch.testing.assert_close(layer.eigenvalues, diagonal, rtol=0, atol=0.03 * float(diagonal.max()))


def test_the_seed_decides_the_pseudo_targets() -> None:
    model, data = built(CASES["linear layers"][0]), labelled(images(4))
    one, same, other = (fitted(model, data, Classification(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.layers["2"].eigenvalues, same.layers["2"].eigenvalues)
    assert not torch.equal(one.layers["2"].eigenvalues, other.layers["2"].eigenvalues)


class Odd(nn.Module):
    """Everything that has no factors, and one layer that has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.grouped, self.unused = nn.Conv1d(4, 4, 1, groups=2), nn.Linear(4, 4)
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(self.norm(self.embed(x)).mT).mT
        out: Tensor = self.head(torch.tanh(self.inner(h)).mean(1))
        return out


def test_what_has_no_factors_is_left_out_with_the_reason() -> None:
    data = Held((torch.randint(0, 7, (9, 5), generator=draw(0)), torch.arange(9) % 7))
    found = fitted(built(Odd), data)
    assert found.parameters == ("inner.weight", "inner.bias")
    assert found.left_out == {
        "embed.weight": "shared by several layers",
        "norm.weight": "no factors for LayerNorm",
        "norm.bias": "no factors for LayerNorm",
        "grouped.weight": "a convolution of groups",
        "grouped.bias": "a convolution of groups",
        "unused.weight": "its Linear is not called",
        "unused.bias": "its Linear is not called",
    }


def test_a_layer_too_large_to_decompose_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ekfac, "LARGEST_SIDE", 5)
    model = built(lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 6)))
    why = "a Linear with a side of 6, above 5"
    assert fitted(model, labelled(images(4))).left_out == {"1.weight": why, "1.bias": why}


def test_no_layer_with_factors_is_refused() -> None:
    model = built(CASES["batch norm"][0])
    gradients = PerExampleGradients(model, task=TrueTargets(), parameters=["1.*", "0.bias"])
    with pytest.raises(
        InputError, match=r"needs linear layers or convolutions.*0\.bias: its layer's weight is left out"
    ):
        ekfac_factors(gradients, labelled(images(2, 5, 5)))


def test_a_layer_that_the_outputs_do_not_depend_on_is_left_out() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aside, self.head = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            out: Tensor = self.head(x)
            return out

    found = fitted(built(Aside), labelled(images(4)))
    assert found.parameters == ("head.weight", "head.bias")
    assert found.left_out == dict.fromkeys(("aside.weight", "aside.bias"), "the outputs do not depend on it")


def test_examples_whose_gradients_are_not_finite_are_named() -> None:
    x = images(4)
    x[7, 2] = float("inf")
    with pytest.raises(NonFiniteError, match="of ids 7"):
        fitted(built(CASES["linear layers"][0]), labelled(x))


def test_a_frozen_bias_is_no_column() -> None:
    model = built(CASES["linear layers"][0])
    found = ekfac_factors(PerExampleGradients(model, task=TrueTargets(), parameters="*.weight"), labelled(images(4)))
    assert [layer.eigenvalues.shape for layer in found.layers.values()] == [(6, 4), (3, 6)]


# --- on disk -------------------------------------------------------------------------------------------------------


def test_factors_are_saved_and_loaded_whole(tmp_path: Path) -> None:
    found = fitted(built(CASES["batch norm"][0]), labelled(images(2, 5, 5)))
    found.save(tmp_path / "new" / "factors.safetensors")
    again = EKFACFactors.load(tmp_path / "new" / "factors.safetensors")
    assert (again.left_out, again.examples, list(again.layers)) == (found.left_out, 13, list(found.layers))
    for name, layer in found.layers.items():
        kept = again.layers[name]
        assert (kept.layout, kept.weight, kept.bias) == (layer.layout, layer.weight, layer.bias)
        assert all(torch.equal(getattr(kept, what), getattr(layer, what)) for what in ekfac.ARRAYS)
    (tmp_path / "new" / "factors.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptFileError):
        EKFACFactors.load(tmp_path / "new" / "factors.safetensors")


@dataclass(frozen=True)
class Stopping(Task):
    """Classification that is killed after so many chunks."""

    left: list[int] = field(default_factory=lambda: [1 << 30])

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return Classification().loss(outputs, batch)

    def pseudo_gradients(self, outputs: Any, batch: Any, generator: torch.Generator) -> Tensor:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise KeyboardInterrupt
        return Classification().pseudo_gradients(outputs, batch, generator)


@pytest.mark.parametrize("chunks", [2, 4, 7])
def test_a_killed_fit_goes_on_where_it_was_to_the_same_bits(
    chunks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ekfac, "SAVE_SECONDS", 0.0)
    model, data = built(CASES["linear layers"][0]), labelled(images(4))  # 4 chunks a pass
    truth = ekfac_factors(PerExampleGradients(model, task=Stopping(), batch=4), data)
    with pytest.raises(KeyboardInterrupt):
        ekfac_factors(PerExampleGradients(model, task=Stopping([chunks]), batch=4), data, folder=tmp_path)
    counting = Stopping([100])
    found = ekfac_factors(PerExampleGradients(model, task=counting, batch=4), data, folder=tmp_path)
    assert 100 - counting.left[0] == 8 - chunks
    assert [file.name for file in tmp_path.iterdir()] == ["factors.safetensors"]
    again = ekfac_factors(PerExampleGradients(model, task=Stopping([0]), batch=4), data, folder=tmp_path)
    for name, layer in truth.layers.items():
        for other in (found, again):
            assert all(torch.equal(getattr(other.layers[name], what), getattr(layer, what)) for what in ekfac.ARRAYS)


def test_sums_of_other_chunks_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ekfac, "SAVE_SECONDS", 0.0)
    model, data = built(CASES["linear layers"][0]), labelled(images(4))
    with pytest.raises(KeyboardInterrupt):
        ekfac_factors(PerExampleGradients(model, task=Stopping([3]), batch=4), data, folder=tmp_path)
    found = ekfac_factors(PerExampleGradients(model, task=Stopping(), batch=5), data, folder=tmp_path)
    truth = ekfac_factors(PerExampleGradients(model, task=Stopping(), batch=5), data)
    assert torch.equal(found.layers["2"].eigenvalues, truth.layers["2"].eigenvalues)


def test_a_damaged_file_is_set_aside_and_made_again(tmp_path: Path) -> None:
    model, data = built(CASES["linear layers"][0]), labelled(images(4))
    found = fitted(model, data, folder=tmp_path)
    for name in ("factors.safetensors", "unfinished.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="set aside"):
        again = fitted(model, data, folder=tmp_path)
    assert torch.equal(again.layers["0"].eigenvalues, found.layers["0"].eigenvalues)


# --- transformers, and kronfluence ---------------------------------------------------------------------------------


def tiny_gpt() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    ends = {"bos_token_id": None, "eos_token_id": None}
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 9}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends))


def tokens(rows: int = 24) -> Held:
    ids = torch.randint(0, 20, (rows, 8), generator=draw(1))
    mask = (torch.arange(8) < 5 + torch.arange(rows)[:, None] % 4).long()
    return Held({"input_ids": ids, "attention_mask": mask})


@transformers
def test_transposed_linear_layers_of_padded_sentences() -> None:
    model, data, task = built(tiny_gpt), tokens(), TrueTargets(CausalLM())
    found = fitted(model, data, task)
    assert len(found.layers) == 8
    assert found.left_out["transformer.wte.weight"] == "shared by several layers"
    for layer in found.layers.values():
        assert layer.layout == "transposed"
        whole_NOI = matrices(model, data, layer, task)
        brute = (layer.outputs.mT @ whole_NOI @ layer.inputs).square().mean(0)
        torch.testing.assert_close(layer.eigenvalues, brute, rtol=1e-6, atol=1e-12)
    seen = []
    attention = model.get_submodule("transformer.h.0.attn.c_attn")
    attention.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    CausalLM().outputs(model, data.whole)
    a = seen[-1][data.whole["attention_mask"].bool()].detach()  # padding is no input
    a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
    basis = found.layers["transformer.h.0.attn.c_attn"].inputs
    diagonal = basis.mT @ (a.mT @ a) @ basis
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-9)


def as_linear(model: nn.Module) -> nn.Module:
    """The same model with linear layers in the place of transformers' ``Conv1D``, which kronfluence does not know."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "Conv1D":
                weight, bias = (each.detach() for each in child.parameters())
                made = nn.Linear(*weight.shape).double()
                made.load_state_dict({"weight": weight.mT.clone(), "bias": bias.clone()})
                setattr(module, name, made)
    return model


def kronfluence_scores(
    model: nn.Module, task: Task, train: Held, queries: Held, layers: list[str], share: float, folder: Path
) -> Tensor:
    """Kronfluence's scores (N, Q) with true labels and float64 throughout, turned to ours: positive = helps."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task as KronfluenceTask

    class Theirs(KronfluenceTask):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return task.loss(task.outputs(model, batch), batch).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return task.measure(task.outputs(model, batch), batch).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return layers

        def get_attention_mask(self, batch: Any) -> Tensor | None:
            return batch["attention_mask"] if isinstance(batch, dict) else None

    @dataclass
    class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
        held: Held

        def __len__(self) -> int:
            return len(self.held)

        def __getitem__(self, row: int) -> Any:
            one = rows_of(self.held.whole, slice(row, row + 1))
            return {k: v[0] for k, v in one.items()} if isinstance(one, dict) else tuple(part[0] for part in one)

    theirs, double = Theirs(), torch.float64
    analyzer = Analyzer("a", prepare_model(model, theirs), theirs, cpu=True, output_dir=str(folder), disable_tqdm=True)
    factors = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=True,
        activation_covariance_dtype=double,
        gradient_covariance_dtype=double,
        per_sample_gradient_dtype=double,
        lambda_dtype=double,
    )
    analyzer.fit_all_factors("f", Items(train), per_device_batch_size=8, factor_args=factors)
    scoring = ScoreArguments(
        damping_factor=None, per_sample_gradient_dtype=double, precondition_dtype=double, score_dtype=double
    )
    assert share == 0.1  # what its None stands for
    analyzer.compute_pairwise_scores(
        "s", "f", Items(queries), Items(train), 8, per_device_train_batch_size=8, score_args=scoring
    )
    found: Tensor = analyzer.load_pairwise_scores("s")["all_modules"]
    return -found.mT


def cnn() -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(54, 3))


PEERS: dict[str, tuple[Callable[[], nn.Module], Task, Held]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        Classification(),
        labelled(images(4).repeat(3, 1)),
    ),
    "cnn": (cnn, Classification(), labelled(torch.randn(30, 1, 8, 8, generator=draw(2), dtype=torch.float64))),
    "gpt": (tiny_gpt, CausalLM(), tokens(30)),
}


@transformers
@pytest.mark.skipif(importlib.util.find_spec("kronfluence") is None, reason="no kronfluence")
@pytest.mark.parametrize("name", PEERS)
def test_scores_rank_as_those_of_kronfluence_at_equal_factors(name: str, tmp_path: Path) -> None:
    build, task, data = PEERS[name]
    model, queries = built(build), Held(rows_of(data.whole, slice(0, 6)))
    gradients = PerExampleGradients(model, task=TrueTargets(task))
    factors = ekfac_factors(gradients, data)
    own = PerExampleGradients(model, task=task, parameters=factors.parameters)
    ours = ekfac_scores(factors, own, data, queries, factors.dampings(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = kronfluence_scores(as_linear(built(build)), task, data, queries, list(factors.layers), 0.1, tmp_path)
    ranks = [spearmanr(ours[:, q], theirs[:, q]).statistic for q in range(6)]
    assert min(ranks) >= 0.99, ranks
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * float(ours.abs().max()))


def test_shares_of_the_mean_eigenvalue() -> None:
    found = fitted(built(CASES["linear layers"][0]), labelled(images(4)))
    first = found.layers["0"]
    assert found.dampings(0.1)["0"] == pytest.approx(0.1 * float(first.eigenvalues.mean()))
    dead = replace(found, layers={"0": replace(first, eigenvalues=torch.zeros_like(first.eigenvalues))})
    assert dead.dampings(0.1) == {"0": 1.0}
