"""A small GPT on lines of text: which lines a completion depends on, by CLD, TracIn and TRAK.

python examples/adopt_a_language_model.py runs/gpt
"""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import comove
from comove.attribution import CLD, TRAK, TracIn
from comove.data import ExampleSet
from comove.tasks import CausalLM

LINES = [
    f"{who} {verb} the {what}." for who in ("I", "We") for verb in ("see", "hear", "sell") for what in ("sea", "cat")
]


def tokens(lines: list[str]) -> dict[str, torch.Tensor]:
    """Bytes as tokens, padded with spaces that do not count."""
    ids = torch.tensor([list(line.ljust(18).encode()) for line in lines])
    return {"input_ids": ids, "attention_mask": (ids != ord(" ")).long().cummax(1).values}


def main(folder: Path) -> comove.Run:
    """Train, adopt, and print the lines that help a query most."""
    torch.manual_seed(0)
    train = ExampleSet(LINES, collate=tokens)
    queries = ExampleSet(["We sell the cat.", "I sell the sea."], ids=[50, 51], collate=tokens)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2))
    optimizer, weights, task = torch.optim.AdamW(model.parameters(), lr=1e-2), [], CausalLM()
    for epoch in range(1, 6):
        task.loss(task.outputs(model, tokens(LINES)), tokens(LINES)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.save_pretrained(folder / f"epoch-{epoch}")
        weights.append(comove.Weights(folder / f"epoch-{epoch}", epoch, lr=1e-2))
    run = comove.adopt(model, weights, train, queries, task, out=folder / "run")
    for method in (CLD(), TracIn(), TRAK(proj_dim=8)):
        print(method.label, [LINES[i] for i in method.fit(run).attribute().top(2, query=50).ids])
    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
