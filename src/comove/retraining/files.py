"""What a retraining bank is on disk, and reading it without trusting it.

A result is named by what was trained: the fingerprint of the subset's sorted ids, and the number of the seed. So
subsets that coincide are trained once, whichever plan asks for them, and banks made apart are joined by copying files.

Shape legend: C subsets, N train, Q queries, K classes.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from comove.checks import whole_number
from comove.data import Ids
from comove.errors import CorruptFileError, FingerprintError, InputError, InputTypeError
from comove.models import ModelSpec
from comove.retraining.contents import OWN, Arrays, Contents, contents_of, is_own
from comove.retraining.subsets import SubsetPlan
from comove.store import (
    MANIFEST,
    TEMPORARY,
    check_file,
    digest,
    entries,
    open_manifest,
    read_checked,
    read_header,
    understanding,
    write_checked,
    write_sealed,
)
from comove.store.lock import lives
from comove.training import Recipe

__all__ = [
    "BANK_FORMAT",
    "HEAD",
    "SAME_SEED",
    "Key",
    "ResultFiles",
    "Results",
    "StoredPlan",
    "bank_fingerprint",
    "checked_identity",
    "complete_examples",
    "keep_plan",
    "open_bank",
    "plan_files",
    "planned",
    "read_examples",
    "read_plan",
    "set_aside",
    "store_plan",
]

BANK_FORMAT = 2
EXAMPLES, PLANS, RESULTS, WEIGHTS = "examples.safetensors", "plans", "results", "weights"
EXAMPLE_ARRAYS = ("train_ids", "train_labels", "query_ids", "query_labels")
SUFFIX = ".safetensors"
DAMAGED = ".damaged"
_WRITER = re.compile(rf"\.(\d+)-[0-9a-f]+{re.escape(TEMPORARY)}$")
_NAME = re.compile(r"([0-9a-f]{32})-(\d{3,})\.safetensors")


class Key(NamedTuple):
    """What one model was trained on: the fingerprint of a subset's ids, and which of its seeds (0, 1, ...)."""

    subset: str
    number: int

    @property
    def file(self) -> str:
        """The name of its result file."""
        return f"{self.subset}-{self.number:03d}{SUFFIX}"

    @classmethod
    def of_file(cls, name: str) -> Key | None:
        """The key that a result file's name stands for, ``None`` for any other file."""
        found = _NAME.fullmatch(name)
        key = None if found is None else cls(found[1], int(found[2]))
        return key if key is not None and key.file == name else None


class Results(Protocol):
    """Where a bank's results come from: a folder of small files, or one compact file."""

    def done(self) -> set[Key]:
        """The models whose results are there, and whole."""

    def damaged(self) -> list[str]:
        """Names of result files that are not what they should be."""

    def arrays(self, key: Key) -> Arrays | None:
        """What one model's result holds; ``None`` where it is missing or damaged."""

    def names(self) -> tuple[str, ...] | None:
        """The names of the outputs that every result has; ``None`` where none is there."""

    def has_weights(self, key: Key) -> bool:
        """Whether the model's weights are there."""


# --- manifest and examples ------------------------------------------------------------------------------------------


def open_bank(folder: Path) -> dict[str, Any]:
    """Read the manifest of a bank.

    Raises:
        CorruptFileError: not a bank, or one of an earlier format.
    """
    manifest = open_manifest(folder, "bank", BANK_FORMAT)
    if manifest["format_version"] < BANK_FORMAT:
        raise CorruptFileError(
            f"{folder} is a bank made by an older comove (format {manifest['format_version']}, now {BANK_FORMAT}), "
            "whose results are named otherwise and cannot be used: make it again in a new folder."
        )
    stated, found = manifest.get("fingerprint"), bank_fingerprint(manifest)
    if stated != found:  # one that is absent, too
        raise CorruptFileError(
            f"{folder / MANIFEST} has changed since it was written: it states the fingerprint {stated}, its entries "
            f"have {found}. Restore it from a copy, or make the bank in a new folder."
        )
    return checked_identity(manifest, folder / MANIFEST)


