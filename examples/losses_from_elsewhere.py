"""Make a trace from losses that another framework wrote into a table; here scikit-learn plays that part.

python examples/losses_from_elsewhere.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import SGDClassifier

import comove
from comove.coreset import select


def write_losses(path: Path) -> None:
    """Train a linear classifier on digits; write one line per epoch and example: epoch, id, loss, label, split."""
    data = comove.load_dataset("digits", limit=400, queries=100)
    parts = {
        split: (np.asarray(part.held).reshape(len(part.ids), -1), np.asarray(part.labels), part.ids)
        for split, part in (("train", data.train), ("query", data.query))
    }
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.02, random_state=0)
    tables = []
    for epoch in range(8):
        model.partial_fit(*parts["train"][:2], classes=np.arange(10))
        for split, (inputs, labels, ids) in parts.items():
            probability = model.predict_proba(inputs)[np.arange(len(labels)), labels]
            loss = -np.log(np.maximum(probability, 1e-7))
            tables.append(pd.DataFrame({"epoch": epoch, "id": ids, "loss": loss, "label": labels, "split": split}))
    pd.concat(tables).to_csv(path, index=False)


def main(folder: Path) -> comove.Trace:
    """Read the table as a trace, and choose a coreset by it."""
    write_losses(folder / "losses.csv")
    trace = comove.Trace.from_csv(folder / "losses.csv")
    print(trace)
    print(select("cld", trace, budget=0.3))
    return trace


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
