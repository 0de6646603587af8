r"""tau(m, q) = (1 - p_m) phi_m' (Phi' Phi + lambda I)^-1 phi_q.   (Park et al., "TRAK", ICML 2023)

The network is replaced by its linearisation: a logistic regression on phi, the projected gradients of the margin
log p / (1 - p). tau is how far the margin of q falls in one Newton step without example m, but for the weights
p (1 - p) and the leverage of m, which the paper leaves out. Several models are averaged as in the paper:
(mean of 1 - p_m) times (mean of phi_m' (..)^-1 phi_q).

Shape legend: N train, Q queries, K projected dimensions, B examples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.kept_blocks import CacheFolder
from comove.attribution.replay import query_resident, run_of, training_resident
from comove.attribution.tracin import spread
from comove.attribution.trak_features import BATCH, BLOCK, Differentiation, Featuriser, feature_blocks, read_features
from comove.checks import check_number
from comove.discovery import check_choice, check_seed
from comove.errors import InputError
from comove.gradients.projections import KINDS, Kind, Projection
from comove.training import Checkpoint, Resident, resolve_device
from comove.training.sources import Source

__all__ = ["TRAK", "cholesky_of", "trak_scores"]

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]

RIDGE = 0.3
"""LDS on digits (MLP, margin, alpha 0.5, K = 512, five runs): .26 at 0.001, .39 at 0.1, .41 at 0.3 and 1, .29 at 10."""


# --- the mathematics -----------------------------------------------------------------------------------------------


def cholesky_of(gram_KK: Tensor, ridge: float) -> Tensor:
    """Return L (K, K) with L L' = gram + lambda I, in float64; lambda is ``ridge`` times the mean eigenvalue of gram.

    A gram of zeros (all gradients vanish) gives the identity, so that scores are 0.

    Raises:
        InputError: the sum is not positive definite in float64: the ridge is too small.
    """
    gram_KK = gram_KK.double()
    mean = gram_KK.diagonal().mean().item()
    lifted = gram_KK + (ridge * mean if mean > 0 else 1.0) * torch.eye(len(gram_KK), dtype=torch.float64).to(gram_KK)
    factor_KK: Tensor
    factor_KK, failed = torch.linalg.cholesky_ex(lifted)
    if int(failed):
        raise InputError(f"ridge={ridge:g} is too small for features of this rank; use 1e-6 or more.")
    return factor_KK


def trak_scores(train_NK: Tensor, query_QK: Tensor, one_minus_p_N: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return (1 - p_m) phi_m' (Phi' Phi + lambda I)^-1 phi_q (N, Q) of features from anywhere.

    Args:
        train_NK: projected margin gradients of the training examples.
        query_QK: those of the queries.
        one_minus_p_N: one minus the probability of each training example's own label.
        ridge: lambda as a multiple of the mean eigenvalue of Phi' Phi.

    Returns:
        (N, Q) float64, positive = helps. ``traker`` returns this divided by the mean absolute entry of the inverse.

    Example:
        >>> import torch
        >>> trak_scores(torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 0.5]), ridge=1.0)
        tensor([[0.2500],
                [0.0000]], dtype=torch.float64)
    """
    train_NK = train_NK.double()
    factor_KK = cholesky_of(train_NK.T @ train_NK, ridge)
    return one_minus_p_N.double()[:, None] * (train_NK @ torch.cholesky_solve(query_QK.double().T, factor_KK))


