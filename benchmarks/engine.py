"""Training many models: seconds a model, ours and as others do it, all on one thread in one run.

    python benchmarks/engine.py [--data-dir DIR] [--models 48] [--repetitions 5]

Digits: an MLP 64-64-10, each model on its own 700 of 1,400 examples, batches of 64, 30 epochs of SGD with momentum:
a ``DataLoader`` loop as users of dattri write it, dattri's ``retrain_lds`` around that loop, ``torch.func.vmap`` over
gradients of all models at once, our loop one by one, and ours stacked in the group that ``choose_engine`` picks. With
``--data-dir`` also ResNet-9 at an eighth of the width on 1,000 of 2,000 CIFAR-10 images, augmented: one by one and
stacked in groups of 2 and 4, in seconds a model and epoch.

Figures are process CPU seconds (equal to seconds on an idle machine; others' work lengthens them less), medians over
repetitions. Within a repetition every row runs once, and ratios are taken within repetitions. Mean accuracies on the
queries show that the rows do the same work. The result goes to ``benchmarks/results/engine.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dattri.model_util.retrain import retrain_lds
from measuring import machine, write_result
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.data import DataLoader, Subset, TensorDataset

from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.models import ModelSpec
from comove.training import Engine, Member, Recipe, Resident, as_recipe, choose_engine, train_many
from comove.training.loop import batch_bounds
from comove.training.randomness import generator_for

CPU = torch.device("cpu")
SEED = 0
ALPHA = 0.5


@dataclass(frozen=True)
class Setting:
    """What all rows train: data, architecture, recipe, and a subset and seed for each model."""

    train: Resident
    query: Resident
    spec: ModelSpec
    recipe: Recipe
    members: list[Member]

    @classmethod
    def of(cls, splits: Splits, model: str, recipe: Recipe | None, models: int, **options: Any) -> Setting:
        """Draw the subsets."""
        train, query = Resident(splits.train, CPU), Resident(splits.query, CPU)
        spec = ModelSpec.of(model, num_classes=10, input_shape=splits.train.input_shape, **options)
        draw, size = np.random.default_rng(SEED), round(ALPHA * len(train))
        members = [Member(np.sort(draw.choice(len(train), size, replace=False)), seed) for seed in range(models)]
        return cls(train, query, spec, recipe or as_recipe(None, model=model, n_train=len(train)), members)

    @property
    def dataset(self) -> TensorDataset:
        """The training examples, prepared, as torch's own data set."""
        return TensorDataset(self.train.inputs(slice(None)), self.train.labels)

    def accuracy(self, logits: Any) -> float:
        """Share of queries predicted right."""
        return float((np.asarray(logits).argmax(-1) == self.query.labels.numpy()).mean())


