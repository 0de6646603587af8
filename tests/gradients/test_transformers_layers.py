"""Transformers by their own classes: per-sample rules are taken, and give what autograd gives one example at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comove.gradients.per_example import PerExampleGradients
from comove.tasks import CausalLM, Classification, SequenceClassification, Task

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=9, num_labels=3, **SMALL))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    ends = {"bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=9, **ends))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=2, max_position_embeddings=9, **SMALL))


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL))


def sentences(padded: bool) -> dict[str, Tensor]:
    ids = torch.randint(0, 20, (7, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        for row in range(7):
            mask[row, 8 - row :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(7) % 3}


def pictures(padded: bool) -> dict[str, Tensor]:
    x = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"pixel_values": x, "labels": torch.arange(7) % 3}


CASES: dict[str, tuple[Callable[[], Any], Task, Any]] = {
    "bert": (bert, SequenceClassification(), sentences),
    "gpt2": (gpt2, CausalLM(), sentences),
    "llama": (llama, CausalLM(), sentences),
    "vit": (vit, SequenceClassification(), pictures),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_rules_are_taken_and_equal_autograd(name: str, padded: bool) -> None:
    build, task, batches = CASES[name]
    torch.manual_seed(0)
    model = build().double().eval()
    batch = batches(padded)
    if isinstance(task, CausalLM):
        batch.pop("labels")
    before = [name for name, _ in model.named_parameters()]
    stream = PerExampleGradients(model, "loss", task=task)
    found = stream(batch)
    assert stream.paths.way == "per-sample rules", stream.paths
    assert [name for name, _ in model.named_parameters()] == before
    scale = max(float(gradient.abs().max()) for gradient in found.values())
    for row in range(7):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        value = task.loss(task.outputs(model, one), one).sum()
        true = torch.autograd.grad(value, list(stream.parameters.values()), allow_unused=True)
        for name, expected in zip(found, true, strict=True):
            wanted = torch.zeros_like(stream.parameters[name]) if expected is None else expected
            torch.testing.assert_close(found[name][row], wanted, rtol=1e-6, atol=1e-9 * scale)


def test_root_mean_square_norm_and_one_dimensional_convolutions_have_rules() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv1d(2, 4, 3), nn.RMSNorm(6), nn.Flatten(), nn.Linear(24, 3)]
    model = nn.Sequential(*layers).double().eval()
    x, labels = torch.randn(5, 2, 8, dtype=torch.float64), torch.arange(5) % 3
    stream = PerExampleGradients(model, task=Classification())
    found = stream(x, labels)
    assert stream.paths.way == "per-sample rules"
    loss = nn.functional.cross_entropy(model(x[2:3]), labels[2:3])
    for (name, parameter), true in zip(
        stream.parameters.items(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        assert parameter.shape == true.shape
        torch.testing.assert_close(found[name][2], true, rtol=1e-9, atol=1e-12)


def test_a_transposed_linear_layer_on_vectors_has_its_own_gradient() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(4, 3), nn.Tanh(), Conv1D(3, 4)).double().eval()
    x, labels = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3
    stream = PerExampleGradients(model, task=Classification())
    found = stream(x, labels)
    assert stream.paths.way == "per-sample rules"
    loss = nn.functional.cross_entropy(model(x[3:4]), labels[3:4])
    for name, true in zip(found, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(found[name][3], true)
