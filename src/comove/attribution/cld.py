r"""CLD(z_m, z_q) = Pearson(Delta_m, Delta_q), Delta_t = loss at row t - loss at row t-1.   (paper, eq. 64)

Two examples whose losses fall and rise at the same moments of training co-move: what the model learnt for one it
learnt for the other. Nothing but recorded losses is needed.

Shape legend: T+1 rows, N train, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from comove.attribution.base import Attributor, Queries
from comove.attribution.replay import check_queries
from comove.checks import check_number
from comove.correlation import constant, pairwise, whitened
from comove.data import ExampleSet, positions_of
from comove.discovery import check_choice
from comove.errors import InputError
from comove.trace import Trace, statistics
from comove.trace.evaluation_pass import clean_pass
from comove.trace.trace import check_losses
from comove.training import Resident, Run, evaluate, resolve_device
from comove.training.sources import Source

__all__ = ["CLD", "chosen_rows", "log_odds_of", "replay_losses"]

Rows = Literal["all", "epochs"]
BATCH = 128
"""Examples per forward pass of a replay."""
CHOICES = {
    "correlation": ("pearson", "spearman", "covariance"),
    "common_mode": ("keep", "remove"),
    "row_scaling": ("none", "rms"),
    "rows": get_args(Rows),
    "transform": ("none", "log-odds"),
}
SMALLEST_LOSS = 2.0**-24
"""Half the distance from 1 to the next smaller float32: a recorded loss below it says no more than this."""


def log_odds_of(losses: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return log p / (1 - p), p = exp(-loss), of losses of any shape: what gradient methods call the margin.

    Losses below 2^-24, which float32 cannot tell from 0, count as that.

    Raises:
        InputError: a negative loss, which is no -log of a probability.
    """
    if losses.size and losses.min() < -1e-4:
        raise InputError(
            f"transform='log-odds' reads losses as -log of a probability; {losses.min():.4g} is below 0. Leave it out."
        )
    clipped = np.maximum(losses.astype(np.float64), SMALLEST_LOSS)
    odds: npt.NDArray[np.float64] = -clipped - np.log(-np.expm1(-clipped))
    return odds


class _LogOdds:
    """Log odds (T+1, N) of losses read where they lie, a block of columns at a time."""

    ndim = 2
    dtype = np.dtype(np.float64)

    def __init__(self, losses: Any) -> None:
        self.losses = losses
        self.shape = tuple(losses.shape)

    def __getitem__(self, key: Any) -> npt.NDArray[np.float64]:
        return log_odds_of(np.asarray(self.losses[key]))


def chosen_rows(trace: Trace, rows: Rows) -> list[int]:
    """Return the indices of all recorded rows, or of those at the ends of epochs only (and before training)."""
    return [row.index for row in trace.rows if rows == "all" or row.epoch == int(row.epoch)]


