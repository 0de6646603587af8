"""Examples with stable integer ids, and their splits; the built-in data sets are in :mod:`comove.data.builtin`.

An :class:`ExampleSet` is any map-style dataset of (input, label) whose examples carry int64 ids that survive
subsetting, shuffling and removal. Inputs are held whole in one tensor when they fit, raw (8-bit images stay 8-bit);
normalisation happens on the device, when a batch is made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from comove.checks import (
    as_array,
    as_ids,
    as_labels,
    as_tensor,
    check_seed,
    check_text,
    given_ids,
    real_number,
    whole_number,
)
from comove.data.batches import Batch, batch_size, map_tensors, rows_of, tensors_of
from comove.errors import ComoveError, InputError, InputTypeError, first_line, some
from comove.store import digest
from comove.ties import highest

__all__ = [
    "ExampleSet",
    "IdIndex",
    "MapDataset",
    "Normalization",
    "Splits",
    "as_input",
    "largest_remainder",
    "positions_of",
    "split",
    "stratified_sample",
]

Ids = npt.NDArray[np.int64]
CAPTION = 16
"""Letters of a file's name under a picture."""
HOLD_BYTES = 2 << 30
"""Inputs up to this size are held whole in memory; larger sets are read example by example."""


class MapDataset(Protocol):
    """What a map-style dataset must offer: ``len`` and ``dataset[i] -> (input, label)``."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


# --- ids and stratified choice -----------------------------------------------------------------------------------


class IdIndex:
    """Finds the positions of ids among (N,) unique ids; build it once, ask it often."""

    def __init__(self, ids: Ids, what: str = "ids") -> None:
        self.ids, self.what = ids, what
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def find(self, ids: object) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return (M,) positions and (M,) whether each id is known (positions of unknown ids mean nothing)."""
        wanted = given_ids(ids, self.what)
        if self.ids.size == 0:
            return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, np.bool_)
        slots = np.minimum(np.searchsorted(self._sorted, wanted), self.ids.size - 1)
        return self._order[slots], self._sorted[slots] == wanted

    def positions(self, ids: object) -> npt.NDArray[np.int64]:
        """Return (M,) positions.

        Raises:
            InputError: an id is unknown.
        """
        places, known = self.find(ids)
        if not known.all():
            unknown = given_ids(ids, self.what)[~known].tolist()
            raise InputError(
                f"Unknown {self.what}: {some(unknown)}; {self.ids.size:,} ids are known here: {some(self._sorted, 3)}."
            )
        return places


def positions_of(ids: object, among: Ids, what: str = "ids") -> npt.NDArray[np.int64]:
    """Return where each of ``ids`` (M,) stands ``among`` (N,) unique ids; an unknown one is an :class:`InputError`."""
    return IdIndex(among, what).positions(ids)


def largest_remainder(weights: Sequence[int] | Ids, total: int, ties: Ids | None = None) -> Ids:
    """Share ``total`` among classes in proportion to ``weights``; the sum is exact, no share exceeds its weight.

    Hamilton's method: floors first, then the largest remainders.

    Args:
        weights: (C,) class counts.
        total: how many to share out, at most the sum of ``weights``.
        ties: (C,) class indices, by whose hashes equal remainders are ordered (:mod:`comove.ties`); ``None`` for ties
            to the lower position, as the splits of data sets have always been drawn.

    Returns:
        (C,) int64 shares.

    >>> largest_remainder([5, 3, 2], 4).tolist()
    [2, 1, 1]
    """
    counts: Ids = np.asarray(weights, dtype=np.int64)
    if not 0 <= total <= counts.sum():
        raise InputError(f"Cannot take {total} of {int(counts.sum())} examples.")
    if total == 0:
        return np.zeros_like(counts)
    scaled = counts * total  # integers: exact where a float quotient would round
    shares: Ids = scaled // counts.sum()
    remainders = scaled % counts.sum()
    by_remainder = np.argsort(-remainders, kind="stable") if ties is None else highest(remainders, ties)
    shares[by_remainder[: total - int(shares.sum())]] += 1
    return shares