# --- the method ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """One checkpoint: where the training examples' features lie, and what solves for queries."""

    source: Source
    checkpoint: Checkpoint
    train: Resident
    folder: Path
    factor: Tensor  # (K, K) float64
    one_minus_p: Float64  # (N,)
    scale: float

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, phi (B, K) in float64 on the device)."""
        for part, phi_BK in read_features(self.folder, self.one_minus_p.size):
            yield part, torch.from_numpy(phi_BK).to(self.factor)

    def add_kernel(self, total_NQ: Float32, query_QK: Float32) -> None:
        """Add phi_m' (Phi' Phi + lambda I)^-1 phi_q; what is solved for is (K, Q), training features are streamed."""
        query_KQ = torch.from_numpy(query_QK).to(self.factor).T
        solved_KQ = torch.cholesky_solve(query_KQ, self.factor).mul_(self.scale)
        for part, phi_BK in self.blocks():
            total_NQ[part] += (phi_BK @ solved_KQ).float().cpu().numpy()

    def diagonal(self) -> Float64:
        """Return phi_m' (Phi' Phi + lambda I)^-1 phi_m (N,)."""
        halves = (torch.linalg.solve_triangular(self.factor, phi_BK.T, upper=False) for _, phi_BK in self.blocks())
        values: Float64 = torch.cat([half_KB.square().sum(0) for half_KB in halves]).mul_(self.scale).cpu().numpy()
        return values


@dataclass(frozen=True)
class _State:
    folder: CacheFolder
    models: tuple[_Model, ...]

    def mean_one_minus_p(self) -> Float64:
        """The mean over models, (N,)."""
        mean_N: Float64 = np.stack([model.one_minus_p for model in self.models]).mean(0)
        return mean_N


@dataclass(frozen=True)
class TRAK(Attributor):
    """Linearised logistic regression on projected margin gradients (Park et al., ICML 2023), through ``traker``.

    One random projection is noisy (two of 512 dimensions agree only .16 per query on CIFAR-10): fit on several runs.

    Args:
        proj_dim: dimensions K, at most the number of training examples; ``None`` for 512, or half the number of
            training examples where that is less.
        ridge: lambda of the inverse, as a multiple of the mean eigenvalue of Phi' Phi. It matters: with next to none
            the scores are mostly noise of the projection.
        checkpoints: ``"last"``, ``"all"``, or a number of them evenly spread, of each run.
        projector: ``"sparse"``; ``"rademacher"`` (dense, slow); ``"fast_jl"`` (dense, CUDA, where installed);
            ``"none"`` for the gradients themselves, where parameters are fewer than training examples.
        nonzeros: signs a gradient entry has in the sparse projection.
        seed: of the projections; each checkpoint of each run has its own.
        scale: ``"margin"``, the formula above; or ``"traker"``, each inverse divided by the mean of its absolute
            entries, as ``traker`` returns it: the same ranking from one model, other weights among several.
        parameters: names or glob patterns (``"head.*"``) of the parameters to differentiate by; by default all
            trainable ones.
        cache: a folder to keep training features in: interrupted featurising goes on there, and other fits of the
            same checkpoints with the same projection read them. ``None`` keeps them in a temporary folder.
        batch: examples whose gradients are held at once, at most.

    Raises:
        InputError: an option out of range; in ``fit``, fewer training examples than dimensions.

    Example:
        >>> scores = TRAK(proj_dim=256).fit(runs).attribute()  # doctest: +SKIP
        >>> scores.top(10, query=int(scores.query_ids[0]))  # doctest: +SKIP
    """

    name: ClassVar[str] = "trak"
    summary: ClassVar[str] = "linearised logistic regression on projected margin gradients, averaged over models"
    cost: ClassVar[str] = "about 2 epochs of training per checkpoint; N x proj_dim floats"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    proj_dim: int | None = None
    ridge: float = RIDGE
    checkpoints: Literal["last", "all"] | int = "last"
    projector: Kind = "sparse"
    nonzeros: int = 4
    seed: int = 0
    scale: Literal["margin", "traker"] = "margin"
    parameters: str | Sequence[str] | None = None
    cache: str | None = field(default=None, repr=False)
    batch: int = field(default=BATCH, repr=False)

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        self._check_parameters()
        check_choice(self.projector, KINDS, "projector", self.name)
        check_choice(self.scale, ("margin", "traker"), "scale", self.name)
        if self.checkpoints not in ("last", "all"):
            self._check_whole("checkpoints", unit="'last', 'all' or a whole number")
        self._check_whole("nonzeros")
        self._check_whole("batch")
        if self.proj_dim is not None:
            self._check_whole("proj_dim", unit="None or a whole number")
        check_number(self.ridge, f"{self.name}: ridge")
        if self.cache is not None:
            object.__setattr__(self, "cache", str(self.cache))

    def _fit(self, sources: tuple[Source, ...]) -> _State:
        folder, device, models = CacheFolder(self.cache, "trak"), resolve_device(), []
        for source in sources:
            data, run = training_resident(source, device), run_of(source)
            for checkpoint in spread(run.checkpoints, 1 if self.checkpoints == "last" else self.checkpoints):
                models.append(self._model(source, checkpoint, data, folder.path))
        return _State(folder, tuple(models))

    def _featuriser(self, source: Source, checkpoint: Checkpoint, train: Resident) -> Featuriser:
        projection = Projection(self.projector, self.proj_dim, self.nonzeros, self.seed)
        how = Differentiation(self.parameters, self.batch, train)
        return Featuriser(run_of(source), checkpoint, projection, len(train), train.device, how)

    def _model(self, source: Source, checkpoint: Checkpoint, data: Resident, cache: Path) -> _Model:
        featuriser = self._featuriser(source, checkpoint, data)
        folder, blocks = feature_blocks(featuriser, data, cache)
        gram_KK = torch.zeros(featuriser.dimension, featuriser.dimension, dtype=torch.float64, device=data.device)
        rest: list[Float32] = []
        for block_BK, rest_B in blocks:
            phi_BK = torch.from_numpy(block_BK).to(gram_KK)
            gram_KK.addmm_(phi_BK.T, phi_BK)
            rest.append(rest_B)
        factor_KK = cholesky_of(gram_KK, self.ridge)
        scale = 1.0 if self.scale == "margin" else 1 / torch.cholesky_inverse(factor_KK).abs().mean().item()
        return _Model(source, checkpoint, data, folder, factor_KK, np.concatenate(rest).astype(np.float64), scale)

    def _scores(self, state: _State, queries: Queries) -> tuple[Float32, dict[str, Any]]:
        weight_N = state.mean_one_minus_p() / len(state.models)
        total_NQ = np.zeros((weight_N.size, queries.ids.size), np.float32)
        notes: dict[str, Any] = {"used_checkpoints": len(state.models)}
        ways: list[dict[str, str]] = []
        for model in state.models:
            data = query_resident(model.source, queries, model.factor.device)
            featuriser = self._featuriser(model.source, model.checkpoint, model.train)
            query_QK = np.concatenate([featuriser.block(data, start)[0] for start in range(0, len(data), BLOCK)])
            model.add_kernel(total_NQ, query_QK)
            notes["projected_to"] = featuriser.dimension
            ways.append({"gradients": str(featuriser.gradients.paths)})
        total_NQ *= weight_N.astype(np.float32)[:, None]
        return total_NQ, {**notes, **said_once(ways)}

    def _self_influence(self, state: _State) -> Float32:
        kernel_N = np.stack([model.diagonal() for model in state.models]).mean(0)
        values: Float32 = (kernel_N * state.mean_one_minus_p()).astype(np.float32)
        return values
