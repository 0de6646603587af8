"""Wrong labels in coresets, counted."""

from __future__ import annotations

import numpy as np
import pytest

from comove.coreset import Coreset, select
from comove.data import Splits
from comove.data.label_noise import flip_labels
from comove.errors import InputError
from comove.evaluation.coreset_curves.noise import noise_kept
from comove.training import Recipe, train


def test_kept_wrong_labels_are_counted_against_their_share() -> None:
    ones = np.ones(4, np.float32)
    coreset = Coreset(np.array([3, 9, 5, 7]), ones, ones, None, "m", 20)
    found = noise_kept(coreset, np.array([1, 3, 5, 7, 11]))
    assert (found.kept, found.share, found.expected, found.ratio) == (3, 0.75, 0.25, 3.0)


def test_methods_that_keep_the_hardest_collect_wrong_labels_and_cld_avoids_them(digits: Splits) -> None:
    noisy, flipped = flip_labels(digits, 0.2)
    run = train(noisy, "mlp", Recipe(epochs=10, batch_size=64, lr=0.05))
    ratios = {name: noise_kept(select(name, run, 0.2), flipped).ratio for name in ("cld", "el2n", "aum", "random")}
    assert ratios["cld"] < 0.5
    assert ratios["el2n"] > 2
    assert ratios["aum"] > 2
    assert 0.7 < ratios["random"] < 1.3


def test_bad_input_is_refused() -> None:
    ones = np.ones(2, np.float32)
    with pytest.raises(InputError, match="from 1 to 5 wrong labels, got 0"):
        noise_kept(Coreset(np.array([3, 9]), ones, ones, None, "m", 5), np.zeros(0, np.int64))
