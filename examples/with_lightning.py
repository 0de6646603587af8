"""Record a trace while Lightning trains: one callback.

python examples/with_lightning.py        (needs: pip install "comove[lightning]")
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import comove
from comove.attribution import CLD
from comove.trace.lightning import CLDCallback


class Digits(LightningModule):
    """A small network on 8 x 8 digits; its batches are (inputs, labels, ids)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the mean loss of a batch."""
        inputs, labels, _ = batch
        return functional.cross_entropy(self.network(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def evaluate(module: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Say which examples a batch holds, and what the network makes of them."""
    inputs, labels, ids = batch
    return {"ids": ids, "logits": module.network(inputs), "labels": labels}


def main(folder: Path) -> comove.Trace:
    """Train for four epochs, recording before training and after each."""
    data = comove.load_dataset("digits", limit=400, queries=50)
    train, query = (
        TensorDataset(torch.as_tensor(part.held), torch.as_tensor(part.labels), torch.as_tensor(part.ids))
        for part in (data.train, data.query)
    )
    callback = CLDCallback(
        folder / "trace",
        train_ids=data.train.ids,
        query_ids=data.query.ids,
        train_loader=DataLoader(train, batch_size=200),
        query_loader=DataLoader(query, batch_size=200),
        evaluate=evaluate,
    )
    trainer = Trainer(
        max_epochs=4,
        callbacks=[callback],
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(train, batch_size=32, shuffle=True))

    trace = comove.Trace.load(folder / "trace")
    print(trace)
    print(CLD().fit(trace).attribute().top(5, query=int(trace.query_ids[0])))
    return trace


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
