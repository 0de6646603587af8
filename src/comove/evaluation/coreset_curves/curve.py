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
from comove.data.tables import write_frame
from comove.display import counted, fixed, html_table, percent
from comove.errors import CorruptFileError, InputError, did_you_mean
from comove.jobs import Compute
from comove.models import Factory
from comove.plots import Chart, Level, Table, draw, is_wide, styled
from comove.plots.chart import Style
from comove.retraining.bank import RetrainingBank
from comove.retraining.contents import OWN
from comove.retraining.own import OwnTraining
from comove.retraining.subsets import everything, only
from comove.store import check_fingerprint, claim_folder, digest, new_folder, read_header, set_aside, slug
from comove.training import Run, Training, as_training
from comove.training.sources import Source, SourceLike, as_sources

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["TABLE", "Chosen", "Curve", "CurveFolders", "CurvePoint", "coreset_curve", "write_curves"]

CURVE_FORMAT = 2
TABLE = "curve.csv"
"""The table that a folder of curves holds."""
FULL = "full data"
STATISTICS = ("mean", "std")
ACCURACY = "accuracy"


class CurvePoint(NamedTuple):
    """One model trained on one coreset: its size and its accuracy on the query split (or another mean output)."""

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


class CurveFolders(NamedTuple):
    """Where a curve keeps models' results (``out``) and coresets, which curves of several target models share."""

    out: str | os.PathLike[str] | None = None
    coresets: str | os.PathLike[str] | None = None


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
        measure: what ``accuracy`` of a point is: the accuracy, or the mean of another output over the queries.
        higher: whether more of it is better.
    """

    points: tuple[CurvePoint, ...]
    n_train: int
    n_query: int
    provenance: Mapping[str, Any]
    coresets: tuple[Chosen, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    measure: str = ACCURACY
    higher: bool = True

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

        Of a measure of which less is better: at most ``tolerance`` above. ``None`` where no share that was tried
        reaches it.
        """
        sign = 1 if self.higher else -1
        target = sign * self.mean(FULL, 1.0) - tolerance
        shares = sorted({point.budget for point in self.points if point.method == method})
        return next((share for share in shares if sign * self.mean(method, share) >= target), None)

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
        scale, unit = self._scale
        for row in rows:
            heights = (row["mean"], row["mean"] - row["std"], row["mean"] + row["std"])
            lines[row["method"]].append((round(100 * row["budget"], 6), *(scale * height for height in heights)))
        log = is_wide([row["budget"] for row in rows])
        seeds = max((row["seeds"] for row in self.summary()), default=0)
        alone = "one seed, so without deviations"
        spread = f"bands: standard deviation over {counted(seeds, 'seed')}" if seeds > 1 else ""
        queries = f"{self.n_query:,} held-out queries" if self.n_query else "held-out queries"
        full = [scale * row["mean"] for row in self.summary() if row["method"] == FULL]
        chart = Chart(
            "lines",
            f"{self._what} of {name or 'models'} trained on coresets",
            f"share of the training data kept (%{', log scale' if log else ''})",
            f"{self.measure} on {queries}{unit}",
            styled(lines, ["random"]),
            Table(["method", "share kept", "examples", f"{self.measure}{unit}", f"deviation{unit}"], self.cells()),
            levels=[Level(FULL, accuracy, style=Style("level", dash=(1, 2))) for accuracy in full],
            caption=spread,
            log=log,
            notes=[
                f"{self._what} on {queries} of models trained from scratch; {spread or alone}.",
                *(f"{method} is left out: {reason}" for method, reason in self.skipped.items()),
            ],
        )
        return [chart]

    def cells(self) -> list[list[str]]:
        """:meth:`summary` as text: method, share, examples, and accuracy and deviation in percent (others as is)."""
        scale, digits = self._scale[0], 1 if self.measure == ACCURACY else 4
        return [
            [
                *(row["method"], percent(row["budget"]), f"{row['size']:,}"),
                *(fixed(scale * row[x], digits) for x in STATISTICS),
            ]
            for row in self.summary()
        ]

    @property
    def _scale(self) -> tuple[int, str]:
        return (100, " (%)") if self.measure == ACCURACY else (1, "")

    @property
    def _what(self) -> str:
        return f"{self.measure[:1].upper()}{self.measure[1:]}"

    def _repr_html_(self) -> str:
        names = ("method", "budget", "size", "mean", "std", "seeds")
        rows = [[row[name] for name in names] for row in self.summary()]
        return html_table(f"{self._what} on {counted(self.n_query, 'query')}", names, rows, most=40)

    def __repr__(self) -> str:
        rows = self.summary()
        width = max([12, *(len(row["method"]) for row in rows)])
        lines = [
            f"  {row['method']:<{width}} {row['budget']:>6.1%} ({row['size']:>6,}): {row['mean']:.3f}"
            + (f" +- {row['std']:.3f}" if row["seeds"] > 1 else "")
            for row in rows
        ]
        spread = ", deviation over seeds" if any(row["seeds"] > 1 for row in rows) else ", one seed"
        return "\n".join([f"Curve({self.measure} on {counted(self.n_query, 'query')}{spread}):", *lines])


