"""Fifty retrainings by a process pool of one's own, or any other scheduler; killed at any moment, it goes on."""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

import comove
from comove.evaluation import subsets

INPUTS, TARGETS = load_diabetes(return_X_y=True)
TRAIN, QUERIES = np.arange(0, 300), np.arange(300, 340)


def ridge(train_ids: Any, seed: int) -> dict[str, Any]:
    """Squared errors of a ridge regression, which draws nothing, so that all seeds agree."""
    model = Ridge(alpha=0.1).fit(INPUTS[train_ids], TARGETS[train_ids])
    return {"loss": (model.predict(INPUTS[QUERIES]) - TARGETS[QUERIES]) ** 2}


def work(job: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return job["id"], ridge(job["train_ids"], job["seed"])


def main(folder: Path) -> comove.RetrainingBank:
    """Plan the bank, or open the one that is there, and train what it lacks."""
    mine, halves = comove.OwnTraining(ridge, name="ridge-1"), subsets.random(0.5, 50)
    bank = comove.RetrainingBank.create(folder, TRAIN, mine, subsets=halves, queries=QUERIES)
    with ProcessPoolExecutor(2) as pool:
        for name, outputs in pool.map(work, bank.pending_jobs()):
            bank.record(name, outputs)
    return bank


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
