"""A bank and the scores measured on it, as they are published: a few MB that ordinary tools open.

    bank.safetensors   the retrained models' outputs (float16), masks packed to bits, ids and labels: a compact bank
    card.json          what was trained on what, with which versions and seeds, how to make it again, the licence of the
                       data, the noise ceiling of each output, the SHA-256 of every file; README.md says the same
    entries/           ``leaderboard_entries.py``
    scores/NAME.npz    a method's scores, each query's divided by ``scale`` so that the largest is 1 or -1:
                         scores (N, Q) float16 where these are small, with train_ids and query_ids;
                         else scores (N, W) of the first W queries, 50 or fewer, whose ids are query_ids, and of
                         the others, whose ids are top_query_ids, the highest: top_ids and top_scores (Q - W, 200)

Shape suffixes: C subsets, R seeds, N training examples, Q queries, K highest.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from leaderboard_boards import CARD, ENTRIES, SCORES
from leaderboard_entries import Entry, checksum, file_name, fingerprint, of_cost, ranks_of, save_entry, write_plain

from comove.attribution import Scores
from comove.errors import InputError, some
from comove.evaluation import RetrainingBank
from comove.lds.against_bank import alpha_of
from comove.models.measured_outputs import default_of
from comove.retraining.array_files import write_npz
from comove.retraining.compact import PUBLISHED
from comove.retraining.files import EXAMPLE_ARRAYS
from comove.store import new_folder, versions, write_bytes
from comove.ties import highest

__all__ = ["Given", "publish", "readme", "reduced"]

HIGHEST, WHOLE_QUERIES, WHOLE_BYTES = 200, 50, 100_000
OUTPUTS = ("margin", "loss", "correct")
"""Of classifiers; an own training's outputs are all kept."""
TOLD = ("title", "about", "source", "licence", "command", "seeds")
"""What a card must say that the bank does not know."""


@dataclass(frozen=True, eq=False)
class Given:
    """Scores to be published.

    Attributes:
        scores: of all training examples and queries of the bank.
        method: the name of the entry.
        runs: trained models that it was fitted on.
        cost: ``epochs``, ``seconds`` and ``memory``, where known.
        note: what else has to be said.
        by: whose method it is, with the version; by default ours.
        kept: whether the scores themselves are published too, not their summed ranks alone.
    """

    scores: Scores
    method: str
    runs: int | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    by: str = ""
    kept: bool = True


def publish(
    bank: RetrainingBank,
    folder: Path,
    told: Mapping[str, Any],
    given: Sequence[Given],
    whole_queries: int = WHOLE_QUERIES,
) -> RetrainingBank:
    """Write a bank, its card, an entry for each method, and the scores of those that are kept.

    What is there of the same names is replaced, other entries stay. Nothing is written before everything is checked.

    Args:
        bank: with all models trained.
        folder: of this bank, whose name it has.
        told: entries of the card, at least ``TOLD``.
        given: the scores.
        whole_queries: queries that all scores are kept of, where not of all queries.

    Returns:
        The bank as it is read from there.

    Raises:
        InputError: the card lacks something, models are pending, scores that cannot be measured on the bank, two of one
            name.
    """
    if lacking := [name for name in TOLD if not told.get(name)]:
        raise InputError(f"The card must say {some(TOLD)}; it lacks {some(lacking)}.")
    plain = _plain(bank, folder.name)
    made = [_entry(plain, one) for one in given]
    files = [file_name(*entry.key) for entry in made]
    if twice := sorted({name for name in files if files.count(name) > 1}):
        raise InputError(f"Entries must have names of their own, these are of two methods: {some(twice)}.")
    plain.compact(new_folder(folder) / PUBLISHED, "float16")
    found = RetrainingBank.load(folder / PUBLISHED)
    for entry, one, name in zip(made, given, files, strict=True):
        save_entry(folder / ENTRIES, entry, fingerprint(found), replace=True)
        if one.kept:
            scores = one.scores.subset(train_ids=found.train_ids, query_ids=found.query_ids)
            write_npz(new_folder(folder / SCORES) / f"{name}.npz", reduced(scores, whole_queries))
    card = {"name": folder.name, **told, **_facts(bank, found), "versions": told.get("versions", versions())}
    _sign(folder, card)
    return found


def _plain(bank: RetrainingBank, name: str) -> RetrainingBank:
    """The bank's outputs, masks, ids and labels as a bank in memory."""
    if bank.pending:
        raise InputError(f"{len(bank.pending):,} of {len(bank.jobs):,} models are pending: train them first.")
    kept = [one for one in bank.output_names if one in OUTPUTS or (bank.is_own and one != "predicted")]
    return RetrainingBank.from_arrays(
        bank.masks,
        {one: bank.outputs(one) for one in kept},
        **{side: getattr(bank, side) for side in EXAMPLE_ARRAYS},
        higher={one: bank.higher_is_better(one) for one in kept},
        name=f"{name}-{str(bank.manifest['fingerprint'])[:8]}",
    )


