"""EK-FAC influence: ours and kronfluence side by side, from a model in memory to scores, factors and scores apart.

    python benchmarks/ekfac.py --data-dir DIR [--repetitions 3] [--models mlp,resnet9,gpt]

One thread, process CPU seconds, float32, sampled pseudo-targets, damping .1 of each layer's mean eigenvalue, the same
weights (untrained) and examples for both. kronfluence runs at the fastest of several batch sizes, ours as it comes. Its
factors are written to a temporary folder, which it always does; ours are kept in memory. Of transformers' ``Conv1D``,
which it does not know, kronfluence gets linear layers with the same weights. Batch norms, embeddings and the tied head
are left out by both. Each model is written to ``benchmarks/results/ekfac.json`` when it is done, beside those there.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import RESULTS, agreement, machine, plain, timed, write_result
from torch import Tensor, nn

from comove.attribution.ekfac import ekfac_scores
from comove.data.batches import Batch, batch_size, rows_of
from comove.data.builtin import load_dataset
from comove.gradients.ekfac import ekfac_factors
from comove.gradients.per_example import PerExampleGradients
from comove.models import build_model
from comove.store import read_json
from comove.tasks import CausalLM, Classification, Task

SEED, SHARE = 0, 0.1
BATCHES = (64, 256)
"""Batch sizes that kronfluence is tried at."""


@dataclass(frozen=True)
class Held:
    """Examples in memory."""

    whole: Any

    def __len__(self) -> int:
        return batch_size(self.whole)

    def batch(self, positions: slice) -> Batch:
        """The examples at these positions."""
        return rows_of(self.whole, positions)


@dataclass(frozen=True)
class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The same, one by one."""

    held: Held

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, row: int) -> Any:
        whole = self.held.whole
        return whole[row] if isinstance(whole, Tensor) else tuple(part[row] for part in whole)


@dataclass(frozen=True)
class Setting:
    """What both are given."""

    model: nn.Module
    task: Task
    train: Held
    queries: Held
    sampled: Callable[[Tensor], Tensor]
    """The summed loss at targets drawn from the outputs; of T tokens over sqrt(T), for the curvature of their mean."""


# --- the settings --------------------------------------------------------------------------------------------------


def drawn(logits: Tensor) -> Tensor:
    """Cross-entropy at labels drawn from the model."""
    flat = logits.flatten(0, -2)
    with torch.no_grad():
        labels = torch.multinomial(flat.softmax(1), 1)[:, 0]
    return F.cross_entropy(flat, labels, reduction="sum")


def images(name: str, options: dict[str, Any], data: str, limits: dict[str, Any]) -> Setting:
    """A built-in network and data set."""
    splits = load_dataset(data, seed=SEED, **limits)
    held = []
    for part in (splits.train, splits.query):
        x, y = part.batch(np.arange(len(part)))
        held.append(Held((x, y)))
    shape = splits.train.input_shape
    model = build_model(name, num_classes=10, input_shape=shape, seed=SEED, **options)
    return Setting(model.eval(), Classification(), *held, drawn)


