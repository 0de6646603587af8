"""Coreset curves: the accuracy of models trained from scratch on coresets, by method and size.

A coreset is a subset of the training data, so its models are those of a retraining bank: resumable model by model,
trained many at a time or on a cluster, and shared by methods that choose the same examples.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from comove.checks import whole_number
from comove.coreset import Coreset, Selector, resolve_budget, selector
from comove.data import Ids, Splits
from comove.display import counted, fixed, html_table, percent
from comove.errors import CorruptFileError, InputError, did_you_mean
from comove.jobs import Compute
from comove.models import Factory
from comove.plots import Chart, Level, Table, draw, is_wide, styled
from comove.plots.chart import Style
from comove.retraining.bank import RetrainingBank
from comove.retraining.subsets import everything, only
from comove.store import check_fingerprint, claim_folder, digest, new_folder, read_header, set_aside, slug
from comove.training import Run, Training, as_training
from comove.training.sources import Source, SourceLike, as_sources

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Chosen", "Curve", "CurvePoint", "coreset_curve"]

CURVE_FORMAT = 2
FULL = "full data"
STATISTICS = ("mean", "std")


class CurvePoint(NamedTuple):
    """One model trained on one coreset: its size and its accuracy on the query split."""

    method: str
    budget: float
    size: int
    seed: int
    accuracy: float


class Chosen(NamedTuple):
    """One coreset of a curve: by which method, of which share, and which of its seeds."""

    method: str
    budget: float
    number: int
    coreset: Coreset


@dataclass(frozen=True)
class Curve:
    """The accuracies of a coreset curve.

    Attributes:
        points: one per trained model; the method ``"full data"`` is trained on everything.
        n_train: number of training examples.
        n_query: number of examples the accuracy is measured on.
        provenance: model, recipe and data (JSON values).
        coresets: that the models were trained on.
        skipped: methods that were left out, and why.
    """

    points: tuple[CurvePoint, ...]
    n_train: int
    n_query: int
    provenance: Mapping[str, Any]
    coresets: tuple[Chosen, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> list[dict[str, Any]]:
        """One row per method and budget: mean, standard deviation over seeds (ddof 1; NaN for one seed) and count."""
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

    def mean(self, method: str, budget: float) -> float:
        """The mean accuracy of a method at a budget.

        Raises:
            InputError: no such point.
        """
        found = [point.accuracy for point in self.points if (point.method, point.budget) == (method, budget)]
        if not found:
            raise InputError(f"The curve has no point {method!r} at {budget:g}.{did_you_mean(method, self.methods)}")
        return float(np.mean(found))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, without the full data."""
        return tuple(dict.fromkeys(point.method for point in self.points if point.method != FULL))

    def smallest_budget(self, method: str, tolerance: float = 0.01) -> float | None:
        """The smallest share whose mean accuracy is at most ``tolerance`` below the full data's (paper, D.2).

        ``None`` where no share that was tried reaches it.
        """
        target = self.mean(FULL, 1.0) - tolerance
        shares = sorted({point.budget for point in self.points if point.method == method})
        return next((share for share in shares if self.mean(method, share) >= target), None)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row per trained model."""
        import pandas as pd

        return pd.DataFrame(self.points, columns=list(CurvePoint._fields))

    def plot(self) -> Figure:
        """Draw accuracy against coreset size, mean and standard deviation over seeds; the full data is dotted.

        More than seven methods get a plot each, with random beside them.
        """
        return draw(*self.charts())

    def charts(self, name: str = "") -> list[Chart]:
        """What :meth:`plot` and the report draw; ``name`` is that of the model trained."""
        rows = sorted((row for row in self.summary() if row["method"] != FULL), key=lambda row: row["budget"])
        lines: dict[str, list[tuple[float, ...]]] = {method: [] for method in self.methods}
        for row in rows:
            heights = (row["mean"], row["mean"] - row["std"], row["mean"] + row["std"])
            lines[row["method"]].append((round(100 * row["budget"], 6), *(100 * height for height in heights)))
        log = is_wide([row["budget"] for row in rows])
        seeds = max((row["seeds"] for row in self.summary()), default=0)
        spread = f"bands: standard deviation over {counted(seeds, 'seed')}" if seeds > 1 else ""
        queries = f"{self.n_query:,} held-out queries" if self.n_query else "held-out queries"
        full = [100 * row["mean"] for row in self.summary() if row["method"] == FULL]
        chart = Chart(
            "lines",
            f"Accuracy of {name} trained on coresets" if name else "Accuracy of models trained on coresets",
            f"share of the training data kept (%{', log scale' if log else ''})",
            f"accuracy on {queries} (%)",
            styled(lines, ["random"]),
            Table(["method", "share kept", "examples", "accuracy (%)", "deviation (%)"], self.cells()),
            levels=[Level(FULL, accuracy, style=Style("level", dash=(1, 2))) for accuracy in full],
            caption=spread,
            log=log,
            apart=True,
            notes=[
                f"Accuracy on {queries} of models trained from scratch; {spread or 'one seed, so without deviations'}.",
                *(f"{method} is left out: {reason}" for method, reason in self.skipped.items()),
            ],
        )
        return [chart]

    def cells(self) -> list[list[str]]:
        """:meth:`summary` as text: method, share, examples, accuracy and deviation in percent."""
        return [
            [row["method"], percent(row["budget"]), f"{row['size']:,}", *(fixed(100 * row[x], 1) for x in STATISTICS)]
            for row in self.summary()
        ]

    def _repr_html_(self) -> str:
        names = ("method", "budget", "size", "mean", "std", "seeds")
        rows = [[row[name] for name in names] for row in self.summary()]
        return html_table(f"Accuracy on {counted(self.n_query, 'query')}", names, rows, most=40)

    def __repr__(self) -> str:
        lines = [
            f"  {row['method']:<12} {row['budget']:>6.1%} ({row['size']:>6,}): {row['mean']:.3f} +- {row['std']:.3f}"
            for row in self.summary()
        ]
        return "\n".join([f"Curve(accuracy on {counted(self.n_query, 'query')}):", *lines])


def coreset_curve(
    source: SourceLike | Sequence[SourceLike],
    methods: Sequence[str | Selector],
    budgets: Sequence[float],
    *,
    seeds: int = 3,
    dataset: Splits | None = None,
    training: Training | str | Factory | None = None,
    out: str | os.PathLike[str] | None = None,
    coresets: str | os.PathLike[str] | None = None,
    skip: bool = False,
    compute: Compute | None = None,
) -> Curve:
    """Select coresets with recorded runs, train the target model from scratch on each, and compare accuracies.

    Selection reads training and validation examples only; accuracy is measured on the query split, which no selector
    sees. A selector with a ``seed`` is seeded anew for each model: its own seed, that plus 1, ...; full-data models are
    always trained. Weights that a method gives its examples (``craig``) are not used in training.

    Args:
        source: the run(s) to select with.
        methods: names of coreset methods, or selectors.
        budgets: shares of the training examples.
        seeds: models trained per point.
        dataset: the splits of the runs, where they cannot be loaded by name.
        training: of the target models: by default the run's own model (a run of the user's own factory must have been
            opened with it) and, for that model, its own recipe. Every model's own seed is derived from its seed.
        out: a folder that keeps coresets and models' results, so that an interrupted curve goes on and a larger one
            uses them; ``None`` keeps none.
        coresets: a folder to keep the coresets in instead of ``out``, shared by curves of several target models.
        skip: leave out methods that need what the runs did not record, instead of refusing; see ``Curve.skipped``.
        compute: where to train.

    Raises:
        InputError: bad arguments, as :func:`comove.coreset.select`; runs without validation examples of their own.
        FingerprintError: ``out`` holds another curve, or ``dataset`` is not what the runs were trained on.
        LockedError: another process is working on the curve in ``out``.
    """
    sources = as_sources(source, frozenset({"trace"}), "coreset_curve")
    runs = [source.run for source in sources if source.run is not None]
    if len(runs) < len(sources):
        raise InputError("A coreset curve trains models: pass runs made by comove.train, not bare traces.")
    run = runs[0]
    splits = dataset or run.data()
    _check_data(sources, splits)
    chosen = _selectors(methods, budgets, seeds, splits)
    how, where = _target(run, splits, as_training(training)), compute or Compute()
    spec, recipe, _ = how.resolve(splits)
    content = {
        "dataset": splits.describe(),
        "sources": [run.manifest["fingerprint"] for run in runs],
        "model": spec.to_json(),
        "recipe": recipe.to_json(),
        "seed": how.seed,
    }
    shares = list(dict.fromkeys(map(float, budgets)))
    with tempfile.TemporaryDirectory(prefix="comove-curve-") as temporary:
        folder = new_folder(temporary if out is None else out)
        claim_folder(folder, "curve", CURVE_FORMAT, content)
        selected = new_folder(folder / "coresets" if coresets is None else coresets)
        claim_folder(selected, "coresets", CURVE_FORMAT, {key: content[key] for key in ("dataset", "sources")})
        kept, skipped = _select_all(selected, chosen, shares, seeds, sources, skip)

        def trained(sets: list[Ids], number: int) -> list[list[float]]:
            """Accuracies (C, R) of models trained on each set; an empty list stands for the full data."""
            bank = RetrainingBank.create(
                folder / "bank", splits, how, subsets=only(sets) if sets else everything(), seeds=number
            )
            bank.run(executor=where.on(), device=where.device, progress=where.progress)
            correct = bank.outputs("correct")
            return [[float(accuracy) for accuracy in row] for row in correct.mean(-1)]

        points = [CurvePoint(FULL, 1.0, len(splits.train), s, a) for s, a in enumerate(trained([], seeds)[0])]
        for seeded in (False, True):
            group = [one for one in kept if chosen[one.method].seeded is seeded]
            found = trained([one.coreset.ids for one in group], 1 if seeded else seeds) if group else []
            points += [
                CurvePoint(one.method, one.budget, len(one.coreset), one.number + number, accuracy)
                for one, row in zip(group, found, strict=True)
                for number, accuracy in enumerate(row)
            ]
    return Curve(tuple(points), len(splits.train), len(splits.query), content, tuple(kept), skipped)


def _selectors(
    methods: Sequence[str | Selector], budgets: Sequence[float], seeds: int, splits: Splits
) -> dict[str, Selector]:
    """The selectors by label, checked against every budget: what cannot be selected must not wait for a training."""
    named = [selector(item) if isinstance(item, str) else item for item in methods]
    chosen = {item.label: item for item in named}
    if not chosen or not budgets or whole_number(seeds, "seeds", None) < 1:
        raise InputError("A coreset curve needs at least one method, one budget and one seed.")
    for method in chosen.values():
        for share in budgets:
            resolve_budget(float(share), splits.train.labels, len(splits.train), method.balanced, method.name)
    return chosen


def _select_all(
    folder: Path,
    methods: Mapping[str, Selector],
    shares: Sequence[float],
    seeds: int,
    sources: Sequence[Source],
    skip: bool,
) -> tuple[list[Chosen], dict[str, str]]:
    """All coresets, and why methods were left out."""
    kept: list[Chosen] = []
    skipped: dict[str, str] = {}
    runs = [source.run.manifest["fingerprint"] for source in sources if source.run is not None]
    for name, method in methods.items():
        numbers = range(seeds if method.seeded else 1)
        try:
            kept += [_select(folder, name, share, i, method, sources, runs) for share in shares for i in numbers]
        except InputError as error:
            if not skip:
                raise
            skipped[name] = str(error)
    if not kept:
        raise InputError(f"None of the methods can be computed from these runs: {skipped}")
    return kept, skipped


def _select(
    folder: Path,
    name: str,
    share: float,
    number: int,
    method: Selector,
    sources: Sequence[Source],
    runs: Sequence[str],
) -> Chosen:
    """A coreset: read if an earlier run selected it, else selected and saved."""
    made_from = digest({"method": name, "share": repr(share), "number": number, "runs": list(runs)})
    file = folder / f"{slug(name)}-{digest(name)[:8]}-{share!r}-{number}.safetensors"
    if file.exists():
        try:
            return Chosen(name, share, number, _kept_coreset(file, made_from))
        except CorruptFileError as error:
            warnings.warn(f"{error} It is set aside as {set_aside(file)}, and selected again.", stacklevel=2)
    method.reseeded(number).select(sources, share).save(file, made_from=made_from)
    return Chosen(name, share, number, Coreset.load(file))


def _kept_coreset(file: Path, made_from: str) -> Coreset:
    """Read a coreset that an earlier run selected, and check that it is the one that belongs here.

    Raises:
        CorruptFileError: damaged, or chosen by another method, of another size or seed, or from other runs; those of
            earlier versions do not say from what.
    """
    found = Coreset.load(file)
    if read_header(file)[1].get("made_from") not in (None, made_from):
        raise CorruptFileError(f"{file} holds the coreset of another method, size, seed or run: was it renamed?")
    return found


def _target(run: Run, splits: Splits, training: Training) -> Training:
    """How the target models are trained, with the run's own model and recipe where none is named."""
    if training.model is None:
        if training.options:
            raise InputError("The options of a Training belong to its model; name it too.")
        own = run.model_spec
        training = replace(training, model=own.named(run.factory), options=dict(own.options))
        return training if training.recipe is not None else replace(training, recipe=run.recipe)
    same = training.recipe is None and training.resolve(splits).spec.name == run.model_spec.name
    return replace(training, recipe=run.recipe) if same else training


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