def _entry(bank: RetrainingBank, one: Given) -> Entry:
    by = one.by or f"comove {versions()['comove']}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Entry(one.method, ranks_of(bank, one.scores), by, one.runs, **of_cost(one.cost), date=today, note=one.note)


def _facts(bank: RetrainingBank, found: RetrainingBank) -> dict[str, Any]:
    """What the bank itself says."""
    kept = ("dataset", "model", "recipe", "seed", "engine", "training", "subsets")
    nothing = Scores(np.ones((found.train_ids.size, found.query_ids.size)), found.train_ids, found.query_ids, "none")
    ceilings = {name: found.lds(nothing, name, bootstrap=0).noise_ceiling for name in found.output_names}
    return {
        "counts": {
            "training examples": found.train_ids.size,
            "queries": found.query_ids.size,
            "subsets": len(found.masks),
            "models a subset": found.seeds,
        },
        "alpha": alpha_of(found),
        "outputs": {name: found.higher_is_better(name) for name in found.output_names},
        "measured": default_of(found),
        "noise ceiling": {name: None if one is None else round(one, 4) for name, one in ceilings.items()},
        "made from": {name: value for name, value in bank.manifest.items() if name in kept},
        "fingerprint": fingerprint(found),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _sign(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the card with the SHA-256 of every file, and as a page."""
    files = [folder / PUBLISHED, *sorted((folder / SCORES).glob("*.npz"))]
    sums = {file.relative_to(folder).as_posix(): checksum(file) for file in files}
    write_plain(folder / CARD, {**card, "files": sums})
    write_bytes(folder / "README.md", readme({**card, "files": sums}).encode())


PAGE = """# {title}

{about}

- {counts}; each subset holds {alpha:.2g} of the training examples.
- Outputs (float16): {outputs}; measured by default: {measured}. Noise ceiling: {ceilings}.
- Data: {source}. Licence: {licence}.
- Seeds: {seeds}
- Versions: {versions}. Written {date}.
{notes}
## Use

```shell
comove lds --bank . --scores mine.npy --orientation train,query --out lds/
python benchmarks/leaderboard.py add --bank {name} --scores mine.npy --name METHOD --by WHO   # in the repository
```

`card.json` has all of this for programs, and the recipe. `scores/*.npz` hold scores (train, query) in float16, each
query's divided by its largest (`scale`): `scores` of the queries `query_ids`, and where these are not all, the 200
highest of each of the others: `top_ids` and `top_scores` of the queries `top_query_ids`. `entries/` holds what the
leaderboard is made from.

## Make it again

```shell
{command}
```

## Files

| file | SHA-256 |
| --- | --- |
{files}
"""


def readme(card: Mapping[str, Any]) -> str:
    """A card as Markdown."""
    lists = {
        "counts": ", ".join(f"{number:,} {name}" for name, number in card["counts"].items()),
        "ceilings": ", ".join(f"{name} {value}" for name, value in card["noise ceiling"].items()),
        "outputs": ", ".join(card["outputs"]),
        "versions": ", ".join(f"{name} {number}" for name, number in card["versions"].items()),
        "notes": "".join(f"- {note}\n" for note in card.get("notes", [])),
        "files": "\n".join(f"| `{name}` | `{sha256}` |" for name, sha256 in card["files"].items()),
    }
    return PAGE.format(**{**card, **lists})


# --- scores ---------------------------------------------------------------------------------------------------------


def reduced(
    scores: Scores, whole_queries: int = WHOLE_QUERIES, whole_bytes: int = WHOLE_BYTES
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file of scores.

    Args:
        scores: of a method.
        whole_queries: queries that all scores are kept of, where not of all queries.
        whole_bytes: scores that take no more are kept whole.
    """
    values_NQ = scores.values.astype(np.float64)
    scale_Q = np.abs(values_NQ).max(0)
    scaled_NQ = (values_NQ / np.where(scale_Q > 0, scale_Q, 1)).astype(np.float16)
    train_ids, query_ids = _narrow(scores.train_ids), _narrow(scores.query_ids)
    found = {"scores": scaled_NQ, "train_ids": train_ids, "query_ids": query_ids, "scale": scale_Q.astype(np.float32)}
    if scaled_NQ.nbytes <= whole_bytes or whole_queries >= query_ids.size:
        return found
    rest_NQ = scores.values[:, whole_queries:]
    places_QK = np.stack([highest(values_N, scores.train_ids, min(HIGHEST, values_N.size)) for values_N in rest_NQ.T])
    return {
        **found,
        "scores": scaled_NQ[:, :whole_queries],
        "query_ids": query_ids[:whole_queries],
        "top_ids": train_ids[places_QK],
        "top_scores": np.take_along_axis(scaled_NQ[:, whole_queries:].T, places_QK, 1),
        "top_query_ids": query_ids[whole_queries:],
    }


def _narrow(ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Ids in the smallest type that holds them."""
    kind = np.min_scalar_type(int(ids.max())) if ids.min() >= 0 else ids.dtype
    return ids.astype(kind)
