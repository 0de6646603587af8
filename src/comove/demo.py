"""``comove demo``: the main job, end to end, on real handwritten digits that come with scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from comove.attribution import (
    CLD,
    TRAK,
    Attributor,
    BayesianInfluence,
    GaussNewton,
    RandomControl,
    SameClassControl,
    Scores,
    TracIn,
)
from comove.attribution.queries import choose_queries
from comove.coreset import Coreset, select
from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.data.label_noise import flip_labels
from comove.evaluation import (
    LDS,
    Benchmark,
    Brittleness,
    Curve,
    Detection,
    Runs,
    brittleness,
    coreset_curve,
    detect,
    lds_benchmark,
    rank_labels,
)
from comove.evaluation.lds_benchmark.benchmark import file_name
from comove.jobs import Compute
from comove.plots import save_figure
from comove.plots.chart import is_control
from comove.report import Origin, write_report
from comove.retraining import subsets
from comove.store import new_folder
from comove.training import Recording, Run, Training, train

__all__ = ["METHODS", "Demo", "run_demo"]

METHODS: tuple[Attributor, ...] = (
    CLD(),
    CLD(transform="log-odds", whiten=0.03),
    BayesianInfluence(chains=16, steps=240),
    TracIn(checkpoints=6),
    TRAK(),
    GaussNewton(share=0.9),
    SameClassControl(),
    RandomControl(),
)
"""What is compared: the paper's CLD and a whitened one, the best-known others, and two controls; all cheap enough."""
REMOVED = 50
"""Training examples removed for each query in the brittleness row."""
FLIPPED = 0.1
"""Share of the labels flipped in the cleaning row."""
KEPT = 0.3
"""Share of the training data in the coreset."""


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    scores: Scores
    coreset: Coreset
    curve: Curve
    benchmark: Benchmark
    removals: Brittleness
    cleaning: Detection
    page: Path
    seconds: float

    def conclusions(self) -> list[str]:
        """What to conclude, in three sentences computed from the figures."""
        return [_of_lds(self.benchmark.results), _of_removals(self.removals), _of_data(self.cleaning, self.curve)]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    runs: int = 3,
    subset_count: int = 100,
    retrain_seeds: int = 2,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
    methods: Sequence[Attributor] = METHODS,
) -> Demo:
    """Train on digits, compare methods with retraining, remove, clean, select a coreset, and write the report.

    Args:
        out: a folder; an interrupted demo goes on from what it holds.
        seed: of everything.
        runs: models that attribution averages over.
        subset_count: C of the LDS bank.
        retrain_seeds: R of the LDS bank.
        progress: show bars.
        say: called with a line before each step.
        methods: what is compared, the first of them shown query by query.
    """
    started = time.monotonic()
    folder, compute = new_folder(out), Compute(progress=progress)
    splits = load_dataset("digits", seed=seed)
    training = Training("mlp", "digits-mlp", seed=seed)
    compared_methods = [
        replace(method, cache=str(folder / "explored")) if isinstance(method, BayesianInfluence) else method
        for method in methods
    ]
    say(
        f"1/5  {splits}: {runs} recorded runs, {subset_count} × {retrain_seeds} retrained models, "
        f"and the LDS of {len(methods)} methods against these"
    )
    benchmark = lds_benchmark(
        splits,
        compared_methods,
        subsets=subsets.random(0.5, subset_count),
        seeds=retrain_seeds,
        out=folder / "lds",
        runs=Runs(runs, Recording(every=11)),
        training=training,
        compute=compute,
    )
    say(f"2/5  removing the {REMOVED} examples that help each of 8 queries most, and training again")
    queries = choose_queries(benchmark.runs[0].trace, 20)
    compared = [Scores.load(folder / "lds" / "scores" / name) for name in _files(methods)]
    removals = brittleness(
        compared, [REMOVED], dataset=splits, out=folder / "brittleness", training=training, seeds=2, base_seeds=5,
        queries=queries[:8], compute=compute,
    )  # fmt: skip
    say(f"3/5  flipping {FLIPPED:.0%} of the labels, and looking for them")
    cleaning = _cleaned(splits, training, folder / "clean", progress)
    say("4/5  selecting a 30% coreset, and training on it and on random ones")
    coreset = select("cld", benchmark.runs[0], budget=KEPT)
    coreset.save(folder / "coreset.csv")
    curve = coreset_curve(
        benchmark.runs[0], ["cld", "random"], [0.05, 0.1, KEPT], seeds=3, training=Training(seed=seed),
        out=folder / "curve", compute=compute,
    )  # fmt: skip
    say("5/5  drawing the figures and writing the report")
    scores = compared[0].subset(query_ids=queries)
    scores.save(folder / "scores.safetensors")
    _draw(folder / "figures", benchmark, removals, curve, scores, splits)
    page = write_report(
        folder / "index.html",
        benchmark.runs,
        [one.subset(query_ids=queries) for one in compared],
        [benchmark, removals, curve, coreset],
        dataset=splits,
        title="comove demo: digits",
        origin=Origin(f"comove demo --seed {seed}"),
    )
    return Demo(scores, coreset, curve, benchmark, removals, cleaning, page, time.monotonic() - started)


