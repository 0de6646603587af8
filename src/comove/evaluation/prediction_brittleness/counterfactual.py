"""The smallest removal that flips a prediction, for each query, found by bisection.

    size(q) = min { k : most of R models of S minus the k highest-scored examples of q predict another class than most
                        of the models of all S }

and the share of queries with size(q) <= k is what a budget of k examples flips (the support sizes of Ilyas et al.,
Datamodels, 2022, section 4). Sizes are looked for on a grid of ks, evenly spaced on a logarithmic scale: first the
largest k, then the middle of what remains, so a grid of G sizes takes 1 + log2(G) rounds of retraining.

Bisection takes for granted that what k examples flip, more examples flip too. Retraining is noisy and scores are no
order of strength, so that may fail; bisection, which asks on one path only, cannot notice. Therefore one more size of
each query, drawn at random from those not asked, is tried afterwards, and what contradicts is counted.

Shape suffixes: M methods and controls, Q queries, G sizes of the grid, R models per removed set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from comove.attribution.scores import SomeScores, named_scores
from comove.checks import many_whole, whole_number
from comove.data import ExampleSet, Ids, MapDataset, Splits
from comove.data.builtin import as_splits
from comove.errors import InputError
from comove.evaluation.prediction_brittleness.counterfactual_result import UNTRIED, Counterfactual
from comove.evaluation.prediction_brittleness.flips import majority
from comove.evaluation.prediction_brittleness.models import (
    BankRetraining,
    FullData,
    Retraining,
    answers_without,
    check_models,
    training_and_seed,
)
from comove.evaluation.prediction_brittleness.own_models import OwnRetraining
from comove.evaluation.prediction_brittleness.removal import Removal, plan_removal
from comove.jobs import Compute
from comove.models import Factory
from comove.retraining.own import OwnTraining
from comove.training import Training

__all__ = ["counterfactual_sizes", "search_counterfactuals"]

POINTS = 16
"""Sizes of the grid."""


def search_counterfactuals(
    removal: Removal,
    grid: npt.NDArray[np.int64],
    retraining: Retraining | OwnRetraining,
    *,
    seeds: int,
    base_seeds: int,
    seed: int = 0,
    confidence: float = 0.95,
) -> Counterfactual:
    """Bisect the grid for all queries and methods at once, one batch of retrainings a round, then audit.

    Args:
        removal: which examples go in which order.
        grid: (G,) sizes, ascending.
        retraining: where the models come from.
        seeds: R.
        base_seeds: how many models vote on the prediction.
        seed: of the audited sizes.
        confidence: level of the intervals.
    """
    check_models(seeds, base_seeds)
    full = FullData.train(retraining, removal.query_labels, voting=base_seeds, seeds=seeds)
    shape = (len(removal.names), removal.query_ids.size)
    held_MQ, flipped_MQ = np.full(shape, -1), np.full(shape, grid.size)  # the search lies strictly between
    tried_MQG = np.full((*shape, grid.size), UNTRIED, np.int8)
    audited_MQG = tried_MQG.copy()
    ask_MQ = np.full(shape, grid.size - 1)
    while (open_MQ := (ask_MQ > held_MQ) & (ask_MQ < flipped_MQ)).any():
        asked_MQ = np.where(open_MQ, ask_MQ, UNTRIED)
        outcome_MQ = _majorities(removal, grid, retraining, seeds, asked_MQ) != full.prediction
        _write_down(tried_MQG, asked_MQ, outcome_MQ)
        flipped_MQ = np.where(open_MQ & outcome_MQ, ask_MQ, flipped_MQ)
        held_MQ = np.where(open_MQ & ~outcome_MQ, ask_MQ, held_MQ)
        ask_MQ = (held_MQ + flipped_MQ) // 2
    asked_MQ = _untried(tried_MQG, removal.query_ids, seed)
    _write_down(audited_MQG, asked_MQ, _majorities(removal, grid, retraining, seeds, asked_MQ) != full.prediction)
    return Counterfactual(
        methods=removal.names,
        controls=removal.controls,
        grid=grid,
        tried=tried_MQG,
        audited=audited_MQG,
        full=full,
        seeds=seeds,
        query_ids=removal.query_ids,
        query_labels=removal.query_labels,
        confidence=confidence,
    )


def _majorities(
    removal: Removal,
    grid: npt.NDArray[np.int64],
    retraining: Retraining | OwnRetraining,
    seeds: int,
    ask_MQ: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Retrain at each query's and method's place on the grid, and return the majority's class; -1: none asked."""
    majority_MQ = np.full(ask_MQ.shape, -1)
    cells = np.argwhere(ask_MQ != UNTRIED)
    if len(cells):
        removed = [removal.orders[m, q, : grid[ask_MQ[m, q]]] for m, q in cells]
        places = cells[:, 1].tolist()
        predicted_CR, _ = answers_without(retraining, removed, places, seeds, removal.query_labels)
        majority_MQ[tuple(cells.T)] = majority(predicted_CR.T)
    return majority_MQ


