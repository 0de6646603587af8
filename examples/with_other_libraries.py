"""Scores of captum and dattri beside comove's in one LDS and one report: python examples/with_other_libraries.py out"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.influence import TracInCP
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from torch.utils.data import DataLoader, TensorDataset

import comove
from comove.attribution import CLD, GradDot
from comove.evaluation import subsets
from comove.report import write_report

HOW = comove.Training("mlp", comove.Recipe(epochs=6, lr=0.05, batch_size=16))
PLAIN = {"sample_wise_grads_per_batch": True, "loss_fn": torch.nn.CrossEntropyLoss(reduction="sum")}


def main(folder: Path) -> dict[str, comove.Scores]:
    """Train, ask all for inner products of gradients at the last checkpoint, and hold them to retrained models."""
    data = comove.load_dataset("digits", limit=80, queries=10)
    run = comove.train(data, HOW.model, HOW.recipe, out=folder / "run")
    model, parts = run.load_model(), (data.train, data.query)
    sets = [TensorDataset(*part.batch(np.arange(len(part)))) for part in parts]

    def loss(parameters: Any, pair: Any) -> Any:
        return F.cross_entropy(torch.func.functional_call(model, parameters, pair[0][None]), pair[1][None])

    task = AttributionTask(loss_func=loss, model=model, checkpoints=[model.state_dict()])
    dattri = TracInAttributor(task, torch.ones(1), False, {"proj_type": "identity"}).attribute(*map(DataLoader, sets))
    captum = TracInCP(model, sets[0], ["last"], lambda *_: 1.0, batch_size=20, **PLAIN).influence(sets[1].tensors)
    ids: dict[str, Any] = {"train_ids": data.train.ids, "query_ids": data.query.ids}
    scores = {method.name: method.fit(run).attribute() for method in (CLD(), GradDot())}
    scores["dattri"] = comove.Scores.from_arrays(dattri.detach(), method="dattri", **ids)
    scores["captum"] = comove.Scores.from_arrays(captum, axes="query train", method="captum", **ids)
    bank = comove.RetrainingBank.create(folder / "bank", data, HOW, subsets=subsets.random(0.5, 20)).run(
        executor="serial"
    )
    results = [bank.lds(one) for one in scores.values()]
    print(*results, write_report(folder / "report.html", run, scores, results), sep="\n")
    return scores


if __name__ == "__main__":
    main(Path(sys.argv[1]))
