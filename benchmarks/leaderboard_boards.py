"""The banks of the leaderboard, with all that was measured on each, as they lie in the repository.

    benchmarks/banks/NAME/              a published bank: bank.safetensors, card.json, README.md
        entries/                        what was measured on it
        scores/                         the scores of methods, see ``leaderboard_publish.py``
    benchmarks/results/cifar10-resnet9/SIZE/   the study's bank at alpha .5 and its ranks, read where they lie
    benchmarks/banks/cifar10-SIZE/entries/     what others measured on it

Shape suffixes: C subsets, Q queries.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from leaderboard_entries import Entry, doubled, fingerprint, of_cost, read_entries

from comove.attribution import CLD
from comove.display import counted
from comove.errors import InputError, some
from comove.evaluation import LDS, GroundTruth, RetrainingBank
from comove.lds.against_bank import alpha_of
from comove.models.measured_outputs import default_of, sign_of
from comove.retraining.compact import PUBLISHED
from comove.store import read_json

sys.path.append(str(Path(__file__).parent / "cifar10"))
from compute_cost import cost_of  # of the study, which is a script likewise
from published import Published, finished

__all__ = ["BANKS", "LABELS", "RESULTS", "Board", "board_named", "boards"]

BANKS = Path(__file__).parent / "banks"
RESULTS = Path(__file__).parent / "results"
ENTRIES, SCORES, CARD = "entries", "scores", "card.json"
ORDER = ("digits", "cifar10-small", "cifar10-short-batches", "cifar10-paper", "words", "sentences", "characters")
"""Of the page; others follow by name."""
LABELS = {
    "cld (paper)": CLD(rows="epochs").label,
    "cld (whitened log odds)": CLD(whiten=0.03, transform="log-odds").label,
}
"""What ``benchmarks/quality.py`` calls methods, where that is not their label."""
EDITIONS = {
    "short-batches": "small, first edition (short last batches)",
    "small": "small, second edition (even batches)",
}
"""Of the study at its small size, by the names of its sizes."""
STUDY_PLAN = "random-0.5-"
"""The study has other ratios too, with fewer seeds: this one is used."""


@dataclass(frozen=True, eq=False)
class Board:
    """A bank and what was measured on it.

    Attributes:
        name: as on the command line.
        title: as on the page.
        about: what was trained on what, in a paragraph; where the data are from and how they may be used.
        bank: the retrained models.
        folder: of what is published with it; that of a study holds entries of others only.
        own: entries that lie elsewhere.
    """

    name: str
    title: str
    about: str
    bank: RetrainingBank
    folder: Path
    own: tuple[Entry, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Of the bank, as entries note it."""
        return fingerprint(self.bank)

    @cached_property
    def _read(self) -> tuple[list[Entry], list[str]]:
        shape = (len(self.bank.masks), self.bank.query_ids.size)
        return read_entries(self.folder / ENTRIES, self.fingerprint, shape)

    @property
    def entries(self) -> list[Entry]:
        """All that was measured on it."""
        return [*self.own, *self._read[0]]

    @property
    def stale(self) -> list[str]:
        """Titles of entries that were measured on an earlier bank of this name."""
        return self._read[1]

    def check_new(self, method: str, runs: int | None) -> None:
        """Refuse a name that is taken.

        Raises:
            InputError: it is.
        """
        if (method, runs) in {entry.key for entry in self.entries}:
            raise InputError(
                f"{self.name} has an entry {method!r} of {runs or 'unknown'} runs: choose another name, or --runs."
            )

    def lds(self, bootstrap: int = 1000) -> list[LDS]:
        """The LDS of every entry, by the bank's default output and the models that are finished."""
        bank, output = self.bank, default_of(self.bank)
        signed_CRQ = sign_of(bank, output) * bank.outputs(output)
        chosen = finished(signed_CRQ)
        if chosen is None:
            raise InputError(f"{self.name}: too few models of the bank are finished.")
        rows, seeds = chosen
        truth = GroundTruth(
            bank.masks[rows],
            signed_CRQ[rows, :seeds],
            bank.query_ids,
            output=output,
            alpha=alpha_of(bank),
            bootstrap=bootstrap,
        )
        kept = self.entries
        return truth.lds([entry.ranks[rows].astype(np.float64) for entry in kept], [entry.title for entry in kept])


