"""The study, declared: what is trained on what, at three sizes.

``paper`` is the protocol of the CLD paper's appendix F and of its figures 8a and 8b. ``small`` fits a computer with two
cores and ``tiny`` a test; both say in ``shrunk`` in what they are smaller, and the report repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from comove.attribution import (
    CLD,
    EKFAC,
    TRAK,
    Arnoldi,
    Attributor,
    Datamodels,
    GaussNewton,
    RandomControl,
    SameClassControl,
    SubsampledInfluence,
    TracIn,
)
from comove.data import ExampleSet, Splits
from comove.data.builtin import load_dataset
from comove.training import RECIPES, Recipe

CLD_PAPER = CLD(rows="epochs")
"""The paper's CLD-inf: Pearson, a row before training and after each epoch."""
CLD_FAMILY = (
    CLD_PAPER,
    CLD(),
    CLD(rows="epochs", correlation="spearman"),
    CLD(correlation="spearman"),
    CLD(correlation="covariance", common_mode="remove"),
)
"""The paper's, denser rows, ranks, both, and what did best on digits."""
WHITENED = CLD(whiten=0.03, transform="log-odds")
"""Whitened log odds; the ridge was chosen on digits (docs/methods/cld.md)."""
SOLVED = GaussNewton(share=0.8, solver="woodbury")
"""Damped Gauss-Newton influence, exact."""


@dataclass(frozen=True)
class Removals:
    """The brittleness measurement (figure 8b).

    Attributes:
        methods: labels of the methods whose highest-scored examples are removed; the controls come by themselves.
        queries: how many queries, taken from the front of a fixed random order: more of them extend the study.
        ks: numbers of examples removed.
        seeds: R, models a removed set.
        base_seeds: models of all examples that vote on the prediction.
    """

    methods: tuple[str, ...]
    queries: int
    ks: tuple[int, ...]
    seeds: int
    base_seeds: int


@dataclass(frozen=True)
class Coresets:
    """The coreset curves.

    Attributes:
        data: options of the splits: these need validation examples to aim at, and many queries to measure on.
        methods: names of selectors.
        budgets: shares kept.
        seeds: models a point.
    """

    data: Mapping[str, Any]
    methods: tuple[str, ...]
    budgets: tuple[float, ...]
    seeds: int


@dataclass(frozen=True)
class SameSeed:
    """The bank of one seed, which ``Unrolled`` is measured on.

    Attributes:
        alpha: share of the training data in each subset.
        subsets: models.
        queries: how many, from the front.
    """

    alpha: float
    subsets: int
    queries: int