SAME_SEED = "same_seed"
"""The entry of a bank whose models share initial weights and batches; others have none."""
HEAD = ("kind", "format_version", "versions", "command", "fingerprint")
"""Entries of a manifest that say nothing of what a bank is."""


def bank_fingerprint(manifest: Mapping[str, Any]) -> str:
    """The fingerprint of a bank's manifest: of all that the bank is, as :func:`comove.store.claim_folder` has it."""
    content = {name: value for name, value in manifest.items() if name not in HEAD}
    return digest({name: _without_source(value) for name, value in content.items()})


def _without_source(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "source"} if isinstance(value, Mapping) else value


def checked_identity(identity: Mapping[str, Any], where: object) -> dict[str, Any]:
    """What a bank says of itself, each entry checked to be what it must be.

    Raises:
        CorruptFileError: one is missing, or something else.
    """
    kinds = {"dataset": dict, "query_ids": list[int], "classes": list[str], "fingerprint": str}
    own = is_own(identity)
    entries(identity, where, {**kinds, **({OWN: dict} if own else {"model": dict, "recipe": dict, "seed": int})})
    entries(identity["dataset"], f"{where}: dataset", {"name": str, "source": dict, "fingerprint": str})
    if own:
        entries(identity[OWN], f"{where}: {OWN}", {"name": str, "lower": list[str]})
        with understanding(where):
            contents_of(identity)
        return dict(identity)
    entries(identity, where, {}, {SAME_SEED: bool})
    with understanding(where):
        ModelSpec.from_json(identity["model"])
        Recipe.from_json(identity["recipe"])
    return dict(identity)


def complete_examples(folder: Path, arrays: Mapping[str, npt.NDArray[Any]], data: str) -> None:
    """Write the file of ids and labels, unless it is there and whole; ``data`` is the data set's fingerprint."""
    file = folder / EXAMPLES
    try:
        found, header = read_checked(file)
    except CorruptFileError:
        found, header = {}, {}
    same = found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    if not same or header.get("dataset") != data:
        write_checked(file, arrays, {"dataset": data})


