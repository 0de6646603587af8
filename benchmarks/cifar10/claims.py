"""The claims of the CLD paper's appendix F, and a question of ours: each verdict is computed, by a rule that it states.

Verdicts: ``holds``, ``does not hold``, ``undecided`` (the intervals allow both) and ``not measured``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from comove.evaluation import LDS, Brittleness, paired_difference
from comove.evaluation.estimate import Estimate
from comove.lds.charts import alpha_name
from comove.lds.uncertainty import recentred_interval

__all__ = ["HOLDS", "PAPER_CLD", "Claim", "Shown", "claims_of"]

HOLDS, FAILS, UNDECIDED, UNMEASURED = "holds", "does not hold", "undecided", "not measured"
PAPER_CLD = "cld(rows=epochs)"
CLOSE = 0.05
"""Two methods whose LDS differ by less are taken to be as good."""
REMOVED = 800
REMOVED_SHARE = 800 / 50_000


@dataclass(frozen=True)
class Shown:
    """What the figure of a claim shows: estimates with their intervals, a line each, beside what decides.

    Attributes:
        axis: what is measured.
        rows: what each line is of, its value and interval.
        line: a value on one side of which all must lie for the claim to hold.
    """

    axis: str
    rows: tuple[tuple[str, tuple[float, float, float]], ...] = ()
    line: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A claim, by which rule it was judged, the verdict, the figures behind it, a sentence each, and its figure."""

    text: str
    rule: str
    verdict: str
    because: tuple[str, ...]
    shown: Shown = field(default_factory=lambda: Shown(""))
    about_flips: bool = False


def claims_of(
    results: Sequence[LDS],
    removed: Brittleness | None,
    n_train: int,
    *,
    alike: Sequence[LDS] | None = None,
    given_class: Mapping[float, Estimate] | None = None,
) -> list[Claim]:
    """Judge every claim.

    Args:
        results: of one output, at every sampling ratio that was measured.
        alike: the same with as many seeds at every ratio, for what is said of ratios; without them, ``results``.
        removed: the brittleness measurement.
        n_train: N.
        given_class: by ratio, how the paper's CLD-inf ranks subsets beyond what their labels tell.
    """
    alike = results if alike is None else alike
    beyond = _beyond_class(results, given_class or {})
    return [_tracks(results), _narrows(alike), _drops(alike), _flips(removed, n_train), beyond]


def _find(results: Sequence[LDS], start: str, alpha: float) -> LDS | None:
    return next((r for r in results if r.alpha == alpha and str(r.method).startswith(start)), None)


def _ceiling(result: LDS | None) -> float:
    """NaN where one seed leaves it unknown."""
    return math.nan if result is None or result.noise_ceiling is None else float(result.noise_ceiling)


def _alphas(results: Sequence[LDS]) -> tuple[list[float], float | None]:
    """The ratios of random subsets, ascending, and (N-1)/N where it was measured."""
    alphas = sorted({float(r.alpha or 0) for r in results})
    corner = alphas.pop() if alphas and alpha_name(alphas[-1]).startswith("1-1/") else None
    return alphas, corner


def _signed(value: float, interval: tuple[float, float]) -> str:
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def _tracks(results: Sequence[LDS]) -> Claim:
    text = "CLD-inf aligns closely with TracIn and TRAK in terms of behaviour (F, figure 8a)."
    rule = (
        "By paired differences of the LDS at each ratio of random subsets. Holds if the paper's CLD-inf is less than "
        f"{CLOSE} below both TracIn and TRAK at every ratio, the whole intervals being so; does not hold if at every "
        f"ratio it is decidedly below one of them and the interval reaches below -{CLOSE}."
    )
    near, below, told, rows = [], [], [], []
    close: dict[str, list[bool]] = {}
    for alpha in _alphas(results)[0]:
        ours = _find(results, PAPER_CLD, alpha)
        others = [r for start in ("tracin", "trak") if (r := _find(results, start, alpha)) is not None]
        if ours is None or len(others) < 2:
            continue
        gaps = [paired_difference(ours, other) for other in others]
        near.append(all(gap.interval[0] > -CLOSE for gap in gaps))
        below.append(not near[-1] and any(gap.interval[1] < 0 for gap in gaps))
        told += [f"{_at(ours)}: CLD-inf minus {g.other} {_signed(g.mean, g.interval)}." for g in gaps]
        rows += [(f"minus {g.other}, alpha {alpha:g}", (g.mean, *g.interval)) for g in gaps]
        for gap in gaps:
            close.setdefault(str(gap.other), []).append(gap.interval[0] > -CLOSE)
    if not below:
        return Claim(text, rule, UNMEASURED, ())
    verdict = HOLDS if all(near) else FAILS if all(below) else UNDECIDED
    each = ", ".join(f"of {name} at {sum(found)} of {len(found)} ratios" for name, found in close.items())
    shown = Shown("LDS of CLD-inf minus that of the other", tuple(sorted(rows)), -CLOSE)
    return Claim(text, rule, verdict, (f"That near: {each}.", *told), shown)


