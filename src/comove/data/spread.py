"""Some of many examples, spread over the classes."""

from __future__ import annotations

import numpy as np

from comove.data.examples import Ids

__all__ = ["spread_over_classes"]


def spread_over_classes(ids: Ids, labels: Ids | None, most: int) -> Ids:
    """Return at most ``most`` of the ids: the first of each class, then the second of each, and so on.

    Without labels, all are of one class.

    >>> spread_over_classes(np.arange(5), np.array([0, 0, 0, 1, 1]), 3).tolist()
    [0, 3, 1]
    """
    own = np.zeros(ids.size, np.int64) if labels is None else labels
    turn = np.zeros(ids.size, np.int64)
    for label in np.unique(own):
        turn[own == label] = np.arange(int((own == label).sum()))
    return ids[np.lexsort((own, turn))[:most]]
