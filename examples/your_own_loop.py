"""Record a trace in a training loop of your own: three lines, then CLD as usual.

python examples/your_own_loop.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import comove
from comove.attribution import CLD
from comove.coreset import select


def main(folder: Path) -> None:
    """Train a small network on digits with a plain loop, record it, and read the trace."""
    data = comove.load_dataset("digits")
    inputs, labels = (torch.as_tensor(part) for part in (data.train.held, data.train.labels))
    query_inputs, query_labels = (torch.as_tensor(part) for part in (data.query.held, data.query.labels))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    recorder = comove.Recorder(folder / "trace", train_ids=data.train.ids, query_ids=data.query.ids)

    def record() -> None:
        model.eval()
        with torch.no_grad():
            recorder.observe(data.train.ids, logits=model(inputs), labels=labels)
            recorder.observe(data.query.ids, logits=model(query_inputs), labels=query_labels)
        recorder.end_epoch()
        model.train()

    record()  # row 0, before training
    for _ in range(8):
        for batch in torch.split(torch.randperm(len(labels)), 64):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        record()
    trace = recorder.finish()

    scores = CLD().fit(trace).attribute()
    print(trace)
    print(scores.top(5, query=int(trace.query_ids[0])))
    print(select("cld", trace, budget=0.3))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
