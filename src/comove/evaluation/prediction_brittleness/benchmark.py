"""Prediction brittleness: does a prediction flip when the examples said to matter most are removed (paper, F.1)?

    flip(q, k, r) = [ argmax f(q; theta_r[S minus the k highest-scored examples of q]) != prediction(q) ]

``prediction(q)`` is what most of an ensemble trained on all of S predict. The better a method knows what a prediction
rests on, the fewer removals flip it. A flip rate means little by itself: some predictions flip when a model is merely
trained again (k = 0), some when any k examples go, or any k of the query's class. All three stand beside the methods.

Shape suffixes: M methods and controls, Q queries, K numbers removed, R models per removed set, B voting models.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from comove.attribution.scores import SomeScores, named_scores
from comove.checks import many_whole
from comove.data import ExampleSet, Ids, MapDataset, Splits
from comove.data.builtin import as_splits
from comove.errors import InputError
from comove.evaluation.prediction_brittleness.models import (
    BankRetraining,
    FullData,
    Retraining,
    answers_without,
    check_models,
    training_and_seed,
)
from comove.evaluation.prediction_brittleness.own_models import OwnRetraining
from comove.evaluation.prediction_brittleness.removal import (
    Removal,
    plan_removal,
    warn_of_emptied_classes,
)
from comove.evaluation.prediction_brittleness.result import Brittleness
from comove.jobs import Compute
from comove.models import Factory
from comove.retraining.own import OwnTraining
from comove.training import Training

__all__ = ["brittleness", "checked_ks", "measure_brittleness"]


def measure_brittleness(
    removal: Removal,
    ks: Sequence[int],
    retraining: Retraining | OwnRetraining,
    *,
    seeds: int,
    base_seeds: int,
    confidence: float = 0.95,
) -> Brittleness:
    """Retrain without the examples in ``removal``, and record what the models predict.

    Args:
        removal: which examples go in which order.
        ks: how many of them, ascending.
        retraining: where the models come from.
        seeds: R.
        base_seeds: B.
        confidence: level of the intervals.
    """
    check_models(seeds, base_seeds)
    full = FullData.train(retraining, removal.query_labels, voting=base_seeds, seeds=seeds)
    shape = (len(removal.names), removal.query_ids.size, len(ks))
    cells = list(np.ndindex(shape))
    removed = [removal.orders[m, q, : ks[i]] for m, q, i in cells]
    places = [q for _, q, _ in cells]
    predicted_CR, margins_CR = answers_without(retraining, removed, places, seeds, removal.query_labels)
    return Brittleness(
        methods=removal.names,
        controls=removal.controls,
        ks=tuple(ks),
        predicted=predicted_CR.reshape(*shape, seeds),
        margins=margins_CR.reshape(*shape, seeds),
        full=full,
        class_emptied=np.stack([removal.empties_class(k) for k in ks], axis=2),
        query_ids=removal.query_ids,
        query_labels=removal.query_labels,
        confidence=confidence,
    )


def brittleness(
    scores: SomeScores,
    ks: int | Iterable[int] = (10, 50, 100, 200, 400, 800),
    *,
    dataset: str | Splits | ExampleSet | MapDataset,
    out: str | os.PathLike[str],
    training: Training | OwnTraining | str | Factory | None = None,
    seeds: int = 5,
    base_seeds: int = 11,
    queries: Sequence[int] | Ids | None = None,
    controls: bool = True,
    compute: Compute | None = None,
) -> Brittleness:
    """Remove each query's k highest-scored training examples, retrain, and count flipped predictions.

    That takes M Q K R models, less where methods remove the same examples. Each is kept in the bank
    ``out/removal-bank`` as soon as it is trained: an interrupted call goes on, and one with more methods or ks, or
    :func:`counterfactual_sizes` in the same folder, trains only what is missing.

    Args:
        scores: of one method or of several, each of all training examples; a mapping names them.
        ks: how many examples to remove.
        dataset: as for :func:`comove.train`.
        out: a folder: ``removal-bank/``, ``brittleness.safetensors``, ``brittleness.csv``.
        training: how models are trained; its seed is also that of the controls. With a function of the user's own,
            whose outputs are those of the whole query split, a prediction flips where ``"predicted"`` (or
            ``"correct"``) changes, or where :attr:`comove.OwnTraining.flip` says so. Without any of these the margin
            drop is what there is: the change of the output (its only one, or ``"measure"``), beside what retraining
            alone changes.
        seeds: R, models trained for each query, method and k.
        base_seeds: B, models of all training examples whose majority is the prediction; as many again, without a vote,
            give the flip rate at k = 0.
        queries: ids of the query split; by default all that were scored.
        controls: whether random and same-class removal stand beside the methods.
        compute: where models are trained.

    Raises:
        InputError: bad arguments; a k that leaves fewer than two examples.
        FingerprintError: ``out`` holds a bank of other data, another model, recipe, seed or other queries.

    Warns:
        UserWarning: for some query every example of its class is removed, so that its prediction must flip.

    References:
        Park, Georgiev, Ilyas, Leclerc, Madry, TRAK: attributing model behavior at scale, 2023.
        Ilyas, Park, Engstrom, Leclerc, Madry, Datamodels: predicting predictions from training data, 2022.
    """
    check_models(seeds, base_seeds)
    counts = checked_ks(ks)
    named, splits, folder = named_scores(scores), as_splits(dataset), Path(out)
    how, seed = training_and_seed(training)
    removal = plan_removal(named, splits, counts[-1], queries=queries, controls=controls, seed=seed)
    warn_of_emptied_classes(removal, counts)
    retraining = BankRetraining.at(folder, splits, how, queries=removal.query_ids, compute=compute or Compute())
    asked = retraining.answering(how, removal, voting=base_seeds, seeds=seeds)
    found = measure_brittleness(removal, counts, asked, seeds=seeds, base_seeds=base_seeds)
    flips = {"flips": asked.mode} if isinstance(asked, OwnRetraining) else {}
    found = replace(found, info=retraining.provenance | flips)
    found.save(folder / "brittleness.safetensors")
    found.to_csv(folder / "brittleness.csv")
    return found


def checked_ks(ks: int | Iterable[int]) -> list[int]:
    """Numbers of examples to remove, ascending, each once, without 0 (which is always measured).

    Raises:
        InputError: none, or a negative one.
        InputTypeError: one that is no whole number.
    """
    given = many_whole(ks, "ks", None)
    counts = sorted(set(given) - {0})
    if not counts or counts[0] < 1:
        raise InputError(f"ks must be numbers of examples from 1 on, got {given}.")
    return counts
