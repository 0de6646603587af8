"""The steps of the study. Each goes on where it was cut off, and raises ``SliceEndedError`` when its slice has ended.

What must outlive a slice lies in small files in ``folder``: the banks (a file of 8 KB a model), the digests of scores,
the book of costs. Runs with their checkpoints and TRAK's features are large and lie in ``scratch``; where they are lost
they are made again, unless the digest they are for is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from declared import Study
from slices import Book, Clock, SliceEndedError, Until

from comove.data import Splits
from comove.errors import CorruptFileError
from comove.evaluation import RetrainingBank, coreset_curve, plans_of
from comove.jobs import Compute, Executor
from comove.retraining.subsets import RandomSubsets, SubsetPlan
from comove.store import claim_folder, new_folder, read_json, versions, write_json
from comove.training import Engine, Recording, Training, resolve_device, train

__all__ = ["Session", "coreset_curves", "fit_bank", "note_machine", "retrain", "timed", "train_bank", "truth_plans"]


@dataclass(frozen=True)
class Session:
    """One slice of work on one study.

    Attributes:
        study: what is declared.
        folder: of the small state.
        scratch: of what is large and can be made again.
        clock: when the slice ends.
        device: where to compute.
        inner: where banks are trained.
    """

    study: Study
    folder: Path
    scratch: Path
    clock: Clock
    device: str
    inner: Executor

    @cached_property
    def splits(self) -> Splits:
        """The data; the folder is claimed for them."""
        splits = self.study.splits()
        new_folder(self.folder)
        claim_folder(self.folder, "study", 1, {**self.study.identity(), "dataset": splits.describe()})
        return splits

    @cached_property
    def book(self) -> Book:
        """What each step took."""
        return Book(self.folder / "costs.json")

    @property
    def executor(self) -> Until:
        """Trains until the slice ends."""
        return Until(self.clock, self.inner)

    @contextmanager
    def unit(self, name: str) -> Iterator[None]:
        """Work that is lost where it is cut off: begun if the longest of its name would still fit into the slice.

        The first of a slice is begun in any case, or what takes as long as a slice would never be done.

        Raises:
            SliceEndedError: there is no time for it.
        """
        self.clock.check(self.book.entries.get("longest", {}).get(name, 0.0) if self.clock.worked else 0.0)
        self.clock.worked, started = True, time.monotonic()
        yield
        taken = max(time.monotonic() - started, self.book.entries.get("longest", {}).get(name, 0.0))
        self.book.note("longest", **{name: taken})

    @property
    def engine(self) -> Engine | None:
        """How models are trained where the step ``speed`` has found the captured graph right; else banks find out."""
        try:
            measured = read_json(self.folder / "speed.json")
        except CorruptFileError:
            return None
        plain, captured = (measured.get(kind, {}).get("seconds", float("inf")) for kind in ("one-by-one", "captured"))
        on_gpu = resolve_device(self.device).type == "cuda"
        reason = f"captured {captured:.3g} s a model, one by one {plain:.3g} s (the step speed)"
        return Engine("captured", 1, reason) if on_gpu and captured < plain else None

    def bank(self, name: str, plan: SubsetPlan, seeds: int) -> RetrainingBank:
        """Make, or open, a bank of this study in ``folder``."""
        return RetrainingBank.create(self.folder / name, self.splits, self.training, subsets=plan, seeds=seeds)

    def train(self, bank: RetrainingBank) -> None:
        """Train what is pending of a bank, until the slice ends.

        Raises:
            SliceEndedError: it has ended before.
        """
        self.clock.check()
        self.clock.worked = True
        begun = any((bank.path / "results").glob("*.safetensors"))  # so it keeps its engine: bits depend on it
        bank.run(executor=self.executor, device=self.device, engine=None if begun else self.engine)

    @property
    def training(self) -> Training:
        """How every model is trained."""
        return Training("resnet9", self.study.recipe, {"width": self.study.width})


def truth_plans(study: Study, splits: Splits) -> list[tuple[SubsetPlan, int]]:
    """The plans of the ground truth, each with its R, in the order of training."""
    plans = plans_of([alpha for alpha, _ in study.truths], study.subsets, splits.train.ids)
    return list(zip(plans, (seeds for _, seeds in study.truths), strict=True))


def note_machine(at: Session) -> None:
    """Write down where this was computed."""
    from machine import machine

    write_json(at.folder / "machine.json", {**machine(at.device), "versions": versions()})


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of some work, and what it returns."""
    started = time.monotonic()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started, found


# --- banks ----------------------------------------------------------------------------------------------------------


def fit_bank(at: Session) -> RetrainingBank:
    """The bank that FZ and datamodels are fitted on."""
    return at.bank("fit-bank", RandomSubsets(0.5, at.study.fit_subsets, 1), 1)


def retrain(at: Session, alphas: Callable[[float | str], bool]) -> None:
    """Train the ground truth at some of the sampling ratios.

    One seed at every ratio comes before a second one at any, so that a study cut short is a whole one with smaller R.

    Args:
        at: the session.
        alphas: says which ratios.
    """
    planned = zip(truth_plans(at.study, at.splits), at.study.truths, strict=True)
    chosen = [(plan, seeds) for (plan, seeds), (alpha, _) in planned if alphas(alpha)]
    for number in range(1, max(seeds for _, seeds in chosen) + 1):
        for plan, seeds in chosen:
            train_bank(at, at.bank("bank", plan, min(number, seeds)), plan.name)


def train_bank(at: Session, bank: RetrainingBank, name: str) -> None:
    """Train what is pending of a bank, until the slice ends.

    Raises:
        SliceEndedError: there are models to go.
    """
    before = len(bank.pending)
    if not before:
        return
    seconds, _ = timed(lambda: at.train(bank))
    left = len(bank.pending)
    at.book.add(name, models=before - left, seconds=seconds)
    note_machine(at)
    print(f"{name}: {before - left} models in {seconds:.0f} s, {left} to go", flush=True)
    if left:
        raise SliceEndedError


# --- coreset curves -------------------------------------------------------------------------------------------------


def coreset_curves(at: Session) -> None:
    """Train models on what coreset methods keep; the points go to ``curves.json``."""
    done = at.folder / "curves.json"
    if done.exists():
        return
    study, splits = at.study.coresets, at.study.coreset_splits()
    epochs = at.study.recipe.epochs
    with at.unit("proxy"):
        proxy = train(
            splits,
            at.training.model,
            at.training.recipe,
            out=at.scratch / "proxy",
            recording=Recording(anchors=tuple(sorted({min(epochs, 10), epochs}))),
            device=at.device,
            model_options=at.training.options,
        )
    at.clock.check()
    seconds, curve = timed(
        lambda: coreset_curve(
            proxy,
            study.methods,
            study.budgets,
            seeds=study.seeds,
            dataset=splits,
            out=new_folder(at.folder / "curves"),
            compute=Compute(at.executor, device=at.device),
        )
    )
    at.book.add("curves", seconds=seconds)
    if any(np.isnan(point.accuracy) for point in curve.points):  # models still pending
        raise SliceEndedError
    points = [point._asdict() for point in curve.points]
    write_json(done, {"points": points, "n_train": curve.n_train, "n_query": curve.n_query})
