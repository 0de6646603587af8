"""cos(grad l(theta_t, z_m), G_V(theta_t)) for the examples of a coreset: the paper's Lemmas 1 to 3, measured.

Lemma 1 says that an example of high CLD has a gradient aligned with the validation gradient G_V all along the training
on everything; Lemma 2, that this holds along the training on the coreset too; Lemma 3, that the mean gradient of the
coreset then stays near G_V. Here each is a number at each checkpoint. CLD coresets are chosen class by class, so the
cosine with the validation gradient of the example's own class is given beside the one with G_V.

Shape legend: k examples of the coreset, C classes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.tracin import run_gradients, spread
from comove.coreset import Coreset, Selector, selector
from comove.data import Splits
from comove.errors import InputError
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import PerExampleGradients
from comove.plots import diagnosis_figure
from comove.store import new_folder, slug, write_json
from comove.store.results import as_plain
from comove.training import Recording, Resident, Run, resolve_device, train
from comove.training.run import read_weights

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["TRAJECTORIES", "Alignment", "Diagnosis", "alignment", "class_means", "diagnose"]

Trajectory = Literal["full data", "coreset"]
TRAJECTORIES: tuple[Trajectory, ...] = ("full data", "coreset")


@dataclass(frozen=True)
class Alignment:
    """How the gradients of a coreset's examples lie to the validation gradient at one checkpoint.

    Attributes:
        method: that chose the coreset.
        trajectory: ``"full data"`` (Lemma 1) or ``"coreset"`` (Lemmas 2 and 3): whose training the checkpoint is of.
        epoch: of the checkpoint.
        mean: mean over the coreset of the cosine with G_V.
        low: its 10th percentile.
        median: its median.
        high: its 90th percentile.
        own_class: mean of the cosine with the validation gradient of the example's own class.
        distance: norm of (mean gradient of the coreset - G_V) over the norm of G_V.
        mean_cosine: cosine of the mean gradient of the coreset with G_V.
        drift: norm of (theta - theta of the training on everything at that epoch) over how far the latter has moved.
    """

    method: str
    trajectory: Trajectory
    epoch: int
    mean: float
    low: float
    median: float
    high: float
    own_class: float
    distance: float
    mean_cosine: float
    drift: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """Alignments of several coresets along training.

    Attributes:
        rows: one per method, trajectory and checkpoint.
        budget: share kept.
        provenance: of the run (JSON values).
        skipped: methods that were left out, and why.
    """

    rows: tuple[Alignment, ...]
    budget: float
    provenance: Mapping[str, Any]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def of(self, method: str, trajectory: Trajectory) -> list[Alignment]:
        """The rows of one method along one trajectory, in order of training."""
        return [row for row in self.rows if row.method == method and row.trajectory == trajectory]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order asked for."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row per method, trajectory and checkpoint."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def plot(self) -> Figure:
        """Draw cosines along both trainings, and distances to the validation gradient: Lemmas 1 to 3, a panel each.

        Raises:
            InputError: nothing was measured.
        """
        return diagnosis_figure([asdict(row) for row in self.rows], self.budget)

    def verdicts(self) -> list[str]:
        """What the rows say about each lemma, a sentence for each method: by means over checkpoints, beside random's.

        A lemma is said to hold for a coreset whose gradients have a positive mean cosine with the validation gradient
        at every checkpoint (Lemmas 1 and 2), or whose mean gradient is nearer to it than that of a random coreset
        (Lemma 3, where random is among the methods).
        """
        said = []
        for method in self.methods:
            for lemma, trajectory in enumerate(TRAJECTORIES, 1):
                if found := self.of(method, trajectory):
                    said.append(f"Lemma {lemma}, {method}: {_told_cosines(found, self.of('random', trajectory))}")
            if near := self.of(method, "coreset") or self.of(method, "full data"):
                said.append(f"Lemma 3, {method}: {_told_distance(near, self.of('random', near[0].trajectory))}")
        return said

    def __repr__(self) -> str:
        lines = []
        for method in self.methods:
            for trajectory in TRAJECTORIES:
                found = self.of(method, trajectory)
                if found:
                    mean = np.mean([row.mean for row in found])
                    distance = np.mean([row.distance for row in found])
                    lines.append(f"  {method:<20} along {trajectory:<9}: cosine {mean:+.3f}, distance {distance:.2f}")
        return "\n".join([f"Diagnosis(coresets of {self.budget:.0%}, means over checkpoints):", *lines])


def _told_cosines(found: Sequence[Alignment], random: Sequence[Alignment]) -> str:
    positive, mean = sum(row.mean > 0 for row in found), float(np.mean([row.mean for row in found]))
    holds = "holds" if positive == len(found) else "does not hold"
    where = f"{holds} along the training on {'everything' if found[0].trajectory == 'full data' else 'the coreset'}"
    beside = "" if not random or found == random else f" (random {np.mean([row.mean for row in random]):+.2f})"
    return f"{where}: mean cosine {mean:+.2f}{beside}, positive at {positive} of {len(found)} checkpoints."


def _told_distance(found: Sequence[Alignment], random: Sequence[Alignment]) -> str:
    mean = float(np.mean([row.distance for row in found]))
    said = f"the mean gradient is {mean:.2f} of the validation gradient's norm away from it"
    if not random or found == random:
        return f"{said}."
    other = float(np.mean([row.distance for row in random]))
    return f"{'holds' if mean < other else 'does not hold'}: {said}, that of a random coreset {other:.2f}."


def class_means(gradients: PerExampleGradients, data: Resident, classes: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return each class's mean gradient (0 if empty), name -> (C, parameter shape), and the counts (C,)."""
    sums = {name: p.new_zeros(classes, *p.shape).detach() for name, p in gradients.parameters.items()}
    counts = torch.bincount(data.labels, minlength=classes)
    for part, chunk in gradients.stream(data):
        for name, gradient in chunk:
            sums[name].index_add_(0, data.labels[part], gradient)
    scale = 1 / counts.clamp(min=1)
    return {name: total * scale.view(-1, *[1] * (total.ndim - 1)) for name, total in sums.items()}, counts


