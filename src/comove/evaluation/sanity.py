"""Checks that any attribution method should pass, on examples planted where the answer is known; nothing is retrained.

One model is trained on data into which were put, in known places: copies of some queries; copies of others under a
wrong label; and a stamp on training examples that were all given one class, a shortcut (Geirhos et al., 2020). A second
model is trained on shuffled labels: scores that do not change when the model learnt nothing do not explain the model
(Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018).

Shape legend: N train, Q queries of one check.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from comove.attribution import Attributor, Scores, attributor
from comove.checks import check_seed
from comove.data import ExampleSet, Ids, Splits, positions_of
from comove.data.builtin import as_splits
from comove.display import html_table, plain
from comove.errors import InputError
from comove.evaluation.estimate import Estimate, mean_with_interval
from comove.jobs import Compute
from comove.lds.score import spearman_columns
from comove.store import new_folder, write_json
from comove.training import Run, Training, as_training, train

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Planted", "SanityCheck", "SanityChecks", "check_methods", "plant"]

QUERIES = 15
"""Queries of each check."""
STAMPED_SHARE = 0.04
"""Share of the training examples that carry the stamp."""
ROUNDING = 1e-9
TOP_SHARE = 0.01
"""A planted copy is found where it is among this share of the training examples."""


@dataclass(frozen=True)
class SanityCheck:
    """What one check found of one method.

    Attributes:
        method: its label.
        name: of the check.
        question: what is asked, in a line.
        value: the share found (for ``randomised labels`` a rank correlation), with its interval over queries.
        expected: what it is compared with: what chance gives (for the shortcut, what knowing the label gives); for
            ``randomised labels`` half the agreement between two runs of the same data.
        passed: whether the interval lies on the right side of that.
    """

    method: str
    name: str
    question: str
    value: Estimate
    expected: float
    passed: bool

    @property
    def verdict(self) -> str:
        """``passed`` or ``failed``."""
        return "passed" if self.passed else "failed"


@dataclass(frozen=True)
class SanityChecks:
    """What all checks found; made by :func:`check_methods`."""

    checks: tuple[SanityCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every method passed every check."""
        return all(check.passed for check in self.checks)

    def to_pandas(self) -> pd.DataFrame:
        """One row a method and check."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """One JSON row a method and check."""
        ends = [check.value._asdict() for check in self.checks]
        return [{**asdict(check), **end} for check, end in zip(self.checks, ends, strict=True)]

    def _repr_html_(self) -> str:
        rows = [(c.method, c.name, c.value.value, c.expected, c.verdict) for c in self.checks]
        return html_table("Sanity checks", ["method", "check", "found", "limit", "verdict"], rows)

    def __repr__(self) -> str:
        lines = [
            f"{c.method}: {c.name} {plain(c.value.value, 2)} [{plain(c.value.low, 2)}, {plain(c.value.high, 2)}] "
            f"(limit {plain(c.expected, 2)}): {c.verdict}"
            for c in self.checks
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Planted:
    """Data with planted examples, and where they are.

    Attributes:
        splits: the data to train on.
        copies: query id -> id of its copy in training.
        mislabelled: query id -> id of its copy under a wrong label.
        stamped: (S,) training ids that carry the stamp.
        stamped_queries: ids of queries that carry it.
    """

    splits: Splits
    copies: dict[int, int]
    mislabelled: dict[int, int]
    stamped: Ids
    stamped_queries: Ids


RANDOMISED = "randomised labels"
QUESTIONS = {
    "planted copies": f"share of queries whose copy is among their top {TOP_SHARE:.0%} of training examples; "
    "passed above chance",
    "wrong labels": f"share of queries whose copy under a wrong label is among their bottom {TOP_SHARE:.0%}; "
    "passed above chance",
    "shortcut": "share of stamped training examples among as many top scores of a stamped query; "
    "passed above what the label alone finds",
    RANDOMISED: "rank correlation with scores of a model of shuffled labels; "
    "passed below half of that between two seeds",
}
"""What each check measures, and when it is passed."""


def plant(splits: Splits, seed: int = 0, queries: int = QUERIES) -> Planted:
    """Return the data with planted examples; the same data and seed give the same.

    Args:
        splits: pairs of input and label, held in memory.
        seed: of who is chosen.
        queries: how many queries each check gets.

    Raises:
        InputError: examples of a structure of their own, or too large for memory; fewer than three times as many
            queries; a single class.
    """
    check_seed(seed, "plant")
    train_set, query = splits.train, splits.query
    if train_set.structured or train_set.held is None or query.held is None:
        raise InputError("The checks plant pairs of input and label held in memory; these examples are no such pairs.")
    if len(query) < 3 * queries or len(splits.classes) < 2:
        raise InputError(
            f"The checks need {3 * queries} queries of two classes or more; there are {len(query)} queries of "
            f"{len(splits.classes)}."
        )
    rng = np.random.default_rng([seed, 0x5A17])
    first = int(max(part.ids.max() for part in (train_set, splits.validation, query) if part is not None)) + 1
    shuffled = rng.permutation(len(query))
    places = np.split(shuffled[: 2 * queries], 2)
    wrong = (query.labels[places[1]] + rng.integers(1, len(splits.classes), queries)) % len(splits.classes)
    target = int(np.bincount(train_set.labels).argmax())
    others = np.flatnonzero(train_set.labels != target)
    stamped = np.sort(rng.choice(others, max(2, round(STAMPED_SHARE * len(train_set))), replace=False))
    candidates = shuffled[2 * queries :]
    asked = candidates[query.labels[candidates] != target][:queries]
    inputs, labels = train_set.held.clone(), train_set.labels.copy()
    inputs[torch.from_numpy(stamped)] = stamp(inputs[torch.from_numpy(stamped)], inputs)
    labels[stamped] = target
    copied = torch.from_numpy(np.concatenate(places))
    ids = np.arange(first, first + 2 * queries)
    made = ExampleSet.from_arrays(
        torch.cat([inputs, query.held[copied]]),
        np.concatenate([labels, query.labels[places[0]], wrong]),
        ids=np.concatenate([train_set.ids, ids]),
        classes=train_set.classes,
        normalization=train_set.normalization,
        name=train_set.name,
    )
    held, query_labels = query.held.clone(), query.labels.copy()
    held[torch.from_numpy(asked)] = stamp(held[torch.from_numpy(asked)], inputs)
    query_labels[asked] = target
    held_out = ExampleSet.from_arrays(
        held,
        query_labels,
        ids=query.ids,
        classes=query.classes,
        normalization=query.normalization,
        name=query.name,
    )
    return Planted(
        replace(splits, train=made, query=held_out, source={}),
        dict(zip(query.ids[places[0]].tolist(), ids[:queries].tolist(), strict=True)),
        dict(zip(query.ids[places[1]].tolist(), ids[queries:].tolist(), strict=True)),
        train_set.ids[stamped],
        query.ids[asked],
    )


def stamp(inputs: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Return the inputs (B, ...) with the last corner (of images), or last tenth of the features, at its extreme.

    The value is the largest of ``among``; an eighth of each side of an image, at least two pixels.
    """
    stamped, value = inputs.clone(), among.max()
    if inputs.ndim >= 4:
        height, width = (max(2, size // 8) for size in inputs.shape[-2:])
        stamped[..., -height:, -width:] = value
    else:
        flat = stamped.reshape(len(stamped), -1)
        flat[:, -max(2, flat.shape[1] // 10) :] = value
        stamped = flat.reshape(inputs.shape)
    return stamped


def check_methods(
    methods: Sequence[Attributor | str],
    dataset: str | Splits = "digits",
    training: Training | str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    queries: int = QUERIES,
    compute: Compute | None = None,
) -> SanityChecks:
    """Hold methods to planted examples: copies, wrong labels, a shortcut, and a model trained on shuffled labels.

    Three models are trained: two on the planted data, one on the same with its labels shuffled.

    Args:
        methods: built, or by name.
        dataset: what is planted into: pairs of input and label.
        training: how models are trained.
        out: a folder for the runs and ``checks.json``; ``None`` for a temporary one.
        queries: how many queries each check gets.
        compute: device and progress.

    Raises:
        InputError: a method that is computed from a retraining bank (measure it by comove lds);
            data that cannot be planted.
    """
    chosen = [attributor(method) if isinstance(method, str) else method for method in methods]
    for method in chosen:
        if "bank" in method.requires:
            raise InputError(f"{method.name} is computed from retrained models; comove lds measures it directly.")
    splits = as_splits(dataset)
    how = as_training(training)
    planted = plant(splits, how.seed, queries)
    with tempfile.TemporaryDirectory(prefix="comove-check-") as temporary:
        folder = new_folder(temporary if out is None else out)
        runs = _runs(planted, how, folder, compute or Compute())
        found = tuple(check for method in chosen for check in _checked(method, planted, runs))
        result = SanityChecks(found)
        if out is not None:
            write_json(folder / "checks.json", {"checks": result.rows(), "data": splits.describe()})
    return result


def _runs(planted: Planted, how: Training, folder: Path, compute: Compute) -> tuple[Run, Run, Run]:
    """Two runs of the planted data with other seeds, and one of the same examples with shuffled labels."""
    data = planted.splits
    shuffled = np.random.default_rng([how.seed, 0x5A18]).permutation(data.train.labels)
    unlearnt = replace(data, train=data.train.with_labels(shuffled), source={})
    jobs = (("first", data, 0), ("second", data, 1), ("shuffled", unlearnt, 0))
    first, second, third = (
        train(
            splits,
            how.model,
            how.recipe,
            how.seed + more,
            folder / "runs" / name,
            model_options=how.options,
            device=compute.device,
            progress=compute.progress,
        )
        for name, splits, more in jobs
    )
    return first, second, third


def _checked(method: Attributor, planted: Planted, runs: tuple[Run, Run, Run]) -> list[SanityCheck]:
    asked = [*planted.copies, *planted.mislabelled, *planted.stamped_queries.tolist()]
    scores, again, unlearnt = (method.fit(run).attribute(asked) for run in runs)
    n = scores.train_ids.size
    top = max(1, round(TOP_SHARE * n))
    copies = [_rank(scores, query, copy) < top for query, copy in planted.copies.items()]
    wrong = [n - 1 - _rank(scores, query, copy) < top for query, copy in planted.mislabelled.items()]
    hits = [_hits(scores, query, planted.stamped) for query in planted.stamped_queries.tolist()]
    target = planted.splits.train.labels[planted.splits.train.positions(planted.stamped[:1])]
    by_label = planted.stamped.size / int((planted.splits.train.labels == target).sum())
    planted_checks = (
        ("planted copies", copies, top / n),
        ("wrong labels", wrong, top / n),
        ("shortcut", hits, by_label),
    )
    found = [
        SanityCheck(method.label, name, QUESTIONS[name], value := _mean(values), limit, value.low > limit + ROUNDING)
        for name, values, limit in planted_checks
    ]
    same, other = (spearman_columns(scores.values, rest.values) for rest in (again, unlearnt))
    value, limit = _mean(other), float(np.nanmean(same)) / 2
    return [*found, SanityCheck(method.label, RANDOMISED, QUESTIONS[RANDOMISED], value, limit, value.high < limit)]


def _rank(scores: Scores, query: int, train_id: int) -> float:
    """How many training examples score higher for this query; half of those that score the same count."""
    column = scores.values[:, positions_of([query], scores.query_ids)[0]]
    own = column[positions_of([train_id], scores.train_ids)[0]]
    return float((column > own).sum() + ((column == own).sum() - 1) / 2)


def _hits(scores: Scores, query: int, wanted: Ids) -> float:
    """The share of ``wanted`` among as many top scores; of equal scores at the edge all count in part."""
    column = scores.values[:, positions_of([query], scores.query_ids)[0]]
    edge = np.sort(column)[-wanted.size]
    own = column[positions_of(wanted, scores.train_ids)]
    above = column > edge
    part = (wanted.size - above.sum()) / (column == edge).sum()
    return float(((own > edge).sum() + part * (own == edge).sum()) / wanted.size)


def _mean(values: Sequence[Any] | npt.NDArray[Any]) -> Estimate:
    return mean_with_interval(np.nan_to_num(np.asarray(values, np.float64))[:, None])
