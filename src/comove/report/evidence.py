"""What else a report shows: measured results, with where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.coreset import Coreset
from comove.data import Ids
from comove.errors import InputError, InputTypeError
from comove.evaluation import LDS, Benchmark, Brittleness, Counterfactual, Curve
from comove.lds.charts import lds_charts
from comove.plots import Chart
from comove.report.provenance import Provenance, of_manifest
from comove.store import as_ids

__all__ = ["PAGES", "Evidence", "Suspects", "as_evidence", "by_page", "charts_of"]

PAGES: Mapping[str, tuple[str, str, str]] = {
    "lds": (
        "LDS",
        "Are the scores right?",
        (
            "Models were retrained on random subsets of the training data. The linear datamodeling score asks whether "
            "a method's summed scores rank those models as retraining did."
        ),
    ),
    "brittleness": (
        "Brittleness",
        "Does removing them change the prediction?",
        (
            "For each query the examples said to help it most were removed, models were trained again, and flipped "
            "predictions counted. A good method flips more than random removal and same-class removal."
        ),
    ),
    "curves": (
        "Coresets",
        "Which examples are worth keeping?",
        "What each method keeps, and how accurate models trained from scratch on it are on queries no method saw.",
    ),
}
"""Page -> its tab, its heading, and what it is about."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """Training examples that may be mislabelled, by one method, the most suspicious first.

    Attributes:
        method: its name.
        ids: (S,) int64, the most suspicious first.
        scores: (S,) what the method measured, in its own sign.
        suggested: (S,) the class each might rather have; -1 where nothing is suggested.
        known: (S,) whether the label is known to be wrong, where that is known.
        note: what high or low values mean, in a sentence.

    Raises:
        InputError: shapes that do not fit, repeated ids.
    """

    method: str
    ids: Ids
    scores: npt.NDArray[np.floating[Any]]
    suggested: Ids | None = None
    known: npt.NDArray[np.bool_] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        ids = as_ids(self.ids, "ids of suspects")
        arrays: dict[str, npt.NDArray[Any]] = {"ids": ids, "scores": np.asarray(self.scores, np.float32)}
        for name in ("suggested", "known"):
            if (given := getattr(self, name)) is not None:
                arrays[name] = np.asarray(given)
        for name, array in arrays.items():
            if array.shape != ids.shape:
                raise InputError(f"The {name} of {ids.size} suspects must have their number, got {array.shape}.")
            object.__setattr__(self, name, array)

    def first(self, count: int) -> Suspects:
        """The most suspicious ``count``."""
        return self._of(slice(count))

    def without(self, ids: Ids) -> Suspects:
        """All but these."""
        return self._of(~np.isin(self.ids, ids))

    def _of(self, chosen: slice | npt.NDArray[np.bool_]) -> Suspects:
        suggested = None if self.suggested is None else self.suggested[chosen]
        known = None if self.known is None else self.known[chosen]
        return replace(self, ids=self.ids[chosen], scores=self.scores[chosen], suggested=suggested, known=known)


Result = Sequence[LDS] | Brittleness | Counterfactual | Curve | Coreset | Sequence[Suspects]


@dataclass(frozen=True)
class Evidence:
    """A measured result to show, and where it comes from.

    Attributes:
        result: LDS of several methods, a brittleness or counterfactual result, a coreset curve, a coreset, or lists
            of suspects.
        provenance: how it was made.
        name: of the result among others of its kind, such as the model that a curve trained.
    """

    result: Result
    provenance: Provenance = field(default_factory=Provenance)
    name: str = ""


def as_evidence(given: Sequence[Any]) -> list[Evidence]:
    """Take results of several kinds; single LDS, and single lists of suspects, are gathered.

    Raises:
        InputTypeError: something a report has no page for.
    """
    found: list[Evidence] = []
    loose: dict[type, list[Any]] = {LDS: [], Suspects: []}
    for result in given:
        if isinstance(result, Evidence):
            found.append(result)
        elif isinstance(result, Benchmark):
            found.append(Evidence(result.results, of_manifest(result.bank.manifest)))
        elif isinstance(result, Brittleness | Counterfactual):
            found.append(Evidence(result, of_manifest(result.info)))
        elif isinstance(result, Curve):
            found.append(Evidence(result, of_manifest(result.provenance)))
        elif type(result) in loose:
            loose[type(result)].append(result)
        elif isinstance(result, Coreset):
            found.append(Evidence(result, of_manifest(result.info)))
        else:
            raise InputTypeError(
                "A report shows LDS, Benchmark, Brittleness, Counterfactual, Curve, Coreset and Suspects, or Evidence "
                f"of one of them; got {type(result).__name__}."
            )
    return found + [Evidence(tuple(several)) for several in loose.values() if several]


def charts_of(evidence: Evidence) -> list[Chart]:
    """What a report draws of a result."""
    result = evidence.result
    if isinstance(result, Curve):
        return result.charts(evidence.name)
    if isinstance(result, Brittleness | Counterfactual):
        return result.charts()
    assert isinstance(result, Sequence)
    return lds_charts([one for one in result if isinstance(one, LDS)])


def by_page(evidence: Sequence[Evidence]) -> Mapping[str, list[Evidence]]:
    """Evidence by the page it belongs to."""
    pages: dict[str, list[Evidence]] = {"lds": [], "brittleness": [], "curves": [], "coresets": [], "suspects": []}
    for one in evidence:
        if isinstance(one.result, Brittleness | Counterfactual):
            pages["brittleness"].append(one)
        elif isinstance(one.result, Curve):
            pages["curves"].append(one)
        elif isinstance(one.result, Coreset):
            pages["coresets"].append(one)
        elif all(isinstance(part, Suspects) for part in one.result):
            pages["suspects"].append(one)
        else:
            pages["lds"].append(one)
    return pages