def alignment(
    gradients: PerExampleGradients, coreset: Resident, validation: Resident, classes: int
) -> dict[str, float | npt.NDArray[np.float64]]:
    """Return cosines with G_V (k,) and with one's own class's (k,), and the mean gradient's distance and cosine.

    Args:
        gradients: of the network at a checkpoint.
        coreset: its examples.
        validation: examples that G_V is the mean gradient over.
        classes: C.

    Returns:
        ``cosine`` and ``own_class`` (k,) (0 where a gradient vanishes; NaN where a class has no validation example),
        ``distance`` (relative to the norm of G_V) and ``mean_cosine``.
    """
    per_class, counts = class_means(gradients, validation, classes)
    whole = {name: _weighted(means, counts) for name, means in per_class.items()}
    directions = {name: torch.cat([whole[name][None], per_class[name]]) for name in whole}
    norms = torch.as_tensor(sum(flat_rows(matrix).square().sum(1) for matrix in directions.values())).sqrt()
    squared_norms = norms.new_zeros(len(coreset))
    products = gradients.inner_products(coreset, directions, squared_norms=squared_norms)
    tiny = torch.finfo(products.dtype).tiny
    cosines = products / (squared_norms.sqrt()[:, None] * norms).clamp_min(tiny)
    own = cosines.gather(1, coreset.labels[:, None] + 1)[:, 0]
    own = torch.where(counts[coreset.labels] > 0, own, torch.nan)
    means, sizes = class_means(gradients, coreset, classes)
    mean = {name: _weighted(entry, sizes) for name, entry in means.items()}
    gap = {name: mean[name] - whole[name] for name in mean}
    target = max(float(norms[0]), tiny)
    return {
        "cosine": cosines[:, 0].double().cpu().numpy(),
        "own_class": own.double().cpu().numpy(),
        "distance": _inner(gap, gap) ** 0.5 / target,
        "mean_cosine": _inner(mean, whole) / max(_inner(mean, mean) ** 0.5 * target, tiny),
    }


def _weighted(means: Tensor, counts: Tensor) -> Tensor:
    weights = (counts / counts.sum()).to(means.dtype)
    total: Tensor = torch.tensordot(weights, means, dims=1)
    return total


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(sum(float((a[name] * b[name]).double().sum()) for name in a))


