"""How much a coreset method's choice depends on the seed of the run it reads, and on how much of the run it has seen.

The paper (appendix D.1) prints a mean absolute error between CLD scores of five seeds below 1e-5; that is a claim to
test, not a tolerance.

Shape legend: R runs, N train examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.coreset import ScoreSelector, Selector, selector
from comove.coreset.cld import CLDCoreset
from comove.errors import InputError
from comove.lds.score import spearman_columns
from comove.training.sources import SourceLike

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EarlyRows", "Stability", "agreement", "early_epochs", "stability"]


ONE_IS_ENOUGH, SEVERAL = 0.8, 0.4
"""Agreement beyond chance from which on a verdict recommends one run, or an average of several: our own thresholds."""


@dataclass(frozen=True)
class Stability:
    """How two runs that differ in their seed alone agree on a coreset, on average over all pairs of runs.

    Attributes:
        method: the coreset method.
        runs: R.
        budget: share kept.
        mean_absolute_error: between the scores of an example (``None`` where the method has none).
        spearman: rank correlation of the scores (``None`` likewise).
        overlap: share of one coreset that is in the other; ``budget`` itself by chance.
    """

    method: str
    runs: int
    budget: float
    mean_absolute_error: float | None
    spearman: float | None
    overlap: float

    @property
    def beyond_chance(self) -> float:
        """The overlap corrected for chance, (overlap - budget) / (1 - budget): 1 for the same examples, 0 by chance."""
        return 1.0 if self.budget >= 1 else (self.overlap - self.budget) / (1 - self.budget)

    @property
    def verdict(self) -> str:
        """How far one run can be relied on, in a sentence."""
        agreed = self.beyond_chance
        if agreed >= ONE_IS_ENOUGH:
            advice = "one run is enough"
        elif agreed >= SEVERAL:
            advice = "average the scores of several runs"
        else:
            advice = "a single run's choice is mostly due to its seed, so average as many runs as you can"
        how = f"two runs choose {self.overlap:.0%} of the same examples, {agreed:.0%} beyond chance"
        return f"{self.method} at {self.budget:.1%}: {how}; {advice}."

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class EarlyRows:
    """How the choice after the first epochs agrees with the choice after all of them.

    Attributes:
        rows: (epoch, Spearman correlation of the scores, share of the final coreset that is chosen) each.
        budget: share kept.
    """

    rows: tuple[tuple[int, float, float], ...]
    budget: float

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with columns epoch, spearman, overlap."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["epoch", "spearman", "overlap"])

    def epochs_needed(self, overlap: float = 0.9) -> int | None:
        """The first epoch from which on the coreset shares at least ``overlap`` of the final one."""
        late = [epoch for epoch, _, share in self.rows if share < overlap]
        after = [epoch for epoch, _, _ in self.rows if not late or epoch > max(late)]
        return min(after, default=None)

    @property
    def verdict(self) -> str:
        """How many epochs the choice needs, in a sentence."""
        needed, last = self.epochs_needed(), self.rows[-1][0]
        if needed is None or needed == last:
            return (
                f"CLD at {self.budget:.1%}: no fewer than {last} epochs, of those looked at, give 90 % of the choice."
            )
        return f"CLD at {self.budget:.1%}: {needed} of {last} epochs give 90 % of the choice after all of them."


def agreement(a_N: npt.NDArray[Any], b_N: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the mean absolute difference of two vectors of scores, and their rank correlation (NaN if constant)."""
    difference = float(np.abs(np.asarray(a_N, np.float64) - b_N).mean())
    return difference, float(spearman_columns(np.asarray(a_N)[:, None], np.asarray(b_N)[:, None])[0])


def stability(runs: Sequence[SourceLike], method: str | Selector = "cld", budget: float = 0.1) -> Stability:
    """Select with each run by itself, and compare all pairs (paper, appendix D.1).

    Args:
        runs: at least two, of the same training examples.
        method: a coreset method.
        budget: share kept.

    Raises:
        InputError: fewer than two runs, runs of different examples; as :func:`comove.coreset.select`.
    """
    if len(runs) < 2:
        raise InputError(f"Stability compares runs of several seeds; got {len(runs)}.")
    chosen = selector(method) if isinstance(method, str) else method
    coresets = [chosen.select(run, budget) for run in runs]
    scores = [chosen.scores(run) for run in runs] if isinstance(chosen, ScoreSelector) else []
    if len({coreset.n_candidates for coreset in coresets}) > 1:
        raise InputError("The runs to compare must have the same training examples.")
    pairs = [agreement(a, b) for a, b in combinations(scores, 2)]
    overlaps = [np.isin(a.ids, b.ids).mean() for a, b in combinations(coresets, 2)]
    return Stability(
        chosen.label,
        len(runs),
        budget,
        float(np.mean([error for error, _ in pairs])) if pairs else None,
        float(np.mean([rank for _, rank in pairs])) if pairs else None,
        float(np.mean(overlaps)),
    )


def early_epochs(
    run: SourceLike | Sequence[SourceLike], epochs: Sequence[int], budget: float = 0.1, method: CLDCoreset | None = None
) -> EarlyRows:
    """Select with CLD after the first epochs only, and compare with the choice after all of them.

    Args:
        run: one run, or several that are averaged.
        epochs: after how many epochs to look, each from 2 on (one difference has no correlation).
        budget: share kept.
        method: CLD with other options.

    Raises:
        InputError: no epoch, or one below 2; as :func:`comove.coreset.select`.
    """
    if not epochs or min(epochs) < 2:
        raise InputError(f"CLD needs at least 2 epochs; asked for {list(epochs) or 'none'}.")
    whole = method or CLDCoreset()
    final, final_scores = whole.select(run, budget), whole.scores(run)
    rows = []
    for epoch in sorted(set(epochs)):
        early = replace(whole, first=epoch)
        rank = agreement(early.scores(run), final_scores)[1]
        rows.append((epoch, rank, float(np.isin(final.ids, early.select(run, budget).ids).mean())))
    return EarlyRows(tuple(rows), budget)
