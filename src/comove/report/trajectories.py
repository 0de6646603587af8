"""Losses along training of everything the page shows, small enough for it.

    stored = round(65535 (ln loss - ln low) / (ln high - ln low))

Sixteen bits on a logarithmic scale keep a loss to 0.02 %. Losses below 1e-6 nats are shown as that.

Shape suffixes: T rows shown, P examples (queries, then training examples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.data import Ids, positions_of
from comove.trace import Trace

__all__ = ["LOWEST", "Trajectories", "trajectories_of"]

LOWEST = 1e-6
MOST_ROWS, FEWEST_ROWS = 64, 8
STEPS = 65535


@dataclass(frozen=True)
class Trajectories:
    """Losses of P examples at T of the recorded rows.

    Attributes:
        epochs: (T,) of the rows shown.
        recorded: how many rows the trace has.
        stored: (P, T) uint16.
        low: the loss of 0.
        high: the loss of 65535.
    """

    epochs: tuple[float, ...]
    recorded: int
    stored: npt.NDArray[np.uint16]
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers."""
        return {"epochs": list(self.epochs), "recorded": self.recorded, "low": self.low, "high": self.high}


def trajectories_of(trace: Trace, query_ids: Ids, train_ids: Ids, room: int) -> Trajectories:
    """Read the losses of these examples.

    Args:
        trace: of one run.
        query_ids: first.
        train_ids: after them.
        room: bytes to stay within; rows are left out, evenly, as far as it takes (at least 8 stay).
    """
    total = len(trace.rows)
    count = max(1, query_ids.size + train_ids.size)
    shown = min(total, max(FEWEST_ROWS, min(MOST_ROWS, room // (2 * count))))
    rows = np.unique(np.linspace(0, total - 1, shown).round().astype(np.int64))
    sides: list[tuple[Any, npt.NDArray[np.int64]]] = [
        ("query", positions_of(query_ids, trace.query_ids, "query ids")),
        ("train", positions_of(train_ids, trace.train_ids, "train ids")),
    ]
    losses_PT = np.empty((count, rows.size), np.float32)
    for t, row in enumerate(rows.tolist()):  # a row at a time: the trace may be larger than memory
        values = [trace.read(side, rows=[row])[0][places] for side, places in sides]
        losses_PT[:, t] = np.maximum(np.concatenate(values), LOWEST)
    low, high = float(losses_PT.min()), float(losses_PT.max())
    span = np.log(high / low) if high > low else 1.0
    stored = np.round(STEPS * np.log(losses_PT / low) / span).clip(0, STEPS).astype(np.uint16)
    return Trajectories(tuple(trace.rows[row].epoch for row in rows), total, stored, low, high)
