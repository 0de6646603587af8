"""``comove demo``: the main job, end to end, on real handwritten digits that come with scikit-learn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comove.attribution import CLD, RandomControl, SameClassControl, Scores
from comove.coreset import Coreset, select
from comove.data import Ids, Splits, positions_of
from comove.data.builtin import load_dataset
from comove.evaluation import LDS, Benchmark, Curve, coreset_curve, lds_benchmark
from comove.jobs import Compute
from comove.plots import coreset_gallery, curve_figure, influence_grid, lds_bars, save_figure, trajectories
from comove.report import Section, write_page
from comove.retraining import subsets
from comove.store import new_folder, versions
from comove.trace import Trace
from comove.training import Training
from comove.training.sources import BankSource

__all__ = ["Demo", "choose_queries", "run_demo"]


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    scores: Scores
    coreset: Coreset
    curve: Curve
    benchmark: Benchmark
    page: Path
    seconds: float


def choose_queries(source: Trace | BankSource, count: int) -> list[int]:
    """Choose ``count`` recorded query ids, spread over the classes (the first of each, then the second, ...)."""
    ids = source.explained_ids
    labels = np.zeros(ids.size, np.int64)
    if source.query_labels is not None:
        labels = source.query_labels[positions_of(ids, source.query_ids, "query ids")]
    turn = np.zeros(ids.size, np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(int((labels == label).sum()))
    chosen: Ids = ids[np.lexsort((labels, turn))[:count]]
    return [int(id_) for id_ in chosen]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    runs: int = 5,
    subset_count: int = 100,
    retrain_seeds: int = 2,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Demo:
    """Train on digits, attribute 20 queries, select a 30 % coreset, measure both against retraining, draw the page.

    Args:
        out: a folder; an interrupted demo goes on from what it holds.
        seed: of everything.
        runs: models that attribution averages over.
        subset_count: C of the LDS bank.
        retrain_seeds: R of the LDS bank.
        progress: show bars.
        say: called with a line before each step.
    """
    started = time.monotonic()
    folder = new_folder(out)
    splits = load_dataset("digits", seed=seed)
    say(f"1/4  {splits}: training {runs} recorded runs, then {subset_count} × {retrain_seeds} models for the truth")
    methods = [CLD(), CLD(correlation="covariance", common_mode="remove"), SameClassControl(), RandomControl()]
    training = Training("mlp", "digits-mlp", seed=seed)
    benchmark = lds_benchmark(
        splits,
        methods,
        subsets=subsets.random(0.5, subset_count),
        seeds=retrain_seeds,
        out=folder / "lds",
        runs=runs,
        training=training,
        compute=Compute(progress=progress),
    )
    say("2/4  attributing 20 queries")
    scores = methods[0].fit(benchmark.runs).attribute(choose_queries(benchmark.runs[0].trace, 20))
    scores.save(folder / "scores.safetensors")
    say("3/4  selecting a 30% coreset, and training on it and on random ones")
    coreset = select("cld", benchmark.runs[0], budget=0.3)
    coreset.save(folder / "coreset.csv")
    curve = coreset_curve(
        benchmark.runs[0],
        ["cld", "random"],
        [0.05, 0.1, 0.3],
        seeds=3,
        training=Training(seed=seed),
        out=folder / "curve",
        compute=Compute(progress=progress),
    )
    say("4/4  drawing the page")
    page = _page(folder, splits, scores, coreset, curve, benchmark)
    return Demo(scores, coreset, curve, benchmark, page, time.monotonic() - started)


def _page(folder: Path, splits: Splits, scores: Scores, coreset: Coreset, curve: Curve, benchmark: Benchmark) -> Path:
    run = benchmark.runs[0]
    shown = scores.query_ids[:6].tolist()
    figures = {
        "influence.png": influence_grid(scores, splits, shown),
        "trajectories.png": trajectories(run.trace, scores, shown[0]),
        "lds.png": lds_bars(benchmark.results),
        "curve.png": curve_figure(curve),
        "coreset.png": coreset_gallery(coreset, splits.train),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / name)
    first = benchmark.results[0]
    sections = [
        Section(
            "Which training examples does a prediction depend on?",
            f"CLD scores averaged over {len(benchmark.runs)} runs of an MLP on {len(splits.train):,} real handwritten "
            "digits: the training examples whose losses moved most with the query's (blue), and most against it "
            "(orange). The losses below them are of the first run.",
            figures=["figures/influence.png", "figures/trajectories.png"],
        ),
        Section(
            "Are the scores right? Linear datamodeling score against real retraining",
            f"{first.subsets} random halves of the training data × {first.seeds} seeds were trained from scratch. LDS "
            "is the rank correlation, over subsets, of what the scores predict with what retraining gave; the interval "
            "is a 95% bootstrap over queries and subsets. A method that stays below the same-class control tells less "
            "than the labels do.",
            ["method", "LDS", "95% interval", "undefined queries"],
            [lds_row(result) for result in benchmark.results],
            ["figures/lds.png"],
        ),
        Section(
            "Which examples are worth keeping?",
            "Models trained from scratch on class-balanced CLD coresets and on random ones; accuracy on held-out "
            "queries that no selector saw, mean and standard deviation over 3 seeds.",
            ["method", "share", "examples", "accuracy (%)", "deviation (%)"],
            curve_rows(curve),
            ["figures/curve.png", "figures/coreset.png"],
        ),
    ]
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    footer = f"comove demo, seed {run.seed}; data fingerprint {splits.fingerprint}; {made_with}."
    return write_page(folder / "index.html", "comove demo: digits", sections, footer)


def lds_row(result: LDS) -> list[str]:
    """An LDS as table cells."""
    low, high = result.interval if result.interval is not None else (float("nan"), float("nan"))
    span = f"{_cell(low)} to {_cell(high)}" if result.interval is not None else "-"
    return [str(result.method), _cell(result.mean), span, str(result.undefined)]


def curve_rows(curve: Curve) -> list[list[str]]:
    """A curve's summary as table cells, accuracies in percent."""
    return [
        [row["method"], f"{row['budget']:.0%}", f"{row['size']:,}", *(_cell(100 * row[x], 1) for x in ("mean", "std"))]
        for row in curve.summary()
    ]


def _cell(value: float, digits: int = 3) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else "-"  # + 0.0: no "-0.000"