def _files(methods: Sequence[Attributor]) -> list[str]:
    """The files of the methods' scores; brittleness has controls of its own."""
    return [f"{file_name(method.label)}.safetensors" for method in methods if not is_control(method.name)]


def _cleaned(splits: Splits, training: Training, out: Path, progress: bool) -> Detection:
    noisy, wrong = flip_labels(splits, FLIPPED, training.seed)
    run = train(noisy, training.model, training.recipe, training.seed, out, progress=progress)
    return detect(rank_labels(run, ["aum", "loss", "random"], suggest=False), wrong)


def _draw(
    folder: Path, benchmark: Benchmark, removals: Brittleness, curve: Curve, scores: Scores, splits: Splits
) -> None:
    shown, run = scores.query_ids[:6].tolist(), benchmark.runs[0]
    assert isinstance(run, Run)
    figures = {
        "influence": scores.plot(shown, splits=splits),
        "trajectories": scores.plot_losses(run.trace, shown[0]),
        "lds": benchmark.plot(),
        "brittleness": removals.plot(),
        "curve": curve.plot(),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")


# --- what to conclude --------------------------------------------------------------------------------------------


def _of_lds(results: Sequence[LDS]) -> str:
    best = max(results, key=lambda one: one.mean)
    controls = {one.method: one.mean for one in results if is_control(one.method)}
    labels = controls.get("same-class-control", 0.0)
    below = [str(one.method) for one in results if one.method not in controls and one.mean < labels]
    share = f", {best.share_of_ceiling:.0%} of what the noise allows" if best.share_of_ceiling is not None else ""
    said = f" Below the labels alone ({labels:.2f}): {', '.join(below)}." if below else ""
    return f"{best.method} predicts retraining best (LDS {best.mean:.2f}{share}).{said}"


def _of_removals(found: Brittleness) -> str:
    drops = {name: found.margin_drop(name, REMOVED).value for name in found.methods}
    best = max((name for name in drops if name not in found.controls), key=lambda name: drops[name])
    beside = ", ".join(f"{name} {drops[name]:.2f}" for name in found.controls)
    return (
        f"Removing the {REMOVED} examples that {best} names lowers a query's margin by {drops[best]:.2f} "
        f"({beside}): what it names matters."
    )


def _of_data(cleaning: Detection, curve: Curve) -> str:
    best = cleaning.best
    accuracy = {
        method: fmean(point.accuracy for point in curve.points if (point.method, point.budget) == (method, KEPT))
        for method in ("cld", "random")
    }
    return (
        f"Of the {cleaning.wrong} labels that look most wrong to {best}, {cleaning.at_wrong(best).value:.0%} are wrong "
        f"(chance {cleaning.wrong / cleaning.n:.0%}); a {KEPT:.0%} coreset by CLD gives {accuracy['cld']:.1%} "
        f"accuracy, a random one {accuracy['random']:.1%}."
    )
