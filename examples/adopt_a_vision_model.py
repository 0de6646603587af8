"""A torchvision network trained in a loop of one's own (AdamW, cosine, EMA): TracIn, TRAK and Arnoldi from .pt files.

python examples/adopt_a_vision_model.py runs/mine
"""

import sys
from pathlib import Path

import torch
from torchvision.models import shufflenet_v2_x0_5

import comove
from comove.attribution import TRAK, Arnoldi, TracIn

DECAY = torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)


def main(folder: Path) -> comove.Run:
    """Train, adopt, and print the five examples that help the first query most, by each method."""
    torch.manual_seed(0)
    data = comove.load_dataset("digits", limit=300, queries=20)
    layers = (torch.nn.Upsample(scale_factor=4), torch.nn.Conv2d(1, 3, 1), shufflenet_v2_x0_5(num_classes=10))
    model = torch.nn.Sequential(*layers)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True, multi_avg_fn=DECAY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule, weights = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5), []
    for epoch in range(1, 6):
        for where in torch.randperm(len(data.train)).split(20):
            inputs, labels = data.train.batch(where.numpy())
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
        torch.save(average.module.state_dict(), folder / f"e{epoch}.pt")
        weights.append(comove.Weights(folder / f"e{epoch}.pt", epoch, lr=float(schedule.get_last_lr()[0])))
        schedule.step()
    run = comove.adopt(average.module, weights, data.train, data.query, out=folder / "run")
    for method in (TracIn(), TRAK(proj_dim=64), Arnoldi(rank=5, arnoldi_dim=6, parameters="2.fc.*")):
        print(method.label, method.fit(run).attribute(data.query.ids[:2]).top(5, query=int(data.query.ids[0])).ids)
    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
