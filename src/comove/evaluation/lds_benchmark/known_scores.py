"""Scores of other libraries, from their files, measured by a retraining bank.

Shape legend: N train, Q queries.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from comove.attribution import Scores
from comove.attribution.scores import SomeScores, named_scores
from comove.checks import as_ids
from comove.errors import InputError, some
from comove.evaluation.lds_benchmark.plans import by_alpha, parts_of, union
from comove.evaluation.lds_benchmark.result import Benchmark
from comove.lds.against_bank import bank_lds
from comove.retraining.array_files import SUFFIXES, read_named_arrays
from comove.retraining.bank import RetrainingBank
from comove.store import new_folder

__all__ = ["ORIENTATIONS", "lds_of_scores", "read_scores", "score_files"]

TRAIN_QUERY, QUERY_TRAIN = "train query", "query train"
ORIENTATIONS = {
    "captum": QUERY_TRAIN,
    "dattri": TRAIN_QUERY,
    "kronfluence": QUERY_TRAIN,
    "quanda": QUERY_TRAIN,
    "trak": TRAIN_QUERY,
}
"""The order of axes in which a library gives scores."""
MATRIX = ("scores", "values", "all_modules")
"""What the array of scores is called where a file holds several."""


def read_scores(
    path: str | os.PathLike[str],
    bank: RetrainingBank,
    *,
    axes: str = TRAIN_QUERY,
    positive: str = "helps",
    method: str | None = None,
    train_ids: object = None,
    query_ids: object = None,
) -> Scores:
    """Read a library's scores for the training examples and queries of a bank; nothing is unpickled.

    A file that comove wrote says for itself what its axes, sign and ids are.

    Args:
        path: ``.npy``, ``.npz``, ``.pt`` or ``.safetensors``. Of several arrays, the scores are ``"scores"``,
            ``"values"`` or ``"all_modules"``, else the only one of two dimensions; arrays of it called ``train_ids``
            and ``query_ids`` count.
        bank: whose ids the scores have, in its order, where neither file nor caller gives any.
        axes: ``"train query"`` or ``"query train"``: which axis comes first; or one of :data:`ORIENTATIONS`.
        positive: ``"helps"`` where a positive score raises the query's measured output, else ``"hurts"``.
        method: what made them; by default the file's name.
        train_ids: (N,) unique ids, in the order of the scores.
        query_ids: (Q,) likewise.

    Raises:
        InputError: another shape than the ids'; no such array; an unknown orientation or sign.
        CorruptFileError: missing, damaged, foreign, or readable only by unpickling.
        NonFiniteError: a score that is NaN or infinite.
    """
    file = Path(path)
    if _is_ours(file):
        found = Scores.load(file)
        return found if method is None else _named(found, method)
    arrays = read_named_arrays(file)
    values = _matrix(arrays, file)
    order = ORIENTATIONS.get(axes, axes)
    scores = Scores.from_arrays(values, axes=order, positive=positive)
    given = {"train": train_ids, "query": query_ids}
    own = {"train": bank.train_ids, "query": bank.query_ids}
    chosen = {side: arrays.get(f"{side}_ids", own[side]) if one is None else one for side, one in given.items()}
    ids = {side: as_ids(one, f"{side}_ids") for side, one in chosen.items()}
    expected = (ids["train"].size, ids["query"].size)
    if scores.shape != expected:
        hint = ": is the orientation the other one" if scores.shape == expected[::-1] else ": give the scores' own ids"
        raise InputError(
            f"{file} holds scores of {scores.shape[0]} training examples and {scores.shape[1]} queries as read "
            f"({order.replace(',', ' ')}), there are ids of {expected[0]} and {expected[1]}{hint}?"
        )
    name = file.stem if method is None else method
    return Scores.from_arrays(scores.values, train_ids=ids["train"], query_ids=ids["query"], method=name)


def _named(scores: Scores, method: str) -> Scores:
    """The same scores under another name."""
    return replace(scores, method=method)


def _is_ours(file: Path) -> bool:
    """Whether comove wrote a file of scores; what is damaged its reader refuses."""
    if file.suffix != ".safetensors" or not file.is_file():
        return False
    with file.open("rb") as opened:
        head = opened.read(8)
        return b"comove/scores" in opened.read(min(int.from_bytes(head, "little"), 1 << 20))


def _matrix(arrays: dict[str, npt.NDArray[Any]], file: Path) -> npt.NDArray[Any]:
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    chosen = [name for name in MATRIX if name in matrices] or matrices
    if not chosen or (len(chosen) > 1 and chosen[0] not in MATRIX):
        found = some(f"{name or 'an array'} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise InputError(f"{file} must hold one matrix of scores, or one called 'scores'; it holds {found}.")
    return arrays[chosen[0]]


def score_files(paths: Sequence[Path]) -> list[Path]:
    """The files of scores among these paths; of a folder all in it, by name.

    Raises:
        InputError: a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no files of scores ({', '.join(SUFFIXES)}).")
        found += inside
    return found


def lds_of_scores(
    bank: RetrainingBank,
    scores: SomeScores,
    *,
    output: str | Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Benchmark:
    """Hold scores that are there to a bank that is there; nothing is trained.

    Args:
        bank: with every model trained; its random, leave-one-out and imported subsets are used.
        scores: one method's, several methods', or by name.
        output: what is measured on the queries, one or several; by default the bank's own default.
        out: a folder for ``lds.json``, ``lds.csv`` and ``differences.csv``.

    Raises:
        InputError: scores without some of the bank's ids, two of one name; an unknown output; too few subsets.
        NonFiniteError: models are still pending.
    """
    methods = [item if item.method == name else _named(item, name) for name, item in named_scores(scores).items()]
    parts = by_alpha(parts_of(bank))
    outputs = [output] if isinstance(output, str) else output
    results = tuple(bank_lds(parts, methods, outputs or None))
    benchmark = Benchmark(results, union(bank, parts), (), reused=len(bank.jobs))
    if out is not None:
        benchmark.save(new_folder(out))
    return benchmark
