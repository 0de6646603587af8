"""Losses of language models, one an example.

For causal models: loss_i = mean over t with y_{i,t+1} kept of -ln softmax(z_{i,t})[y_{i,t+1}], in nats per token.
An example's loss must not depend on what it was batched with, so padding never counts.

Shape legend: B examples, S tokens, V words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from comove.errors import InputError

__all__ = ["IGNORED", "token_loss"]

IGNORED = -100
"""The label of a token that is not predicted, as in transformers."""


def token_loss(
    logits_BSV: torch.Tensor, labels_BS: torch.Tensor, *, shift: bool, attention_BS: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (B,) float32 mean losses per token.

    Args:
        logits_BSV: of any float type; taken to float32 one example at a time.
        labels_BS: token indices; :data:`IGNORED` where none is predicted.
        shift: whether position t predicts the label of t + 1 (causal models) or its own.
        attention_BS: 0 at padding, which is left out even where its label is not :data:`IGNORED`; masks of other
            shapes say nothing about padding.

    Raises:
        InputError: shapes that do not fit, or an example with no token to predict.
    """
    if logits_BSV.ndim != 3 or labels_BS.shape != logits_BSV.shape[:2]:
        raise InputError(
            f"logits must be (B, S, V) and labels (B, S), got {tuple(logits_BSV.shape)} and {tuple(labels_BS.shape)}."
        )
    labels_BS = labels_BS.to(logits_BSV.device)
    padding_BS = torch.zeros_like(labels_BS, dtype=torch.bool)
    if attention_BS is not None and attention_BS.shape == labels_BS.shape:
        padding_BS = attention_BS.to(labels_BS.device) == 0
    labels_BS = labels_BS.masked_fill(padding_BS, IGNORED)
    if shift:
        # Padding on the left predicts the first word, which nothing predicts where the example stands alone.
        logits_BSV, labels_BS = logits_BSV[:, :-1], labels_BS[:, 1:].masked_fill(padding_BS[:, :-1], IGNORED)
    kept_B = (labels_BS != IGNORED).sum(1)
    if bool((kept_B == 0).any()):
        raise InputError(
            f"An example needs a token to predict: {int((kept_B == 0).sum())} of {len(kept_B)} in the batch have none "
            f"(every label is {IGNORED} or padding, or there is only one token). Leave these examples out."
        )
    sums = [  # one by one: a float32 copy of all logits may not fit
        F.cross_entropy(logits.detach().float(), labels, reduction="sum", ignore_index=IGNORED)
        for logits, labels in zip(logits_BSV, labels_BS, strict=True)
    ]
    return torch.stack(sums) / kept_B
