"""What an LDS benchmark found: every method at every sampling ratio and for every output, and their differences."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comove.discovery import lookup
from comove.display import html_table
from comove.errors import InputError
from comove.lds.charts import lds_figure
from comove.lds.difference import Difference, paired_difference
from comove.lds.score import LDS
from comove.retraining.bank import RetrainingBank
from comove.store import write_json
from comove.store.results import as_plain, write_table
from comove.training import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Benchmark"]

COLUMNS = (
    "method",
    "output",
    "alpha",
    "mean",
    "low",
    "high",
    "confidence",
    "noise_ceiling",
    "share_of_ceiling",
    "reliability",
    "undefined",
    "constant_predictions",
    "queries",
    "subsets",
    "seeds",
    "runs",
)

DIFFERENCE_COLUMNS = ("method", "other", "output", "alpha", "mean", "low", "high", "confidence", "better", "queries")


@dataclass(frozen=True, repr=False)
class Benchmark:
    """What an LDS benchmark found.

    Attributes:
        results: one LDS a method, output and alpha: alpha by alpha from the lowest on, output by output, and the
            methods in the order they were given.
        bank: the ground truth.
        runs: what the methods were fitted on.
        retrained: how many models of the banks were trained by this call.
        reused: how many were there.
        fit_bank: what the methods that are computed from a bank were fitted on, if there were any.
    """

    results: tuple[LDS, ...]
    bank: RetrainingBank
    runs: tuple[Run, ...]
    retrained: int = 0
    reused: int = 0
    fit_bank: RetrainingBank | None = None

    def __repr__(self) -> str:
        lines = [f"Benchmark of {len(self.methods)} methods, {len(self.runs)} runs each:"]
        return "\n  ".join([*lines, *map(str, self.results)])

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' labels."""
        return tuple(dict.fromkeys(str(result.method) for result in self.results))

    @property
    def outputs(self) -> tuple[str, ...]:
        """What was measured on the queries."""
        return tuple(dict.fromkeys(str(result.output) for result in self.results))

    @property
    def output(self) -> str:
        """The first of the outputs."""
        return self.outputs[0]

    @property
    def alphas(self) -> tuple[float, ...]:
        """The sampling ratios, ascending."""
        return tuple(dict.fromkeys(float(result.alpha or 0) for result in self.results))

    def at(self, alpha: float) -> tuple[LDS, ...]:
        """The results at one sampling ratio, output by output."""
        return tuple(result for result in self.results if result.alpha == alpha)

    def of(self, method: str, *, alpha: float | None = None, output: str | None = None) -> LDS:
        """One method's LDS.

        Args:
            method: its label.
            alpha: the sampling ratio; may be left out when there is only one.
            output: what was measured; by default the first output.

        Raises:
            InputError: there is none, or alpha must be said.
        """
        if alpha is None and len(self.alphas) > 1:
            raise InputError(f"Say which alpha: one of {', '.join(map(str, self.alphas))}.")
        key = (self.alphas[0] if alpha is None else alpha, self.output if output is None else output)
        here = {str(result.method): result for result in self.results if (result.alpha, result.output) == key}
        if not here:
            raise InputError(f"There is no LDS at alpha {key[0]} for {key[1]}: alphas {self.alphas}, {self.outputs}.")
        return lookup(method, here, "method")

    def compare(self, method: str, other: str) -> tuple[Difference, ...]:
        """By how much the LDS of one method exceeds another's: a paired difference for each alpha and output.

        Args:
            method: a label, such as ``"trak"``.
            other: the label of the method that is subtracted.

        Raises:
            InputError: an unknown method.
        """
        places = [(alpha, output) for alpha in self.alphas for output in self.outputs]
        return tuple(
            paired_difference(*(self.of(name, alpha=alpha, output=output) for name in (method, other)))
            for alpha, output in places
        )

    def differences(self) -> tuple[Difference, ...]:
        """The paired differences of every two methods, in the order of the methods."""
        return tuple(gap for pair in itertools.combinations(self.methods, 2) for gap in self.compare(*pair))

    def rows(self) -> list[dict[str, Any]]:
        """One JSON row per result."""
        return [
            {**result.to_json(), "share_of_ceiling": as_plain(result.share_of_ceiling), "runs": len(self.runs)}
            for result in self.results
        ]

    def to_pandas(self) -> pd.DataFrame:
        """A long data frame: one row per method, output and alpha, with the interval as ``low`` and ``high``."""
        import pandas as pd

        rows = [{**row, **_ends(row["interval"]), "queries": len(row["query_ids"])} for row in self.rows()]
        return pd.DataFrame([{name: row[name] for name in COLUMNS} for row in rows])

    def plot(self) -> Figure:
        """Draw every method's LDS: bars at one sampling ratio, lines over several."""
        return lds_figure(self.results)

    def _repr_html_(self) -> str:
        rows = [(str(r.method), r.output, r.alpha, r.mean, *(r.interval or (None, None))) for r in self.results]
        title = f"Linear datamodeling score of {len(self.methods)} methods, {len(self.runs)} runs each"
        return html_table(title, ["method", "output", "alpha", "mean", "low", "high"], rows)

    def save(self, folder: Path) -> None:
        """Write ``lds.csv`` and ``differences.csv`` (long tables), and ``lds.json`` with every query's LDS.

        Raises:
            StorageError: they cannot be written.
        """
        import pandas as pd

        gaps = [gap.to_json() for gap in self.differences()]
        table = [{**gap, **_ends(gap["interval"])} for gap in gaps]
        write_table(folder / "lds.csv", self.to_pandas())
        write_table(folder / "differences.csv", pd.DataFrame(table, columns=list(DIFFERENCE_COLUMNS)))
        banks = {"bank": self.bank, "fit_bank": self.fit_bank}
        manifests = {name: dict(bank.manifest) for name, bank in banks.items() if bank is not None}
        write_json(folder / "lds.json", {"results": self.rows(), "differences": gaps, **manifests})


def _ends(interval: list[float | None] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high}
