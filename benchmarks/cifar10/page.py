"""``docs/study.md`` and its figures, from what was published: nothing in it is written by hand but the words around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import PAPER_CLD, claims_of
from declared import STUDIES, Study
from published import Published
from spent import cost_of
from words import amount, cell, number, share, table

from comove.evaluation import LDS, Curve, CurvePoint
from comove.evaluation.lds.result import alpha_name
from comove.report import brittleness_figure, curve_figure, lds_figure, save_figure
from comove.store import new_folder, write_bytes

__all__ = ["write_page"]

GOAL_SECONDS, GOAL_ACCURACY = 8, 0.92
OUTPUTS = {
    "margin": "the margin, TRAK's choice",
    "correct": "whether the query is classified rightly, the paper's choice",
}
SHOWN = ("paper", "small")
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
    "LDS at alpha 0.5 by the margin. Published for ResNet-9 (Park et al., TRAK, ICML 2023): at so many minutes of an "
    "A100, where a model takes about one."
)

HEAD = """# The CIFAR-10 study

Figures 8a and 8b of the CLD paper (Nagaraj, Ravikumar, Roy, TMLR 2025, appendix F), run for real: attribution methods
held to retraining on CIFAR-10 with ResNet-9. The study is declared in `benchmarks/cifar10/declared.py`. This page is
generated from the models' outputs in `benchmarks/results/cifar10-resnet9/` (`make study-report`): every figure and
every verdict on it is computed. Intervals are 95 %, over queries and subsets; the noise ceiling is about what a perfect
attributor would get.
{jpeg}
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
            "### Beside the published figures\n",
            self._beside_published(),
            "### What it took\n",
            self._costs(),
            "### Prediction brittleness (figure 8b)\n",
            self._removals(),
            "### Coreset curves\n",
            self._curves(),
            "### The trainer\n",
            self._speed(),
            "### Commands\n",
            _commands(self.study),
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
        models = ", ".join(f"{name} {p['models']:,} of {p['of']:,}" for name, p in content["progress"].items())
        smaller = "; ".join(content["declared"]["shrunk"])
        versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
        runs, subsets = (content["declared"][name] for name in ("runs", "subsets"))
        counts = f"{content['data']['train']:,} training examples, {content['queries']} queries"
        lines = [
            f"- {counts}, {runs} runs a method, C = {subsets}.",
            *([f"- Smaller than the paper's protocol: {smaller}."] if smaller else []),
            f"- Retrained models: {models or 'none yet'}.",
            f"- Computed on: {where}. {versions}.",
        ]
        return "\n".join([*lines, ""])

    # --- claims ---

    def _claims(self) -> list[str]:
        content = self.found.content
        judged = {
            output: claims_of(results, self.found.brittleness, content["data"]["train"], alike=self.alike[output])
            for output, results in self.results.items()
        }
        rows = [
            [f"{number}. {claims[0].text}", *(f"**{claim.verdict}**" for claim in claims)]
            for number, claims in enumerate(zip(*judged.values(), strict=True), 1)
        ]
        told = []
        for output, claims in judged.items():
            for place, claim in enumerate(claims, 1):
                by = "" if claim.about_flips else f" by {output}"
                if claim.because and not (claim.about_flips and output != next(iter(judged))):
                    told.append(f"Claim {place}{by}: **{claim.verdict}**. {claim.rule}\n")
                    told.append("\n".join(f"- {sentence}" for sentence in claim.because) + "\n")
        return [table(["claim", *(f"by {output}" for output in judged)], rows), *told]

    # --- the LDS ---

    def _scores(self) -> list[str]:
        if not any(self.results.values()):
            return [self._not_run("scores"), self._not_run("bank")]
        drawn = self._drawn()
        shown = [result for results in self.alike.values() for result in results if result.method in drawn]
        name = self._figure(lds_figure(shown), "lds")
        parts = [f"![LDS of each method against the sampling ratio]({name})\n"]
        for output, results in self.results.items():
            parts += [f"Measured: {OUTPUTS[output]}. A star: no other method is decidedly better (paired intervals).\n"]
            parts += [self._lds_table(results)]
        parts.append(
            f"The figure shows R = {self.fewest} at every ratio (more seeds make the truth less noisy and every LDS "
            "higher: the columns of the tables cannot be compared where their seeds differ), and of the CLD family the "
            "paper's definition and what is best at alpha 0.5.\n"
        )
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
        return table(["method", *(f"alpha {alpha_name(float(alpha or 0))}" for alpha in alphas)], rows)

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
            ["method", "published", "ours", "our minutes, training included"], rows
        )

    # --- costs ---

    def _minutes(self, result: LDS | None) -> str:
        cost = None if result is None else cost_of(self.found, str(result.method))
        return "" if cost is None or cost[0] is None else f"{cost[0] / 60:,.2f}"

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
            "convolutions. Seconds are of wall time, on a machine that may have had other work; those of recorded runs "
            "hold the recording, which only CLD needs.\n"
        )
        model = costs.get("model", {})
        accuracy = [entry["accuracy"] for name, entry in costs.items() if name.startswith("run ")]
        step = f"a training step takes {model.get('step_flops', 0) / 1e6:,.1f} MFLOP an image"
        told = f"A model has {model.get('parameters', 0):,} parameters; {step}."
        if accuracy:
            told += (
                f" The {len(accuracy)} runs classify {min(accuracy):.1%} to {max(accuracy):.1%} of the queries rightly."
            )
        return words + "\n" + table(["method", "seconds", "TFLOP"], rows) + "\n" + told + "\n"

    # --- the rest ---

    def _removals(self) -> str:
        found = self.found.brittleness
        if found is None:
            return self._not_run("brittleness")
        name = self._figure(brittleness_figure(found), "brittleness")
        rows = [[f"`{m}`", *(share(found, m, k) for k in found.ks)] for m in found.methods]
        shown = table(["flipped", *(f"k = {k}" for k in found.ks)], rows)
        notes = "\n".join(f"- {note}" for note in found.notes())
        quiet = f"- With nothing removed, {found.noise.value:.1%} flip [{found.noise.low:.1%}, {found.noise.high:.1%}]."
        return f"![Flipped predictions against examples removed]({name})\n\n{shown}\n{notes}\n{quiet}\n"

    def _curves(self) -> str:
        content = self.found.json("curves.json")
        if not content:
            return self._not_run("curves")
        points = tuple(CurvePoint(**point) for point in content["points"])
        curve = Curve(points, content["n_train"], content["n_query"], {})
        name = self._figure(curve_figure(curve), "curves")
        summary = curve.summary()
        budgets = sorted({row["budget"] for row in summary if row["method"] != "full data"})
        cells = {(row["method"], row["budget"]): f"{row['mean']:.1%} ± {row['std']:.1%}" for row in summary}
        rows = [[method, *(cells.get((method, kept), "") for kept in budgets)] for method in curve.methods]
        shown = table(["method", *(f"{kept:.0%} kept" for kept in budgets)], rows)
        full = f"All {curve.n_train:,} examples: {cells[('full data', 1.0)]}, on {curve.n_query:,} queries."
        return f"![Accuracy against coreset size]({name})\n\n{shown}\n{full} ± is the deviation over seeds.\n"

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
        return f"{table(head, rows)}\nThe first model, with capture or compilation, is left out of the seconds.{goal}\n"

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
