"""Record traces while transformers' Trainer trains: a classifier of texts, and a language model.

python examples/with_transformers.py     (needs: pip install "comove[transformers]")

The texts are lines of the docstrings of four modules of Python's standard library, so nothing is downloaded; the models
are tiny and start from a configuration, the tokenizer is a word list. Which lines there are depends on your Python.
"""

from __future__ import annotations

import importlib
import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import comove
from comove.attribution import CLD
from comove.trace.transformers import CLDCallback

MODULES = ("logging", "pathlib", "statistics", "subprocess")
LONGEST, WORDS = 16, 300


def docstring_lines(module: str, limit: int = 60) -> list[str]:
    """Return lines of at least five words from the docstrings of a module's classes and functions."""
    whole = importlib.import_module(module)
    owners = [whole, *(value for _, value in inspect.getmembers(whole) if getattr(value, "__module__", "") == module)]
    members = [member for owner in owners for _, member in inspect.getmembers(owner, inspect.isroutine)]
    texts = [inspect.getdoc(member) or "" for member in (*owners, *members)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return sorted({line for line in lines if len(line.split()) >= 5})[:limit]


def tokenized(texts: list[str]) -> tuple[list[torch.Tensor], int]:
    """Return the numbers of each text's words (0 is padding, 1 any rare word), and how many numbers there are."""
    split = [re.findall(r"\w+", text.lower()) for text in texts]
    counts: dict[str, int] = {}
    for word in (word for words in split for word in words):
        counts[word] = counts.get(word, 0) + 1
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]
    number = {word: place + 2 for place, word in enumerate(kept)}
    return [torch.tensor([number.get(word, 1) for word in words[:LONGEST]]) for words in split], WORDS + 2


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad a batch to its longest text; keep the ids."""
    words = [example["input_ids"] for example in examples]
    batch = {
        "input_ids": pad_sequence(words, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(text) for text in words], batch_first=True),
        "sample_idx": torch.tensor([example["sample_idx"] for example in examples]),
    }
    if "labels" in examples[0]:
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def record(folder: Path, model: PreTrainedModel, examples: list[dict[str, Any]], mode: Any) -> comove.Trace:
    """Train on four of five examples, recorded with the fifth as queries."""
    train = [example for example in examples if example["sample_idx"] % 5]
    query = [example for example in examples if not example["sample_idx"] % 5]
    arguments = TrainingArguments(
        str(folder / "checkpoints"),
        num_train_epochs=6,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        remove_unused_columns=False,  # or the ids would be dropped on their way
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = CLDCallback(folder / "trace", query, mode=mode)
    Trainer(model, arguments, train_dataset=train, data_collator=collate, callbacks=[callback]).train()
    return comove.Trace.load(folder / "trace")


def main(folder: Path) -> tuple[comove.Trace, comove.Trace]:
    """Record both, and show which lines helped the prediction of one."""
    lines = [(line, label) for label, module in enumerate(MODULES) for line in docstring_lines(module)]
    words, vocabulary = tokenized([line for line, _ in lines])
    examples = [{"input_ids": text, "sample_idx": number} for number, text in enumerate(words)]
    labelled = [{**example, "labels": label} for example, (_, label) in zip(examples, lines, strict=True)]
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LONGEST,
        num_labels=len(MODULES),
    )
    gpt = GPT2Config(
        vocab_size=vocabulary, n_positions=LONGEST, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    classified = record(folder / "classifier", BertForSequenceClassification(bert), labelled, "sweep")
    modelled = record(folder / "language-model", GPT2LMHeadModel(gpt), examples, "in_pass")
    for trace in (classified, modelled):
        query = int(trace.query_ids[7])
        helping = [lines[number][0] for number, _ in CLD().fit(trace).attribute().top(3, query=query)]
        print(trace, f"What helped most with {lines[query][0]!r}:", *helping, sep="\n  ")
    return classified, modelled


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
