"""What is published of the cells of ``coreset_noise.py``: means, paired differences, crossings, what coresets keep.

Every interval is Student's, over seeds, at 95 %; there is none of a single seed. Nothing corrects for their number: of
twenty differences that are not there one shows by chance.

Shape legend: N training examples, P kept, R not kept, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

import comove
from comove.coreset.moderate import centre_distances

__all__ = ["NOISY_VALIDATION", "OWN", "RIVALS", "Differences", "interval", "summary", "verdict"]

OWN = ("cld", "ccs:score=cld", "d2:difficulty=cld")
"""CLD, and CLD inside CCS's strata and D2's messages."""
NOISY_VALIDATION = "cld, noisy validation"
RIVALS = ("random", "el2n", "forgetting", "ccs", "d2")
FULL = "full data"
LEVEL = 0.95
EL2N_EPOCHS = 10
Cell = Mapping[str, Any]
Differences = Mapping[tuple[str, str, float], Mapping[float, Sequence[float]]]


class Estimated(NamedTuple):
    """A mean over seeds; the ends are ``None`` where one seed gives none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def interval(values: Sequence[float]) -> Estimated:
    """The mean and its t-interval.

    >>> [round(x, 3) for x in interval([0.1, 0.2, 0.3])[:3]]
    [0.2, -0.048, 0.448]
    """
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    if found.size < 2:
        return Estimated(mean, None, None, found.size)
    half = float(stats.t.ppf((1 + LEVEL) / 2, found.size - 1) * found.std(ddof=1) / np.sqrt(found.size))
    return Estimated(mean, mean - half, mean + half, found.size)


def verdict(values: Sequence[float]) -> str:
    """``+`` where the interval of the differences lies above 0, ``-`` below, ``0`` where it holds 0; else ``?``."""
    found = interval(values)
    if found.low is None or found.high is None:
        return "?"
    return "+" if found.low > 0 else "-" if found.high < 0 else "0"


def crossing(by_noise: Mapping[float, Sequence[float]]) -> float | None:
    """The lowest share of wrong labels from which on every verdict is ``"+"``; ``None`` where there is none."""
    found = None
    for noise in sorted(by_noise, reverse=True):
        if verdict(by_noise[noise]) != "+":
            break
        found = noise
    return found


def summary(cells: Sequence[Cell], folder: Path) -> dict[str, Any]:
    """All that is published of the cells; the runs they were chosen with are read again from ``folder``."""
    accuracy = _accuracy(cells)
    methods = list(dict.fromkeys(method for _, method, _ in accuracy))
    own = [method for method in (*OWN, NOISY_VALIDATION) if method in methods]
    pairs = [(method, "random") for method in methods if method not in (*own, "random", FULL)]
    pairs += [(method, rival) for method in own for rival in dict.fromkeys((*RIVALS, *OWN)) if rival != method]
    differences = {
        (method, rival, share): _paired(accuracy, method, rival, share)
        for method, rival in pairs
        for share in sorted({share for _, name, share in accuracy if name == method})
    }
    noisy = {share for noise, _, share in accuracy if noise}
    return {
        "finished": _finished(cells),
        "accuracy": [
            {"noise": noise, "method": method, "share": share, **interval(list(seeds.values()))._asdict()}
            for (noise, method, share), seeds in accuracy.items()
        ],
        "differences": [
            {"method": method, "less": rival, "share": share, "noise": noise, "verdict": verdict(values)}
            | interval(values)._asdict()
            for (method, rival, share), by_noise in differences.items()
            for noise, values in sorted(by_noise.items())
        ],
        "crossings": [
            {"method": method, "over": rival, "share": share, "from": crossing(by_noise)}
            for (method, rival, share), by_noise in differences.items()
            if method in own and share in noisy and max(by_noise, default=0) > 0
        ],
        "kept": _kept(cells, folder),
    }


def _finished(cells: Sequence[Cell]) -> dict[str, int]:
    levels = sorted({cell["noise"] for cell in cells})
    return {str(noise): sum(cell["noise"] == noise for cell in cells) for noise in levels}


def _accuracy(cells: Iterable[Cell]) -> dict[tuple[float, str, float], dict[int, float]]:
    """By wrong labels, method and share: the accuracy of every seed."""
    found: dict[tuple[float, str, float], dict[int, float]] = {}
    for cell in cells:
        found.setdefault((cell["noise"], FULL, 1.0), {})[cell["seed"]] = cell[FULL]
        for row in cell["rows"]:
            found.setdefault((cell["noise"], row["method"], row["share"]), {})[cell["seed"]] = row["accuracy"]
    return found


