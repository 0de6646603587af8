"""Record one trace of several processes: a loop with Accelerate.

accelerate launch --cpu --num_processes 2 examples/with_accelerate.py      (or plain python; needs: accelerate)
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import comove
from comove.trace.distributed import DistributedRecorder


def main(folder: Path) -> comove.Trace | None:
    """Train for four epochs; the first process returns the trace."""
    accelerator = Accelerator(cpu=True)
    data = comove.load_dataset("digits", limit=400, queries=50)
    train, query = (
        TensorDataset(torch.as_tensor(part.held), torch.as_tensor(part.labels), torch.as_tensor(part.ids))
        for part in (data.train, data.query)
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(network, optimizer, DataLoader(train, batch_size=16, shuffle=True))
    shares = [accelerator.prepare(DataLoader(part, batch_size=100)) for part in (train, query)]

    create = partial(comove.Recorder, folder / "trace", train_ids=data.train.ids, query_ids=data.query.ids)
    recorder = DistributedRecorder(create)
    accelerator.register_for_checkpointing(recorder)  # save_state and load_state keep it in step with the model

    def record() -> None:
        model.eval()
        with torch.no_grad():
            for share in shares:
                for inputs, labels, ids in share:
                    recorder.observe(ids, logits=model(inputs), labels=labels)
        recorder.end_epoch()  # gathers every process's batches; those that two processes saw count once
        model.train()

    record()
    for _ in range(4):
        for inputs, labels, _ in loader:
            optimizer.zero_grad()
            accelerator.backward(functional.cross_entropy(model(inputs), labels))
            optimizer.step()
        record()
    trace = recorder.finish()
    accelerator.print(trace)
    return trace


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "accelerate-trace"))
