"""The text classifiers: padding changes nothing, they match torch's own layers, and every gradient path takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from comove.errors import InputError
from comove.models import TEXT_MODELS, build_model

TOKENS = torch.tensor([[2, 5, 3, 0, 0, 0], [4, 1, 0, 0, 0, 0], [6, 7, 8, 2, 3, 5]])


def made(name: str, length: int = 6, **options: Any) -> Any:
    return build_model(name, num_classes=3, input_shape=(length,), vocabulary=9, width=8, seed=1, **options).double()


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_padding_changes_nothing(name: str) -> None:
    model = made(name, 6)
    together = model(TOKENS)
    for row, size in enumerate((3, 2, 6)):
        torch.testing.assert_close(model(TOKENS[row : row + 1, :size])[0], together[row])
    before = model.embedding.weight.detach().clone()
    with torch.no_grad():
        model.embedding.weight[0] += 7
    torch.testing.assert_close(model(TOKENS), together)
    assert not torch.equal(before, model.embedding.weight)


def test_the_bag_is_torchs_own() -> None:
    model = made("embedding-bag")
    bag = nn.EmbeddingBag.from_pretrained(model.embedding.weight.detach(), mode="mean", padding_idx=0)
    expected = model.head(bag(TOKENS))
    torch.testing.assert_close(model(TOKENS), expected)


def test_a_block_is_torchs_own_encoder_layer() -> None:
    block: Any = made("text-transformer", heads=2).blocks[0]
    theirs: Any = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    pairs = {
        theirs.self_attn.in_proj_weight: block.attention.inputs.weight,
        theirs.self_attn.in_proj_bias: block.attention.inputs.bias,
        theirs.self_attn.out_proj.weight: block.attention.output.weight,
        theirs.self_attn.out_proj.bias: block.attention.output.bias,
        theirs.linear1.weight: block.mlp[0].weight,
        theirs.linear1.bias: block.mlp[0].bias,
        theirs.linear2.weight: block.mlp[2].weight,
        theirs.linear2.bias: block.mlp[2].bias,
    }
    with torch.no_grad():
        for mine, other in pairs.items():
            mine.copy_(other)
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = TOKENS == 0
    found, expected = block(x, ~padded), theirs(x, src_key_padding_mask=padded)
    torch.testing.assert_close(found[~padded], expected[~padded])


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_per_example_gradients_are_those_of_autograd(name: str) -> None:
    model, labels = made(name).eval(), torch.tensor([0, 2, 1])
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], tokens: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, values, (tokens[None],)), label[None])

    several = vmap(grad(loss), (None, 0, 0))(parameters, TOKENS, labels)
    for row in range(3):
        alone = torch.autograd.grad(loss(parameters, TOKENS[row], labels[row]), list(parameters.values()))
        for label, expected in zip(parameters, alone, strict=True):
            torch.testing.assert_close(several[label][row], expected)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_sizes_and_inputs_that_are_impossible_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"reads tokens, input_shape \(length,\); got \(3, 8, 8\)"):
        build_model(name, num_classes=2, input_shape=(3, 8, 8), vocabulary=5)
    with pytest.raises(InputError, match="width"):
        build_model(name, num_classes=2, input_shape=(4,), vocabulary=5, width=0)
    with pytest.raises(InputError, match="vocabulary"):
        build_model(name, num_classes=2, input_shape=(4,))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="multiple of heads; got 8 and 3"):
        made("text-transformer", heads=3)
