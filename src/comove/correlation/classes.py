"""Class-balanced CLD: each training example against the mean query of its class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from comove.correlation.class_means import per_class_cpu
from comove.correlation.inputs import ArrayLike, Side, integers, sides
from comove.correlation.standardise import Plan, column_blocks, standardise
from comove.errors import InputError, some

__all__ = ["per_class"]


def per_class(
    train_losses: ArrayLike,
    train_labels: ArrayLike,
    query_losses: ArrayLike,
    query_labels: ArrayLike,
    *,
    train_ids: ArrayLike | None = None,
    query_ids: ArrayLike | None = None,
) -> Any:
    """Score each training example by its correlation with the mean query of its class (Algorithm 1, lines 7 to 16).

    The mean is taken over the loss differences of the queries (validation examples) of one class; an example that
    learns when its class is learned scores near 1. One pass over the losses, a block of columns at a time.

    Args:
        train_losses: (T+1, N) losses, row 0 before training; any real dtype; never changed.
        train_labels: (N,) integer classes.
        query_losses: (T+1, Q) losses recorded at the same moments.
        query_labels: (Q,) integer classes; every class of ``train_labels`` must occur.
        train_ids: (N,) integer ids, used to name an example in an error message.
        query_ids: (Q,) integer ids, likewise.

    Returns:
        (N,) float32 scores within [-1, 1], 0 where the example or the mean of its class does not vary; torch, on the
        same device, if the losses were torch.

    Raises:
        InputError: A training class without a query, labels of the wrong length, or losses as in :func:`pairwise`.
        InputTypeError: Labels that are not integers, or losses that are not real numbers.
        NonFiniteError: As in :func:`pairwise`.

    Reference: Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, Algorithm 1.

    Example:
        >>> train = [[2.0, 2.0, 1.0], [1.5, 1.9, 0.5], [1.2, 1.6, 0.5], [1.1, 1.1, 0.6]]
        >>> per_class(train, [7, 7, 7], [[2.0], [1.4], [1.0], [0.8]], [7]).round(2).tolist()  # doctest: +ELLIPSIS
        [1.0, -1.0, 0.93...]
    """
    train, query = sides(train_losses, query_losses, train_ids, query_ids)
    classes_C, query_codes = np.unique(integers(query_labels, "The query labels", query.columns), return_inverse=True)
    codes_N = _codes(integers(train_labels, "The train labels", train.columns), classes_C)
    mean_TC = _class_means(query, query_codes, len(classes_C))
    score = per_class_cpu if train.xp is np else _per_class_device
    return train.result(score(train, codes_N, mean_TC).clip(-1, 1))


def _codes(train_labels: Any, classes_C: Any) -> Any:
    """Position of each training label among the classes of the queries."""
    low, high = int(classes_C[0]), int(classes_C[-1])
    if high - low == len(classes_C) - 1 and low <= train_labels.min() and train_labels.max() <= high:
        return train_labels - low if low else train_labels  # numbered without gaps: the common case takes no search
    if high - low < 1 << 20:  # a table: several times faster than a search for each of a million labels
        table = np.zeros(high - low + 1, np.int64)
        table[classes_C - low] = np.arange(len(classes_C))
        codes_N = table.take(train_labels - low, mode="clip")
    else:
        codes_N = np.searchsorted(classes_C, train_labels).clip(max=len(classes_C) - 1)
    absent = np.unique(train_labels[classes_C[codes_N] != train_labels])
    if len(absent):
        raise InputError(
            f"Every training class must have at least one query, whose mean it is compared with; found none for the "
            f"class(es) {some(absent)}. Add queries of these classes, or leave out their training examples."
        )
    return codes_N


def _class_means(query: Side, codes_Q: Any, classes: int) -> Any:
    """Unit columns (T, C) of the mean loss differences of each class, the differences of the mean losses."""
    total_CR = query.zeros(classes, query.rows)
    codes = query.native(codes_Q)
    for at, block_RB in column_blocks(query):
        if query.xp is np:
            np.add.at(total_CR, codes[at], block_RB.T)
        else:
            total_CR.index_add_(0, codes[at], block_RB.T)
    count_C = query.native(np.bincount(codes_Q, minlength=classes))
    return standardise((total_CR / count_C[:, None]).T, Plan())[0]


def _per_class_device(train: Side, codes_N: Any, mean_TC: Any) -> Any:
    codes = train.native(codes_N)
    blocks = ((mean_TC[:, codes[at]], standardise(block_RB, Plan())[0]) for at, block_RB in column_blocks(train))
    return torch.cat([(mean_TB * unit_TB).sum(0) for mean_TB, unit_TB in blocks]).float()
