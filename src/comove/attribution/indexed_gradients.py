r"""tau(m, q) = - phi_q' (F + lambda I)^-1 phi_m, F = 1/N sum_m phi_m phi_m' layer by layer.   (Choe et al., 2024)

phi are gradients projected on both sides of each layer before they are formed
(:mod:`comove.gradients.layer_projections`): of the loss for training examples, whose phi_m are kept on disk in an
index, of the measured output for queries. F is the features' own second moment, layer by layer. The index is asked for
any queries, block by block, without the network having to see a training example again.

Shape legend: N train, Q queries, K projected dimensions of all layers, B examples of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.gradient_index import GradientIndex, index_scores, index_top
from comove.attribution.kept_blocks import CacheFolder
from comove.attribution.replay import query_resident, run_of, training_resident, weights_digest
from comove.attribution.tracin import run_gradients, spread
from comove.attribution.trak import cholesky_of
from comove.checks import check_number
from comove.data import ExampleSet, Ids
from comove.discovery import check_choice, check_seed
from comove.gradients.layer_projections import ProjectedGradients
from comove.gradients.per_example import Batches, Part
from comove.gradients.scalars import Values
from comove.jobs import Executor
from comove.store import digest, versions
from comove.training import Checkpoint, Resident, resolve_device
from comove.training.randomness import derived_seed, generator_for
from comove.training.sources import Source

__all__ = ["IndexedGradients", "layer_factors", "precondition"]

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]

LIBRARIES = ("comove", "torch")
RIDGE = 0.1


# --- the mathematics --------------------------------------------------------------------------------------------------


def layer_factors(moments: Mapping[str, Float64], ridge: float = RIDGE) -> dict[str, Float64]:
    """Return L (K_s, K_s) with L L' = F + lambda I of each section, lambda ``ridge`` times F's mean eigenvalue.

    The identity where all features of a section vanish.

    Raises:
        InputError: ``ridge`` is too small for float64.
    """
    return {name: cholesky_of(torch.from_numpy(moment), ridge).numpy() for name, moment in moments.items()}


def precondition(features: npt.ArrayLike, factors: Mapping[str, Float64], *, half: bool = False) -> Float64:
    """Return (L L')^-1 phi of each section of features (B, K), or L^-1 phi with ``half``.

    Example:
        >>> precondition([[2.0, 3.0]], {"a": np.array([[2.0]]), "b": np.array([[1.0]])}).tolist()
        [[0.5, 3.0]]
    """
    left_KB, found, start = torch.as_tensor(np.asarray(features, np.float64)).T, [], 0
    for factor in factors.values():
        factor_KK, own_KB = torch.from_numpy(factor), left_KB[start : start + len(factor)]
        start += len(factor)
        solved_KB = torch.linalg.solve_triangular(factor_KK, own_KB, upper=False)
        found.append(solved_KB if half else torch.linalg.solve_triangular(factor_KK.mT, solved_KB, upper=True))
    values: Float64 = torch.cat(found).T.numpy()
    return values


# --- the method -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """One checkpoint of a run, with the index of its training examples."""

    source: Source
    checkpoint: Checkpoint
    train: Resident
    index: GradientIndex
    factors: Mapping[str, Float64] | None


@dataclass(frozen=True)
class _State:
    folder: CacheFolder
    models: tuple[_Model, ...]


@dataclass(frozen=True)
class IndexedGradients(Attributor):
    """Influence from gradients projected on both sides of each layer, kept in an index on disk (Choe et al., 2024).

    Linear layers, convolutions (without groups) and transformers' ``Conv1D``, each with its bias, are projected.
    Embeddings, norms and what else a model holds are left out of the sum; ``info["left_out"]`` names them. Scores of
    several runs are averaged. :meth:`top` finds the best training examples of each query without the N x Q scores.

    Args:
        input_dim: dimensions kept of each layer's inputs; a layer has ``input_dim * output_dim`` floats an example.
        output_dim: dimensions kept of its outputs.
        solver: ``"fisher"``, the formula above; ``"none"``, inner products as of ``tracin``.
        ridge: lambda of the solve, as a multiple of the mean eigenvalue of each layer's F.
        checkpoints: ``"last"``, ``"all"``, or a number of them evenly spread, of each run.
        seed: of the projections; each checkpoint of each run has its own.
        parameters: names or glob patterns (``"head.*"``) of the parameters to differentiate by; by default all
            trainable ones.
        cache: a folder to keep indexes in, each in a folder of its own: an interrupted fit goes on there, and other
            fits of the same checkpoints with the same projection read them. ``None`` keeps them in a temporary folder.
        batch: examples that go through the network at once.

    Raises:
        InputError: an option out of range; in ``fit``, no layer that can be projected.
        StorageError: in ``fit``, too little room on disk; nothing was computed.

    Example:
        >>> fitted = IndexedGradients(cache="indexes").fit(runs)  # doctest: +SKIP
        >>> ids, scores = fitted.top(10)  # doctest: +SKIP

    Reference:
        Choe et al., "What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence Functions", 2024.
    """

    name: ClassVar[str] = "indexed-gradients"
    summary: ClassVar[str] = "influence from two-sided projections of layers' gradients, kept in an index on disk"
    cost: ClassVar[str] = "about 1 epoch of training per checkpoint; N x input_dim x output_dim floats a layer on disk"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    input_dim: int = 32
    output_dim: int = 32
    solver: Literal["fisher", "none"] = "fisher"
    ridge: float = RIDGE
    checkpoints: Literal["last", "all"] | int = "last"
    seed: int = 0
    parameters: str | Sequence[str] | None = None
    cache: str | None = field(default=None, repr=False)
    batch: int = field(default=100, repr=False)

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        self._check_parameters()
        check_choice(self.solver, ("fisher", "none"), "solver", self.name)
        check_number(self.ridge, f"{self.name}: ridge")
        for option in ("input_dim", "output_dim", "batch"):
            self._check_whole(option)
        if self.checkpoints not in ("last", "all"):
            self._check_whole("checkpoints", unit="'last', 'all' or a whole number")
        if self.cache is not None:
            object.__setattr__(self, "cache", str(self.cache))

    def top(
        self,
        k: int = 10,
        queries: ExampleSet | Sequence[int] | Ids | int | None = None,
        *,
        executor: Executor | str = "serial",
    ) -> tuple[Ids, Float32]:
        """Return the k training examples that help each query most, without the N x Q scores anywhere.

        Args:
            k: how many, at most N.
            queries: as of :meth:`attribute`.
            executor: an :class:`comove.jobs.Executor`, or ``"serial"``, ``"local"``, ``"ray"``. Its processes read
                the index: on a cluster, ``cache`` must be a folder that all machines see.

        Returns:
            ids (Q, k) and scores (Q, k), best first; those of :meth:`attribute`.

        Raises:
            NotFittedError: :meth:`fit` was not called.
            InputError: ``k`` out of range, unknown queries.
            CorruptFileError: a file of the index is gone or damaged; fitting again computes it anew.
        """
        sources, state = self._require_fitted()
        with self._precise():
            vectors, _ = self._vectors(state, self._queries(sources, queries))
        return index_top([model.index for model in state.models], vectors, k, executor=executor)

    @property
    def indexes(self) -> tuple[GradientIndex, ...]:
        """The index of each checkpoint of each run."""
        return tuple(model.index for model in self._require_fitted()[1].models)

    def _fit(self, sources: tuple[Source, ...]) -> _State:
        folder, device, models = CacheFolder(self.cache, self.name), resolve_device(), []
        for source in sources:
            train = training_resident(source, device)
            for checkpoint in spread(run_of(source).checkpoints, 1 if self.checkpoints == "last" else self.checkpoints):
                index = self._index(source, checkpoint, train, folder.path)
                factors = layer_factors(index.second_moments(), self.ridge) if self.solver == "fisher" else None
                models.append(_Model(source, checkpoint, train, index, factors))
        return _State(folder, tuple(models))

    def _projected(self, source: Source, checkpoint: Checkpoint, train: Resident) -> tuple[ProjectedGradients, int]:
        """The projected gradients of a checkpoint, and the seed of their projections."""
        run = run_of(source)
        gradients = run_gradients(run, checkpoint, train.device, parameters=self.parameters, check_on=train)
        # A seed of this checkpoint's own, so that averaging models averages the projections' errors too.
        seed = derived_seed(self.seed, self.name, run.manifest["fingerprint"], checkpoint.epoch)
        dimensions = self.input_dim, self.output_dim
        return ProjectedGradients(gradients, train, *dimensions, generator_for(seed), batch=self.batch), seed

    def _index(self, source: Source, checkpoint: Checkpoint, train: Resident, folder: Path) -> GradientIndex:
        run, (projected, seed) = run_of(source), self._projected(source, checkpoint, train)
        made_from = {
            "run": run.manifest["fingerprint"],
            "epoch": checkpoint.epoch,
            "weights": weights_digest(run, checkpoint),
            "task": run.task.name,
            "parameters": list(projected.gradients.parameters),
            "projection": {"input_dim": self.input_dim, "output_dim": self.output_dim, "seed": seed},
            "chunk": self.batch,
            "libraries": {name: version for name, version in versions().items() if name in LIBRARIES},
        }

        def features(part: slice) -> Float32:
            return _features(projected, Part(train, part.start, part.stop), run.task.loss)

        ids = source.trace.train_ids
        place = folder / digest(made_from, ids)
        return GradientIndex.build(place, ids, projected.sections, features, made_from, cached=True)

    def _vectors(self, state: _State, queries: Queries) -> tuple[list[Float32], dict[str, Any]]:
        """For each index what it is asked with, (Q, K), and what to say of it."""
        vectors, notes = [], []
        for model in state.models:
            data = query_resident(model.source, queries, model.train.device)
            projected, _ = self._projected(model.source, model.checkpoint, model.train)
            query_QK: npt.NDArray[Any] = _features(projected, data, run_of(model.source).task.measure)
            if model.factors is not None:
                query_QK = precondition(query_QK, model.factors)
            vectors.append((query_QK / -len(state.models)).astype(np.float32))
            left_out = "; ".join(f"{name} ({why})" for name, why in projected.left_out.items())
            notes.append({"gradients": str(projected.gradients.paths), "left_out": left_out})
        dimension = state.models[0].index.dimension
        return vectors, {**said_once(notes), "used_checkpoints": len(vectors), "projected_to": dimension}

    def _scores(self, state: _State, queries: Queries) -> tuple[Float32, dict[str, Any]]:
        vectors, info = self._vectors(state, queries)
        return index_scores([model.index for model in state.models], vectors), info

    def _self_influence(self, state: _State) -> Float32:
        """Of each training example phi' (F + lambda I)^-1 phi, (N,)."""
        total_N = np.zeros(len(state.models[0].train))
        for model in state.models:
            for part in model.index.parts:
                half_BK = model.index.read(part).astype(np.float64)
                if model.factors is not None:
                    half_BK = precondition(half_BK, model.factors, half=True)
                total_N[part] += np.square(half_BK).sum(1)
        return (total_N / len(state.models)).astype(np.float32)


def _features(projected: ProjectedGradients, data: Batches, values: Values) -> Float32:
    """Projected gradients (N, K) of a few examples."""
    found: Float32 = torch.cat([phi_BK.to("cpu", torch.float32) for phi_BK in projected.stream(data, values)]).numpy()
    return found
