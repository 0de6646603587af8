"""What of a study goes into the repository: a few MB from which every table and figure can be made again.

A study can also be continued from them, in a new folder: :func:`restore`.

    study.json              what was declared, where it was computed, what it took, how far it is
    bank-PLAN.safetensors   the retrained models' logits on the queries (float16) and the subsets
    ranks.safetensors       for each method and plan, the ranks of the summed scores: all that the LDS asks of them;
                            and the highest-scored examples of each query, as positions among the sorted ids
    brittleness.safetensors, curves.json, same-seed.json, speed.json

Shape suffixes: C subsets, Q queries, R models of a subset.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from digests import Digest, file_of
from scipy.stats import rankdata
from steps import Session, truth_plans

from comove.evaluation import LDS, Brittleness, GroundTruth, RetrainingBank
from comove.evaluation.estimate import Estimate, mean_with_interval
from comove.lds.against_bank import alpha_of
from comove.lds.score import spearman_columns
from comove.store import new_folder, read_checked, read_json, write_checked, write_json

__all__ = ["Published", "publish", "restore"]

FEWEST_SUBSETS = 20
"""Of a truth whose first seed is not complete: fewer subsets say too little."""
TOP = "top"
COPIED = ("brittleness.safetensors", "curves.json", "same-seed.json", "speed.json")


def publish(at: Session, folder: Path) -> None:
    """Write what there is of a study, in compact form; it may be under way."""
    new_folder(folder)
    progress = {}
    for plan, seeds in truth_plans(at.study, at.splits):
        if not (at.folder / "bank" / "plans" / f"{plan.name}.safetensors").exists():
            continue
        bank = at.bank("bank", plan, seeds)
        progress[plan.name] = {"models": len(bank.jobs) - len(bank.pending), "of": len(bank.jobs)}
        if progress[plan.name]["models"]:
            file = bank.compact(folder / f"bank-{plan.name}.safetensors", "float16")
            arrays, header = read_checked(file)
            write_checked(file, arrays, header | {"identity": header["identity"] | {"command": _command(at)}})
    _write_ranks(at, folder / "ranks.safetensors")
    for name in COPIED:
        if (at.folder / name).exists():
            shutil.copyfile(at.folder / name, folder / name)
    machine = at.folder / "machine.json"
    content = {
        "declared": at.study.declared(),
        "data": {"name": at.splits.name, "fingerprint": at.splits.fingerprint, "train": len(at.splits.train)},
        "queries": len(at.splits.query),
        "machine": read_json(machine) if machine.exists() else {},
        "costs": at.book.entries,
        "progress": progress,
    }
    write_json(folder / "study.json", content)


def _command(at: Session) -> str:
    """What made it; the command as it was given holds paths."""
    return f"study.py --size {at.study.size}"


def _write_ranks(at: Session, file: Path) -> None:
    arrays, methods = {}, []
    for label in at.study.labels:
        kept = file_of(at.folder / "scores", label)
        if not kept.exists():
            continue
        found = Digest.load(kept)
        for plan, sums_CQ in found.sums.items():  # halves at most, from ties: exact in float16 up to C = 1,024
            arrays[f"{len(methods)}.{plan}"] = rankdata(sums_CQ, axis=0).astype(np.float16)
        top = np.searchsorted(np.sort(at.splits.train.ids), found.top[:, : max(at.study.removals.ks)])
        arrays[f"{len(methods)}.{TOP}"] = top.astype(np.uint16 if at.splits.train.ids.size <= 1 << 16 else np.uint32)
        methods.append({"method": label, "info": {**found.info, "command": _command(at)}})
    if methods:
        write_checked(file, arrays, {"methods": methods})


def restore(at: Session, folder: Path) -> None:
    """Begin a study's folder with what was published of it; what the folder has already stays.

    Raises:
        SystemExit: nothing is published there, or another study.
    """
    published = Published(folder)
    if not published.there:
        raise SystemExit(f"Nothing of the size {at.study.size} is published in {folder}.")
    found = published.content
    same = {name: found["declared"].get(name) for name in at.study.identity()} == at.study.identity()
    if not same or found["data"]["fingerprint"] != at.splits.fingerprint:
        raise SystemExit(f"What is published in {folder} is of another recipe or other data than the study now has.")
    for bank in published.banks:
        for plan, seeds in truth_plans(at.study, at.splits):
            if bank.plans == (plan.name,):
                copied = at.bank("bank", plan, seeds).merge(bank)
                print(f"{plan.name}: {copied} models", flush=True)
    _restore_scores(at, published)
    for name in COPIED:
        if (folder / name).exists() and not (at.folder / name).exists():
            shutil.copyfile(folder / name, at.folder / name)
    if not at.book.entries:
        write_json(at.book.file, dict(published.costs))
    if not (at.folder / "machine.json").exists():
        write_json(at.folder / "machine.json", found["machine"])


def _restore_scores(at: Session, published: Published) -> None:
    """Digests of the methods that were scored: ranks in the place of sums, which order subsets alike."""
    arrays, methods = published.ranks
    ids = np.sort(at.splits.train.ids)
    for number, entry in enumerate(methods):
        if file_of(at.folder / "scores", entry["method"]).exists():
            continue
        own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{number}.")}
        top = ids[own.pop(TOP, np.empty((at.splits.query.ids.size, 0), np.int64))].astype(np.int32)
        sums = {plan: ranks.astype(np.float64) for plan, ranks in own.items()}
        Digest(entry["method"], at.splits.query.ids, top, sums, entry["info"]).save(at.folder / "scores")


@dataclass(frozen=True)
class Published:
    """A study as it lies in the repository."""

    folder: Path

    @property
    def there(self) -> bool:
        """Whether anything of it was published."""
        return (self.folder / "study.json").exists()

    @cached_property
    def content(self) -> dict[str, Any]:
        """What ``study.json`` says."""
        return read_json(self.folder / "study.json")

    @property
    def costs(self) -> Mapping[str, Any]:
        """The book of costs."""
        costs: Mapping[str, Any] = self.content["costs"]
        return costs

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of it; empty where it is not there."""
        return read_json(self.folder / name) if (self.folder / name).exists() else {}

    @cached_property
    def brittleness(self) -> Brittleness | None:
        """What removals did."""
        file = self.folder / "brittleness.safetensors"
        return Brittleness.load(file) if file.exists() else None

    @cached_property
    def banks(self) -> list[RetrainingBank]:
        """The ground truths, the lowest sampling ratio first."""
        files = sorted(self.folder.glob("bank-*.safetensors"))
        return sorted((RetrainingBank.load(file) for file in files), key=alpha_of)

    @cached_property
    def ranks(self) -> tuple[dict[str, npt.NDArray[Any]], list[dict[str, Any]]]:
        """The ranks of the summed scores, by place in the list and plan; and the list of methods."""
        file = self.folder / "ranks.safetensors"
        if not file.exists():
            return {}, []
        ranks, header = read_checked(file)
        return ranks, header["methods"]

    def lds(self, output: str, bootstrap: int = 1000, most_seeds: int | None = None) -> list[LDS]:
        """The LDS of every method at every sampling ratio, by what is finished; see :func:`finished`.

        More seeds make a truth less noisy and every LDS higher: ratios are compared with as many seeds at each.
        """
        ranks, methods = self.ranks
        labels = [entry["method"] for entry in methods]
        results: list[LDS] = []
        for bank in self.banks:
            chosen = finished(bank.outputs(output))
            (plan,) = bank.plans
            own = [(i, label) for i, label in enumerate(labels) if f"{i}.{plan}" in ranks]
            if chosen is None or not own:
                continue
            rows, seeds = chosen[0], min(chosen[1], most_seeds or chosen[1])
            truth = GroundTruth(
                bank.masks[rows],
                bank.outputs(output)[rows, :seeds],
                bank.query_ids,
                output=output,
                alpha=alpha_of(bank),
                bootstrap=bootstrap,
            )
            predicted = [ranks[f"{i}.{plan}"][rows].astype(np.float64) for i, _ in own]
            results += truth.lds(predicted, [label for _, label in own])
        return results

    def given(self, method: str, control: str, output: str) -> dict[float, Estimate]:
        """By sampling ratio, how a method ranks subsets beyond what a control tells of them.

        The partial rank correlation with the truth given the control, a mean over queries (those of which one is
        undefined left out); intervals are over queries.
        """
        ranks, methods = self.ranks
        labels = [entry["method"] for entry in methods]
        found = {}
        for bank in self.banks:
            chosen, (plan,) = finished(bank.outputs(output)), bank.plans
            if chosen is None or not {method, control} <= set(labels):
                continue
            rows, seeds = chosen
            truth_CQ = bank.outputs(output)[rows, :seeds].mean(1)
            x_CQ, z_CQ = (ranks[f"{labels.index(name)}.{plan}"][rows].astype(np.float64) for name in (method, control))
            xy, xz, zy = (spearman_columns(*pair) for pair in ((x_CQ, truth_CQ), (x_CQ, z_CQ), (z_CQ, truth_CQ)))
            partial_Q = (xy - xz * zy) / np.sqrt(np.maximum((1 - xz**2) * (1 - zy**2), 1e-12))
            if np.isfinite(partial_Q).any():
                found[alpha_of(bank)] = mean_with_interval(partial_Q[np.isfinite(partial_Q), None])
        return found


def finished(outputs_CRQ: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], int] | None:
    """Which subsets, and how many seeds, can be measured on: as many whole seeds as there are, of all subsets.

    While the first seed is under way: its finished subsets, if they are enough.
    """
    done_CR = ~np.isnan(outputs_CRQ[:, :, 0])
    whole = int(np.cumprod(done_CR.all(0)).sum())
    if whole:
        return np.arange(len(done_CR)), whole
    rows = np.flatnonzero(done_CR[:, 0])
    return (rows, 1) if rows.size >= FEWEST_SUBSETS else None
