"""A transformers Trainer on reviews: COMOVE_DATA=data python examples/explain_movie_reviews.py runs/reviews"""

import sys
import zlib
from os import environ
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from comove import ExampleSet, Run, adopt, select
from comove.attribution import CLD, TRAK
from comove.evaluation import detect, rank_labels
from comove.tasks import SequenceClassification
from comove.trace.transformers import CLDCallback

LINES = [Path(environ["COMOVE_DATA"], f"text/rt-polarity.{k}").read_text("latin-1").split("\n") for k in ("neg", "pos")]
TEXTS = [LINES[i % 2][i // 2] for i in range(1000)]  # odd ones are positive
WRONG = range(7, 800, 9)  # they get a wrong label, on purpose


def _item(i: int) -> dict[str, object]:
    words = torch.tensor([*(zlib.crc32(word.encode()) % 1499 + 1 for word in TEXTS[i].split()), *[0] * 24][:24])
    return {"input_ids": words, "attention_mask": words.sign(), "labels": (i + (i in WRONG)) % 2, "sample_idx": i}


def main(folder: Path) -> Run:
    """Train, and ask what the class of a held-out review depends on, what to keep, and which labels are wrong."""
    torch.manual_seed(0)
    size = BertConfig(vocab_size=1500, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model, items = BertForSequenceClassification(size), [_item(i) for i in range(1000)]
    options = {"num_train_epochs": 6, "learning_rate": 2e-3, "save_strategy": "epoch", "remove_unused_columns": False}
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", **options)
    Trainer(model, arguments, train_dataset=items[:800], callbacks=[CLDCallback(folder / "trace", items[800:])]).train()
    weights = [folder / f"checkpoint-{100 * epoch}" for epoch in range(1, 7)]
    sets = ExampleSet(items[:800]), ExampleSet(items[800:], ids=range(800, 1000))
    run = adopt(model, weights, *sets, SequenceClassification(), trace=folder / "trace")
    for method in (CLD(), TRAK(projector="none", parameters="classifier.*")):
        print(method.label, TEXTS[801], *(TEXTS[i] for i in method.fit(run).attribute([801]).top(2, query=801).ids))
    print(select("cld", run, 0.2), detect(rank_labels(run, ["aum", "loss"], suggest=False), WRONG), sep="\n")
    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
