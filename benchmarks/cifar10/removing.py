"""Brittleness, query by query: what is finished can be published, and a slice goes on with the next query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from digests import Digest, as_scores, file_of
from slices import SliceEndedError
from steps import Session, note_machine

from comove.data import Ids
from comove.evaluation import Brittleness, RetrainingBank
from comove.evaluation.prediction_brittleness.benchmark import measure_brittleness
from comove.evaluation.prediction_brittleness.removal import Removal, plan_removal
from comove.retraining.subsets import everything, without

__all__ = ["brittleness_of", "remove"]

BANK = "removal-bank"
BY_METHOD = ("predicted", "margins", "class_emptied")


@dataclass(frozen=True)
class _ByQuery:
    """Retraining in one bank, with a plan of subsets for each query.

    Attributes:
        at: the session.
        places: positions in the bank's queries of those asked about.
    """

    at: Session
    places: npt.NDArray[np.int64]

    def _run(self, bank: RetrainingBank) -> npt.NDArray[np.float32]:
        before = len(bank.pending)
        if before:
            self.at.train(bank)
            self.at.book.add("brittleness", models=before - len(bank.pending))
            if bank.pending:
                raise SliceEndedError
        return bank.logits()

    def full(self, models: int) -> npt.NDArray[np.float32]:
        """Logits (models, Q, classes) of models of all training examples."""
        return self._run(self.at.bank(BANK, everything(), models))[0][:models, self.places]

    def without(self, removed: Sequence[Ids], queries: Sequence[int], models: int) -> npt.NDArray[np.float32]:
        """Logits (C, models, classes) of models without each removed set, on its own query."""
        found: list[Any] = [None] * len(removed)
        for query in dict.fromkeys(queries):
            own = [i for i, q in enumerate(queries) if q == query]
            logits_CRQc = self._run(self.at.bank(BANK, without([removed[i] for i in own]), models))
            for i, logits_RQc in zip(own, logits_CRQc, strict=True):
                found[i] = logits_RQc[:models, self.places[query]]
        return np.stack(found)


def order_of_queries(at: Session) -> Ids:
    """The queries in a fixed random order, so that the first few are a fair sample."""
    return np.random.default_rng(0xB217).permutation(at.splits.query.ids)[: at.study.removals.queries]


def remove(at: Session) -> None:
    """Retrain without the highest-scored examples, a query at a time; ``brittleness.safetensors`` grows with it."""
    file, ids = at.folder / "brittleness.safetensors", order_of_queries(at)
    removal, found = _removal(at, ids), _finished(at)
    for number in range(0 if found is None else len(found.query_ids), ids.size):
        one = _measured(at, removal, ids[number : number + 1])
        found = one if found is None else _joined(found, one)
        found.save(file)
    note_machine(at)


def _joined(some: Brittleness, more: Brittleness) -> Brittleness:
    """The brittleness of the queries of both."""
    found = {name: np.concatenate([getattr(b, name) for b in (some, more)], axis=1) for name in BY_METHOD}
    found |= {name: np.concatenate([getattr(b, name) for b in (some, more)]) for name in ("query_ids", "query_labels")}
    full = {name: np.concatenate([getattr(b.full, name) for b in (some, more)], axis=1) for name in vars(some.full)}
    return replace(some, **found, full=replace(some.full, **full))


def _finished(at: Session) -> Brittleness | None:
    """What is measured as declared now: with more methods, numbers or seeds all queries want more models."""
    found, study = brittleness_of(at), at.study.removals
    if found is None:
        return None
    measured = (found.methods, found.ks, found.predicted.shape[-1], len(found.full.voting))
    wanted = ((*study.methods, *found.controls), study.ks, study.seeds, study.base_seeds)
    return found if measured == wanted else None


def _removal(at: Session, ids: Ids) -> Removal:
    scores = {}
    for label in at.study.removals.methods:
        file = file_of(at.folder / "scores", label)
        found = Digest.load(file)
        if found.top.shape[1] < max(at.study.removals.ks):  # published before these were
            raise SystemExit(f"{file} lacks the highest-scored examples: delete it, then --step scores makes it again.")
        scores[label] = as_scores(found, at.splits.train.ids)
    return plan_removal(scores, at.splits, max(at.study.removals.ks), queries=ids, controls=True, seed=0)


def _measured(at: Session, removal: Removal, ids: Ids) -> Any:
    """The brittleness of some queries; what is not trained yet is."""
    study, q = at.study.removals, np.flatnonzero(np.isin(removal.query_ids, ids))
    some = replace(
        removal,
        orders=removal.orders[:, q],
        in_class=removal.in_class[:, q],
        class_sizes=removal.class_sizes[q],
        query_ids=removal.query_ids[q],
        query_labels=removal.query_labels[q],
    )
    retraining = _ByQuery(at, at.splits.query.positions(some.query_ids))
    return measure_brittleness(some, study.ks, retraining, seeds=study.seeds, base_seeds=study.base_seeds)


def brittleness_of(at: Session) -> Brittleness | None:
    """What is finished."""
    file = at.folder / "brittleness.safetensors"
    return Brittleness.load(file) if file.exists() else None