def stratified_sample(labels: Ids, size: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose ``size`` positions at random, classes in proportion (largest remainder); returned in ascending order."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = largest_remainder(counts, size)
    chosen = [
        generator.choice(np.flatnonzero(labels == label), int(share), replace=False)
        for label, share in zip(classes, shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


# --- the example set ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of inputs scaled to [0, 1].

    Raises:
        InputError: not as many means as deviations, or numbers that cannot be these.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        numbers = all(isinstance(value, int | float) and np.isfinite(value) for value in (*self.mean, *self.std))
        if not numbers or len(self.mean) != len(self.std) or not self.mean or not all(std > 0 for std in self.std):
            raise InputError(
                f"Normalization needs one finite mean and one positive standard deviation a channel; got mean "
                f"{self.mean}, std {self.std}."
            )


class ExampleSet:
    """A map-style dataset whose examples have stable int64 ids: pairs (input, label), or items of any structure.

    Labels are those of the items, ``dataset[i][1]``, since these are what a loader trains on. Every item is therefore
    read once, also of a set that is too large to hold; giving ``labels=`` spares a set read from disk that pass. An
    attribute ``targets`` or ``labels`` that says otherwise is refused, for one of the two must be wrong.

    Items of any other structure (dictionaries of tokens, an image with its mask, a tensor alone) are put together by
    ``collate`` into batches whose tensors all have the example as their first axis; a :class:`comove.tasks.Task` says
    what they mean. Labels are optional for them. They are collated once and held whole where that fits, else read and
    collated batch by batch.

    Args:
        dataset: anything with ``len`` and ``dataset[i] -> (input, label)``; its transforms must be deterministic
            (augmentation belongs to the recipe): a few items are read twice and compared. One that is read from disk
            because it is too large to hold is read by several threads when it has a true attribute ``thread_safe``.
        ids: (N,) unique ids; by default 0 ... N-1.
        labels: (N,) class indices to train on, whatever the items say; by default those of the items.
        classes: class names; by default ``"0"``, ``"1"``, ... up to the largest label.
        normalization: applied on the device when a batch is made; ``None`` leaves inputs as they are.
        name: what the set is called in messages and reports.
        hold_bytes: inputs up to this size are held whole in memory.
        collate: makes a batch (a tensor, tuple, list or mapping of tensors) of a list of items, as a ``DataLoader``'s
            ``collate_fn``; by default torch's own where items are no pairs. It must pad to one shape.

    Raises:
        InputError: repeated ids, labels out of range or of the wrong length, an empty set, inputs of unequal shape,
            items that are no pairs or differ from one reading to the next, labels of items that are no whole numbers or
            that ``dataset.targets`` or ``dataset.labels`` contradicts; no map-style dataset; inputs of 8 signed, 16 or
            unsigned 32 or 64 bits, images with the channels last, a normalization of other channels.
        InputTypeError: inputs that are neither tensors nor arrays nor images.
    """

    def __init__(
        self,
        dataset: MapDataset,
        *,
        ids: object = None,
        labels: object = None,
        classes: Sequence[str] | None = None,
        normalization: Normalization | None = None,
        name: str = "examples",
        hold_bytes: int = HOLD_BYTES,
        collate: Callable[[list[Any]], Batch] | None = None,
    ) -> None:
        _check_map_style(dataset, name)
        size = len(dataset)
        if size == 0:
            raise InputError(f"The data set {name!r} is empty.")
        if collate is not None or isinstance(_read_item(dataset, 0, name), Mapping | torch.Tensor):
            if normalization is not None:
                raise InputError(f"{name!r}: a normalization is for pairs (input, label); collate can do it for items.")
            items = _Items(dataset, collate or torch.utils.data.default_collate, name, hold_bytes)
            self._set_up(items, None, ids, labels, classes, None, name)
            return
        read = _reader(dataset, name)
        first = as_input(read(0)[0])
        holds = first.numel() * first.element_size() * size <= hold_bytes
        inputs: list[torch.Tensor] = []
        found: list[object] = []
        if holds or labels is None:
            for value, label in _each(dataset, read, size):
                found.append(label)
                if holds:
                    inputs.append(as_input(value))
        _check_repeatable(read, size, name, [] if labels is not None else found)
        if labels is None:
            labels = _item_labels(found, name)
            _check_attributes(dataset, labels, name)
        held = _stack(inputs, name) if holds else None
        self._set_up(dataset, held, ids, labels, classes, normalization, name)

    @classmethod
    def from_arrays(
        cls,
        inputs: object,
        labels: object,
        *,
        ids: object = None,
        classes: Sequence[str] | None = None,
        normalization: Normalization | None = None,
        name: str = "arrays",
    ) -> ExampleSet:
        """Make a set from whole arrays or tensors: ``inputs`` (N, ...), ``labels`` (N,).

        8-bit inputs are images and are scaled to [0, 1] in every batch. Real numbers of any precision are used as they
        are, in float32; True and False as 1 and 0; whole numbers of 32 or 64 bits are token ids and stay what they are.

        Raises:
            InputError: as the constructor.
        """
        tensor = as_input(inputs if isinstance(inputs, torch.Tensor) else as_array(inputs, "inputs"), "inputs")
        made = cls.__new__(cls)
        if tensor.ndim < 2 or len(tensor) == 0:
            hint = " Single numbers are inputs of shape (1,): give (N, 1)." if tensor.ndim == 1 and len(tensor) else ""
            raise InputError(
                f"inputs must be (N, F) or have more dimensions, with N >= 1; got shape {tuple(tensor.shape)}.{hint}"
            )
        made._set_up(None, tensor, ids, labels, classes, normalization, name)
        return made

    def _set_up(
        self,
        source: MapDataset | _Items | None,
        held: torch.Tensor | None,
        ids: object,
        labels: object,
        classes: Sequence[str] | None,
        normalization: Normalization | None,
        name: str,
    ) -> None:
        size = len(held) if held is not None else len(source)  # type: ignore[arg-type]
        if not isinstance(source, _Items):
            first = held[0] if held is not None else as_input(source[0][0])  # type: ignore[index]
            _check_inputs(first, normalization, name)
        check_text([name], "The name of a data set")
        self.name = name
        self.normalization = normalization
        self.ids = np.arange(size, dtype=np.int64) if ids is None else as_ids(ids, "ids")
        self._labels: Ids | None = None
        if labels is not None:
            below = None if classes is None else len(tuple(classes))
            self._labels = as_labels(labels, f"Labels of {name!r}", size, below=below)
        most = 0 if self._labels is None else int(self._labels.max()) + 1
        self.classes = tuple(classes) if classes is not None else tuple(map(str, range(most)))
        check_text(self.classes, f"The classes of {name!r}")
        if self.ids.size != size:
            raise InputError(f"{name!r} has {size} examples but {self.ids.size} ids.")
        self.sources: npt.NDArray[np.object_] | None = None
        self.texts: npt.NDArray[np.object_] | None = None
        self._source = source
        self._held = held
        self._places = np.arange(size, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ids.size)

    @property
    def labels(self) -> Ids:
        """(N,) class indices.

        Raises:
            InputError: the set has none.
        """
        if self._labels is None:
            raise InputError(f"The examples of {self.name!r} have no labels: pass labels= where classes matter.")
        return self._labels

    @property
    def labelled(self) -> bool:
        """Whether the set has labels."""
        return self._labels is not None

    @property
    def numbered(self) -> bool:
        """Whether classes have no names but their numbers: then there are as many as the largest label says."""
        return self.classes == tuple(map(str, range(len(self.classes))))

    @property
    def structured(self) -> bool:
        """Whether items are collated to batches of a structure of their own, instead of pairs (input, label)."""
        return isinstance(self._source, _Items)

    @property
    def collate(self) -> Callable[[list[Any]], Batch] | None:
        """What makes batches of items of a structure of their own; ``None`` of pairs (input, label)."""
        return self._source.collate if isinstance(self._source, _Items) else None

    def __getitem__(self, position: int) -> Any:
        if not -len(self) <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} examples")
        if isinstance(self._source, _Items):
            return self._source.dataset[int(self._places[position])]
        return self.raw(np.array([position % len(self)]))[0], int(self.labels[position])

    def __repr__(self) -> str:
        shape = "batches of their own" if self.structured else self.input_shape
        return f"ExampleSet({self.name}: {len(self):,} examples, {len(self.classes)} classes, {shape})"

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.raw(np.array([0])).shape[1:])

    @property
    def held(self) -> torch.Tensor | None:
        """All raw inputs (N, ...) of this set in one tensor, or ``None`` when they are not held in memory."""
        if self._held is None:
            return None
        if self._places.size == len(self._held) and np.array_equal(self._places, np.arange(self._places.size)):
            return self._held
        return self._held[torch.from_numpy(self._places)]

    def positions(self, ids: object) -> npt.NDArray[np.int64]:
        """Return the positions of ``ids`` in this set; unknown ids are an :class:`InputError`."""
        return positions_of(ids, self.ids, f"ids in {self.name!r}")

    def subset(self, ids: object) -> ExampleSet:
        """Return the examples with these ids, in this order, as a view (no input is copied).

        Raises:
            InputError: an unknown or repeated id, or none at all.
        """
        places = self.positions(as_ids(ids, "ids"))
        if places.size == 0:
            raise InputError(f"A subset of {self.name!r} needs at least one id.")
        made = ExampleSet.__new__(ExampleSet)
        made.name, made.classes, made.normalization = self.name, self.classes, self.normalization
        made.ids, made._labels = self.ids[places], None if self._labels is None else self._labels[places]
        made.sources = None if self.sources is None else self.sources[places]
        made.texts = None if self.texts is None else self.texts[places]
        made._source, made._held, made._places = self._source, self._held, self._places[places]
        return made

    @staticmethod
    def joined(parts: Sequence[ExampleSet]) -> ExampleSet:
        """Return the examples of several sets, of different ids and alike otherwise, as one.

        Raises:
            InputError: an id that two of them have, or inputs that are not alike.
        """
        first = parts[0]
        labelled = all(part.labelled for part in parts)
        made = ExampleSet(
            _Several(parts),
            ids=np.concatenate([part.ids for part in parts]),
            labels=np.concatenate([part.labels for part in parts]) if labelled else None,
            classes=first.classes or None,
            normalization=first.normalization,
            name=first.name,
            collate=first.collate,
        )
        for name in ("sources", "texts"):
            told = [getattr(part, name) for part in parts]
            setattr(made, name, None if any(one is None for one in told) else np.concatenate(told))
        return made

    def without(self, ids: object) -> ExampleSet:
        """Return the examples that do not have these ids."""
        keep = np.ones(len(self), bool)
        keep[self.positions(ids)] = False
        return self.subset(self.ids[keep])

    def with_labels(self, labels: object, classes: Sequence[str] | None = None) -> ExampleSet:
        """Return the same examples with other labels (N,), and perhaps other class names, as a view.

        Raises:
            InputError: of another length, no integers, or outside the classes.
        """
        made = self.subset(self.ids)
        made.classes = self.classes if classes is None else tuple(classes)
        made._labels = as_labels(labels, f"Labels of {self.name!r}", len(self), below=len(made.classes) or None)
        if not made.classes:
            made.classes = tuple(map(str, range(int(made._labels.max()) + 1)))
        return made

    def with_classes(self, classes: Sequence[str]) -> ExampleSet:
        """Return the same examples with other class names, as a view.

        Raises:
            InputError: fewer than the labels need; text that UTF-8 cannot hold.
        """
        check_text(classes, f"The classes of {self.name!r}")
        if self._labels is not None:
            as_labels(self._labels, f"Labels of {self.name!r}", len(self), below=len(classes))
        made = self.subset(self.ids)
        made.classes = tuple(classes)
        return made

    def with_sources(self, sources: Sequence[str], texts: Sequence[str] | None = None) -> ExampleSet:
        """Return the same examples, each with the file or line that it comes from, and perhaps its text, as a view.

        Tables and reports show them; they are no part of the fingerprint. Subsets and relabelled sets keep them.

        Args:
            sources: (N,) such as ``"cat/001.png"`` or ``"sentences.csv:17"``.
            texts: (N,) what a reader sees of examples that are texts.

        Raises:
            InputError: not N of them; text that UTF-8 cannot hold.
        """
        made = self.subset(self.ids)
        for name, values in (("sources", sources), ("texts", texts)):
            if values is None:
                continue
            if len(values) != len(self):
                raise InputError(f"{self.name!r} has {len(self)} examples but {len(values)} {name}.")
            check_text(values, f"The {name} of {self.name!r}")
            array = np.empty(len(self), dtype=object)
            array[:] = values
            setattr(made, name, array)
        return made

    def raw(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the inputs at ``positions`` as stored (images: uint8, channels first)."""
        places = self._places[positions]
        if self._held is not None:
            return self._held[torch.from_numpy(places)]
        source = self._source
        if isinstance(source, _Items):
            raise InputError(
                f"The examples of {self.name!r} are items of a structure of their own, which only a task can read: "
                "this needs pairs: [(item['image'], item['label']) for item in dataset], or the like."
            )
        assert source is not None

        def read(place: np.int64) -> torch.Tensor:
            return as_input(source[int(place)][0])

        if not getattr(source, "thread_safe", False):
            return _stack([read(place) for place in places], self.name)
        with ThreadPoolExecutor(max_workers=8) as pool:
            return _stack(list(pool.map(read, places)), self.name)

    def collated(self, positions: npt.NDArray[np.int64], device: torch.device | str = "cpu") -> Batch:
        """Return a batch on ``device`` as a task reads it: (inputs, labels), inputs alone, or what items collate to."""
        if isinstance(self._source, _Items):
            return map_tensors(lambda tensor: tensor.to(device), self._source.batch(self._places[positions]))
        if self._labels is None:
            return self.prepare(self.raw(positions).to(device, non_blocking=True))
        return self.batch(positions, device)

    def image(self, id_: int) -> npt.NDArray[Any]:
        """Return the input of one example as stored, such as an image (1 or 3, H, W), for a figure."""
        raw: npt.NDArray[Any] = self.raw(self.positions([id_]))[0].numpy()
        return raw

    def told(self, id_: int) -> str:
        """The file of one example as a line under its picture, the end of a long one; empty where it is not known."""
        if self.sources is None:
            return ""
        name = str(self.sources[self.positions([id_])[0]])
        return "\n" + (name if len(name) <= CAPTION else "\u2026" + name[1 - CAPTION :])

    def number(self, id_: int, before: str, after: str = "") -> str:
        """The id of one example in a caption, between two texts; empty where :meth:`told` has its file instead."""
        return f"{before}{id_}{after}" if self.sources is None else ""

    def batch(
        self, positions: npt.NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised inputs (B, ...) float32 and labels (B,) int64 on ``device``."""
        inputs = self.prepare(self.raw(positions).to(device, non_blocking=True))
        return inputs, torch.from_numpy(self.labels[positions]).to(device)

    def prepare(self, raw: torch.Tensor) -> torch.Tensor:
        """Turn raw inputs into what a model sees: 8-bit to [0, 1], then the normalisation; token ids are left alone."""
        if raw.dtype == torch.uint8:
            raw = raw.to(torch.float32) / 255
        elif raw.dtype.is_floating_point or raw.dtype == torch.bool:
            raw = raw.to(torch.float32)
        if self.normalization is None:
            return raw
        shape = (1, -1, *(1,) * (raw.ndim - 2))
        mean = torch.tensor(self.normalization.mean, device=raw.device).reshape(shape)
        return (raw - mean) / torch.tensor(self.normalization.std, device=raw.device).reshape(shape)

    @cached_property
    def fingerprint(self) -> str:
        """A fingerprint of ids, labels, class names and inputs.

        Inputs held in memory count in full; of a set read from disk, 64 evenly spaced examples do.
        """
        spaced = np.unique(np.linspace(0, len(self) - 1, min(64, len(self))).astype(np.int64))
        head = {"classes": list(self.classes), "normalization": str(self.normalization)}
        labels = [] if self._labels is None else [self._labels]
        if isinstance(self._source, _Items):
            found = self._source.batch(self._places if self._source.held is not None else self._places[spaced])
            return digest(head, self.ids, *labels, *(array for tensor in tensors_of(found) for array in _plain(tensor)))
        raw = self.raw(spaced) if self._held is None else self.held
        assert raw is not None
        return digest(head, self.ids, *labels, raw.numpy())


class _Several:
    """The examples of several sets, one set after another, as a map-style dataset."""

    def __init__(self, parts: Sequence[ExampleSet]) -> None:
        self.parts = tuple(parts)
        self.places = [(part, place) for part in self.parts for place in range(len(part))]
        self.thread_safe = all(getattr(part._source, "thread_safe", part._held is not None) for part in self.parts)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        part, place = self.places[index]
        return part[place]


class _Items:
    """Items of any structure and the function that makes batches of them; the whole set as one batch where it fits."""

    def __init__(self, dataset: MapDataset, collate: Callable[[list[Any]], Batch], name: str, hold_bytes: int) -> None:
        self.dataset, self.collate, self.name, self.held = dataset, collate, name, None
        self.thread_safe = bool(getattr(dataset, "thread_safe", False))
        size = len(dataset)
        first = self._collated([0])
        one = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(first))
        if one * size <= hold_bytes:
            self.held = self._collated(range(size))
        spread = np.unique(np.linspace(0, size - 1, min(TWICE, size)).astype(np.int64))
        pairs = zip(tensors_of(self._collated(spread)), tensors_of(self._collated(spread)), strict=True)
        if not all(_same(once, again) for once, again in pairs):
            raise InputError(
                f"Items of {name!r} differ from one reading to the next; their transforms and collate must be "
                "deterministic. Leave random crops, masking and dropout of tokens out of the data set."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, places: npt.NDArray[np.int64]) -> Batch:
        """The items at these places as one batch, on the CPU."""
        return self._collated(places) if self.held is None else rows_of(self.held, torch.from_numpy(places.copy()))

    def _collated(self, places: Iterable[int] | npt.NDArray[np.int64]) -> Batch:
        """Read and collate items.

        Raises:
            InputError: an item that cannot be read, a collate that fails, or makes no batch of as many examples.
        """
        items = [_read_item(self.dataset, int(place), self.name) for place in places]
        try:
            made = self.collate(items)
        except ComoveError:
            raise
        except Exception as error:  # whatever a user's function may raise
            raise InputError(
                f"Items of {self.name!r} cannot be collated. {type(error).__name__}: {first_line(error)} Pass "
                "collate=, a function that makes tensors of one shape of a list of items (padded, say)."
            ) from error
        size = batch_size(made)
        if size != len(items):
            raise InputError(f"collate of {self.name!r} made a batch of {size} examples of {len(items)} items.")
        return made


def _read_item(dataset: MapDataset, index: int, name: str) -> Any:
    """One item; what the data set raises becomes an error that names it."""
    try:
        return dataset[index]
    except ComoveError:
        raise
    except Exception as error:  # whatever a user's data set may raise
        raise InputError(
            f"Item {index} of {name!r} cannot be read. {type(error).__name__}: {first_line(error)}"
        ) from error


# --- items and their labels --------------------------------------------------------------------------------------

Read = Callable[[int], tuple[Any, Any]]
TWICE = 16
"""Items read a second time, to see whether the data set's transforms draw at random."""


def _reader(dataset: MapDataset, name: str) -> Read:
    """A function that reads one item as a pair, and says so where it is none."""

    def read(index: int) -> tuple[Any, Any]:
        item = _read_item(dataset, index, name)
        if isinstance(item, Sequence) and not isinstance(item, str) and len(item) >= 2:
            return item[0], item[1]
        raise InputError(
            f"Items of {name!r} must be pairs (input, label), got {type(item).__name__} at position {index}. Make "
            "pairs: [(x, y) for x, y in ...], pass arrays to ExampleSet.from_arrays(inputs, labels), or say how items "
            "of another structure become a batch: collate=."
        )

    return read


def _each(dataset: MapDataset, read: Read, size: int) -> Iterator[tuple[Any, Any]]:
    """All items in order, by several threads where the data set allows it; few are held at a time."""
    if not getattr(dataset, "thread_safe", False):
        yield from map(read, range(size))
        return
    with ThreadPoolExecutor(max_workers=8) as pool:
        for start in range(0, size, 256):
            yield from pool.map(read, range(start, min(start + 256, size)))


def _check_repeatable(read: Read, size: int, name: str, labels: Sequence[object]) -> None:
    """Refuse items that differ from one reading to the next: which of them is trained on would be left to chance."""
    for index in np.unique(np.linspace(0, size - 1, min(TWICE, size)).astype(np.int64)).tolist():
        (first, label), (second, again) = read(index), read(index)
        if not _same(as_input(first), as_input(second)):
            raise InputError(
                f"Item {index} of {name!r} has another input each time it is read; its transforms must be "
                "deterministic. Leave random crops, flips and noise out of the data set: they belong to the recipe."
            )
        if labels and not (_plain_label(label) == _plain_label(again) == _plain_label(labels[index])):
            raise InputError(
                f"Item {index} of {name!r} has another label each time it is read; labels must not be drawn at random. "
                "Draw them once, and pass them as labels=."
            )


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_floating_point():
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    return bool((first == second).all())


def _plain_label(label: object) -> object:
    """A number out of its 0-d tensor or array, to be compared; anything else as it prints."""
    return label if isinstance(label, int) else repr(as_array(label, "a label").tolist())


def _item_labels(found: Sequence[object], name: str) -> Ids:
    """The labels of all items (N,), each one whole number: ints of Python or NumPy, or arrays of no dimension."""
    for index, label in enumerate(found):
        if type(label) is int or (isinstance(label, np.integer) and not isinstance(label, np.timedelta64)):
            continue
        array = as_array(label, f"The label of item {index}")
        if array.shape != () or array.dtype.kind not in "iu":
            kind = type(label).__name__ if not array.shape else f"{type(label).__name__} of shape {array.shape}"
            raise InputError(
                f"The label of item {index} of {name!r} must be one whole number, a class index from 0 on; got {kind} "
                f"({_remedy(array)}). Targets of any other kind go with collate=torch.utils.data.default_collate."
            )
    return as_labels([int(label) for label in found], f"Labels of {name!r}")  # type: ignore[call-overload]


def _remedy(array: npt.NDArray[Any]) -> str:
    if array.shape:
        one = "a single number in a list: take it out" if array.size == 1 else "one-hot rows or several targets"
        return f"{one}; pass the class indices as labels=" if array.size != 1 else one
    kinds = {"f": "a float: cast it to int", "b": "a boolean: cast it to int", "U": "a class name: number the classes"}
    return kinds.get(array.dtype.kind, "pass the class indices as labels=")


def _check_attributes(dataset: MapDataset, labels: Ids, name: str) -> None:
    """Refuse a data set whose list of labels says something else than its items.

    Lists of another kind or length (names, several targets, those of a larger set) are none to compare with.
    """
    for attribute in ("targets", "labels"):
        listed = getattr(dataset, attribute, None)
        if listed is None or callable(listed):
            continue
        try:
            array = as_array(listed, attribute)
        except (InputError, InputTypeError):
            continue
        if array.shape != labels.shape or array.dtype.kind not in "iu":
            continue
        differing = np.flatnonzero(array != labels)
        if differing.size:
            pairs = [f"{i} (item {labels[i]}, .{attribute} {array[i]})" for i in differing[:5].tolist()]
            raise InputError(
                f"The items of {name!r} and its .{attribute} must have the same labels, but {differing.size} of "
                f"{labels.size} differ, the first at positions {', '.join(pairs)}. A target_transform, or labels that "
                "__getitem__ replaces (noisy labels), are the likely cause. Say which are meant: labels=[dataset[i][1] "
                f"for i in range(len(dataset))], what a loader gives, or labels=dataset.{attribute}."
            )


def _plain(tensor: torch.Tensor) -> list[npt.NDArray[Any]]:
    """What of a tensor is digested: its numbers, and its type where NumPy has none such."""
    array = as_array(tensor)
    lacking = tensor.is_floating_point() and array.itemsize != tensor.element_size()
    return [np.frombuffer(str(tensor.dtype).encode(), np.uint8), array] if lacking else [array]


def _check_map_style(dataset: object, name: str) -> None:
    """Refuse what is no map-style dataset of (input, label), saying how to make one of it."""
    kind, remedy = type(dataset).__name__, "pass one with len and [i], such as list(dataset)"
    if isinstance(dataset, torch.utils.data.DataLoader):
        remedy = "pass what it loads from, loader.dataset"
    elif isinstance(dataset, np.ndarray | torch.Tensor) or hasattr(dataset, "iloc"):
        remedy = "whole arrays go in ExampleSet.from_arrays(inputs, labels)"
    elif isinstance(dataset, Mapping | str | bytes):
        remedy = "pass a sequence of (input, label), or ExampleSet.from_arrays(inputs, labels)"
    elif not isinstance(dataset, torch.utils.data.IterableDataset) and (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        return
    raise InputError(f"The data set {name!r} must be map-style, dataset[i] -> (input, label); got {kind}: {remedy}.")


WHOLE_NUMBERS = (torch.int32, torch.int64)
"""Types of token ids."""


def _check_inputs(first: torch.Tensor, normalization: Normalization | None, name: str) -> None:
    """Refuse inputs (of which this is one) whose numbers have no agreed meaning, or no channels to normalise."""
    kind, shape = first.dtype, tuple(first.shape)
    if not (kind.is_floating_point or kind in (torch.uint8, torch.bool, *WHOLE_NUMBERS)):
        raise InputError(
            f"Inputs of {name!r} are {str(kind).removeprefix('torch.')}. They must be 8-bit images (uint8, scaled to "
            "[0, 1]), real numbers, or token ids of type int32 or int64. Convert them: 16-bit images by "
            "inputs.astype('float32') / 65535."
        )
    if kind == torch.uint8 and first.ndim == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4:
        raise InputError(
            f"Images are held with the channels first, (C, H, W); those of {name!r} are {shape}, which looks like "
            "(H, W, C): inputs.transpose(0, 3, 1, 2) puts the channels first."
        )
    if normalization is not None and (first.ndim == 0 or len(normalization.mean) not in (1, shape[0])):
        raise InputError(
            f"The normalization has {len(normalization.mean)} channels, the inputs of {name!r} are {shape}: give one "
            "mean and one standard deviation a channel, or one for all."
        )


_PALETTES = ("P", "PA")
_WIDE = ("I", "F")
"""Modes of PIL images with more than 8 bits a number, the beginning of their names."""


def as_input(value: object, what: str = "An input") -> torch.Tensor:
    """Return a tensor of what a user gives as an input: a tensor, an array of numbers, or a PIL image as (C, H, W).

    Raises:
        InputTypeError: something else, or an array of something else than numbers.
        InputError: a PIL image with more than 8 bits a channel; masked entries.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        plain = as_tensor(value, what)
        known = (torch.float16, torch.float32, torch.float64)
        return plain.float() if plain.is_floating_point() and plain.dtype not in known else plain  # numpy has no others
    if hasattr(value, "getbands"):  # a PIL image, without importing PIL
        return _from_picture(value)
    raise InputTypeError(f"{what} must be a tensor, an array or a PIL image, got {type(value).__name__}.")


def _from_picture(picture: Any) -> torch.Tensor:
    """A PIL image as (C, H, W); of a palette's numbers, the colours that they stand for."""
    if picture.mode in _PALETTES:
        picture = picture.convert("RGB")
    if picture.mode.startswith(_WIDE):
        raise InputError(
            f"Images must have 8 bits a channel, got one of mode {picture.mode!r}. Convert it: 16-bit images by "
            "np.asarray(image).astype('float32')[None] / 65535."
        )
    array = np.array(picture)
    return as_tensor(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), "An image")


def _stack(inputs: list[torch.Tensor], name: str) -> torch.Tensor:
    shapes = {tuple(tensor.shape) for tensor in inputs}
    if len(shapes) > 1:
        raise InputError(f"Inputs of {name!r} must have one shape, found {some(sorted(shapes))}; resize or pad them.")
    kinds = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in inputs)
    if len(kinds) > 1:
        raise InputError(f"Inputs of {name!r} must be of one type, found {', '.join(kinds)}: 8-bit images are scaled.")
    return torch.stack(inputs)


