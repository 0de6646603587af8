"""Traces made of given statistics, and of given features, for tests of what selectors compute from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comove.store import new_folder, write_manifest
from comove.trace import Row, Trace
from comove.trace.trace import FORMAT_VERSION, write_anchor, write_examples, write_row

JUNK = 7.0
"""What the row before training holds: no score may read it."""
QUERY_ID = 10_000


def _of_fields(*, labels: Any = None, ids: Any = None, epochs: Any = None, **fields: Any) -> Trace:
    arrays: dict[str, Any] = {}
    for field, values_TN in fields.items():
        values = np.asarray(values_TN)
        before = np.full((2 if field == "kd" else 1, values.shape[1]), JUNK)
        kind = np.uint8 if field == "correct" else np.float32
        arrays[f"train.{field}"] = np.concatenate([before, values]).astype(kind)
    rows, n = next(iter(arrays.values())).shape
    arrays.setdefault("train.loss", np.zeros((rows, n), np.float32))
    arrays["query.loss"] = np.zeros((rows, 1), np.float32)
    examples = {
        "train_ids": np.arange(n) if ids is None else np.array(ids),
        "query_ids": np.array([QUERY_ID]),
        "validation_ids": np.array([QUERY_ID]),
    }
    if labels is not None:
        examples["train_labels"] = np.array(labels)
    moments = range(rows) if epochs is None else (0, *epochs)
    recorded = [Row(index, index, float(epoch)) for index, epoch in enumerate(moments)]
    return Trace(examples=examples, rows=recorded, manifest={"mode": "given"}, folder=None, arrays=arrays)


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Trace]:
    """A function that makes a trace in memory of the statistics given, each (T, N) at epochs 1 to T.

    ``kd`` is (T - 1, N). Row 0 holds junk. ``epochs`` says when rows were recorded, where not after each epoch.
    """
    return _of_fields


def _of_features(
    folder: Path, features: Any, probabilities: Any, labels: Any, ids: Any, validation: Any, epoch: int
) -> Trace:
    sides = {"train": (features, probabilities, labels), "query": validation or (features, probabilities, labels)}
    examples: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    anchor: dict[str, Any] = {}
    for side, (h, p, y) in sides.items():
        examples[f"{side}_labels"] = np.asarray(y, np.int64)
        examples[f"{side}_ids"] = np.arange(len(h)) + (QUERY_ID if side == "query" else 0)
        rows[f"{side}.loss"] = np.zeros(len(h), np.float32)
        anchor[f"{side}.features"] = np.asarray(h, np.float32)
        anchor[f"{side}.probabilities"] = np.asarray(p, np.float32)
    if ids is not None:
        examples["train_ids"] = np.asarray(ids, np.int64)
    examples["validation_ids"] = examples["query_ids"].copy()
    for part in ("rows", "anchors"):
        new_folder(folder / part)
    manifest = {"mode": "sweep", "rows": 1, "id": "made up"}
    write_examples(folder, examples, manifest)
    write_anchor(folder, 0, anchor, manifest)
    write_row(folder, Row(0, 0, float(epoch), anchor=True), rows, manifest)
    write_manifest(folder, "trace", FORMAT_VERSION, manifest)
    return Trace.load(folder)


@pytest.fixture
def anchored(tmp_path: Path) -> Callable[..., Trace]:
    """A function that makes a trace of features (N, F), probabilities (N, C) and labels kept at one epoch (10).

    ``validation`` is such a triple too; without it the training examples stand in for it, under other ids.
    """
    made = iter(range(1000))

    def make(
        features: Any, probabilities: Any, labels: Any, ids: Any = None, *, validation: Any = None, epoch: int = 10
    ) -> Trace:
        return _of_features(tmp_path / f"{next(made)}", features, probabilities, labels, ids, validation, epoch)

    return make
