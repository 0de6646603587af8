"""How a bank's models are trained: decided when the bank is made, and part of what it is.

A model's bits depend on its engine, so the manifest says which one trains on a processor and which on a GPU, and the
bank's fingerprint covers it. Banks of before have no such entry: theirs is in ``engine.json`` once they have trained.
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
    """The engines in a bank's manifest; ``None`` in one of before.

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
    """The entry of a bank's identity: what was asked for, else what the bank in the folder has, else the default.

    Nothing for a bank of before, which keeps its engine beside its manifest.

    Raises:
        CorruptFileError: the folder holds something else than a bank, or a damaged one.
        InputError: another engine than that of a bank of before.
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
    """The engines to train with; for the driver, who holds the bank's lock.

    An engine that is asked for replaces the bank's as long as nothing has been trained: ``identity`` and ``files`` then
    change with the manifest. A bank of before without a note trains as a new one would, and notes it.

    Raises:
        InputError: another engine than the bank's, which has trained models already.
        CorruptFileError: a damaged note.
    """
    own = engines_of(identity, files.folder / MANIFEST)
    if own is None:
        noted = _noted(files.folder / NOTE, asked) or default().on(device_type())
        if not (files.folder / NOTE).exists():
            write_json(files.folder / NOTE, noted.to_json())
        return Engines(noted, noted)
    if asked is None or asked.same_bits(own.cpu if own.cpu.same_bits(own.cuda) else own.on(device_type())):
        return own
    if files.done():
        one = own.cpu if own.cpu.same_bits(own.cuda) else own.on(device_type())
        raise _another(files.folder / MANIFEST, one, asked)
    engines = Engines(asked, asked)
    _replace(files, identity, engines.to_json())
    return engines


def _replace(files: ResultFiles, identity: dict[str, Any], engines: Mapping[str, Any]) -> None:
    """Write the manifest anew, of a bank with these engines; no model of another may be there."""
    content = {**{key: value for key, value in identity.items() if key not in HEAD}, ENTRY: engines}
    fingerprint = bank_fingerprint(content)
    write_manifest(files.folder, "bank", BANK_FORMAT, {**content, "fingerprint": fingerprint})
    identity.update(open_bank(files.folder))
    files.renew(fingerprint)


def _noted(file: Path, asked: Engine | None) -> Engine | None:
    """The engine that a bank of before has noted, or the one asked for when it has none yet, which is noted then."""
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
    """Refuse to join banks that differ; one that has trained nothing takes over the other's engine.

    Raises:
        FingerprintError: another bank, or one whose models are trained otherwise.
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
    """What a bank is, without its engine and without where its data was found."""
    kept = {key: value for key, value in identity.items() if key not in (*HEAD, ENTRY)}
    return {**kept, "dataset": {key: value for key, value in kept["dataset"].items() if key != "source"}}
