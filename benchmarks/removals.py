"""Six methods measured by removal on digits: predictions that flip, margins and losses that change.

    python benchmarks/removals.py --folder DIR            # resumable: what is trained stays in DIR
    python benchmarks/removals.py --folder DIR --queries 50 --seeds 5

For each of 50 queries, drawn at random, the k training examples that each method scores highest are removed, and 5
models are trained without them (prediction brittleness: Ilyas et al., Datamodels, 2022); the same with the highest 1 %
and the query's loss (top-share removal). Beside the methods: random examples, random ones of the query's class, and
nothing removed. Scores are of 5 recorded runs. The result goes to ``benchmarks/results/removals-digits.json`` and two
figures beside it, and ``docs/removals.md`` is written from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, machine, plain, timed, write_result

from comove.attribution import CLD, EKFAC, TRAK, Attributor, BayesianInfluence, GaussNewton, Scores
from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.evaluation import Brittleness, brittleness, top_share_removal
from comove.evaluation.prediction_brittleness.top_share import TopShare
from comove.jobs import Compute
from comove.plots import save_figure
from comove.training import Recording, Run, train

METHODS: dict[str, Attributor] = {
    "cld (paper)": CLD(rows="epochs"),
    "cld (whitened log odds)": CLD(whiten=0.03, transform="log-odds"),
    "bayesian-influence": BayesianInfluence(),
    "trak": TRAK(),
    "gauss-newton": GaussNewton(share=0.96),
    "ekfac": EKFAC(),
}
"""With options chosen on another bank of digits (docs/quality.md)."""
KS = (5, 14, 28, 70)
SHARE = 0.01
PAGE = Path(__file__).parents[1] / "docs" / "removals.md"


def main() -> None:
    """Train, score, remove, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of runs, scores and banks")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--executor", default="serial")
    given = parser.parse_args()
    splits, compute = load_dataset("digits"), Compute(given.executor)
    asked = np.sort(np.random.default_rng(0).choice(splits.query.ids, given.queries, replace=False))
    scores = scored(splits, given.folder, given.runs, asked)
    how: dict[str, Any] = {"dataset": splits, "seeds": given.seeds, "compute": compute}
    seconds, removed = timed(lambda: brittleness(scores, KS, out=given.folder / "brittleness", queries=asked, **how))
    print(removed, f"{seconds:.0f} CPU s", flush=True)
    more, share = timed(lambda: top_share_removal(scores, SHARE, out=given.folder / "top-share", **how))
    print(share, f"{more:.0f} CPU s", flush=True)
    figure = save_figure(removed.plot(), RESULTS / "removals-digits.png")
    result = {
        "machine": machine(),
        "queries": given.queries,
        "seeds": given.seeds,
        "runs": given.runs,
        "train": len(splits.train),
        "flipped": {m: {str(k): removed.rate(m, k) for k in KS} for m in removed.methods},
        "flipped, nothing removed": removed.noise,
        "margin lost": {m: {str(k): removed.margin_drop(m, k) for k in KS} for m in removed.methods},
        "margin lost, nothing removed": removed.noise_margin_drop,
        "top share": plain(share.rows()),
    }
    write_result("removals-digits", plain(result))
    PAGE.write_text(page(result, removed, share, figure), encoding="utf-8")


def scored(splits: Splits, folder: Path, runs: int, queries: np.ndarray) -> dict[str, Scores]:
    """Every method's scores of the queries, by recorded runs; kept in ``folder``."""
    recorded: list[Run] = [
        train(splits, "mlp", "digits-mlp", number, folder / "runs" / str(number), recording=Recording(every=3))
        for number in range(runs)
    ]
    found = {}
    for name, method in METHODS.items():
        file = folder / "scores" / f"{method.name}-{len(found)}.safetensors"
        if not file.exists():
            seconds, scores = timed(lambda m=method: m.fit(recorded).attribute(queries))  # type: ignore[misc]
            print(f"{name}: {seconds:.0f} CPU s", flush=True)
            scores.save(file)
        found[name] = Scores.load(file)
    return found


