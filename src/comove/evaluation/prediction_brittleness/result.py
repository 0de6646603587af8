"""The result of a brittleness measurement.

Shape suffixes: M methods and controls, Q queries, K numbers removed, R models per removed set, B voting models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.data import Ids, positions_of
from comove.display import NOTHING as NO_NUMBER
from comove.display import counted, fixed, html_table, span
from comove.errors import InputError, did_you_mean
from comove.evaluation.estimate import Estimate, mean_with_interval
from comove.evaluation.prediction_brittleness.flips import flip_rate
from comove.evaluation.prediction_brittleness.models import FullData
from comove.plots import Chart, Level, Series, Table, draw, is_wide, styled
from comove.store import understanding
from comove.store.results import freeze, load_result, save_result, write_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["NOTHING", "Brittleness"]

ARRAYS = ("predicted", "margins", "class_emptied", "query_ids", "query_labels")
HEADER = {"methods": list[str], "controls": list[str], "ks": list[int], "confidence": float, "info": dict}
NOTHING = "nothing removed"


@dataclass(frozen=True, eq=False, repr=False)
class Brittleness:
    """What models predict when examples have been removed; made by :func:`brittleness`.

    Attributes:
        methods: names of the methods, then of the controls.
        controls: those of them that are controls.
        ks: numbers of examples removed, ascending.
        predicted: (M, Q, K, R) classes predicted for each query by the models trained for it.
        margins: (M, Q, K, R) margins of the query's label by the same models, or another output, larger is better.
        full: models of all training examples: the voting ones, and those of k = 0.
        class_emptied: (M, Q, K) whether every example of the query's class was removed.
        query_ids: (Q,) int64.
        query_labels: (Q,) int64.
        confidence: level of the intervals.
        info: data, model, recipe and seed (JSON values).
    """

    methods: tuple[str, ...]
    controls: tuple[str, ...]
    ks: tuple[int, ...]
    predicted: npt.NDArray[np.int32]
    margins: npt.NDArray[np.float32]
    full: FullData
    class_emptied: npt.NDArray[np.bool_]
    query_ids: Ids
    query_labels: Ids
    confidence: float = 0.95
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze(self, {name: getattr(self, name) for name in ARRAYS})

    @property
    def prediction(self) -> Ids:
        """(Q,) the class that most of the voting models predict; ties to the smallest."""
        return self.full.prediction

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """(Q,) whether the prediction is wrong before anything is removed; such queries count like all others."""
        return np.asarray(self.prediction != self.query_labels)

    @property
    def flips_are(self) -> str:
        """``"classes"``: a flip is another class; ``"rule"``: what the user says; ``"none"``: no flip is known."""
        return str(self.info.get("flips", "classes"))

    @property
    def flips(self) -> npt.NDArray[np.bool_]:
        """(M, Q, K, R) whether the predicted class is another than the prediction."""
        return np.asarray(self.predicted != self.prediction[:, None, None])

    @property
    def noise(self) -> Estimate:
        """The flip rate at k = 0: of models of all training examples that have no vote."""
        flips_QR = (self.full.again != self.prediction).T
        return self._known(flip_rate)(flips_QR, shared_models=True, confidence=self.confidence)

    @property
    def noise_margin_drop(self) -> Estimate:
        """The margin drop at k = 0."""
        drops_QR = (self.full.voting_margins.mean(0) - self.full.again_margins).T
        return mean_with_interval(drops_QR, shared_models=True, confidence=self.confidence)

    def rate(self, method: str, k: int) -> Estimate:
        """The flip rate over queries and models; its interval resamples queries.

        Raises:
            InputError: an unknown method or k.
        """
        return self._known(flip_rate)(self._cell(self.flips, method, k), confidence=self.confidence)

    def margin_drop(self, method: str, k: int) -> Estimate:
        """How far the label's margin falls on average: that of the voting models, less that after removal.

        A continuous measure, so less noisy than flips.
        """
        drops_QR = self.full.voting_margins.mean(0)[:, None] - self._cell(self.margins, method, k)
        return mean_with_interval(drops_QR, confidence=self.confidence)

    def difference(self, method: str, other: str, k: int) -> Estimate:
        """The flip rate of ``method`` less that of ``other``, query by query; the interval is that of pairs."""
        rates = [self._cell(self.flips, name, k).mean(1, keepdims=True) for name in (method, other)]
        return self._known(mean_with_interval)(rates[0] - rates[1], confidence=self.confidence)

    def _known(self, estimate: Callable[..., Estimate]) -> Callable[..., Estimate]:
        """The estimate; of models from which no flip is known, one that is NaN."""
        return estimate if self.flips_are != "none" else lambda *_, **__: Estimate(math.nan, math.nan, math.nan)

    def only(self, query_ids: object) -> Brittleness:
        """The same for some of the queries, such as ``result.query_ids[~result.wrong]``."""
        q = positions_of(query_ids, self.query_ids, "query ids")
        full = FullData(**{f.name: getattr(self.full, f.name)[:, q] for f in fields(FullData)})
        parts = {name: getattr(self, name)[:, q] for name in ("predicted", "margins", "class_emptied")}
        return replace(self, **parts, full=full, query_ids=self.query_ids[q], query_labels=self.query_labels[q])

    def _cell(self, values_MQKR: npt.NDArray[Any], method: str, k: int) -> npt.NDArray[Any]:
        for name, value, known in (("method", method, self.methods), ("k", k, self.ks)):
            if value not in known:
                hint = did_you_mean(value, self.methods) if isinstance(value, str) else ""
                raise InputError(f"No {name} {value!r} here, only {', '.join(map(str, known))}.{hint}")
        return np.asarray(values_MQKR[self.methods.index(method), :, self.ks.index(k)])

    # --- telling ---

    def rows(self) -> list[dict[str, Any]]:
        """One row per method and k, after one for k = 0: rates and margin drops with their bounds (NaN if unknown)."""
        rows = [_row(NOTHING, 0, self.noise, self.noise_margin_drop, 0)]
        for m, method in enumerate(self.methods):
            for i, k in enumerate(self.ks):
                emptied = int(self.class_emptied[m, :, i].sum())
                rows.append(_row(method, k, self.rate(method, k), self.margin_drop(method, k), emptied))
        return rows

    def to_pandas(self) -> pd.DataFrame:
        """A data frame of :meth:`rows`."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`rows` as a table, atomically."""
        return write_table(path, self.to_pandas())

    def notes(self) -> list[str]:
        """What a reader of the rates should know, a sentence each."""
        number, seeds = len(self.query_ids), self.predicted.shape[-1]
        voting, again = len(self.full.voting), len(self.full.again)
        models = (
            f"{counted(seeds, 'model')} per removed set; of all examples {counted(voting, 'model')} for the "
            f"prediction, {again:,} for the noise of retraining."
        )
        wrong = f", {int(self.wrong.sum()):,} predicted wrongly before anything is removed"
        said = [f"{counted(number, 'query')}{wrong if self.flips_are == 'classes' else ''}; {models}"]
        if self.flips_are == "none":
            noise = self.noise_margin_drop.value
            said.append(f"No flip is known: the drop of the output counts, {noise:.4g} where nothing is removed.")
        emptied_MK = self.class_emptied.sum(1)
        for m, method in enumerate(self.methods):
            found = [(k, int(n)) for k, n in zip(self.ks, emptied_MK[m], strict=True) if n]
            cells = [f"k = {k:,} for {counted(n, 'query')}" for k, n in found]
            if cells:
                said.append(f"{method} removes every example of the query's class at {', '.join(cells)}.")
        return said

    def plot(self) -> Figure:
        """Draw the share of flipped predictions against the number removed (the paper's figure 8b), a line per method.

        Where no flip is known, the drop of the output is drawn. Controls are grey; the dashed black level, with its
        band, is that of nothing removed (k = 0). Hollow marks: for some query every example of its class was removed,
        so that its prediction must flip. Of a single k the flips are bars.
        """
        return draw(self.charts()[0])

    def charts(self) -> list[Chart]:
        """What :meth:`plot` and the report draw."""
        if len(self.ks) == 1:
            return self._bars()
        names = {name: f"{name} (control)" if name in self.controls else name for name in self.methods}
        flips = self.flips_are != "none"
        lines = {name: [(k, *self._drawn(name, k)) for k in self.ks] for name in self.methods}
        hollow = [
            (float(k), self._drawn(method, k).value)
            for method, emptied_QK in zip(self.methods, self.class_emptied, strict=True)
            for k, emptied_Q in zip(self.ks, emptied_QK.T, strict=True)
            if emptied_Q.any()
        ]
        noise, low, high = self._drawn()
        queries, models = counted(len(self.query_ids), "query"), counted(self.predicted.shape[-1], "model")
        scale = " (log scale)" if is_wide(self.ks) else ""
        chart = Chart(
            "lines",
            f"{'Predictions flipped' if flips else 'Outputs changed'} by removing what mattered most",
            f"training examples removed for each query, k{scale}",
            "predictions flipped (%)" if flips else "drop of the output",
            styled({names[name]: line for name, line in lines.items()}, [names[name] for name in self.controls]),
            self._table(),
            levels=[Level(f"{NOTHING} (k = 0)", noise, low, high)],
            caption=f"{queries}, {models} per removed set, {self.confidence:.0%} intervals over queries",
            log=is_wide(self.ks),
            limits=(0 if flips else None, None),
            hollow=hollow,
            hollow_name="hollow: a query's whole class is gone",
            notes=self.notes(),
        )
        return [chart]

    def _bars(self) -> list[Chart]:
        """Charts for a single k: one bar per method, for flips and for margin drops, which separate methods better."""
        (k,) = self.ks
        queries, models = counted(len(self.query_ids), "query"), counted(self.predicted.shape[-1], "model")
        caption = f"{queries}, {models} per removed set, {self.confidence:.0%} intervals over queries"
        drops = {name: self.margin_drop(name, k) for name in self.methods}
        flips = {name: self._drawn(name, k) for name in self.methods}
        rows = [[name, fixed(one.value, 2), span(one.low, one.high, 2)] for name, one in drops.items()]
        noise = self.noise_margin_drop
        drop = Table(
            ["method", "margin falls by", "interval"],
            [[NOTHING, fixed(noise.value, 2), span(noise.low, noise.high, 2)], *rows],
        )
        shown = [("Margin of the label", "fall of the label's margin", drops, noise, drop)]
        if self.flips_are != "none":
            shown.insert(0, ("Predictions flipped", "predictions flipped (%)", flips, self._drawn(), self._table()))
        return [
            Chart(
                "bars",
                f"{title}: {k:,} examples removed",
                f"{axis}, {counted(k, 'training example')} removed for each query",
                "",
                [Series(name, [(k, *one)], name in self.controls) for name, one in estimates.items()],
                table,
                levels=[Level(NOTHING, level.value)],
                caption=caption,
                zero=True,
                notes=self.notes(),
            )
            for title, axis, estimates, level, table in shown
        ]

    def _table(self) -> Table:
        digits = 1 if self.flips_are != "none" else 4
        drawn = "flipped (%)" if self.flips_are != "none" else "drop of the output"
        noise = self._drawn()
        rows = [[NOTHING, "0", fixed(noise.value, digits), span(noise.low, noise.high, digits), NO_NUMBER]]
        for row, emptied in zip(self.rows()[1:], self.class_emptied.sum(1).ravel(), strict=True):
            value, low, high = self._drawn(row["method"], row["k"])
            rows.append([row["method"], f"{row['k']:,}", fixed(value, digits), span(low, high, digits), f"{emptied:,}"])
        return Table(["method", "k", drawn, "interval", "queries whose class is gone"], rows)

    def _drawn(self, method: str = NOTHING, k: int = 0) -> Estimate:
        """What is drawn of a method: flips in percent, or the drop of the output where no flip is known."""
        if self.flips_are == "none":
            return self.noise_margin_drop if method == NOTHING else self.margin_drop(method, k)
        rate = self.noise if method == NOTHING else self.rate(method, k)
        return Estimate(*(100 * bound for bound in rate))

    def _repr_html_(self) -> str:
        names = ("method", "k", "flipped", "flipped_low", "flipped_high", "margin_drop")
        rows = [[row[name] for name in names] for row in self.rows()]
        title = f"Predictions of {counted(len(self.query_ids), 'query')} flipped by removals"
        return html_table(title, names, rows, most=40)

    def __repr__(self) -> str:
        flips = self.flips_are != "none"
        noise = f"{self.noise.value:.1%} flipped" if flips else f"output drops by {self.noise_margin_drop.value:.4g}"
        width = max(map(len, self.methods))
        head = " ".join([f"{'k =':<{width}}", *(f"{k:>6}" for k in self.ks)])

        def cell(name: str, k: int) -> str:
            return f"{self.rate(name, k).value:>6.1%}" if flips else f"{self.margin_drop(name, k).value:>6.3g}"

        lines = [" ".join([f"{name:<{width}}", *(cell(name, k) for k in self.ks)]) for name in self.methods]
        return "\n".join([f"Brittleness({counted(len(self.query_ids), 'query')}; {NOTHING}: {noise})", head, *lines])

    # --- keeping ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        arrays = {name: getattr(self, name) for name in ARRAYS} | self.full.to_arrays()
        save_result(path, "brittleness", arrays, {name: getattr(self, name) for name in HEADER})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Brittleness:
        """Read what :meth:`save` wrote.

        Raises:
            CorruptFileError: the file is missing, truncated or something else.
        """
        own, arrays = load_result(path, "brittleness", HEADER)
        with understanding(path):
            return cls(**own, **{name: arrays[name] for name in ARRAYS}, full=FullData.from_arrays(arrays))


def _row(method: str, k: int, rate: Estimate, drop: Estimate, emptied: int) -> dict[str, Any]:
    flipped = {"flipped": rate.value, "flipped_low": rate.low, "flipped_high": rate.high}
    margin = {"margin_drop": drop.value, "margin_drop_low": drop.low, "margin_drop_high": drop.high}
    return {"method": method, "k": k, **flipped, **margin, "class_emptied": emptied}
