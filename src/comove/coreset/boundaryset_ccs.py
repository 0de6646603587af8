"""d(x) = min {s : argmax f(x_s) != y}, x_{s+1} = clip(x_s + a sign grad_x CE(f(x_s), y)): steps to the boundary.

x_0 = x. The budget is then shared among the bands d = 0, 1, ..., K as coverage-centric selection shares it among its
strata (:func:`comove.coreset.strata.allocate`), and each band is sampled uniformly: few steps mean near the decision
boundary, and small bands are kept whole.

Shape legend: N examples, B those under way at a time, S bands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from comove.checks import check_number, check_seed, check_share, whole_number
from comove.coreset.base import Picks, Positions, Selector
from comove.coreset.input_gradients import BATCH, PixelSpace, margin_gradients, trained_network, training_examples
from comove.coreset.strata import draw, random_keys
from comove.data import Ids
from comove.errors import InputError
from comove.ties import highest
from comove.training import resolve_device
from comove.training.sources import Source

__all__ = ["BoundarySetCCS", "boundary_steps", "cover_bands"]

Ascent = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def boundary_steps(
    ascent: Ascent,
    inputs: Callable[[Positions], Tensor],
    labels_N: Tensor,
    *,
    step: float = 1 / 255,
    max_steps: int = 50,
    low: float = 0.0,
    high: float = 1.0,
    batch: int = BATCH,
) -> npt.NDArray[np.int64]:
    """Return (N,) how many signed gradient steps change the prediction: 0 where it is wrong already, K if K - 1 do not.

    Examples whose prediction has changed leave, and others take their places: batches stay full, memory is that of one.

    Args:
        ascent: maps inputs (B, ...) and labels (B,) to gradients that raise the loss (B, ...), and logits (B, C).
        inputs: maps positions (B,) to inputs (B, ...).
        labels_N: (N,) int64, on the device of the inputs.
        step: a, in the inputs' units.
        max_steps: K.
        low: the least an input may become.
        high: the most.
        batch: B.
    """
    n = len(labels_N)
    found_N = np.full(n, max_steps, np.int64)
    begun = min(batch, n)
    places_B = np.arange(begun)
    x_B, taken_B = inputs(places_B), np.zeros(begun, np.int64)
    while places_B.size:
        labels_B = labels_N[torch.from_numpy(places_B).to(labels_N.device)]
        gradients_B, logits_BC = ascent(x_B, labels_B)
        flipped_B = (logits_BC.argmax(1) != labels_B).cpu().numpy()
        found_N[places_B[flipped_B]] = taken_B[flipped_B]
        taken_B = taken_B + 1
        stay_B = ~flipped_B & (taken_B < max_steps)
        x_B = (x_B + step * gradients_B.sign()).clamp_(low, high)[torch.from_numpy(stay_B).to(x_B.device)]
        places_B, taken_B = places_B[stay_B], taken_B[stay_B]
        new = np.arange(begun, min(begun + batch - places_B.size, n))
        if new.size:
            begun += new.size
            x_B = torch.cat([x_B, inputs(new)])
            places_B, taken_B = np.concatenate([places_B, new]), np.concatenate([taken_B, np.zeros_like(new)])
    return found_N


def cover_bands(
    steps_N: npt.ArrayLike, ids: Ids, keys_N: npt.NDArray[np.float64], k: int, *, beta: float = 0.0
) -> Positions:
    """Return the positions of ``k`` examples that cover all distances to the boundary.

    Args:
        steps_N: (N,) integer distances.
        ids: (N,), for ties.
        keys_N: (N,) independent random numbers; within a band the highest are kept.
        k: how many.
        beta: the share of examples nearest to the boundary dropped at first, floor(beta N) of them.

    Raises:
        InputError: ``beta`` above the pruning rate: fewer than ``k`` examples would be left.
    """
    steps = np.asarray(steps_N, np.int64)
    dropped = math.floor(beta * steps.size + 1e-9)
    if steps.size - dropped < k:
        raise InputError(
            f"boundaryset_ccs: beta must not exceed the pruning rate: beta = {beta:g} drops {dropped} of {steps.size} "
            f"examples, but keeping {k} prunes only {steps.size - k}. Lower beta or the budget."
        )
    rest = highest(-steps, ids, steps.size)[dropped:]
    return rest[draw(steps[rest], keys_N[rest], k)]


@dataclass(frozen=True)
class _Prepared:
    steps_N: npt.NDArray[np.int64]
    ids: Ids
    keys: npt.NDArray[np.float64]


@dataclass(frozen=True)
class BoundarySetCCS(Selector):
    """Coverage of distances to the decision boundary (Yang et al., "Mind the boundary", ICML 2024).

    At the run's last checkpoint, in evaluation mode, before normalisation: at most K forward and backward passes an
    example. Scores are minus the number of steps. The paper's step size, clipping and beta are not known and no code is
    public: those defaults are ours.

    Args:
        step: size of a step as a share of the inputs' range, which is [0, 1] for 8-bit images; the adversarial input
            never leaves it. Ours: 1/255, one grey level.
        max_steps: K, 50 in the CLD paper.
        beta: share of the examples nearest to the boundary left out at first. Ours: 0.
        seed: of the sampling within bands.
    """

    name: ClassVar[str] = "boundaryset_ccs"
    summary: ClassVar[str] = "evenly from all distances to the decision boundary"
    cost: ClassVar[str] = "up to 50 forward and backward passes over N"
    requires: ClassVar[frozenset[str]] = frozenset({"trace", "checkpoints"})
    one_run: ClassVar[bool] = True

    step: float = 1 / 255
    max_steps: int = 50
    beta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.name)
        check_number(self.step, f"{self.name}: step")
        whole_number(self.max_steps, f"{self.name}: max_steps", 1, error=InputError)
        check_share(self.beta, f"{self.name}: beta")

    def _prepare(self, sources: tuple[Source, ...]) -> _Prepared:
        source, device = sources[0], resolve_device()
        network, examples = trained_network(source, device), training_examples(source, self.name)
        space = PixelSpace.of(examples)

        def ascent(inputs_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
            gradients_B, _, logits_BC = margin_gradients(lambda x: network(examples.prepare(x)), inputs_B, labels_B)
            return gradients_B, logits_BC

        steps_N = boundary_steps(
            ascent,
            lambda positions: space.at(positions, device),
            torch.from_numpy(examples.labels).to(device),
            step=self.step * (space.high - space.low),
            max_steps=self.max_steps,
            low=space.low,
            high=space.high,
        )
        return _Prepared(steps_N, source.train_ids, random_keys(source.train_ids, self.seed, 0xB5))

    def _pick(self, prepared: _Prepared, candidates: Positions, k: int) -> Picks:
        steps, ids = prepared.steps_N[candidates], prepared.ids[candidates]
        kept = cover_bands(steps, ids, prepared.keys[candidates], k, beta=self.beta)
        kept = kept[highest(-steps[kept], ids[kept], k)]
        bands, sizes = np.unique(steps, return_counts=True)
        info: dict[str, Any] = {
            "bands": {str(band): size for band, size in zip(bands.tolist(), sizes.tolist(), strict=True)}
        }
        return Picks(candidates[kept], -steps[kept].astype(np.float32), info=info)
