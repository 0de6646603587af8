"""The result of a search for counterfactual sizes.

Shape suffixes: M methods and controls, Q queries, G sizes of the grid, R models per removed set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.data import Ids
from comove.display import counted, fixed, span
from comove.errors import InputError, did_you_mean
from comove.evaluation.estimate import Estimate
from comove.evaluation.prediction_brittleness.flips import flip_rate, majority
from comove.evaluation.prediction_brittleness.models import FullData
from comove.plots import Chart, Level, Table, draw, is_wide, styled
from comove.store import understanding
from comove.store.results import freeze, load_result, save_result, write_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["FLIPPED", "HELD", "UNTRIED", "Counterfactual"]

ARRAYS = ("grid", "tried", "audited", "query_ids", "query_labels")
HEADER = {"methods": list[str], "controls": list[str], "seeds": int, "confidence": float, "info": dict}
UNTRIED, HELD, FLIPPED = -1, 0, 1
NEVER = -1


@dataclass(frozen=True, eq=False, repr=False)
class Counterfactual:
    """The smallest removals that flip each query; made by :func:`counterfactual_sizes`.

    Attributes:
        methods: names of the methods, then of the controls.
        controls: those of them that are controls.
        grid: (G,) sizes that were tried, ascending; the last is the largest removal allowed.
        tried: (M, Q, G) int8, the bisection: 1 the majority flipped, 0 it held, -1 not asked.
        audited: (M, Q, G) int8 likewise, the sizes tried afterwards to check that flips are monotone in k.
        full: models of all training examples.
        seeds: R.
        query_ids: (Q,) int64.
        query_labels: (Q,) int64.
        confidence: level of the intervals.
        info: data, model, recipe and seed (JSON values).
    """

    methods: tuple[str, ...]
    controls: tuple[str, ...]
    grid: npt.NDArray[np.int64]
    tried: npt.NDArray[np.int8]
    audited: npt.NDArray[np.int8]
    full: FullData
    seeds: int
    query_ids: Ids
    query_labels: Ids
    confidence: float = 0.95
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze(self, {name: getattr(self, name) for name in ARRAYS})

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(M, Q) the smallest size that flipped; -1 where not even the largest did."""
        flipped_MQG = self.tried == FLIPPED
        return np.where(flipped_MQG.any(2), self.grid[flipped_MQG.argmax(2)], NEVER)

    @property
    def not_flipped(self) -> dict[str, int]:
        """How many queries each method did not flip within the largest size."""
        return dict(zip(self.methods, (self.sizes == NEVER).sum(1).tolist(), strict=True))

    @property
    def contradictions(self) -> tuple[int, int]:
        """How many audited sizes contradict that flips are monotone in k, and how many were audited."""
        sizes_MQ1 = self.sizes[..., None]
        expected_MQG = (sizes_MQ1 != NEVER) & (self.grid >= sizes_MQ1)
        asked_MQG = self.audited != UNTRIED
        wrong_MQG = asked_MQG & ((self.audited == FLIPPED) != expected_MQG)
        return int(wrong_MQG.sum()), int(asked_MQG.sum())

    @property
    def noise(self) -> float:
        """The share of queries that R models of all training examples flip: what k = 0 does."""
        return float((majority(self.full.again[: self.seeds]) != self.full.prediction).mean())

    def share(self, method: str, k: int) -> Estimate:
        """The share of queries flipped by at most k removals, with an interval over queries.

        Raises:
            InputError: an unknown method.
        """
        sizes_Q = self._sizes_of(method)
        return flip_rate(((sizes_Q != NEVER) & (sizes_Q <= k))[:, None], confidence=self.confidence)

    def median(self, method: str) -> float:
        """The size that flips half of the queries; infinite if the largest does not."""
        sizes_Q = self._sizes_of(method).astype(np.float64)
        sizes_Q[sizes_Q == NEVER] = np.inf
        return float(np.sort(sizes_Q)[(len(sizes_Q) - 1) // 2])

    def median_text(self, method: str) -> str:
        """The median for tables: ``> 200`` where less than half of the queries flip within 200."""
        size = self.median(method)
        return f"{size:,.0f}" if size < np.inf else f"> {self.grid[-1]:,}"

    def _sizes_of(self, method: str) -> npt.NDArray[np.int64]:
        if method not in self.methods:
            raise InputError(
                f"No method {method!r} here, only {', '.join(self.methods)}.{did_you_mean(method, self.methods)}"
            )
        return np.asarray(self.sizes[self.methods.index(method)])

    # --- telling ---

    def rows(self) -> list[dict[str, Any]]:
        """One row per method and size of the grid: the share of queries flipped by it, with its bounds."""
        cells = [(name, int(k), self.share(name, int(k))) for name in self.methods for k in self.grid]
        return [{"method": name, "k": k, "flipped": s.value, "low": s.low, "high": s.high} for name, k, s in cells]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row per query and one column per method: sizes, missing where not flipped."""
        import pandas as pd

        sizes_QM = pd.DataFrame(self.sizes.T, index=pd.Index(self.query_ids, name="query_id"), columns=self.methods)
        return sizes_QM.astype("Int64").replace(NEVER, pd.NA)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`rows` as a table, atomically."""
        import pandas as pd

        return write_table(path, pd.DataFrame(self.rows()))

    def notes(self) -> list[str]:
        """What a reader of the sizes should know, a sentence each."""
        wrong, asked = self.contradictions
        assumed = "Sizes are looked for by bisection, which takes for granted that more removals flip what fewer flip"
        noise = f"Without any removal, {self.noise:.1%} of the {counted(len(self.query_ids), 'query')} flip"
        return [
            f"{assumed}: of {asked:,} other sizes tried, {wrong:,} contradict that.",
            f"{noise} when {counted(self.seeds, 'model')} per set are trained again.",
        ]

    def plot(self) -> Figure:
        """Draw the share of queries whose prediction at most k removals flip, a stair per method.

        Controls are grey; the dashed black level is what merely training again flips. What a stair lacks of 100 % on
        the right was not flipped within the largest removal.
        """
        return draw(*self.charts())

    def charts(self) -> list[Chart]:
        """What :meth:`plot` and the report draw."""
        grid = self.grid.tolist()
        names = {name: f"{name} (control)" if name in self.controls else name for name in self.methods}
        lines = {names[name]: [(k, *(100 * v for v in self.share(name, k))) for k in grid] for name in self.methods}
        wrong, asked = self.contradictions
        size = f"{counted(len(self.query_ids), 'query')}, majority of {counted(self.seeds, 'model')} per removed set"
        scale = " (log scale)" if is_wide(grid) else ""
        chart = Chart(
            "steps",
            "Smallest removal that flips a prediction",
            f"budget: training examples removed for each query, k{scale}",
            "queries flipped within the budget (%)",
            styled(lines, [names[name] for name in self.controls]),
            self._table(),
            levels=[Level("nothing removed (k = 0)", 100 * self.noise)],
            caption=f"{size}; bisection, which {wrong:,} of {asked:,} checks contradict",
            log=is_wide(grid),
            limits=(0, 100),
            notes=self.notes(),
        )
        return [chart]

    def _table(self) -> Table:
        largest = int(self.grid[-1])
        rows = []
        for name, missed in self.not_flipped.items():
            value, low, high = (100 * bound for bound in self.share(name, largest))
            rows.append([name, self.median_text(name), fixed(value, 1), span(low, high, 1), f"{missed:,}"])
        return Table(["method", "half flip by k =", f"flipped by {largest:,} (%)", "interval", "not flipped"], rows)

    def __repr__(self) -> str:
        width = max(map(len, self.methods))
        lines = [
            f"{name:<{width}}  half by k = {self.median_text(name)}, {missed:,} not within {self.grid[-1]:,}"
            for name, missed in self.not_flipped.items()
        ]
        size = f"{counted(len(self.query_ids), 'query')}, {counted(self.seeds, 'model')} per removed set"
        return "\n".join([f"Counterfactual({size})", *lines])

    # --- keeping ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        arrays = {name: getattr(self, name) for name in ARRAYS} | self.full.to_arrays()
        save_result(path, "counterfactual", arrays, {name: getattr(self, name) for name in HEADER})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Counterfactual:
        """Read what :meth:`save` wrote.

        Raises:
            CorruptFileError: the file is missing, truncated or something else.
        """
        own, arrays = load_result(path, "counterfactual", HEADER)
        with understanding(path):
            return cls(**own, **{name: arrays[name] for name in ARRAYS}, full=FullData.from_arrays(arrays))