def boards(banks: Path = BANKS, results: Path = RESULTS) -> list[Board]:
    """All that are there, in the order of the page."""
    published = [_published(card.parent) for card in sorted(banks.glob(f"*/{CARD}"))]
    studies = [_study(file.parent, banks, results) for file in sorted(results.glob("cifar10-resnet9/*/study.json"))]
    found = [*published, *(board for board in studies if board is not None)]
    return sorted(found, key=lambda board: (ORDER.index(board.name) if board.name in ORDER else len(ORDER), board.name))


def board_named(name: str, banks: Path = BANKS, results: Path = RESULTS) -> Board:
    """One of them.

    Raises:
        InputError: there is none of that name.
    """
    found = {board.name: board for board in boards(banks, results)}
    if name not in found:
        raise InputError(f"There is no bank {name!r}; there are {some(found) or 'none'}.")
    return found[name]


def _published(folder: Path) -> Board:
    """A folder that ``leaderboard_publish.py`` wrote."""
    card = read_json(folder / CARD)
    about = f"{card['about']} Data: {card['source']}; {card['licence']}. Card: `benchmarks/banks/{folder.name}`."
    return Board(folder.name, card["title"], about, RetrainingBank.load(folder / PUBLISHED), folder)


# --- the study ------------------------------------------------------------------------------------------------------


def _study(folder: Path, banks: Path, results: Path) -> Board | None:
    """The study at one size, as it was published; ``None`` where there is nothing to hold methods to."""
    found = Published(folder)
    files = sorted(folder.glob(f"bank-{STUDY_PLAN}*.safetensors"))
    if not files or not found.ranks[1]:
        return None
    bank, declared = RetrainingBank.load(files[0]), found.content["declared"]
    if finished(bank.outputs()) is None:
        return None
    about = (
        f"{declared['about']} Methods have {declared['runs']} recorded runs; more in the [study](study.md). Data: "
        "CIFAR-10 (Krizhevsky, 2009) as JPEG copies; no image is published here, only what models say of them. Bank "
        f"and ranks: `benchmarks/results/cifar10-resnet9/{folder.name}`."
    )
    size, costs = declared["size"], _known_costs(results) if declared["size"] in EDITIONS else {}
    title = f"CIFAR-10, {EDITIONS.get(size, size)}"
    return Board(
        f"cifar10-{size}", title, about, bank, banks / f"cifar10-{size}", tuple(_entries_of(found, bank, costs))
    )


def _entries_of(found: Published, bank: RetrainingBank, known: Mapping[tuple[str, int], Any]) -> Sequence[Entry]:
    """The methods of a study: their ranks, and what its book of costs and the quality page say."""
    ranks, methods = found.ranks
    (plan,) = bank.plans
    declared, versions = found.content["declared"], found.content["machine"].get("versions", {})
    made = []
    for place, label in enumerate(method["method"] for method in methods):
        if f"{place}.{plan}" not in ranks:
            continue
        control = "control" in label
        retrained = label in declared["bank_methods"]
        runs = None if control or retrained else declared["runs"]
        spent = cost_of(found, label)
        recorded = {"epochs": known.get((_as_recorded(label), runs or 0), {}).get("epochs")}
        if retrained:  # on halves
            recorded["epochs"] = declared["fit_subsets"] * declared["recipe"]["epochs"] / 2
        cost = {**recorded, **known.get((label, runs or 0), {}), **({} if spent is None else {"seconds": spent[0]})}
        note = f"fitted on {counted(declared['fit_subsets'], 'retrained model')}" if retrained else ""
        by = f"comove {versions.get('comove', '')}".strip()
        made.append(Entry(label, doubled(ranks[f"{place}.{plan}"]), by, runs, **of_cost(cost), note=note))
    return made


def _as_recorded(label: str) -> str:
    """The method on the quality page that reads the same recorded losses: the CLD family takes no other passes."""
    if not label.startswith("cld"):
        return label
    return LABELS["cld (paper)" if "rows=epochs" in label else "cld (whitened log odds)"]


def _known_costs(results: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Epochs and memory of methods on CIFAR-10, small, as ``quality.json`` has them, by label and runs."""
    file = results / "quality.json"
    rows = read_json(file)["data"].get("cifar10", {}).get("rows", []) if file.exists() else []
    return {
        (LABELS.get(row["method"], row["method"]), row["runs"]): {"epochs": row["epochs"], "memory": row["peak memory"]}
        for row in rows
    }
