"""How far a bank is: what is trained, what is damaged, how fast it goes, and who drives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comove.errors import CorruptFileError
from comove.retraining.files import Key, ResultFiles, Results
from comove.retraining.model_index import Rows
from comove.store.lock import Owner, owner_of

__all__ = ["BankStatus", "PlanStatus", "bank_status", "models_a_minute"]


@dataclass(frozen=True)
class PlanStatus:
    """How far one plan is: its number of subsets, and models trained and asked for."""

    name: str
    subsets: int
    done: int
    total: int


@dataclass(frozen=True)
class BankStatus:
    """How far a bank is.

    Attributes:
        path: the folder or compact file.
        plans: one entry a plan; models that plans share are counted in each.
        done: different models trained.
        total: different models asked for.
        damaged: names of result files that are truncated, foreign or changed; their models count as pending.
        models_a_minute: of the latest run, by the times in its results; ``None`` where none has finished.
        owner: the living process that is training into the bank.
    """

    path: Path
    plans: tuple[PlanStatus, ...]
    done: int
    total: int
    damaged: tuple[str, ...]
    models_a_minute: float | None
    owner: Owner | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.done:,} of {self.total:,} models trained"]
        lines += [f"  {p.name}: {p.subsets:,} subsets, {p.done:,} of {p.total:,} models" for p in self.plans]
        if self.damaged:
            lines.append(f"  {len(self.damaged)} damaged results; the next run sets them aside and trains them again")
        if self.models_a_minute is not None:
            left = (self.total - self.done) / self.models_a_minute
            lines.append(f"  {self.models_a_minute:,.1f} models per minute in this run")
            lines += [f"  about {left:,.0f} minutes left at that pace"] if left >= 0.5 else []
        lines.append(f"  driven by {self.owner}" if self.owner is not None else "  no process is running it")
        return "\n".join(lines)


def bank_status(path: Path, rows: Rows, results: Results) -> BankStatus:
    """Look at a bank, or a part of one."""
    done, keys = results.done(), rows.keys()
    plans = []
    for name in rows.named:
        places = set(rows.places(name).tolist())
        own = [key in done for (row, _), key in keys.items() if row in places]
        plans.append(PlanStatus(name, len(places), sum(own), len(own)))
    wanted = set(keys.values())
    is_folder = isinstance(results, ResultFiles)
    return BankStatus(
        path,
        tuple(plans),
        len(wanted & done),
        len(wanted),
        tuple(sorted(set(results.damaged()) & {key.file for key in wanted})),
        models_a_minute(_headers(results, wanted & done)) if isinstance(results, ResultFiles) else None,
        owner_of(path) if is_folder else None,
    )


def _headers(files: ResultFiles, keys: Iterable[Key]) -> list[Mapping[str, Any]]:
    found = []
    for key in keys:
        try:
            found.append(files.header(key))
        except CorruptFileError:  # set aside, or the bank deleted, while we look
            continue
    return found


def models_a_minute(headers: Iterable[Mapping[str, Any]]) -> float | None:
    """The pace of the latest run, from the ``started`` and ``finished`` times (seconds) of its results."""
    timed = [(float(h["started"]), float(h["finished"])) for h in headers if "started" in h and "finished" in h]
    if not timed:
        return None
    latest = max(started for started, _ in timed)
    finished = [end for started, end in timed if started == latest]
    seconds = max(finished) - latest
    return 60 * len(finished) / seconds if seconds > 0 else None