def _write_down(
    book_MQG: npt.NDArray[np.int8], ask_MQ: npt.NDArray[np.int64], outcome_MQ: npt.NDArray[np.bool_]
) -> None:
    for m, q in np.argwhere(ask_MQ != UNTRIED):
        book_MQG[m, q, ask_MQ[m, q]] = outcome_MQ[m, q]


def _untried(tried_MQG: npt.NDArray[np.int8], query_ids: Ids, seed: int) -> npt.NDArray[np.int64]:
    """(M, Q) a place of the grid that bisection did not ask, drawn at random; -1 where it asked all."""
    words = [[seed, 0xA0D17, word] for word in query_ids.view(np.uint64).tolist()]
    draws_QG = np.stack([np.random.default_rng(word).random(tried_MQG.shape[2]) for word in words])
    free_MQG = np.where(tried_MQG == UNTRIED, draws_QG, -1.0)
    return np.where((free_MQG >= 0).any(2), free_MQG.argmax(2), UNTRIED)


def _grid(max_k: int | Sequence[int]) -> npt.NDArray[np.int64]:
    """The sizes to try, ascending."""
    if isinstance(max_k, Sequence):
        sizes = np.unique(np.array(many_whole(max_k, "max_k", 1), np.int64))
        if not sizes.size:
            raise InputError("max_k must name at least one number of examples.")
        return sizes
    return np.unique(np.geomspace(1, whole_number(max_k, "max_k", 1), POINTS).round().astype(np.int64))


def counterfactual_sizes(
    scores: SomeScores,
    max_k: int | Sequence[int],
    *,
    dataset: str | Splits | ExampleSet | MapDataset,
    out: str | os.PathLike[str],
    training: Training | OwnTraining | str | Factory | None = None,
    seeds: int = 5,
    base_seeds: int = 11,
    queries: Sequence[int] | Ids | None = None,
    controls: bool = True,
    compute: Compute | None = None,
) -> Counterfactual:
    """Find, for each query, the smallest number of its highest-scored examples whose removal flips its prediction.

    Args:
        scores: of one method or of several, each of all training examples; a mapping names them.
        max_k: the largest removal tried, of 16 sizes between 1 and it, evenly spaced on a logarithmic scale (or all
            sizes to try); what it does not flip is counted as not flipped.
        dataset: as for :func:`comove.train`.
        out: a folder: ``removal-bank/`` (shared with :func:`comove.evaluation.brittleness`),
            ``counterfactual.safetensors``, ``counterfactual.csv``.
        training: how models are trained; its seed is also that of the controls and the audit. A function of the user's
            own must say what a flip is, as for :func:`comove.evaluation.brittleness`.
        seeds: R, models per removed set; their majority counts.
        base_seeds: models of all training examples whose majority is the prediction.
        queries: ids of the query split; by default all that were scored.
        controls: whether random and same-class removal stand beside the methods.
        compute: where models are trained.

    Raises:
        InputError: bad arguments; a ``max_k`` that leaves fewer than two examples.
        FingerprintError: ``out`` holds a bank of other data, another model, recipe, seed or other queries.

    References:
        Ilyas, Park, Engstrom, Leclerc, Madry, Datamodels: predicting predictions from training data, 2022.
        Park, Georgiev, Ilyas, Leclerc, Madry, TRAK: attributing model behavior at scale, 2023.
    """
    check_models(seeds, base_seeds)
    named, splits, folder = named_scores(scores), as_splits(dataset), Path(out)
    how, seed = training_and_seed(training)
    grid = _grid(max_k)
    removal = plan_removal(named, splits, int(grid[-1]), queries=queries, controls=controls, seed=seed)
    retraining = BankRetraining.at(folder, splits, how, queries=removal.query_ids, compute=compute or Compute())
    asked = retraining.answering(how, removal, voting=base_seeds, seeds=seeds)
    if isinstance(asked, OwnRetraining):
        asked.require_flips("counterfactual_sizes")
    found = search_counterfactuals(removal, grid, asked, seeds=seeds, base_seeds=base_seeds, seed=seed)
    found = replace(found, info=retraining.provenance)
    found.save(folder / "counterfactual.safetensors")
    found.to_csv(folder / "counterfactual.csv")
    return found
