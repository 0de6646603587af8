"""Which examples are removed for which query.

A method removes the examples with the highest scores for a query. Two controls remove as many: random ones, and random
ones of the query's class (when that is used up, random others). A control's order depends on the seed and the query's
id only, so it is the same whichever methods it stands beside, and its first k examples are among its first k + 1.

Shape suffixes: N training examples, M methods and controls, Q queries, k examples removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from comove.attribution import Scores
from comove.checks import as_ids, check_seed, whole_number
from comove.data import ExampleSet, Ids, Splits
from comove.errors import InputError, some
from comove.ties import highest

__all__ = ["CONTROLS", "Removal", "check_k", "plan_removal", "warn_of_emptied_classes"]

CONTROLS = ("random removal", "same-class removal")


@dataclass(frozen=True)
class Removal:
    """In which order each method and control removes examples for each query.

    Attributes:
        names: of the M methods, then the controls.
        controls: those of the names that are controls.
        orders: (M, Q, max_k) ids, the first to go first.
        in_class: (M, Q, max_k) how many of the query's class are among the first k.
        class_sizes: (Q,) how many training examples the query's class has.
        query_ids: (Q,) int64.
        query_labels: (Q,) int64; 0 where the data has no labels, and all examples are one group.
    """

    names: tuple[str, ...]
    controls: tuple[str, ...]
    orders: Ids
    in_class: Ids
    class_sizes: Ids
    query_ids: Ids
    query_labels: Ids

    def empties_class(self, k: int) -> npt.NDArray[np.bool_]:
        """(M, Q) whether the first k are every example of the query's class."""
        return np.asarray((self.in_class[:, :, k - 1] == self.class_sizes) & (self.class_sizes > 0))


def check_k(k: int, n_train: int) -> None:
    """Check that k of N training examples can be removed.

    Raises:
        InputError: none, or fewer than two would stay.
    """
    if not 1 <= whole_number(k, "k", None) <= n_train - 2:
        raise InputError(
            f"k must be from 1 to N - 2 = {n_train - 2}, so that 2 of the {n_train} training examples stay; got {k}."
        )


def plan_removal(
    scores: Mapping[str, Scores], splits: Splits, max_k: int, *, queries: object, controls: bool, seed: int
) -> Removal:
    """Order the training examples of every query by every method, as far as ``max_k``.

    Args:
        scores: by name, each of all training examples.
        splits: the data.
        max_k: most examples removed.
        queries: ids; by default all that the first scores know.
        controls: whether random and same-class removal stand beside the methods.
        seed: of the controls.

    Raises:
        InputError: unknown queries, scores that lack examples or have the name of a control, a ``max_k`` that leaves
            fewer than two examples.
    """
    check_seed(seed, "brittleness")
    train = splits.train
    check_k(max_k, len(train))
    if set(scores) & set(CONTROLS):
        raise InputError(f"Scores must have other names than {' and '.join(CONTROLS)}, got {some(scores)}.")
    query_ids = next(iter(scores.values())).query_ids if queries is None else as_ids(queries, "queries")
    if not query_ids.size:
        raise InputError("At least one query is needed.")
    query = splits.query.subset(query_ids)
    orders: dict[str, Ids] = {}
    for name, item in scores.items():
        if item.train_ids.size != len(train):
            raise InputError(f"{name}: scores of {item.train_ids.size} examples, but {len(train)} are trained on.")
        matched = item.subset(train_ids=np.sort(train.ids), query_ids=query_ids)
        orders[name] = _highest(matched, max_k)
    labelled = train.labelled and query.labelled
    labels_N, labels_Q = (train.labels, query.labels) if labelled else (_one_group(train), _one_group(query))
    beside = (CONTROLS if labelled else CONTROLS[:1]) if controls else ()  # of one group, both would be the same
    if controls:
        pairs = zip(query_ids, labels_Q, strict=True)
        drawn = [_drawn(train.ids, labels_N, int(id_), int(label), max_k, seed) for id_, label in pairs]
        orders |= {name: np.stack([pair[i] for pair in drawn]) for i, name in enumerate(beside)}
    orders_MQk = np.stack(list(orders.values()))
    labels_MQk = labels_N[train.positions(orders_MQk.ravel())].reshape(orders_MQk.shape)
    return Removal(
        names=tuple(orders),
        controls=beside,
        orders=orders_MQk,
        in_class=(labels_MQk == labels_Q[:, None]).cumsum(axis=2),
        class_sizes=np.bincount(labels_N, minlength=len(splits.classes))[labels_Q],
        query_ids=query_ids,
        query_labels=labels_Q,
    )


def _highest(scores: Scores, count: int) -> Ids:
    """(Q, count) ids with the highest scores."""
    columns_QN = np.ascontiguousarray(scores.values.T)
    return scores.train_ids[np.stack([highest(column_N, scores.train_ids, count) for column_N in columns_QN])]


def _one_group(examples: ExampleSet) -> Ids:
    """Labels of examples that have none."""
    return np.zeros(len(examples), np.int64)


def _drawn(train_ids: Ids, train_labels: Ids, query: int, label: int, count: int, seed: int) -> tuple[Ids, Ids]:
    """The first ``count`` ids at random, and those of the class before all others."""
    by_id = np.argsort(train_ids)
    ids, labels = train_ids[by_id], train_labels[by_id]
    anyhow, within = np.random.default_rng([seed, 0xB217, int(np.int64(query).view(np.uint64))]).spawn(2)
    own, other = within.permutation(ids[labels == label]), within.permutation(ids[labels != label])
    return anyhow.permutation(ids)[:count], np.concatenate([own, other])[:count]


def warn_of_emptied_classes(removal: Removal, ks: Iterable[int]) -> None:
    """Warn, before anything is trained, where removal leaves no example of a query's class."""
    emptied = {
        name: k
        for k in sorted(ks, reverse=True)
        for name, hit in zip(removal.names, removal.empties_class(k), strict=True)
        if hit.any()
    }
    if emptied:
        summary = ", ".join(f"{name} from k = {k}" for name, k in emptied.items())
        warnings.warn(
            f"Removing leaves no training example of some query's class, so that its prediction must flip: {summary}.",
            stacklevel=3,
        )