def _narrows(results: Sequence[LDS]) -> Claim:
    text = "The gap between CLD-inf and the costly methods narrows as alpha grows (F)."
    rule = (
        "The gap is the LDS of TRAK, or of TracIn, minus that of CLD-inf; a method that is not decidedly above CLD-inf "
        "at the lowest ratio has no gap to narrow, and decides nothing. Holds if the others' gaps at the lowest ratio "
        "decidedly exceed those at the highest ratio of random subsets; does not hold if one decidedly falls short. By "
        "as many seeds at both; still, where subsets differ by fewer examples the truth is noisier, which narrows "
        "every gap by itself: the gap as a share of the noise ceiling does not suffer from that."
    )
    alphas = _alphas(results)[0]
    verdicts, told, rows = [], [], []
    for start in ("trak", "tracin"):
        ends = [(_find(results, start, a), _find(results, PAPER_CLD, a)) for a in (alphas[:1] + alphas[-1:])]
        if len(alphas) < 2 or any(one is None or other is None for one, other in ends):
            continue
        gaps = [paired_difference(one, other) for one, other in ends]  # type: ignore[arg-type]
        low, high = (one.resamples - other.resamples for one, other in ends)  # type: ignore[union-attr,operator]
        change = gaps[0].mean - gaps[1].mean
        interval = recentred_interval(low - high, change, 0.95, limit=4.0)  # the two ratios' subsets are independent
        rows.append((f"{gaps[0].method}, alpha {alphas[0]:g} to {alphas[-1]:g}", (change, *interval)))
        told.append(
            f"{gaps[0].method}: {_signed(gaps[0].mean, gaps[0].interval)} at alpha {alphas[0]:g}, "
            f"{_signed(gaps[1].mean, gaps[1].interval)} at {alphas[-1]:g}; narrower by {_signed(change, interval)}."
        )
        ceilings = [_ceiling(one) for one, _ in ends]
        if min(ceilings) > CLOSE:
            shares = [gap.mean / ceiling for gap, ceiling in zip(gaps, ceilings, strict=True)]
            told[-1] += f" As a share of the noise ceiling: {shares[0]:+.2f} and {shares[1]:+.2f}."
        if gaps[0].interval[0] > 0:
            verdicts.append(HOLDS if interval[0] > 0 else FAILS if interval[1] < 0 else UNDECIDED)
        else:
            told[-1] += " No gap to narrow."
    if not told:
        return Claim(text, rule, UNMEASURED, ())
    verdict = FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else UNDECIDED
    return Claim(text, rule, verdict, tuple(told), Shown("by how much the gap in LDS is narrower", tuple(rows)))


def _drops(results: Sequence[LDS]) -> Claim:
    text = "LDS drops at alpha = (N-1)/N, because retraining is stochastic (F)."
    rule = (
        "Methods whose LDS at the highest ratio of random subsets is decidedly above 0 are asked. Holds if for each "
        "the LDS at (N-1)/N is decidedly lower; does not hold if for one the whole interval of the drop is below "
        f"{CLOSE}. The reason is for the noise ceiling to tell: near 0, retraining the same subset is as different."
    )
    alphas, corner = _alphas(results)
    lower, same, told, rows = [], [], [], []
    for before in (r for r in results if alphas and corner is not None and r.alpha == alphas[-1]):
        after = next((r for r in results if r.alpha == corner and r.method == before.method), None)
        if after is None or "control" in str(before.method) or before.interval is None or not before.interval[0] > 0:
            continue
        drop = before.mean - after.mean
        if before.resamples is None or after.resamples is None or math.isnan(drop):
            continue
        interval = recentred_interval(before.resamples - after.resamples, drop, 0.95, limit=2.0)
        lower.append(interval[0] > 0)
        same.append(interval[1] < CLOSE)
        rows.append((str(before.method), (drop, *interval)))
        told.append(
            f"{before.method}: {before.mean:.3f} at {alphas[-1]:g}, {after.mean:.3f} at (N-1)/N, a drop of "
            f"{_signed(drop, interval)}."
        )
    if not lower:
        return Claim(text, rule, UNMEASURED, ())
    above, below = (_ceiling(next(r for r in results if r.alpha == alpha)) for alpha in (alphas[-1], corner))
    if not math.isnan(above + below):
        hidden = ": what one example changes is hidden by the noise of training" if below < CLOSE else ""
        told.append(f"The noise ceiling falls from {above:.3f} to {below:.3f}{hidden}.")
    verdict = HOLDS if all(lower) else FAILS if any(same) else UNDECIDED
    shown = Shown(f"fall of the LDS from alpha {alphas[-1]:g} to (N-1)/N", tuple(rows))
    return Claim(text, rule, verdict, tuple(told), shown)


