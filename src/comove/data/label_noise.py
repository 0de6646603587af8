"""Wrong labels put in on purpose, and known: the test of methods that should be robust to them, or find them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from comove.checks import check_seed
from comove.data.examples import CHANGES, Ids, Splits
from comove.errors import InputError

__all__ = ["flip_labels", "flipped_ids", "known_flips"]


def flipped_ids(train_ids: Ids, share: float, seed: int = 0) -> Ids:
    """Return the ids whose labels :func:`flip_labels` changes: round(share N) of them, uniformly, sorted.

    They depend on the set of ids and the seed alone, not on the order of the ids or on any label.

    Raises:
        InputError: a share outside [0, 1), a bad seed.
    """
    check_seed(seed, "flip_labels")
    if not 0 <= share < 1:
        raise InputError(f"The share of labels to flip must be in [0, 1), got {share}.")
    count = round(share * train_ids.size)
    generator = np.random.default_rng([seed, 0xF11B])
    return np.sort(generator.choice(np.sort(train_ids), count, replace=False))


def flip_labels(splits: Splits, share: float, seed: int = 0) -> tuple[Splits, Ids]:
    """Give a share of the training examples a wrong label, uniform among the other classes.

    Validation and query labels stay as they are.

    Args:
        splits: the data.
        share: of the training examples.
        seed: of the choice of examples and of their new labels.

    Returns:
        The splits with the noisy training labels, and the (sorted) ids that were changed.

    Raises:
        InputError: a share outside [0, 1), fewer than two classes.
    """
    train, classes = splits.train, len(splits.classes)
    if classes < 2:
        raise InputError("Labels can only be flipped where there are at least two classes.")
    changed = flipped_ids(train.ids, share, seed)
    steps = np.random.default_rng([seed, 0xF11C]).integers(1, classes, changed.size)
    labels = train.labels.copy()
    places = train.positions(changed)
    labels[places] = (labels[places] + steps) % classes
    again = bool(splits.source) and not set(CHANGES) & set(splits.source)  # these come after it on reloading
    source = {**splits.source, "flip_labels": share} if again else {}
    return replace(splits, train=train.with_labels(labels), source=source), changed


def known_flips(splits: Splits) -> Ids | None:
    """Return the ids whose labels were flipped when a built-in data set was loaded, ``None`` where none were.

    Examples that were dropped or relabelled since are no longer among them: what was relabelled counts as corrected.
    """
    source = splits.source
    share = source.get("flip_labels")
    if not share:
        return None
    dropped, fixed = (np.array(list(map(int, source.get(name, ()))), np.int64) for name in ("drop", "relabel"))
    flipped = flipped_ids(np.union1d(splits.train.ids, dropped), float(share), int(source["seed"]))
    return np.setdiff1d(flipped, np.concatenate([dropped, fixed]))
