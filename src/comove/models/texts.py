"""Small text classifiers on word tokens (B, L), where token 0 is padding and changes nothing.

Shape legend: B examples, L tokens, D width, H heads.
"""

from __future__ import annotations

import math
from itertools import starmap

import torch
from torch import Tensor, nn

from comove.checks import whole_number
from comove.errors import InputError

__all__ = ["EmbeddingBag", "TextTransformer", "embedding_bag", "text_transformer"]

PADDING = 0


def _mean(x_BLD: Tensor, tokens_BL: Tensor) -> Tensor:
    """(B, D), the mean over tokens that are no padding."""
    counts = (tokens_BL != PADDING).to(x_BLD.dtype)[..., None]
    return (x_BLD * counts).sum(-2) / counts.sum(-2).clamp_min(1)


class EmbeddingBag(nn.Module):
    """logits = W mean_t E[token_t] + b: the mean of the words' vectors, and one linear layer.

    Joulin et al., "Bag of tricks for efficient text classification", EACL 2017 (without their n-grams).
    """

    def __init__(self, vocabulary: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """(B, C) logits."""
        logits: Tensor = self.head(_mean(self.embedding(tokens_BL), tokens_BL))
        return logits


class _Attention(nn.Module):
    """Multi-head self-attention that padding is hidden from.

    Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, present_BL: Tensor) -> Tensor:
        size, length, width = x_BLD.shape
        parts = self.inputs(x_BLD).reshape(size, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        fit_BHLL = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        weights = fit_BHLL.masked_fill(~present_BL[:, None, None], -torch.inf).softmax(-1)
        mixed: Tensor = self.output((weights @ value).transpose(1, 2).reshape(size, length, width))
        return mixed


class _Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BLD: Tensor, present_BL: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.before_attention(x_BLD), present_BL)
        changed: Tensor = x_BLD + self.mlp(self.before_mlp(x_BLD))
        return changed


class TextTransformer(nn.Module):
    """Words' and positions' vectors, two blocks of attention and MLP, their mean over words, one linear layer."""

    def __init__(self, sizes: tuple[int, int], width: int, blocks: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        vocabulary, length = sizes
        layers, heads = blocks
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(starmap(_Block, [(width, heads)] * layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        for embedding in (self.embedding, self.position):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """(B, C) logits."""
        places_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
        x_BLD = self.embedding(tokens_BL) + self.position(places_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, tokens_BL != PADDING)
        logits: Tensor = self.head(_mean(self.norm(x_BLD), tokens_BL))
        return logits


def embedding_bag(*, num_classes: int, input_shape: tuple[int, ...], vocabulary: int, width: int = 64) -> nn.Module:
    """Build :class:`EmbeddingBag` for texts of ``input_shape = (L,)``.

    Raises:
        InputError: inputs that are no texts, a size that is no whole number.
    """
    _check(input_shape)
    return EmbeddingBag(_size(vocabulary, "vocabulary"), _size(width, "width"), num_classes)


def text_transformer(
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    vocabulary: int,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
) -> nn.Module:
    """Build :class:`TextTransformer` for texts of ``input_shape = (L,)``; errors as of :func:`embedding_bag`."""
    _check(input_shape)
    width, heads = _size(width, "width"), _size(heads, "heads")
    if width % heads:
        raise InputError(f"width must be a multiple of heads; got {width} and {heads}.")
    blocks = _size(layers, "layers"), heads
    return TextTransformer((_size(vocabulary, "vocabulary"), input_shape[0]), width, blocks, num_classes)


def _size(value: object, what: str) -> int:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return whole_number(whole, what, 1, error=InputError)


def _check(input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != 1:
        raise InputError(
            f"A text classifier reads tokens, input_shape (length,); got {input_shape}. Use 'mlp' or 'resnet9'."
        )