def gpt(sequences: int, queries: int) -> Setting:
    """Characters of the documentation, 64 a sequence."""
    from transformers import GPT2Config, GPT2LMHeadModel

    text = "".join(sorted(path.read_text() for path in (Path(__file__).parents[1] / "docs").rglob("*.md")))
    known = {letter: place for place, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[letter] for letter in text[: 64 * (sequences + queries)]]).view(-1, 64)
    sizes = {"vocab_size": len(known), "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    cut = len(ids) - queries
    return Setting(model, CausalLM(), Held(ids[:cut]), Held(ids[cut:]), lambda logits: drawn(logits[:, :-1]) / 63**0.5)


def settings(data_dir: str) -> dict[str, Callable[[], Setting]]:
    """What is measured, by name."""
    cifar = {"data_dir": data_dir, "limit": 512, "queries": 50, "validation": 1}
    return {
        "mlp": lambda: images("mlp", {"hidden": [256, 256]}, "digits", {}),
        "resnet9": lambda: images("resnet9", {"width": 0.25}, "cifar10", cifar),
        "gpt": lambda: gpt(512, 50),
    }


# --- the two -------------------------------------------------------------------------------------------------------


def ours(setting: Setting, seed: int = SEED) -> tuple[dict[str, float], Tensor, list[str]]:
    """Seconds of both stages, scores, and the layers' names."""
    gradients = PerExampleGradients(setting.model, task=setting.task)
    fitting, factors = timed(lambda: ekfac_factors(gradients, setting.train, seed=seed))
    own = PerExampleGradients(setting.model, task=setting.task, parameters=factors.parameters)
    dampings = factors.dampings(SHARE)
    scoring, scores = timed(lambda: ekfac_scores(factors, own, setting.train, setting.queries, dampings))
    return {"factors": fitting, "scores": scoring}, scores, list(factors.layers)


def as_linear(model: nn.Module) -> nn.Module:
    """The same model with linear layers in the place of transformers' ``Conv1D``."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "Conv1D":
                weight, bias = (each.detach() for each in child.parameters())
                made = nn.Linear(*weight.shape)
                made.load_state_dict({"weight": weight.mT.clone(), "bias": bias.clone()})
                setattr(module, name, made)
    return model


def theirs(setting: Setting, layers: list[str], batch: int) -> tuple[dict[str, float], Tensor]:
    """Seconds of both stages, and scores turned to ours: (train, query), positive = helps."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import ScoreArguments
    from kronfluence.task import Task as KronfluenceTask

    task = setting.task

    class Theirs(KronfluenceTask):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            outputs = task.outputs(model, batch)
            return setting.sampled(outputs) if sample else task.loss(outputs, batch).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return task.measure(task.outputs(model, batch), batch).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return layers

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, train, queries = (
            prepare_model(as_linear(setting.model), Theirs()),
            Items(setting.train),
            Items(setting.queries),
        )
        analyzer = Analyzer("a", model, Theirs(), cpu=True, output_dir=folder, disable_tqdm=True)
        fitting, _ = timed(lambda: analyzer.fit_all_factors("f", train, per_device_batch_size=batch))
        scoring, _ = timed(
            lambda: analyzer.compute_pairwise_scores(
                "s",
                "f",
                queries,
                train,
                per_device_query_batch_size=min(batch, len(queries)),
                per_device_train_batch_size=batch,
                score_args=ScoreArguments(damping_factor=None),
            )
        )
        found: Tensor = analyzer.load_pairwise_scores("s")["all_modules"]
    return {"factors": fitting, "scores": scoring}, -found.mT


def total(seconds: dict[str, float]) -> float:
    """Of all stages."""
    return sum(seconds.values())


def measured(setting: Setting, repetitions: int) -> dict[str, Any]:
    """Both, one after the other, several times."""
    _, again, layers = ours(setting, SEED + 1)  # which warms up
    tried = {batch: theirs(setting, layers, batch) for batch in BATCHES}
    batch = min(tried, key=lambda size: total(tried[size][0]))
    own = [ours(setting) for _ in range(repetitions)]
    peers = [tried[batch], *(theirs(setting, layers, batch) for _ in range(repetitions - 1))]
    medians = {
        who: {stage: statistics.median(seconds[stage] for seconds, *_ in found) for stage in ("factors", "scores")}
        for who, found in (("comove", own), ("kronfluence", peers))
    }
    scores, peer = own[0][1], peers[0][1]
    return {
        "train": len(setting.train),
        "queries": len(setting.queries),
        "layers": len(layers),
        "seconds": medians,
        "times ours": total(medians["kronfluence"]) / total(medians["comove"]),
        "load": os.getloadavg()[0],
        "kronfluence batch": batch,
        "tried": {str(size): total(seconds) for size, (seconds, _) in tried.items()},
        "kronfluence beside ours": agreement(peer.numpy(), scores.numpy()),
        "ours with another seed": agreement(again.numpy(), scores.numpy()),
    }


def main() -> None:
    """Measure every model, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--models", default="mlp,resnet9,gpt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known, here = settings(arguments.data_dir), machine()
    result: dict[str, Any] = {
        "command": f"python benchmarks/ekfac.py --data-dir DIR --repetitions {arguments.repetitions}",
        "seeds": {"data, weights, pseudo-targets": SEED, "another seed": SEED + 1},
        "damping": f"{SHARE} of each layer's mean eigenvalue",
        **here,
        "versions": {**here["versions"], **{name: metadata.version(name) for name in ("kronfluence", "transformers")}},
        "models": (read_json(RESULTS / "ekfac.json") if (RESULTS / "ekfac.json").exists() else {}).get("models", {}),
    }
    for name in arguments.models.split(","):
        result["models"][name] = plain(measured(known[name](), arguments.repetitions))
        print(name, result["models"][name])
        write_result("ekfac", result)


if __name__ == "__main__":
    main()
