r"""score(m, q) = -Cov_w[l(z_m, w), f(z_q, w)], w drawn around the trained weights.   (Kreer et al., 2025)

CLD's covariance on another trajectory: not on the way to the trained weights, but around them. Where the loss is
quadratic the draws' covariance is (n_beta H + gamma I)^-1, and the scores are those of Gauss-Newton influence with
damping gamma / n_beta, estimated from losses alone.

Shape legend: D draws, N train, Q queries.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.attribution.base import Attributor, Queries
from comove.attribution.replay import check_queries, run_of
from comove.correlation import pairwise
from comove.data import ExampleSet, positions_of
from comove.store import digest
from comove.trace import Trace
from comove.training import Exploration, Run, explore
from comove.training.sources import Source

__all__ = ["BayesianInfluence", "bayesian_influence", "explored_folder"]


def bayesian_influence(train_losses_DN: Any, query_measures_DQ: Any) -> npt.NDArray[np.float32]:
    """Return -Cov[loss of m, measured output of q] (N, Q) over draws from anywhere.

    Args:
        train_losses_DN: losses of the training examples at D draws of the weights.
        query_measures_DQ: measured outputs of the queries at the same draws, larger is better.

    Raises:
        InputError: fewer than three draws, or other numbers of them on the two sides.
        NonFiniteError: a value that is NaN or infinite.

    Example:
        >>> losses = [[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]]
        >>> bayesian_influence(losses, [[0.0], [-1.0], [-2.0]]).round(3).tolist()
        [[1.0], [0.0]]
    """
    found: npt.NDArray[np.float32] = pairwise(
        np.asarray(train_losses_DN), -np.asarray(query_measures_DQ), correlation="covariance", of="values"
    )
    return found


def explored_folder(run: Run, how: Exploration, cache: str | os.PathLike[str]) -> Path:
    """Return the sub-folder of ``cache`` that holds this run's exploration."""
    return Path(cache) / digest({"run": run.manifest["fingerprint"], **asdict(how)})[:12]


@dataclass(frozen=True)
class BayesianInfluence(Attributor):
    """Covariance of losses around the trained weights (Kreer et al., "Bayesian Influence Functions", 2025).

    Each run's last checkpoint is explored by noisy gradient steps (:func:`comove.explore`), and nothing but losses is
    kept. No gradient of a single example, no Hessian and no solve; any model with a loss. What it costs is draws: the
    scores' error falls with the square root of their number. New queries are answered by making the same draws again.

    Args:
        chains: independent chains from the trained weights.
        steps: of each chain.
        every: steps between draws.
        batch_size: examples of a step's gradient.
        inverse_temperature: n_beta, what the mean loss is multiplied with.
        localization: gamma, the pull back to the trained weights; gamma / n_beta is the damping.
        step_size: of a step. A diverging chain is named, with a smaller one.
        seed: of batches and noise.
        cache: a folder to keep the draws in, one sub-folder a run: an interrupted exploration goes on there, and other
            fits read it; ``comove explore`` writes the same. ``None`` keeps them in a temporary folder.

    Reference:
        Kreer, Wu, Adam, Furman, Hoogland, "Bayesian Influence Functions for Hessian-Free Data Attribution",
        arXiv 2509.26544, 2025.
    """

    name: ClassVar[str] = "bayesian-influence"
    summary: ClassVar[str] = "covariance of losses at weights drawn around the trained ones; needs losses only"
    cost: ClassVar[str] = "chains x steps small batches, and an evaluation of all examples per draw"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    chains: int = 16
    steps: int = 1500
    every: int = 20
    batch_size: int = 32
    inverse_temperature: float = 100.0
    localization: float = 10.0
    step_size: float = 5e-4
    seed: int = 0
    cache: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        how = self.exploration
        for option in fields(how):
            object.__setattr__(self, option.name, getattr(how, option.name))
        if self.cache is not None:
            object.__setattr__(self, "cache", str(self.cache))

    @property
    def exploration(self) -> Exploration:
        """How weights are drawn.

        Raises:
            InputError: an option out of range.
        """
        return Exploration(**{option.name: getattr(self, option.name) for option in fields(Exploration)})

    def _fit(self, sources: tuple[Source, ...]) -> list[tuple[Source, Trace]]:
        return [(source, self._explored(run_of(source))) for source in sources]

    def _explored(self, run: Run) -> Trace:
        how = self.exploration
        return explore(run, None if self.cache is None else explored_folder(run, how, self.cache), how)

    def _redrawn(self, run: Run, examples: ExampleSet) -> Trace:
        """The same draws once more, for examples that were not among the queries."""
        check_queries(run, examples)
        return explore(run, how=self.exploration, queries=examples)

    def _scores(
        self, state: list[tuple[Source, Trace]], queries: Queries
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        total: npt.NDArray[np.float32] | None = None
        for source, recorded in state:
            trace = recorded if queries.examples is None else self._redrawn(run_of(source), queries.examples)
            columns = positions_of(queries.ids, trace.query_ids, "query ids")
            measures_DQ = np.asarray(trace.lazy("query", "measure")[:, columns])
            scores_NQ = pairwise(
                trace.lazy("train"),
                -measures_DQ,
                correlation="covariance",
                of="values",
                train_ids=trace.train_ids,
                query_ids=queries.ids,
            )
            total = scores_NQ if total is None else np.add(total, scores_NQ, out=total)
        assert total is not None
        return total / np.float32(len(state)), {"draws": len(state[0][1].rows)}

    def _self_influence(self, state: list[tuple[Source, Trace]]) -> npt.NDArray[np.float32]:
        """The variance of each training example's loss over the draws, the mean over runs."""
        variances = [trace.train_losses.astype(np.float64).var(0, ddof=1) for _, trace in state]
        values: npt.NDArray[np.float32] = np.mean(variances, 0).astype(np.float32)
        return values
