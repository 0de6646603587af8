"""How well attribution methods predict retraining, and what they cost: a table and a picture per data set.

    python benchmarks/quality.py --data digits --folder STATE [--data-dir DIR] [--only METHOD ...] [--most RUNS]
    python benchmarks/quality.py --page

Every method, ours and other libraries', is fitted on the same recorded runs and held to the same retrained models: LDS
with its 95 % interval, share of the noise ceiling, paired difference from TRAK on as many runs; forward-backward epochs
(``benchmarks/quality_methods.py`` has the formula of each), CPU seconds of one thread, of the median run, and the
process's peak memory in the first. Runs, banks, and the scores of each method and run are kept in ``--folder``; what is
finished is not computed again. Results go to ``benchmarks/results/quality.json``; ``--page`` draws the pictures and
writes ``docs/quality.md`` from it and computes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import quality_cases
import quality_texts
import torch
from measuring import RESULTS, machine, peak_memory, plain, timed, write_result
from quality_cases import STUDY, Case
from quality_methods import LEFT_OUT, Method, Sizes, methods_of
from quality_page import write_page

from comove.attribution import Scores
from comove.errors import first_line
from comove.evaluation import LDS, GroundTruth, paired_difference
from comove.lds.against_bank import alpha_of
from comove.models.measured_outputs import default_of, sign_of
from comove.store import digest, new_folder, read_checked, read_json, write_json
from comove.store.files import slug

CASES = {**quality_cases.CASES, **quality_texts.CASES}
PEERS = ("traker", "dattri", "captum", "kronfluence", "matplotlib")
STUDIED = {"trak": "trak", "tracin": "tracin", "arnoldi": "arnoldi"}
"""Methods whose ranks from ten runs the study has published."""
REFERENCE = "trak"


@dataclass(frozen=True)
class Measured:
    """The scores of a data set's methods, kept in a folder.

    Attributes:
        case: the data set.
        complete: train what the bank lacks; otherwise hold methods to the subsets of which all models are there.
    """

    case: Case
    complete: bool = True

    def scores(self, method: Method, first: int, count: int) -> Scores:
        """The scores of ``count`` runs from ``first`` on, computed where they are not there."""
        path = self.path(method) / f"{first}-{count}"
        if not (path / "cost.json").exists():
            runs = [self.case.run(number) for number in range(first, first + count)]
            found: list[Scores] = []
            seconds: list[float] = []

            def work() -> None:
                spent, scores = timed(lambda: method.scores(self.case, runs))
                found.append(scores)
                seconds.append(spent)

            peak = peak_memory(work)
            found[0].save(new_folder(path) / "scores")
            write_json(path / "cost.json", {"seconds": seconds[0], "peak_memory": peak})
            print(
                f"{self.case.name}: {method.name}, runs {first} to {first + count - 1}: {seconds[0]:.1f} s", flush=True
            )
        return Scores.load(path / "scores")

    def path(self, method: Method) -> Path:
        """Where a method's scores are kept."""
        return new_folder(self.case.folder / "scores" / digest(method.name)[:12])

    def summed(self, method: Method, count: int) -> tuple[Scores, npt.NDArray[np.float32]]:
        """The mean of the scores of the first ``count`` runs, and a result that says whose they are."""
        if method.parts:
            pairs = [self.summed(part, count if part.trains else 1) for part in method.parts]
            found = Scores.mean([replace(scores, values=values) for scores, values in pairs], standardize=True)
            return found, found.values
        if method.joint:
            found = self.scores(method, 0, count)
            return found, found.values
        parts = [self.scores(method, number, 1) for number in range(count)]
        return parts[0], np.mean([part.values for part in parts], axis=0)

    def cost(self, method: Method) -> dict[str, Any]:
        """What a run took: the first one's memory, the median of the seconds (the first call of a process is slow)."""
        if method.parts:
            costs = [self.cost(part) for part in method.parts]
            seconds, peaks = ([cost[name] for cost in costs] for name in ("seconds", "peak_memory"))
            return {"seconds": None if None in seconds else sum(seconds), "peak_memory": max(filter(None, peaks))}
        folder, counts = self.path(method), (*self.case.counts, *method.further)
        names = (
            [(f"0-{count}", count) for count in counts] if method.joint else [(f"{first}-1", 1) for first in range(10)]
        )
        there = [(folder / name / "cost.json", count) for name, count in names]
        costs = [(read_json(file), count) for file, count in there if file.exists()]
        known = [cost["seconds"] / count for cost, count in costs if cost["seconds"] is not None]
        return costs[0][0] | {"seconds": statistics.median(known) if known else None}

    def training(self) -> float:
        """Seconds of one run: as the study measured them, or the median of three trained for this."""
        if self.case.name == "cifar10":
            runs = read_json(STUDY / "study.json")["costs"]["runs"]
            return float(runs["seconds"] / runs["count"])
        kept = self.case.folder / "training.json"
        if not kept.exists():
            seconds = [timed(lambda number=number: self.case.run(number))[0] for number in range(3)]
            write_json(kept, {"seconds": statistics.median(seconds)})
        return float(read_json(kept)["seconds"])

    def sizes(self) -> Sizes:
        """Of the data and the runs."""
        run, splits = self.case.run(0), self.case.splits
        augmented = run.adopted is None and run.recipe.augment != "none"
        rows, last = len(run.trace.rows), run.trace.rows[-1]
        curvature = len(splits.classes) - 1 if splits.classes else 4
        return Sizes(len(splits.train), len(splits.query), curvature, int(last.epoch), rows, augmented)

    @cached_property
    def truth(self) -> tuple[GroundTruth, Any]:
        """The retrained models, and their bank."""
        bank = self.case.bank(self.complete)
        output = default_of(bank)
        outputs = sign_of(bank, output) * bank.outputs(output)
        there = np.isfinite(outputs).all((1, 2))
        truth = GroundTruth(bank.masks[there], outputs[there], bank.query_ids, output=output, alpha=alpha_of(bank))
        return truth, bank

    def predicted(self, scores: Scores, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Summed scores of every subset."""
        truth, bank = self.truth
        rows = np.argsort(scores.train_ids)[np.searchsorted(np.sort(scores.train_ids), bank.train_ids)]
        columns = np.argsort(scores.query_ids)[np.searchsorted(np.sort(scores.query_ids), bank.query_ids)]
        return truth.predictions(values[rows][:, columns])


# --- a data set -----------------------------------------------------------------------------------------------------


def counts_of(case: Case, method: Method, most: int | None) -> list[int]:
    """Numbers of runs a method is measured with."""
    if not method.trains:
        return [1]
    counts = [*(count for count in case.counts if count <= method.most), *method.further]
    return [count for count in counts if most is None or count <= most]


def compute(measured: Measured, methods: Sequence[Method], most: int | None) -> None:
    """Make the scores that are missing; a method that fails is told of, and the others go on."""
    for method in methods:
        try:
            for count in counts_of(measured.case, method, most):
                measured.summed(method, count)
        except Exception as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            print(f"{measured.case.name}: {method.name} failed: {said}", flush=True)
            write_json(measured.path(method) / "failed.json", {"error": said})


def finished(measured: Measured, method: Method) -> list[int]:
    """Numbers of runs whose scores are there."""
    if method.parts:
        counts = [finished(measured, part) for part in method.parts if part.trains]
        there = all(finished(measured, part) for part in method.parts)
        return sorted(set.intersection(*map(set, counts))) if there else []
    folder = measured.path(method)
    if method.joint:
        return [
            count
            for count in (*measured.case.counts, *method.further)
            if (folder / f"0-{count}" / "cost.json").exists()
        ]
    first = 0
    while (folder / f"{first}-1" / "cost.json").exists():
        first += 1
    return [count for count in measured.case.counts if count <= min(first, method.most)]


def result_of(measured: Measured) -> dict[str, Any]:
    """The rows of a data set's table, of all that is finished."""
    case, sizes, training = measured.case, measured.sizes(), measured.training()
    truth, bank = measured.truth
    keys: list[tuple[Method, int, bool]] = []
    predictions: list[npt.NDArray[np.float64]] = []
    known = methods_of(case)
    for method in known:
        for count in finished(measured, method):
            keys.append((method, count, False))
            predictions.append(measured.predicted(*measured.summed(method, count)))
    if case.name == "cifar10":
        ranks, header = read_checked(STUDY / "ranks.safetensors")
        (plan,) = bank.plans
        labels = [entry["method"] for entry in header["methods"]]
        for method in known:
            if method.name in STUDIED and (method.name, 10) not in [(m.name, count) for m, count, _ in keys]:
                keys.append((method, 10, True))
                predictions.append(ranks[f"{labels.index(STUDIED[method.name])}.{plan}"].astype(np.float64))
    found = truth.lds(predictions, [method.name for method, _, _ in keys])
    reference = {key[1]: lds for key, lds in zip(keys, found, strict=True) if key[0].name == REFERENCE}
    rows = [
        row(measured, key, lds, reference.get(key[1] if key[0].trains else 1), (sizes, training))
        for key, lds in zip(keys, found, strict=True)
    ]
    by_method = {(key[0].name, key[1]): lds for key, lds in zip(keys, found, strict=True)}
    for (method, count, _), one, lds in zip(keys, rows, found, strict=True):
        if method.parts:
            alone = [by_method[part.name, count if part.trains else 1] for part in method.parts]
            one["minus the better part"] = as_row(lds, max(alone, key=lambda part: part.mean))
    return {
        "title": case.title,
        "about": case.about,
        "ceiling": found[0].noise_ceiling,
        "subsets": found[0].subsets,
        "planned": len(bank.masks),
        "seeds": found[0].seeds,
        "n": sizes.n,
        "q": sizes.q,
        "training epochs": sizes.epochs,
        "training seconds": training,
        "learnt": case.learnt(),
        "left out": LEFT_OUT.get(case.name, {}) | failures(measured, known),
        "load": os.getloadavg()[0],
        "machine": machine_with_peers(),
        "rows": rows,
    }


def failures(measured: Measured, methods: Sequence[Method]) -> dict[str, str]:
    """Methods that have no score, and what they said."""
    files = {method.name: measured.path(method) / "failed.json" for method in methods if not finished(measured, method)}
    return {name: read_json(file)["error"] for name, file in files.items() if file.exists()}


def row(
    measured: Measured,
    key: tuple[Method, int, bool],
    lds: LDS,
    reference: LDS | None,
    spent: tuple[Sizes, float],
) -> dict[str, Any]:
    """One row of the table."""
    method, count, published = key
    known = not published or (measured.path(method) / "0-1" / "cost.json").exists()
    cost = measured.cost(method) if known else published_cost(method)
    noted = [f"{count} runs: the ranks that the study has published"] if published else []
    found: dict[str, Any] = {
        "method": method.name,
        "kind": method.kind,
        "lds": lds.mean,
        "interval": list(lds.interval or ()),
        "share": lds.share_of_ceiling,
        **taken(method, count, cost["seconds"], spent),
        "formula": method.formula,
        "peak memory": cost["peak_memory"],
        "note": "; ".join(filter(None, (method.note, cost.get("note"), *noted))),
    }
    if reference is not None and method.name != REFERENCE:
        found["minus trak"] = as_row(lds, reference)
    return found


def as_row(lds: LDS, other: LDS) -> dict[str, Any]:
    """The paired difference of two methods."""
    difference = paired_difference(lds, other)
    return {"mean": difference.mean, "interval": list(difference.interval)}


def taken(method: Method, count: int, seconds: float | None, spent: tuple[Sizes, float]) -> dict[str, Any]:
    """Runs, epochs and seconds, the training of the runs included; ``seconds`` are those of a run beside it."""
    sizes, training = spent
    runs = count if method.trains else 0
    return {
        "runs": runs,
        "epochs": runs * (sizes.epochs + method.epochs(sizes)),
        "seconds": runs * (training + seconds) if method.trains and seconds is not None else seconds,
    }


def export(measured: Measured, folder: Path) -> None:
    """Write the scores of each method and number of runs, ``NAME-RUNS.safetensors``, and ``methods.json`` about them.

    The latter is what ``benchmarks/leaderboard.py publish`` reads as a card's ``methods``.
    """
    spent, told = (measured.sizes(), measured.training()), {}
    for method in methods_of(measured.case):
        for count in finished(measured, method):
            scores, values = measured.summed(method, count)
            cost = measured.cost(method)
            own = taken(method, count, cost["seconds"], spent)
            stem = f"{'-'.join(filter(None, slug(method.name).split('-')))}-{own['runs']}"
            ids = {"train_ids": scores.train_ids, "query_ids": scores.query_ids}
            Scores.from_arrays(values, method=method.name, **ids).save(new_folder(folder) / f"{stem}.safetensors")
            told[stem] = {"name": method.name, **own, "memory": cost["peak_memory"], "note": method.note}
    write_json(folder / "methods.json", plain(told))
    print(f"written to {folder}: {len(told)} files of scores")


def published_cost(method: Method) -> dict[str, Any]:
    """What the study measured, a run; it noted no memory."""
    costs = read_json(STUDY / "study.json")["costs"][STUDIED[method.name]]
    return {"seconds": costs["seconds"] / costs["timed"], "peak_memory": None}


def machine_with_peers() -> dict[str, Any]:
    """The machine, and the versions of the other libraries too."""
    here = machine()
    return {**here, "versions": {**here["versions"], **{name: metadata.version(name) for name in PEERS}}}


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=CASES)
    parser.add_argument("--folder", type=Path, help="state: runs, banks and scores")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("COMOVE_DATA", "../shared/data")))
    parser.add_argument("--only", nargs="*", default=[], help="methods to compute, by the beginning of their name")
    parser.add_argument("--most", type=int, help="runs at most")
    parser.add_argument("--scores-only", action="store_true", help="leave the results as they are")
    parser.add_argument("--as-it-is", action="store_true", help="train no more models of the bank")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="compute nothing, and write the scores there")
    parser.add_argument("--page", action="store_true", help="write the page from the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "quality.json"
    if given.page:
        write_page(read_json(file))
        return
    if given.data is None or given.folder is None:
        parser.error("give --data and --folder, or --page")
    warnings.simplefilter("ignore")
    case = CASES[given.data](given.folder / given.data, given.data_dir)
    measured, started = Measured(case, not given.as_it_is), time.monotonic()
    measured.training()
    if given.export is not None:
        export(measured, given.export)
        return
    methods = [m for m in methods_of(case) if not given.only or m.name.startswith(tuple(given.only))]
    compute(measured, methods, given.most)
    if given.scores_only:
        return
    result = read_json(file) if file.exists() else {"seeds": {"data": 0, "runs": "0 to 9", "bank": 0}, "data": {}}
    result["command"] = "python benchmarks/quality.py --data DATA --folder STATE --data-dir DIR"
    result["data"][case.name] = plain(result_of(measured))
    write_result("quality", result)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
