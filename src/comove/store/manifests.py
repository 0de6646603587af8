"""Manifests and fingerprints: what an artefact is, what it was made from, and refusing what does not match."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError, FingerprintError, InputError, some
from comove.store.files import is_empty, read_json, write_json

__all__ = [
    "MANIFEST",
    "check_fingerprint",
    "check_kind",
    "claim_folder",
    "command_line",
    "digest",
    "open_manifest",
    "versions",
    "write_manifest",
]

MANIFEST = "manifest.json"
LONGEST_COMMAND = 2000
LONGEST_LIST = 8
"""Longer lists, such as ids, are told in part."""


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for manifests."""
    names = ("comove", "torch", "numpy", "scipy", "torchvision", "traker")
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def command_line() -> str:
    """How this process was called, without the folder of the program: for manifests."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] not in ("", "-c") else "python"
    return shlex.join([name, *sys.argv[1:]])[:LONGEST_COMMAND]


def digest(*parts: npt.NDArray[Any] | str | Mapping[str, Any]) -> str:
    """Return a 128-bit BLAKE2b fingerprint of arrays (dtype, shape and bytes), texts and JSON objects."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if part.size else b"")
        else:
            text = part if isinstance(part, str) else json.dumps(part, sort_keys=True, default=str)
            state.update(f"{len(text)}:{text}".encode())
    return state.hexdigest()


def check_fingerprint(what: str, *, found: str, expected: str, where: object) -> None:
    """Refuse an artefact made from something else.

    Raises:
        FingerprintError: the fingerprints differ; the message shows both.
    """
    if found != expected:
        raise FingerprintError(
            f"{where} was made with another {what}: its fingerprint is {found}, this {what} has {expected}. "
            f"Use the {what} it was made with, or another output folder."
        )


def write_manifest(folder: Path, kind: str, format_version: int, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: kind, format version, versions of libraries, the command that made it, ``content``."""
    made = {"versions": versions(), "command": command_line()}
    head = {"kind": f"comove/{kind}", "format_version": format_version, **made}
    write_json(folder / MANIFEST, {**head, **content})


def claim_folder(folder: Path, kind: str, format_version: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new artefact with its fingerprint, or check that the folder holds this very one.

    Everything in ``content`` counts, but for where a data set was found (``dataset.source``): data may move.

    Returns:
        The manifest in the folder.

    Raises:
        InputError: the folder holds something else than artefacts of ours.
        FingerprintError: it holds one made otherwise; the message shows both fingerprints and what differs.
    """
    as_json = json.loads(json.dumps(content))  # tuples become lists, as in what is read back
    counted = {key: _without_source(value) for key, value in as_json.items()}
    fingerprint = digest(counted)
    if not (folder / MANIFEST).exists():
        if not is_empty(folder):
            raise InputError(f"{folder} is not empty and holds no {kind}; choose a new folder.")
        write_manifest(folder, kind, format_version, {**content, "fingerprint": fingerprint})
    found = open_manifest(folder, kind, format_version)
    if found.get("fingerprint") != fingerprint:
        before = {key: _without_source(found.get(key)) for key in content}
        raise FingerprintError(
            f"{folder} holds another {kind} (fingerprint {found.get('fingerprint')}, asked for {fingerprint}): "
            f"{_differences(before, counted)}. Use another folder, or delete this one."
        )
    return found


def _without_source(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "source"} if isinstance(value, Mapping) else value


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    parts = []
    for key, now in asked.items():
        before = found.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            parts += [_change(f"{key}.{name}", before.get(name), now[name]) for name in now]
        else:
            parts.append(_change(key, before, now))
    return "; ".join(filter(None, parts)) or "entries written by another version differ"


def _change(name: str, before: Any, now: Any) -> str:
    """What became of one entry, ``""`` for nothing; of long lists, what follows their common beginning."""
    if before == now:
        return ""
    if not (isinstance(before, list) and isinstance(now, list) and max(len(before), len(now)) > LONGEST_LIST):
        return f"{name} was {before}, now {now}"
    shorter = min(len(before), len(now))
    start = next((i for i in range(shorter) if before[i] != now[i]), shorter)
    tails = [some(values[start:], LONGEST_LIST) or "none" for values in (before, now)]
    counts = f"{name} was {len(before):,} values, now {len(now):,}"
    return f"{counts}; the first {start:,} agree, then it was {tails[0]}, now {tails[1]}"


def open_manifest(folder: Path, kind: str, format_version: int) -> dict[str, Any]:
    """Read ``manifest.json`` and check that it is of this ``kind`` and of a format this version reads.

    Raises:
        CorruptFileError: no such folder, not one of ours, another kind of artefact, or a newer format.
    """
    if not folder.is_dir():
        raise CorruptFileError(f"{folder} is not a folder; a comove {kind} is a folder with a {MANIFEST}.")
    manifest = read_json(folder / MANIFEST)
    check_kind(manifest, kind, format_version, folder)
    return manifest


def check_kind(manifest: Mapping[str, Any], kind: str, format_version: int, where: object) -> None:
    """Check the ``kind`` and ``format_version`` entries of a manifest or of a file's metadata.

    Raises:
        CorruptFileError: another kind of artefact, or a format newer than this version of comove reads.
    """
    if manifest.get("kind") != f"comove/{kind}":
        raise CorruptFileError(f"{where} holds {manifest.get('kind', 'something foreign')!r}, not a comove {kind}.")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > format_version:
        raise CorruptFileError(
            f"{where} has format version {version!r}; this comove reads up to {format_version}. Update comove."
        )