# --- splits ------------------------------------------------------------------------------------------------------

CHANGES = ("drop", "drop_held_out", "relabel")
"""What the source of splits says of examples that were left out or relabelled after loading."""


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets: what a model is trained on, what coresets aim at, and what attribution explains.

    ``validation`` serves methods that need held-out data to choose (the V of Algorithm 1); ``query`` is never seen by
    any method's choices, so accuracies and scores measured on it are honest. ``source`` tells how to load it again.
    """

    train: ExampleSet
    validation: ExampleSet | None
    query: ExampleSet
    name: str = "examples"
    source: Mapping[str, Any] = field(default_factory=dict)
    ids_apart: bool = True
    """Whether training and held-out ids must differ; adopted runs may number both from 0."""

    def __post_init__(self) -> None:
        sets = [part for part in (self.train, self.validation, self.query) if part is not None]
        ids = np.concatenate([part.ids for part in (sets if self.ids_apart else sets[1:])])
        if np.unique(ids).size != ids.size:
            raise InputError("train, validation and query must share no ids; give each example one id of its own.")
        if len({part.classes for part in sets}) > 1 and all(part.numbered for part in sets):
            most = max((part.classes for part in sets), key=len)
            for name in ("train", "validation", "query"):
                if (part := getattr(self, name)) is not None:
                    object.__setattr__(self, name, part.with_classes(most))
            sets = list(self.parts)
        if len({part.classes for part in sets}) > 1:
            raise InputError("train, validation and query must have the same class names.")
        for part, what in ((self.query, "query"), (self.validation, "validation")):
            if part is not None:
                _warn_of_untrained(self.train, part, what)
        _check_same_preprocessing(sets)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.train.classes

    @property
    def fingerprint(self) -> str:
        """A fingerprint of all three sets."""
        parts = (self.train, self.validation, self.query)
        return digest(*("none" if part is None else part.fingerprint for part in parts))

    def describe(self) -> dict[str, Any]:
        """A JSON object for manifests: name, source and fingerprint."""
        return {"name": self.name, "source": dict(self.source), "fingerprint": self.fingerprint}

    @property
    def parts(self) -> tuple[ExampleSet, ...]:
        """The sets that there are: training, validation, query."""
        return tuple(part for part in (self.train, self.validation, self.query) if part is not None)

    @property
    def sources(self) -> dict[int, str]:
        """Id -> the file or line that an example comes from, where this is known."""
        return self._told("sources")

    @property
    def texts(self) -> dict[int, str]:
        """Id -> its text, of examples that are texts."""
        return self._told("texts")

    def _told(self, name: str) -> dict[int, str]:
        known = [(part.ids, getattr(part, name)) for part in reversed(self.parts)]
        return {
            id_: str(value)
            for ids, values in known
            if values is not None
            for id_, value in zip(ids.tolist(), values, strict=True)
        }

    def without(self, train_ids: object) -> Splits:
        """Return the splits without these training examples; held-out examples stay.

        A ``source``, where there is one, says so: a run trained on the result loads its data by itself.

        Raises:
            InputError: an unknown id, or no training example left.
        """
        self.train.positions(train_ids)
        return self.changed(drop=train_ids)

    def relabelled(self, labels: Mapping[int, int]) -> Splits:
        """Return the splits with other labels for some training examples (id -> class index); held-out ones stay.

        A ``source``, where there is one, says so, as that of :meth:`without`.

        Raises:
            InputError: an unknown id, a label outside the classes.
        """
        self.train.positions(np.array(list(labels), np.int64))
        return self.changed(relabel=labels)

    def changed(self, drop: object = (), relabel: Mapping[int, int] | None = None) -> Splits:
        """Return the splits with other labels for some examples, then without some, held-out ones included.

        Args:
            drop: ids to leave out.
            relabel: id -> class index.

        Raises:
            InputError: an unknown id, a label outside the classes, a set that would be left without examples.
        """
        dropped, fixes = np.unique(given_ids(drop, "ids")), dict(relabel or {})
        for given, what in ((dropped, "drop"), (np.array(list(fixes), np.int64), "relabel")):
            known = np.isin(given, np.concatenate([part.ids for part in self.parts]))
            if not known.all():
                raise InputError(f"Unknown ids to {what}: {some(given[~known].tolist())}; none of the splits has them.")
        held_out = None if self.validation is None else _changed(self.validation, dropped, fixes)
        train, query = (_changed(part, dropped, fixes) for part in (self.train, self.query))
        return replace(self, train=train, validation=held_out, query=query, source=self._noted(dropped, fixes))

    def _noted(self, dropped: Ids, fixes: Mapping[int, int]) -> dict[str, Any]:
        """The source with what is dropped and relabelled, where there is a source."""
        if not self.source:
            return {}
        trained = np.isin(dropped, self.train.ids)
        gone = {
            "drop": sorted({*self.source.get("drop", ()), *dropped[trained].tolist()}),
            "drop_held_out": sorted({*self.source.get("drop_held_out", ()), *dropped[~trained].tolist()}),
        }
        labels = {**self.source.get("relabel", {}), **{str(id_): int(label) for id_, label in fixes.items()}}
        absent = {*gone["drop"], *gone["drop_held_out"]}
        kept = {id_: labels[id_] for id_ in sorted(labels, key=int) if int(id_) not in absent}
        noted = {name: value for name, value in self.source.items() if name not in CHANGES}
        return noted | {name: value for name, value in {**gone, "relabel": kept}.items() if value}

    def __repr__(self) -> str:
        validation = 0 if self.validation is None else len(self.validation)
        return f"Splits({self.name}: {len(self.train):,} train, {validation:,} validation, {len(self.query):,} query)"


def _changed(part: ExampleSet, dropped: Ids, fixes: Mapping[int, int]) -> ExampleSet:
    """One set with those of the labels that are its own changed, without those of the ids that are its own."""
    here = {id_: label for id_, label in fixes.items() if id_ in part.ids}
    if here:
        labels = part.labels.copy()
        labels[part.positions(np.array(list(here), np.int64))] = list(here.values())
        part = part.with_labels(labels, part.classes)
    gone = dropped[np.isin(dropped, part.ids)]
    if gone.size == len(part):
        raise InputError(
            f"Dropping {gone.size} ids would leave none of the {len(part)} examples of a split of {part.name!r}."
        )
    return part.without(gone) if gone.size else part


def _warn_of_untrained(train: ExampleSet, held_out: ExampleSet, what: str) -> None:
    """Warn where held-out examples have classes that no training example has."""
    if not (train.labelled and held_out.labelled):
        return
    absent = ~np.isin(held_out.labels, train.labels)
    if absent.any():
        classes = [train.classes[label] for label in np.unique(held_out.labels[absent]).tolist()]
        warnings.warn(
            f"{int(absent.sum())} of {len(held_out)} {what} examples are of classes that no training example has "
            f"({some(classes)}): nothing can be learned about them. Keep some examples of every class for training, or "
            f"leave these {what} examples out.",
            stacklevel=4,
        )


def _check_same_preprocessing(sets: Sequence[ExampleSet]) -> None:
    if len({part.structured for part in sets}) > 1:
        raise InputError("train, validation and query must all be pairs (input, label), or all have a collate.")
    if sets[0].structured:
        return
    found = [(part.input_shape, part.raw(np.array([0])).dtype, part.normalization) for part in sets]
    for what, values in zip(("shape", "type", "normalization"), zip(*found, strict=True), strict=True):
        if len(set(values)) > 1:
            raise InputError(
                f"train, validation and query must be preprocessed alike; the {what} of their inputs is "
                f"{', then '.join(map(str, dict.fromkeys(values)))}."
            )


def as_amount(value: float | int, size: int, what: str) -> int:
    """Read ``value`` as a share of ``size`` (a float below 1) or as a number of examples (an int below ``size``)."""
    rule = f"{what} must be a share (a float below 1) or a whole number below {size}, got {value!r}."
    if isinstance(value, float | np.floating):
        share = real_number(value, what)
        if not 0 <= share < 1:
            raise InputError(rule)
        return min(round(share * size), size - 1)
    amount = whole_number(value, f"{what}, where it is no share (a float below 1),", None)
    if not 0 <= amount < size:
        raise InputError(rule)
    return amount


def split(
    examples: ExampleSet,
    *,
    validation: float | int = 0.1,
    query: float | int = 0.1,
    seed: int = 0,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
) -> Splits:
    """Split one set into train, validation and query, stratified by class.

    Args:
        examples: N examples.
        validation: a share of N (a float below 1), or a number of examples (an int); 0 makes none.
        query: likewise, at least one.
        seed: of the choice.
        name: of the result; by default that of ``examples``.
        source: how to load the data again, kept with the result.

    Raises:
        InputError: nothing would be left to train on, no query, or no query of a class that is trained on.

    Warns:
        UserWarning: some queries or validation examples are of classes that no training example has.
    """
    generator = np.random.default_rng([check_seed(seed, "split"), 0x5911])
    sizes = [as_amount(query, len(examples), "query"), as_amount(validation, len(examples), "validation")]
    if sizes[0] < 1 or sum(sizes) >= len(examples):
        raise InputError(f"{len(examples)} examples cannot give {sizes[1]} validation and {sizes[0]} query examples.")
    queries = examples.subset(examples.ids[stratified_sample(_groups(examples), sizes[0], generator)])
    rest = examples.without(queries.ids)
    held_out = rest.subset(rest.ids[stratified_sample(_groups(rest), sizes[1], generator)]) if sizes[1] else None
    train = rest.without(held_out.ids) if held_out is not None else rest
    if examples.labelled and not np.isin(queries.labels, train.labels).any():
        raise InputError(
            f"At least one query must be of a class that is trained on, but no class of the {len(queries)} queries has "
            f"an example left to train on: {len(examples)} examples have {np.unique(examples.labels).size} classes. "
            "Use data with several examples a class or ask for other numbers of queries, or build Splits by hand."
        )
    return Splits(train, held_out, queries, name or examples.name, source or {})


def _groups(examples: ExampleSet) -> Ids:
    """Labels; where there are none, all examples are one group."""
    return examples.labels if examples.labelled else np.zeros(len(examples), np.int64)
