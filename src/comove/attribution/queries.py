"""Which queries to attribute, where none are named."""

from __future__ import annotations

from comove.data import positions_of, spread_over_classes
from comove.trace import Trace
from comove.training.sources import BankSource

__all__ = ["choose_queries"]


def choose_queries(source: Trace | BankSource, count: int) -> list[int]:
    """Choose ``count`` recorded query ids, spread over the classes (the first of each, then the second, ...)."""
    ids, labels = source.explained_ids, source.query_labels
    if labels is not None:
        labels = labels[positions_of(ids, source.query_ids, "query ids")]
    return [int(id_) for id_ in spread_over_classes(ids, labels, count)]
