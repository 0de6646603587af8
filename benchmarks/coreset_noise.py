"""Coreset methods by share kept and by share of wrong labels, and what they keep.

    python benchmarks/coreset_noise.py digits
    python benchmarks/coreset_noise.py cifar10 --data-dir DIR

A cell is one share of wrong labels and one seed: labels are flipped, a run is recorded on them, every method selects
with that run, and one model is trained from scratch on each coreset. So two methods of one cell share the wrong labels
and the run, and their differences are paired by seed. Wrong labels are in the training part alone; the validation
labels, which only CLD and Glister read, are clean. ``cld, noisy validation`` is CLD with as many wrong labels there.

Each cell is kept in ``--folder``: the same command goes on where it was cut off, cell by cell and model by model, and
``--publish`` trains nothing and publishes the cells that are finished. The result goes to
``benchmarks/results/coreset-noise-<data>.json``, with figures beside it, and to ``docs/coresets-noise.md``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from coreset_curves import METHODS
from coreset_noise_page import write_page
from coreset_noise_summary import FULL, NOISY_VALIDATION, OWN, RIVALS, summary
from measuring import machine, plain, write_result

from comove.coreset import Coreset, Selector, selectors
from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.data.label_noise import flip_labels
from comove.discovery import parse_method
from comove.retraining.bank import RetrainingBank
from comove.retraining.subsets import everything, only
from comove.store import read_json, write_json
from comove.training import Recipe, Recording, Run, Training, as_recipe, train

ALL = (*METHODS, *(name for name in OWN if name not in METHODS))
NOISY = (*RIVALS, *OWN)


@dataclass(frozen=True)
class Study:
    """What is trained on what.

    Attributes:
        model: of the runs and of the models trained on coresets, with its own recipe.
        shares: kept of clean data, by all methods.
        noisy_shares: kept of data with wrong labels, by the methods of ``NOISY``; of clean data too.
        noise: shares of wrong labels, in the order in which cells are computed.
        first: shares kept that every cell has before any has the others.
        seeds: cells of each share of wrong labels.
    """

    data: str
    model: str
    model_options: dict[str, Any]
    data_options: dict[str, Any]
    shares: tuple[float, ...]
    noisy_shares: tuple[float, ...]
    noise: tuple[float, ...]
    first: tuple[float, ...]
    seeds: int

    def cells(self) -> list[tuple[float, int]]:
        """Shares of wrong labels and seeds, seed by seed, so that at any time the seeds so far are a whole result."""
        return [(noise, seed) for seed in range(self.seeds) for noise in (0.0, *self.noise)]

    def steps(self) -> Iterator[tuple[Study, float, int]]:
        """What is computed one after the other: every cell at the first shares, then at all."""
        for part in (replace(self, shares=self.first, noisy_shares=self.first), self):
            yield from ((part, noise, seed) for noise, seed in self.cells())

    def asked(self, noise: float) -> dict[str, tuple[float, ...]]:
        """The shares that each method keeps in a cell."""
        if noise:
            return dict.fromkeys(NOISY, self.noisy_shares)
        return {name: tuple(sorted({*self.shares, *(self.noisy_shares if name in NOISY else ())})) for name in ALL}

    def complete(self, found: dict[str, Any]) -> bool:
        """Whether a cell has all that is asked of it."""
        known = {(row["method"], row["share"]) for row in found["rows"]}
        return all((name, share) in known for name, shares in self.asked(found["noise"]).items() for share in shares)


ORDER = ((0.05, 0.1, 0.2, 0.3, 0.5), (0.1, 0.3, 0.5, 0.7), (0.4, 0.2, 0.1), (0.1, 0.3))
STUDIES = {
    "digits": Study("digits", "mlp", {}, {}, *ORDER, seeds=10),
    "cifar10": Study("cifar10", "resnet9", {"width": 0.125}, {"limit": 2500, "queries": 1000}, *ORDER, seeds=5),
}


# --- one cell ----------------------------------------------------------------------------------------------------


def recorded(study: Study, splits: Splits, recipe: Recipe, seed: int, folder: Path) -> Run:
    """A run with all that a method may read."""
    recording = Recording(anchors=tuple(sorted({min(10, recipe.epochs), recipe.epochs})))
    options = {"recording": recording, "model_options": study.model_options, "device": "cpu"}
    return train(splits, study.model, recipe, seed, folder, **options)


def chosen(study: Study, noise: float, seed: int, run: Run) -> dict[tuple[str, float], Coreset]:
    """The coreset of every method and share; a method that draws at random draws anew for each seed."""
    found = {}
    for name, shares in study.asked(noise).items():
        method: Selector = parse_method(name, selectors(), "coreset method").reseeded(seed)
        found.update({(name, one): two for one, two in zip(shares, method.select_each(run, shares), strict=True)})
    return found


def cell(study: Study, noise: float, seed: int, folder: Path, data_dir: str | None) -> dict[str, Any]:
    """One share of wrong labels, one seed: accuracy and description of every coreset."""
    started = time.process_time()
    clean = load_dataset(study.data, data_dir=data_dir, seed=0, **study.data_options)
    splits, wrong = flip_labels(clean, noise, seed) if noise else (clean, np.empty(0, np.int64))
    splits = replace(splits, source={})  # loading them again by name would flip other labels
    recipe = as_recipe(None, model=study.model, n_train=len(splits.train))
    run = recorded(study, splits, recipe, seed, folder / "run")
    found = chosen(study, noise, seed, run)
    if noise:
        assert splits.validation is not None
        swapped = replace(splits, train=splits.validation, validation=splits.train)
        validation = flip_labels(swapped, noise, seed)[0].train
        other = recorded(study, replace(splits, validation=validation), recipe, seed, folder / "noisy-validation")
        method = parse_method("cld", selectors(), "coreset method")
        for share, coreset in zip(study.noisy_shares, method.select_each(other, study.noisy_shares), strict=True):
            found[NOISY_VALIDATION, share] = coreset
    training = Training(study.model, recipe, study.model_options, seed)
    plans = [everything(), only([coreset.ids for coreset in found.values()])]
    bank = RetrainingBank.create(folder / "bank", splits, training, subsets=plans, seeds=1)
    bank = bank.run(executor="serial", device="cpu")
    whole, accuracy = (bank.plan(plan).outputs("correct").mean(-1)[:, 0] for plan in plans)
    rows = [
        {"method": name, "share": share, "accuracy": float(value), "ids": coreset.ids.tolist()}
        for ((name, share), coreset), value in zip(found.items(), accuracy, strict=True)
    ]
    seconds = time.process_time() - started
    return {
        "noise": noise,
        "seed": seed,
        FULL: float(whole[0]),
        "wrong": wrong.tolist(),
        "rows": rows,
        "CPU seconds": seconds,
    }


def compute(study: Study, folder: Path, data_dir: str | None) -> None:
    """What is missing, kept cell by cell."""
    for part, noise, seed in study.steps():
        place = cell_folder(folder, noise, seed)
        file = place / "cell.json"
        before = read_json(file) if file.exists() else {"noise": noise, "rows": [], "CPU seconds": 0.0}
        if not part.complete(before):
            found = cell(part, noise, seed, place, data_dir)
            found["CPU seconds"] += before["CPU seconds"]
            write_json(file, found)
            print(f"{study.data}: noise {noise:g}, seed {seed}: {found['CPU seconds']:.0f} CPU seconds", flush=True)


def finished(study: Study, folder: Path) -> list[dict[str, Any]]:
    """The cells there are, at the first shares or at all."""
    files = [cell_folder(folder, noise, seed) / "cell.json" for noise, seed in study.cells()]
    return [read_json(file) for file in files if file.exists()]


def cell_folder(folder: Path, noise: float, seed: int) -> Path:
    """Where the run, the models and the results of a cell are kept."""
    return folder / f"noise-{noise:g}-seed-{seed}"


def main() -> None:
    """Compute what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=STUDIES)
    parser.add_argument("--data-dir", help="where CIFAR-10 lies; by default $COMOVE_DATA")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "comove-coreset-noise")
    parser.add_argument("--publish", action="store_true", help="write what is finished; train nothing")
    arguments = parser.parse_args()
    study = STUDIES[arguments.data]
    folder = arguments.folder / arguments.data
    if not arguments.publish:
        compute(study, folder, arguments.data_dir)
    found = finished(study, folder)
    result = {
        "command": f"python benchmarks/coreset_noise.py {arguments.data}",
        "study": asdict(study),
        "CPU seconds": round(sum(one["CPU seconds"] for one in found)),
        **plain(summary(found, folder)),
        **machine(),
    }
    write_result(f"coreset-noise-{arguments.data}", result)
    write_page(list(STUDIES))


if __name__ == "__main__":
    main()
