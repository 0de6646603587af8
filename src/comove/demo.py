"""``comove demo``: the main job, end to end, on real handwritten digits that come with scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comove.attribution import CLD, RandomControl, SameClassControl, Scores
from comove.attribution.queries import choose_queries
from comove.coreset import Coreset, select
from comove.data.builtin import load_dataset
from comove.evaluation import Benchmark, Curve, coreset_curve, lds_benchmark
from comove.jobs import Compute
from comove.plots import save_figure
from comove.report import Origin, write_report
from comove.retraining import subsets
from comove.store import new_folder
from comove.training import Training

__all__ = ["Demo", "run_demo"]


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    scores: Scores
    coreset: Coreset
    curve: Curve
    benchmark: Benchmark
    page: Path
    seconds: float


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
    say("4/4  drawing the figures and writing the report")
    shown = scores.query_ids[:6].tolist()
    figures = {
        "influence": scores.plot(shown, splits=splits),
        "trajectories": scores.plot_losses(benchmark.runs[0].trace, shown[0]),
        "lds": benchmark.plot(),
        "curve": curve.plot(),
        "coreset": coreset.plot(splits.train),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / f"{name}.png")
    page = write_report(
        folder / "index.html",
        benchmark.runs,
        scores,
        [benchmark, curve, coreset],
        dataset=splits,
        title="comove demo: digits",
        origin=Origin(f"comove demo --seed {seed}"),
    )
    return Demo(scores, coreset, curve, benchmark, page, time.monotonic() - started)
