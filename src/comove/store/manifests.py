"""Manifests and fingerprints: what an artefact is, what it was made from, and refusing what does not match."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.errors import CorruptFileError, FingerprintError, InputError, some
from comove.store.documents import REMEDY, as_read, entries, read_document, write_json
from comove.store.files import is_empty, readable, set_aside

__all__ = [
    "MANIFEST",
    "check_fingerprint",
    "check_kind",
    "claim_cache",
    "claim_folder",
    "command_line",
    "continue_folder",
    "digest",
    "open_manifest",
    "versions",
    "write_manifest",
]

MANIFEST = "manifest.json"
HEAD = ("kind", "format_version", "versions", "command", "fingerprint", "continues")
"""Entries of a manifest that its fingerprint does not count."""
CHECKED_FROM = {
    "run": 2,
    "trace": 2,
    "scores": 3,
    "partial scores": 2,
    "trak-features": 2,
    "ekfac-factors": 2,
    "gradient-index": 1,
    "coreset": 2,
    "coresets": 2,
    "curve": 2,
    "brittleness": 2,
    "counterfactual": 2,
    "suspicion": 2,
}
"""By kind, the format version from which everything carries checksums: then one that is missing was taken away."""
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
    """How this process was called, without the folder of the program, quoted as a shell reads it: for manifests.

    A long one ends after a whole word, with " ...".
    """
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c") else "python")
    name = program.parent.name if program.name == "__main__.py" else program.name  # python -m comove
    told = ""
    for word in (name, *sys.argv[1:]):
        longer = f"{told} {shlex.quote(readable(word))}".strip()
        if len(longer) > LONGEST_COMMAND:
            return f"{told} ..."
        told = longer
    return told


def digest(*parts: npt.NDArray[Any] | str | Mapping[str, Any]) -> str:
    """Return a 128-bit BLAKE2b fingerprint of arrays (dtype, shape and bytes), texts and JSON objects."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if part.size else b"")
        else:
            text = part if isinstance(part, str) else json.dumps(part, sort_keys=True, default=str)
            state.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
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
    """Write the manifest of a new artefact with its fingerprint, or check that the folder holds the same artefact.

    The fingerprint covers all of ``content`` except the location of a data set (``dataset.source``): data may move.

    Returns:
        The manifest in the folder.

    Raises:
        InputError: the folder holds files that comove did not write.
        FingerprintError: it holds an artefact with another fingerprint; the message shows both and what differs.
    """
    counted = _counted(as_read(content))
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


def continue_folder(folder: Path, kind: str, format_version: int, content: Mapping[str, Any]) -> None:
    """Write the manifest of an artefact that continues the one in the folder, whose files are kept unchanged.

    The fingerprint is that of the same artefact made without interruption. Fingerprints of the artefacts that it
    continues are listed in ``continues``, because the files in the folder refer to them.
    """
    before = open_manifest(folder, kind, format_version)
    counted = _counted(as_read(content))
    continued = [*before.get("continues", []), before["fingerprint"]]
    write_manifest(folder, kind, format_version, {**content, "fingerprint": digest(counted), "continues": continued})


def claim_cache(folder: Path, kind: str, format_version: int, content: Mapping[str, Any]) -> None:
    """Claim an existing folder of a cache; a damaged one is renamed, with a warning, since it can be computed again.

    Raises:
        FingerprintError: it holds a cache with another fingerprint.
    """
    try:
        if (folder / MANIFEST).exists():
            open_manifest(folder, kind, format_version)
    except (CorruptFileError, FingerprintError) as error:
        aside = set_aside(folder)
        warnings.warn(f"{error} The folder is set aside as {aside}, and all in it is computed again.", stacklevel=4)
        folder.mkdir()
    claim_folder(folder, kind, format_version, content)


def _counted(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the fingerprint of a manifest is of."""
    return {key: _without_source(value) for key, value in content.items() if key not in HEAD}


def _without_source(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "source"} if isinstance(value, Mapping) else value


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    parts = []
    for key, now in asked.items():
        before = found.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            parts += [_change(f"{key}.{name}", before.get(name), now.get(name)) for name in {**before, **now}]
        else:
            parts.append(_change(key, before, now))
    return "; ".join(filter(None, parts)) or "entries written by another version differ"


def _change(name: str, before: Any, now: Any) -> str:
    """What became of one entry, ``""`` for nothing; of long lists, what follows their common beginning."""
    if before == now:
        return ""
    if not (isinstance(before, list) and isinstance(now, list) and max(len(before), len(now)) > LONGEST_LIST):
        was, is_now = ("not given" if value is None else value for value in (before, now))
        return f"{name} was {was}, now {is_now}"
    shorter = min(len(before), len(now))
    start = next((i for i in range(shorter) if before[i] != now[i]), shorter)
    tails = [some(values[start:], LONGEST_LIST) or "none" for values in (before, now)]
    counts = f"{name} was {len(before):,} values, now {len(now):,}"
    return f"{counts}; the first {start:,} agree, then it was {tails[0]}, now {tails[1]}"


def open_manifest(folder: Path, kind: str, format_version: int) -> dict[str, Any]:
    """Read ``manifest.json`` and check that it is of this ``kind``, of a format this version reads, and unchanged.

    Raises:
        CorruptFileError: no such folder, not one of ours, another kind of artefact, a newer format, or a manifest
            that has changed since it was written.
        FingerprintError: what was changed is what the artefact was made from; the message shows both fingerprints.
    """
    if not folder.is_dir():
        raise CorruptFileError(f"{folder} is not a folder; a comove {kind} is a folder with a {MANIFEST}.")
    file = folder / MANIFEST
    manifest, intact = read_document(file)
    check_kind(manifest, kind, format_version, folder, checked=intact is not None)
    stated = manifest.get("fingerprint")
    if stated is not None and stated != (found := digest(_counted(manifest))):
        raise FingerprintError(
            f"{file} has changed since it was written: it states the fingerprint {stated}, and its entries have "
            f"{found}. What lies beside it may be made otherwise than it says; restore it from a copy."
        )
    if intact is False:
        raise CorruptFileError(f"{file} has changed since it was written: {REMEDY}")
    return manifest


def check_kind(
    manifest: Mapping[str, Any], kind: str, format_version: int, where: object, *, checked: bool | None = None
) -> None:
    """Check the ``kind`` and ``format_version`` entries of a manifest or of a file's metadata.

    Args:
        manifest: these entries.
        kind: what must be there.
        format_version: the highest that can be read.
        where: for messages.
        checked: whether it came with checksums; by default whether file metadata has any.

    Raises:
        CorruptFileError: another kind of artefact, a format newer than this version of comove reads, or checksums
            that are gone.
    """
    found = manifest.get("kind")
    if found != f"comove/{kind}":
        told = repr("something foreign" if found is None else found)[:60]
        raise CorruptFileError(f"{where} holds {told}, not a comove {kind}.")
    version = entries(manifest, where, {"format_version": int})["format_version"]
    if not 1 <= version <= format_version:
        raise CorruptFileError(
            f"{where} has format version {version!r}; this comove reads up to {format_version}. Update comove."
        )
    if not (getattr(manifest, "seal", "") if checked is None else checked) and version >= CHECKED_FROM.get(
        kind, format_version + 1
    ):
        raise CorruptFileError(f"{where} has lost its checksums, so it has changed since it was written: {REMEDY}")
