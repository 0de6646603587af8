"""``docs/study.md`` and its figures, from what was published: nothing in it is written by hand but the words around."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from claim_figure import claim_figure
from claims import PAPER_CLD, Claim, claims_of
from compute_cost import cost_of
from declared import STUDIES, Study
from published import Published
from words import amount, cell, drop, folded, number, share, table

from comove.display import counted
from comove.evaluation import LDS, Curve, CurvePoint
from comove.lds.against_bank import alpha_of
from comove.lds.charts import alpha_name, lds_figure
from comove.plots import save_figure
from comove.store import new_folder, write_bytes

__all__ = ["write_page"]

GOAL_SECONDS, GOAL_ACCURACY = 8, 0.92
OUTPUTS = {
    "margin": "the margin, TRAK's choice",
    "correct": "whether the query is classified rightly, the paper's choice",
}
SHOWN = ("paper", "small", "short-batches")
JPEG = (
    "The images are JPEG copies (quality 75) of CIFAR-10, so accuracies come out a little lower than on the original."
)
PUBLISHED = {
    "trak": ".058@1, .12@5, .27@20, .40@100, about .54@1,000",
    "datamodels": ".060@500, .20@2,500, .39@10,000, .54@50,000",
    "fz": ".048@500, .10@2,500, .19@10,000, .28@25,000",
    "tracin": ".056@15, .055@300",
    "arnoldi": ".020@120",
}
PUBLISHED_AT = (
    "LDS at alpha 0.5 by the margin. Published for ResNet-9 (Park et al., TRAK, ICML 2023), as LDS @ minutes of an "
    "A100; there a model takes about one."
)

HEAD = """# The CIFAR-10 study

Figures 8a and 8b of the CLD paper (Nagaraj, Ravikumar, Roy, TMLR 2025, appendix F), run again: attribution methods
compared with retraining on CIFAR-10 with ResNet-9, at the sizes below; a verdict is one about its size. The study is
declared in `benchmarks/cifar10/declared.py`. This page is generated from `benchmarks/results/cifar10-resnet9/`, which
holds the retrained models' outputs and the ranks of the methods' summed scores (`make study-report`): every figure and
every verdict on it is computed, but for what others have published.
{jpeg}

- LDS: the rank correlation over C random subsets between a query's summed scores and the output of models retrained on
  each subset (R of them), averaged over queries. Output: the margin, z_y - log sum of the others' exp, or whether the
  query is classified rightly.
- alpha: the share of the training data in each subset; (N-1)/N leaves one example out. Noise ceiling: the square root
  of the truth's reliability, about what a perfect method would get; unknown with one seed.
- CLD-inf is the paper's CLD: Pearson's correlation of loss differences, a row an epoch (`cld(rows=epochs)`); `cld`
  alone reads rows within epochs too.
- A flip: a model retrained without a query's highest-scored examples predicts another class than most models of all
  data do.
- Intervals are 95 %: of the LDS over queries and subsets, of flips over queries; none holds what other attribution runs
  would give, and none is corrected for how many there are. Decidedly: the whole interval of a paired difference.
