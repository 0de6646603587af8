"""CLD for gradient boosting, measured against real retraining: scikit-learn trains, comove compares."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier

import comove
from comove.attribution import CLD
from comove.evaluation import subsets

INPUTS, LABELS = load_breast_cancer(return_X_y=True)
TRAIN, QUERIES = np.arange(0, 569, 4), np.arange(1, 569, 20)


def losses(train_ids: Any, seed: int, *asked: Any) -> list[Any]:
    """The loss of each example asked for after each tree: (T, n), by a model of these training examples."""
    model = GradientBoostingClassifier(n_estimators=30, max_depth=2, subsample=0.7, random_state=seed)
    model.fit(INPUTS[train_ids], LABELS[train_ids])
    staged = [(ids, np.stack(list(model.staged_predict_proba(INPUTS[ids])))) for ids in asked]
    return [-np.log(found[:, np.arange(len(ids)), LABELS[ids]]) for ids, found in staged]


def main(folder: Path) -> comove.Trace:
    """Trace one model's losses, attribute by them, and hold the scores to 40 models of random halves."""
    ours, theirs = losses(TRAIN, 0, TRAIN, QUERIES)
    trace = comove.Trace.from_arrays(train_losses=ours, query_losses=theirs, train_ids=TRAIN, query_ids=QUERIES)
    mine = comove.OwnTraining(lambda ids, seed: {"loss": losses(ids, seed, QUERIES)[0][-1]}, name="boosting-1")
    bank = comove.RetrainingBank.create(folder / "bank", TRAIN, mine, subsets=subsets.random(0.5, 40), queries=QUERIES)
    print(trace, bank.run(executor="serial").lds(CLD().fit(trace).attribute()), sep="\n")
    return trace


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()))