def _flips(removed: Brittleness | None, n_train: int) -> Claim:
    text = f"Removing the {REMOVED} highest-scored examples (1.6 % of the data) flips over half of the queries (F.1)."
    rule = (
        "Judged for CLD-inf at the k nearest to 1.6 % of the training data. Holds if the interval of the flip rate "
        "lies above one half, does not hold if below. Beside it: what retraining alone and random removal flip, paired "
        "differences, and queries that were classified rightly before; removing what helps the true label need not "
        "flip the others."
    )
    if removed is None or PAPER_CLD not in removed.methods:
        return Claim(text, rule, UNMEASURED, (), about_flips=True)
    wanted = REMOVED_SHARE * n_train
    k = min(removed.ks, key=lambda each: abs(np.log(each / wanted)))
    rate = removed.rate(PAPER_CLD, k)
    told = [f"CLD-inf, k = {k} ({k / n_train:.1%} of {n_train:,}): {_rate(rate)} of {len(removed.query_ids)} queries."]
    others = [name for name in removed.methods if name != PAPER_CLD]
    told += [f"{name}, k = {k}: {_rate(removed.rate(name, k))}." for name in others]
    told.append(f"Nothing removed: {_rate(removed.noise)}.")
    if REMOVED in removed.ks and k != REMOVED:
        told.append(f"CLD-inf, k = {REMOVED} ({REMOVED / n_train:.0%}): {_rate(removed.rate(PAPER_CLD, REMOVED))}.")
    for name in others:
        told.append(f"CLD-inf minus {name}, k = {k}: {_points(removed.difference(PAPER_CLD, name, k))}.")
    if 1 < (right := int((~removed.wrong).sum())) < len(removed.query_ids):
        some = removed.only(removed.query_ids[~removed.wrong])
        rates = "; ".join(f"{name} {_rate(some.rate(name, k))}" for name in removed.methods)
        told.append(f"Of the {right} queries that were right before, k = {k}: {rates}; nothing {_rate(some.noise)}.")
    verdict = HOLDS if rate.low > 0.5 else FAILS if rate.high < 0.5 else UNDECIDED
    rows = [(name, tuple(removed.rate(name, k))) for name in removed.methods]
    rows.append(("nothing removed", tuple(removed.noise)))
    shown = Shown(f"share of the queries flipped, {k} examples removed", tuple(rows), 0.5)
    return Claim(text, rule, verdict, tuple(told), shown, about_flips=True)


def _beyond_class(results: Sequence[LDS], given_class: Mapping[float, Estimate]) -> Claim:
    text = "Not of the paper, but needed to read the rest: CLD-inf beats the labels alone."
    rule = (
        "By paired differences with the same-class control (1 for the query's class, 0 for others) at each ratio of "
        "random subsets. Holds if CLD-inf is decidedly above it at every ratio; does not hold if at every ratio the "
        f"whole interval of the difference is below {CLOSE}. Not to beat them is not to say nothing else: beside it, "
        "the rank correlation that is left given the control, with intervals over queries."
    )
    more, same, told, rows = [], [], [], []
    for alpha in _alphas(results)[0]:
        ours, control = (_find(results, start, alpha) for start in (PAPER_CLD, "same-class-control"))
        if ours is None or control is None:
            continue
        gap = paired_difference(ours, control)
        more.append(gap.interval[0] > 0)
        same.append(gap.interval[1] < CLOSE)
        told.append(f"{_at(ours)}: CLD-inf minus {gap.other} {_signed(gap.mean, gap.interval)}.")
        rows.append((f"alpha {alpha:g}", (gap.mean, *gap.interval)))
        if alpha in given_class:
            mean, *interval = given_class[alpha]
            told[-1] += f" Given the control: {_signed(mean, (interval[0], interval[1]))}."
    if not told:
        return Claim(text, rule, UNMEASURED, ())
    verdict = HOLDS if all(more) else FAILS if all(same) and not any(more) else UNDECIDED
    shown = Shown("LDS of CLD-inf minus that of the labels alone", tuple(rows))
    return Claim(text, rule, verdict, tuple(told), shown)


def _at(result: LDS) -> str:
    return f"alpha {result.alpha:g}, R = {result.seeds}"


def _points(estimate: tuple[float, float, float]) -> str:
    return "{:+.0f} points [{:+.0f}, {:+.0f}]".format(*(100 * value + 0.0 for value in estimate))


def _rate(estimate: tuple[float, float, float]) -> str:
    value, low, high = estimate
    return f"{value:.0%}" if math.isnan(low) else f"{value:.0%} [{low:.0%}, {high:.0%}]"
