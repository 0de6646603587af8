"""A transformer of two layers for short texts, and a plain training loop for it: what a user's own code may look like.

Shape legend: B texts, T tokens, W width, H heads, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from comove.data import ExampleSet
from comove.tasks import Task

__all__ = ["Loop", "Transformer"]

Observer = Callable[[nn.Module, torch.optim.Optimizer, float], None]


class Block(nn.Module):
    """Attention, then a hidden layer of four times the width; each after a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTW: Tensor, hidden: Tensor) -> Tensor:
        """The block's output (B, T, W); ``hidden`` (B or 1, 1, 1 or T, T) says which tokens are not attended to."""
        size, length, width = x_BTW.shape
        parts = self.mixed(self.norm_1(x_BTW)).view(size, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        attention = (query / math.sqrt(key.shape[-1]) @ key.mT).masked_fill(hidden, -torch.inf).softmax(-1)
        x_BTW = x_BTW + self.attended((attention @ value).transpose(1, 2).reshape(size, length, width))
        out: Tensor = x_BTW + self.down(nn.functional.gelu(self.up(self.norm_2(x_BTW))))
        return out


class Transformer(nn.Module):
    """Two blocks over learnt token and position vectors.

    Args:
        tokens: how many there are.
        length: T at most.
        outputs: K.
        width: W.
        causal: logits of every token from those before it, (B, T, K); otherwise of the whole text from the mean over
            its tokens, (B, K), where token 0 is padding but for a
            text's first.
    """

    def __init__(self, tokens: int, length: int, outputs: int, width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(2))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, outputs)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of tokens (B, T)."""
        length = input_ids.shape[1]
        at = torch.arange(length, device=input_ids.device)
        present = (input_ids > 0) | (at == 0)
        hidden = (at > at[:, None])[None, None] if self.causal else ~present[:, None, None, :]
        x_BTW = self.tokens(input_ids) + self.places(at)
        for block in self.blocks:
            x_BTW = block(x_BTW, hidden)
        x_BTW = self.norm(x_BTW)
        if not self.causal:
            weight = present.to(x_BTW.dtype)[:, :, None]
            x_BTW = (x_BTW * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.out(x_BTW)
        return logits


@dataclass(frozen=True)
class Loop:
    """Training by AdamW: the rate rises over the first tenth of the steps, then falls to 0 along a cosine.

    Attributes:
        epochs: passes over the examples.
        batch: examples a step, about.
        rate: the largest.
        decay: AdamW's weight decay.
        noted: how often an epoch the observer is called.
    """

    epochs: int
    batch: int
    rate: float
    decay: float = 0.01
    noted: int = 2

    def rate_at(self, share: float) -> float:
        """The rate after a share of training."""
        return self.rate * (share / 0.1 if share < 0.1 else (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2)

    def train(
        self,
        build: Callable[[], nn.Module],
        examples: ExampleSet,
        task: Task,
        seed: int,
        observe: Observer | None = None,
    ) -> nn.Module:
        """Return a model trained on the examples; the seed decides its first weights and the order of the examples.

        Args:
            build: makes the untrained model, from torch's generator.
            examples: to train on.
            task: with the loss.
            seed: of both.
            observe: called with the model, its optimizer and the epochs done, before training and ``noted`` times an
                epoch.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build()
        order = np.random.default_rng(seed)
        count = max(1, round(len(examples) / self.batch))
        notes = {round(count * part / self.noted) for part in range(1, self.noted + 1)}
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=self.decay, fused=True)
        if observe is not None:
            observe(model, optimizer, 0.0)
        for epoch in range(self.epochs):
            for step, rows in enumerate(np.array_split(order.permutation(len(examples)), count), 1):
                rate = self.rate_at((epoch + step / count) / self.epochs)
                self.step(model, optimizer, examples.collated(rows), task, rate)
                if observe is not None and step in notes:
                    observe(model, optimizer, epoch + step / count)
        return model.eval()

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: object, task: Task, rate: float) -> None:
        """One step of the optimizer."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        task.loss(task.outputs(model, batch), batch).mean().backward()
        optimizer.step()