"""


def write_page(results: Path, page: Path, sizes: Sequence[str] = SHOWN, bootstrap: int = 1000) -> None:
    """Write the page and, in a folder of its name beside it, its figures.

    Args:
        results: a folder with one of :func:`published.publish` a size.
        page: the file.
        sizes: in the order of the page.
        bootstrap: resamples of the intervals.
    """
    figures = new_folder(page.with_suffix(""))
    parts = [HEAD.format(jpeg=JPEG)]
    for size in sizes:
        found, study = Published(results / size), STUDIES[size]
        parts.append(f"## At the size `{size}`\n\n{study.about}\n")
        if found.there:
            parts += _Section(found, study, figures, bootstrap).parts()
        else:
            parts.append(
                "Not run at this size. In slices of nine minutes, until the exit code is 0; on a machine that is lent "
                f"for minutes, carry `study-{study.size}/state` there and back, a few KB a model:\n\n{_commands(study)}"
            )
            if not study.shrunk:
                rows = [[name, published, "not run"] for name, published in PUBLISHED.items()]
                parts += [f"{PUBLISHED_AT}\n", table(["method", "published", "ours"], rows)]
    write_bytes(page, "\n".join(parts).encode())


def _fitted(declared: Mapping[str, Any]) -> str:
    """What the methods are fitted on."""
    own = ", ".join(declared["bank_methods"])
    return f" a method ({own}: {declared['fit_subsets']} retrained models, by their margin)" if own else " a method"


def _commands(study: Study) -> str:
    command = f"python benchmarks/cifar10/study.py --size {study.size}"
    lines = [
        "export COMOVE_DATA=DIR    # where CIFAR-10 lies",
        f"{command} --minutes 9 --folder study-{study.size}",
        f"{command} --step publish --folder study-{study.size}",
        "make study-report",
    ]
    return "\n".join(["```shell", *lines, "```", ""])


class _Section:
    """What is said of one size."""

    def __init__(self, found: Published, study: Study, figures: Path, bootstrap: int) -> None:
        self.found, self.study, self.figures = found, study, figures
        self.results = {output: found.lds(output, bootstrap) for output in OUTPUTS}
        seeds = {result.seeds for results in self.results.values() for result in results}
        self.fewest = min(seeds, default=0)
        self.alike = {
            output: found.lds(output, bootstrap, self.fewest) if len(seeds) > 1 else results
            for output, results in self.results.items()
        }

    def parts(self) -> list[str]:
        """All of it, as Markdown."""
        return [
            self._setting(),
            "### The paper's claims\n",
            *self._claims(),
            "### Linear datamodeling score (figure 8a)\n",
            *self._scores(),
            "### Prediction brittleness (figure 8b)\n",
            self._removals(),
            "### Coreset curves\n",
            self._curves(),
            *(["### Models of one seed\n", self._same_seed()] if self.study.same_seed else []),
            *folded("Beside the published figures", self._beside_published()),
            *folded("What it took", self._costs()),
            *folded("The trainer", self._speed()),
            *folded("Commands", _commands(self.study)),
        ]

    def _not_run(self, step: str) -> str:
        command = f"python benchmarks/cifar10/study.py --size {self.study.size} --step {step} --folder DIR"
        return f"Not run at this size: `{command}`.\n"

    # --- what was run ---

    def _setting(self) -> str:
        content, machine = self.found.content, self.found.content["machine"]
        where = f"{machine.get('processor', 'unknown processor')}, {machine.get('cores', '?')} cores"
        if machine.get("gpu"):
            where = f"{machine['gpu']}; {where}"
        progress = {name.rpartition("-")[0]: p for name, p in content["progress"].items()}
        models = ", ".join(f"{name} {p['models']:,} of {p['of']:,}" for name, p in progress.items())
        smaller = "; ".join(content["declared"]["shrunk"])
        versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
        runs, subsets = (content["declared"][name] for name in ("runs", "subsets"))
        counts = f"{content['data']['train']:,} training examples, {content['queries']} queries"
        lines = [
            f"- {counts}, C = {subsets}; {runs} recorded runs{_fitted(content['declared'])}.{self._network()}",
            *([f"- Smaller than the paper's protocol: {smaller}."] if smaller else []),
            f"- Retrained models: {models or 'none yet'}.",
            f"- Computed on: {where}. {versions}.",
        ]
        return "\n".join([*lines, ""])

    def _network(self) -> str:
        """The models' size and accuracy."""
        costs = self.found.costs
        told = f" A model has {costs['model']['parameters']:,} parameters" if "model" in costs else ""
        accuracy = [entry["accuracy"] for name, entry in costs.items() if name.startswith("run ")]
        if told and accuracy:
            told += f"; trained on all data, {min(accuracy):.1%} to {max(accuracy):.1%} of the queries are right"
        return f"{told}." if told else ""

    # --- claims ---

    def _claims(self) -> list[str]:
        content = self.found.content
        judged = [
            claims_of(
                results,
                self.found.brittleness,
                content["data"]["train"],
                alike=self.alike[output],
                given_class=self.found.given(PAPER_CLD, "same-class-control", output),
            )
            for output, results in self.results.items()
        ]
        parts: list[str] = []
        for place, claims in enumerate(zip(*judged, strict=True), 1):
            parts += self._claim(place, claims)
        return parts

    def _claim(self, place: int, claims: Sequence[Claim]) -> list[str]:
        """The verdict of a claim on a line, its figure, and folded the rule and what it was judged by."""
        first = claims[0]
        said = dict(zip(("flips",) if first.about_flips else OUTPUTS, claims, strict=False))
        verdicts = ", ".join(f"**{claim.verdict}** (by {output})" for output, claim in said.items())
        parts = [f"**{place}.** {first.text} {verdicts}.\n"]
        if first.shown.rows:
            name = self._figure(claim_figure(first.shown), f"claim-{place}")
            parts.append(f"![{first.shown.axis}: estimates and intervals]({name})\n")
        details = [f"{first.rule}\n"]
        for output, claim in said.items():
            if claim.because:
                sentences = "\n".join(f"- {sentence}" for sentence in claim.because)
                details.append(f"By {output}:\n\n{sentences}\n")
        return [*parts, *(folded("How it was judged", "\n".join(details)) if details[1:] else [])]

    # --- the LDS ---

    def _scores(self) -> list[str]:
        if not any(self.results.values()):
            return [self._not_run("scores"), self._not_run("bank")]
        drawn = self._drawn()
        shown = [result for results in self.alike.values() for result in results if result.method in drawn]
        name = self._figure(lds_figure(shown), "lds")
        about = (
            f"The figure shows R = {self.fewest} at every ratio, and of the CLD family the paper's definition and what "
            "is best at alpha 0.5. More seeds make the truth less noisy and every LDS higher: the columns of the "
            "tables cannot be compared where their seeds differ.\n"
        )
        parts = [f"![LDS of each method against the sampling ratio]({name})\n", about]
        for output, results in self.results.items():
            parts += [f"Measured: {OUTPUTS[output]}. A star: not decidedly below the best (paired intervals).\n"]
            parts += [self._lds_table(results)]
        missing = len(self.study.truths) - len(self.found.banks)
        return [*parts, *([self._not_run("alphas")] if missing else [])]

    def _drawn(self) -> set[str]:
        """The methods of the figure: all, but of the CLD family the paper's and the best by the margin."""
        measured = self.results["margin"]
        family = [result for result in measured if str(result.method).startswith("cld")]
        first = [result for result in family if result.alpha == 0.5] or family
        best = {str(max(first, key=lambda result: result.mean).method)} if first else set()
        return {str(r.method) for r in measured if not str(r.method).startswith("cld")} | best | {PAPER_CLD}

    def _lds_table(self, results: Sequence[LDS]) -> str:
        alphas = list(dict.fromkeys(result.alpha for result in results))
        columns = [[result for result in results if result.alpha == alpha] for alpha in alphas]
        methods = dict.fromkeys(str(result.method) for result in results)
        rows = []
        for method in methods:
            cells = [next((cell(r, column) for r in column if r.method == method), "") for column in columns]
            rows.append([f"`{method}`", *cells])
        rows.append(["noise ceiling", *(number(column[0].noise_ceiling) for column in columns)])
        rows.append(["subsets x seeds", *(f"{column[0].subsets} x {column[0].seeds}" for column in columns)])
        rows.append(["undefined queries", *(str(column[0].undefined) for column in columns)])
        rows.append(["accuracy of the models", *(f"{self._models[alpha]:.1%}" for alpha in alphas)])
        shown = table(["method", *(f"alpha {alpha_name(float(alpha or 0))}" for alpha in alphas)], rows)
        empty: dict[str, list[int]] = {}
        for result in results:
            if result.constant_predictions:
                empty.setdefault(str(result.method), []).append(result.constant_predictions)
        told = ", ".join(
            f"`{method}` for {'' if min(n) == max(n) else f'{min(n)} to '}{counted(max(n), 'query')}"
            for method, n in empty.items()
        )
        return f"{shown}\nTells no subset from another, which counts as 0: {told}.\n" if told else shown

    @cached_property
    def _models(self) -> dict[float | None, float]:
        """By ratio, the share of the queries that the retrained models classify rightly."""
        return {alpha_of(bank): float(np.nanmean(bank.outputs("correct"))) for bank in self.found.banks}

    def _beside_published(self) -> str:
        ours = {str(r.method): r for r in self.results["margin"] if r.alpha == 0.5}
        rows = []
        for name, published in PUBLISHED.items():
            own = next((r for label, r in ours.items() if label.split("(")[0] == name), None)
            rows.append([name, published, "not run" if own is None else cell(own, []), self._minutes(own)])
        rows += [
            [f"`{label}`", "none", cell(r, []), self._minutes(r)]
            for label, r in ours.items()
            if label.startswith("cld")
        ]
        comparable = (
            "Same data, network and recipe; other subsets and queries."
            if not self.study.shrunk
            else "Not comparable: these are other sizes (see above); only the order of the methods can be looked at."
        )
        return f"{PUBLISHED_AT} {comparable}\n\n" + table(
            ["method", "published", "ours", "our minutes (see below), training included"], rows
        )

    # --- costs ---

    def _minutes(self, result: LDS | None) -> str:
        cost = None if result is None else cost_of(self.found, str(result.method))
        return "" if cost is None or cost[0] is None else f"{float(f'{cost[0] / 60:.2g}'):,g}"

    def _costs(self) -> str:
        costs = self.found.costs
        rows = []
        for label in self.found.content["declared"]["methods"]:
            if (cost := cost_of(self.found, label)) is not None:
                rows.append([f"`{label}`", amount(cost[0], 1, "{:,.0f}"), amount(cost[1], 1e12, "{:,.2f}")])
        if not rows:
            return self._not_run("scores")
        words = (
            "Everything a method needs for these queries: the models it is fitted on (recorded runs with all their "
            "losses in all rows, or retrained subsets) and its scoring. FLOPs are counted: matrix products and "
            "convolutions. Seconds are of wall time on a machine that may have had other work; those of recorded runs "
            "hold the recording, which only CLD needs.\n"
        )
        told = f"A training step takes {costs.get('model', {}).get('step_flops', 0) / 1e6:,.1f} MFLOP an image."
        return words + "\n" + table(["method", "seconds", "TFLOP"], rows) + "\n" + told + "\n"

    # --- the rest ---

    def _removals(self) -> str:
        found = self.found.brittleness
        if found is None:
            return self._not_run("brittleness")
        name = self._figure(found.plot(), "brittleness")
        rows = [[f"`{m}`", *(share(found, m, k) for k in found.ks)] for m in found.methods]
        shown = table(["flipped", *(f"k = {k}" for k in found.ks)], rows)
        drops = [[f"`{m}`", *(drop(found.margin_drop(m, k)) for k in found.ks)] for m in found.methods]
        shown += "\nHow far the margin of the query's label falls, which is less noisy; with nothing removed by "
        shown += f"{drop(found.noise_margin_drop)}:\n\n"
        shown += table(["margin lost", *(f"k = {k}" for k in found.ks)], drops)
        notes = "\n".join(f"- {note}" for note in found.notes())
        quiet = f"- With nothing removed, {found.noise.value:.1%} flip [{found.noise.low:.1%}, {found.noise.high:.1%}]."
        return f"![Flipped predictions against examples removed]({name})\n\n{shown}\n{notes}\n{quiet}\n"

    def _curves(self) -> str:
        content = self.found.json("curves.json")
        if not content:
            return self._not_run("curves")
        points = tuple(CurvePoint(**point) for point in content["points"])
        curve = Curve(points, content["n_train"], content["n_query"], {})
        name = self._figure(curve.plot(), "curves")
        summary = curve.summary()
        budgets = sorted({row["budget"] for row in summary if row["method"] != "full data"})
        cells = {(row["method"], row["budget"]): f"{row['mean']:.1%} ± {row['std']:.1%}" for row in summary}
        rows = [[method, *(cells.get((method, kept), "") for kept in budgets)] for method in curve.methods]
        shown = table(["method", *(f"{kept:.0%} kept" for kept in budgets)], rows)
        seeds = max(row["seeds"] for row in summary)
        full = f"All {curve.n_train:,} examples: {cells[('full data', 1.0)]}, on {curve.n_query:,} queries."
        deviation = f"± is the deviation over {seeds} seeds, all from one recorded run."
        return f"![Accuracy against coreset size]({name})\n\n{shown}\n{full} {deviation}\n"

    def _same_seed(self) -> str:
        found = self.found.json("same-seed.json")
        if not found:
            return self._not_run("same-seed")
        rows = []
        for label, entry in found["methods"].items():
            low, high = entry["interval"] or (math.nan, math.nan)
            rows.append([f"`{label}`", f"{entry['lds']:.3f} [{low:.2f}, {high:.2f}]", f"{entry['seconds']:,.0f}"])
        smooth = "{value:.2f}, correlation {correlation:.2f}".format(**found["metasmoothness"])
        verdict = "" if found["metasmoothness"]["value"] >= 0.5 else ", here it cannot"
        about = (
            f"{found['subsets']} models without {1 - found['alpha']:.0%} of the data each, of one seed: the same "
            f"weights at the start and the same batches, so the noise ceiling is 1. {found['queries']} queries, scores "
            f"of the first run. Metasmoothness of the recipe: {smooth}; at 1 the derivative can be trusted{verdict}.\n"
        )
        return about + "\n" + table(["method", "LDS by the margin", "seconds"], rows)

    def _speed(self) -> str:
        measured = self.found.json("speed.json")
        if not measured:
            return self._not_run("speed")
        rows = []
        for kind, entry in measured.items():
            if "refused" in entry:
                rows.append([kind, f"refused: {entry['refused']}", "", "", "", ""])
                continue
            share = "" if entry["share of the limit"] is None else f"{entry['share of the limit']:.1%}"
            cells = [f"{entry[key]:,.2f}" for key in ("seconds", "seconds at alpha 0.5")]
            rows.append([kind, *cells, f"{entry['images a second']:,.0f}", share, f"{entry['accuracy']:.2%}"])
        head = [
            "one model at a time",
            "seconds",
            "seconds at alpha 0.5",
            "images a second",
            "of 800 TFLOP/s",
            "accuracy",
        ]
        goal = _goal(measured) if not self.study.shrunk else ""
        left_out = "The first model, with capture or compilation, is left out of the seconds."
        if not self.found.content["machine"].get("gpu"):
            left_out = "On a CPU nothing is compiled: both rows are the same loop."
        return f"{table(head, rows)}\n{left_out}{goal}\n"

    def _figure(self, figure: Any, name: str) -> str:
        path = save_figure(figure, self.figures / f"{self.study.size}-{name}.png")
        return f"{self.figures.name}/{path.name}"


def _goal(measured: Mapping[str, Any]) -> str:
    """Whether the fastest trainer does what it is meant to do on one H100."""
    fastest = min((e for e in measured.values() if "seconds" in e), key=lambda e: e["seconds"])
    fast, right = fastest["seconds"] <= GOAL_SECONDS, fastest["accuracy"] >= GOAL_ACCURACY
    verdict = "met" if fast and right else "not met"
    return (
        f" The goal on one H100, at most {GOAL_SECONDS} s a model of all data and at least {GOAL_ACCURACY:.0%}, is "
        f"{verdict}: {fastest['seconds']:.1f} s, {fastest['accuracy']:.2%}."
    )