def page(result: dict[str, Any], removed: Brittleness, share: TopShare, figure: Path) -> str:
    """The page, in Markdown: what was done, what to conclude, figure and tables."""
    rises = {row["method"]: row for row in share.rows()}
    own = [name for name in share.methods if name in METHODS]
    best = max(own, key=lambda name: rises[name]["rise"])
    floor = max((name for name in share.methods if name not in METHODS), key=lambda name: rises[name]["rise"])
    above = [name for name in own if rises[name]["low"] > rises[floor]["high"]]
    level = ", ".join(f"`{name}`" for name in own if rises[name]["high"] >= rises[best]["low"] and name != best)
    lines = [
        "# What removal does",
        "",
        "The most direct test of a score: remove what it ranks highest for a query, train again, look at the query.",
        f"MLP 64-64-64-10 on {result['train']:,} digits, {result['queries']} queries drawn at random,",
        f"{result['seeds']} models for each removed set, scores of {result['runs']} recorded runs; options were chosen",
        "on another bank ([Quality](quality.md)). Intervals are 95 %, over queries. This page is written by",
        "",
        "    python benchmarks/removals.py --folder DIR",
        "",
        f"- Without the {share.removed} examples ({share.share:.0%}) that a method scores highest, the query's loss",
        f"  rises most by `{best}`: {_interval(rises[best])}"
        + (f"; the interval meets that of {level}." if level else ", the interval above those of all others."),
        f"- Above the better control ({floor}, {_interval(rises[floor])}) with intervals that do not meet:",
        f"  {', '.join(f'`{name}`' for name in above) or 'none'}.",
        *(_of_margins(removed, k) for k in KS[1:]),
        "",
        "| removed by | rise of the loss, highest 1 % removed |",
        "| --- | --- |",
        *(f"| {name} | {_interval(row)} |" for name, row in rises.items()),
        "",
        f"![Predictions flipped against examples removed](../benchmarks/results/{figure.name})",
        "",
        "Predictions that flip:",
        "",
        *_table(removed, lambda m, k: removed.rate(m, k), "{:.0%} [{:.0%}, {:.0%}]"),
        "| nothing |" + " {:.1%} [{:.1%}, {:.1%}] |".format(*removed.noise) + " |" * (len(KS) - 1),
        "",
        "How far the margin of the query's label falls:",
        "",
        *_table(removed, lambda m, k: removed.margin_drop(m, k), "{:.2f} [{:.2f}, {:.2f}]"),
        "",
    ]
    return "\n".join(lines)


def _of_margins(removed: Brittleness, k: int) -> str:
    """Which method lowers the margins most at one k, and which ones are below it with intervals that do not meet."""
    lost = {name: removed.margin_drop(name, k) for name in removed.methods if name in METHODS}
    best = max(lost, key=lambda name: lost[name].value)
    below = [name for name, estimate in lost.items() if estimate.high < lost[best].low]
    named = ", ".join(f"`{name}`" for name in below) or "none"
    value = "{:.2f} [{:.2f}, {:.2f}]".format(*lost[best])
    return f"- By the margin lost, which is less noisy, at k = {k}: `{best}`, {value}; below its interval: {named}."


def _table(removed: Brittleness, estimate: Any, form: str) -> list[str]:
    head = ["| removed by | " + " | ".join(f"k = {k}" for k in KS) + " |", "|" + " --- |" * (len(KS) + 1)]
    rows = [[form.format(*estimate(m, k)) for k in KS] for m in removed.methods]
    return [*head, *(f"| {m} | " + " | ".join(row) + " |" for m, row in zip(removed.methods, rows, strict=True))]


def _interval(row: dict[str, float]) -> str:
    return "{rise:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row)


if __name__ == "__main__":
    main()