def coreset_curve(
    source: SourceLike | Sequence[SourceLike],
    methods: Sequence[str | Selector],
    budgets: Sequence[float],
    *,
    seeds: int = 3,
    dataset: Splits | None = None,
    training: Training | OwnTraining | str | Factory | None = None,
    measure: str | None = None,
    out: str | os.PathLike[str] | CurveFolders | None = None,
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
            opened with it) and, for that model, its own recipe. Every model's own seed is derived from its seed. With a
            function of the user's own, sources may be traces alone; ``dataset`` then says what they were recorded of.
        measure: the output whose mean over the queries is the curve's value: by default ``"accuracy"``, the mean of
            ``"correct"``; of an own training function without it the only output, or ``"measure"``.
        out: a folder that keeps coresets and models' results, so that an interrupted curve goes on and a larger one
            uses them, and ``curve.csv``, which ``comove report --curve`` reads; ``None`` keeps none. Or two folders,
            :class:`CurveFolders`, without the table: curves of several target models can share the one of coresets.
        skip: leave out methods that need what the runs did not record, instead of refusing; see ``Curve.skipped``.
        compute: where to train.

    Raises:
        InputError: bad arguments, as :func:`comove.coreset.select`; runs without validation examples of their own.
        FingerprintError: ``out`` holds another curve, or ``dataset`` is not what the runs were trained on.
        LockedError: another process is working on the curve in ``out``.
    """
    sources = as_sources(source, frozenset({"trace"}), "coreset_curve")
    run, own = sources[0].run, isinstance(training, OwnTraining)
    if not own and not all(source.run is not None for source in sources):
        raise InputError("A coreset curve trains models: pass runs made by comove.train, not bare traces.")
    if dataset is None and run is None:
        raise InputError("Traces alone do not say what they were recorded of: pass dataset=, the splits.")
    splits = dataset or run.data()  # type: ignore[union-attr]  # one of them is there
    _check_data(sources, splits)
    chosen = _selectors(methods, budgets, seeds, splits)
    how, described = _described(run, splits, training)
    content = {"dataset": splits.describe(), "sources": _fingerprints(sources), **described}
    where, folders = compute or Compute(), out if isinstance(out, CurveFolders) else CurveFolders(out)
    shares = list(dict.fromkeys(map(float, budgets)))
    with tempfile.TemporaryDirectory(prefix="comove-curve-") as temporary:
        folder = new_folder(temporary if folders.out is None else folders.out)
        claim_folder(folder, "curve", CURVE_FORMAT, content)
        selected = new_folder(folder / "coresets" if folders.coresets is None else folders.coresets)
        claim_folder(selected, "coresets", CURVE_FORMAT, {key: content[key] for key in ("dataset", "sources")})
        kept, skipped = _select_all(selected, chosen, shares, seeds, sources, skip)

        def bank_of(sets: list[Ids], number: int) -> RetrainingBank:
            """Models trained on each set; an empty list stands for the full data."""
            bank = RetrainingBank.create(
                folder / "bank", splits, how, subsets=only(sets) if sets else everything(), seeds=number
            )
            return bank.run(executor=where.on(), device=where.device, progress=where.progress)

        full = bank_of([], seeds)
        name, output = _measure(full, measure)
        values = full.plan(everything()).outputs(output).mean(-1)[0]
        points = [CurvePoint(FULL, 1.0, len(splits.train), s, float(value)) for s, value in enumerate(values)]
        for seeded in (False, True):
            group = [one for one in kept if chosen[one.method].seeded is seeded]
            if not group:
                continue
            found = bank_of([one.coreset.ids for one in group], 1 if seeded else seeds).outputs(output).mean(-1)
            points += [
                CurvePoint(one.method, one.budget, len(one.coreset), one.number + number, float(value))
                for one, row in zip(group, found, strict=True)
                for number, value in enumerate(row)
            ]
        higher = full.higher_is_better(output)
        n_train, n_query = len(splits.train), len(splits.query)
        curve = Curve(tuple(points), n_train, n_query, content, tuple(kept), skipped, name, higher)
        if not isinstance(out, CurveFolders):
            write_curves(folder / TABLE, {_name(how, content): curve})
    return curve


def write_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Write the table of curves by the name of what was trained: one row per model; the report reads it."""
    import pandas as pd

    parts = []
    for target, curve in curves.items():
        part = curve.to_pandas()
        part.insert(0, "target", target)
        parts.append(part)
    write_frame(path, pd.concat(parts))


