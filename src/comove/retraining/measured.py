"""Logits and outputs of a bank's models as one array.

Shape legend: C subsets, R seeds, Q queries, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from comove.errors import some
from comove.retraining.contents import Arrays, LogitsOf
from comove.retraining.files import Key, Results
from comove.retraining.model_index import Rows

__all__ = ["all_logits", "all_outputs"]


def all_logits(rows: Rows, results: Results, contents: LogitsOf, path: Path) -> npt.NDArray[np.float32]:
    """(C, R, Q, K) float32; NaN where pending. ``path`` is for messages."""
    logits = np.full((len(rows), rows.n_seeds, *contents.shape), np.nan, np.float32)
    for places, one in _finished(rows, results, path):
        for place in places:
            logits[place] = one["logits"]
    return logits


def all_outputs(
    rows: Rows, results: Results, size: int, output: Callable[[Arrays], npt.NDArray[np.float64]], path: Path
) -> npt.NDArray[np.float64]:
    """(C, R, Q) of one output, ``size`` Q; NaN where pending. The result of one model at a time is held."""
    outputs = np.full((len(rows), rows.n_seeds, size), np.nan)
    for places, one in _finished(rows, results, path):
        values = output(one)
        for place in places:
            outputs[place] = values
    return outputs


def _finished(rows: Rows, results: Results, path: Path) -> Iterator[tuple[list[tuple[int, int]], Arrays]]:
    """Yield every finished model's places and result, each file read once; then say how many are damaged."""
    places_of: dict[Key, list[tuple[int, int]]] = {}
    for place, key in rows.keys().items():
        places_of.setdefault(key, []).append(place)
    missing = set()
    for key, places in places_of.items():
        one = results.arrays(key)
        if one is None:
            missing.add(key.file)
        else:
            yield places, one
    if missing and (damaged := sorted(missing & set(results.damaged()))):
        warnings.warn(
            f"{len(damaged)} results of {path} are damaged ({some(damaged, 3)}) and count as pending; run the bank "
            "again to have them set aside and trained again.",
            stacklevel=4,
        )
