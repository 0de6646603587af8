"""Cross-fitting: s_i comes from the model that was trained without the fold of example i, so no label is memorised.

Training, validation and query examples are put together, divided into K folds, stratified by class, and K models are
trained, each without one fold, by the recipe of a run. Every example, held-out ones included, is thus ranked once.

Shape legend: N examples, R rows of a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from comove.checks import whole_number
from comove.coreset.aum import area_under_margin
from comove.data import ExampleSet, Ids, Splits
from comove.errors import InputError, InputTypeError, some
from comove.evaluation.label_errors.suggestions import other_class
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.store import command_line, versions
from comove.training import Recording, Run, train

__all__ = ["FOLD_METHODS", "cross_fit", "folds_of"]

FOLD_METHODS = ("aum", "loss")
"""What is measured of examples that a model has not seen."""
FIELDS = ("loss", "margin_logit")


def folds_of(labels_N: Ids, folds: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return each example's fold (N,), 0 ... K-1: of every class as many in each fold, within one.

    Raises:
        InputError: fewer than 2 folds; a class with fewer examples than 2, which would be trained on in no fold.

    >>> np.bincount(folds_of(np.array([0, 0, 0, 1, 1, 1]), 3)).tolist()
    [2, 2, 2]
    """
    count = whole_number(folds, "folds", 2, labels_N.size, error=InputError)
    classes, sizes = np.unique(labels_N, return_counts=True)
    if (sizes < 2).any():
        raise InputError(
            f"Every class needs at least 2 examples, since one is held out; class {some(classes[sizes < 2])} has 1."
        )
    generator = np.random.default_rng([seed, 0xF01D])
    fold_N = np.empty(labels_N.size, np.int64)
    start = 0
    for label in classes:
        members = generator.permutation(np.flatnonzero(labels_N == label))
        fold_N[members] = (start + np.arange(members.size)) % count
        start += members.size  # the folds are of one size, within one, too
    return fold_N


@dataclass(frozen=True)
class _Measured:
    """What the model of one fold says of it."""

    ids: Ids
    values: dict[str, npt.NDArray[np.float64]]
    probabilities: npt.NDArray[np.float32]


def cross_fit(
    runs: Sequence[Run],
    folds: int,
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Suspicion:
    """Rank the labels of all examples by models that have not seen them.

    Args:
        runs: of the same data; each gives a model, a recipe and a seed, and results are averaged.
        folds: K; K models are trained for each run.
        out: a folder for them; a call that was interrupted goes on there.
        methods: of :data:`FOLD_METHODS`.
        device: where to train.
        progress: show bars.

    Returns:
        Of all examples: the area under the margin and the final loss by the model without them, and the other class
        that this model suggests.

    Raises:
        InputError: runs that are not comove's own or of other data; another method; a class of a single example.
        InputTypeError: a bare trace.
    """
    chosen = tuple(dict.fromkeys(methods or FOLD_METHODS))
    if unknown := [name for name in chosen if name not in FOLD_METHODS]:
        raise InputError(
            f"Of examples that a model has not seen, {', '.join(FOLD_METHODS)} tell; {some(unknown)} needs training "
            "on them: leave out --folds, or this method."
        )
    if not all(isinstance(run, Run) for run in runs):
        raise InputTypeError("Cross-fitting trains models again: give runs made by comove train, not bare traces.")
    splits = runs[0].data()
    if len({run.data().fingerprint for run in runs}) > 1:
        raise InputError("Cross-fitting needs runs of one data set; their data fingerprints differ.")
    whole = ExampleSet.joined(splits.parts)
    fold_N = folds_of(whole.labels, folds)
    found = [
        _fold(run, whole, fold_N == fold, out / f"{number}-{fold}", device, progress)
        for number, run in enumerate(runs)
        for fold in range(folds)
    ]
    places = [whole.positions(one.ids) for one in found]
    values = {name: np.zeros(len(whole)) for name in FOLD_METHODS}
    probabilities_NC = np.zeros((len(whole), len(whole.classes)), np.float32)
    for place, one in zip(places, found, strict=True):
        probabilities_NC[place] += one.probabilities / len(runs)
        for name, measured in one.values.items():
            values[name][place] += measured / len(runs)
    suggested, confidence = other_class(probabilities_NC, whole.labels)
    info = {"runs": len(runs), "folds": folds, "command": command_line(), "versions": versions()}
    return Suspicion(
        whole.ids,
        whole.labels,
        {name: values[name].astype(np.float32) for name in chosen},
        tuple(name for name in chosen if name == "aum"),
        whole.classes,
        suggested,
        confidence,
        info={**info, "data_fingerprint": splits.fingerprint},
    )


def _fold(
    run: Run, whole: ExampleSet, held_out: npt.NDArray[np.bool_], folder: Path, device: str, progress: bool
) -> _Measured:
    """Train a model without a fold, and measure it on the fold."""
    spec = run.model_spec
    fold = whole.subset(whole.ids[held_out])
    trained = train(
        Splits(whole.subset(whole.ids[~held_out]), None, fold, whole.name),
        spec.named(run.factory),
        replace(run.recipe, early_stop_patience=None),
        run.seed,
        folder,
        recording=Recording(fields=FIELDS, anchors=()),
        checkpoints="last",
        device=device,
        model_options=dict(spec.options),
        progress=progress,
    )
    trace = trained.trace
    rows = [row.index for row in trace.rows if row.epoch > 0]
    margins_RN, losses = trace.read("query", "margin_logit", rows=rows), trace.read("query", rows=rows[-1:])[0]
    logits = trained.class_logits(fold, device=device if device != "auto" else "cpu")
    assert logits is not None
    values = {"aum": area_under_margin(margins_RN), "loss": losses.astype(np.float64)}
    return _Measured(trace.query_ids, values, logits.softmax(1).numpy())