def _name(how: Training | OwnTraining, described: Mapping[str, Any]) -> str:
    return how.name if isinstance(how, OwnTraining) else str(described["model"]["name"])


def _described(
    run: Run | None, splits: Splits, training: Training | OwnTraining | str | Factory | None
) -> tuple[Training | OwnTraining, dict[str, Any]]:
    """How the target models are trained, and what the manifest says of it."""
    if isinstance(training, OwnTraining):
        return training, {OWN: training.to_json()}
    assert run is not None
    how = _target(run, splits, as_training(training))
    spec, recipe, _ = how.resolve(splits)
    return how, {"model": spec.to_json(), "recipe": recipe.to_json(), "seed": how.seed}


def _fingerprints(sources: Sequence[Source]) -> list[str]:
    """What the sources are: the runs' fingerprints, or those of the traces' losses."""
    return [
        source.run.manifest["fingerprint"]
        if source.run is not None
        else digest(np.asarray(source.trace.train_losses), source.trace.train_ids)
        for source in sources
    ]


def _measure(bank: RetrainingBank, measure: str | None) -> tuple[str, str]:
    """The name of what is measured, and the output whose mean over the queries it is.

    Raises:
        InputError: no such output.
    """
    names = bank.output_names
    if measure in (None, ACCURACY):
        if ACCURACY in names or "correct" in names:
            return ACCURACY, ACCURACY if ACCURACY in names else "correct"
        if measure is None:
            return bank.default_output, bank.default_output
        raise InputError(f"accuracy is the mean of the output 'correct', and there are only: {', '.join(names)}.")
    assert measure is not None
    bank.higher_is_better(measure)  # refuses what there is not
    return measure, measure


def _selectors(
    methods: Sequence[str | Selector], budgets: Sequence[float], seeds: int, splits: Splits
) -> dict[str, Selector]:
    """The selectors by label, checked against every budget: what cannot be selected must not wait for a training."""
    named = [selector(item) if isinstance(item, str) else item for item in methods]
    chosen = {item.label: item for item in named}
    if not chosen or not budgets or whole_number(seeds, "seeds", None) < 1:
        raise InputError("A coreset curve needs at least one method, one budget and one seed.")
    labels = splits.train.labels if splits.train.labelled else None
    for method in chosen.values():
        for share in budgets:
            resolve_budget(float(share), labels, len(splits.train), method.balanced, method.name)
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
    runs = _fingerprints(sources)
    for name, method in methods.items():
        numbers = range(seeds if method.seeded else 1)
        try:
            found = [_select(folder, name, shares, i, method, sources, runs) for i in numbers]
        except InputError as error:
            if not skip:
                raise
            skipped[name] = str(error)
        else:
            kept += [one for of_one_share in zip(*found, strict=True) for one in of_one_share]
    if not kept:
        raise InputError(f"None of the methods can be computed from these runs: {skipped}")
    return kept, skipped


def _select(
    folder: Path,
    name: str,
    shares: Sequence[float],
    number: int,
    method: Selector,
    sources: Sequence[Source],
    runs: Sequence[str],
) -> list[Chosen]:
    """A coreset of each share: read if an earlier run selected it, the others selected together and saved."""
    start = f"{slug(name)}-{digest(name)[:8]}"
    files = {share: folder / f"{start}-{share!r}-{number}.safetensors" for share in shares}
    origin = {
        share: digest({"method": name, "share": repr(share), "number": number, "runs": list(runs)}) for share in shares
    }
    found: dict[float, Coreset] = {}
    for share, file in files.items():
        if file.exists():
            try:
                found[share] = _kept_coreset(file, origin[share])
            except CorruptFileError as error:
                warnings.warn(f"{error} It is set aside as {set_aside(file)}, and selected again.", stacklevel=2)
    missing = [share for share in shares if share not in found]
    if missing:
        for share, coreset in zip(missing, method.reseeded(number).select_each(sources, missing), strict=True):
            coreset.save(files[share], made_from=origin[share])
            found[share] = Coreset.load(files[share])
    return [Chosen(name, share, number, found[share]) for share in shares]


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
        where: object = "The trace" if source.run is None else source.run.path
        if source.run is not None:
            found = source.run.manifest["dataset"]["fingerprint"]
            check_fingerprint("data set", found=found, expected=splits.fingerprint, where=where)
        elif not np.array_equal(np.sort(source.train_ids), np.sort(splits.train.ids)):
            raise InputError("The trace has other training ids than dataset=: pass the splits it was recorded of.")
        if np.isin(source.trace.validation_ids, splits.query.ids).any():
            raise InputError(
                f"{where} has no validation examples of its own, so selectors would aim at the very queries "
                "that accuracy is measured on: train on splits that have some (split(..., validation=0.1))."
            )