def replay_losses(
    run: Run, examples: ExampleSet, device: str | torch.device = "auto"
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Evaluate every kept checkpoint of a run on new examples.

    Args:
        run: with checkpoints.
        examples: Q new examples of the run's classes and input shape.
        device: where to compute.

    Returns:
        (rows, Q) float32 losses, and the trace rows recorded at the same moments.

    Raises:
        InputError: fewer than three checkpoints with a recorded row, or inputs of another shape or number of classes.
        NonFiniteError: a loss is NaN or infinite.
    """
    check_queries(run, examples)
    kept = [checkpoint for checkpoint in run.checkpoints if checkpoint.row >= 0]
    if len(kept) < 3:
        raise InputError(
            f"Replaying new queries needs at least 3 checkpoints, {run.path} keeps {len(kept)}: train with "
            "checkpoints='all', or record these queries during training."
        )
    where = resolve_device(device)
    data = Resident(examples, where)
    losses_TQ = np.empty((len(kept), len(examples)), np.float32)
    for row_Q, checkpoint in zip(losses_TQ, kept, strict=True):
        model = run.load_model(checkpoint, where)
        if run.adopted is None:
            for positions, logits, labels in evaluate(model, data):
                row_Q[positions] = statistics(logits, labels)[0]["loss"].cpu().numpy()
            continue
        with clean_pass(model):
            for start in range(0, len(data), BATCH):
                batch = data.batch(slice(start, min(start + BATCH, len(data))))
                row_Q[start : start + BATCH] = (
                    run.task.loss(run.task.outputs(model, batch), batch).float().cpu().numpy()
                )
    check_losses(losses_TQ, examples.ids, "query")
    return losses_TQ, [checkpoint.row for checkpoint in kept]


@dataclass(frozen=True)
class CLD(Attributor):
    """Correlation of loss differences (Nagaraj, Ravikumar, Roy, "Coresets from Trajectories", TMLR 2025, eq. 64).

    The default is the paper's definition. Its common mode (all losses fall together early on) can drown what
    distinguishes examples; the other options are cheap remedies, measured in the docs and shown in benchmarks.

    Args:
        correlation: ``"pearson"`` (the paper), ``"spearman"``, ``"covariance"``.
        common_mode: ``"keep"`` (the paper), or ``"remove"``: project the mean trajectory out of every example's.
        row_scaling: ``"none"`` (the paper), or ``"rms"``: scale each row of differences to unit RMS over examples.
        rows: ``"all"`` recorded rows, or those at the ends of ``"epochs"`` only.
        transform: ``"none"`` (the paper: losses), or ``"log-odds"`` of exp(-loss), which keep moving where the loss is
            next to 0.
        whiten: ``None`` (the paper), or a ridge such as 0.03: the covariance of rows whitened over the training
            examples (:func:`comove.correlation.whitened`). It replaces the correlation, so leave ``correlation``,
            ``common_mode`` and ``row_scaling`` as they are.

    Raises:
        InputError: an unknown choice; ``whiten`` together with another correlation.
    """

    name: ClassVar[str] = "cld"
    summary: ClassVar[str] = "correlation of loss differences along training; needs recorded losses only"
    cost: ClassVar[str] = "none but the recorded losses; then one N x T x Q product"
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})

    correlation: Literal["pearson", "spearman", "covariance"] = "pearson"
    common_mode: Literal["keep", "remove"] = "keep"
    row_scaling: Literal["none", "rms"] = "none"
    rows: Rows = "all"
    transform: Literal["none", "log-odds"] = "none"
    whiten: float | None = None

    def __post_init__(self) -> None:
        for option, choices in CHOICES.items():
            check_choice(getattr(self, option), choices, option, self.name)
        if self.whiten is None:
            return
        check_number(self.whiten, f"{self.name}: whiten")
        if (self.correlation, self.common_mode, self.row_scaling) != ("pearson", "keep", "none"):
            raise InputError("cld: whiten replaces correlation, common_mode and row_scaling; give it or them.")

    def _fit(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return sources

    def _scores(self, state: tuple[Source, ...], queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        total: npt.NDArray[np.float32] | None = None
        counts = {"constant_train": 0, "constant_queries": 0}
        for source in state:
            train_TN, query_TQ = self._losses(source, queries)
            counts["constant_train"] += int(constant(train_TN).sum())
            counts["constant_queries"] += int(constant(query_TQ).sum())
            scores_NQ = pairwise(
                train_TN, query_TQ, **self.product, train_ids=source.trace.train_ids, query_ids=queries.ids
            )
            total = scores_NQ if total is None else np.add(total, scores_NQ, out=total)
        assert total is not None
        return total / np.float32(len(state)), counts

    def _losses(self, source: Source, queries: Queries) -> tuple[Any, npt.NDArray[Any]]:
        """What is multiplied: (T+1, N), on disk where the trace is, and (T+1, Q)."""
        train_TN, query_TQ = self._recorded(source, queries)
        if self.transform == "log-odds":
            train_TN, query_TQ = _LogOdds(train_TN), log_odds_of(query_TQ)
        return train_TN, query_TQ if self.whiten is None else whitened(train_TN, query_TQ, self.whiten)

    @property
    def product(self) -> dict[str, Any]:
        """The options of :func:`comove.correlation.pairwise` that make this method's scores of what it multiplies."""
        correlation = self.correlation if self.whiten is None else "covariance"
        return {"correlation": correlation, "common_mode": self.common_mode, "row_scaling": self.row_scaling}

    def _recorded(self, source: Source, queries: Queries) -> tuple[Any, npt.NDArray[Any]]:
        trace = source.trace
        if queries.examples is None:
            rows = chosen_rows(trace, self.rows)
            columns = positions_of(queries.ids, trace.query_ids, "query ids")
            return trace.lazy("train", rows=rows), trace.lazy("query", rows=rows)[:, columns]
        if source.run is None:
            raise InputError(
                "New queries are replayed from checkpoints: fit on runs (comove.train), not on bare traces."
            )
        query_TQ, rows = replay_losses(source.run, queries.examples)
        return trace.lazy("train", rows=rows), query_TQ
