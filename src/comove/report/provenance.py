"""Where a figure comes from: what a reader needs to make it again, or to doubt it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comove.store import entries
from comove.training.sources import Source

__all__ = ["Provenance", "of_manifest", "of_run", "short_path"]

HEAD = (
    "kind",
    "format_version",
    "versions",
    "command",
    "dataset",
    "seed",
    "fingerprint",
    "parameters",
    "data_fingerprint",
)
"""Entries of a manifest that are shown elsewhere, or mean nothing to a reader."""


@dataclass(frozen=True)
class Provenance:
    """How a figure, or what it was drawn from, was made; whatever is not known stays empty.

    Attributes:
        source: the file or folder it was read from, as it was named.
        command: the command line that made it.
        seed: of what was drawn at random.
        data: name of the data set.
        fingerprint: of the data set.
        versions: of the libraries it was made with.
        settings: everything else that decides it (JSON values).
    """

    source: str = ""
    command: str | None = None
    seed: int | None = None
    data: str | None = None
    fingerprint: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "source": self.source,
            "command": self.command,
            "seed": self.seed,
            "data": self.data,
            "fingerprint": self.fingerprint,
            "versions": dict(self.versions),
            "settings": {name: _short(value) for name, value in self.settings.items()},
        }


def of_manifest(manifest: Mapping[str, Any], source: str = "") -> Provenance:
    """Read the provenance of an artefact from its manifest (of a run, a bank, a coreset curve)."""
    kinds = {"command": str, "seed": int, "dataset": dict, "data_fingerprint": str, "versions": dict}
    own = entries(manifest, source, {}, kinds)
    dataset = entries(own["dataset"] or {}, source, {}, {"name": str, "fingerprint": str})
    return Provenance(
        source,
        own["command"],
        own["seed"],
        dataset["name"],
        dataset["fingerprint"] or own["data_fingerprint"],
        own["versions"] or {},
        {name: value for name, value in manifest.items() if name not in HEAD},
    )


def of_run(source: Source) -> Provenance:
    """Read the provenance of a run, or of a trace without a run."""
    if source.run is not None:
        return of_manifest(source.run.manifest, short_path(source.run.path))
    path = source.trace.path
    own = {name: value for name, value in source.trace.manifest.items() if name != "classes"}
    return of_manifest(own, "a trace in memory" if path is None else short_path(path))


def short_path(path: Path) -> str:
    """Return a path as a report shows it: an absolute one by its last two parts, to hide the other folders."""
    return "/".join(path.parts[-2:]) if path.is_absolute() else path.as_posix()


def _short(value: Any) -> str:
    """Return a setting as a short text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        few = ", ".join(_short(part) for part in value[:8])
        return few + (f" and {len(value) - 8} more" if len(value) > 8 else "") or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
