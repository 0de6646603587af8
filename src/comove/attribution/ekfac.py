r"""tau(m, q) = - grad f(z_q)' (G + damping I)^-1 grad l(z_m), G by Kronecker factors.   (Grosse et al., 2023)

Influence functions with the Gauss-Newton matrix G of the mean loss, layer by layer in a Kronecker-factored eigenbasis
with corrected eigenvalues (:mod:`comove.gradients.ekfac`): no system is solved, and what is kept is a few matrices a
layer. f is the measured output; the sign makes a positive score one that raises it.

Shape legend: N train, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.attribution.arnoldi import hessian_resident
from comove.attribution.base import Attributor, Queries, said_once
from comove.attribution.replay import query_resident, run_of, training_resident, weights_digest
from comove.attribution.tracin import QUERY_BYTES, run_gradients, spread
from comove.checks import check_number
from comove.discovery import check_seed
from comove.gradients.ekfac import EKFACFactors, ekfac_factors
from comove.gradients.per_example import Batches, Part, PerExampleGradients
from comove.store import claim_cache, digest, new_folder, versions
from comove.training import Checkpoint, Resident, resolve_device
from comove.training.randomness import derived_seed
from comove.training.sources import Source

__all__ = ["EKFAC", "ekfac_scores"]

FORMAT = 1
LIBRARIES = ("comove", "torch")
SHARE = 0.01
"""LDS by this share. Digits, five runs, by a bank of its own: .474 at .0001, .487 at .001 and .01, .481 at .03, .468
at .1, which is usual elsewhere. CIFAR-10 small, three runs, alpha .3: .359 at .001, .357 at .01, .354, .348."""


def ekfac_scores(
    factors: EKFACFactors, gradients: PerExampleGradients, train: Batches, queries: Batches, dampings: dict[str, float]
) -> Tensor:
    """Return -grad f(z_q)' (G + damping I)^-1 grad l(z_m), (N, Q), positive = helps.

    Args:
        factors: of the same model.
        gradients: of the loss, over the parameters that have factors.
        train: N examples.
        queries: Q examples, taken in blocks whose gradients fit into 2 GiB.
        dampings: by the layer's name.
    """
    task, names = gradients.objective.task, tuple(gradients.parameters)
    measured = PerExampleGradients(gradients.model, "measure", task=task, parameters=names, check_on=train)
    block = max(1, QUERY_BYTES // (gradients.size * 4))
    columns: list[Tensor] = []
    for start in range(0, len(queries), block):
        directions = measured.collect(Part(queries, start, min(start + block, len(queries))))
        columns.append(gradients.inner_products(train, factors.solve(directions, dampings)))
    return -torch.cat(columns, 1)


@dataclass(frozen=True)
class _Model:
    """One checkpoint of a run, with its factors."""

    source: Source
    checkpoint: Checkpoint
    train: Resident
    factors: EKFACFactors

    def gradients(self) -> PerExampleGradients:
        return run_gradients(
            run_of(self.source),
            self.checkpoint,
            self.train.device,
            parameters=self.factors.parameters,
            check_on=self.train,
        )


@dataclass(frozen=True)
class EKFAC(Attributor):
    """Influence with eigenvalue-corrected Kronecker factors (George et al., 2018; Grosse et al., 2023).

    Linear layers, convolutions (without groups) and transformers' ``Conv1D``, each with its bias, have factors.
    Embeddings, norms and what else a model holds are left out of the sum; ``info["left_out"]`` names them. Scores of
    several runs are averaged.

    Args:
        damping: added to every eigenvalue; ``None`` for ``share`` of each layer's mean eigenvalue.
        share: see ``damping``.
        checkpoints: ``"last"``, ``"all"``, or a number of them evenly spread, of each run.
        factor_examples: ``"all"`` training examples, or a number of them drawn by the seed, that factors are fitted on.
        seed: of that draw and of the pseudo-targets.
        parameters: names or glob patterns (``"head.*"``) of the parameters to differentiate by; by default all
            trainable ones.
        cache: a folder to keep factors in: an interrupted fit goes on there, and other fits of the same checkpoints
            read them.

    Raises:
        InputError: an option out of range; in ``fit``, no layer that has factors, or a loss that is not convex in the
            outputs.

    Reference:
        Grosse et al., "Studying Large Language Model Generalization with Influence Functions", 2023, section 3.1.
    """

    name: ClassVar[str] = "ekfac"
    summary: ClassVar[str] = "influence with the Gauss-Newton matrix in Kronecker factors, layer by layer"
    cost: ClassVar[str] = "about 4 epochs of training per checkpoint"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})

    damping: float | None = None
    share: float = SHARE
    checkpoints: Literal["last", "all"] | int = "last"
    factor_examples: Literal["all"] | int = "all"
    seed: int = 0
    parameters: str | Sequence[str] | None = None
    cache: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        self._check_parameters()
        if self.damping is not None:
            check_number(self.damping, f"{self.name}: damping")
        check_number(self.share, f"{self.name}: share")
        if self.checkpoints not in ("last", "all"):
            self._check_whole("checkpoints", unit="'last', 'all' or a whole number")
        if self.factor_examples != "all":
            self._check_whole("factor_examples", unit="'all' or a whole number")
        if self.cache is not None:
            object.__setattr__(self, "cache", str(self.cache))

    def _fit(self, sources: tuple[Source, ...]) -> tuple[_Model, ...]:
        device, models = resolve_device(), []
        for source in sources:
            train, run = training_resident(source, device), run_of(source)
            for checkpoint in spread(run.checkpoints, 1 if self.checkpoints == "last" else self.checkpoints):
                models.append(_Model(source, checkpoint, train, self._factors(source, checkpoint, device)))
        return tuple(models)

    def _factors(self, source: Source, checkpoint: Checkpoint, device: torch.device) -> EKFACFactors:
        run, number = run_of(source), len(source.train_ids)
        number = number if self.factor_examples == "all" else min(number, self.factor_examples)
        data = hessian_resident(source, number, self.seed, device)
        gradients = run_gradients(run, checkpoint, device, parameters=self.parameters, check_on=data)
        # A seed of this checkpoint's own, so that averaging models averages what is drawn too.
        seed = derived_seed(self.seed, "ekfac", run.manifest["fingerprint"], checkpoint.epoch)
        if self.cache is None:
            return ekfac_factors(gradients, data, seed=seed)
        content = {
            "run": run.manifest["fingerprint"],
            "epoch": checkpoint.epoch,
            "weights": weights_digest(run, checkpoint),
            "parameters": list(gradients.parameters),
            "examples": digest(data.examples.ids),
            "seed": seed,
            "chunk": gradients.chunk_size,
            "libraries": {name: version for name, version in versions().items() if name in LIBRARIES},
        }
        folder = new_folder(Path(self.cache) / digest(content))
        claim_cache(folder, "ekfac-factors", FORMAT, content)
        return ekfac_factors(gradients, data, seed=seed, folder=folder)

    def _dampings(self, factors: EKFACFactors) -> dict[str, float]:
        return factors.dampings(self.share) if self.damping is None else dict.fromkeys(factors.layers, self.damping)

    def _scores(self, state: tuple[_Model, ...], queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        total_NQ, notes = torch.zeros(()), []
        for model in state:
            gradients, dampings = model.gradients(), self._dampings(model.factors)
            asked = query_resident(model.source, queries, model.train.device)
            total_NQ = total_NQ + ekfac_scores(model.factors, gradients, model.train, asked, dampings).cpu()
            left_out = "; ".join(f"{name} ({why})" for name, why in model.factors.left_out.items())
            notes.append({"gradients": str(gradients.paths), "left_out": left_out})
        values: npt.NDArray[np.float32] = (total_NQ / len(state)).to(torch.float32).numpy()
        return values, {**said_once(notes), "used_checkpoints": len(state)}

    def _self_influence(self, state: tuple[_Model, ...]) -> npt.NDArray[np.float32]:
        """Of each training example grad l' (G + damping I)^-1 grad l, (N,)."""
        total_N = torch.zeros(())
        for model in state:
            dampings, parts = self._dampings(model.factors), []
            for _, chunk in model.gradients().stream(model.train):
                held = dict(chunk)
                solved = model.factors.solve(held, dampings)
                products = [(held[name] * solved[name]).flatten(1).sum(1) for name in held]
                parts.append(torch.stack(products).sum(0).cpu())
            total_N = total_N + torch.cat(parts)
        values: npt.NDArray[np.float32] = (total_N / len(state)).to(torch.float32).numpy()
        return values