def loader_loop(setting: Setting, loader: DataLoader[Any], seed: int | None = None) -> nn.Module:
    """The loop of dattri's examples."""
    model = setting.spec.build(seed or 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.recipe.lr, momentum=setting.recipe.momentum)
    model.train()
    for _ in range(setting.recipe.epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy_of(setting: Setting, models: list[nn.Module]) -> float:
    """Mean accuracy of models."""
    return statistics.mean(setting.accuracy(model(setting.query.inputs(slice(None)))) for model in models)


def by_loader(setting: Setting) -> Callable[[], float]:
    """A shuffling ``DataLoader`` over a ``Subset`` for each model."""
    loaders = [
        DataLoader(Subset(setting.dataset, member.positions.tolist()), setting.recipe.batch_size, shuffle=True)
        for member in setting.members
    ]
    models = [loader_loop(setting, loader, seed) for seed, loader in enumerate(loaders)]
    return lambda: accuracy_of(setting, models)


def by_dattri(setting: Setting) -> Callable[[], float]:
    """``retrain_lds`` of dattri, which draws the subsets and writes the weights."""
    models: list[nn.Module] = []

    def train_func(loader: DataLoader[Any], seed: int | None = None) -> nn.Module:
        models.append(loader_loop(setting, loader, seed))
        return models[-1]

    loader = DataLoader(setting.dataset, setting.recipe.batch_size)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        retrain_lds(train_func, loader, folder, len(setting.members), subset_ratio=ALPHA, seed=SEED)
    return lambda: accuracy_of(setting, models)


def by_vmap(setting: Setting) -> Callable[[], float]:
    """Stacked parameters and ``vmap`` over per-model gradients, as torch's tutorial on model ensembling has it."""
    networks = [setting.spec.build(member.seed) for member in setting.members]
    parameters, _ = stack_module_state(networks)
    parameters = {name: value.detach() for name, value in parameters.items()}
    momentum = {name: torch.zeros_like(value) for name, value in parameters.items()}

    def loss(parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(networks[0], parameters, (inputs,)), labels)

    gradient, recipe = vmap(grad(loss)), setting.recipe
    positions = torch.from_numpy(np.stack([member.positions for member in setting.members]))
    for epoch in range(recipe.epochs):
        orders = [
            torch.randperm(positions.shape[1], generator=generator_for(member.seed, "order", epoch))
            for member in setting.members
        ]
        where = positions.gather(1, torch.stack(orders))
        for start, stop in batch_bounds(positions.shape[1], recipe):
            chosen = where[:, start:stop]
            inputs = setting.train.inputs(chosen.flatten()).unflatten(0, chosen.shape)
            found = gradient(parameters, inputs, setting.train.labels[chosen])
            for name, value in parameters.items():
                momentum[name].mul_(recipe.momentum).add_(found[name])
                value.sub_(momentum[name], alpha=recipe.lr)
    inputs = setting.query.inputs(slice(None))
    logits = vmap(lambda one: functional_call(networks[0], one, (inputs,)))(parameters)
    return lambda: setting.accuracy(logits)


def by_us(engine: Engine, setting: Setting) -> Callable[[], float]:
    """``train_many``."""
    trained = train_many(setting.spec, setting.train, setting.query, setting.members, setting.recipe, engine=engine)
    return lambda: setting.accuracy([one.logits for one in trained])


Row = Callable[[Setting], Callable[[], float]]


def timed(rows: Mapping[str, Row], setting: Setting, repetitions: int, unit: int = 1) -> dict[str, Any]:
    """Run all rows in turn, again and again; CPU seconds a model (and ``unit``), and times the last row's."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    accuracies: dict[str, float] = {}
    for repetition in range(repetitions + 1):
        for name, row in rows.items():
            started = time.process_time()
            accuracy = row(setting)
            taken = (time.process_time() - started) / len(setting.members) / unit
            if repetition == 0:  # warms up
                accuracies[name] = accuracy()
            else:
                seconds[name].append(taken)
    last = seconds[list(rows)[-1]]
    return {
        name: {
            "seconds": round(statistics.median(taken), 5),
            "all": [round(second, 5) for second in taken],
            "times the last row": round(statistics.median(a / b for a, b in zip(taken, last, strict=True)), 2),
            "accuracy": round(accuracies[name], 4),
        }
        for name, taken in seconds.items()
    }


def shown(title: str, found: dict[str, Any]) -> None:
    """Print one table."""
    print(title)
    for name, row in found.items():
        ratio, accuracy = row["times the last row"], row["accuracy"]
        print(f"  {name:<28} {row['seconds']:9.4f} s  {ratio:6.2f}x   accuracy {accuracy:.3f}", flush=True)


def digits(models: int, repetitions: int) -> dict[str, Any]:
    """The MLP on digits."""
    setting = Setting.of(load_dataset("digits"), "mlp", None, models)
    size = len(setting.members[0].positions)
    engine = choose_engine(setting.spec, setting.train, setting.recipe, size, models=500)
    print(f"digits, 500 models: {engine}")
    stacked = engine if engine.kind == "stacked" else Engine("stacked", 16, "")
    rows: dict[str, Row] = {
        "DataLoader loop": by_loader,
        "dattri retrain_lds": by_dattri,
        "ours one by one": partial(by_us, Engine("one-by-one", 1, "")),
        "vmap": by_vmap,
        f"ours stacked by {stacked.group}": partial(by_us, stacked),
    }
    found = timed(rows, setting, repetitions)
    shown("digits MLP: CPU seconds a model", found)
    return {"engine": engine.to_json(), "recipe": setting.recipe.to_json(), "examples a model": size, "rows": found}


def cifar10(data_dir: str, repetitions: int, epochs: int = 4) -> dict[str, Any]:
    """ResNet-9 at an eighth of the width on CIFAR-10."""
    splits = load_dataset("cifar10", data_dir=data_dir, limit=2000)
    recipe = as_recipe(None, model="resnet9", n_train=2000)
    setting = Setting.of(splits, "resnet9", recipe.with_changes(epochs=epochs), 4, width=0.125)
    size = len(setting.members[0].positions)
    engine = choose_engine(setting.spec, setting.train, recipe, size, models=500)
    print(f"ResNet-9/8, 500 models: {engine}")
    rows: dict[str, Row] = {
        "ours stacked by 4": partial(by_us, Engine("stacked", 4, "")),
        "ours stacked by 2": partial(by_us, Engine("stacked", 2, "")),
        "ours one by one": partial(by_us, Engine("one-by-one", 1, "")),
    }
    found = timed(rows, setting, repetitions, unit=epochs)
    shown(f"ResNet-9/8: CPU seconds a model and epoch of {size} images (queries predicted once in {epochs})", found)
    return {"engine": engine.to_json(), "recipe": recipe.to_json(), "examples a model": size, "rows": found}


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where CIFAR-10 lies; without it digits only")
    parser.add_argument("--models", type=int, default=48, help="digits models a repetition (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="after one to warm up (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine.json")
    arguments = parser.parse_args()
    if min(arguments.models, arguments.repetitions) < 1:
        parser.error("numbers must be at least 1")
    torch.set_num_threads(1)
    given = "--data-dir DIR " if arguments.data_dir else ""
    result = {
        "command": f"python benchmarks/engine.py {given}--models {arguments.models} "
        f"--repetitions {arguments.repetitions}",
        "seed": SEED,
        "digits MLP, a model": digits(arguments.models, arguments.repetitions),
    }
    if arguments.data_dir:
        result["ResNet-9/8, a model and epoch"] = cifar10(arguments.data_dir, arguments.repetitions)
    result |= machine()
    result["versions"]["dattri"] = metadata.version("dattri")
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