def diagnose(
    run: Run,
    methods: Sequence[str | Selector] = ("cld", "random", "el2n"),
    budget: float = 0.1,
    *,
    checkpoints: int = 6,
    out: str | os.PathLike[str] | None = None,
    skip: bool = False,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Diagnosis:
    """Measure the paper's Lemmas 1 to 3 on a recorded run: choose coresets, train on each, follow the gradients.

    Args:
        run: finished, with checkpoints and validation examples of its own. One of a model trained elsewhere is followed
            along its own training alone (Lemmas 1 and 3), towards its queries where it has no validation examples.
        methods: coreset methods or selectors.
        budget: share of the training examples kept.
        checkpoints: how many of each run are looked at, evenly spread.
        out: a folder that keeps the runs on the coresets and ``diagnosis.json``; ``None`` keeps none.
        skip: leave out methods that need what the run did not record, instead of refusing; see ``Diagnosis.skipped``.
        device: where to train and to compute gradients.
        progress: show bars.

    Raises:
        InputError: no method, no validation examples; as :func:`comove.coreset.select`.
    """
    splits = run.data()
    if not methods or checkpoints < 1:
        raise InputError("A diagnosis needs at least one coreset method and one checkpoint.")
    ours = run.adopted is None  # what was trained elsewhere is not trained again
    if ours and splits.validation is None:
        raise InputError(f"{run.path} has no validation examples: train on splits that have some (validation=0.1).")
    if ours:
        run.model_spec.named(run.factory)  # refuses an own model that was not passed, before anything is selected
    where = resolve_device(device)
    chosen = [selector(item) if isinstance(item, str) else item for item in methods]
    coresets, skipped = {}, {}
    for method in chosen:
        try:
            coresets[method.label] = method.select(run, budget)
        except InputError as error:
            if not skip:
                raise
            skipped[method.label] = str(error)
    if not coresets:
        raise InputError(f"None of the methods can be computed from {run.path}: {skipped}")
    with tempfile.TemporaryDirectory(prefix="comove-diagnose-") as temporary:
        folder = new_folder(temporary if out is None else out)
        rows = []
        for label, kept in coresets.items():
            rows += _along(run, run, label, kept, splits, checkpoints, where)
            if ours:
                own = _train_on(run, kept, splits, folder, where, progress)
                rows += _along(own, run, label, kept, splits, checkpoints, where)
        model = run.model_spec.to_json() if ours else run.manifest["adopted"]["model"]
        provenance = {"run": run.manifest["fingerprint"], "model": model}
        found = Diagnosis(tuple(rows), budget, provenance, skipped)
        if out is not None:
            plain = [as_plain(asdict(row)) for row in rows]  # what is undefined (a coreset without some class) is null
            write_json(folder / "diagnosis.json", {"budget": budget, **provenance, "rows": plain})
    return found


def _train_on(run: Run, kept: Coreset, splits: Splits, folder: Path, device: torch.device, progress: bool) -> Run:
    """Train the run's network from the same weights, with the same recipe and seed, on the coreset."""
    name = slug(kept.method)
    ids = splits.train.ids[np.isin(splits.train.ids, kept.ids)]  # in their own order: everything kept is the run itself
    small = replace(splits, train=splits.train.subset(ids), name=f"{splits.name}, coreset {kept.method}", source={})
    return train(
        small,
        run.model_spec.named(run.factory),
        run.recipe,
        run.seed,
        folder / f"run-{name}",
        recording=Recording(fields=("loss",), anchors=()),
        model_options=dict(run.model_spec.options),
        device=device,
        progress=progress,
    )


def _along(
    run: Run, full: Run, label: str, kept: Coreset, splits: Splits, number: int, device: torch.device
) -> list[Alignment]:
    coreset = Resident(splits.train.subset(kept.ids), device)
    validation = Resident(splits.query if splits.validation is None else splits.validation, device)
    rows = []
    for checkpoint in spread(run.checkpoints, number):
        gradients = run_gradients(run, checkpoint, device, check_on=coreset)
        found = alignment(gradients, coreset, validation, len(splits.classes))
        cosine = np.asarray(found["cosine"])
        low, median, high = np.quantile(cosine, [0.1, 0.5, 0.9]).tolist()
        rows.append(
            Alignment(
                label,
                "full data" if run is full else "coreset",
                checkpoint.epoch,
                float(cosine.mean()),
                low,
                median,
                high,
                float(np.nanmean(found["own_class"])),
                float(found["distance"]),
                float(found["mean_cosine"]),
                0.0 if run is full else _drift(run, full, checkpoint.epoch),
            )
        )
    return rows


def _drift(run: Run, full: Run, epoch: int) -> float:
    """How far apart the two trainings are after ``epoch``, over how far the one on everything has moved."""
    mine, theirs, start = (
        _weights_at(source, number)
        for source, number in ((run, epoch), (full, epoch), (full, full.checkpoints[0].epoch))
    )
    if mine is None or theirs is None or start is None:
        return float("nan")
    apart = {name: mine[name] - theirs[name] for name in mine}
    moved = {name: theirs[name] - start[name] for name in mine}
    way = _inner(moved, moved) ** 0.5
    return _inner(apart, apart) ** 0.5 / way if way > 0 else float("nan")


def _weights_at(run: Run, epoch: int) -> dict[str, Tensor] | None:
    paths = [checkpoint.path for checkpoint in run.checkpoints if checkpoint.epoch == epoch]
    trained = {name for name, _ in run.model_spec.build(run.seed, factory=run.factory).named_parameters()}
    return {name: value for name, value in read_weights(paths[0]).items() if name in trained} if paths else None
