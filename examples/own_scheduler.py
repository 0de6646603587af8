"""Fifty retrainings by a process pool of one's own, or any other scheduler; killed at any moment, it goes on."""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from comove import OwnTraining, RetrainingBank
from comove.evaluation import subsets

INPUTS, TARGETS = load_diabetes(return_X_y=True)
TRAIN, QUERIES, HALVES = np.arange(300), np.arange(300, 340), subsets.random(0.5, 50)


def ridge(train_ids: Any, seed: int) -> dict[str, Any]:
    """Squared errors of a ridge regression, which draws nothing, so that all seeds agree."""
    model = Ridge(alpha=0.1).fit(INPUTS[train_ids], TARGETS[train_ids])
    return {"loss": (model.predict(INPUTS[QUERIES]) - TARGETS[QUERIES]) ** 2}


def work(job: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Do one job, anywhere: it is a JSON object."""
    return job["id"], ridge(job["train_ids"], job["seed"])


def main(folder: Path) -> RetrainingBank:
    """Plan the bank, or open the one that is there, and train what it lacks."""
    bank = RetrainingBank.create(folder, TRAIN, OwnTraining(ridge, "ridge-1"), subsets=HALVES, queries=QUERIES)
    with ProcessPoolExecutor(2) as pool:
        for name, outputs in pool.map(work, bank.pending_jobs()):
            bank.record(name, outputs)
    return bank


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
