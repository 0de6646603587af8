"""The image data sets of ``benchmarks/quality.py``, and what any of its data sets is: runs, and a bank as the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from measuring import RESULTS

from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.evaluation import RetrainingBank, subsets
from comove.training import RECIPES, Recording, Run, Training, train

__all__ = ["CASES", "STUDY", "Case"]

STUDY = RESULTS / "cifar10-resnet9" / "short-batches"


@dataclass(frozen=True)
class Case:
    """A data set, the network trained on it, the recorded runs and the retrained models.

    Attributes:
        name: as on the command line.
        title: as on the page.
        about: what was trained, and what the truth is, in a sentence.
        folder: where runs, scores and banks are kept.
        data_dir: where data that is not embedded lies.
        training: network and recipe.
        recording: of the runs.
        subsets: C, half of the training examples each; 0: the truth is the published bank of the study.
        seeds: R.
        counts: numbers of runs that scores are averaged over.
    """

    name: str
    title: str
    about: str
    folder: Path
    data_dir: Path
    training: Training
    recording: Recording
    subsets: int
    seeds: int
    counts: tuple[int, ...] = (1, 3, 5, 10)

    @cached_property
    def splits(self) -> Splits:
        """Its examples."""
        if self.name == "cifar10":
            return load_dataset("cifar10", data_dir=self.data_dir, limit=2500, validation=0, queries=200, seed=0)
        return load_dataset("digits", seed=0)

    def run(self, number: int) -> Run:
        """A recorded run; a finished one is opened, not trained again."""
        how = self.training
        return train(
            self.splits,
            how.model,
            how.recipe,
            number,
            self.folder / "runs" / f"{number:03d}",
            recording=self.recording,
            model_options=how.options,
        )

    def learnt(self) -> str:
        """How good the first run is on the queries."""
        return f"Right on the queries: {self.run(0).result['query_accuracy']:.0%}."

    def bank(self, complete: bool = True) -> RetrainingBank:
        """The truth, trained where it is not there yet; ``complete=False``: as far as it is."""
        if not self.subsets:
            return RetrainingBank.load(STUDY / "bank-random-0.5-0.safetensors")
        plan = subsets.random(0.5, self.subsets, seed=0)
        made = RetrainingBank.create(self.folder / "bank", self.splits, self.training, subsets=plan, seeds=self.seeds)
        return made.run(executor="serial") if complete else made


DIGITS = Training("mlp", RECIPES["digits-mlp"].with_changes(last_batch="short"))
RESNET = Training("resnet9", RECIPES["resnet9-small"].with_changes(last_batch="short"), {"width": 0.125})
"""As the banks of the page were trained, the study's first edition among them."""

CASES: dict[str, Callable[[Path, Path], Case]] = {
    "digits": lambda folder, data: Case(
        "digits",
        "Digits",
        "MLP 64-64-64-10 (8,970 parameters) on 1,400 digits of 8 x 8 pixels, 30 epochs; 200 queries; truth: 100 random "
        "halves x 4 seeds.",
        folder,
        data,
        DIGITS,
        Recording(every=11),
        100,
        4,
    ),
    "cifar10": lambda folder, data: Case(
        "cifar10",
        "CIFAR-10, small",
        "ResNet-9 at an eighth of the width (36,168 parameters) on 2,500 images, flipped and cropped, 15 epochs; 200 "
        "queries; truth: the bank of the [study](study.md), 100 random halves x 5 seeds.",
        folder,
        data,
        RESNET,
        Recording(every=10, anchors=[-1]),
        0,
        5,
    ),
}