@dataclass(frozen=True)
class Study:
    """One size of the study.

    Attributes:
        size: its name.
        about: what it is, in a sentence.
        shrunk: in what it is smaller than the paper's protocol; empty for the paper's size.
        source: ``"cifar10"`` or ``"synthetic"``.
        data: options of the splits.
        width: of ResNet-9.
        recipe: how every model is trained.
        runs: models that the attribution methods are fitted on.
        every: steps between the dense rows of their traces.
        methods: fitted on the runs.
        bank_methods: fitted on ``fit_subsets`` other subsets than those of the ground truth.
        subsets: C.
        truths: R for each sampling ratio, in the order of training; ``"loo"`` is (N-1)/N.
        fit_subsets: models that the bank methods are fitted on, at alpha 0.5.
        removals: the brittleness measurement.
        coresets: the coreset curves.
        same_seed: the bank of one seed; ``None`` for none.
        kept: how many of the highest-scored examples of each query are kept in compact form.
    """

    size: str
    about: str
    shrunk: tuple[str, ...]
    source: str
    data: Mapping[str, Any]
    width: float
    recipe: Recipe
    runs: int
    every: int
    methods: tuple[Attributor, ...]
    bank_methods: tuple[Attributor, ...]
    subsets: int
    truths: tuple[tuple[float | str, int], ...]
    fit_subsets: int
    removals: Removals
    coresets: Coresets
    same_seed: SameSeed | None = None
    kept: int = field(default=800)

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods' labels, those of the bank last."""
        return tuple(method.label for method in (*self.methods, *self.bank_methods))

    def splits(self) -> Splits:
        """The training examples and the queries."""
        return _splits(self.source, self.data)

    def coreset_splits(self) -> Splits:
        """The same with validation examples, for the coreset curves."""
        return _splits(self.source, self.coresets.data)

    def whole_splits(self) -> Splits:
        """The training examples, with all test images as queries."""
        return _splits(self.source, {**self.data, "queries": None} if self.source == "cifar10" else self.data)

    def identity(self) -> dict[str, Any]:
        """What makes results of two sessions belong together, as JSON values."""
        return {"size": self.size, "width": self.width, "recipe": self.recipe.to_json(), "data": dict(self.data)}

    def declared(self) -> dict[str, Any]:
        """Everything above as JSON values, for the report."""
        return {
            **self.identity(),
            "about": self.about,
            "shrunk": list(self.shrunk),
            "source": self.source,
            "runs": self.runs,
            "every": self.every,
            "methods": list(self.labels),
            "bank_methods": [method.label for method in self.bank_methods],
            "subsets": self.subsets,
            "truths": [list(truth) for truth in self.truths],
            "fit_subsets": self.fit_subsets,
            "removals": asdict(self.removals),
            "coresets": asdict(self.coresets),
        }


def _splits(source: str, data: Mapping[str, Any]) -> Splits:
    return synthetic(**data) if source == "synthetic" else load_dataset("cifar10", **data)


