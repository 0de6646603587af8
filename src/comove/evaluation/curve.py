"""Coreset curves: the accuracy of models trained from scratch on coresets, by method and size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from comove.coreset import Selector, resolve_budget, selector
from comove.data import Ids, Splits
from comove.errors import InputError
from comove.execution import run_pending
from comove.models import Factory, ModelSpec
from comove.sources import Source, SourceLike, as_sources
from comove.store import check_fingerprint, claim_folder, digest, new_folder, read_json, write_json
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
    sees. A selector with a ``seed`` is seeded anew for each model: its own seed, that plus 1, ...; full-data models are
    always trained.

    Args:
        source: the run(s) to select with.
        methods: names of coreset methods, or selectors.
        budgets: shares of the training examples.
        seeds: models trained a point.
        seed: from which the models' seeds are derived.
        dataset: the splits of the runs, where they cannot be loaded by name.
        target_model: by default the run's own model.
        recipe: by default the run's own recipe for its own model, else the target model's default.
        model_options: options of ``target_model``.
        out: a folder that keeps each result, so that an interrupted curve goes on; ``None`` keeps none.
        device: where to train.
        progress: show a bar.

    Raises:
        InputError: bad arguments, as :func:`comove.coreset.select`; runs without validation examples of their own.
        FingerprintError: ``out`` holds another curve, or ``dataset`` is not what the runs were trained on.
    """
    sources = as_sources(source, frozenset({"trace"}), "coreset_curve")
    runs = [source.run for source in sources if source.run is not None]
    if len(runs) < len(sources):
        raise InputError("A coreset curve trains models: pass runs made by comove.train, not bare traces.")
    run = runs[0]
    splits = dataset or run.data()
    _check_data(sources, splits)
    named = [selector(item) if isinstance(item, str) else item for item in methods]
    chosen = {item.label: item for item in named}
    if not chosen or not budgets or seeds < 1:
        raise InputError("A coreset curve needs at least one method, one budget and one seed.")
    shares = list(dict.fromkeys(map(float, budgets)))
    for method in chosen.values():
        for share in shares:  # what cannot be selected must not wait for the first training
            resolve_budget(share, splits.train.labels, len(splits.train), method.balanced, method.name)
    spec, recipe = _target(run, splits, target_model, recipe, model_options)
    factory = target_model if callable(target_model) else (run.factory if target_model is None else None)
    content = {
        "dataset": splits.describe(),
        "sources": [run.manifest["fingerprint"] for run in runs],
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
            return folder / "results" / f"{slug}-{digest(job.method)[:8]}-{job.budget!r}-{job.seed}.json"

        def kept(job: _Job) -> Ids:
            if job.method == FULL:
                return splits.train.ids
            return _seeded(chosen[job.method], job.seed).select(sources, job.budget).ids

        def work(job: _Job) -> None:
            ids = kept(job)
            model_seed = derived_seed(seed, "curve", job.seed)
            model = spec.build(model_seed, factory=factory).to(where)
            fit(model, splits.train.subset(ids), recipe, seed=model_seed, device=where)
            predicted = predict(model, query).argmax(1).numpy()
            accuracy = float((predicted == splits.query.labels).mean())
            write_json(file(job), {"size": int(ids.size), "accuracy": accuracy, "ids": digest(np.sort(ids))})

        jobs = [_Job(name, share, s) for s in range(seeds) for share in shares for name in chosen]
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


def _check_data(sources: Sequence[Source], splits: Splits) -> None:
    for source in sources:
        assert source.run is not None
        found = source.run.manifest["dataset"]["fingerprint"]
        check_fingerprint("data set", found=found, expected=splits.fingerprint, where=source.run.path)
        if np.isin(source.trace.validation_ids, splits.query.ids).any():
            raise InputError(
                f"{source.run.path} has no validation examples of its own, so selectors would aim at the very queries "
                "that accuracy is measured on: train on splits that have some (split(..., validation=0.1))."
            )


def _seeded(method: Selector, number: int) -> Selector:
    changes = {"seed": method.seed + number} if hasattr(method, "seed") else {}
    return replace(method, **changes)
