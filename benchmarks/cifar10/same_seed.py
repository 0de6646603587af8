"""The bank of one seed: the first recorded run trained again without 1 % of the data, the same batches all through.

What is left between two of its models is the absent examples' doing alone, so its noise ceiling is 1 and a method that
follows training exactly, ``Unrolled``, could reach it where training is smooth. ``metasmoothness`` says beforehand
whether it is. The result goes to ``same-seed.json``, method by method.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scoring import first_run
from slices import SliceEndedError
from steps import Session, note_machine, timed

from comove.attribution import EKFAC, TRAK, Attributor, GradDot, Unrolled, metasmoothness
from comove.data import Splits
from comove.evaluation import RetrainingBank, subsets
from comove.store import read_json, write_json

__all__ = ["measure_same_seed"]

METHODS: tuple[Attributor, ...] = (EKFAC(), GradDot(), TRAK(), Unrolled(), Unrolled(curvature="gauss-newton"))


def measure_same_seed(at: Session) -> None:
    """Train the bank, score some queries by the first run, and write each method's LDS.

    Raises:
        SliceEndedError: there are models to go.
    """
    file, wanted = at.folder / "same-seed.json", at.study.same_seed
    found: dict[str, Any] = read_json(file) if file.exists() else {"methods": {}}
    missing = [method for method in METHODS if method.label not in found["methods"]]
    if wanted is None or not missing:
        return
    plan = subsets.random(wanted.alpha, wanted.subsets)
    splits = _with_queries(at.splits, wanted.queries)
    bank = RetrainingBank.create(at.folder / "same-seed-bank", splits, at.training, subsets=plan, same_seed=True)
    if bank.pending:
        at.train(bank)
        if bank.pending:
            raise SliceEndedError
    run = first_run(at)
    if "metasmoothness" not in found:
        with at.unit("metasmoothness"):
            smooth = metasmoothness(run)
        found["metasmoothness"] = {"value": smooth.value, "correlation": smooth.correlation}
    found |= {"alpha": wanted.alpha, "subsets": wanted.subsets, "queries": wanted.queries}
    for method in missing:
        with at.unit(f"{method.label} of some queries"):
            seconds, scores = timed(lambda m=method: m.fit(run).attribute(splits.query.ids))  # type: ignore[misc]
        lds = bank.lds(scores)
        found["methods"][method.label] = {"lds": lds.mean, "interval": lds.interval, "seconds": seconds}
        write_json(file, found)
        print(f"{method.label}: {lds}", flush=True)
    note_machine(at)


def _with_queries(splits: Splits, count: int) -> Splits:
    return replace(splits, query=splits.query.subset(splits.query.ids[:count]))
