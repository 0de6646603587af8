"""A multi-label classifier, a regression and a segmentation network: the same calls, another task each.

python examples/adopt_several_labels.py runs/tasks
"""

import sys
from pathlib import Path

import torch
from torch import nn

import comove
from comove.attribution import CLD, GradDot
from comove.coreset import select
from comove.data import ExampleSet
from comove.tasks import MultiLabel, Regression, Segmentation, Task

X = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Task, nn.Module, torch.Tensor]] = {
    "labels": (MultiLabel(), nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (X[:, 0, 0, :3] > 0).long()),
    "numbers": (Regression(), nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), X.mean((1, 2, 3))),
    "pixels": (Segmentation(), nn.Conv2d(1, 2, 3, padding=1), (X[:, 0] > 0).long()),
}


def main(folder: Path) -> list[comove.Run]:
    """Train and adopt each; print what helps a query most, and a coreset."""
    runs = []
    for name, (task, model, targets) in CASES.items():
        items = list(zip(X, targets, strict=True))
        sets = [ExampleSet(part, collate=torch.utils.data.default_collate) for part in (items[:50], items[50:])]
        optimizer, weights = torch.optim.Adam(model.parameters(), lr=0.05), []
        for _ in range(5):
            task.loss(model(X[:50]), (X[:50], targets[:50])).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            weights.append({key: value.clone() for key, value in model.state_dict().items()})
        runs.append(comove.adopt(model, weights, sets[0], sets[1], task, out=folder / name))
        for method in (CLD(), GradDot()):
            print(name, method.label, method.fit(runs[-1]).attribute().top(3, query=0).ids)
        print("worth keeping:", sorted(select("cld", runs[-1], budget=0.1).ids.tolist()))
    return runs


if __name__ == "__main__":
    main(Path(sys.argv[1]))
