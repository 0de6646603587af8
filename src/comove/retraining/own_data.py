"""What a bank of an own training function is about: example sets, or ids alone, labels or none.

Shape legend: N train, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comove.checks import as_ids
from comove.data import ExampleSet, Splits
from comove.data.builtin import as_splits, reload_splits
from comove.errors import InputError
from comove.store import check_fingerprint, digest

__all__ = ["OwnData", "own_data", "own_queries"]


class OwnData(NamedTuple):
    """Ids and labels under the names used in a bank's file, and the manifest's description of the data."""

    examples: dict[str, npt.NDArray[Any]]
    description: dict[str, Any]
    classes: tuple[str, ...]
    queries: ExampleSet | None


def own_data(examples: object, queries: object) -> OwnData:
    """Read the data that :meth:`RetrainingBank.create` was called with.

    Args:
        examples: a data set's name, splits, an example set, or ids (N,).
        queries: an example set, or ids (Q,): of the query split where ``examples`` are splits, which has a default.

    Raises:
        InputError: no queries; ids that are unknown to the splits, repeated, or no whole numbers.
    """
    train: ExampleSet | npt.NDArray[np.int64]
    if isinstance(examples, str | Splits):
        splits = as_splits(examples)
        train, description, classes = splits.train, splits.describe(), splits.classes
        if not isinstance(queries, ExampleSet):
            queries = splits.query if queries is None else splits.query.subset(queries)
            return OwnData({**_side("train", train), **_side("query", queries)}, description, classes, queries)
    elif isinstance(examples, ExampleSet):
        train, classes = examples, examples.classes
        description = {"name": examples.name, "source": {}, "fingerprint": examples.fingerprint}
    else:
        ids = as_ids(examples, "ids of training examples")
        train, classes, description = ids, (), {"name": "ids", "source": {}, "fingerprint": digest(ids)}
    if queries is None:
        raise InputError("Pass the queries too: queries=, an ExampleSet or ids; splits have queries of their own.")
    if isinstance(queries, ExampleSet):
        description["queries"] = queries.fingerprint
        asked = _side("query", queries)
        return OwnData({**_side("train", train), **asked}, description, classes or queries.classes, queries)
    return OwnData({**_side("train", train), **_side("query", as_ids(queries, "queries"))}, description, classes, None)


def _side(name: str, given: ExampleSet | npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    if not isinstance(given, ExampleSet):
        if not given.size:
            raise InputError(f"A bank needs at least one {name} id.")
        return {f"{name}_ids": given}
    labels = {f"{name}_labels": given.labels} if given.labelled else {}
    return {f"{name}_ids": given.ids, **labels}


def own_queries(
    identity: Mapping[str, Any], dataset: Splits | ExampleSet | None, queries: ExampleSet | None, where: Path
) -> ExampleSet | None:
    """Return the queries of an opened bank as examples, where they are available.

    Raises:
        FingerprintError: not the queries that the bank was made with.
        InputError: splits or a set that lack some of them.
    """
    expected = identity["dataset"].get("queries")
    if queries is not None:
        if expected is not None:
            check_fingerprint("set of queries", found=expected, expected=queries.fingerprint, where=where)
        return queries.subset(identity["query_ids"])
    if expected is not None:  # a set that was passed beside the training examples
        return None
    splits = dataset
    if splits is None and identity["dataset"]["source"]:
        splits = reload_splits(identity["dataset"], where)
    return splits.query.subset(identity["query_ids"]) if isinstance(splits, Splits) else None
