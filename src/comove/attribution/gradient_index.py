r"""tau(m, q) = <phi_m, v_q> over an index of features phi on disk: scores and the best k, block by block.

An index is a folder of features (N, K) of training examples, in files of some hundred examples each::

    manifest.json                what the features were made from; another index is refused
    ids.safetensors              the examples' ids
    0000000000.safetensors ...   features, each file written whole and checked when it is read
    second-moments.safetensors   of the features, section by section, once they were asked for

It is asked with vectors v (Q, K), such as (F + lambda I)^-1 phi_q. What is in memory is a block of features and, of the
best k, k candidates a query. Blocks may be shared out over processes or a cluster that see the folder.

Shape legend: N train, Q queries, K dimensions, B examples of a block; a section is a range of the K dimensions.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from comove.attribution.kept_blocks import KeptBlocks
from comove.checks import as_ids, as_real, whole_number
from comove.correlation.top_k_heap import NOTHING, descending, pack, unpack
from comove.correlation.workers import plain_products
from comove.data import Ids
from comove.errors import CorruptFileError, InputError, NonFiniteError, StorageError, some
from comove.jobs import Executor, run_jobs
from comove.store import (
    claim_cache,
    claim_folder,
    digest,
    entries,
    new_folder,
    open_manifest,
    read_arrays,
    set_aside,
    write_arrays,
)
from comove.ties import tie_order

__all__ = ["GradientIndex", "index_scores", "index_top", "rows_of_block"]

KIND = "gradient-index"
FORMAT = 1
BLOCK_BYTES = 32 << 20
"""Bytes of a block's features at most."""
BLOCK_ROWS = 512
"""Examples of a block at most."""
PHI = "phi"
MOMENTS = "second-moments.safetensors"
IDS = "ids.safetensors"

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]


