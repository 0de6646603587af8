"""How a bank's models are trained: decided when the bank is created, and part of its identity.

A model's bits depend on its engine, so the manifest records which engine trains on a CPU and which on a GPU, and the
bank's fingerprint covers both. Banks of earlier versions have no such entry: their engine is written to
``engine.json`` when their first model is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from comove.errors import CorruptFileError, FingerprintError, InputError
from comove.retraining.files import BANK_FORMAT, HEAD, ResultFiles, bank_fingerprint, open_bank
from comove.store import MANIFEST, check_fingerprint, read_json, write_json, write_manifest
from comove.training import Engine, Engines

__all__ = ["check_same_but_engine", "engines_of", "join_engines", "planned_engines", "settle_engines"]

ENTRY = "engine"
NOTE = "engine.json"


def engines_of(identity: Mapping[str, Any], where: object) -> Engines | None:
    """Return the engines in a bank's manifest; ``None`` for a bank of an earlier version.

    Raises:
        CorruptFileError: the entry is damaged.
    """
    if ENTRY not in identity:
        return None
    try:
        return Engines.from_json(identity[ENTRY])
    except InputError as error:
        raise CorruptFileError(f"The entry {ENTRY!r} in {where} is damaged. {error}") from error


def planned_engines(folder: Path, asked: Engine | None, default: Callable[[], Engines]) -> dict[str, Any]:
    """Return the engine entry of a manifest: the requested engine, else that of the bank there, else the default.

    Empty for a bank of an earlier version, which keeps its engine in a file beside its manifest.

    Raises:
        CorruptFileError: the folder holds something else than a bank, or a damaged one.
        InputError: a bank of an earlier version has another engine.
    """
    there = (folder / MANIFEST).exists()
    found = engines_of(identity := open_bank(folder), folder / MANIFEST) if there else None
    if there and ENTRY not in identity:
        _noted(folder / NOTE, asked)
        return {}
    engines = Engines(asked, asked) if asked is not None else found or default()
    return {ENTRY: engines.to_json()}


def settle_engines(
    files: ResultFiles,
    identity: dict[str, Any],
    asked: Engine | None,
    device_type: Callable[[], str],
    default: Callable[[], Engines],
) -> Engines:
    """Return the engines to train with. The caller must hold the bank's lock.

    A requested engine replaces the bank's as long as no model has been trained: ``identity`` and ``files`` are then
    updated with the manifest. A bank of an earlier version without ``engine.json`` takes the default engine of new
    banks, which is then written to that file.

    Raises:
        InputError: another engine than the bank's, which has trained models already.
        CorruptFileError: ``engine.json`` is damaged.
    """
    own = engines_of(identity, files.folder / MANIFEST)
    if own is None:
        noted = _noted(files.folder / NOTE, asked) or default().on(device_type())
        if not (files.folder / NOTE).exists():
            write_json(files.folder / NOTE, noted.to_json())
        return Engines(noted, noted)
    if asked is None:
        return own
    used = own.cpu if own.cpu.same_bits(own.cuda) else own.on(device_type())
    if asked.same_bits(used):
        return own
    if files.done():
        raise _another(files.folder / MANIFEST, used, asked)
    engines = Engines(asked, asked)
    _replace(files, identity, engines.to_json())
    return engines


def _replace(files: ResultFiles, identity: dict[str, Any], engines: Mapping[str, Any]) -> None:
    """Write the manifest again with these engines. No model may have been trained with other engines."""
    content = {**{key: value for key, value in identity.items() if key not in HEAD}, ENTRY: engines}
    fingerprint = bank_fingerprint(content)
    write_manifest(files.folder, "bank", BANK_FORMAT, {**content, "fingerprint": fingerprint})
    identity.update(open_bank(files.folder))
    files.renew(fingerprint)


def _noted(file: Path, asked: Engine | None) -> Engine | None:
    """Return the engine in ``engine.json``; without that file, write the requested engine to it and return that."""
    if not file.exists():
        if asked is not None:
            write_json(file, asked.to_json())
        return asked
    try:
        found = Engine.from_json(read_json(file))
    except (CorruptFileError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{file} is damaged ({error}). Delete it and run again: it is chosen anew, and what is trained stays."
        ) from error
    if asked is not None and not asked.same_bits(found):
        raise _another(file, found, asked)
    return found


def _another(where: Path, found: Engine, asked: Engine) -> InputError:
    return InputError(
        f"{where} says that this bank's models are trained {found.kind}, {found.group} at a time; leave out "
        f"engine=, or make the bank in a new folder to train them {asked.kind}, {asked.group} at a time."
    )


def join_engines(files: ResultFiles, identity: dict[str, Any], theirs: Mapping[str, Any], where: object) -> None:
    """Refuse to join banks that differ; a bank without trained models adopts the other's engine.

    Raises:
        FingerprintError: another bank, or one whose models are trained with another engine.
    """
    found, own = (one.get(ENTRY) for one in (theirs, identity))
    if found != own and _but_engine(identity) == _but_engine(theirs):
        if found is not None and own is not None and not files.done():
            _replace(files, identity, found)
            return
        found, own = (entry or "the one in engine.json, as of an older comove" for entry in (found, own))
        raise FingerprintError(
            f"{where} differs from this bank in how models are trained, on which their bits depend: engine {found} "
            f"there, {own} here. Make one of the two anew, with create(..., engine=) as the other has it."
        )
    expected = str(identity["fingerprint"])
    check_fingerprint("bank", found=str(theirs["fingerprint"]), expected=expected, where=where)


def check_same_but_engine(ours: Mapping[str, Any], found: Mapping[str, Any], where: object) -> None:
    """Refuse a manifest that differs from the one that was opened in something else than the engine.

    Raises:
        FingerprintError: another bank.
    """
    if _but_engine(ours) != _but_engine(found):
        check_fingerprint("bank", found=str(found["fingerprint"]), expected=str(ours["fingerprint"]), where=where)


def _but_engine(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a bank's identity without its engine and without the source of its data."""
    kept = {key: value for key, value in identity.items() if key not in (*HEAD, ENTRY)}
    return {**kept, "dataset": {key: value for key, value in kept["dataset"].items() if key != "source"}}
