"""What completions of a GPT depend on: COMOVE_DATA=data python examples/explain_a_completion.py runs/gpt"""

import copy
import sys
from os import environ
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from comove import ExampleSet, OwnTraining, RetrainingBank, Run, Weights, adopt
from comove.attribution import CLD, TRAK, TracIn
from comove.evaluation import subsets
from comove.tasks import CausalLM, per_token

TEXT = Path(environ["COMOVE_DATA"], "text", "tinyshakespeare.txt").read_text()
ALL = ExampleSet([{"input_ids": torch.tensor(list(TEXT[i : i + 20].encode()))} for i in range(0, 20 * 72, 20)])
TRAIN, QUERIES, TASK = ALL.subset(np.arange(64)), ALL.subset(np.arange(64, 72)), CausalLM()
CONFIG = GPT2Config(vocab_size=128, n_positions=20, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)


def _train(ids: np.ndarray, seed: int, kept: list[Weights] | None = None) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    model, batch = GPT2LMHeadModel(CONFIG).eval(), TRAIN.subset(ids).collated(np.arange(len(ids)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(1, 31):
        TASK.loss(TASK.outputs(model, batch), batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if kept is not None and step % 3 == 0:
            kept.append(Weights(copy.deepcopy(model.state_dict()), step, lr=5e-3))
    return model


def main(folder: Path) -> Run:
    """Explain the queries, token by token too, and hold the scores to 20 models trained on halves."""
    kept: list[Weights] = []
    run = adopt(_train(TRAIN.ids, 0, kept), kept, TRAIN, QUERIES, TASK, out=folder / "run")
    mine, halves = OwnTraining(_train, name="gpt-1", task=TASK), subsets.random(0.5, 20)
    bank = RetrainingBank.create(folder / "bank", TRAIN, mine, subsets=halves, queries=QUERIES).run(executor="serial")
    for method in (CLD(), TracIn(), TRAK(proj_dim=16)):
        scores = method.fit(run).attribute()
        print(bank.lds(scores), [TEXT[20 * i : 20 * i + 20] for i in scores.top(2, query=70).ids])
    print(TracIn().fit(run).attribute(per_token(QUERIES)))
    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
