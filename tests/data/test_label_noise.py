"""Flipped labels: exactly so many, always wrong, known again from the ids alone, and nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest

from comove.data import Splits
from comove.data.builtin import load_dataset, reload_splits
from comove.data.label_noise import flip_labels, flipped_ids, known_flips
from comove.errors import InputError


def test_exactly_the_share_is_flipped_to_another_class_and_nothing_else(digits: Splits) -> None:
    noisy, changed = flip_labels(digits, 0.2, seed=3)
    differs = digits.train.labels != noisy.train.labels
    assert changed.size == 280
    np.testing.assert_array_equal(np.sort(digits.train.ids[differs]), changed)
    np.testing.assert_array_equal(noisy.query.labels, digits.query.labels)
    assert noisy.validation is digits.validation
    assert set(noisy.train.labels[differs].tolist()) == set(range(10))
    assert noisy.fingerprint != digits.fingerprint


def test_which_ids_are_flipped_does_not_depend_on_their_order(digits: Splits) -> None:
    shuffled = np.random.default_rng(0).permutation(digits.train.ids)
    np.testing.assert_array_equal(flipped_ids(shuffled, 0.1, 5), flipped_ids(digits.train.ids, 0.1, 5))
    assert not np.array_equal(flipped_ids(shuffled, 0.1, 6), flipped_ids(shuffled, 0.1, 5))


def test_a_noisy_data_set_is_loaded_again_by_its_name() -> None:
    noisy = load_dataset("digits", limit=100, queries=20, seed=2, flip_labels=0.25)
    again = reload_splits(noisy.describe(), "here")
    np.testing.assert_array_equal(again.train.labels, noisy.train.labels)
    clean = load_dataset("digits", limit=100, queries=20, seed=2)
    assert known_flips(clean) is None
    np.testing.assert_array_equal(known_flips(noisy), flipped_ids(noisy.train.ids, 0.25, 2))
    assert (clean.train.labels != noisy.train.labels).sum() == 25
    np.testing.assert_array_equal(
        noisy.train.ids[clean.train.labels != noisy.train.labels].tolist(),
        [id_ for id_ in noisy.train.ids.tolist() if id_ in set(flipped_ids(noisy.train.ids, 0.25, 2).tolist())],
    )


def test_bad_shares_are_refused(digits: Splits) -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"must be in \[0, 1\)"):
            flip_labels(digits, share)
