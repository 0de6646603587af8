"""Examples with stable ids, their splits, the data sets that come built in, tables of losses, and label noise."""

from comove.data.builtin import as_splits, load_dataset, reload_splits
from comove.data.examples import (
    ExampleSet,
    IdIndex,
    Ids,
    MapDataset,
    Normalization,
    Splits,
    largest_remainder,
    positions_of,
    split,
    stratified_sample,
)
from comove.data.spread import spread_over_classes

__all__ = [
    "ExampleSet",
    "IdIndex",
    "Ids",
    "MapDataset",
    "Normalization",
    "Splits",
    "as_splits",
    "largest_remainder",
    "load_dataset",
    "positions_of",
    "reload_splits",
    "split",
    "spread_over_classes",
    "stratified_sample",
]
