"""An LDS benchmark from end to end: attribution runs, a retraining bank, every method's scores, one table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from comove.attribution import Attributor, Scores
from comove.attribution.leave_one_out import LeaveOneOut
from comove.data import Ids, Splits
from comove.errors import InputError
from comove.evaluation.bank import RetrainingBank
from comove.evaluation.lds import LDS
from comove.evaluation.outputs import check_measurable
from comove.evaluation.subsets import RandomSubsets
from comove.models import Factory
from comove.store import new_folder, write_json
from comove.training import Recipe, Recording, Run, train

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Benchmark", "attribution_runs", "lds_benchmark", "score_methods"]


@dataclass(frozen=True)
class Benchmark:
    """What an LDS benchmark found.

    Attributes:
        results: one LDS a method, in the order the methods were given.
        output: what was measured on the queries.
        bank: the ground truth.
        runs: what the methods were fitted on.
    """

    results: tuple[LDS, ...]
    output: str
    bank: RetrainingBank
    runs: tuple[Run, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON row a method."""
        return [{**result.to_json(), "output": self.output, "runs": len(self.runs)} for result in self.results]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row a method."""
        import pandas as pd

        names = ("method", "mean", "interval", "undefined", "constant_predictions", "reliability", "noise_ceiling")
        return pd.DataFrame([{name: row[name] for name in names} for row in self.rows()])


def attribution_runs(
    splits: Splits,
    model: str | Factory | None,
    recipe: Recipe | str | None,
    *,
    count: int,
    seed: int,
    out: Path,
    recording: Recording | None = None,
    model_options: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> tuple[Run, ...]:
    """Train ``count`` runs with seeds ``seed``, ``seed + 1``, ... into numbered folders of ``out``; resumable."""
    return tuple(
        train(
            splits,
            model,
            recipe,
            seed + number,
            out / f"{number:03d}",
            recording=recording,
            model_options=model_options,
            device=device,
            progress=progress,
        )
        for number in range(count)
    )


def score_methods(
    methods: Sequence[Attributor],
    runs: Sequence[Run],
    queries: Ids,
    out: Path | None = None,
    *,
    fit_bank: RetrainingBank | None = None,
) -> list[Scores]:
    """Fit every method on the runs (or, where it requires one, on the bank), score the queries, and keep the scores."""
    found = []
    for method in methods:
        fitted = method.fit(fit_bank if needs_bank(method) and fit_bank is not None else runs)
        scores = fitted.attribute(queries)
        if out is not None:
            scores.save(out / f"{file_name(method.label)}.safetensors")
        found.append(scores)
    return found


def needs_bank(method: Attributor) -> bool:
    """Whether a method is computed from a retraining bank."""
    return "bank" in method.requires


def file_name(label: str) -> str:
    """A method's label as a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in label).strip("-")


def lds_benchmark(
    splits: Splits,
    methods: Sequence[Attributor],
    *,
    subsets: RandomSubsets,
    seeds: int,
    out: str | os.PathLike[str],
    runs: int = 3,
    model: str | Factory | None = None,
    recipe: Recipe | str | None = None,
    model_options: Mapping[str, Any] | None = None,
    recording: Recording | None = None,
    output: str = "margin",
    fit_subsets: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Benchmark:
    """Hold methods to retraining; an interrupted benchmark goes on from what ``out`` keeps.

    Args:
        splits: the data; the query split holds the queries.
        methods: attribution methods, not yet fitted.
        subsets: of the bank.
        seeds: R, models a subset.
        out: a folder: ``runs/``, ``bank/`` (and ``fit-bank/`` where a method needs it), ``scores/``, ``lds.json``,
            ``lds.csv``.
        runs: how many models the methods are fitted on.
        model: as for :func:`comove.train`, for runs and bank alike.
        recipe: likewise.
        model_options: likewise.
        recording: of the runs.
        output: what is measured on the queries.
        fit_subsets: how many other subsets (one model each) the methods computed from a bank are fitted on; by default
            as many as there are models in the bank that they are measured on.
        seed: of the first run and of the bank.
        device: where to compute.
        progress: show bars.

    Raises:
        InputError: bad arguments.
        FingerprintError: ``out`` holds a benchmark with other settings.
    """
    check_measurable(output)
    if not methods or runs < 1 or subsets.count < 3:
        raise InputError(
            "An LDS benchmark needs at least one method, one run and 3 subsets, "
            f"got {len(methods)}, {runs} and {subsets.count}."
        )
    if any(isinstance(method, LeaveOneOut) for method in methods):
        raise InputError(
            "leave-one-out needs a bank of its own kind: make one with subsets.leave_one_out(), fit it on that, and "
            "measure its scores with bank.lds(scores)."
        )
    folder = new_folder(out)
    new_folder(folder / "scores")
    bank = RetrainingBank.create(  # planned first: what is wrong with it must not wait for the runs
        folder / "bank",
        splits,
        model,
        recipe,
        subsets=subsets,
        seeds=seeds,
        seed=seed,
        model_options=model_options,
    )
    trained = attribution_runs(
        splits,
        model,
        recipe,
        count=runs,
        seed=seed,
        out=folder / "runs",
        recording=recording,
        model_options=model_options,
        device=device,
        progress=progress,
    )
    bank.run(device=device, progress=progress)
    fit_bank = None
    if any(map(needs_bank, methods)):
        fit_bank = RetrainingBank.create(
            folder / "fit-bank",
            splits,
            model,
            recipe,
            subsets=RandomSubsets(subsets.alpha, fit_subsets or subsets.count * seeds, subsets.seed + 1),
            seed=seed + 1,
            model_options=model_options,
        ).run(device=device, progress=progress)
    scores = score_methods(methods, trained, bank.query_ids, folder / "scores", fit_bank=fit_bank)
    benchmark = Benchmark(tuple(bank.lds(item, output) for item in scores), output, bank, trained)
    write_json(folder / "lds.json", {"results": benchmark.rows(), "bank": dict(bank.manifest)})
    benchmark.to_pandas().to_csv(folder / "lds.csv", index=False)
    return benchmark
