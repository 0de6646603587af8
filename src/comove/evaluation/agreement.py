"""How far attribution methods agree: the rank correlation of their scores, query by query.

Shape legend: M methods, N train, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.attribution.scores import SomeScores, named_scores
from comove.data import positions_of
from comove.display import html_table
from comove.errors import InputError
from comove.lds.score import spearman_columns
from comove.store.results import freeze

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """Rank correlations between the scores of methods; made by :func:`agreement`.

    Attributes:
        methods: M names.
        per_query: (M, M, Q) Spearman's correlation over training examples; NaN where a method's scores are constant.
        query_ids: (Q,) int64.
    """

    methods: tuple[str, ...]
    per_query: npt.NDArray[np.float64]
    query_ids: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        freeze(self, {"per_query": self.per_query, "query_ids": self.query_ids})

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """(M, M) mean over the queries where both are defined."""
        known = np.isfinite(self.per_query)
        sums = np.where(known, self.per_query, 0).sum(-1)
        means = np.full(sums.shape, np.nan)
        np.divide(sums, known.sum(-1), out=means, where=known.any(-1))
        return means

    def to_pandas(self) -> pd.DataFrame:
        """The means as a square table."""
        import pandas as pd

        return pd.DataFrame(self.mean, index=list(self.methods), columns=list(self.methods))

    def _repr_html_(self) -> str:
        rows: list[list[Any]] = [[name, *row] for name, row in zip(self.methods, self.mean.tolist(), strict=True)]
        return html_table("Agreement between methods (mean rank correlation per query)", ["", *self.methods], rows)

    def __repr__(self) -> str:
        return f"Agreement over {len(self.query_ids)} queries (mean rank correlation)\n{self.to_pandas().round(2)}"


def agreement(scores: SomeScores) -> Agreement:
    """Return how far the scores of several methods agree on the training examples and queries that all of them have.

    Args:
        scores: of two methods or more; a mapping names them.

    Raises:
        InputError: a single method, or scores with fewer than two training examples or no query in common.

    Example:
        >>> from comove import Scores
        >>> one = Scores.from_arrays([[1.0], [2.0], [3.0]], train_ids=[0, 1, 2], query_ids=[9], method="a")
        >>> two = Scores.from_arrays([[3.0], [2.0], [1.0]], train_ids=[0, 1, 2], query_ids=[9], method="b")
        >>> agreement([one, two]).mean.tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    named = named_scores(scores)
    if len(named) < 2:
        raise InputError("Agreement is between methods: give the scores of two or more.")
    first, *rest = named.values()
    train, query = first.train_ids, first.query_ids
    for other in rest:
        train, query = train[np.isin(train, other.train_ids)], query[np.isin(query, other.query_ids)]
    if train.size < 2 or not query.size:
        raise InputError(
            f"The scores have {train.size} training examples and {query.size} queries in common; at least 2 and 1 are "
            "needed."
        )
    values = [
        item.values[positions_of(train, item.train_ids)][:, positions_of(query, item.query_ids)]
        for item in named.values()
    ]
    found = np.ones((len(named), len(named), query.size))
    for a, b in combinations(range(len(named)), 2):
        found[a, b] = found[b, a] = spearman_columns(values[a], values[b])
    return Agreement(tuple(named), found, query)