def read_examples(folder: Path, identity: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Read the ids and labels of the bank with this manifest.

    Raises:
        CorruptFileError: truncated, foreign or changed; or of other data or queries than the bank's.
    """
    file, data = folder / EXAMPLES, identity["dataset"]["fingerprint"]
    arrays, header = read_checked(file)
    _check_data(header, data, file)
    optional = ("train_labels", "query_labels") if is_own(identity) else ()
    if lacking := [name for name in EXAMPLE_ARRAYS if name not in arrays and name not in optional]:
        raise CorruptFileError(f"{file} lacks {', '.join(lacking)}. {_AGAIN}")
    if arrays["query_ids"].tolist() != identity["query_ids"]:
        raise CorruptFileError(f"{file} holds other queries than this bank's: it belongs to another bank. {_AGAIN}")
    for side in ("train", "query"):
        if f"{side}_labels" in arrays and arrays[f"{side}_labels"].shape != arrays[f"{side}_ids"].shape:
            raise CorruptFileError(f"{file} does not hold one label for each of its {side} ids. {_AGAIN}")
    return arrays


def _check_data(header: Mapping[str, Any], data: str, file: Path) -> None:
    """Refuse a file that says it is of other data; those of earlier versions say nothing."""
    found = header.get("dataset")
    if found not in (None, data):
        raise CorruptFileError(
            f"{file} is of other data (fingerprint {found}) than this bank's ({data}): it belongs to another bank. "
            f"{_AGAIN}"
        )


_AGAIN = "The call of RetrainingBank.create (or the command) that made the bank writes it anew; no result is lost."


# --- plans ----------------------------------------------------------------------------------------------------------


class StoredPlan(NamedTuple):
    """A plan as a bank keeps it: masks (C, N), how many seeds each subset was asked for (C,), and where it is from."""

    name: str
    masks: npt.NDArray[np.bool_]
    seeds: npt.NDArray[np.int64]
    keep_weights: bool
    plan: Mapping[str, Any]


def plan_files(folder: Path) -> list[Path]:
    """The files of all plans, by name."""
    return sorted(file for file in (folder / PLANS).glob(f"*{SUFFIX}") if not file.name.startswith("."))


def read_plan(file: Path, n_train: int, data: str) -> StoredPlan:
    """Read a plan.

    Args:
        file: its file.
        n_train: number of training examples.
        data: the fingerprint of the bank's data set.

    Raises:
        CorruptFileError: truncated, foreign or changed; of another number of examples, other data, or renamed.
    """
    arrays, header = read_checked(file, ["masks", "seeds"])
    packed, seeds = arrays["masks"], arrays["seeds"]
    entries(header, file, {"n_train": int, "keep_weights": bool, "plan": dict})
    typed = packed.dtype == np.uint8 and seeds.dtype == np.int64
    if not typed or packed.ndim != 2 or seeds.shape != packed.shape[:1] or not seeds.size or seeds.min() < 1:
        raise CorruptFileError(f"{file} does not hold masks (C, N), as bits, and seeds (C,) from 1 on.")
    if header.get("n_train") != n_train or packed.shape[1] != (n_train + 7) // 8:
        raise CorruptFileError(f"{file} is a plan for {header.get('n_train')} examples; this bank has {n_train}.")
    _check_data(header, data, file)
    if header.get("name") not in (None, file.stem):
        raise CorruptFileError(f"{file} holds the plan {header['name']}: it was renamed or swapped. {_AGAIN}")
    masks_CN = np.unpackbits(packed, axis=1, count=n_train).view(np.bool_)
    return StoredPlan(file.stem, masks_CN, arrays["seeds"], header["keep_weights"], header["plan"])


def store_plan(folder: Path, asked: StoredPlan, data: str) -> None:
    """Write a plan, or extend what is there by it: subsets and seeds are added, never taken away.

    ``data`` is the fingerprint of the data set.

    Raises:
        FingerprintError: the plan of that name has other subsets.
        CorruptFileError: the file there is damaged.
    """
    file = folder / PLANS / f"{asked.name}{SUFFIX}"
    wanted = asked
    if file.exists():
        found = read_plan(file, asked.masks.shape[1], data)
        both = min(len(found.masks), len(asked.masks))
        if not np.array_equal(found.masks[:both], asked.masks[:both]):
            raise FingerprintError(f"{file} holds other subsets than this plan of the same name: make a new bank.")
        longer, shorter = (asked, found) if len(asked.masks) > both else (found, asked)
        seeds = longer.seeds.copy()
        seeds[:both] = np.maximum(seeds[:both], shorter.seeds[:both])
        wanted = StoredPlan(asked.name, longer.masks, seeds, asked.keep_weights or found.keep_weights, longer.plan)
        if np.array_equal(seeds, found.seeds) and wanted.keep_weights == found.keep_weights:
            return
    header = {"plan": wanted.plan, "keep_weights": wanted.keep_weights, "n_train": wanted.masks.shape[1]}
    header |= {"name": wanted.name, "dataset": data}
    arrays: dict[str, npt.NDArray[Any]] = {"masks": np.packbits(wanted.masks, axis=1), "seeds": wanted.seeds}
    write_checked(file, arrays, {**header, "count": len(wanted.masks), "seeds": int(wanted.seeds.max())})


def keep_plan(folder: Path, plan: StoredPlan, data: str) -> None:
    """As :func:`store_plan`, but a damaged plan is set aside, with a warning, and written anew."""
    try:
        store_plan(folder, plan, data)
    except CorruptFileError:
        aside = set_aside(folder / PLANS / f"{plan.name}{SUFFIX}")
        warnings.warn(
            f"The plan {plan.name} in {folder} was damaged: it is set aside as {aside.name} and written again as it "
            "was asked for here. If it had more subsets or seeds before, ask for those again; no result is lost.",
            stacklevel=3,
        )
        store_plan(folder, plan, data)


def planned(
    given: SubsetPlan | Sequence[SubsetPlan], train_ids: Ids, seeds: int, keep_weights: bool
) -> list[StoredPlan]:
    """Work out the subsets of one plan or several, with ``seeds`` models each.

    Raises:
        InputError: no plan, no seed, or what a plan cannot do with these examples.
        InputTypeError: ``seeds`` is no whole number, or something else than a plan is given.
    """
    several = list(given) if isinstance(given, Sequence) else [given]
    seeds = whole_number(seeds, "seeds", 1)
    if not several:
        raise InputError("A bank needs at least one plan of subsets, got none.")
    if wrong := [plan for plan in several if not isinstance(plan, SubsetPlan)]:
        raise InputTypeError(f"subsets must be plans, such as RandomSubsets(count=50), got {wrong[0]!r:.60}.")
    found = []
    for plan in {plan.name: plan for plan in several}.values():
        masks_CN = plan.masks_for(train_ids)
        found.append(StoredPlan(plan.name, masks_CN, np.full(len(masks_CN), seeds), keep_weights, plan.to_json()))
    return found


# --- results --------------------------------------------------------------------------------------------------------


def set_aside(file: Path) -> Path:
    """Rename a damaged file, so that it is out of the way and can still be examined."""
    aside = file.with_name(file.name + DAMAGED)
    file.replace(aside)
    return aside


class ResultFiles:
    """The result files of a bank. Each is read and checked once, and again when it changes.

    Args:
        folder: the bank's.
        fingerprint: the bank's; results carry it, so that a file from another bank is known.
        contents: what a result holds.
    """

    def __init__(self, folder: Path, fingerprint: str, contents: Contents) -> None:
        self.folder, self.fingerprint, self.contents = folder, fingerprint, contents
        self._outputs: tuple[str, ...] | None = None
        self._checked: dict[str, tuple[tuple[int, int, int], bool]] = {}
        self._weights: dict[str, tuple[tuple[int, int, int], bool]] = {}

    @classmethod
    def of(cls, folder: Path, identity: Mapping[str, Any]) -> ResultFiles:
        """Those of the bank with this manifest."""
        return cls(folder, str(identity["fingerprint"]), contents_of(identity))

    def renew(self, fingerprint: str) -> None:
        """Go by another fingerprint from now on: the bank's manifest has changed."""
        self.fingerprint = fingerprint
        self._checked.clear()
        self._weights.clear()

    def file(self, key: Key) -> Path:
        """Where a result is."""
        return self.folder / RESULTS / key.file

    def weights_file(self, key: Key) -> Path:
        """Where a model's weights are, if kept."""
        return self.folder / WEIGHTS / key.file

    def has_weights(self, key: Key) -> bool:
        """Whether a model's weights are there and its own. Their values are not read; see :meth:`weights_are_whole`."""
        file = self.weights_file(key)
        try:
            signature = _signature(file.stat())
            known = self._weights.get(key.file)
            if known is None or known[0] != signature:
                known = self._weights[key.file] = signature, self._names(key, read_header(file)[1])
        except (FileNotFoundError, CorruptFileError):
            return False
        return known[1]

    def weights_are_whole(self, key: Key) -> bool:
        """Whether a model's weights are there, its own, and every bit of them as it was written."""
        try:
            check_file(self.weights_file(key))
        except CorruptFileError:
            return False
        return self.has_weights(key)

    def _names(self, key: Key, header: Mapping[str, Any]) -> bool:
        """Whether a file of weights is of this bank and model; those of earlier versions do not say."""
        named = tuple(header.get(name) for name in ("bank", "subset", "number"))
        return named in ((None, None, None), (self.fingerprint, key.subset, key.number))

    def subsets(self) -> set[str]:
        """The fingerprints of the subsets that results are of, by the files' names alone."""
        found = map(Key.of_file, (file.name for file in (self.folder / RESULTS).glob(f"*{SUFFIX}")))
        return {key.subset for key in found if key is not None}

    def done(self) -> set[Key]:
        """The models whose result files are there, and whole."""
        return {key for key, whole in self._scan() if whole}

    def damaged(self) -> list[str]:
        """Names of the files that are truncated, foreign or changed."""
        return sorted(key.file for key, whole in self._scan() if not whole)

    def arrays(self, key: Key) -> Arrays | None:
        """What one model's result holds; ``None`` where it is missing or damaged."""
        file = self.file(key)
        try:
            signature = _signature(file.stat())
        except FileNotFoundError:
            return None
        arrays = self._read(key)
        self._checked[key.file] = signature, arrays is not None
        return arrays

    def first(self) -> Arrays | None:
        """The first whole result by name, ``None`` where there is none."""
        names = sorted(file.name for file in (self.folder / RESULTS).glob(f"*{SUFFIX}"))
        keys = (key for name in names if (key := Key.of_file(name)) is not None)
        return next((arrays for key in keys if (arrays := self.arrays(key)) is not None), None)

    def header(self, key: Key) -> Mapping[str, Any]:
        """When, where and how a finished model was trained."""
        return read_header(self.file(key))[1]

    def names(self) -> tuple[str, ...] | None:
        """The names of the outputs that every result has: as declared, else those of the first; ``None``: not known."""
        if self.contents.names is not None:
            return self.contents.names
        if self._outputs is None and (first := self.first()) is not None:
            self._outputs = tuple(sorted(first))
        return self._outputs

    def write(self, key: Key, arrays: Arrays, notes: Mapping[str, Any]) -> None:
        """Write a result atomically."""
        write_checked(self.file(key), arrays, {**self._head(key), **notes})

    def write_weights(self, key: Key, content: bytes) -> None:
        """Write a model's weights atomically, as safetensors has them in memory."""
        write_sealed(self.weights_file(key), content, self._head(key))

    def _head(self, key: Key) -> dict[str, Any]:
        return {"bank": self.fingerprint, "subset": key.subset, "number": key.number}

    def damaged_weights(self) -> list[Key]:
        """The models whose weights are there, but damaged or another model's; all that are there are read."""
        files = (self.folder / WEIGHTS).glob(f"*{SUFFIX}")
        keys = sorted(key for file in files if (key := Key.of_file(file.name)) is not None)
        return [key for key in keys if not self.weights_are_whole(key)]

    def set_aside_damaged(self) -> list[str]:
        """Rename the damaged files, results and weights; returns their names."""
        names, weights = self.damaged(), self.damaged_weights()
        for name in names:
            set_aside(self.folder / RESULTS / name)
        for key in weights:
            set_aside(self.weights_file(key))
        return [*names, *(f"{WEIGHTS}/{key.file}" for key in weights)]

    def clean(self) -> None:
        """Remove what killed writes left behind; for the driver, who alone writes results."""
        for folder in (RESULTS, WEIGHTS):
            for file in (self.folder / folder).glob(f".*{TEMPORARY}"):
                file.unlink(missing_ok=True)
        for folder in (".", PLANS):  # where another process may just be planning more
            for file in (self.folder / folder).glob(f".*{TEMPORARY}"):
                writer = _WRITER.search(file.name)
                if writer is None or int(writer[1]) == os.getpid() or not lives(int(writer[1])):
                    file.unlink(missing_ok=True)

    def _scan(self) -> Iterator[tuple[Key, bool]]:
        try:
            entries = list(os.scandir(self.folder / RESULTS))
        except FileNotFoundError:
            return
        for entry in entries:
            key = Key.of_file(entry.name)
            if key is None:
                continue
            try:
                signature = _signature(entry.stat())
            except FileNotFoundError:  # set aside in this moment
                continue
            known = self._checked.get(entry.name)
            if known is None or known[0] != signature:
                known = self._checked[entry.name] = signature, self._read(key) is not None
            yield key, known[1]

    def _read(self, key: Key) -> Arrays | None:
        try:
            arrays, header = read_checked(self.file(key))
        except CorruptFileError:
            return None
        own = (self.fingerprint, key.subset, key.number)
        if (header.get("bank"), header.get("subset"), header.get("number")) != own:
            return None
        return arrays if self.contents.whole(arrays) else None


def _signature(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
