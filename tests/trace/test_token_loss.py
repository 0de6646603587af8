"""The loss of a sentence is the mean of its own tokens' losses, whatever it is batched with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comove.errors import InputError
from comove.trace.token_loss import IGNORED, token_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 5, 4, generator=GENERATOR)
LABELS = torch.tensor([[0, 1, 2, 3, 0], [1, IGNORED, 2, 2, IGNORED], [3, 3, 1, 0, 2]])


@pytest.mark.parametrize("shift", [True, False])
def test_it_is_the_mean_over_kept_tokens_computed_one_by_one(shift: bool) -> None:
    expected = []
    for logits, labels in zip(LOGITS.double().numpy(), LABELS.numpy(), strict=True):
        terms = []
        for place, label in enumerate(labels):
            if label == IGNORED or (shift and place == 0):
                continue
            row = logits[place - shift]
            terms.append(np.log(np.exp(row).sum()) - row[label])
        expected.append(np.mean(terms))
    np.testing.assert_allclose(token_loss(LOGITS, LABELS, shift=shift), expected, rtol=1e-6)


def test_padding_left_or_right_and_its_labels_change_nothing() -> None:
    alone = token_loss(LOGITS, LABELS, shift=True)
    filler, word = torch.randn(3, 2, 4, generator=GENERATOR), torch.full((3, 2), 2)
    seen, unseen = torch.ones(3, 5, dtype=torch.long), torch.zeros(3, 2, dtype=torch.long)
    right = token_loss(
        torch.cat([LOGITS, filler], 1),
        torch.cat([LABELS, word], 1),
        shift=True,
        attention_BS=torch.cat([seen, unseen], 1),
    )
    torch.testing.assert_close(right, alone)
    left = token_loss(
        torch.cat([filler, LOGITS], 1),
        torch.cat([word, LABELS], 1),
        shift=True,
        attention_BS=torch.cat([unseen, seen], 1),
    )
    torch.testing.assert_close(left, alone)


def test_half_precision_logits_are_taken_to_float32_first() -> None:
    half = LOGITS.bfloat16()
    loss = token_loss(half, LABELS, shift=True)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, token_loss(half.float(), LABELS, shift=True), rtol=0, atol=0)


def test_a_sentence_with_nothing_to_predict_is_refused() -> None:
    labels = LABELS.clone()
    labels[1, 1:] = IGNORED
    with pytest.raises(InputError, match="1 of 3 in the batch have none"):
        token_loss(LOGITS, labels, shift=True)
    assert torch.isfinite(token_loss(LOGITS, labels, shift=False)).all()  # unshifted its first word is predicted


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels \(B, S\), got \(3, 5, 4\) and \(3, 4\)"):
        token_loss(LOGITS, LABELS[:, :4], shift=True)
