"""Coreset curves: the accuracy of models trained from scratch on coresets, by method and size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from comove.coreset import Selector, selector, selectors
from comove.data import Splits
from comove.errors import InputError
from comove.execution import run_pending
from comove.models import Factory, ModelSpec
from comove.sources import SourceLike, as_sources
from comove.store import claim_folder, digest, new_folder, read_json, write_json
from comove.training import Recipe, Resident, Run, as_recipe, fit, predict, resolve_device
from comove.training.randomness import derived_seed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Curve", "CurvePoint", "coreset_curve"]

CURVE_FORMAT = 1
FULL = "full data"


class CurvePoint(NamedTuple):
    """One model trained on one coreset: its size and its accuracy on the query split."""

    method: str
    budget: float
    size: int
    seed: int
    accuracy: float


@dataclass(frozen=True)
class Curve:
    """The accuracies of a coreset curve.

    Attributes:
        points: one a trained model; the method ``"full data"`` is trained on everything.
        n_train: number of training examples.
        n_query: number of examples the accuracy is measured on.
        provenance: model, recipe and data (JSON values).
    """

    points: tuple[CurvePoint, ...]
    n_train: int
    n_query: int
    provenance: Mapping[str, Any]

    def summary(self) -> list[dict[str, Any]]:
        """One row a method and budget: mean, standard deviation over seeds (ddof 1; NaN for one seed) and count."""
        groups: dict[tuple[str, float], list[CurvePoint]] = {}
        for point in self.points:
            groups.setdefault((point.method, point.budget), []).append(point)
        rows = []
        for (method, budget), points in groups.items():
            accuracy = np.array([point.accuracy for point in points])
            deviation = float(accuracy.std(ddof=1)) if accuracy.size > 1 else float("nan")
            size = round(float(np.mean([point.size for point in points])))
            row = {"method": method, "budget": budget, "size": size, "mean": float(accuracy.mean())}
            rows.append({**row, "std": deviation, "seeds": len(points)})
        return rows

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row a trained model."""
        import pandas as pd

        return pd.DataFrame(self.points, columns=list(CurvePoint._fields))

    def __repr__(self) -> str:
        lines = [
            f"  {row['method']:<12} {row['budget']:>6.1%} ({row['size']:>6,}): {row['mean']:.3f} +- {row['std']:.3f}"
            for row in self.summary()
        ]
        return "\n".join([f"Curve(accuracy on {self.n_query:,} queries):", *lines])


class _Job(NamedTuple):
    method: str
    budget: float
    seed: int


def coreset_curve(
    source: SourceLike | Sequence[SourceLike],
    methods: Sequence[str | Selector],
    budgets: Sequence[float],
    *,
    seeds: int = 3,
    seed: int = 0,
    dataset: Splits | None = None,
    target_model: str | Factory | None = None,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Curve:
    """Select coresets with recorded runs, train the target model from scratch on each, and compare accuracies.

    Selection reads training and validation examples only; accuracy is measured on the query split, which no selector
    sees. Selectors with a ``seed`` of their own are seeded anew for each model; full-data models are always trained.

    Args:
        source: the run(s) to select with.
        methods: names of coreset methods, or selectors.
        budgets: shares of the training examples.
        seeds: models trained a point.
        seed: from which the models' seeds are derived.
        dataset: the splits; by default those of the (first) run.
        target_model: by default the run's own model.
        recipe: by default the run's own recipe for its own model, else the target model's default.
        model_options: options of ``target_model``.
        out: a folder that keeps each result, so that an interrupted curve goes on; ``None`` keeps none.
        device: where to train.
        progress: show a bar.

    Raises:
        InputError: bad arguments, as :func:`comove.coreset.select`.
        FingerprintError: ``out`` holds another curve.
    """
    sources = as_sources(source, frozenset({"trace"}), "coreset_curve")
    run = sources[0].run
    if run is None:
        raise InputError("A coreset curve trains models: pass runs made by comove.train, not bare traces.")
    splits = dataset or run.data()
    chosen = {item if isinstance(item, str) else item.label: item for item in methods}
    for item in chosen.values():
        if isinstance(item, str):
            selector(item)  # an unknown name must not wait for the first training
    if not chosen or not budgets or seeds < 1:
        raise InputError("A coreset curve needs at least one method, one budget and one seed.")
    spec, recipe = _target(run, splits, target_model, recipe, model_options)
    factory = target_model if callable(target_model) else (run.factory if target_model is None else None)
    content = {
        "dataset": splits.describe(),
        "sources": [source.run.manifest["fingerprint"] for source in sources if source.run is not None],
        "model": spec.to_json(),
        "recipe": recipe.to_json(),
        "seed": seed,
    }
    with tempfile.TemporaryDirectory(prefix="comove-curve-") as temporary:
        folder = new_folder(temporary if out is None else out)
        claim_folder(folder, "curve", CURVE_FORMAT, content)
        new_folder(folder / "results")
        where = resolve_device(device)
        query = Resident(splits.query, where)

        def file(job: _Job) -> Path:
            slug = "".join(c if c.isalnum() else "-" for c in job.method)
            return folder / "results" / f"{slug}-{digest(job.method)[:8]}-{job.budget:g}-{job.seed}.json"

        def work(job: _Job) -> None:
            ids = splits.train.ids if job.method == FULL else _select(chosen[job.method], sources, job)
            model_seed = derived_seed(seed, "curve", job.seed)
            model = spec.build(model_seed, factory=factory).to(where)
            fit(model, splits.train.subset(ids), recipe, seed=model_seed, device=where)
            predicted = predict(model, query).argmax(1).numpy()
            accuracy = float((predicted == splits.query.labels).mean())
            write_json(file(job), {"size": int(ids.size), "accuracy": accuracy, "ids": digest(np.sort(ids))})

        jobs = [_Job(name, float(budget), s) for s in range(seeds) for budget in budgets for name in chosen]
        jobs = [_Job(FULL, 1.0, s) for s in range(seeds)] + jobs
        run_pending(jobs, file, work, description="training on coresets", progress=progress)
        results = [(job, read_json(file(job))) for job in jobs]
    points = [CurvePoint(job.method, job.budget, r["size"], job.seed, r["accuracy"]) for job, r in results]
    return Curve(tuple(points), len(splits.train), len(splits.query), content)


def _target(
    run: Run,
    splits: Splits,
    model: str | Factory | None,
    recipe: Recipe | str | Mapping[str, Any] | None,
    options: Mapping[str, Any] | None,
) -> tuple[ModelSpec, Recipe]:
    if model is None:
        if options:
            raise InputError("model_options belong to target_model; name it too.")
        return run.model_spec, run.recipe if recipe is None else as_recipe(recipe, model="", n_train=0)
    shape = splits.train.input_shape
    spec = ModelSpec.of(model, num_classes=len(splits.classes), input_shape=shape, **dict(options or {}))
    same = recipe is None and spec.name == run.model_spec.name
    return spec, run.recipe if same else as_recipe(recipe, model=spec.name, n_train=len(splits.train))


def _select(method: str | Selector, sources: Sequence[SourceLike], job: _Job) -> Any:
    if isinstance(method, str):
        seeded = "seed" in selectors()[method].__dataclass_fields__
        method = selector(method, **({"seed": job.seed} if seeded else {}))
    return method.select(sources, job.budget).ids