def _paired(
    accuracy: Mapping[tuple[float, str, float], Mapping[int, float]], method: str, rival: str, share: float
) -> dict[float, list[float]]:
    """By wrong labels: the differences of accuracy, seed by seed."""
    found = {}
    for noise in sorted({noise for noise, _, _ in accuracy}):
        ours, theirs = (accuracy.get((noise, name, share), {}) for name in (method, rival))
        both = sorted(ours.keys() & theirs.keys())
        if both:
            found[noise] = [ours[seed] - theirs[seed] for seed in both]
    return found


# --- what coresets keep ------------------------------------------------------------------------------------------


def _kept(cells: Iterable[Cell], folder: Path) -> list[dict[str, Any]]:
    """By wrong labels, method and share: the mean over seeds of every measure of the kept examples."""
    found: dict[tuple[float, str, float], list[dict[str, float]]] = {}
    for cell in cells:
        trace = comove.Trace.load(folder / f"noise-{cell['noise']:g}-seed-{cell['seed']}" / "run" / "trace")
        known, points = example_ranks(trace), trace.features("train", max(trace.anchors)).astype(np.float64)
        wrong_N = np.isin(trace.train_ids, cell["wrong"])
        for row in cell["rows"]:
            kept_N = np.isin(trace.train_ids, row["ids"])
            measures = described(kept_N, known, points, _labels(trace)) | {
                "wrong labels": float(wrong_N[kept_N].mean())
            }
            found.setdefault((cell["noise"], row["method"], row["share"]), []).append(measures)
    return [
        {"noise": noise, "method": method, "share": share}
        | {name: float(np.mean([one[name] for one in seeds])) for name in seeds[0]}
        for (noise, method, share), seeds in found.items()
    ]


def example_ranks(trace: comove.Trace) -> dict[str, np.ndarray]:
    """Of every training example (N,) the rank among all, from 0 to 1, by what makes examples easy or hard."""
    ends = [row.index for row in trace.rows if row.epoch > 0]

    def field(name: str) -> np.ndarray:
        return trace.read("train", name, rows=ends).astype(np.float64)

    correct = field("correct") > 0
    distances = centre_distances(trace.features("train", max(trace.anchors)), _labels(trace))
    values = {
        "mean loss": field("loss").mean(0),
        "EL2N": field("el2n")[:EL2N_EPOCHS].mean(0),
        "mean margin": field("margin_prob").mean(0),
        "forgetting": (correct[:-1] & ~correct[1:]).sum(0),
        "centre distance": distances,
    }
    return {name: mid_ranks(value) for name, value in values.items()}


def _labels(trace: comove.Trace) -> np.ndarray:
    found = trace.train_labels
    assert found is not None
    return found


def mid_ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 0 to 1, of mean one half; equal values share theirs.

    >>> mid_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist()
    [0.75, 0.125, 0.75, 0.375]
    """
    return (stats.rankdata(values_N) - 0.5) / values_N.size


def described(
    kept_N: np.ndarray, known: Mapping[str, np.ndarray], points_NF: np.ndarray, labels_N: np.ndarray
) -> dict[str, float]:
    """Measures of the kept examples: mean ranks, the spread of the ranks of the loss, balance, and what is far away."""
    counts = np.bincount(labels_N[kept_N], minlength=int(labels_N.max()) + 1)
    return {
        **{name: float(ranks_N[kept_N].mean()) for name, ranks_N in known.items()},
        "spread of the loss": float(known["mean loss"][kept_N].std()),
        "distance to the nearest kept": nearest(points_NF, kept_N),
        "balance": float(counts.min() * counts.size / counts.sum()),
    }


def nearest(points_NF: np.ndarray, kept_N: np.ndarray) -> float:
    """Mean distance of what is not kept to the nearest that is, as a share of the typical distance of two examples.

    >>> nearest(np.array([[0.0], [1.0], [3.0]]), np.array([True, False, False]))  # doctest: +ELLIPSIS
    1.13...
    """
    if kept_N.all():
        return 0.0
    rest_RF, kept_PF = points_NF[~kept_N], points_NF[kept_N]
    squared_RP = (rest_RF**2).sum(1)[:, None] + (kept_PF**2).sum(1) - 2 * rest_RF @ kept_PF.T
    typical = np.sqrt(2 * points_NF.var(0).sum())
    return float(np.sqrt(np.maximum(squared_RP, 0)).min(1).mean() / typical)
