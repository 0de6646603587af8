"""Measured results as figures and tables that the page draws: values, labels and styles, and no picture.

A figure is a JSON object: ``kind`` (``"bars"`` along x, or ``"lines"``), titles of both axes, ``series`` of points
(x, y, low, high), ``levels`` (horizontal lines; of bars: vertical ones), ``named`` ticks (x, text), a ``table`` and
``notes``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from comove.errors import InputError
from comove.evaluation import LDS, Brittleness, Counterfactual, Curve
from comove.evaluation.lds_benchmark.result import alpha_name
from comove.evaluation.prediction_brittleness.result import NOTHING
from comove.plots.lines import is_control
from comove.plots.numbers import MINUS, fixed, percent, span
from comove.plots.numbers import NOTHING as NO_NUMBER

__all__ = ["PAGES", "brittleness_figures", "counterfactual_figures", "curve_figures", "figures_of", "lds_figures"]

Figure = dict[str, Any]
WIDE = 8
"""From this ratio of the largest to the smallest number removed, or kept, on, the axis is logarithmic."""


def lds_figures(results: Sequence[LDS]) -> list[Figure]:
    """One figure an output: bars at one sampling ratio, lines over several.

    Raises:
        InputError: no result.
    """
    if not results:
        raise InputError("There is no LDS to show.")
    outputs = dict.fromkeys(result.output or "output" for result in results)
    return [_lds_figure(out, [one for one in results if (one.output or "output") == out]) for out in outputs]


def _lds_figure(output: str, results: Sequence[LDS]) -> Figure:
    first = results[0]
    alphas = sorted({_number(one.alpha) for one in results})
    lines: dict[str, list[Any]] = {}
    for one in sorted(results, key=lambda one: _number(one.alpha)):
        low, high = one.interval or (math.nan, math.nan)
        lines.setdefault(str(one.method), []).append([_number(one.alpha), one.mean, low, high])
    ceiling = [[_number(one.alpha), one.noise_ceiling] for one in results if one.method == first.method]
    known = [value for _, value in ceiling if value is not None and math.isfinite(value)]
    single = len(alphas) == 1
    series = [_series(name, points) for name, points in lines.items()]
    if not single and known:
        series.append({**_series("noise ceiling", ceiling), "level": True})
    return {
        "kind": "bars" if single else "lines",
        "title": f"Linear datamodeling score, {output}",
        "x": "LDS, mean over queries" if single else "share of the training data in a subset",
        "y": "" if single else "LDS, mean over queries",
        "series": series,
        "levels": [{"name": "noise ceiling", "at": known[0]}] if single and known else [],
        "named": [[alpha, _ratio(alpha)] for alpha in alphas],
        "table": _lds_table(results, single),
        "notes": [_lds_note(first, known[0] if single and known else None, single)],
    }


def _ratio(alpha: float) -> str:
    return alpha_name(alpha).replace("-", MINUS)


def _lds_note(first: LDS, ceiling: float | None, single: bool) -> str:
    """What was measured; at one sampling ratio also what the table has no columns for."""
    share = f" of {percent(first.alpha)} of the training data" if single and first.alpha is not None else ""
    size = f"{first.per_query.size:,} queries, {first.subsets:,} subsets{share} \u00d7 {_seeds(first.seeds)}"
    told = [
        size if single else f"{size} a sampling ratio",
        *([f"{first.confidence:.0%} intervals"] if first.interval else []),
        *([f"noise ceiling {fixed(ceiling)}"] if ceiling is not None else []),
    ]
    means = "What a method's scores predict for retrained models, ranked as retraining ranked them"
    return f"{'; '.join(told)}. {means}: 1 is perfect, 0 is no better than chance."


def _lds_table(results: Sequence[LDS], single: bool) -> dict[str, Any]:
    """A row a method and ratio; what is the same in every row is left to the note."""
    rows = []
    for one in results:
        low, high = one.interval or (math.nan, math.nan)
        alpha = NO_NUMBER if one.alpha is None else _ratio(one.alpha)
        ceiling = NO_NUMBER if one.noise_ceiling is None else fixed(one.noise_ceiling)
        own = [fixed(one.mean), span(low, high)]
        rows.append([str(one.method), *([] if single else [alpha]), *own, *([] if single else [ceiling])])
        rows[-1].append(f"{one.undefined:,}")
    ratio, ceiling_of = ([], []) if single else (["share in a subset"], ["noise ceiling"])
    return {"columns": ["method", *ratio, "LDS", "interval", *ceiling_of, "undefined queries"], "rows": rows}


def brittleness_figures(found: Brittleness) -> list[Figure]:
    """Predictions flipped against the number of examples removed."""
    lines = {name: [[k, *(100 * v for v in found.rate(name, k))] for k in found.ks] for name in found.methods}
    noise = [100 * bound for bound in found.noise]
    rows = [[NOTHING, "0", *_percent(found.noise), NO_NUMBER]]
    for name in found.methods:
        for k in found.ks:
            emptied = int(found.class_emptied[found.methods.index(name), :, found.ks.index(k)].sum())
            rows.append([name, f"{k:,}", *_percent(found.rate(name, k)), f"{emptied:,}"])
    return [
        {
            "kind": "lines",
            "title": "Predictions flipped by removing what mattered most",
            "x": "training examples removed for each query, k",
            "y": "predictions flipped (%)",
            "log": _wide(found.ks),
            "range": [0, None],
            "series": [_series(name, points, name in found.controls) for name, points in lines.items()],
            "levels": [{"name": f"{NOTHING} (k = 0)", "at": noise[0], "low": noise[1], "high": noise[2]}],
            "table": {
                "columns": ["method", "k", "flipped (%)", "interval", "queries whose class is gone"],
                "rows": rows,
            },
            "notes": found.notes(),
        }
    ]


def counterfactual_figures(found: Counterfactual) -> list[Figure]:
    """Queries flipped within a budget of removals."""
    grid = found.grid.tolist()
    lines = {name: [[k, *(100 * v for v in found.share(name, k))] for k in grid] for name in found.methods}
    rows = [
        [name, found.median_text(name), *_percent(found.share(name, grid[-1])), f"{found.not_flipped[name]:,}"]
        for name in found.methods
    ]
    return [
        {
            "kind": "lines",
            "steps": True,
            "title": "Smallest removal that flips a prediction",
            "x": "budget: training examples removed for each query, k",
            "y": "queries flipped within the budget (%)",
            "log": _wide(grid),
            "range": [0, None],
            "series": [_series(name, points, name in found.controls) for name, points in lines.items()],
            "levels": [{"name": f"{NOTHING} (k = 0)", "at": 100 * found.noise}],
            "table": {
                "columns": ["method", "half flip by k =", f"flipped by {grid[-1]:,} (%)", "interval", "not flipped"],
                "rows": rows,
            },
            "notes": found.notes(),
        }
    ]


def curve_figures(found: Curve, name: str = "") -> list[Figure]:
    """Accuracy against the share of the training data that is kept; bands are one standard deviation over seeds."""
    rows = found.summary()
    full = [row for row in rows if row["method"] == "full data"]
    lines: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: row["budget"]):
        if row["method"] != "full data":
            spread = row["std"]
            point = [100 * row["budget"], *(100 * v for v in (row["mean"], row["mean"] - spread, row["mean"] + spread))]
            lines.setdefault(row["method"], []).append(point)
    cells = [
        [r["method"], percent(r["budget"]), f"{r['size']:,}", *(fixed(100 * r[n], 1) for n in ("mean", "std"))]
        for r in rows
    ]
    queries = f" on {found.n_query:,} held-out queries" if found.n_query else " on held-out queries"
    return [
        {
            "kind": "lines",
            "title": f"Accuracy of {name} trained on coresets" if name else "Accuracy of models trained on coresets",
            "x": "share of the training data kept (%)",
            "y": "accuracy (%)",
            "log": _wide([row["budget"] for row in rows if row["method"] != "full data"]),
            "series": [_series(method, points, method == "random") for method, points in lines.items()],
            "levels": [{"name": "full data", "at": 100 * full[0]["mean"]}] if full else [],
            "table": {"columns": ["method", "share kept", "examples", "accuracy (%)", "deviation (%)"], "rows": cells},
            "notes": [
                f"Accuracy{queries} of models trained from scratch; {_spread(rows[0]['seeds'])}.",
                *(f"{method} is left out: {reason}" for method, reason in found.skipped.items()),
            ],
        }
    ]


def _series(name: str, points: Sequence[Sequence[Any]], control: bool = False) -> dict[str, Any]:
    return {"name": name, "control": control or is_control(name), "points": [list(point) for point in points]}


def _wide(values: Sequence[float]) -> bool:
    """Whether an axis from the least to the largest should be logarithmic."""
    return bool(values) and 0 < WIDE * min(values) <= max(values)


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number:,} seeds"


def _spread(seeds: int) -> str:
    return f"bands: standard deviation over {_seeds(seeds)}" if seeds > 1 else "one seed, so without deviations"


def _percent(estimate: Any) -> tuple[str, str]:
    value, low, high = (100 * bound for bound in estimate)
    return fixed(value, 1), span(low, high, 1)


def _number(value: float | None) -> float:
    return 0.0 if value is None else float(value)


def figures_of(result: object, name: str) -> list[Figure]:
    """The figures of a result."""
    if isinstance(result, Brittleness):
        return brittleness_figures(result)
    if isinstance(result, Counterfactual):
        return counterfactual_figures(result)
    if isinstance(result, Curve):
        return curve_figures(result, name)
    assert isinstance(result, Sequence)
    return lds_figures(result)


PAGES: Mapping[str, tuple[str, str, str]] = {
    "lds": (
        "LDS",
        "Are the scores right?",
        (
            "Models were retrained on random subsets of the training data. The linear datamodeling score asks whether "
            "a method's summed scores rank those models as retraining did."
        ),
    ),
    "brittleness": (
        "Brittleness",
        "Does removing them change the prediction?",
        (
            "For each query the examples said to help it most were removed, models were trained again, and flipped "
            "predictions counted. A good method flips more than random or same-class removal."
        ),
    ),
    "curves": (
        "Coresets",
        "Which examples are worth keeping?",
        "Models were trained from scratch on what each method keeps, and tested on queries no method saw.",
    ),
}
"""Page -> its tab, its heading, and what it is about."""
