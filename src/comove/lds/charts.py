"""Charts of the linear datamodeling score: bars at one sampling ratio, lines over several (the paper's figure 8a)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from comove.display import MINUS, NOTHING, counted, fixed, percent, span, whole_percent
from comove.errors import InputError
from comove.lds.score import LDS
from comove.plots import Chart, Level, Series, Table, draw, styled
from comove.plots.chart import LEVEL, is_control

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["alpha_name", "lds_charts", "lds_figure"]


def lds_figure(results: Sequence[LDS]) -> Figure:
    """Draw the LDS of several methods: bars if there is one sampling ratio, else lines over it; a panel per output.

    Raises:
        InputError: no result.
    """
    single = len({result.alpha for result in results}) <= 1
    return draw(*(_chart(output, own, single) for output, own in _by_output(results).items()))


def lds_charts(results: Sequence[LDS]) -> list[Chart]:
    """One chart per output: bars if it was measured at one sampling ratio, else lines over the ratios.

    Raises:
        InputError: no result.
    """
    return [_chart(output, own, len({one.alpha for one in own}) == 1) for output, own in _by_output(results).items()]


def _by_output(results: Sequence[LDS]) -> dict[str, list[LDS]]:
    if not results:
        raise InputError("There is no LDS to draw.")
    outputs: dict[str, list[LDS]] = {}
    for result in results:
        outputs.setdefault(result.output or "output", []).append(result)
    return outputs


def alpha_name(alpha: float) -> str:
    """A sampling ratio as text; one that leaves out a hundredth or less, such as (N-1)/N, as ``1-1/1,400``."""
    left_out = 1 / (1 - alpha) if alpha < 1 else 0
    is_corner = left_out >= 100 and abs(left_out - round(left_out)) < 1e-6 * left_out
    return f"1-1/{round(left_out):,}" if is_corner else f"{alpha:.6g}"


def _chart(output: str, results: Sequence[LDS], single: bool) -> Chart:
    first = results[0]
    series = _bars(results) if single else _lines(results)
    ceiling = {one.alpha or 0: one.noise_ceiling for one in results if one.noise_ceiling is not None}
    known = [value for _, value in sorted(ceiling.items()) if math.isfinite(value)]
    if not single and known:
        points = [(alpha, value, math.nan, math.nan) for alpha, value in sorted(ceiling.items())]
        series.append(Series("noise ceiling", points, style=LEVEL))
    intervals = f"; bars: {first.confidence:.0%} intervals" if first.interval else ""
    return Chart(
        "bars" if single else "lines",
        f"Linear datamodeling score, {output}",
        f"linear datamodeling score, mean over {counted(first.per_query.size, 'query')}{intervals}"
        if single
        else "share of the training data in each subset, \u03b1",
        "" if single else "linear datamodeling score",
        series,
        _table(results, single),
        levels=[Level("noise ceiling", known[0])] if single and known else [],
        panel=output,
        caption=_caption(results),
        zero=True,
        named=[] if single else [(one, _ratio(one)) for one in sorted({one.alpha or 0 for one in results})],
        notes=[_note(first, known[0] if single and known else None, single), *_control(results)],
    )


def _bars(results: Sequence[LDS]) -> list[Series]:
    unknown = (math.nan, math.nan)
    points = [(one.alpha or 0, one.mean, *(one.interval or unknown)) for one in results]
    return [
        Series(str(one.method), [point], is_control(one.method)) for one, point in zip(results, points, strict=True)
    ]


def _lines(results: Sequence[LDS]) -> list[Series]:
    lines: dict[str, list[tuple[float, ...]]] = {}
    for one in sorted(results, key=lambda one: one.alpha or 0):
        lines.setdefault(str(one.method), []).append((one.alpha or 0, one.mean, *(one.interval or ())))
    return styled(lines)


def _ratio(alpha: float) -> str:
    return alpha_name(alpha).replace("-", MINUS)


def _caption(results: Sequence[LDS]) -> str:
    """What was measured, in a line."""
    first = results[0]
    subsets, seeds = (_range([getattr(result, name) for result in results]) for name in ("subsets", "seeds"))
    bands = f", {first.confidence:.0%} intervals" if first.interval is not None else ""
    models = f"{subsets} subsets \u00d7 {seeds} {'seed' if seeds == '1' else 'seeds'}"
    return f"{counted(first.per_query.size, 'query')}, {models} at each ratio{bands}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _note(first: LDS, ceiling: float | None, single: bool) -> str:
    """What was measured; at one sampling ratio also what the table has no columns for."""
    share = f" of {percent(first.alpha)} of the training data" if single and first.alpha is not None else ""
    queries = counted(first.per_query.size, "query")
    size = f"{queries}, {first.subsets:,} subsets{share} \u00d7 {counted(first.seeds, 'seed')}"
    measured = [
        size if single else f"{size} per sampling ratio",
        *([f"{first.confidence:.0%} intervals"] if first.interval else []),
        *([f"noise ceiling {fixed(ceiling)}"] if ceiling is not None else []),
        *([f"{first.undefined:,} undefined: retraining never changed them"] if single and first.undefined else []),
    ]
    means = "What a method's scores predict for retrained models, ranked as retraining ranked them"
    return f"{'; '.join(measured)}. {means}: 1 is perfect, 0 is no better than chance."


def _control(results: Sequence[LDS]) -> list[str]:
    if all(one.method != "same-class-control" for one in results):
        return []
    return ["A method that stays below the same-class control says less of a prediction than the labels do."]


def _table(results: Sequence[LDS], single: bool) -> Table:
    """A row per method and ratio; what is the same in every row is left to the note."""
    unknown = not single and any(one.undefined for one in results)
    rows = []
    for one in results:
        alpha = NOTHING if one.alpha is None else _ratio(one.alpha)
        ceiling = NOTHING if one.noise_ceiling is None else fixed(one.noise_ceiling)
        share = NOTHING if one.share_of_ceiling is None else whole_percent(one.share_of_ceiling)
        own = [fixed(one.mean), span(*(one.interval or (math.nan, math.nan))), share]
        rows.append([str(one.method), *([] if single else [alpha]), *own, *([] if single else [ceiling])])
        rows[-1] += [f"{one.undefined:,}"] if unknown else []
    ratio, ceiling_of = ([], []) if single else (["share in a subset"], ["noise ceiling"])
    more = ["undefined queries"] if unknown else []
    return Table(["method", *ratio, "LDS", "interval", "of the ceiling", *ceiling_of, *more], rows)
