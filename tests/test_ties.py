"""One rule for ties: a seeded hash of the id, the same wherever an example stands and whatever stands beside it."""

from __future__ import annotations

import numpy as np
import pytest

from comove.ties import highest, tie_keys, tie_order


def split_mix(id_: int, seed: int = 0) -> int:
    """SplitMix64's finaliser in whole numbers of Python, taken modulo 2^64 at every step."""
    z = (id_ + 0x9E3779B97F4A7C15 * (seed + 1)) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567890])
def test_keys_are_those_of_split_mix(seed: int) -> None:
    ids = [0, 1, 2, -1, 50_000, 2**63 - 1, -(2**63)]
    assert tie_keys(np.array(ids), seed).tolist() == [split_mix(id_, seed) for id_ in ids]


def test_the_published_first_output_of_split_mix_from_zero() -> None:
    assert tie_keys(np.array([0])).tolist() == [0xE220A8397B1DCDAF]  # SplitMix64 seeded with 0, first number


def test_no_two_ids_have_one_key_and_neighbours_are_far_apart() -> None:
    keys = tie_keys(np.arange(200_000))
    assert np.unique(keys).size == 200_000
    share_below = (keys < 2**63).mean()
    assert abs(share_below - 0.5) < 0.005
    assert abs(np.corrcoef(np.arange(200_000), tie_order(np.arange(200_000)))[0, 1]) < 0.01


def test_the_highest_are_those_of_a_sort_by_score_then_key_in_any_order() -> None:
    rng = np.random.default_rng(0)
    ids = rng.choice(10**6, 300, replace=False) - 500_000
    scores = rng.integers(0, 5, 300).astype(np.float32)
    expected = sorted(zip((-scores).tolist(), map(split_mix, ids.tolist()), ids.tolist(), strict=True))
    for k in (0, 1, 60, 299, 300, None):
        best = [id_ for _, _, id_ in expected[:k]]
        assert ids[highest(scores, ids, k)].tolist() == best
        order = rng.permutation(300)
        assert ids[order][highest(scores[order], ids[order], k)].tolist() == best


def test_two_zeros_are_equal_and_other_seeds_give_other_orders() -> None:
    ids = np.arange(40)
    zeros = np.where(ids % 2, 0.0, -0.0)
    assert highest(zeros, ids).tolist() == tie_order(ids).tolist()
    assert highest(zeros, ids, seed=1).tolist() != tie_order(ids).tolist()


def test_ids_that_run_class_by_class_keep_every_class() -> None:
    labels = np.repeat(np.arange(10), 100)
    for k in (100, 500):
        kept = np.bincount(labels[highest(np.zeros(1000), np.arange(1000), k)], minlength=10)
        assert kept.min() > k / 10 - 4 * np.sqrt(k / 10)  # four standard deviations of a uniform draw
        assert kept.max() < k / 10 + 4 * np.sqrt(k / 10)