def synthetic(train: int, queries: int, validation: int = 0, side: int = 12) -> Splits:
    """Noisy images of ten classes, a texture in one colour each: what a small network learns in six epochs."""
    rng = np.random.default_rng(0)
    total = train + queries + validation
    labels = np.arange(total) % 10
    row, column = np.indices((side, side))
    textures = (row % 2 == 0, column % 2 == 0, (row + column) % 2 == 0, (row + column) % 3 == 0)
    images = rng.integers(0, 155, (total, 3, side, side))
    for image, label in zip(images, labels, strict=True):
        image[label % 3] += 100 * textures[label // 3]
    examples = ExampleSet.from_arrays(images.astype(np.uint8), labels, name="synthetic")
    parts = [examples.subset(ids) for ids in np.split(examples.ids, (train, train + validation)) if ids.size]
    return Splits(parts[0], parts[1] if validation else None, parts[-1], "synthetic")


ALL_CORESETS = ("cld", "random", "el2n", "forgetting", "herding", "dyn_unc", "ccs")

TINY = Study(
    size="tiny",
    about="The whole study on 200 synthetic images: a test of the machinery, whose figures mean nothing.",
    shrunk=("synthetic images instead of CIFAR-10", "every count"),
    source="synthetic",
    data={"train": 200, "queries": 20},
    width=0.0625,
    recipe=RECIPES["resnet9-small"].with_changes(epochs=6, batch_size=20, peak_epoch=2, crop_padding=1),
    runs=2,
    every=5,
    methods=(
        CLD_PAPER,
        CLD(correlation="spearman"),
        TRAK(proj_dim=32),
        TracIn(),
        Arnoldi(rank=5, arnoldi_dim=10, hessian_examples=50),
        RandomControl(),
        SameClassControl(),
    ),
    bank_methods=(SubsampledInfluence(), Datamodels(penalties=5)),
    subsets=8,
    truths=((0.5, 2), (0.9, 2), ("loo", 1)),
    fit_subsets=16,
    removals=Removals((CLD_PAPER.label, "trak(proj_dim=32)"), 3, (5, 15), 2, 3),
    coresets=Coresets(
        {"train": 160, "queries": 40, "validation": 40}, ("cld", "random", "el2n", "forgetting"), (0.2, 0.5), 2
    ),
    same_seed=SameSeed(0.95, 8, 5),
    kept=40,
)

SHORT_BATCHES = Study(
    size="short-batches",
    about="The first edition of `small`, whose epochs ended in a batch of 3 or 4 images.",
    shrunk=(
        "2,500 of 50,000 training images",
        "ResNet-9 at an eighth of the width, 15 epochs, batch 64 (the recipe resnet9-small)",
        "R = 5 at alpha 0.5 and R = 2 at the other ratios, not 10",
        "brittleness on 20 queries, 2 models a removed set, and four methods",
        "FZ and datamodels fitted on 300 models",
    ),
    source="cifar10",
    data={"limit": 2500, "queries": 200, "validation": 0},
    width=0.125,
    recipe=RECIPES["resnet9-small"].with_changes(last_batch="short"),
    runs=10,
    every=10,
    methods=(*CLD_FAMILY, TRAK(), TracIn(), Arnoldi(), RandomControl(), SameClassControl()),
    bank_methods=(SubsampledInfluence(), Datamodels()),
    subsets=100,
    truths=((0.5, 5), (0.3, 2), (0.7, 2), (0.9, 2), ("loo", 2)),
    fit_subsets=300,
    removals=Removals((CLD_PAPER.label, "trak", "tracin", "arnoldi"), 20, (10, 40, 200, 800), 2, 11),
    coresets=Coresets({"limit": 2500, "queries": 1000}, ALL_CORESETS, (0.05, 0.1, 0.3, 0.5), 3),
)

SMALL = replace(
    SHORT_BATCHES,
    size="small",
    about="ResNet-9 at an eighth of the width on 2,500 images of CIFAR-10: what two cores train in a night.",
    shrunk=(
        "2,500 of 50,000 training images",
        "ResNet-9 at an eighth of the width, 15 epochs, batch 64 (the recipe resnet9-small)",
        "R = 5 at alpha 0.5 and R = 2 at the other ratios, not 10",
        "brittleness on 50 queries and at one number of examples, 40 (1.6 % of the data)",
        "FZ and datamodels fitted on 300 models",
    ),
    recipe=RECIPES["resnet9-small"],
    methods=(
        *CLD_FAMILY,
        WHITENED,
        TRAK(),
        SOLVED,
        EKFAC(),
        TracIn(),
        Arnoldi(),
        RandomControl(),
        SameClassControl(),
    ),
    removals=Removals(
        (CLD_PAPER.label, WHITENED.label, "trak", SOLVED.label, EKFAC().label, "tracin"), 50, (40,), 5, 11
    ),
    same_seed=SameSeed(0.99, 50, 20),
)

PAPER = Study(
    size="paper",
    about="The paper's protocol: ResNet-9 (2,274,880 parameters) on all of CIFAR-10, 24 epochs.",
    shrunk=(),
    source="cifar10",
    data={"queries": 200, "validation": 0},
    width=1.0,
    recipe=RECIPES["trak-resnet9"],
    runs=10,
    every=25,
    methods=(
        *CLD_FAMILY,
        TRAK(proj_dim=2048),
        TracIn(checkpoints=5),
        Arnoldi(),
        RandomControl(),
        SameClassControl(),
    ),
    bank_methods=(SubsampledInfluence(), Datamodels(penalties=8, smallest=0.05)),
    subsets=100,
    truths=((0.5, 10), (0.3, 10), (0.7, 10), (0.9, 10), ("loo", 10)),
    fit_subsets=500,
    removals=Removals(
        (
            CLD_PAPER.label,
            "trak(proj_dim=2048)",
            "tracin(checkpoints=5)",
            "fz",
            "datamodels(penalties=8, smallest=0.05)",
        ),
        200,
        (10, 50, 100, 200, 400, 800),
        5,
        11,
    ),
    coresets=Coresets({}, ALL_CORESETS, (0.05, 0.1, 0.3, 0.5), 3),
    same_seed=SameSeed(0.99, 50, 20),
)

STUDIES = {study.size: study for study in (TINY, SMALL, SHORT_BATCHES, PAPER)}