def rows_of_block(dimension: int) -> int:
    """Return how many examples of K dimensions a block holds."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * dimension)))


@dataclass(frozen=True)
class GradientIndex:
    """Features of training examples on disk: build one with :meth:`build`, open one with :meth:`load`.

    Attributes:
        folder: where it lies.
        ids: (N,) of the training examples.
        sections: entries of each section by name, in their order; for gradients, layers.
        made_from: what the features depend on.

    Example:
        >>> import tempfile
        >>> features = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
        >>> index = GradientIndex.build(tempfile.mkdtemp(), np.arange(100), {"all": 8}, lambda part: features[part])
        >>> ids, scores = index.top(features[:2], 1)
        >>> ids.shape, bool(np.allclose(scores[:, 0], (features @ features[:2].T).max(0)))
        ((2, 1), True)
    """

    folder: Path
    ids: Ids = field(repr=False)
    sections: Mapping[str, int]
    made_from: Mapping[str, Any] = field(repr=False)
    rows: int = field(repr=False)
    identity: str = field(repr=False)

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        ids: Ids,
        sections: Mapping[str, int],
        features: Callable[[slice], Float32],
        made_from: Mapping[str, Any] | None = None,
        *,
        cached: bool = False,
    ) -> Self:
        """Make an index, or finish one that was begun; of a finished one every file is read and checked.

        Args:
            folder: a new or empty one, or that of this very index.
            ids: (N,) of the training examples.
            sections: entries of each section, which add up to K.
            features: gives (B, K) float32 of the examples at a slice of positions; called for what is not on disk.
            made_from: JSON values that say what the features depend on.
            cached: whether the folder is a cache's own, which is set aside where its manifest is damaged.

        Raises:
            FingerprintError: the folder holds another index.
            CorruptFileError: it holds something else of ours, or its manifest is damaged.
            InputError: it holds something foreign; features of another shape.
            NonFiniteError: features that are NaN or infinite.
            StorageError: the disk has too little room (nothing is computed), or fills up.
        """
        place, ids = new_folder(folder), as_ids(ids, "ids")
        content = _content(ids, sections, made_from or {})
        (claim_cache if cached else claim_folder)(place, KIND, FORMAT, content)
        found = cls._opened(place, ids, content)
        _check_room(place, 4 * found.dimension * sum(part.stop - part.start for part in found._blocks.missing))
        _write_ids(place / IDS, ids)
        for _ in found._blocks.made(lambda part: {PHI: found._checked(part, features(part))}):
            pass
        return found

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Open a finished index; its features are read, and checked, as they are asked for.

        Raises:
            CorruptFileError: no index, a damaged or an unfinished one.
            FingerprintError: its manifest was changed.
        """
        place = Path(folder)
        manifest = open_manifest(place, KIND, FORMAT)
        read = entries(manifest, place, {"examples": dict, "sections": list, "made_from": dict})
        ids: Ids = read_arrays(place / IDS, ["ids"])["ids"]
        content = {name: read[name] for name in ("examples", "sections", "made_from")}
        if digest(ids) != read["examples"].get("ids"):
            raise CorruptFileError(f"{place / IDS} holds other ids than the index's: build it again.")
        found = cls._opened(place, ids, content)
        if missing := found._blocks.missing:
            raise CorruptFileError(
                f"{place} lacks {len(missing)} of {len(found._blocks.parts)} blocks: build it again, which makes "
                "those that are missing."
            )
        return found

    @classmethod
    def _opened(cls, folder: Path, ids: Ids, content: Mapping[str, Any]) -> Self:
        sections = {str(name): int(size) for name, size in content["sections"]}
        return cls(folder, ids, sections, content["made_from"], int(content["examples"]["block"]), digest(content))

    @property
    def dimension(self) -> int:
        """K."""
        return sum(self.sections.values())

    @property
    def parts(self) -> list[slice]:
        """The positions of the examples of each block."""
        return self._blocks.parts

    @cached_property
    def _blocks(self) -> KeptBlocks:
        return KeptBlocks(self.folder, self.identity, self.ids.size, self.rows, (PHI,))

    def _checked(self, part: slice, phi_BK: Float32) -> Float32:
        expected = (part.stop - part.start, self.dimension)
        if phi_BK.shape != expected:
            raise InputError(f"features must be {expected} for {part.start} to {part.stop}, got {phi_BK.shape}.")
        bad = ~np.isfinite(phi_BK).all(1)
        if bad.any():
            raise NonFiniteError(
                f"The features of {int(bad.sum())} examples are NaN or infinite, of ids {some(self.ids[part][bad])}. "
                "Look at these examples, or use an earlier checkpoint or a smaller learning rate."
            )
        return np.ascontiguousarray(phi_BK, np.float32)

    def read(self, part: slice) -> Float32:
        """Return the features (B, K) of the examples at these positions.

        Raises:
            CorruptFileError: a file is gone or damaged.
        """
        first, rows = part.start // self.rows, self.rows
        found = [
            self._blocks.read(block)[PHI][max(0, part.start - block.start) : part.stop - block.start]
            for block in self._blocks.parts[first : -(-part.stop // rows)]
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def second_moments(self) -> dict[str, Float64]:
        """Return 1/N sum_m phi_m phi_m' (K_s, K_s) of each section, from the disk once they have been computed.

        Products of a block in float32, their sum in float64.

        Raises:
            CorruptFileError: a file of features is gone or damaged.
        """
        file = self.folder / MOMENTS
        if file.exists():
            try:
                return dict(read_arrays(file, self.sections))
            except CorruptFileError as error:
                warnings.warn(f"{error} It is set aside as {set_aside(file)}, and computed again.", stacklevel=2)
        sums = {name: np.zeros((size, size)) for name, size in self.sections.items()}
        for part in self.parts:
            phi_BK = self.read(part)
            for name, columns in self.columns.items():
                own_BS = phi_BK[:, columns]
                sums[name] += own_BS.T @ own_BS
        found = {name: total / self.ids.size for name, total in sums.items()}
        write_arrays(file, found)
        return found

    @property
    def columns(self) -> dict[str, slice]:
        """Where each section lies among the K dimensions."""
        stops = np.cumsum(list(self.sections.values())).tolist()
        return {name: slice(stop - size, stop) for (name, size), stop in zip(self.sections.items(), stops, strict=True)}

    def scores(self, queries: npt.ArrayLike, *, executor: Executor | str = "serial") -> Float32:
        """Return phi_m' v_q (N, Q); see :func:`index_scores`."""
        return index_scores([self], [queries], executor=executor)

    def top(self, queries: npt.ArrayLike, k: int, *, executor: Executor | str = "serial") -> tuple[Ids, Float32]:
        """Return the ids (Q, k) and scores (Q, k) of the k highest phi_m' v_q; see :func:`index_top`."""
        return index_top([self], [queries], k, executor=executor)


def _content(ids: Ids, sections: Mapping[str, int], made_from: Mapping[str, Any]) -> dict[str, Any]:
    """What an index is, as its manifest says it."""
    if not ids.size or not sections or min(sections.values()) < 1:
        raise InputError(f"An index needs examples and sections of 1 or more entries, got {ids.size} and {sections}.")
    return {
        "examples": {"number": ids.size, "ids": digest(ids), "block": rows_of_block(sum(sections.values()))},
        "sections": [[name, int(size)] for name, size in sections.items()],
        "made_from": dict(made_from),
    }


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"The index takes {needed / 1e9:.3g} GB more in {folder}, where {free / 1e9:.3g} GB are free. Nothing was "
            "computed; free some space, choose another folder or fewer dimensions."
        )


def _write_ids(file: Path, ids: Ids) -> None:
    """Write the ids next to the features; a damaged file is written again."""
    try:
        if file.exists() and np.array_equal(read_arrays(file, ["ids"])["ids"], ids):
            return
    except CorruptFileError as error:
        warnings.warn(f"{error} It is set aside as {set_aside(file)}, and written again.", stacklevel=3)
    write_arrays(file, {"ids": ids})


# --- queries ------------------------------------------------------------------------------------------------------


def index_scores(
    indexes: Sequence[GradientIndex], queries: Sequence[npt.ArrayLike], *, executor: Executor | str = "serial"
) -> Float32:
    """Return sum_i phi_i,m' v_i,q (N, Q), one block of examples after another.

    Args:
        indexes: of the same training examples, each of a model of its own.
        queries: vectors (Q, K_i) for each index.
        executor: an :class:`comove.jobs.Executor`, or ``"serial"``, ``"local"``, ``"ray"``; its processes read the
            index's folder.

    Raises:
        InputError: indexes of other examples, vectors of another shape.
        NonFiniteError: vectors, or scores, that are NaN or infinite.
        CorruptFileError: a file of features is gone or damaged.
    """
    asked = _Asked.of(indexes, queries)
    scores_NQ = np.empty((asked.indexes[0].ids.size, len(asked.queries[0])), np.float32)

    def deliver(part: slice, values_BQ: Float32) -> None:
        scores_NQ[part] = values_BQ

    run_jobs(asked.parts, _scorer, asked, deliver, executor=executor, description="blocks of the index")
    return scores_NQ


def index_top(
    indexes: Sequence[GradientIndex], queries: Sequence[npt.ArrayLike], k: int, *, executor: Executor | str = "serial"
) -> tuple[Ids, Float32]:
    """Return the k training examples that score highest for each query, without the N x Q scores anywhere.

    The very scores of :func:`index_scores`; ties go by a hash of the id (:mod:`comove.ties`).

    Args:
        indexes: as of :func:`index_scores`.
        queries: as there.
        k: how many, at most N.
        executor: as there.

    Returns:
        ids (Q, k) and scores (Q, k), best first.

    Raises:
        InputError: ``k`` out of range; as of :func:`index_scores`.
    """
    asked = _Asked.of(indexes, queries)
    ids = asked.indexes[0].ids
    k = whole_number(k, "k", 1, ids.size)
    order_N = tie_order(ids)
    rank_N = np.empty_like(order_N)
    rank_N[order_N] = np.arange(ids.size)
    best = [np.full((len(asked.queries[0]), k), NOTHING)]

    def deliver(part: slice, keys_QB: npt.NDArray[np.int64]) -> None:
        best[0] = _highest(np.concatenate([best[0], keys_QB], 1), k)

    payload = (asked, rank_N, k)
    run_jobs(asked.parts, _chooser, payload, deliver, executor=executor, description="blocks of the index")
    ranks_QK, scores_QK = unpack(descending(best[0]))
    return ids[order_N[ranks_QK]], scores_QK


def _highest(keys_QB: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    width = keys_QB.shape[1]
    return keys_QB if width <= k else np.partition(keys_QB, width - k, axis=1)[:, width - k :]


@dataclass(frozen=True)
class _Asked:
    """Indexes of the same examples, and for each what it is asked with."""

    indexes: tuple[GradientIndex, ...]
    queries: tuple[Float32, ...]

    @classmethod
    def of(cls, indexes: Sequence[GradientIndex], queries: Sequence[npt.ArrayLike]) -> _Asked:
        if not indexes or len(indexes) != len(queries):
            raise InputError(f"There must be queries for each index, got {len(indexes)} and {len(queries)}.")
        first, vectors = indexes[0], []
        for index, given in zip(indexes, queries, strict=True):
            if not np.array_equal(index.ids, first.ids):
                raise InputError(f"{index.folder} and {first.folder} are indexes of other training examples.")
            asked_QK = np.ascontiguousarray(as_real(given, "queries"), np.float32)
            if asked_QK.ndim != 2 or asked_QK.shape[1] != index.dimension:
                raise InputError(f"queries must be (Q, {index.dimension}) for {index.folder}, got {asked_QK.shape}.")
            if not np.isfinite(asked_QK).all():
                raise NonFiniteError("queries must be finite; check the gradients that they were made of.")
            vectors.append(asked_QK)
        if len({len(asked_QK) for asked_QK in vectors}) > 1:
            raise InputError(f"Each index must be asked for the same queries, got {[len(each) for each in vectors]}.")
        return cls(tuple(indexes), tuple(vectors))

    @property
    def parts(self) -> list[slice]:
        """The examples of each job."""
        rows, examples = min(index.rows for index in self.indexes), self.indexes[0].ids.size
        return [slice(at, min(at + rows, examples)) for at in range(0, examples, rows)]

    def block(self, part: slice) -> Float32:
        """The scores (B, Q) of some examples."""
        with plain_products():
            terms = [index.read(part) @ asked.T for index, asked in zip(self.indexes, self.queries, strict=True)]
        scores_BQ: Float32 = np.sum(terms, 0) if len(terms) > 1 else terms[0]
        if not np.isfinite(scores_BQ).all():
            raise NonFiniteError(
                f"Scores of the examples {part.start} to {part.stop} are beyond float32: scale queries."
            )
        return scores_BQ


def _scorer(asked: _Asked) -> Callable[[slice], Float32]:
    """In a worker: the function that gives the scores (B, Q) of a job."""
    return asked.block


def _chooser(payload: tuple[_Asked, npt.NDArray[np.int64], int]) -> Callable[[slice], npt.NDArray[np.int64]]:
    """In a worker: the function that gives the k highest keys (Q, k) of a job."""
    asked, rank_N, k = payload

    def keys(part: slice) -> npt.NDArray[np.int64]:
        scores_QB = np.ascontiguousarray(asked.block(part).T)
        return _highest(pack(scores_QB, rank_N[part]), k)

    return keys
